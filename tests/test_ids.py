"""generate_id: rising over processes, restarts and crashes, and never twice."""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from mmpc._reserved import MARGIN
from support import loss
from support.children import Children
from support.looks import depth
from support.ruins import kept

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
DEFAULT = 1_000_000


def ceiling(pc: Store) -> int:
    page = pc.get(1)
    assert isinstance(page, mmpc.Counter)
    return int(page.value)


def drawn(path: str, count: int, interval: int, boot: str | None = None) -> tuple[list[int], int]:
    """In a child that is then killed, as far as the store can tell: numbers, and the ceiling before them."""
    if boot is not None:
        os.environ["MMPC_BOOT_ID"] = boot
    kept.append(pc := mmpc.open(path, mmpc.Append(), create=True, idgen_persist_interval=interval))
    before = ceiling(pc)
    return [pc.generate_id() for _ in range(count)], before


def test_the_first_number_of_a_store_is_twice_the_interval(open_store: Open) -> None:
    assert open_store(idgen_persist_interval=50).generate_id() == 100


def test_numbers_follow_each_other_while_nothing_crashes(store: Store) -> None:
    first = store.generate_id()
    assert first == 2 * DEFAULT
    assert [store.generate_id() for _ in range(1000)] == list(range(first + 1, first + 1001))


def test_numbers_rise_over_handles(open_store: Open) -> None:
    handles = [open_store(idgen_persist_interval=7), open_store(idgen_persist_interval=3)]
    found = [handles[i // 5 % 2].generate_id() for i in range(300)]
    assert found == sorted(set(found))


def test_ids_and_timestamps_are_one_sequence(store: Store) -> None:
    found = []
    for _ in range(50):
        found.append(store.generate_id())
        with store.begin() as tx:
            found.append(tx.ts)
    assert found == sorted(set(found))


def test_what_was_drawn_lies_below_page_1(open_store: Open) -> None:
    store = open_store(idgen_persist_interval=4)
    for _ in range(100):
        number = store.generate_id()
        assert number < ceiling(store) <= number + 12
    assert mmpc.verify(store.path).ok


def test_one_record_in_an_interval(open_store: Open) -> None:
    store = open_store(idgen_persist_interval=100)
    store.generate_id()
    before = store.get(1).key.wts
    for _ in range(1000):
        store.generate_id()
    assert store.get(1).key.wts - before == 10


def test_page_1_is_one_record(open_store: Open) -> None:
    store = open_store(idgen_persist_interval=1)
    for _ in range(50):
        store.generate_id()
    assert depth(store, 1) == 1


def test_who_flushes_now_and_then_waits_for_no_sync(open_store: Open) -> None:
    """What covers the next interval was written one interval before."""
    store = open_store(idgen_persist_interval=10)
    store.generate_id()
    store.generate_id()
    for _ in range(8):
        store.generate_id()
    waited = 0
    for _ in range(20):
        store.flush()
        before = loss.syncs(store.path)
        for _ in range(10):
            store.generate_id()
        waited += loss.syncs(store.path) - before
    assert waited == 0


def test_a_number_is_durably_covered_before_it_is_handed_out(path: str, children: Children, seed: int) -> None:
    """Nobody calls flush; at any moment the power may go."""
    rng = random.Random(seed)
    found: list[int] = []
    for turn in range(12):
        count, interval = rng.randint(1, 60), rng.choice((1, 2, 5, 16, 1000))
        more, before = children.run(drawn, path, count, interval, f"boot {turn}")
        assert not found or more[0] > found[-1]
        assert more[0] >= before
        assert more == sorted(set(more))
        found += more


def test_a_discarded_future_is_not_drawn_from_again(path: str, children: Children) -> None:
    """The records of page 1 above the newest mark are lost, and the numbers below them were never handed out."""
    more, _ = children.run(drawn, path, 35, 10, "a")
    again, before = children.run(drawn, path, 35, 10, "b")
    assert before > more[-1]
    assert again[0] >= before
    assert children.run(drawn, path, 1, 10, "c")[0][0] > again[-1]


def test_a_recovery_skips_at_most_twice_the_interval(path: str, children: Children) -> None:
    last = -1
    for boot in "abcdef":
        found, _ = children.run(drawn, path, 1 + ord(boot) % 7, 20, boot)
        assert last < 0 or last < found[0] <= last + 2 * 20 + 1
        last = found[-1]


def test_a_restart_without_a_crash_skips_nothing(path: str) -> None:
    found = []
    for _ in range(3):
        with mmpc.open(path, mmpc.Append(), create=True, idgen_persist_interval=10) as pc:
            found.append(pc.generate_id())
    assert found == [20, 21, 22]


def test_an_open_that_draws_none_does_not_advance(path: str, children: Children) -> None:
    first, _ = children.run(drawn, path, 5, 10, "a")
    for boot in "bcd":
        assert children.run(drawn, path, 0, 10, boot)[0] == []
    assert children.run(drawn, path, 1, 10, "e")[0][0] <= first[-1] + 21


@pytest.mark.parametrize(("before", "after"), [(1000, 1), (1, 1000), (10, 7), (7, 1_000_000)])
def test_another_interval_after_a_crash(path: str, children: Children, before: int, after: int) -> None:
    """Each record says by itself how far numbers went: nobody has to know with which interval it was written."""
    first, _ = children.run(drawn, path, 2500, before, "a")
    second, _ = children.run(drawn, path, 20, after, "b")
    assert second[0] > first[-1]
    assert children.run(drawn, path, 1, before, "c")[0][0] > second[-1]


def test_processes_draw_from_one_sequence(open_store: Open, children: Children) -> None:
    store = open_store(idgen_persist_interval=50)

    def draw() -> list[int]:
        return [store.generate_id() for _ in range(3000)]

    found = children.map(draw, [()] * 4)
    assert all(mine == sorted(mine) for mine in found)
    assert len(set().union(*found)) == 12000
    assert store.generate_id() > max(max(mine) for mine in found)


def test_threads_draw_from_one_sequence(open_store: Open) -> None:
    store = open_store(idgen_persist_interval=20)
    found: list[list[int]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(store.generate_id() for _ in range(1000)))
        for mine in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in found)
    assert len(set().union(*map(set, found))) == 4000


def noted(path: str, fd: int, interval: int) -> None:
    """In a child: writes each number to a pipe, until it is killed."""
    pc = mmpc.open(path, mmpc.Append(), idgen_persist_interval=interval)
    while True:
        os.write(fd, pc.generate_id().to_bytes(8, "little"))


def test_killed_processes_leave_no_number_for_others(path: str, children: Children, seed: int) -> None:
    """All are killed in the middle of it, again and again; what each was given it has told."""
    rng, last, seen = random.Random(seed), -1, set[int]()
    for turn in range(6):
        os.environ["MMPC_BOOT_ID"] = f"boot {turn // 2}"  # the same, and another one
        try:
            mmpc.open(path, mmpc.Append(), create=True).close()
            pipes = [os.pipe() for _ in range(3)]
            workers = [children.start(noted, path, w, rng.choice((1, 3, 50))) for _r, w in pipes]
            for _r, w in pipes:
                os.close(w)
            time.sleep(rng.uniform(0.02, 0.2))
            for worker in workers:
                worker.signal(signal.SIGKILL)
                assert worker.wait() == -signal.SIGKILL
        finally:
            del os.environ["MMPC_BOOT_ID"]
        told: list[int] = []
        for r, _w in pipes:
            with open(r, "rb") as f:
                data = f.read()
            mine = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data) // 8 * 8, 8)]
            assert mine == sorted(mine)
            told += mine
        assert len(set(told)) == len(told)
        assert not seen & set(told)
        assert not told or min(told) > last
        seen |= set(told)
        last = max(seen, default=-1)
    assert len(seen) > 20


def test_a_child_of_fork_draws_for_itself(open_store: Open, children: Children) -> None:
    store = open_store()
    before = store.generate_id()
    theirs = children.run(lambda: [store.generate_id() for _ in range(10)])
    assert theirs == list(range(before + 1, before + 11))
    assert store.generate_id() == before + 11


def test_a_pickled_handle_keeps_its_interval(open_store: Open) -> None:
    store = open_store(idgen_persist_interval=5)
    with pickle.loads(pickle.dumps(store)) as other:
        assert other.generate_id() == 10
        assert ceiling(other) == 20


def test_a_closed_handle_draws_nothing(open_store: Open) -> None:
    store = open_store()
    store.generate_id()
    store.close()
    with pytest.raises(mmpc.Closed):
        store.generate_id()


def test_a_read_only_handle_draws_no_ids_but_has_timestamps(open_store: Open) -> None:
    store = open_store(idgen_persist_interval=2)
    reader = open_store(read_only=True, idgen_persist_interval=2)
    with pytest.raises(mmpc.Unsupported):
        reader.generate_id()
    before = store.generate_id()
    for _ in range(20):
        with reader.begin() as tx:
            assert tx.ts > before
            before = tx.ts
    assert store.generate_id() > before


@pytest.mark.parametrize("wrong", [0, -1, 2**40 + 1])
def test_the_interval_has_bounds(path: str, wrong: int) -> None:
    with pytest.raises(ValueError, match=f"idgen_persist_interval must be from 1 to {2**40}, not {wrong}"):
        mmpc.open(path, mmpc.Append(), create=True, idgen_persist_interval=wrong)
    assert not os.path.exists(path)


@pytest.mark.parametrize("wrong", [1.5, "10", None, True])
def test_the_interval_is_an_int(path: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match="idgen_persist_interval"):
        mmpc.open(path, mmpc.Append(), create=True, idgen_persist_interval=wrong)


def test_numbers_survive_cleaning_and_snapshots(path: str, children: Children) -> None:
    """Page 1 is moved like any other."""

    def work() -> list[int]:
        os.environ["MMPC_BOOT_ID"] = "a"
        kept.append(
            pc := mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16, idgen_persist_interval=3)
        )
        pid, key = pc.allocate([0])
        found = []
        for i in range(60):
            found.append(pc.generate_id())
            key = pc.replace(pid, key, ["x" * 9000])
            if i % 20 == 10:
                pc._clean(2, 1 << 20)
                pc.rewrite(1)
                pc.rewrite(0)
                pc.snapshot()
        return found

    found = children.run(work)
    assert found == sorted(set(found))
    assert children.run(drawn, path, 1, 3, "b")[0][0] > found[-1]


def test_a_backup_goes_on_above_what_was_drawn_before_it(path: str, tmp_path: Any) -> None:
    copy = str(tmp_path / "copy")
    with mmpc.open(path, mmpc.Append(), create=True, idgen_persist_interval=10) as pc:
        before = [pc.generate_id() for _ in range(25)][-1]
        pc.backup(copy)
    with mmpc.open(copy, mmpc.Append()) as pc:
        assert pc.generate_id() > before


def test_a_salvaged_store_goes_on_above_what_was_drawn(path: str, tmp_path: Any) -> None:
    saved = str(tmp_path / "saved")
    with mmpc.open(path, mmpc.Append(), create=True, idgen_persist_interval=10) as pc:
        before = [pc.generate_id() for _ in range(25)][-1]
    report = mmpc.salvage(path, saved)
    assert report.ok
    with mmpc.open(saved, mmpc.Append()) as pc:
        assert before < pc.generate_id() <= before + 21


def test_salvage_goes_far_where_the_newest_record_of_page_1_is_lost(path: str, tmp_path: Any) -> None:
    saved = str(tmp_path / "saved")
    with mmpc.open(path, mmpc.Append(), create=True, idgen_persist_interval=10) as pc:
        before = [pc.generate_id() for _ in range(95)][-1]
        at = (pc.get(1).key.head & (1 << 42) - 1) * 8
    with open(os.path.join(path, "log"), "r+b") as f:
        f.seek(at)
        f.write(bytes(48))
    report = mmpc.salvage(path, saved)
    told = [p for p in [*report.older, *report.lost] if p.page == 1]
    assert len(told) == 1
    assert "generate_id" in told[0].message
    with mmpc.open(saved, mmpc.Append()) as pc:
        assert before + MARGIN / 2 < pc.generate_id()
        assert pc.generate_id() < 2 * MARGIN


def test_verify_tells_when_more_was_handed_out_than_page_1_says(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pc.generate_id()
        pc.flush()
        with open(os.path.join(path, "control"), "r+b") as f:
            f.seek(4096 + 896)
            f.write((10**9).to_bytes(8, "little"))
        damage = mmpc.verify(path).damage
        assert [(p.file, p.page) for p in damage] == [("control", 1)]
        assert "page 1 covers those below" in damage[0].message


def test_a_damaged_page_1_is_told_to_who_asks_for_a_number_and_to_nobody_else(path: str, children: Children) -> None:
    """The snapshot of the last close knows where page 1 is, in a segment that a recovery need not read."""
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16) as pc:
        pc.generate_id()
        pid, *_ = [pc.allocate([str(i) * 30000])[0] for i in range(6)]
        at = (pc.get(1).key.head & (1 << 42) - 1) * 8
    with open(os.path.join(path, "log"), "r+b") as f:
        f.seek(at + 42)
        f.write(b"\xff")

    def look() -> tuple[Any, list[str]]:
        os.environ["MMPC_BOOT_ID"] = "another"
        kept.append(pc := mmpc.open(path, mmpc.Append()))
        errors = []
        for draw in (pc.generate_id, pc.begin, pc.generate_id):
            with pytest.raises(mmpc.CorruptionError) as caught:
                draw()
            errors.append(f"{caught.value.file} {caught.value.offset == at}")
        return pc.get(pid).unwrap(), errors

    assert children.run(look) == (["0" * 30000], ["log True"] * 3)


def test_a_limit_that_no_ceiling_bears_is_not_believed(path: str) -> None:
    """A turned bit in `control` at rest: numbers would be handed out that a recovery hands out again."""
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        before = pc.generate_id()
    with open(os.path.join(path, "control"), "r+b") as f:
        f.seek(4096 + 896 + 5)
        f.write(b"\x01")
    with mmpc.open(path, mmpc.Append()) as pc:
        number = pc.generate_id()
        assert before < number < ceiling(pc)
    assert mmpc.verify(path).ok
