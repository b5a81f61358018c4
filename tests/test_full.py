"""A full disk, on small real file systems: nothing is half done, reads, frees and flushes go on, work resumes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmpc
from support.children import Children, Gate
from support.mounts import Mounted, ext4, memory

Store = mmpc.PageCache[Any]
pytestmark = pytest.mark.processes
BOOTS = iter(range(1 << 30))


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """A file system of a few MiB."""
    made = memory("3m") if request.param == "tmpfs" else ext4(tmp_path / "image", 12)
    with made as mounted:
        yield mounted


@pytest.fixture(params=[1 << 16, 1 << 23], ids=["64K", "8M"])
def segment(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def opened(disk: Mounted, **options: Any) -> Store:
    return mmpc.open(disk.path / "store", mmpc.Append(), **({"create": True} | options))


def another_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPC_BOOT_ID", f"full-{next(BOOTS)}")


class Pages:
    """Random verbs on pages of one process, and what they must hold afterwards."""

    def __init__(self, pc: Store, seed: int) -> None:
        self.pc, self.rng, self.step = pc, random.Random(seed), 0
        self.held: dict[int, list[Any]] = {}

    def item(self) -> list[Any]:
        self.step += 1
        return [self.step, b"x" * self.rng.choice([10, 100, 1000, 5000])]

    def once(self) -> None:
        """One verb. DiskFullError: it was not applied, except for what `append_many` says."""
        pc, item = self.pc, self.item()
        pid = self.rng.choice(sorted(self.held)) if self.held else 0
        verb = self.rng.randrange(7) if self.held else 0
        if verb in (2, 3, 6) and sum(len(x[1]) for x in self.held[pid]) > 15_000:
            verb = 4  # a page may fill half a segment of 64 KiB
        if verb <= 1:
            pid, _ = pc.allocate([item])
            self.held[pid] = [item]
        elif verb == 2:
            pc.append(pid, [item])
            self.held[pid].append(item)
        elif verb == 3:
            pc.link(pid, pc.get(pid).key, [item])
            self.held[pid].append(item)
        elif verb == 4:
            pc.replace(pid, pc.get(pid).key, [item])
            self.held[pid] = [item]
        elif verb == 5:
            pc.update(pid, lambda _: [item])
            self.held[pid] = [item]
        else:
            self.many(pid, item)

    def many(self, pid: int, item: list[Any]) -> None:
        work = [(pid, [item]), (pid, [item])]
        try:
            self.pc.append_many(work)
            self.held[pid] += [item, item]
        except mmpc.DiskFullError as e:
            self.held[pid] += [item] * len(e.applied)  # type: ignore[attr-defined]
            raise

    def until_full(self, refusals: int = 40) -> None:
        """Goes on until each kind of verb, in all sizes, was refused a few times."""
        refused = 0
        while refused < refusals:
            try:
                self.once()
            except mmpc.DiskFullError as e:
                assert str(self.pc.path) in str(e)
                assert "free some space" in str(e)
                refused += 1
            assert refused or self.step < 100_000

    def free(self, count: int) -> int:
        """Frees pages until there is no room for that either; how many."""
        freed = 0
        for pid in sorted(self.held)[:count]:
            try:
                self.pc.free(pid, self.pc.get(pid).key)
            except mmpc.DiskFullError:
                break
            del self.held[pid]
            freed += 1
        return freed

    def check(self, pc: Store | None = None) -> None:
        pc = self.pc if pc is None else pc
        for pid, items in self.held.items():
            assert pc.get(pid).unwrap() == items, f"page {pid} after {self.step} steps"
            assert [x for f in pc.get_page_frags(pid)[1] for x in f] == items
        pc._check()


def test_reads_frees_flushes_and_openings_go_on_and_work_resumes(
    disk: Mounted, segment: int, seed: int, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    another_boot(monkeypatch)
    pc = opened(disk, segment_size=segment)
    pages = Pages(pc, seed)
    for _ in range(30):
        pages.once()
    ballast = disk.fill(leave=200_000)
    pages.until_full()
    pages.check()
    assert pages.free(3) == 3
    assert pc.flush() > 0
    assert pc.flush() == 0
    key = pc.get(sorted(pages.held)[0]).key
    assert pc.make_stable(key.last_lsn) == 0
    with pc.begin() as tx:
        pc.get(key.pid, tx)

    def newcomer() -> int:
        with opened(disk) as other:
            pages.check(other)
            others = Pages(other, seed)
            others.held = dict(list(pages.held.items())[:2])
            assert others.free(2) == 2
            other.flush()
            return 2

    def inherited() -> int:
        pages.check()
        assert pages.free(1) == 1
        pc.flush()
        return 1

    for work in (newcomer, inherited):
        gone = children.run(work)
        for pid in sorted(pages.held)[:gone] if work is inherited else list(pages.held)[:gone]:
            assert pc.get(pid).is_free()
            del pages.held[pid]
    pages.check()
    pc.close()

    for boot in (False, True):  # the disk is still full
        if boot:
            another_boot(monkeypatch)
        pages.pc = opened(disk)
        pages.check()
        assert pages.free(2) == 2
        pages.until_full(5)
        pages.check()
        pages.pc.close()

    ballast.unlink()
    pages.pc = opened(disk)
    steps = pages.step
    while pages.step < steps + 60:
        try:
            pages.once()
        except mmpc.DiskFullError:
            pages.free(20)
    pages.check()
    pages.pc.close()
    another_boot(monkeypatch)
    with opened(disk) as pages.pc:
        pages.check()


@pytest.mark.parametrize(("size", "least"), [(1 << 16, 700), (1 << 20, 3000), (1 << 23, 3000)], ids=["64K", "1M", "8M"])
def test_the_reserve_is_for_what_gives_room_back(disk: Mounted, size: int, least: int) -> None:
    """A new page between two frees finds none of it, unless a segment was emptied; when it is used up, room that comes
    back fills it again.
    """

    def fill() -> int:
        with pytest.raises(mmpc.DiskFullError):
            while True:
                pc.allocate([b"z" * 3000])
        return pc.stats().cleaned

    def room() -> bool:
        try:
            pc.allocate([b"z" * 3000])
        except mmpc.DiskFullError:
            return False
        return True

    with opened(disk, segment_size=size) as pc:
        pids = [pc.allocate([i])[0] for i in range(4000)]
        keep = pids.pop()
        second = disk.fill("second", leave=600_000)
        ballast = disk.fill(leave=300_000)
        for last in (False, True):
            cleaned, freed = fill(), 0
            try:
                while pids and (last or freed < least // 2):
                    pc.free(pids[-1], pc.get(pids[-1]).key)
                    pids.pop()
                    freed += 1
                    if room():
                        assert pc.stats().cleaned > cleaned
                        cleaned = fill()
            except mmpc.DiskFullError:
                assert last
            assert freed >= (least // 2 if not last else min(least, 1000) // 2)
            pc.flush()
            if not last:
                ballast.unlink()
                pc.append(keep, [b"z" * 3000])
                second.unlink()
                disk.fill(leave=200_000)
        assert pc.get(keep).value == [3999, b"z" * 3000]


def test_many_processes_free_a_page_each(disk: Mounted, children: Children) -> None:
    """Every one of them needs a lease of its own for it."""
    with opened(disk) as pc:
        pids = [pc.allocate([i])[0] for i in range(24)]
        attached, full = Gate(), Gate()
        read, write = os.pipe()

        def free(number: int) -> bool:
            with opened(disk) as mine:
                os.write(write, b"+")
                attached.wait()
                full.wait()
                mine.free(pids[number], mine.get(pids[number]).key)
                mine.flush()
                return mine.get(pids[number]).is_free()

        crowd = [children.start(free, i) for i in range(24)]
        seen = b""
        while len(seen) < 24:
            seen += os.read(read, 64)
        attached.open()
        disk.fill(leave=300_000)
        keep = pc.allocate([])[0]
        with pytest.raises(mmpc.DiskFullError):
            while True:
                pc.replace(keep, pc.get(keep).key, [b"z" * 2000])
        full.open()
        assert [child.result() for child in crowd] == [True] * 24
        assert all(pc.get(pid).is_free() for pid in pids)
        os.close(read)
        os.close(write)


def test_many_writers_at_once_at_the_limit(
    disk: Mounted, segment: int, seed: int, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    another_boot(monkeypatch)
    with opened(disk, segment_size=segment):
        ballast = disk.fill(leave=700_000)
        gate = Gate()

        def fill(number: int) -> dict[int, list[Any]]:
            with opened(disk) as pc:
                pages = Pages(pc, seed + number)
                gate.wait()
                pages.until_full(20)
                pages.check()
                pages.free(2)
                pc.flush()
                pages.check()
                return pages.held

        crowd = [children.start(fill, i) for i in range(6)]
        gate.open()
        held = {pid: items for child in crowd for pid, items in child.result().items()}
    for boot in (False, True):
        if boot:
            another_boot(monkeypatch)
        with opened(disk) as pc:
            pages = Pages(pc, seed)
            pages.held = dict(held)
            pages.check()
    ballast.unlink()
    with opened(disk) as pc:
        pages.pc = pc
        for _ in range(20):
            pages.once()
        pages.check()


def test_killed_at_the_limit_all_that_returned_is_there(
    disk: Mounted, segment: int, seed: int, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    """Writers that meet the full disk again and again are killed; the survivor reads, frees and flushes."""
    another_boot(monkeypatch)
    rng = random.Random(seed)
    pc = opened(disk, segment_size=segment)
    disk.fill(leave=600_000)
    mine = Pages(pc, seed)
    for _ in range(10):
        mine.once()

    def torment(number: int) -> None:
        with opened(disk) as own:
            pages = Pages(own, number)
            while True:
                pages.until_full(3)
                pages.check()
                pages.free(1)

    for turn in range(6):
        crowd = [children.start(torment, seed + turn * 2 + i) for i in range(2)]
        time.sleep(0.05 + rng.random() * 0.2)
        for child in crowd:
            child.signal(signal.SIGKILL)
            child.wait()
        mine.check()
        pc.flush()
        if turn % 2:
            pc.close()
            if turn % 3 == 0:
                another_boot(monkeypatch)
            pc = mine.pc = opened(disk)
            mine.check()
    pc.close()


def test_a_store_that_is_killed_on_a_full_disk_recovers_on_it_after_another_boot(
    disk: Mounted, segment: int, seed: int, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    another_boot(monkeypatch)
    opened(disk, segment_size=segment).close()
    disk.fill(leave=400_000)
    read, write = os.pipe()

    def fill() -> None:
        pc = opened(disk)
        pages = Pages(pc, seed)
        pages.until_full(5)
        pc.flush()
        for pid, items in pages.held.items():
            os.write(write, f"{pid} {len(items)}\n".encode())
        os.write(write, b"end\n")
        pages.free(5)
        signal.pause()

    child = children.start(fill)
    text = b""
    while not text.endswith(b"end\n"):
        text += os.read(read, 1 << 16)
    child.kill()
    os.close(read)
    os.close(write)
    another_boot(monkeypatch)
    with opened(disk) as pc:
        found = {int(a): int(b) for a, b in (line.split() for line in text.decode().splitlines()[:-1])}
        freed = [pid for pid in found if pc.get(pid).is_free()]
        assert set(freed) <= set(sorted(found)[:5])
        assert all(len(pc.get(pid).unwrap()) == n for pid, n in found.items() if pid not in freed)
        rest = [pid for pid in found if pid not in freed]
        pc.free(rest[0], pc.get(rest[0]).key)
        pc.flush()
        pc._check()


def test_an_empty_store_is_small(disk: Mounted) -> None:
    before = disk.room()
    with opened(disk):
        assert before - disk.room() <= 3 << 19


def test_the_seventeenth_process_is_refused_and_the_others_stay(
    children: Children,
) -> None:
    """The blocks of the first 16 slots are there from the creation on; more need room."""
    with memory("1m") as disk, opened(disk) as pc:
        disk.fill()
        inside = [opened(disk) for _ in range(15)]
        with pytest.raises(mmpc.DiskFullError, match="store"):
            opened(disk)
        for each in (*inside, pc):
            pid, _ = each.allocate([1])
            each.flush()
            assert pc.get(pid).value == [1]
        for each in inside:
            each.close()


def filling(pc: Store) -> list[Any]:
    """Pages of 3 kB until there is no room; their keys."""
    keys: list[Any] = []
    with pytest.raises(mmpc.DiskFullError):
        while True:
            keys.append(pc.allocate([len(keys), b"x" * 3000])[1])
    return keys


def large(disk: Mounted, size: int) -> Store:
    return mmpc.open(disk.path / "store", mmpc.LastWriteWins(), create=True, segment_size=size)


@pytest.mark.parametrize(("size", "megabytes"), [(1 << 16, 16), (1 << 17, 20), (1 << 18, 20), (1 << 20, 28)])
@pytest.mark.parametrize("kind", ["memory", "ext4"])
def test_what_is_freed_on_a_full_disk_is_room_again(
    tmp_path: Path, seed: int, kind: str, size: int, megabytes: int
) -> None:
    """A third of everything is freed, page by page: no segment is empty by that. Then work goes on, without a byte of
    room from outside.
    """
    rng = random.Random(seed)
    small = memory(f"{megabytes}m") if kind == "memory" else ext4(tmp_path / "image", megabytes)
    with small as disk, large(disk, size) as pc:
        keys = filling(pc)
        for key in keys[::3]:
            pc.free(key.pid, key)
        held = {key.pid: i for i, key in enumerate(keys) if i % 3}
        pids = list(held)
        refused = 0
        for step in range(20_000):
            pid = rng.choice(pids)
            try:
                pc.replace(pid, pc.get(pid).key, [step, rng.randbytes(3000)])
            except mmpc.DiskFullError:  # until a later one has emptied more
                refused += 1
                continue
            held[pid] = step
        assert refused < 20
        assert {pid: pc.get(pid).unwrap()[0] for pid in held} == held
        assert pc.stats().cleaned > 20
        assert mmpc.verify(pc.path).ok


@pytest.mark.parametrize(("size", "megabytes"), [(1 << 16, 16), (1 << 20, 36)])
def test_what_one_process_freed_on_a_full_disk_is_room_for_another(
    seed: int, size: int, megabytes: int, children: Children
) -> None:
    with memory(f"{megabytes}m") as disk, large(disk, size) as pc:
        pids = [key.pid for key in filling(pc)]

        def free() -> None:
            with mmpc.open(pc.path, mmpc.LastWriteWins()) as mine:
                for pid in pids[::3]:
                    mine.free(pid, mine.get(pid).key)

        def write() -> int:
            rng, refused = random.Random(seed), 0
            with mmpc.open(pc.path, mmpc.LastWriteWins()) as mine:
                for step in range(3000):
                    pid = pids[3 * rng.randrange(len(pids) // 3) + 1]
                    try:
                        mine.replace(pid, mine.get(pid).key, [step, rng.randbytes(3000)])
                    except mmpc.DiskFullError:
                        refused += 1
            return refused

        children.run(free)
        assert children.run(write) < 100
        assert mmpc.verify(pc.path).ok


def test_who_was_to_make_room_and_is_stopped_has_a_second() -> None:
    """`mover` names a process that lives and does nothing: another one makes the room instead."""
    mover = 4096 + 2560  # docs/format.md
    with memory("16m") as disk, large(disk, 1 << 16) as pc, large(disk, 1 << 16) as other:
        keys = filling(pc)
        for key in keys[::3]:
            pc.free(key.pid, key)
        named = (time.monotonic_ns() >> 20 << 16 | (pc._attachment.slot + 1)).to_bytes(8, "little")
        with open(os.path.join(pc.path, "control"), "r+b") as f:
            f.seek(mover)
            f.write(named)
        for turn in range(500):
            pid = keys[3 * turn + 1].pid
            other.replace(pid, other.get(pid).key, [turn, b"y" * 3000])
        assert Path(pc.path, "control").read_bytes()[mover : mover + 8] != named
        assert other.stats().cleaned > 10


@pytest.mark.processes
@pytest.mark.parametrize(("size", "megabytes"), [(1 << 16, 16), (1 << 20, 36)])
@pytest.mark.parametrize("kind", ["memory", "ext4"])
def test_several_processes_make_room_on_a_full_disk_at_the_same_time(
    tmp_path: Path, seed: int, kind: str, size: int, megabytes: int, children: Children
) -> None:
    """As above, by four at once that share the pages: each cleans, and takes of the same reserve for it."""
    small = memory(f"{megabytes}m") if kind == "memory" else ext4(tmp_path / "image", megabytes)
    with small as disk, large(disk, size) as pc:
        keys, gate = filling(pc), Gate()

        def work(number: int) -> tuple[dict[int, int], int]:
            rng = random.Random(seed + number)
            with mmpc.open(pc.path, mmpc.LastWriteWins()) as mine:
                gate.wait()
                refused, freeing = 0, keys[number::4][::3]
                while freeing and refused < 1000:
                    try:
                        mine.free(freeing[-1].pid, freeing[-1])
                        freeing.pop()
                    except mmpc.DiskFullError:  # until somebody has emptied one
                        refused += 1
                        time.sleep(0.001)
                held = {key.pid: -1 for i, key in enumerate(keys[number::4]) if i % 3}
                pids = list(held)
                for step in range(6000):
                    pid = rng.choice(pids)
                    try:
                        mine.replace(pid, mine.get(pid).key, [step, rng.randbytes(3000)])
                    except mmpc.DiskFullError:  # until somebody has emptied more
                        refused += 1
                        time.sleep(0.001)
                        continue
                    held[pid] = step
                return held, refused

        crowd = [children.start(work, i) for i in range(4)]
        gate.open()
        ended = [child.result() for child in crowd]
        print(f"refused of 6000: {[refused for _, refused in ended]}")
        assert all(refused < 300 for _, refused in ended)
        for held, _ in ended:
            for pid, step in held.items():
                found = pc.get(pid).unwrap()[0]
                assert found == step or (step == -1 and found < len(keys))
        assert mmpc.verify(pc.path).ok


def test_timestamps_go_on_where_numbers_need_room(disk: Mounted, seed: int) -> None:
    """Who wants to read under a Tx must not need room: its record takes the reserve."""
    with opened(disk, idgen_persist_interval=1) as pc:
        pages, last = Pages(pc, seed), pc.generate_id()
        pages.until_full()
        with pytest.raises(mmpc.DiskFullError, match="free some space"):
            for _ in range(100_000):
                last = pc.generate_id()
        for _ in range(20):
            with pc.begin() as tx:
                assert tx.ts > last
                last = tx.ts
        pages.check()
        assert pages.free(10) == 10
        pages.check()
