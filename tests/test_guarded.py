"""What the lasting files say of themselves, and of each other, so that what is missing is not taken for never written:
ends of leases, retirements, what a mark knows of the log and of `config`.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from mmpc._layout import CONTROL_SEGMENTS, LEASE_HEADER, LEASE_SUMMED, RETIRED_AT, SEGMENT_ENTRY_SIZE, SEGMENT_RETIRED
from mmpc._log import Lease
from mmpc._native import ffi, lib
from support import forging, loss
from support.children import Children
from support.ruins import kept
from support.sealed import numbers, seal

SEGMENT = 1 << 16
EVERYTHING = 2  # MM_EFFORT_ALL


def opened(path: str, pids: list[int], boot: str = "another boot") -> Any:
    """In a child: the numbers in each page as a recovery in another boot finds them, or the file that it blames."""
    os.environ["MMPC_BOOT_ID"] = boot
    try:
        kept.append(pc := mmpc.open(path, mmpc.Append()))
        pages = [pc.get(pid) for pid in pids]
        return [numbers(page.key.pid, page.unwrap()) if page.is_materialized() else None for page in pages]
    except mmpc.CorruptionError as error:
        assert error.offset is not None
        return error.file


def told(path: str, boot: str = "another boot") -> set[str]:
    """In a child: the files that verify finds damaged."""
    os.environ["MMPC_BOOT_ID"] = boot
    return {p.file for p in mmpc.verify(path).damage}


def newest(pc: mmpc.PageCache[Any], pid: int) -> int:
    return (pc.get(pid).key.head & (1 << 42) - 1) * 8


def lease_with(path: str, address: int, durable: int = 2**64 - 1) -> Lease:
    return next(a for a in forging.scanned(path, durable).leases.values() if a.address < address < a.end)


# ---- the end of a lease


def left_alone(path: str, flush: bool) -> tuple[str, int, list[int]]:
    """A copy of a store in which one process took a lease, wrote three pages and left, and nobody named its lease
    since; then another one flushed, or not. Where the newest record of its second page is; its pages.
    """
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        pc.allocate([])
        pc.flush()
        with mmpc.open(path, mmpc.Append()) as other:
            pids = [other.allocate([])[0] for _ in range(3)]
            for pid in pids:
                other.replace(pid, other.get(pid).key, [seal(pid, 7)])
            second = newest(other, pids[1])
        if flush:
            pc.flush()
        lost = loss.copy(path, path + "-lost")
        assert loss.snapshots(lost) == []
    forging.mark(lost, [])
    return lost, second, pids


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_the_durable_end_of_a_lease_guards_its_records(
    path: str, children: Children, damaged: bool, ended: bool
) -> None:
    """Nothing else names the lease: without its end, what lies behind the damaged record would never have been."""
    lost, second, pids = left_alone(path, flush=True)
    lease = lease_with(lost, second)
    assert lease.ended == lease.end - lease.address
    if not ended:
        forging.unend(lost, lease.address)
    if damaged:
        forging.turn(lost, "log", second + 45)
    guarded = damaged and ended
    assert children.run(told, lost) == ({"log"} if guarded else set())
    found = children.run(opened, lost, pids)
    assert found == ("log" if guarded else [[7], [], []] if damaged else [[7], [7], [7]])


def test_salvage_lists_what_was_below_the_end_of_a_lease(path: str, children: Children) -> None:
    lost, second, pids = left_alone(path, flush=True)
    forging.turn(lost, "log", second + 45)

    def save() -> Any:
        os.environ["MMPC_BOOT_ID"] = "another boot"
        saved = mmpc.salvage(lost, lost + "-saved")
        return [(p.page, p.offset) for p in saved.older], saved.lost, saved.after.ok

    assert children.run(save) == ([(pids[1], second)], [], True)


@pytest.mark.parametrize("damaged", [False, True])
def test_an_end_that_was_discarded_is_ignored_and_written_again(
    path: str, children: Children, damaged: bool
) -> None:
    """Nothing promised that its records reach the disk. What the recovery writes instead counts from its flush on."""
    lost, second, pids = left_alone(path, flush=False)
    durable = max(struct.unpack_from("<Q", loss.get(lost, "marks"), at + 16)[0] for at in range(0, 65536, 512))
    before = lease_with(lost, second)
    assert before.ended_epoch > durable
    if damaged:
        forging.turn(lost, "log", second + 45)
    assert children.run(told, lost) == set()
    assert children.run(opened, lost, pids) == [None] * 3
    after = lease_with(lost, before.address + LEASE_HEADER.size)
    log = forging.scanned(lost)
    assert after.ended == (second if damaged else before.end) - before.address
    assert log.counts(after.ended_epoch), "it is of the life that the recovery began"
    assert any(lo < before.ended_epoch <= hi for lo, hi in log.discards)
    forging.turn(lost, "log", before.address + LEASE_HEADER.size + 40)  # now it guards what it found
    assert children.run(told, lost, "yet another boot") == {"log"}
    assert children.run(opened, lost, pids, "yet another boot") == "log"


def test_a_turned_bit_in_an_end_is_told_and_changes_nothing(path: str, children: Children) -> None:
    lost, second, pids = left_alone(path, flush=True)
    lease = lease_with(lost, second)
    for at in range(LEASE_SUMMED, LEASE_HEADER.size):
        forging.turn(lost, "log", lease.address + at)
        report = mmpc.verify(lost)
        assert report.ok
        assert [p.offset for p in report.problems if p.file == "log"] == [lease.address + LEASE_SUMMED]
        forging.turn(lost, "log", lease.address + at)
    forging.turn(lost, "log", lease.address + LEASE_SUMMED)
    assert children.run(opened, lost, pids) == [[7], [7], [7]]


# ---- retirements


def churn(pc: mmpc.PageCache[Any], pids: list[int], rounds: range) -> None:
    """Replaces every page again and again, empties what is worth it, and flushes."""
    for number in rounds:
        for pid in pids:
            pc.replace(pid, pc.get(pid).key, [seal(pid, number, 3000)])
    r, report = ffi.new("mm_result *"), ffi.new("mm_clean_report *")
    assert lib.mm_clean(pc._attachment.mm, EVERYTHING, 1 << 20, report, r) == 0
    pc.flush()


def churned(path: str) -> tuple[str, list[int], list[int]]:
    """A copy of a store whose first segments were emptied and durably retired; they, and its pages."""
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        pids = [pc.allocate([seal(pid, 0)])[0] for pid in range(2, 12)]
        churn(pc, pids, range(1, 12))
        pc._check()
        lost = loss.copy(path, path + "-lost")
    for name in loss.snapshots(lost):
        os.unlink(os.path.join(lost, name))
    log = forging.scanned(lost)
    return lost, [n for n, segment in log.segments.items() if log.gone(segment)], pids


def test_a_segment_that_was_durably_retired_is_not_read(path: str, children: Children, seed: int) -> None:
    """What overwrote its records is no damage, even where a lease header survived that says how far it was used."""
    lost, gone, pids = churned(path)
    leases = [a for at, a in forging.scanned(lost, 0).leases.items() if at // SEGMENT in gone]
    assert any(lease.ended for lease in leases)
    for lease in leases:
        begin = lease.address + LEASE_HEADER.size
        forging.write(lost, "log", begin, random.Random(seed).randbytes(lease.address + lease.size - begin))
    assert children.run(told, lost) == set()

    def look() -> Any:
        found = opened(lost, pids)
        kept[-1].append(pids[0], [seal(pids[0], 12)])
        kept[-1]._check()
        return found

    assert children.run(look) == [[11]] * len(pids)
    assert children.run(opened, lost, pids[1:], "yet another boot") == [[11]] * (len(pids) - 1)


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_damaged_header_of_a_segment_that_is_used_again_is_damage(
    path: str, children: Children, snapshot: bool
) -> None:
    """Behind it the generation before says that it was retired. That is not what the others know of it."""
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        pids = [pc.allocate([seal(pid, 0)])[0] for pid in range(2, 12)]
        churn(pc, pids, range(1, 12))
        churn(pc, pids, range(12, 40))
        if snapshot:
            pc.snapshot()
        number = newest(pc, pids[0]) // SEGMENT
        lost, whole = loss.copy(path, path + "-lost"), loss.copy(path, path + "-whole")
    log = forging.scanned(lost)
    assert forging.retired(lost, number) != bytes(2 * SEGMENT_RETIRED.size)
    assert not log.segments[number].retired
    assert children.run(opened, whole, pids) == [[39]] * len(pids)
    forging.turn(lost, "log", number * SEGMENT + 24)
    assert children.run(told, lost) == {"log"}
    assert children.run(opened, lost, pids) == "log"


def test_a_retirement_that_was_discarded_is_forgotten(path: str, children: Children) -> None:
    """The pages had left for where no flush covers them: they are where they were."""
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        pid, _ = pc.allocate([seal(2, 0)])
        pc.flush()
        durable = pc.stable_lsn
        lost = loss.copy(path, path + "-lost")
    (segment,) = forging.scanned(lost).segments.values()
    forging.retire(lost, segment, durable + 1)
    assert forging.scanned(lost).segments[0].retired == durable + 1
    assert children.run(told, lost) == set()
    assert children.run(opened, lost, [pid]) == [[0]]
    assert forging.retired(lost, 0) == bytes(2 * SEGMENT_RETIRED.size)
    assert children.run(opened, lost, [pid], "yet another boot") == [[0]]


def test_a_claim_that_goes_back_takes_the_retirement_with_it(path: str, children: Children) -> None:
    """A cleaner died right after it wrote that the segment is retired. Whoever has a lease there goes on writing to it,
    and what it writes must not be given away by the next recovery.
    """

    def die() -> int:
        kept.append(cleaner := mmpc.open(path, mmpc.Append()))
        return cleaner._attachment.slot

    def word(data: bytes, at: int) -> int:
        return int(struct.unpack_from("<Q", data, at)[0])

    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        pid, _ = pc.allocate([seal(2, 0)])
        number = newest(pc, pid) // SEGMENT
        with mmpc.open(path, mmpc.Append()) as other:
            filler, _ = other.allocate([])
            while newest(other, filler) // SEGMENT == number:
                filler, _ = other.allocate([b"x" * 5000])
        slot, entry = children.run(die), CONTROL_SEGMENTS + number * SEGMENT_ENTRY_SIZE
        for _ in range(2):
            pc.allocate([])
            pc.flush()
        assert word(loss.get(path, "control"), entry + 40) < pc.stable_lsn, "what was written is durable"
        state = word(loss.get(path, "control"), entry)
        assert state & 15 == 3, "SEALED"
        forging.write(path, "control", entry, struct.pack("<Q", 4 | state & 0xFFFFFF0 | slot << 28))
        forging.retire(path, forging.scanned(path).segments[number], pc.stable_lsn + 1)
        assert lib.mm_reap_all(pc._attachment.mm, ffi.new("uint64_t *")) == 0
        assert word(loss.get(path, "control"), entry) & 15 == 3
        assert word(loss.get(path, "control"), entry + 40) > pc.stable_lsn, "and is not any more"
        pc.append(pid, [seal(pid, 1)])
        assert newest(pc, pid) // SEGMENT == number
        pc.flush()
        lost = loss.copy(path, path + "-lost")
    assert forging.retired(lost, number) == bytes(2 * SEGMENT_RETIRED.size)
    assert children.run(opened, lost, [pid]) == [[0, 1]]


@pytest.mark.parametrize("lie", ["generation", "number", "checksum"])
def test_a_retirement_of_something_else_means_nothing(path: str, children: Children, lie: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        pid, _ = pc.allocate([seal(2, 0)])
        pc.flush()
        lost = loss.copy(path, path + "-lost")
    (segment,) = forging.scanned(lost).segments.values()
    forging.retire(lost, segment, 1)
    forging.turn(lost, "log", RETIRED_AT[segment.generation % 2] + {"checksum": 8, "generation": 12, "number": 16}[lie])
    assert children.run(told, lost) == set()
    assert children.run(opened, lost, [pid]) == [[0]]


# ---- what a mark knows of the others


def test_a_log_without_its_last_segments_is_damaged(path: str, children: Children) -> None:
    """Nothing else says so: the mark lists no lease, and there is no snapshot."""
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        pids = [pc.allocate([seal(pid, 0, 6000)])[0] for pid in range(2, 40)]
        pc.flush()
        lost = loss.copy(path, path + "-lost")
    forging.mark(lost, [])
    last = max(forging.scanned(lost).segments)
    assert last > 2
    assert children.run(told, lost) == set()
    os.truncate(os.path.join(lost, "log"), last * SEGMENT)
    assert children.run(told, lost) == {"log"}
    assert children.run(opened, lost, pids) == "log"


def dies(children: Children, work: Callable[[], Any]) -> None:
    def run() -> None:
        work()
        os._exit(0)

    assert children.start(run).wait() == 0


@pytest.mark.parametrize("same_boot", [False, True])
def test_a_config_from_before_a_recovery_discarded_is_damaged(
    path: str, children: Children, same_boot: bool
) -> None:
    """Put back, it would bring back what was discarded. With the right one all is well again."""
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        pid, _ = pc.allocate([seal(2, 0)])

    def write() -> None:
        kept.append(pc := mmpc.open(path, mmpc.Append()))
        pc.append(pid, [seal(pid, 1)])

    dies(children, write)
    assert children.run(opened, path, [pid], "a second boot") == [[0]]
    now, older = loss.get(path, "config"), forging.older_config(path)
    assert len(older) == len(now) - 16
    forging.replace(path, "config", older)
    boot = "a second boot" if same_boot else "a third boot"
    assert "config" in children.run(told, path, boot)
    assert children.run(opened, path, [pid], boot) == "config"
    forging.replace(path, "config", now)
    assert children.run(opened, path, [pid], boot) == [[0]]
    assert children.run(told, path, boot) == set()


def test_salvage_misses_nothing_that_was_used_again(path: str) -> None:
    """What older snapshots, marks and lease headers name of segments that were emptied since is no loss."""
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) as pc:
        pids = [pc.allocate([seal(pid, 0)])[0] for pid in range(2, 12)]
        churn(pc, pids, range(1, 12))
        pc.snapshot()
        churn(pc, pids, range(12, 40))
        assert pc.stats().cleaned > 5
        lost = loss.copy(path, path + "-lost")
    assert loss.snapshots(lost)
    saved = mmpc.salvage(lost, lost + "-saved")
    assert saved.ok
    with mmpc.open(lost + "-saved", mmpc.Append()) as pc:
        assert [numbers(pid, pc.get(pid).unwrap()) for pid in pids] == [[39]] * len(pids)
