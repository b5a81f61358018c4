"""Snapshots: when they are made, that they change nothing but the time of a recovery, and what damage to one does.

A recovery under another boot id, or of a copy, shows the durable state; one of the same boot without `table` shows all
that returned. Both must find the same pages with any snapshot of the store's past, with none, and with a damaged one.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from support import loss
from support.children import Children
from support.sealed import numbers, seal

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
Dump = dict[int, Any]

SEGMENT = 1 << 16
CHUNK = 65536  # MM_SNAPSHOT_CHUNK
BLOCK = 4096


def dump(pc: Store, bound: int) -> Dump:
    """Every page: what it is, what it holds, at which version."""
    found: Dump = {}
    for pid in range(2, bound):
        page = pc.get(pid)
        if page.is_materialized():
            found[pid] = (numbers(pid, page.unwrap()), page.key.wts)
        elif page.is_free():
            found[pid] = ("free", page.key.wts)
    return found


class Messages(logging.Handler):
    """What the logger of mmpc says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Messages:
        self._logger, self._level = logging.getLogger("mmpc"), logging.getLogger("mmpc").level
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


def recovered(path: str, bound: int, boot: str | None = None) -> tuple[Dump, str]:
    """In a child: what a recovery of the store finds, and the one line that it says. The child dies without closing."""
    if boot is not None:
        os.environ["MMPC_BOOT_ID"] = boot
    with Messages() as said:
        pc = mmpc.open(path, mmpc.Append(), cache_capacity=0)
    assert len(said.lines) == 1, said.lines
    pc._check()
    answer = dump(pc, bound), said.lines[0]
    os._exit(_answer(answer))


def _answer(value: Any) -> int:
    import pickle

    os.write(_out[0], pickle.dumps(value))
    return 0


_out = [-1]


def recover(children: Children, path: str, bound: int, boot: str | None = None) -> tuple[Dump, str]:
    """Runs `recovered`: nothing is closed, so nothing is written but what the recovery itself writes."""
    import pickle

    with tempfile.TemporaryFile() as f:
        _out[0] = f.fileno()
        child = children.start(recovered, path, bound, boot)
        assert child.wait() == 0
        f.seek(0)
        data = f.read()
    if not data:
        child.result()
    return pickle.loads(data)  # type: ignore[no-any-return]


# ---- when they are made


def marks_of(path: str) -> list[tuple[str, int, int]]:
    """Name, inode and time of each snapshot: changes when one is written."""
    stats = [(name, os.stat(os.path.join(path, name))) for name in loss.snapshots(path)]
    return [(name, s.st_ino, s.st_mtime_ns) for name, s in stats]


def test_the_last_close_makes_one_if_something_was_written(open_store: Open, path: str) -> None:
    first, second = open_store(), open_store()
    pid, _ = first.allocate([0])
    first.begin().close()  # draws a number, and the first of a life is written down
    first.close()
    assert loss.snapshots(path) == []
    second.close()
    assert len(loss.snapshots(path)) == 1
    for write in (
        lambda pc: pc.append(pid, [1]),
        lambda pc: pc.free(pid, pc.get(pid).key),
        lambda pc: pc.allocate([2]),
    ):
        before = marks_of(path)
        for look in (False, True, True):
            pc = open_store()
            if look:
                pc.get(pid)
                pc.flush()
                with pc.begin() as tx:
                    pc.get(pid, tx)
                pc.bump_page_rts(pid, 7)
            pc.close()
            assert marks_of(path) == before, "nothing was written"
        pc = open_store()
        write(pc)
        pc.close()
        after = marks_of(path)
        assert len(after) == 1
        assert after[0][0] > before[0][0]
    assert loss.temporaries(path) == []


def test_a_new_store_that_was_never_written_to_opens_after_its_close(open_store: Open, path: str) -> None:
    open_store().close()
    assert loss.temporaries(path) == []
    with open_store() as pc:
        assert pc.get(2).is_unallocated()


def test_snapshot_returns_the_epoch_of_its_name_and_only_the_newest_remains(store: Store) -> None:
    pid, key = store.allocate([0])
    last = 0
    for i in range(6):
        epoch = store.snapshot()
        assert epoch > last
        assert epoch <= store.stable_lsn
        assert key.last_lsn <= store.stable_lsn
        assert loss.snapshots(store.path) == [f"snapshot-{epoch:016x}"]
        assert loss.temporaries(store.path) == []
        last = epoch
        if i % 2:
            key = store.append(pid, [i])


def test_a_temporary_store_makes_none_when_it_is_left(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, temporary=True):
        with mmpc.open(path, mmpc.Append(), temporary=True) as other:
            other.allocate([0])
        assert loss.snapshots(path) == []
        control = os.open(os.path.join(path, "control"), os.O_RDONLY)
    assert not os.path.exists(path)
    assert struct.unpack("<Q", os.pread(control, 8, 4096 + 1984)) == (0,)
    os.close(control)


@pytest.mark.parametrize("how", ["close", "kill"])
def test_one_is_made_by_itself_when_the_log_has_grown(memory: str, children: Children, how: str) -> None:
    path = os.path.join(memory, "store")

    def write() -> tuple[int, bool]:
        pc = mmpc.open(path, mmpc.Append(), create=True)
        piece, n = [bytes(1 << 20)], 0
        pid, key = pc.allocate(piece)
        while not loss.snapshots(path) and n < 200:
            key = pc.replace(pid, key, piece)
            n += 1
        early = n < 60
        for _ in range(20):
            time.sleep(0.01)
        assert len(loss.snapshots(path)) == 1, loss.snapshots(path)
        if how == "close":
            pc.close()
        return n, early

    n, early = children.run(write)
    assert not early, f"after {n} MiB"
    assert n < 200, "none was made"
    assert len(loss.snapshots(path)) == 1
    assert loss.temporaries(path) == []


# ---- many at once


def test_threads_that_write_snapshots_at_once_disturb_nobody(store: Store, children: Children) -> None:
    pids = [store.allocate([])[0] for _ in range(9000)]
    errors: list[BaseException] = []
    epochs: list[int] = []

    def work(pid: int) -> None:
        try:
            for n in range(8):
                store.append(pid, [seal(pid, n)])
                epochs.append(store.snapshot())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(pid,)) for pid in pids[:6]]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert loss.snapshots(store.path) == [f"snapshot-{max(epochs):016x}"]
    assert loss.temporaries(store.path) == []
    found, line = recover(children, loss.copy(store.path, store.path + "-lost"), 9002)
    assert f"beside snapshot-{max(epochs):016x}" in line
    assert found == dump(store, 9002)


def random_writer(path: str, seed: int, out: int) -> None:
    """Writes pages that others write, free and take as well, until it is killed."""
    rng = random.Random(seed)
    pc = mmpc.open(path, mmpc.Append(), page_consolidation_threshold=3, cache_capacity=0)
    mine: list[int] = []
    number = 0
    while True:
        number += 1
        action = rng.randrange(10)
        try:
            if action < 2 or not mine:
                pid, _ = pc.allocate([])
                mine.append(pid)
                os.write(out, b".")
                continue
            pid = rng.choice(mine) if rng.random() < 0.6 else rng.randrange(2, max(mine) + 1)
            fragment = [seal(pid, number, rng.choice([0, 200]))]
            if action < 6:
                pc.append(pid, fragment)
            elif action < 8:
                pc.replace(pid, pc.get(pid).key, fragment)
            elif action == 8:
                pc.free(pid, pc.get(pid).key)
            else:
                pc.flush()
        except (mmpc.Conflict, mmpc.PageFreed, mmpc.PageNotFound, mmpc.FragmentTooLarge, AttributeError):
            continue


def test_snapshots_of_any_moment_of_concurrent_writes_change_nothing(
    memory: str, children: Children, seed: int
) -> None:
    """Each was taken while other processes wrote; some of them, and some of those that took one, were killed."""
    rng = random.Random(seed)
    path, kept = os.path.join(memory, "store"), os.path.join(memory, "kept")
    os.mkdir(kept)
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as keeper:
        read, out = os.pipe()

        def take(delay: float) -> None:
            loss.die_after(delay)
            while True:
                keeper.snapshot()

        writers = [children.start(random_writer, path, rng.random(), out) for _ in range(3)]
        os.read(read, 3)
        takers = [children.start(take, 0.02 + rng.random() * 0.3) for _ in range(3)]
        while len(os.listdir(kept)) < 6:  # others remove older ones before they are copied; the test has a watchdog
            time.sleep(rng.random() * 0.04)
            keeper.snapshot()
            for name in loss.snapshots(path):
                try:
                    shutil.copy(os.path.join(path, name), kept)
                except FileNotFoundError:
                    continue
        for child in [*takers, *writers]:
            child.kill()
        os.close(read)
        os.close(out)
        bound = keeper.stats().pages + 50
        keeper.flush()
        now = dump(keeper, bound)
        plain = loss.copy(path, os.path.join(memory, "plain"))
    shutil.rmtree(path)
    for name in loss.snapshots(plain):
        os.replace(os.path.join(plain, name), os.path.join(kept, name))
    shutil.copytree(plain, os.path.join(memory, "none"))
    without, line = recover(children, os.path.join(memory, "none"), bound)
    assert "without a snapshot" in line
    assert without == now
    names = loss.snapshots(kept)
    used = 0
    for name in names:
        copy = shutil.copytree(plain, os.path.join(memory, f"with-{name}"))
        shutil.copy(os.path.join(kept, name), copy)
        found, line = recover(children, copy, bound)
        assert found == without, f"{name} of {names}"
        used += f"beside {name}" in line
        shutil.rmtree(copy)
    assert used == len(names) >= 6


# ---- they change nothing


@pytest.mark.parametrize("where", ["open segment", "old lease"])
def test_what_is_written_after_one_in_an_old_segment_is_found(memory: str, children: Children, where: str) -> None:
    """In a segment that was open and in which nobody had a lease then, or in a lease in a segment that was full."""
    path = os.path.join(memory, "store")
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as keeper:
        pid, _ = keeper.allocate([])
        if where == "open segment":
            path = loss.copy(path, path + "-copy")  # a recovery seals: this life begins with no lease at all
        else:
            with mmpc.open(path, mmpc.Append()) as other:
                fill, key = other.allocate([])
                while keeper.stats().segments < 3:
                    key = other.replace(fill, key, [seal(fill, 0, 4000)])
                _after(keeper, pid)
                lost = loss.copy(path, path + "-copy")
    if where == "open segment":
        with mmpc.open(path, mmpc.Append()) as keeper:
            with mmpc.open(path, mmpc.Append()) as other:
                pid, _ = other.allocate([])
            keeper.snapshot()
            with mmpc.open(path, mmpc.Append()) as other:
                other.append(pid, [seal(pid, 0)])
                other.append(pid, [seal(pid, 1)])
                other.flush()
            lost = loss.copy(path, path + "-lost")
    found, line = recover(children, lost, 10)
    assert "beside snapshot-" in line
    assert found[pid][0] == [0, 1]


def _after(keeper: Store, pid: int) -> None:
    keeper.snapshot()
    keeper.append(pid, [seal(pid, 0)])
    keeper.append(pid, [seal(pid, 1)])
    keeper.flush()


@pytest.mark.parametrize("same_boot", [False, True])
def test_with_any_snapshot_of_the_past_a_recovery_finds_what_it_finds_without(
    memory: str, children: Children, seed: int, same_boot: bool
) -> None:
    for turn in range(3):
        rng = random.Random(seed + turn)
        top = os.path.join(memory, str(turn))
        path, kept = os.path.join(top, "store"), os.path.join(top, "kept")
        os.makedirs(kept)

        def live() -> tuple[Dump, Dump, int]:
            options: dict[str, Any] = {"segment_size": SEGMENT, "page_consolidation_threshold": rng.choice([2, 5, 10])}
            handles = [mmpc.open(path, mmpc.Append(), create=True, **options) for _ in range(2)]
            held: list[int] = []
            durable: Dump = {}
            stable = 0
            for number in range(rng.randrange(200, 700)):
                pc = rng.choice(handles)
                if pc.stable_lsn > stable:  # somebody flushed, or the cleaning that an operation paid for did
                    stable, durable = pc.stable_lsn, dump(pc, 400)
                action = rng.randrange(40)
                if action < 5 or not held:
                    held.append(pc.allocate([])[0])
                elif action < 8:
                    pid = held.pop(rng.randrange(len(held)))
                    pc.free(pid, pc.get(pid).key)
                elif action < 12:
                    pid = rng.choice(held)
                    pc.replace(pid, pc.get(pid).key, [seal(pid, number, 500)])
                elif action < 14:
                    pc.get(rng.choice(held))
                elif action < 16:
                    if action == 14:
                        pc.flush()
                    else:
                        pc.snapshot()
                    for name in loss.snapshots(path):
                        shutil.copy(os.path.join(path, name), kept)
                else:
                    pid = rng.choice(held)
                    pc.append(pid, [seal(pid, number, rng.choice([0, 0, 300]))])
                    if len(pc.get(pid).unwrap()) > 20:
                        pc.replace(pid, pc.get(pid).key, [])
            if handles[0].stable_lsn > stable:
                durable = dump(handles[0], 400)
            with open(os.path.join(top, "answer"), "wb") as f:
                import pickle

                f.write(pickle.dumps((dump(handles[0], 400), durable)))
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        child = children.start(live)
        if child.wait() != -signal.SIGKILL:
            child.result()
        with open(os.path.join(top, "answer"), "rb") as f:
            import pickle

            now, durable = pickle.loads(f.read())
        names = loss.snapshots(kept)
        print(f"turn {turn}: MMPC_SEED={seed + turn}, {len(now)} pages, {len(names)} snapshots")
        plain = None if same_boot else loss.copy(path, os.path.join(top, "plain"))
        for name in [None, *rng.sample(names, min(len(names), 7)), *names[-1:]]:
            if plain is None:
                copy = path  # the same files: no power was lost
                os.unlink(os.path.join(copy, "table"))
            else:
                copy = shutil.copytree(plain, os.path.join(top, "copy"))
            for other in loss.snapshots(copy):
                os.unlink(os.path.join(copy, other))
            if name is not None:
                shutil.copy(os.path.join(kept, name), copy)
            found, line = recover(children, copy, 400)
            assert (f"beside {name}" if name else "without a snapshot") in line
            assert found == (now if same_boot else durable), f"with {name} of {names}"
            if plain is not None:
                shutil.rmtree(copy)


# ---- damage


@pytest.fixture
def victim(memory: str) -> tuple[str, Dump]:
    """A closed store of 26,000 pages in many segments, with a snapshot of several chunks, and what it holds."""
    path = os.path.join(memory, "victim")
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        for i in range(26_000):
            pid, key = pc.allocate([])
            if i % 50 == 0:
                pc.link(pid, key, [seal(pid, i)])
            elif i % 50 == 1:
                pc.free(pid, key)
        model = dump(pc, 26_010)
    assert len(loss.snapshots(path)) == 1
    return path, model


SAMPLE = 26_010


def opened_with(children: Children, victim: tuple[str, Dump], change: Callable[[str, str], None]) -> str:
    """The line that a recovery says after `change(directory, name of the snapshot)`, or "refused: FILE" for a
    CorruptionError. Anything but exactly the pages that were there fails.
    """
    path, model = victim
    copy = loss.copy(path, path + "-copy")
    change(copy, loss.snapshots(copy)[0])

    def look() -> str:
        try:
            with Messages() as said:
                pc = mmpc.open(copy, mmpc.Append(), cache_capacity=0)
        except mmpc.CorruptionError as error:
            return f"refused: {error.file}"
        pids = random.Random(3).sample(range(2, SAMPLE), 2000)
        for pid in pids:
            page = pc.get(pid)
            if page.is_materialized():
                assert (numbers(pid, page.unwrap()), page.key.wts) == model.get(pid), f"page {pid}"
            else:
                assert page.is_free() == (pid in model), f"page {pid}"
        (line,) = said.lines
        pid, _ = pc.allocate([])
        assert pid not in model or model[pid][0] == "free"
        pc.snapshot()
        return line

    try:
        return str(children.run(look, patience=30))
    finally:
        shutil.rmtree(copy)


def test_an_undamaged_one_is_used(children: Children, victim: tuple[str, Dump]) -> None:
    line = opened_with(children, victim, lambda _path, _name: None)
    assert "beside snapshot-" in line
    assert "not used" not in line


def flip(offset: int) -> Callable[[str, str], None]:
    def change(path: str, name: str) -> None:
        with open(os.path.join(path, name), "r+b") as f:
            f.seek(offset if offset >= 0 else os.path.getsize(os.path.join(path, name)) + offset)
            byte = f.read(1)[0]
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte ^ 1 << offset % 8]))

    return change


def test_a_flipped_bit_anywhere_is_noticed(children: Children, victim: tuple[str, Dump], seed: int) -> None:
    """In each field of the header, in its empty rest, in each chunk, at their edges, in the checksums."""
    path, _ = victim
    (name,) = loss.snapshots(path)
    size, rng = os.path.getsize(os.path.join(path, name)), random.Random(seed)
    chunks = range(BLOCK, size, CHUNK)
    assert len(chunks) == 4
    places = [0, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 76, 80, 4095, -1, -5]
    places += [at + rng.randrange(min(CHUNK, size - at)) for at in chunks] + [at - 1 for at in chunks]
    for at in places:
        line = opened_with(children, victim, flip(at))
        assert f"{name} is damaged at offset" in line, f"byte {at}: {line}"
        assert "not used" in line
        assert "without a snapshot" in line


def test_a_torn_one_is_noticed(children: Children, victim: tuple[str, Dump], seed: int) -> None:
    path, _ = victim
    (name,) = loss.snapshots(path)
    size, rng = os.path.getsize(os.path.join(path, name)), random.Random(seed)
    lengths = [0, 1, 11, 95, 96, 4095, 4096, 4097, 4096 + CHUNK, size - 4, size - 1, size + 1, size + 4096]
    lengths += [rng.randrange(size) for _ in range(8)]
    for length in lengths:
        line = opened_with(children, victim, lambda p, n: os.truncate(os.path.join(p, n), length))
        assert f"{name} is damaged at offset" in line, f"{length} of {size} bytes: {line}"


@pytest.mark.slow
def test_a_small_one_torn_at_every_length_is_noticed(memory: str, children: Children) -> None:
    path = os.path.join(memory, "small")
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        for i in range(5):
            pid, _ = pc.allocate([])
            pc.append(pid, [seal(pid, i)])
        model = dump(pc, 10)
    (name,) = loss.snapshots(path)
    data = loss.get(path, name)
    for length in range(len(data)):
        loss.put(path, name, data[:length])
        found, line = recover(children, path, 10, boot=f"boot {length}")
        assert found == model
        assert f"{name} is damaged" in line, f"{length} bytes"


def sectors_lost(rng: random.Random) -> Callable[[str, str], None]:
    """Some sectors never reached the device."""

    def change(path: str, name: str) -> None:
        data = bytearray(loss.get(path, name))
        for at in range(0, len(data), 512):
            if rng.random() < 0.3:
                data[at : at + 512] = bytes(len(data[at : at + 512]))
        loss.put(path, name, bytes(data))

    return change


def test_one_whose_sectors_did_not_all_arrive_is_noticed(
    children: Children, victim: tuple[str, Dump], seed: int
) -> None:
    for _ in range(5):
        line = opened_with(children, victim, sectors_lost(random.Random(seed)))
        assert "beside" not in line


def another_store(path: str, name: str) -> None:
    """A snapshot that holds, of another store, under the right name."""
    with mmpc.open(path + "-other", mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        for _ in range(200):
            pc.allocate([b"wrong"])
    (theirs,) = loss.snapshots(path + "-other")
    shutil.copy(os.path.join(path + "-other", theirs), os.path.join(path, name))
    shutil.rmtree(path + "-other")


def test_one_of_another_store_is_not_believed(children: Children, victim: tuple[str, Dump]) -> None:
    line = opened_with(children, victim, another_store)
    assert "not used" in line
    assert "beside" not in line


def put_in_place(kind: str, name: str | None) -> Callable[[str, str], None]:
    def change(path: str, found: str) -> None:
        where = os.path.join(path, name or found)
        if name is None:
            os.unlink(where)
        if kind == "directory":
            os.mkdir(where)
            with open(os.path.join(where, "inside"), "w"):
                pass
        elif kind == "link":
            os.symlink(os.path.join(path, "log"), where)
        elif kind == "dangling":
            os.symlink("/nowhere/at/all", where)
        elif kind == "fifo":
            os.mkfifo(where)
        elif kind == "sparse":
            with open(where, "wb") as f:
                f.truncate(1 << 40)
        else:
            with open(where, "wb") as f:
                f.write(os.urandom(5000))

    return change


KINDS = ["directory", "link", "dangling", "fifo", "sparse", "garbage"]


@pytest.mark.parametrize("name", [None, "snapshot-" + "0" * 16, "snapshot-" + "f" * 16])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_snapshot_under_its_name_is_named(
    children: Children, victim: tuple[str, Dump], kind: str, name: str | None
) -> None:
    """The store opens and a line says so, or CorruptionError names it."""
    line = opened_with(children, victim, put_in_place(kind, name))
    if line.startswith("refused"):
        assert line.startswith("refused: snapshot-")
    elif name == "snapshot-" + "0" * 16:
        assert "beside" in line, "the newest one holds, and this one was not looked at"
    else:
        assert "not used" in line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["snapshot.new-7", "snapshot.new-1023"])
def test_what_was_left_under_a_temporary_name_stops_no_recovery(
    children: Children, victim: tuple[str, Dump], kind: str, name: str
) -> None:
    line = opened_with(children, victim, put_in_place(kind, name))
    assert "beside snapshot-" in line


def test_temporary_ones_of_the_dead_are_removed_by_a_recovery(children: Children, victim: tuple[str, Dump]) -> None:
    path, _ = victim
    for name in ("snapshot.new-7", "snapshot.new-0"):
        put_in_place("garbage", name)(path, "")
    recover(children, path, 10, boot="another")
    assert loss.temporaries(path) == []


def test_a_snapshot_newer_than_every_mark_is_a_lost_mark(children: Children, victim: tuple[str, Dump]) -> None:
    """An older copy of `marks`, put back: nobody may take the store for what it was then."""
    path, _ = victim
    old = loss.get(path, "marks")
    for change in ("flush", "close"):
        with mmpc.open(path, mmpc.Append()) as pc:
            pc.allocate([])
            pc.snapshot()
            if change == "flush":
                pc.allocate([])
                pc.flush()
        assert opened_with(children, victim, lambda p, _n: loss.put(p, "marks", old)) == "refused: marks"


# ---- when one cannot be written


def test_when_one_cannot_be_written_the_store_goes_on_and_the_older_one_stays(
    path: str, children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    """No room in the file system (a limit on file sizes stands in for it), or no file where it should be."""
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pids = [pc.allocate([])[0] for _ in range(30_000)]
        pc.snapshot()
        before = marks_of(path)

        def full() -> bool:
            with mmpc.open(path, mmpc.Append()) as mine:
                mine.append(pids[0], [1])
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
                for _ in range(3):
                    with pytest.raises(OSError, match="."):
                        mine.snapshot()
                    assert loss.temporaries(path) == []
                mine.append(pids[0], [2])
                mine.flush()
                return bool(mine.get(pids[0]).unwrap() == [1, 2])

        assert children.run(full)
        assert marks_of(path) == before
        os.mkdir(os.path.join(path, f"snapshot.new-{pc._attachment.slot}"))
        for _ in range(2):
            with pytest.raises(OSError, match=r"snapshot\.new"):
                pc.snapshot()
        pc.append(pids[0], [3])
        pc.flush()
        assert marks_of(path) == before
    assert marks_of(path) == before
    assert [r.levelname for r in caplog.records if "no snapshot was written" in r.getMessage()] == ["WARNING"]
    os.rmdir(os.path.join(path, "snapshot.new-0"))
    with mmpc.open(path, mmpc.Append()) as pc:
        assert pc.get(pids[0]).unwrap() == [1, 2, 3]
    assert len(marks_of(path)) == 1
    assert marks_of(path) > before


def test_a_process_killed_while_it_writes_one_leaves_the_older_one(
    memory: str, children: Children, seed: int
) -> None:
    rng = random.Random(seed)
    path = os.path.join(memory, "store")
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pids = [pc.allocate([])[0] for _ in range(20_000)]
        pc.snapshot()

        def write(event: int, seconds: float) -> None:
            with mmpc.open(path, mmpc.Append()) as mine:
                mine.append(pids[0], [seal(pids[0], 0)])
                mine.flush()
                if event % 2:
                    loss.die_at_event(event)
                else:
                    loss.die_after(seconds)
                while True:
                    mine.snapshot()

        for turn in range(25):
            assert children.start(write, rng.randrange(1, 90), rng.random() * 0.01).wait() < 0
            names = loss.snapshots(path)
            assert names
            copy = loss.copy(path, os.path.join(memory, f"copy-{turn}"))
            found, line = recover(children, copy, 4)
            assert f"beside {names[-1]}" in line
            assert len(found[pids[0]][0]) == turn + 1
            shutil.rmtree(copy)
        pc.snapshot()
        assert len(loss.snapshots(path)) == 1
        assert len(loss.temporaries(path)) < 30
