"""Recovery: what comes back after the death of all, after power losses, after deaths inside recoveries, and again.

`Lives` runs a store through lives, each a child that ends by SIGKILL, and compares every page with a dict at each
start. One process at a time writes, so what comes back is exact: all of it, or after a power loss what was flushed.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import random
import re
import shutil
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from mmpc import _recovery, _store
from mmpc._layout import LEASE_HEADER
from support import forging, loss
from support.children import Children, Gate
from support.sealed import numbers, seal

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
Model = dict[int, "list[int] | None"]  # numbers of the fragments of each page, or None: freed

SEGMENT = 1 << 16
SMALL = [0, 30, 1000]  # bytes of fragments
SIZES = SMALL * 10 + [20_000, 70_000, 150_000]  # the last three lie in runs, and whoever writes those may flush
NEVER = {"cache_capacity": 0, "page_consolidation_threshold": 4, "segment_size": SEGMENT}


def check(pc: Store, model: Model, bound: int) -> None:
    """Every page is what the model says, and no other page is there."""
    for pid in range(2, bound):
        page = pc.get(pid)
        if pid not in model:
            assert not page.is_materialized(), f"page {pid} was lost or never there, and reads as {page}"
        elif model[pid] is None:
            assert page.is_free(), f"page {pid} was freed, and reads as {page}"
        else:
            assert page.is_materialized(), f"page {pid} should hold {model[pid]} and reads as {page}"
            assert numbers(pid, page.unwrap()) == model[pid], f"page {pid}"


def act(pc: Store, model: Model, rng: random.Random, number: int, sizes: list[int] = SMALL) -> None:
    """One random verb, on the store and on the model."""
    live = [pid for pid, held in model.items() if held is not None]
    action = rng.randrange(12)
    if action < 2 or not live:
        pid, key = pc.allocate([])
        model[pid] = []
        if action == 0:
            pc.link(pid, key, [seal(pid, number, rng.choice(sizes))])
            model[pid] = [number]
        return
    pid = rng.choice(live)
    fragment = [seal(pid, number, rng.choice(sizes))]
    held = model[pid]
    assert held is not None
    if len(held) > 24:  # what is appended to fits half a segment
        action = 9
    if action < 8:
        pc.append(pid, fragment)
        model[pid] = [*held, number]
    elif action == 8:
        pc.append_many([(pid, fragment), (pid, fragment)])
        model[pid] = [*held, number, number]
    elif action == 9:
        pc.replace(pid, pc.get(pid).key, fragment)
        model[pid] = [number]
    elif action == 10:
        pc.free(pid, pc.get(pid).key)
        model[pid] = None
    else:
        pc.get(rng.choice(live))  # a reader consolidates


class Lives:
    """A store, what it holds, and what of it is on the disk."""

    def __init__(self, top: str, children: Children, rng: random.Random) -> None:
        self.top, self.children, self.rng = top, children, rng
        self.path = os.path.join(top, "life-0")
        self.disk = loss.Disk(os.path.join(top, "disk"))
        self.kept = os.path.join(top, "kept")  # a snapshot of an earlier life
        os.makedirs(self.kept)
        self.now: Model = {}
        self.durable: Model = {}
        self.bound, self.lives, self.number, self.boot = 2, 0, 0, "boot-0"
        self.story: list[str] = []

    def live(self, steps: int, recovered: bool) -> None:
        """One life: checks everything, changes something, dies. `recovered`: opening made all of it durable."""
        read, write = os.pipe()
        child = self.children.start(self._life, steps, recovered, write)
        os.close(write)
        with open(read, "rb") as f:
            answer = f.read()
        if not answer:
            child.result()
        assert child.wait() == -signal.SIGKILL
        self.now, self.durable, self.bound, self.number = pickle.loads(answer)
        self.lives += 1

    def _life(self, steps: int, recovered: bool, write: int) -> None:
        os.environ["MMPC_BOOT_ID"] = self.boot
        pc = mmpc.open(self.path, mmpc.Append(), create=not self.lives, **NEVER)
        assert pc.was_recovered == bool(self.lives)
        syncs = loss.syncs(self.path)
        check(pc, self.now, self.bound + 3)
        pc._check()
        if loss.syncs(self.path) != syncs:  # what was read was consolidated, and made room for
            pc.flush()
            recovered = True
        if recovered:
            self._synced()
        for _ in range(steps):
            self.number += 1
            syncs = loss.syncs(self.path)
            act(pc, self.now, self.rng, self.number, SIZES)
            self.bound = max([self.bound, *self.now])
            what = 0 if loss.syncs(self.path) != syncs else self.rng.randrange(25)  # a cleaner may have flushed
            if what == 0:
                pc.flush()
            elif what == 1:
                pc.snapshot()
            if what < 2:
                self._synced()
        if self.rng.random() < 0.2:
            self._close(pc)
        with open(write, "wb") as f:
            f.write(pickle.dumps((self.now, self.durable, self.bound, self.number)))
        os.kill(os.getpid(), signal.SIGKILL)

    def _close(self, pc: Store) -> None:
        """Leaves it as the last one: flushed, and maybe cut, which the power may undo."""
        cut, behind = _store.truncate_after_last, self.rng.random() < 0.5

        def sync_and_cut(options: _store.Options) -> None:
            self._synced()
            cut(options)

        _store.truncate_after_last = sync_and_cut
        size = os.stat(os.path.join(self.path, "log")).st_size
        pc.close()
        if behind or os.stat(os.path.join(self.path, "log")).st_size == size:
            self._synced()

    def _synced(self) -> None:
        self.durable = dict(self.now)
        self.disk.sync(self.path)

    # ---- between two lives; each returns whether the next open recovers

    def go_on(self) -> bool:
        """The same boot, nothing lost."""
        return False

    def lose_volatile(self) -> bool:
        """The same boot; a file that can be made again is gone."""
        for name in self.rng.choice([["table"], ["ids"], ["rts"], ["table", "ids", "rts"]]):
            os.unlink(os.path.join(self.path, name))
        return True

    def reboot(self) -> bool:
        """Another boot that finds the files as they were written, all of them."""
        self.boot = f"boot-{self.lives}-{self.rng.random()}"
        self.now = dict(self.durable)
        return True

    def lose_control(self) -> bool:
        """Nobody knows of which boot the rest is."""
        os.unlink(os.path.join(self.path, "control"))
        self.now = dict(self.durable)
        return True

    def lose_power(self) -> bool:
        """A disk with any subset of what was not synced."""
        new = os.path.join(self.top, f"life-{self.lives}")
        self.disk.after_loss(self.path, new, self.rng)
        shutil.rmtree(self.path)
        self.path = new
        return self.reboot()

    # ---- what may happen to a store that nobody has open, without changing what it holds

    def touch_snapshots(self) -> None:
        """Keeps one for later, removes all, or puts an older one in their place."""
        names, kept = loss.snapshots(self.path), os.listdir(self.kept)
        what = self.rng.randrange(4)
        if what == 0 and names:
            shutil.copy(os.path.join(self.path, names[-1]), self.kept)
        elif what == 1 or (what == 2 and kept):
            for name in names:
                os.unlink(os.path.join(self.path, name))
            if what == 2:
                shutil.copy(os.path.join(self.kept, self.rng.choice(kept)), self.path)

    def die_inside(self, boots: list[str]) -> None:
        """Deaths of those who try to open it, under one boot id or several."""
        for _ in range(self.rng.randrange(1, 5)):
            boot = self.rng.choice(boots)
            child = self.children.start(loss.open_and_die, self.path, mmpc.Append(), boot, self.rng)
            self.rng.random()
            assert child.wait() < 0

    def run(self, lives: int, ways: list[Callable[[], bool]]) -> None:
        """So many lives, with what happens between them drawn from `ways`."""
        self.live(self.rng.randrange(40), recovered=True)
        for _ in range(lives):
            way = self.rng.choice(ways)
            recovers = way()
            self.story.append(way.__name__)
            if recovers:
                self.touch_snapshots()
                if self.rng.random() < 0.4:
                    self.story.append("deaths inside")
                    lossless = way.__name__ == "lose_volatile"
                    self.die_inside([self.boot] if lossless else [self.boot, self.boot + "+", self.boot + "++"])
            try:
                self.live(self.rng.randrange(60), recovered=recovers)
            except BaseException:
                print(" ".join(self.story))
                raise


def every_way(lives: Lives) -> list[Callable[[], bool]]:
    return [lives.go_on, lives.lose_volatile, lives.reboot, lives.lose_control, lives.lose_power]


def test_lives_of_all_kinds_find_what_the_model_says(memory: str, children: Children, seed: int) -> None:
    lives = Lives(memory, children, random.Random(seed))
    lives.run(25, every_way(lives))


@pytest.mark.slow
def test_very_many_lives_find_what_the_model_says(memory: str, children: Children, seed: int) -> None:
    for turn in range(60):
        print(f"turn {turn}: MMPC_SEED={seed + turn}")
        top = os.path.join(memory, str(turn))
        os.mkdir(top)
        lives = Lives(top, children, random.Random(seed + turn))
        lives.run(40, every_way(lives))
        shutil.rmtree(top)


# ---- what it says


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "mmpc" and r.levelname == "INFO"]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", logger="mmpc")
    return caplog


def test_a_recovery_says_one_line_and_creation_and_attaching_none(
    open_store: Open, path: str, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = open_store(), open_store()
    for _ in range(30):
        first.allocate([1])
    assert not first.was_recovered
    assert second.was_recovered
    for pc in (first, second):
        pc.close()
    with open_store() as pc:
        assert pc.was_recovered
    assert lines_of(said) == []
    for boot, without in [("b", []), ("b", ["table"]), ("c", ["table", "control"]), ("d", loss.snapshots(path))]:
        monkeypatch.setenv("MMPC_BOOT_ID", boot)
        for name in without:
            if os.path.exists(os.path.join(path, name)):
                os.unlink(os.path.join(path, name))
        with open_store() as pc, open_store() as other:
            assert pc.was_recovered
            assert other.was_recovered
        (line,) = lines_of(said)
        said.clear()
        assert path in line
        assert "32 pages" in line
        assert re.search(r"in \d+\.\d+ s", line)
        assert ("no power was lost" in line) == (without == ["table"])
        assert ("only what was durable" in line) == (without != ["table"])
    assert [r for r in said.records if r.levelname != "INFO"] == []


def test_processes_that_open_at_once_after_a_reboot_recover_once(path: str, children: Children) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        model: Model = {}
        for i in range(50):
            act(pc, model, random.Random(i), i)
    gate = Gate()

    def join(number: int) -> tuple[int, list[str]]:
        os.environ["MMPC_BOOT_ID"] = "another"
        gate.wait()
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("mmpc").addHandler(handler)
        logging.getLogger("mmpc").setLevel("INFO")
        with mmpc.open(path, mmpc.Append()) as mine:
            for pid, held in model.items():
                assert held is None or numbers(pid, mine.get(pid).unwrap()) == held
            pid, _ = mine.allocate([])
            mine.append(pid, [seal(pid, number)])
        return pid, lines

    started = [children.start(join, i) for i in range(8)]
    gate.open()
    answers = [child.result() for child in started]
    assert len({pid for pid, _ in answers}) == 8
    assert sum(len(lines) for _, lines in answers) == 1


def test_all_are_killed_and_the_next_attaches_to_everything(
    path: str, children: Children, seed: int, said: pytest.LogCaptureFixture
) -> None:
    """No power was lost and nothing was flushed: nothing is recovered, and all that returned is there."""
    rng = random.Random(seed)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pids = [pc.allocate([])[0] for _ in range(3)]
    for _ in range(5):
        read, out = os.pipe()

        def write(pid: int) -> None:
            pc = mmpc.open(path, mmpc.Append())
            number = len(pc.get(pid).unwrap())
            while True:
                pc.append(pid, [seal(pid, number)])
                os.write(out, struct.pack("<QQ", pid, number))
                number += 1

        started = [children.start(write, pid) for pid in pids]
        data = os.read(read, 1600)
        time.sleep(rng.random() * 0.01)
        for child in started:
            child.kill()
        os.close(out)
        while part := os.read(read, 1 << 16):
            data += part
        os.close(read)
        with mmpc.open(path, mmpc.Append()) as pc:
            assert pc.was_recovered
            for at in range(0, len(data) // 16 * 16, 16):
                pid, number = struct.unpack_from("<QQ", data, at)
                have = pc.get(pid).unwrap()
                assert len(have) > number
            for pid in pids:
                have = numbers(pid, pc.get(pid).unwrap())
                assert have == list(range(len(have)))
                if len(have) > 400:
                    pc.replace(pid, pc.get(pid).key, [])
    assert lines_of(said) == []


# ---- what comes back


def dies(children: Children, work: Callable[[], Any], *, boot: str | None = None) -> None:
    """Runs `work` in a child that is killed when it returns: nothing is closed."""

    def run() -> None:
        if boot is not None:
            os.environ["MMPC_BOOT_ID"] = boot
        gc.disable()  # a handle is in a cycle: collected on the way out it would be closed, and flush
        work()
        os.kill(os.getpid(), signal.SIGKILL)

    child = children.start(run)
    if child.wait() != -signal.SIGKILL:
        child.result()


def test_what_a_recovery_brought_back_is_durable_when_it_is_flushed(
    path: str, children: Children, said: pytest.LogCaptureFixture
) -> None:
    """No power was lost, so a write that nobody flushed comes back, newer than the newest mark. A flush that then finds
    nothing dirty would be a lie: the next power loss would take it.
    """
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([seal(2, 0)])
    dies(children, lambda: mmpc.open(path, mmpc.Append()).append(pid, [seal(pid, 1)]))
    os.unlink(os.path.join(path, "table"))
    with mmpc.open(path, mmpc.Append()) as pc:
        assert numbers(pid, pc.get(pid).unwrap()) == [0, 1]
        pc.flush()
        lost = loss.copy(path, path + "-lost")
    assert len(lines_of(said)) == 1
    with mmpc.open(lost, mmpc.Append()) as pc:
        assert numbers(pid, pc.get(pid).unwrap()) == [0, 1]


def test_a_discarded_future_never_comes_back(path: str, tmp_path: Any, children: Children) -> None:
    """A is flushed, B is not, power fails; C is written where B was. Whatever is taken away later, B stays away."""
    older = tmp_path / "older"
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([seal(2, 0)])
        pc.snapshot()
        (name,) = loss.snapshots(path)
        shutil.copy(os.path.join(path, name), older)
        pc.append(pid, [seal(pid, 1)])  # A
    path = loss.copy(path, path + "-1")

    def write_b() -> None:
        pc = mmpc.open(path, mmpc.Append())
        pc.flush()
        for number in (90, 91, 92):
            pc.append(pid, [seal(pid, number)])
        pc.replace(pid, pc.get(pid).key, [seal(pid, 93)])
        new, _ = pc.allocate([seal(3, 94)])
        assert new == 3

    def expect(held: list[int], *, then: int | None = None) -> Callable[[], None]:
        def work() -> None:
            pc = mmpc.open(path, mmpc.Append())
            assert numbers(pid, pc.get(pid).unwrap()) == held
            assert not pc.get(3).is_materialized()
            pc._check()
            if then is not None:
                pc.append(pid, [seal(pid, then)])
                pc.flush()

        return work

    dies(children, write_b)
    path = loss.copy(path, path + "-2")  # all of B is in the log
    dies(children, expect([0, 1]))
    dies(children, expect([0, 1], then=2))  # C
    os.unlink(os.path.join(path, "table"))
    dies(children, expect([0, 1, 2]))
    for turn in range(3):
        path = loss.copy(path, f"{path}-{turn + 3}")
        for name in loss.snapshots(path):
            os.unlink(os.path.join(path, name))
        if turn == 1:
            shutil.copy(older, os.path.join(path, name_of(older)))
        dies(children, expect([0, 1, *range(2, turn + 3)], then=turn + 3), boot=f"boot {turn}")
        os.unlink(os.path.join(path, "control"))
        dies(children, expect([0, 1, *range(2, turn + 4)]), boot=f"boot {turn}")


def name_of(snapshot: Any) -> str:
    """The name that a snapshot says it has."""
    b = struct.unpack_from("<Q", snapshot.read_bytes(), 24)[0]
    return f"snapshot-{b:016x}"


@pytest.mark.parametrize("way", ["table", "boot"])
def test_recoveries_killed_at_many_steps_find_the_same(
    memory: str, children: Children, seed: int, way: str
) -> None:
    """Also when the next is of yet another boot."""
    rng = random.Random(seed)
    path = os.path.join(memory, "store")
    model: Model = {}
    durable: Model = {}

    def write() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT)
        for number in range(150):
            act(pc, model, rng, number)
            if number in (20, 100):
                pc.snapshot()
                durable.clear()
                durable.update(model)
        with open(path + ".model", "wb") as f:
            f.write(pickle.dumps((model, durable)))

    dies(children, write)
    with open(path + ".model", "rb") as f:
        model, durable = pickle.loads(f.read())
    assert model != durable
    loss.copy(path, path + "-kept")
    killed = 0

    def die(event: int) -> None:
        loss.die_at_event(event)
        mmpc.open(path, mmpc.Append())
        os._exit(0)

    for number, event in enumerate(range(1, 4000, 40)):
        if way == "table":
            if os.path.exists(os.path.join(path, "table")):
                os.unlink(os.path.join(path, "table"))
        else:
            os.environ["MMPC_BOOT_ID"] = f"boot {number // 3}"
        try:
            status = children.start(die, event + rng.randrange(40)).wait()
        finally:
            os.environ.pop("MMPC_BOOT_ID", None)
        killed += status < 0
        if status == 0:
            break

    def look() -> None:
        pc = mmpc.open(path, mmpc.Append())
        check(pc, model if way == "table" else durable, 200)
        pc._check()

    dies(children, look, boot=None if way == "table" else "the last boot")
    assert killed > 20
    assert loss.temporaries(path) == []


# ---- many authors: what comes back is closed


def author(pc: Store, pids: list[int], mine: int, seed: int, quiet: str, out: int) -> None:
    """Adds to its own page what it saw of another's: (number, page, how much of that it saw). Says what it flushed."""
    rng, number = random.Random(seed), 0
    while True:
        other = rng.choice([p for p in pids if p != mine])
        seen = len(pc.get(other).unwrap())
        pc.append(mine, [[number, other, seen]])
        if rng.random() < 0.05 and not os.path.exists(quiet):
            pc.flush()
            os.write(out, struct.pack("<QQ", mine, number))
        number += 1
        time.sleep(0.0003)  # 64 MiB of log are a snapshot, and a segment or two are cleaned: both flush


def stopped(pid: int) -> bool:
    """Whether no thread of the process runs any more."""
    states = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/stat") as f:
            states.append(f.read().rpartition(")")[2].split()[0])
    return set(states) == {"T"}


def closed(pc: Store, pids: list[int], flushed: dict[int, int]) -> int:
    """Whether each entry stands with what its author had seen, and all that was flushed is there; entries found."""
    pages = {pid: pc.get(pid).unwrap() for pid in pids}
    for pid, entries in pages.items():
        assert [n for n, _, _ in entries] == list(range(len(entries))), f"page {pid}"
        assert len(entries) > flushed.get(pid, -1), f"page {pid} lost what was flushed"
        for n, other, seen in entries:
            assert len(pages[other]) >= seen, f"entry {n} of page {pid} saw {seen} of page {other}, which came back cut"
    pc._check()
    return sum(map(len, pages.values()))


def test_what_comes_back_of_many_authors_is_closed(memory: str, children: Children, seed: int) -> None:
    rng = random.Random(seed)
    for turn in range(2):
        path, quiet = (os.path.join(memory, f"{name}-{turn}") for name in ("store", "quiet"))
        with mmpc.open(path, mmpc.Append(), create=True) as pc:
            pids = [pc.allocate([])[0] for _ in range(4)]
            pc.flush()
            read, out = os.pipe()
            started = [children.start(author, pc, pids, pid, rng.random(), quiet, out) for pid in pids]
            os.close(out)
            images = []
            for i in range(3):  # as they run
                time.sleep(rng.random() * 0.03)
                for child in started:
                    child.signal(signal.SIGSTOP)
                while not all(stopped(child.pid) for child in started):
                    time.sleep(0.001)
                images.append(loss.copy(path, f"{path}-{i}"))
                for child in started:
                    child.signal(signal.SIGCONT)
            open(quiet, "w").close()
            made = -1
            while made != loss.syncs(path):
                made = loss.syncs(path)
                time.sleep(0.02)
            disk = loss.Disk(os.path.join(memory, f"disk-{turn}"))
            disk.sync(path)
            time.sleep(rng.random() * 0.03)
            for child in started:
                child.kill()
            assert loss.syncs(path) == made
            images += [disk.after_loss(path, f"{path}-{i}", rng) for i in range(3, 6)]
        data, flushed = b"", {}
        while part := os.read(read, 1 << 16):
            data += part
        os.close(read)
        for pid, number in struct.iter_unpack("<QQ", data[: len(data) // 16 * 16]):
            flushed[pid] = max(number, flushed.get(pid, -1))

        def look(image: str, told: dict[int, int]) -> int:
            with mmpc.open(image, mmpc.Append()) as found:
                return closed(found, pids, told)

        found = [children.run(look, image, flushed if i > 2 else {}) for i, image in enumerate(images)]
        assert found[-1] == found[-2] == found[-3], "the mixture of sectors changes nothing"
        assert found == sorted(found)
        assert found[-1] > 0


# ---- damage that a recovery meets


def built(memory: str) -> tuple[str, int, int]:
    """A copy of a store with a page whose newest record stands in a segment that a recovery with the snapshot need not
    read, and an older one in a segment that it reads; the page, and the address of the newest.
    """
    path = os.path.join(memory, "store")
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as old:
        pid, _ = old.allocate([seal(2, 0)])
        with mmpc.open(path, mmpc.Append()) as new:

            def fill_until(segment: int) -> None:
                """With what stays, so that no segment is emptied."""
                while address(new, new.allocate([seal(0, 0, 5000)])[0]) >> 16 < segment:
                    pass

            fill_until(1)
            new.replace(pid, new.get(pid).key, [seal(pid, 1)])
            newest = address(new, pid)
            assert newest >> 16 == 1
            fill_until(3)
            assert address(new, pid) == newest
            new.snapshot()
            return loss.copy(path, path + "-copy"), pid, newest


def address(pc: Store, pid: int) -> int:
    """Where the newest record of a page is."""
    return (pc.get(pid).key.head & ((1 << 42) - 1)) * 8


@pytest.mark.parametrize("snapshot", [True, False])
@pytest.mark.parametrize("what", ["version", "payload", "checksum", "segment header", "lease header", "nothing"])
def test_a_damaged_newest_record_gives_way_to_no_older_one(
    memory: str, children: Children, what: str, snapshot: bool
) -> None:
    path, pid, newest = built(memory)
    segment = newest >> 16 << 16
    lease = segment
    data = bytearray(loss.get(path, "log"))
    while not (data[lease + 4 : lease + 8] == b"ESEL" and lease + 4096 * data[lease + 16] > newest):
        lease += 4096
    at = {"version": newest + 26, "payload": newest + 50, "checksum": newest, "segment header": segment + 20,
          "lease header": lease + 9, "nothing": 0}[what]  # fmt: skip
    if at:
        data[at : at + 6] = bytes(6) if what == "version" else bytes(b ^ 255 for b in data[at : at + 6])
        loss.put(path, "log", bytes(data))
    if not snapshot:
        for name in loss.snapshots(path):
            os.unlink(os.path.join(path, name))

    def look() -> Any:
        try:
            pc = mmpc.open(path, mmpc.Append())
            return numbers(pid, pc.get(pid).unwrap())
        except mmpc.CorruptionError as error:
            return error.file, error.offset is not None

    whole = what == "nothing" or (what == "lease header" and snapshot)
    assert children.run(look) == ([1] if whole else ("log", True))


@pytest.mark.parametrize("size", [30_000, 100_000])
def test_a_value_of_zeros_at_the_end_of_the_log(memory: str, children: Children, size: int) -> None:
    """What was allocated and is zero goes back to the device before a recovery: not what a record ends with."""
    path = os.path.join(memory, "store")

    def write() -> None:
        pc = mmpc.open(path, mmpc.LastWriteWins(), create=True)
        pc.allocate(bytes(size))
        pc.flush()
        os._exit(0)

    children.start(write).wait()
    with mmpc.open(loss.copy(path, path + "-copy"), mmpc.LastWriteWins()) as pc:
        assert pc.get(2).unwrap() == bytes(size)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_lease_that_had_just_begun_at_the_flush_guards_the_one_before_it(
    memory: str, children: Children, damaged: bool
) -> None:
    """The flush came when a process had begun a lease and its first record in it got a newer colour: the mark lists
    that lease, and nothing in it counts. The lease before was whole all the same.
    """
    path = os.path.join(memory, "store")
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([])
        for number in range(3):
            pc.append(pid, [seal(pid, number)])
        third = address(pc, pid)
        pc.flush()
        marks = loss.get(path, "marks")
        lease = third // 4096 * 4096
        pc.append(pid, [seal(pid, 3, 9000)])  # takes a lease of its own
        begun = address(pc, pid) // 4096 * 4096
        assert begun != lease
        lost = loss.copy(path, path + "-copy")
    loss.put(lost, "marks", marks)
    forging.mark(lost, [(begun, LEASE_HEADER.size, forging.scanned(lost).segments[begun >> 23].generation)])
    if damaged:
        data = bytearray(loss.get(lost, "log"))
        data[third + 45] ^= 1
        loss.put(lost, "log", bytes(data))

    def look() -> Any:
        try:
            return numbers(pid, mmpc.open(lost, mmpc.Append()).get(pid).unwrap())
        except mmpc.CorruptionError as error:
            return error.file

    assert children.run(look) == ("log" if damaged else [0, 1, 2])


@pytest.mark.parametrize("damaged", [False, True])
def test_a_mark_made_while_a_slot_takes_a_lease_lists_the_one_before(
    memory: str, children: Children, damaged: bool
) -> None:
    """The slot has announced an address and begun nothing there yet, or was killed then."""
    path = os.path.join(memory, "store")
    with mmpc.open(path, mmpc.Append(), create=True) as keeper:
        pid, _ = keeper.allocate([])
        keeper.flush()
        with mmpc.open(path, mmpc.Append()) as pc:
            slot = 12288 + 1024 * pc._attachment.slot
            for number in range(3):
                pc.append(pid, [seal(pid, number)])
            third = address(pc, pid)
            with open(os.path.join(path, "control"), "r+b", buffering=0) as f:
                word = lambda at: struct.unpack("<Q", os.pread(f.fileno(), 8, slot + at))[0]  # noqa: E731
                for at, value in ((120, 0), (40, word(80)), (112, word(72)), (120, word(88)), (88, 0), (72, 1 << 20)):
                    os.pwrite(f.fileno(), struct.pack("<Q", value), slot + at)
            keeper.flush()
            lost = loss.copy(path, path + "-copy")
    if damaged:
        data = bytearray(loss.get(lost, "log"))
        data[third + 45] ^= 1
        loss.put(lost, "log", bytes(data))

    def look() -> Any:
        try:
            return numbers(pid, mmpc.open(lost, mmpc.Append()).get(pid).unwrap())
        except mmpc.CorruptionError as error:
            return error.file

    assert children.run(look) == ("log" if damaged else [0, 1, 2])


@pytest.mark.parametrize(
    ("pairs", "lo", "hi", "expected"),
    [
        ((), 3, 7, ((3, 7),)),
        (((3, 7),), 8, 12, ((3, 7), (8, 12))),  # colour 8 counts
        (((3, 7),), 7, 12, ((3, 12),)),
        (((3, 7),), 3, 12, ((3, 12),)),
        (((1, 2), (3, 7)), 3, 12, ((1, 2), (3, 12))),
        (((1, 2), (3, 7), (9, 10)), 6, 12, ((1, 2), (3, 12))),
    ],
)
def test_discarded_pairs_are_joined_where_nothing_counts_between(
    pairs: tuple[tuple[int, int], ...], lo: int, hi: int, expected: tuple[tuple[int, int], ...]
) -> None:
    kept = _recovery.joined(pairs, lo, hi)
    assert kept == expected
    inside = {c for c in range(20) if any(a < c <= b for a, b in (*pairs, (lo, hi)))}
    assert inside == {c for c in range(20) if any(a < c <= b for a, b in kept)}
