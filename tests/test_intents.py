"""Flushes that need one sync: what they say in the log is found when the mark behind them never reached the disk.

A loss of power is a copy of the files whose `marks` is older: as it was when the last mark was synced.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from mmpc import _files, _store
from mmpc._layout import BLOCK, INTENT, LEASE_HEADER, MARK_LEASE, RECORD, SECTOR, body_of, colour_of, span_of
from mmpc._native import ffi, lib
from support import loss
from support.children import Children, Gate

Open = Callable[..., mmpc.PageCache[Any]]
MARKED, STABLE = 2240, 64  # of mm_globals


def word(path: str, offset: int) -> int:
    with open(os.path.join(path, "control"), "rb") as f:
        return int(struct.unpack("<Q", os.pread(f.fileno(), 8, 4096 + offset))[0])


def intents(path: str) -> list[tuple[int, int, bytes]]:
    """(address, epoch, payload) of the intents in the first lease of a store of one process."""
    log, found = loss.get(path, "log"), []
    for lease in range(BLOCK, len(log), BLOCK):
        if log[lease + 4 : lease + 8] != b"ESEL":
            continue
        at = lease + LEASE_HEADER.size
        while at + RECORD.size <= len(log):
            commit, shape, page_colour, _base, prev_colour = RECORD.unpack_from(log, at)
            if not commit >> 32:
                break
            if shape >> 40 & 7 == INTENT:
                payload = log[at + RECORD.size : at + RECORD.size + body_of(shape)]
                found.append((at, colour_of(page_colour, prev_colour), payload))
            at += span_of(body_of(shape))
    return sorted(found)


class Lost:
    """A store whose last mark was synced with [0] .. [marked - 1] on page 2, and that flushed `more` times since."""

    def __init__(self, path: str, into: str, marked: int = 3, more: int = 5) -> None:
        self.path, self.marked, self.total = into, marked, marked + more
        with mmpc.open(path, mmpc.Append(), create=True, cache_capacity=0) as pc:
            self.page, _ = pc.allocate([])
            for n in range(marked):
                pc.append(self.page, [n])
            pc.flush()
            assert lib.mm_flush_to_marks(pc._attachment.mm, ffi.new("mm_result *")) == 0
            marks = loss.get(path, "marks")
            self.notes = []  # `marks` after each flush since
            for n in range(marked, self.total):
                pc.append(self.page, [n])
                pc.flush()
                self.notes.append(loss.get(path, "marks"))
            self.stable, self.durable = pc.stable_lsn, word(path, MARKED)
            loss.copy(path, into)
            self.noted = loss.get(into, "marks")
            loss.put(into, "marks", marks)

    def found(self) -> list[int]:
        with mmpc.open(self.path, mmpc.Append()) as pc:
            return list(pc.get(self.page).unwrap())

    def change(self, at: int, data: bytes) -> None:
        with open(os.path.join(self.path, "log"), "r+b") as f:
            os.pwrite(f.fileno(), data, at)


@pytest.fixture
def lost(path: str, tmp_path: Any) -> Lost:
    return Lost(path, str(tmp_path / "lost"))


def test_a_flush_that_a_mark_did_not_follow_is_durable(lost: Lost) -> None:
    assert lost.durable < lost.stable  # or this test says nothing
    assert mmpc.verify(lost.path).durable == lost.stable
    assert mmpc.verify(lost.path).ok
    assert lost.found() == list(range(lost.total))
    assert lost.found() == list(range(lost.total))  # and stays


def test_a_recovery_that_is_cut_off_writes_over_no_base(lost: Lost) -> None:
    """One sector of a later note is all that is there of it: it lists no lease, and the base alone leads to the intent.
    The mark that says so must not go over the base: torn, it would take the way with it.
    """
    before, note = loss.get(lost.path, "marks"), lost.notes[1]
    at = next(at for at in range(0, 4 * BLOCK, BLOCK) if before[at : at + BLOCK] != note[at : at + BLOCK])
    torn = bytes(3 * SECTOR) + note[at + 3 * SECTOR : at + 4 * SECTOR] + bytes(4 * SECTOR)
    loss.put(lost.path, "marks", before[:at] + torn + before[at + BLOCK :])
    promote(lost.path)
    after = loss.get(lost.path, "marks")
    base = at ^ BLOCK
    assert after[base : base + BLOCK] == before[base : base + BLOCK]
    assert after[at : at + BLOCK] != torn
    loss.put(lost.path, "marks", before[:at] + torn + before[at + BLOCK :])  # nothing of it reached the disk
    assert lost.found() == list(range(lost.total))


def promote(path: str) -> None:
    """The first step of a recovery after a loss of power."""
    config = _files.read_config(path)
    assert config is not None
    with _files.Descriptors() as files:
        files.open(path, ("log", "marks"))
        options = _store.Options(path, config.materializer, 0, 10, None, False)
        c, r = _store._core_config(config, options, files), ffi.new("mm_result *")
        assert lib.mm_promote(c, *_store._pairs(config), r) == 0


def test_what_the_newest_one_lists_and_is_not_there_takes_it_back_alone(lost: Lost) -> None:
    """As when the power went in the middle of its sync: the one before it still holds."""
    at, _epoch, _payload = intents(lost.path)[-1]
    record = max(a for a in addresses(lost.path) if a < at)
    lost.change(record, bytes(RECORD.size))
    assert mmpc.verify(lost.path).ok
    assert lost.found() == list(range(lost.total - 1))
    with mmpc.open(lost.path, mmpc.Append()) as pc:
        pc.append(lost.page, [100])
        pc.flush()
        loss.copy(lost.path, lost.path + "2")
    with mmpc.open(lost.path + "2", mmpc.Append()) as pc:
        assert pc.get(lost.page).unwrap() == [*range(lost.total - 1), 100]


def addresses(path: str) -> list[int]:
    """Where records of pages begin."""
    log, found = loss.get(path, "log"), []
    at = BLOCK + LEASE_HEADER.size
    while at + RECORD.size <= len(log):
        commit, shape, *_ = RECORD.unpack_from(log, at)
        if not commit >> 32:
            break
        if shape >> 40 & 7 != INTENT:
            found.append(at)
        at += span_of(body_of(shape))
    return found


def test_none_of_them_on_the_disk_leaves_what_the_mark_says(lost: Lost) -> None:
    lost.change(addresses(lost.path)[3 + lost.marked], bytes(4096))
    assert mmpc.verify(lost.path).durable == lost.durable
    assert lost.found() == list(range(lost.marked))


def test_with_the_mark_behind_it_a_damaged_record_is_damage(lost: Lost) -> None:
    """The mark is written after the sync: what it lists was there."""
    loss.put(lost.path, "marks", lost.noted)
    record = addresses(lost.path)[-1]
    lost.change(record + RECORD.size, b"\xff")
    assert not mmpc.verify(lost.path).ok
    with pytest.raises(mmpc.CorruptionError) as caught:
        lost.found()
    assert caught.value.file == "log"
    assert caught.value.offset == record


def test_damage_below_what_an_intent_lists_is_never_passed_over(lost: Lost) -> None:
    """The first record lies below the mark's fill: the intent does not hold, and the mark says what is missing."""
    lost.change(addresses(lost.path)[2] + RECORD.size, b"\xff")
    assert not mmpc.verify(lost.path).ok
    with pytest.raises(mmpc.CorruptionError):
        lost.found()


def test_a_copy_whose_mark_is_older_than_the_base_believes_none(path: str, tmp_path: Any) -> None:
    """What was written before the base may be missing from it."""
    with mmpc.open(path, mmpc.Append(), create=True, cache_capacity=0) as pc:
        page, _ = pc.allocate([0])
        pc.flush()
        old = loss.get(path, "marks")
    with mmpc.open(path, mmpc.Append(), cache_capacity=0) as pc:
        for n in range(1, 6):
            pc.append(page, [n])
            pc.flush()
        into = loss.copy(path, str(tmp_path / "copy"))
    assert intents(into)
    loss.put(into, "marks", old)
    with pytest.raises(mmpc.CorruptionError, match="marks"):  # a lease knows of a newer mark: the copy is none
        mmpc.open(into, mmpc.Append())
    assert not mmpc.verify(into).ok


def test_the_last_one_who_leaves_makes_a_mark(open_store: Open, path: str) -> None:
    with open_store(mmpc.Append(), create=True) as pc:
        page, _ = pc.allocate([0])
        for n in range(5):
            pc.append(page, [n])
            pc.flush()
        assert word(path, MARKED) < word(path, STABLE)
    assert word(path, MARKED) == word(path, STABLE)


def test_what_was_committed_for_one_that_is_stopped_is_listed(path: str, children: Children) -> None:
    """Between its commit word, which somebody else may have stored, and its fill an owner may stand still: its slot
    says so. It is put into that state from outside.
    """
    pc = mmpc.open(path, mmpc.Append(), create=True)
    page, _ = pc.allocate([0])
    slot = 12288 + 1024 * pc._attachment.slot
    based, written = Gate(), Gate()

    def flush() -> list[tuple[int, int]]:
        with mmpc.open(path, mmpc.Append()) as other, open(os.path.join(path, "control"), "r+b") as f:
            mine, _ = other.allocate([0])
            other.flush()  # a mark: the base
            based.open()
            written.wait()
            announce, lease, _shape, fill = struct.unpack("<4Q", os.pread(f.fileno(), 32, slot + 64))
            assert announce == 0
            before = max(a - lease for a in addresses_of(path, lease, fill))
            os.pwrite(f.fileno(), struct.pack("<Q", before), slot + 88)
            os.pwrite(f.fileno(), struct.pack("<Q", other.stable_lsn + 1), slot + 64)
            other.append(mine, [1])
            other.flush()
            os.pwrite(f.fileno(), struct.pack("<Q", fill), slot + 88)
            os.pwrite(f.fileno(), bytes(8), slot + 64)
            payload = intents(path)[-1][2]
            return [(address, n - fill) for address, n, _ in MARK_LEASE.iter_unpack(payload[8:]) if address == lease]

    child = children.start(flush)
    based.wait()
    pc.append(page, [7])
    written.open()
    listed = child.result(30)
    pc.close()
    assert [more for _lease, more in listed] == [0]


def addresses_of(path: str, lease: int, fill: int) -> list[int]:
    """Where the records of a lease begin."""
    log, at, found = loss.get(path, "log"), lease + LEASE_HEADER.size, []
    while at < lease + fill:
        found.append(at)
        at += span_of(body_of(RECORD.unpack_from(log, at)[1]))
    return found


def test_several_processes_and_a_loss_between_any_two_flushes(
    path: str, tmp_path: Any, children: Children, seed: int
) -> None:
    """Each process flushes what it wrote; then the newest mark that was synced is all that `marks` says."""

    def write(page: int) -> int:
        with mmpc.open(path, mmpc.Append()) as pc:
            for n in range(40):
                pc.append(page, [n])
                pc.flush()
        return word(path, STABLE)

    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pages = [pc.allocate([])[0] for _ in range(4)]
        pc.flush()
        workers = [children.start(write, page) for page in pages]
        for worker in workers:
            worker.result(60)
        for page in pages:
            pc.append(page, [40])
        pc.flush()
        into = loss.copy(path, str(tmp_path / "copy"))
        keep_only(into, word(path, MARKED))
    with mmpc.open(into, mmpc.Append()) as pc:
        for page in pages:
            assert pc.get(page).unwrap() == list(range(41))


def keep_only(path: str, epoch: int) -> None:
    """Marks newer than `epoch` never reached the disk."""
    data = bytearray(loss.get(path, "marks"))
    for at in range(0, 64 * BLOCK, BLOCK):
        if int.from_bytes(data[at + 16 : at + 24], "little") > epoch:
            data[at : at + BLOCK] = bytes(BLOCK)
    loss.put(path, "marks", bytes(data))
