"""Backups of a store that others write to, and plain copies of one, which are no backups."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc._backup import _Copy
from mmpc._extent import run_at
from mmpc._findings import Findings
from mmpc._lasting import Config, parse_config, read_marks
from mmpc._layout import (
    CONTROL_SEGMENTS,
    CONTROL_SLOTS,
    EXTENT_STATE,
    REST_RUN,
    RETIREMENTS_AT,
    RUN_HEADER,
    SEGMENT_ENTRY_SIZE,
    SLOT_LEASES,
    SLOT_LEASES_AT,
    SLOT_SIZE,
)
from support import mounts
from support.children import Child, Children
from support.copying import Copier

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
SMALL = 1 << 16  # the smallest segment
VOLATILE = shutil.ignore_patterns("control", "table", "ids", "rts")


def value(n: int, salt: int) -> list[Any]:
    """What a page holds at count n: its length and bytes follow from that."""
    return [n, salt, f"{n * 2654435761 & 0xFFFFFFFF:08x}" * ((n * 31 + salt) % 250)]


def count(page: Any) -> int:
    n, salt, text = page.unwrap()[:3]
    assert [n, salt, text] == value(n, salt)
    return int(n)


class Work:
    """Writers that count up, each on its own pages a, b, c, d: a first, then b, which is never ahead. c is what it saw
    of its neighbour's a, and d is appended to without pause. Any closed state has b <= a and c <= the neighbour's a.
    """

    WRITERS = 3

    def __init__(self, pc: Store, path: str) -> None:
        self.path = path
        self.pages = [tuple(pc.allocate(value(0, salt))[0] for salt in range(4)) for _ in range(self.WRITERS)]
        others = [pc.allocate(["live", i, "x" * 400])[0] for i in range(150)]
        self.others = others
        pc.flush()

    def start(self, children: Children, seed: int) -> list[Child]:
        return [children.start(self._write, i, seed + i) for i in range(self.WRITERS)]

    def _write(self, i: int, seed: int) -> None:
        rng, (a, b, c, d) = random.Random(seed), self.pages[i]
        neighbour = self.pages[(i + 1) % self.WRITERS][0]
        with mmpc.open(self.path, mmpc.LastWriteWins()) as pc:
            n = count(pc.get(a))
            while True:
                n += 1
                pc.replace(a, pc.get(a).key, value(n, 0))
                pc.replace(b, pc.get(b).key, value(n, 1))
                pc.replace(c, pc.get(c).key, value(count(pc.get(neighbour)), 2))
                pc.append(d, value(n, 3))
                draw = rng.random()
                if draw < 0.1:
                    pc.attempt_gc()
                elif draw < 0.2:
                    pc.flush()
                elif draw < 0.3:
                    pc.rewrite(rng.choice(self.others))

    def counts(self, pc: Store) -> list[list[int]]:
        assert all(pc.get(pid).unwrap() == ["live", i, "x" * 400] for i, pid in enumerate(self.others))
        return [[count(pc.get(pid)) for pid in pages] for pages in self.pages]

    def is_closed(self, counts: list[list[int]]) -> None:
        for i, (a, b, c, d) in enumerate(counts):
            assert a - 1 <= b <= a
            assert c <= counts[(i + 1) % self.WRITERS][0]
            assert b - 1 <= d <= b


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Makes what is opened from now on be of another boot."""
    number = 0

    def next_boot() -> None:
        nonlocal number
        number += 1
        monkeypatch.setenv("MMPC_BOOT_ID", f"boot {number}")

    yield next_boot
    monkeypatch.undo()


def opened_elsewhere(dest: str, work: Work) -> list[list[int]]:
    """The state of a copy in another boot; it is sound, before and after."""
    report = mmpc.verify(dest)
    assert report.ok, str(report)
    before = os.environ.get("MMPC_BOOT_ID")
    os.environ["MMPC_BOOT_ID"] = "another boot"
    try:
        with mmpc.open(dest, mmpc.LastWriteWins()) as pc:
            found = work.counts(pc)
            pc._check()
            pc.replace(work.others[0], pc.get(work.others[0]).key, ["live", 0, "x" * 400])
        report = mmpc.verify(dest)
        assert report.ok, str(report)
    finally:
        if before is None:
            del os.environ["MMPC_BOOT_ID"]
        else:
            os.environ["MMPC_BOOT_ID"] = before
    return found


@pytest.mark.processes
def test_a_backup_under_load_is_a_state_that_was(
    open_store: Open, path: str, children: Children, seed: int
) -> None:
    pc = open_store(mmpc.LastWriteWins(), segment_size=SMALL)
    work = Work(pc, path)
    writers = work.start(children, seed)
    end, made = time.monotonic() + (60 if os.environ.get("MMPC_LONG") else 8), 0
    while time.monotonic() < end:
        time.sleep(random.Random(seed + made).random() * 0.05)
        before = work.counts(pc)
        if made % 2:
            report = pc.backup(f"{path}.{made}")
        else:
            report = mmpc.backup(path, f"{path}.{made}")
        after = work.counts(pc)
        found = opened_elsewhere(f"{path}.{made}", work)
        for was, then, now in zip(before, found, after, strict=True):
            assert all(x <= y <= z for x, y, z in zip(was, then, now, strict=True))
        work.is_closed(found)
        assert report.epoch > 0
        assert report.bytes > 0
        shutil.rmtree(f"{path}.{made}")
        made += 1
    assert all(writer.running() for writer in writers)
    assert made > 5
    assert pc.stats().cleaned > 20


# ---- what is refused, and what is left then


def filled(pc: Store) -> dict[int, Any]:
    model = {pc.allocate([i, "x" * 700])[0]: [i, "x" * 700] for i in range(200)}
    for pid in list(model)[::3]:
        pc.free(pid, pc.get(pid).key)
        model[pid] = None
    for pid in list(model)[1::3]:
        pc.append(pid, ["more"])
        model[pid] = [*model[pid], "more"]
    return model


def same(pc: Store, model: dict[int, Any]) -> bool:
    return all((pc.get(pid).is_free() if v is None else pc.get(pid).unwrap() == v) for pid, v in model.items())


def test_a_copy_is_a_store_of_its_own(open_store: Open, path: str, tmp_path: Path) -> None:
    """Beside the original, in one process, with the same uuid; in this boot and in the next."""
    pc = open_store(segment_size=SMALL)
    model, dest = filled(pc), str(tmp_path / "deep" / "copy")
    calls: list[tuple[int, int]] = []
    report = pc.backup(dest, progress=lambda done, total: calls.append((done, total)))
    assert (report.path, report.dest) == (path, dest)
    assert report.epoch == pc.stable_lsn
    assert calls
    assert all(0 < done <= total for done, total in calls)
    assert calls == sorted(calls)
    assert stat_mode(dest) == 0o700
    with mmpc.open(dest, mmpc.Append()) as copy:
        assert same(copy, model)
        pid, _ = copy.allocate(["only here"])
        assert pc.get(pid).is_unallocated() or pc.get(pid).is_free()
        assert copy.backup(dest + "-2").epoch > report.epoch
    with mmpc.open(dest + "-2", mmpc.Append()) as copy:
        assert same(copy, model)
        assert copy.get(pid).unwrap() == ["only here"]
    assert same(pc, model)


def stat_mode(name: str) -> int:
    return os.stat(name).st_mode & 0o777


def test_a_copy_of_what_recoveries_discarded(open_store: Open, path: str, boots: Callable[[], None]) -> None:
    """Records that were passed over once count in no copy either."""
    pc = open_store(segment_size=SMALL)
    model = filled(pc)
    pc.flush()
    for boot in range(4):
        boots()
        copy = shutil.copytree(path, f"{path}-{boot}", ignore=VOLATILE)
        path = str(copy)
        with mmpc.open(path, mmpc.Append()) as again:
            assert same(again, model)
            pid = next(p for p in model if model[p] is not None)
            model[pid] = ["boot", boot]
            again.replace(pid, again.get(pid).key, model[pid])
            again.backup(f"{path}-copy")
            with mmpc.open(f"{path}-copy", mmpc.Append()) as backup:
                assert same(backup, model)
            assert mmpc.verify(f"{path}-copy").ok
            again.append(next(p for p in model if model[p] is not None and p != pid), ["not flushed"])
            lost = shutil.copytree(path, f"{path}-lost", ignore=VOLATILE)
        path = str(lost)


def test_a_read_only_handle_makes_one_too(open_store: Open, path: str) -> None:
    pc = open_store()
    model = filled(pc)
    open_store(read_only=True).backup(path + ".copy")
    with mmpc.open(path + ".copy", mmpc.Append()) as copy:
        assert same(copy, model)


def test_no_materializer_is_needed(open_store: Open, path: str, children: Children) -> None:
    class Mine(mmpc.Materializer[Any]):
        name = "mine"

        def merge(self, fragments: Any) -> Any:
            return max(fragments)

    pc = open_store(Mine())
    pid, _ = pc.allocate(3)
    pc.append(pid, 7)
    pc.append(pid, 5)
    assert mmpc.clean(path).damage == []
    mmpc.backup(path, path + ".copy")
    with mmpc.open(path + ".copy", Mine()) as copy:
        assert copy.get(pid).unwrap() == 7
        assert copy.get_page_frags(pid)[1] == [3, 7, 5]
    with pytest.raises(FileNotFoundError):
        mmpc.backup(path + ".none", path + ".2")
    assert not os.path.exists(path + ".2")


def test_places_where_no_backup_goes(open_store: Open, path: str, tmp_path: Path) -> None:
    pc = open_store()
    model = filled(pc)
    before = sorted(os.listdir(path))
    link = str(tmp_path / "link")
    os.symlink(path, link)
    for dest in (path, os.path.join(path, "copy"), link, os.path.join(link, "copy")):
        with pytest.raises(ValueError, match="outside"):
            pc.backup(dest)
    assert sorted(os.listdir(path)) == before
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for dest in ("file", "full"):
        with pytest.raises(mmpc.IncompatibleStore, match=dest):
            pc.backup(str(tmp_path / dest))
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine").read_text() == "mine"
    assert os.listdir(tmp_path / "full") == ["mine"]
    pc.backup(str(tmp_path / "copy"))
    with pytest.raises(mmpc.IncompatibleStore, match="a store"):
        pc.backup(str(tmp_path / "copy"))
    with mmpc.open(tmp_path / "copy", mmpc.Append()) as copy:
        assert same(copy, model)
    os.rename(tmp_path / "copy" / "config", tmp_path / "config")
    with pytest.raises(mmpc.IncompatibleStore, match="log"):  # a store that lost its config is not written over
        pc.backup(str(tmp_path / "copy"))
    assert os.stat(tmp_path / "copy" / "log").st_size
    (tmp_path / "empty").mkdir()
    pc.backup(str(tmp_path / "empty"))
    with mmpc.open(tmp_path / "empty", mmpc.Append()) as copy:
        assert same(copy, model)


def test_somebody_else_makes_one_there(open_store: Open, path: str) -> None:
    from filelock import FileLock

    pc = open_store()
    os.mkdir(path + ".copy")
    with FileLock(os.path.join(path + ".copy", "open.lock")), pytest.raises(mmpc.StoreBusy):
        pc.backup(path + ".copy")
    pc.backup(path + ".copy")
    pc.close()
    with pytest.raises(mmpc.Closed):
        pc.backup(path + ".2")


def _until(path: str, dest: str, calls: int) -> None:
    """Dies in the middle of a backup, at a call of its progress."""
    left = calls

    def die(_done: int, _total: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    with mmpc.open(path, mmpc.Append()) as pc:
        pc.backup(dest, progress=die)


@pytest.mark.processes
def test_killed_in_the_middle(open_store: Open, path: str, children: Children) -> None:
    """What it leaves is no store; the next backup takes the place over, and the pin is nobody's."""
    pc = open_store(segment_size=SMALL)
    model, dest = filled(pc), path + ".copy"
    calls = 0

    def count_calls(_done: int, _total: int) -> None:
        nonlocal calls
        calls += 1

    pc.backup(path + ".whole", progress=count_calls)
    for number in range(1, calls + 1, max(1, calls // 6)):
        child = children.start(_until, path, dest, number)
        assert child.wait() == -signal.SIGKILL
        with pytest.raises(mmpc.IncompatibleStore):
            mmpc.open(dest, mmpc.Append())
        with pytest.raises(mmpc.IncompatibleStore):
            mmpc.open(dest, mmpc.Append(), create=True)
    pc.backup(dest)
    with mmpc.open(dest, mmpc.Append()) as copy:
        assert same(copy, model)
    assert "log.new" not in os.listdir(dest)
    pc.attempt_gc()
    assert pc.stats().oldest_pin == pc.stats().epoch


def _killed_at_a_step(path: str, dest: str, step: int) -> None:
    """Dies before the nth rename, sync or creation."""
    left = step
    for name in ("rename", "fsync", "ftruncate", "posix_fallocate"):
        original = getattr(os, name)

        def call(*args: Any, original: Any = original) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        setattr(os, name, call)
    with mmpc.open(path, mmpc.Append()) as pc:
        pc.backup(dest)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.processes
def test_killed_at_each_step(open_store: Open, path: str, children: Children) -> None:
    pc = open_store()
    model, dest, whole = filled(pc), path + ".copy", 0
    for step in range(1, 100):
        status = children.start(_killed_at_a_step, path, dest, step).wait()
        if status == -signal.SIGTERM:
            break
        if os.path.exists(os.path.join(dest, "config")):
            whole += 1
            with mmpc.open(dest, mmpc.Append()) as copy:
                assert same(copy, model)
            shutil.rmtree(dest)
        elif os.path.isdir(dest):
            with pytest.raises((mmpc.IncompatibleStore, mmpc.CorruptionError, FileNotFoundError)):
                mmpc.open(dest, mmpc.Append())
        pc.flush()
    assert 8 < step < 99
    assert whole >= 1
    with mmpc.open(dest, mmpc.Append()) as copy:
        assert same(copy, model)


def test_a_full_disk(open_store: Open, path: str) -> None:
    pc = open_store(segment_size=SMALL)
    model = filled(pc)
    with mounts.memory("200k") as small:
        place = small.path
        for dest in (place / "new", place):
            with pytest.raises(mmpc.DiskFullError, match="no room"):
                pc.backup(dest)
            assert [n for n in os.listdir(place) if n != "open.lock"] == []
    pc.backup(path + ".copy")
    with mmpc.open(path + ".copy", mmpc.Append()) as copy:
        assert same(copy, model)


def listed(path: str) -> list[tuple[int, int, int]]:
    """The leases of the newest mark."""
    config = parse_config((Path(path) / "config").read_bytes())
    assert isinstance(config, Config)
    with open(os.path.join(path, "marks"), "rb") as f:
        return read_marks(f.fileno(), config.uuid, Findings()).leases


def test_damage_in_what_is_copied(open_store: Open, path: str) -> None:
    """A lease that the mark lists is missed at once, and DEST is no store; other damage is in the copy, as it was."""
    pc = open_store()
    filled(pc)
    pc.close()
    log = Path(path) / "log"
    sound = log.read_bytes()
    ((address, _fill, _generation),) = listed(path)
    for at, noticed in ((address + 8, True), (4096 + 8, False)):
        assert at < address or noticed
        log.write_bytes(sound[:at] + b"\xff" * 8 + sound[at + 8 :])
        if noticed:
            with pytest.raises(mmpc.CorruptionError, match=f"{address}"):
                mmpc.backup(path, path + ".copy")
            assert not os.path.exists(path + ".copy")
            assert command("backup", path, path + ".copy").returncode == 1
        else:
            mmpc.backup(path, path + ".copy")
            assert not mmpc.verify(path + ".copy").ok
            with pytest.raises(mmpc.CorruptionError):
                mmpc.open(path + ".copy", mmpc.Append())
    log.write_bytes(sound)


# ---- the command line


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmpc", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command(open_store: Open, path: str) -> None:
    pc = open_store()
    model = filled(pc)
    done = command("backup", path, path + ".copy", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] > 0
    assert done.stderr == ""
    with mmpc.open(path + ".copy", mmpc.Append()) as copy:
        assert same(copy, model)
    done = command("backup", path, path + ".copy")
    assert (done.returncode, done.stdout) == (2, "")
    assert "choose a directory" in done.stderr
    assert "example" in command("backup", "--help").stdout
    assert "\x1b" not in command("backup", path, path + ".2").stdout


# ---- plain copies of a store in use: refused, or right


@pytest.mark.processes
@pytest.mark.parametrize("order", ["any", "marks first", "log first"])
def test_a_plain_copy_of_a_live_store_is_refused_or_right(
    memory: str, children: Children, seed: int, order: str
) -> None:
    """Never read wrongly: it holds at least what was flushed before, and is closed, or says that it cannot be read."""
    path, rng = os.path.join(memory, "store"), random.Random(seed)
    refused = right = 0
    with mmpc.open(path, mmpc.LastWriteWins(), create=True, segment_size=SMALL) as pc:
        work = Work(pc, path)
        writers = work.start(children, seed)
        copier, end = Copier(path, rng), time.monotonic() + (60 if os.environ.get("MMPC_LONG") else 5)
        while time.monotonic() < end:
            before = work.counts(pc)
            pc.flush()
            dest = os.path.join(memory, "copy")
            copier.copy(dest, copier.names(order))
            after = work.counts(pc)
            found = state_of(dest, work)
            shutil.rmtree(dest)
            if found is None:
                refused += 1
                continue
            right += 1
            for was, then, now in zip(before, found, after, strict=True):
                assert all(x <= y <= z for x, y, z in zip(was, then, now, strict=True))
            work.is_closed(found)
        assert all(writer.running() for writer in writers)
        for writer in writers:
            writer.kill()
    print(f"{refused} refused, {right} right")
    assert refused > 0


def state_of(dest: str, work: Work) -> list[list[int]] | None:
    """What a copy holds; None: it was refused, when it was opened or when a page was read."""
    try:
        with mmpc.open(dest, mmpc.LastWriteWins()) as copy:
            found = work.counts(copy)
            copy._check()
    except mmpc.CorruptionError:
        return None
    return found


def lasting(path: str, into: str, **files: bytes) -> str:
    """A store of the lasting files, some of them with other bytes."""
    os.mkdir(into, 0o700)
    for name in ("config", "lock", "log", "marks"):
        data = files.get(name)
        (Path(into) / name).write_bytes((Path(path) / name).read_bytes() if data is None else data)
    return into


def test_a_copy_lacks_a_record_that_its_author_had_not_counted_yet(open_store: Open, path: str) -> None:
    """The author stands between the head word of a record and the fill of its lease; somebody has seen the record, and
    flushed what came of it. A copy of the log from before is refused, since the mark knows of the record.
    """
    author, other = open_store(), open_store()
    pid, _ = author.allocate(["first"])
    its, _ = other.allocate(["first"])
    control, slot = Path(path, "control"), CONTROL_SLOTS + SLOT_SIZE * author._attachment.slot + SLOT_LEASES_AT

    def leases(*words: int) -> list[int]:
        with control.open("r+b") as f:
            f.seek(slot)
            found = list(SLOT_LEASES.unpack(f.read(SLOT_LEASES.size)))
            f.seek(slot)
            f.write(SLOT_LEASES.pack(*(words or found)))
        return found

    _, lease, shape, before = leases()
    author.append(pid, ["second"])
    _, _, _, after = leases()
    assert after > before
    leases(author.stats().epoch, lease, shape, before)
    try:
        seen = other.get(pid).unwrap()
        assert seen == ["first", "second"]
        other.append(its, [len(seen)])
        other.flush()
        log = bytearray(Path(path, "log").read_bytes())
        whole = lasting(path, f"{path}.whole")
        log[lease + before : lease + after] = bytes(after - before)
        short = lasting(path, f"{path}.short", log=bytes(log))
    finally:
        leases(0, lease, shape, after)
    with mmpc.open(whole, mmpc.Append()) as copy:
        assert (copy.get(pid).unwrap(), copy.get(its).unwrap()) == (["first", "second"], ["first", 2])
    with pytest.raises(mmpc.CorruptionError):
        mmpc.open(short, mmpc.Append())


def test_a_log_that_is_older_than_the_marks(open_store: Open, path: str) -> None:
    """The beginning of the log knows how many segments were ever retired; so do the marks."""
    pc = open_store(segment_size=SMALL)
    model = filled(pc)
    pids = [pid for pid in model if model[pid] is not None]
    for turn in range(10):
        for pid in pids:
            pc.replace(pid, pc.get(pid).key, [turn, "x" * 700])
    pc.flush()
    log = (Path(path) / "log").read_bytes()
    known = int.from_bytes(log[RETIREMENTS_AT : RETIREMENTS_AT + 8], "little")
    assert known == pc.stats().cleaned > 0
    with mmpc.open(lasting(path, path + ".1"), mmpc.Append()) as copy:
        assert [copy.get(pid).unwrap() for pid in pids] == [[9, "x" * 700]] * len(pids)
    older = log[:RETIREMENTS_AT] + (known - 1).to_bytes(8, "little") + log[RETIREMENTS_AT + 8 :]
    copy = lasting(path, path + ".2", log=older)
    assert not mmpc.verify(copy).ok
    with pytest.raises(mmpc.CorruptionError, match=f"offset {RETIREMENTS_AT}"):
        mmpc.open(copy, mmpc.Append())


def generation(log: bytes, number: int) -> int:
    return int.from_bytes(log[number * SMALL + 12 : number * SMALL + 16], "little")


def test_a_segment_that_was_used_again_while_it_was_copied(open_store: Open, path: str) -> None:
    """Its header is old, what follows is new, and nothing else in the copy knows of a newer mark."""
    pc = open_store(segment_size=SMALL)
    pids = [pc.allocate([0, "x" * 700])[0] for _ in range(200)]
    pc.flush()
    log, marks = ((Path(path) / name).read_bytes() for name in ("log", "marks"))
    again: list[int] = []
    for turn in range(1, 3000):
        pid = pids[turn % len(pids)]
        pc.replace(pid, pc.get(pid).key, [turn, "x" * 700])
        if turn % 40 == 0:
            pc.flush()
            new = (Path(path) / "log").read_bytes()
            again = [n for n in range(len(log) // SMALL) if generation(new, n) == generation(log, n) + 1]
        if again:
            break
    assert again
    for number in again:
        end = (number + 1) * SMALL
        for begin in (end - SMALL + 4096, end - SMALL + 8192, end - 4096, end - 64):
            mixed = log[:begin] + new[begin:end] + log[end:]
            copy = lasting(path, f"{path}.{begin}", log=mixed, marks=marks)
            assert not mmpc.verify(copy).ok
            with pytest.raises(mmpc.CorruptionError):
                mmpc.open(copy, mmpc.Append())
    with mmpc.open(lasting(path, path + ".old", log=log, marks=marks), mmpc.Append()) as old:
        assert [old.get(pid).unwrap() for pid in pids] == [[0, "x" * 700]] * len(pids)


def test_a_run_that_is_taken_in_a_free_segment_while_it_is_copied(open_store: Open, path: str) -> None:
    """Its header stands in a block that still says of which generation the segment was retired, and knows of marks that
    are newer than that of the copy.
    """
    pc = open_store(segment_size=SMALL)
    pids = [pc.allocate([0, "x" * 700])[0] for _ in range(200)]
    for turn in range(1, 1200):
        pid = pids[turn % len(pids)]
        pc.replace(pid, pc.get(pid).key, [turn, "x" * 700])
    pc.attempt_gc()
    pc.flush()
    before, taken = state_words(path), []

    def meanwhile(_done: int, _total: int) -> None:
        """After the states were read: once, large pages where segments are free."""
        if taken:
            return
        taken.append(0)
        for _ in range(3):
            pc.append(pids[0], [0])
            pc.flush()
        for _ in range(8):
            pc.allocate(["y" * 60_000, "y" * 40_000])
        now = state_words(path)
        taken.extend(n for n, word in enumerate(before) if word & 15 in (0, 7) and now[n] & 15 == EXTENT_STATE)

    model = {pid: pc.get(pid).unwrap() for pid in pids}
    pc.backup(path + ".copy", progress=meanwhile)
    assert len(taken) > 2
    assert mmpc.verify(path + ".copy").damage == []
    with mmpc.open(path + ".copy", mmpc.Append()) as copy:
        assert {pid: copy.get(pid).unwrap() for pid in pids} == model
        copy._check()


def state_words(path: str) -> list[int]:
    """Of all segments: state, generation, rest."""
    control = (Path(path) / "control").read_bytes()
    size = os.stat(Path(path) / "log").st_size
    return [
        int.from_bytes(control[at : at + 8], "little")
        for at in range(CONTROL_SEGMENTS, CONTROL_SEGMENTS + size // SMALL * SEGMENT_ENTRY_SIZE, SEGMENT_ENTRY_SIZE)
    ]


def test_a_run_that_gets_its_name_while_it_is_copied(
    open_store: Open, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken before the mark, named after it: the header that is copied is the one that was looked at."""
    pc = open_store(segment_size=SMALL)
    small = pc.allocate([1])[0]
    large = pc.allocate(["z" * 100_000])[0]
    pc.flush()
    number = next(n for n, word in enumerate(state_words(path)) if word & 15 == EXTENT_STATE and word >> 28 & REST_RUN)
    copied = _Copy._bytes

    def named(self: _Copy, at: int, end: int) -> None:
        """What mm_run_name does of a run whose page was not known before."""
        if at == number * SMALL:
            for _ in range(3):
                pc.append(small, [0])
                pc.flush()
            with open(Path(path) / "log", "r+b") as log:
                run = run_at(os.pread(log.fileno(), RUN_HEADER.size, at), number, uuid_of(path))
                assert run is not None
                run.epoch, run.stable = pc.stable_lsn + 1, pc.stable_lsn
                os.pwrite(log.fileno(), run.packed(uuid_of(path)), at)
        copied(self, at, end)

    monkeypatch.setattr(_Copy, "_bytes", named)
    pc.backup(path + ".copy")
    assert mmpc.verify(path + ".copy").damage == []
    with mmpc.open(path + ".copy", mmpc.Append()) as copy:
        assert copy.get(large).unwrap() == ["z" * 100_000]
        assert copy.get(small).unwrap() == [1]


def uuid_of(path: str) -> bytes:
    config = parse_config((Path(path) / "config").read_bytes())
    assert isinstance(config, Config)
    return config.uuid
