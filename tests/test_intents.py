"""Flushes that need one sync: what they say in the log is found when the mark behind them never reached the disk.

A loss of power is a copy of the files whose `marks` is older: as it was when the last mark was synced.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mmpc
from mmpc import _files, _store
from mmpc._findings import Findings
from mmpc._intents import Intents
from mmpc._lasting import Config, Marks, read_marks
from mmpc._layout import (
    BLOCK,
    INTENT,
    INTENT_HEADER,
    LEASE_HEADER,
    MARK_LEASE,
    PIECE,
    RECORD,
    SECTOR,
    body_of,
    intent_of,
    span_of,
)
from mmpc._log import in_place, lay
from mmpc._native import ffi, lib
from support import loss, minted
from support.children import Children, Gate
from support.minted import GENERATION, Minted

Open = Callable[..., mmpc.PageCache[Any]]
MARKED, STABLE = 2240, 64  # of mm_globals


def word(path: str, offset: int) -> int:
    with open(os.path.join(path, "control"), "rb") as f:
        return int(struct.unpack("<Q", os.pread(f.fileno(), 8, 4096 + offset))[0])


def intents(path: str) -> list[tuple[int, int, bytes]]:
    """(address, epoch, payload) of the intents in the first lease of a store of one process."""
    return sorted(loss.intents(loss.get(path, "log")))


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


@contextlib.contextmanager
def core(path: str) -> Iterator[tuple[Any, ...]]:
    """What the core is told of the files of a store, and the pairs of `config`."""
    config = _files.read_config(path)
    assert config is not None
    with _files.Descriptors() as files:
        files.open(path, ("log", "marks"))
        options = _store.Options(path, config.materializer, 0, 10, None, False)
        yield _store._core_config(config, options, files), *_store._pairs(config)


def promote(path: str) -> None:
    """The first step of a recovery after a loss of power."""
    with core(path) as told:
        assert lib.mm_promote(*told, False, ffi.new("mm_result *")) == 0


def durable_by_the_core(path: str, bounded: bool = False) -> int | None:
    """None: it says that something is lost."""
    newest = ffi.new("uint64_t *")
    with core(path) as told:
        status = lib.mm_durable(*told, bounded, newest, ffi.NULL, ffi.new("mm_result *"))
    assert status in (mmpc.errors.OK, mmpc.errors.CORRUPT)
    return int(newest[0]) if status == mmpc.errors.OK else None


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
            said = intent_of(payload)
            assert said is not None
            return [(address, n - fill) for address, n, _ in said.fills if address == lease]

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


# ---- what an intent carries


class Two:
    """The log of two processes: `one` flushed page 2 of its own and page 3 of the other, whose bytes it carried. Base
    is a mark of epoch 2, before which each has written a page.
    """

    def __init__(self) -> None:
        self.made = Minted()
        self.one, self.other = self.made.lease(blocks=4), self.made.lease()
        for lease in (self.one, self.other):
            self.made.page(lease, 4 + (lease == self.other), b"old", 2)
        self.made.mark(0, 0, 2, [self.one, self.other])
        self.based = self.made.fills[self.other]
        self.made.page(self.one, 2, b"mine", 3)
        self.record = self.made.page(self.other, 3, b"yours", 3)
        self.payload = self.made.said([self.one, self.other], [(self.other, self.based)])

    @property
    def lost(self) -> tuple[int, int]:
        """What no sync has brought to the disk in its place."""
        return self.record, self.other + self.made.fills[self.other]

    def write(self, path: str, **how: Any) -> str:
        return self.made.write(path, (self.lost,), **how)


def believed(path: str, bounded: bool = False) -> tuple[Marks, Intents]:
    """What marks and log say."""
    with open(os.path.join(path, "marks"), "rb") as f:
        marks = read_marks(f.fileno(), minted.UUID, Findings())
    config = Config(minted.UUID, minted.SHIFT, "mmpc.append-1", "", _files_discards(path))
    with open(os.path.join(path, "log"), "rb") as f:
        intents = Intents(config, marks, lambda at, n: os.pread(f.fileno(), n, at), bounded)
        intents.promote()
    other = durable_by_the_core(path, bounded)
    if other is None:
        assert "was durable, says" in str(mmpc.verify(path))
    else:
        assert marks.durable == other  # the two paths agree
    return marks, intents


def _files_discards(path: str) -> tuple[tuple[int, int], ...]:
    config = _files.read_config(path)
    assert config is not None
    return config.discards


def test_what_a_flush_carried_is_read_as_if_it_were_there(path: str, tmp_path: Any) -> None:
    two = Two()
    two.made.intent(two.one, 3, 2, two.payload)
    two.made.witness(0, 1, 3)
    two.write(path)
    marks, intents = believed(path)
    assert marks.durable == marks.witness == 3
    begin, end = two.lost
    assert intents.pieces == [(begin, bytes(two.made.log[begin:end]))]
    report = mmpc.verify(path)
    assert report.ok, report
    assert (report.durable, report.pages) == (3, 4)
    saved = mmpc.salvage(path, str(tmp_path / "saved"))
    assert [p.page for p in saved.lost] == [1]  # nobody wrote it
    assert saved.after.ok
    with mmpc.open(str(tmp_path / "saved"), mmpc.Append()) as pc:
        assert [pc.get(page).unwrap() for page in (2, 3)] == [b"mine", b"yours"]


def test_what_is_there_already_is_no_piece(path: str) -> None:
    two = Two()
    two.made.intent(two.one, 3, 2, two.payload)
    two.made.write(path)
    marks, intents = believed(path)
    assert marks.durable == 3
    assert intents.pieces == []


@pytest.mark.parametrize("roles", list(itertools.permutations(range(3))))
def test_an_intent_may_lie_in_what_another_carries(path: str, roles: tuple[int, int, int]) -> None:
    """`one` carries a record of `other`, `third` carries what `one` wrote since the base, its intent in it; whichever
    of them lies first.
    """
    made = Minted()
    leases = [made.lease() for _ in roles]
    one, other, third = (leases[role] for role in roles)
    made.mark(0, 0, 2, leases)
    begun = LEASE_HEADER.size
    made.page(one, 2, b"mine", 3)
    record = made.page(other, 3, b"yours", 3)
    made.intent(one, 3, 2, made.said([one, other], [(other, begun)]))
    made.intent(third, 4, 2, made.said(leases, [(one, begun)], stable=3))
    made.write(path, [(a + begun, a + made.fills[a]) for a in (one, other)])
    marks, intents = believed(path)
    assert marks.durable == 4
    assert [at for at, _data in intents.pieces] == sorted((one + begun, record))
    report = mmpc.verify(path)
    assert report.ok, report
    assert (report.durable, report.pages) == (4, 2)


def test_without_what_the_first_one_carried_the_second_does_not_hold(path: str) -> None:
    """The chain is broken: the intent that carried the record is damaged, so nothing brings it back."""
    two = Two()
    made, third = two.made, two.made.lease()
    based = dict(made.fills)
    made.fills.update({two.one: two.based, two.other: two.based})
    made.mark(0, 0, 2, [two.one, two.other, third])
    made.fills.update(based)
    at = made.intent(two.one, 3, 2, two.payload)
    made.log[at + RECORD.size + 60] ^= 1
    made.intent(third, 4, 2, made.said([two.one, two.other, third], [], stable=2))
    two.write(path)
    assert believed(path)[0].durable == 2
    two.made.witness(0, 1, 4)
    two.write(path + "2")
    assert "epoch 4 was durable, says a witness in 'marks'" in str(mmpc.verify(path + "2"))


@pytest.mark.parametrize("where", [INTENT_HEADER.size + 2 * MARK_LEASE.size + PIECE.size, 0])
def test_one_of_which_a_byte_is_damaged_carries_nothing(path: str, where: int) -> None:
    """In what it carries, or in its header."""
    two = Two()
    at = two.made.intent(two.one, 3, 2, two.payload)
    two.made.log[at + RECORD.size + where] ^= 1
    two.write(path)
    marks, intents = believed(path)
    assert (marks.durable, intents.pieces) == (2, [])
    report = mmpc.verify(path)
    assert report.ok, report
    assert report.durable == 2


def test_one_that_was_discarded_or_that_a_mark_is_newer_than_carries_nothing(path: str) -> None:
    two = Two()
    two.made.intent(two.one, 3, 2, two.payload)
    two.write(path, discards=((2, 3),))
    assert believed(path)[1].pieces == []
    two.made.fills[two.other] = two.based
    two.made.mark(0, 1, 3, [two.one, two.other])
    two.made.fills[two.other] = two.lost[1] - two.other + (two.record - two.other - two.based)
    two.made.write(path + "2", ((two.record, two.record + 40),))
    marks, intents = believed(path + "2")
    assert (marks.durable, intents.pieces) == (3, [])


def test_what_one_carries_whose_base_is_missing_is_put_in_place_all_the_same(path: str) -> None:
    """It is not believed, but what it carries was in memory at its place; another one may need it."""
    two = Two()
    two.made.intent(two.one, 3, 1 << 20, two.payload)
    two.write(path)
    marks, intents = believed(path)
    assert marks.durable == 2
    assert [at for at, _data in intents.pieces] == [two.record]


def header(stable: int, listed: int, carried: int) -> bytes:
    return INTENT_HEADER.pack(stable, listed, carried)


MALFORMED = {
    "nothing": lambda _two, _good: b"",
    "half a header": lambda _two, good: good[:12],
    "more leases than it has": lambda _two, good: header(1, 64, 1) + good[16:],
    "too many leases": lambda two, _good: header(1, 65, 0) + 65 * MARK_LEASE.pack(two.one, 64, GENERATION),
    "as many leases as a number says": lambda _two, good: header(1, 2**32 - 1, 1) + good[16:],
    "as many pieces as a number says": lambda _two, good: header(1, 2, 2**32 - 1) + good[16:],
    "a piece less than it says": lambda _two, good: header(1, 2, 2) + good[16:],
    "a piece more than it says": lambda _two, good: header(1, 2, 0) + good[16:],
    "a lease that it does not list": lambda two, good: piece(good, 2, two.based),
    "a lease far beyond": lambda two, good: piece(good, 2**32 - 1, two.based),
    "from the header of a lease": lambda two, good: piece(good, 1, 56, two.based - 56),
    "from between two words": lambda two, good: piece(good, 1, two.based + 4, -4),
    "from beyond the fill": lambda two, good: piece(good, 1, two.lost[1] - two.other + 8),
    "cut short": lambda _two, good: good[:-8],
    "half a piece": lambda _two, good: good[: 16 + 32 + 4],
    "eight bytes more": lambda _two, good: good + bytes(8),
    "a fill between two words": lambda _two, good: listing(good, 0, 0, 4) + bytes(4),
    "a fill of 4 GiB": lambda _two, good: good[: 16 + 24] + struct.pack("<I", 2**32 - 8) + good[16 + 28 :],
}
NOWHERE = {  # it may say so, but there is no such place
    "a lease at no address": lambda _two, good: listing(good, 2**64 - BLOCK, 0, 0),
    "a lease beyond the file": lambda _two, good: listing(good, 1 << 30, 0, 0),
    "a lease that is none": lambda two, good: listing(good, two.other + BLOCK, 0, 0),
    "a lease of another life": lambda two, good: listing(good, two.other, 1, 0),
    "a fill beyond the lease": lambda two, good: filled(two, good, BLOCK + 8),
}


def piece(good: bytes, index: int, start: int, more: int = 0) -> bytes:
    """Another head of the piece that it carries, and so many bytes more of it."""
    return good[: 16 + 32] + PIECE.pack(index, start) + b"?" * more + good[16 + 32 + 8 + max(0, -more) :]


def listing(good: bytes, address: int, life: int, more: int) -> bytes:
    """Another lease as the second one: it is the one of the piece."""
    before, fill, generation = MARK_LEASE.unpack_from(good, 16 + 16)
    return good[: 16 + 16] + MARK_LEASE.pack(address or before, fill + more, generation + life) + good[16 + 32 :]


def filled(two: Two, good: bytes, fill: int) -> bytes:
    """A piece that fits what the payload says, and no lease."""
    return listing(good, 0, 0, fill - two.made.fills[two.other])[: 16 + 40] + b"?" * (fill - two.based)


@pytest.mark.parametrize("how", [*MALFORMED, *NOWHERE])
def test_one_that_cannot_be_counts_for_nothing(path: str, how: str) -> None:
    """Its checksum holds: who wrote it was no mmpc."""
    two = Two()
    payload = (MALFORMED | NOWHERE)[how](two, two.payload)
    assert (intent_of(payload) is None) == (how in MALFORMED)
    two.made.intent(two.one, 3, 2, payload)
    two.write(path)
    marks, intents = believed(path)
    assert (marks.durable, intents.pieces) == (2, [])
    assert believed(path, bounded=True)[0].durable == 2
    report = mmpc.verify(path)
    assert report.ok, report
    assert report.durable == 2


def test_what_reaches_beyond_the_log_is_put_nowhere(path: str) -> None:
    two = Two()
    two.made.intent(two.one, 3, 2, two.payload)
    two.write(path)
    os.truncate(os.path.join(path, "log"), two.lost[1] - 8)
    marks, intents = believed(path)
    assert (marks.durable, intents.pieces) == (2, [])


def test_one_that_is_not_committed_says_nothing(path: str) -> None:
    two = Two()
    two.made.intent(two.one, 4, 2, two.made.said([two.one], stable=3), committed=False)
    two.write(path)
    assert believed(path)[0].durable == 2
    assert mmpc.verify(path).ok


def test_no_bytes_make_a_reader_fail(path: str, seed: int) -> None:
    """Whole intents with any bytes of one changed, and with any bytes at all."""
    rng = random.Random(seed)
    for n in range(300):
        two = Two()
        payload = bytearray(two.payload)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(payload))
            payload[at] = rng.choice((0, 1, 64, 127, 128, 255, rng.randrange(256)))
        two.made.intent(two.one, 3, 2, bytes(payload) if n % 3 else rng.randbytes(rng.randrange(200)))
        log = two.made.write(f"{path}{n}", (two.lost,))
        marks, intents = believed(log)
        assert marks.durable in (2, 3)
        assert all(BLOCK <= at < at + len(data) <= len(two.made.log) for at, data in intents.pieces)


def test_pieces_in_order_are_as_if_written(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        disk = rng.randbytes(64)
        memory, pieces = bytearray(disk), []
        for _ in range(rng.randrange(8)):
            at = rng.randrange(60)
            data = rng.randbytes(rng.randrange(1, min(16, 65 - at)))
            memory[at : at + len(data)] = data
            lay(pieces, at, data)
        ends = [(at, at + len(data)) for at, data in pieces]
        assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(ends))
        for _ in range(20):
            at = rng.randrange(64)
            end = rng.randrange(at, 65)
            assert in_place(pieces, at, disk[at:end]) == memory[at:end]


# ---- witnesses


def test_a_witness_of_what_nothing_says_is_damage(path: str) -> None:
    """The flush ended, and its intent is gone."""
    two = Two()
    two.made.witness(0, 1, 3)
    two.write(path)
    report = mmpc.verify(path)
    assert [(p.file, p.message) for p in report.damage] == [
        ("marks", "epoch 3 was durable, says a witness in 'marks'; the newest mark says 2")
    ]


def test_a_mark_that_is_as_new_bears_a_witness_out(path: str) -> None:
    two = Two()
    two.made.mark(1, 0, 3, [two.one, two.other])
    two.made.witness(0, 1, 3)
    two.made.write(path)
    assert mmpc.verify(path).ok


def test_a_witness_is_no_sector_of_a_mark_and_no_damage(path: str) -> None:
    two = Two()
    two.made.mark(0, 1, 1, [two.one])
    two.made.witness(0, 1, 2)
    two.made.write(path, ((two.one, two.one + 40),))
    findings = Findings()
    with open(os.path.join(path, "marks"), "rb") as f:
        marks = read_marks(f.fileno(), minted.UUID, findings)
    assert findings.problems == []
    assert (marks.durable, marks.witness, marks.sectors, marks.whole, marks.hidden) == (2, 2, 8, 15, False)
    assert (two.one, GENERATION) in marks.named


@pytest.mark.parametrize(("whole", "zero", "hidden"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_a_witness_makes_no_damaged_block_whole(path: str, whole: int, zero: int, hidden: bool) -> None:
    """The other sectors say whether a mark is lost."""
    two = Two()
    two.made.mark(0, 1, 3, [two.one, two.other])
    two.made.witness(0, 1, 1)
    for sector in range(1, 8 - whole - zero):
        at = (8 + sector) * SECTOR
        two.made.marks[at] = two.made.marks[at][:100] + b"?" + two.made.marks[at][101:]
    for sector in range(8 - zero, 8):
        two.made.marks[(8 + sector) * SECTOR] = bytes(SECTOR)
    two.made.write(path)
    findings = Findings()
    with open(os.path.join(path, "marks"), "rb") as f:
        marks = read_marks(f.fileno(), minted.UUID, findings)
    assert (marks.hidden, findings.damaged) == (hidden, hidden)
    assert marks.durable == (3 if whole else 2)


def test_a_damaged_witness_is_a_damaged_sector(path: str) -> None:
    two = Two()
    two.made.witness(0, 1, 3)
    at = 8 * SECTOR
    two.made.marks[at] = two.made.marks[at][:20] + b"?" + two.made.marks[at][21:]
    two.made.write(path)
    report = mmpc.verify(path)
    assert report.ok
    assert [p.offset for p in report.problems if p.file == "marks"] == [at]


def test_a_witness_of_another_place_is_none(path: str) -> None:
    two = Two()
    two.made.witness(0, 1, 3)
    two.made.marks[16 * SECTOR] = two.made.marks.pop(8 * SECTOR)
    two.made.write(path)
    assert believed(path)[0].witness == 0


def test_on_the_same_boot_an_intent_counts_as_far_as_a_witness_says(path: str) -> None:
    """What is in memory and not on the disk cannot be told apart: the sync of the newest one may have failed."""
    two = Two()
    two.made.intent(two.one, 3, 2, two.payload)
    two.made.intent(two.one, 4, 2, two.made.said([two.one, two.other]))
    two.made.write(path)
    assert believed(path, bounded=True)[0].durable == 2
    assert believed(path)[0].durable == 4
    two.made.witness(0, 1, 3)
    two.made.write(path + "2")
    assert believed(path + "2", bounded=True)[0].durable == 3
    assert believed(path + "2")[0].durable == 4


def test_a_store_that_begins_with_a_witness_is_one(path: str) -> None:
    """Its `config` is lost, and the log begins with nothing: nobody may call it another program's directory."""
    two = Two()
    two.made.witness(0, 0, 2)
    two.made.write(path, ((0, SECTOR),))
    os.unlink(os.path.join(path, "config"))
    report = mmpc.verify(path)
    assert [p.file for p in report.damage] == ["config"]
