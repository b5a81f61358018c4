"""The log as its bytes say: segments, leases, records. A second path beside csrc/scan.c, by docs/format.md alone.

Somebody may write to the log meanwhile. A lease is read in one piece, after `marks`; what a writer was just about to
write ends it, as it ends the scan of a recovery. Who needs a record that was not there yet asks `find`, which looks
again. A segment may be used again meanwhile, too: who found something wrong asks `segment_now`, or `look`.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right

from ._compression import decompressed
from ._extent import Extent, Run, run_at
from ._findings import Findings, Problem
from ._layout import (
    ADDRESS_MASK,
    BASE,
    BLOCK,
    COMMIT_XOR,
    COMPRESSED,
    EXTENT,
    EXTENT_BODY,
    FREE,
    INDEX,
    INNER,
    INTENT,
    LEASE_HEADER,
    LEASE_MAGIC,
    LEASE_SUMMED,
    MASK32,
    PAGE_MASK,
    RECORD,
    RETIRED_AT,
    RETIRED_MAGIC,
    RETIREMENTS_AT,
    RUN_HEADER,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    SEGMENT_RETIRED,
    SEGMENT_STAMP,
    STAMP_MAGIC,
    body_of,
    colour_of,
    crc,
    crc_word,
    inner_of,
    intent_of,
    sane,
    span_of,
)
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._lasting import Config

    Piece = tuple[int, bytes]  # where it belongs in the log, and the bytes

SCRATCH, COMMITTED, PART = 0, 1, 2  # standing of a whole record: no commit word; commits; inside a group


# Of the block of a segment's header.
_UNUSED = (
    (SEGMENT_HEADER.size, RETIRED_AT[0]),
    (RETIRED_AT[0] + SEGMENT_RETIRED.size, RETIRED_AT[1]),
    (RETIRED_AT[1] + SEGMENT_RETIRED.size, BLOCK),
)


class Segment:
    """One segment with a header that holds."""

    __slots__ = ("epoch", "generation", "number", "of_run", "retired", "salt", "seed", "stable", "torn")

    def __init__(
        self, number: int, generation: int, salt: int, epoch: int, stable: int, seed: int, retired: int = 0
    ) -> None:
        self.number, self.generation, self.salt = number, generation, salt
        self.epoch, self.stable, self.seed = epoch, stable, seed
        self.torn = False  # its header does not hold
        self.of_run = False  # it has had no life since it was one of a run, as the header of that says
        self.retired = retired  # durable from this epoch on, nothing in it is needed; 0: it is in use


class Lease:
    """One lease: what its header says, and where its whole records end."""

    __slots__ = (
        "address",
        "counts",
        "end",
        "ended",
        "ended_epoch",
        "filled",
        "followed",
        "previous",
        "previous_generation",
        "size",
        "stable",
    )

    def __init__(
        self, address: int, size: int, previous: tuple[int, int, int], stable: int, ended: tuple[int, int]
    ) -> None:
        self.address, self.size = address, size
        self.previous, self.previous_generation, self.filled = previous
        self.ended, self.ended_epoch = ended  # bytes used when it ended, and the epoch that covers them; 0: it has not
        self.stable = stable
        self.end = address + LEASE_HEADER.size
        self.counts = self.followed = False


class Record:
    """One whole record."""

    __slots__ = ("address", "colour", "depth", "kind", "length", "page", "prev", "shape", "standing", "tag", "version")

    def __init__(
        self, address: int, shape: int, page_colour: int, version: int, prev_colour: int, standing: int
    ) -> None:
        self.address, self.shape, self.version, self.standing = address, shape, version, standing
        self.length, self.depth, self.kind = shape & MASK32, shape >> 32 & 255, shape >> 40 & 7
        self.tag = shape >> 48 & 255
        self.page = page_colour & PAGE_MASK
        self.colour = colour_of(page_colour, prev_colour)
        self.prev = (prev_colour & ADDRESS_MASK) << 3


def whole(data: bytes, at: int, address: int, seed: int) -> tuple[int, int, int, int, int] | None:
    """The five words of the record at `at` of `data`, if its checksum and commit word hold."""
    if at + RECORD.size > len(data):
        return None
    fields = RECORD.unpack_from(data, at)
    word, n = fields[0], body_of(fields[1])
    if at + RECORD.size + n > len(data):
        return None
    start = ffi.from_buffer(data)
    sum_ = lib.mm_crc32c(crc_word(address, seed), start + (at + 40), n)
    sum_ = lib.mm_crc32c(sum_, start + (at + 8), 32)
    commit = word >> 32
    if sum_ != word & MASK32 or (commit and commit != (sum_ ^ COMMIT_XOR or MASK32)):
        return None
    return fields


def lease_at(data: bytes, at: int, address: int, segment: Segment, room: int) -> Lease | None:
    """The lease whose header stands at `at` of `data`; `room`: bytes from there to the end of the segment."""
    if at + LEASE_HEADER.size > len(data):
        return None
    sum_, magic, own, blocks, generation, previous, filled, before, stable, end, epoch = LEASE_HEADER.unpack_from(
        data, at
    )
    if magic != LEASE_MAGIC or own != address or generation != segment.generation or not 0 < blocks * BLOCK <= room:
        return None
    if sum_ != crc(data[at + 4 : at + LEASE_SUMMED], segment.seed):
        return None
    used = end & MASK32
    whole_end = end >> 32 == crc_word(epoch, crc_word(used, crc_word(address, segment.seed)))
    if not whole_end or not LEASE_HEADER.size <= used <= blocks * BLOCK:
        used = epoch = 0
    return Lease(address, blocks * BLOCK, (previous, before, filled), stable, (used, epoch))


def segment_at(data: bytes, number: int, uuid: bytes) -> Segment | None:
    """The segment whose header `data` begins with."""
    if len(data) < SEGMENT_HEADER.size:
        return None
    magic, sum_, generation, own, salt, epoch, stable, owner = SEGMENT_HEADER.unpack_from(data)
    if magic != SEGMENT_MAGIC or own != number or owner != uuid or sum_ != crc(data[12 : SEGMENT_HEADER.size]):
        return None
    when = max((r.retired for r in retirements(data, number, uuid) if r.generation == generation), default=0)
    return Segment(number, generation, salt, epoch, stable, crc_word(salt, crc(uuid)), when)


def retirements(data: bytes, number: int, uuid: bytes) -> list[Segment]:
    """What a segment says of the retirement of its generations, which holds also while its header is written anew."""
    found = []
    for at in RETIRED_AT:
        part = data[at : at + SEGMENT_RETIRED.size]
        if len(part) < SEGMENT_RETIRED.size:
            continue
        magic, sum_, generation, own, epoch = SEGMENT_RETIRED.unpack(part)
        if magic == RETIRED_MAGIC and own == number and sum_ == crc(part[12:], crc(uuid)):
            found.append(Segment(number, generation, 0, 0, 0, 0, epoch))
    return found


# ---- bytes that are not in their place: in order, and none of them touches the next


def _end(piece: Piece) -> int:
    return piece[0] + len(piece[1])


def lay(pieces: list[Piece], at: int, data: bytes) -> None:
    """Adds one, over what is there. Those that it touches become one with it: intents carry what follows upon what
    earlier ones carried, so there are few, however many intents there are.
    """
    low = bisect_left(pieces, at, key=_end)
    high = bisect_right(pieces, at + len(data), key=lambda piece: piece[0])
    if low < high:
        (first, before), (last, behind) = pieces[low], pieces[high - 1]
        data = before[: max(0, at - first)] + data + behind[max(0, at + len(data) - last) :]
        at = min(at, first)
    pieces[low:high] = [(at, data)]


def in_place(pieces: Sequence[Piece], at: int, data: bytes) -> bytes:
    """The bytes that were read at `at`, with the pieces in their places."""
    low, end = bisect_right(pieces, at, key=_end), at + len(data)
    if low == len(pieces) or pieces[low][0] >= end:
        return data
    patched = bytearray(data)
    for start, piece in pieces[low : bisect_left(pieces, end, key=lambda piece: piece[0])]:
        a, b = max(start, at), min(start + len(piece), end)
        patched[a - at : b - at] = piece[a - start : b - start]
    return bytes(patched)


class Log:
    """Everything that is whole in the log, in order of address.

    A record counts that a recovery would take: committed, its group complete, its colour in none of the discards and
    not above `limit`. Above `limit` a loss of power leaves what it likes: a commit word whose group is not there, a
    record whose predecessor is not. `newest` and `newest_durable` give for each page the index of the newest record
    that counts; not above `durable` for the second. A lease counts that holds a record that counts.

    `pieces`: bytes that a loss of power kept from their places, as intents carry them; they are read as if they were
    there.

    `broken`: segments whose header is neither whole nor zero. That is damage only where something must be there, as
    `missed` says: else it is the header of a segment that was being opened, and what recovers calls the segment free.
    """

    def __init__(
        self,
        fd: int,
        config: Config,
        durable: int,
        limit: int,
        findings: Findings,
        pieces: Sequence[Piece] = (),
    ) -> None:
        self.fd, self.uuid, self.shift, self.discards = fd, config.uuid, config.shift, config.discards
        self.pieces = pieces
        self.durable, self.limit, self.findings = durable, limit, findings
        self.native = config.materializer.startswith("mmpc.")
        self.size = os.fstat(fd).st_size
        self.segments: dict[int, Segment] = {}
        self.leases: dict[int, Lease] = {}
        self.addresses, self.shapes, self.page_colours = array("Q"), array("Q"), array("Q")
        self.versions, self.prev_colours, self.standings = array("Q"), array("Q"), bytearray()
        self.newest: dict[int, int] = {}
        self.newest_durable: dict[int, int] = {}
        self.committed = self.bytes = self.discarded = self.max_colour = 0
        self.later: dict[int, int] = {}  # what else knows of a durable epoch: intents, segments that may be used again
        self.allocated = False  # there is a page that a finished store made, durable or not
        self.broken: set[int] = set()
        self.missed: set[int] = set()  # segments without a header of which something was asked for
        self.runs: dict[int, Run] = {}  # by first segment
        self.covered: dict[int, Run] = {}  # the newest run that a segment is, or was, one of
        self._late: dict[int, Record | None] = {}
        self._extents: set[tuple[int, int]] = set()  # those that were looked at, and are whole
        self._frames: set[tuple[int, int]] = set()  # compressed payloads that can be decompressed: address, version
        self.flags = 0  # of all records, as bits of `shape`

    # ---- reading

    def read(self, at: int, n: int) -> bytes:
        """Bytes of the log; fewer at its end, none at an address that no file has: it may come from bytes that were
        written over since their checksum was looked at. What the device cannot read is damage, and reads as nothing.
        """
        parts, begin = [], at
        while n > 0 and at <= ADDRESS_MASK << 3:
            try:
                part = os.pread(self.fd, min(n, 1 << 30), at)
            except OSError as e:
                self.findings.damage("log", at, f"cannot be read: {e.strerror}")
                break
            if not part:
                break
            parts.append(part)
            at, n = at + len(part), n - len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return in_place(self.pieces, begin, data) if self.pieces else data

    def scan(self, progress: Callable[[int], None]) -> None:
        """Reads all of it."""
        step = 1 << self.shift
        self._find_runs()
        for number in range((self.size + step - 1) >> self.shift):
            self._scan_segment(number)
            progress(min((number + 1) << self.shift, self.size))

    def _find_runs(self) -> None:
        """The header of a run says of which generation all its segments are, until one has a header of a later one."""
        self.runs, self.covered = {}, {}
        for number in range(self.size + (1 << self.shift) - 1 >> self.shift):
            run = run_at(self.read(number << self.shift, RUN_HEADER.size), number, self.uuid)
            before = self.covered.get(number)
            if run is None or (before is not None and run.generation <= before.generation):
                continue
            self.runs[number] = run
            for i in range(number, min(number + run.segments, self.size + (1 << self.shift) - 1 >> self.shift)):
                if i not in self.covered or self.covered[i].generation < run.generation:
                    self.covered[i] = run

    def _scan_segment(self, number: int) -> None:
        base = number << self.shift
        end = min(base + (1 << self.shift), self.size)
        head = self.read(base, BLOCK)
        segment = self._segment(head, number)
        if segment is not None and segment.of_run:
            self.segments[number] = segment
            self._stamp(number)
            return
        if segment is None and any(head[: SEGMENT_HEADER.size]):  # a writer may be at it
            head = self.read(base, BLOCK)
            segment = self._segment(head, number)
        if segment is None:
            if any(head[: SEGMENT_HEADER.size]):
                self.broken.add(number)
            return
        if number == 0:
            head = head[:RETIREMENTS_AT] + bytes(8) + head[RETIREMENTS_AT + 8 :]
        if not segment.torn and any(any(head[a:b]) for a, b in _UNUSED):
            self.findings.warn("log", base + SEGMENT_HEADER.size, "unused bytes behind a segment header are not zero")
        said = [at for at in RETIRED_AT if any(head[at : at + SEGMENT_RETIRED.size])]
        if len(said) > len(retirements(head, number, self.uuid)):
            self.findings.warn("log", base + said[0], "what the segment says of its retirement is damaged")
        self.segments[number] = segment
        if self.gone(segment) and segment.retired <= self.durable:  # until then it is not overwritten
            return
        self._stamp(number)
        at = base + BLOCK
        while at + BLOCK <= end:
            head = self.read(at, BLOCK)
            lease = lease_at(head, 0, at, segment, (number + 1 << self.shift) - at)
            if lease is None:
                self._later_life(head, at, segment.generation)
                at += BLOCK
                continue
            self.leases[at] = lease
            if not lease.ended and any(head[LEASE_SUMMED : LEASE_SUMMED + 8]):
                self.findings.warn("log", at + LEASE_SUMMED, "what the lease says of its end is damaged")
            n = min(at + lease.size, end) - at
            self._scan_lease(lease, head if n == BLOCK else self.read(at, n), segment.seed)
            at += lease.size

    def _stamp(self, number: int) -> None:
        """What was written to the end of the segment when it was used again, before anything else."""
        at = (number + 1 << self.shift) - SEGMENT_STAMP.size
        data = self.read(at, SEGMENT_STAMP.size)
        if len(data) < SEGMENT_STAMP.size:
            return
        magic, sum_, _generation, own, stable, _zero = SEGMENT_STAMP.unpack(data)
        if magic == STAMP_MAGIC and own == number and sum_ == crc(data[12:], crc(self.uuid)):
            self.later[at] = stable

    def _later_life(self, head: bytes, at: int, generation: int) -> None:
        """A lease of the next generation, where the header is of this one: it was copied before, in a store in use."""
        _sum, magic, own, _blocks, of, _previous, _filled, _before, stable, *_end = LEASE_HEADER.unpack_from(head)
        if magic == LEASE_MAGIC and own == at and of == generation + 1:
            self.later[at] = stable

    def _scan_lease(self, lease: Lease, data: bytes, seed: int) -> None:
        """Appends the whole records of a lease, up to the first that is not."""
        start, number, sum_of, unpack = ffi.from_buffer(data), ffi.new("uint64_t *"), lib.mm_crc32c, RECORD.unpack_from
        base, at, end, inner, inner_page = lease.address, LEASE_HEADER.size, len(data), 0, -1
        flags = 0
        while at + 40 <= end:
            word, shape, page_colour, version, prev_colour = unpack(data, at)
            n = shape & MASK32
            if shape & INDEX:
                n += shape >> 56
            stop = at + (n + 47 & -8)
            if stop > end:
                break
            number[0] = base + at
            sum_ = sum_of(sum_of(sum_of(seed, number, 8), start + (at + 40), n), start + (at + 8), 32)
            commit = word >> 32
            if sum_ != word & MASK32 or (commit and commit != (sum_ ^ COMMIT_XOR or MASK32)):
                break
            flags |= shape
            page = page_colour & PAGE_MASK
            if shape >> 40 & 7 == INTENT:  # of no page
                intent = intent_of(data[at + 40 : at + 40 + (shape & MASK32)]) if commit else None
                if intent is not None and not self._discarded(colour_of(page_colour, prev_colour)):
                    self.later[base + at] = intent.stable
                at, inner, inner_page = stop, 0, -1
                continue
            if shape & INNER:
                inner = inner + 1 if page == inner_page else 1
                inner_page = page
                standing = PART
                if commit:
                    self.findings.damage("log", base + at, "a record inside a group has a commit word", page)
            else:
                standing = COMMITTED if commit else SCRATCH
                if commit and inner_of(shape) > (inner if page == inner_page else 0):
                    if self.counts(colour_of(page_colour, prev_colour)):
                        said = f"a group lacks some of its {inner_of(shape)} records"
                        self.findings.damage("log", base + at, said, page)
                    standing = SCRATCH
                inner, inner_page = 0, -1
            self.addresses.append(base + at)
            self.shapes.append(shape)
            self.page_colours.append(page_colour)
            self.versions.append(version)
            self.prev_colours.append(prev_colour)
            self.standings.append(standing)
            if standing == COMMITTED:
                self._count(lease, page, len(self.standings) - 1, version, colour_of(page_colour, prev_colour))
            at = stop
        self.flags |= flags
        lease.end = base + at
        self.bytes += at - LEASE_HEADER.size

    def _count(self, lease: Lease, page: int, index: int, version: int, colour: int) -> None:
        self.committed += 1
        if colour > self.max_colour:
            self.max_colour = colour
        if self._discarded(colour):
            self.discarded += 1
            return
        self.allocated = self.allocated or page >= 2
        if colour > self.limit:
            return
        lease.counts = True
        before = self.newest.get(page)
        if before is None or self.versions[before] < version:
            self.newest[page] = index
        elif self.versions[before] == version:
            self.findings.damage("log", self.addresses[index], "two committed records have the same version", page)
        if colour <= self.durable:
            before = self.newest_durable.get(page)
            if before is None or self.versions[before] < version:
                self.newest_durable[page] = index

    def _discarded(self, colour: int) -> bool:
        return any(lo < colour <= hi for lo, hi in self.discards) if self.discards else False

    def counts(self, colour: int) -> bool:
        """Whether a recovery takes the committed records of this colour."""
        return colour <= self.limit and not self._discarded(colour)

    def gone(self, segment: Segment) -> bool:
        """It was retired in a state that counts: nothing in it is needed, and it may be overwritten."""
        return segment.retired > 0 and self.counts(segment.retired)

    def needed(self, address: int, generation: int) -> bool:
        """A lease of this generation is needed still: its segment was not retired, and is not used again.

        So is one of the generation after a retired one, or a run: where that is named the header was whole, and is
        damaged now. Others are of earlier lives, also larger ones: they are drawn anew when the log was truncated.
        """
        segment = self.segment_now(address >> self.shift)
        if segment is not None and segment.torn:
            return generation == segment.generation + 1
        return segment is None or (segment.generation == generation and not self.gone(segment))

    def segment_now(self, number: int) -> Segment | None:
        """The segment as its header says now: it may have been retired, or used again, since it was read."""
        head = self.read(number << self.shift, BLOCK)
        segment = self._segment(head, number)
        if segment is None or (segment.of_run and self._other_run(head, number)):  # a run may have been taken since
            self._find_runs()
            segment = self._segment(self.read(number << self.shift, BLOCK), number)
        return segment

    def _other_run(self, head: bytes, number: int) -> bool:
        """The segment is not in the run that it was in, or the first of another one."""
        run, own = self.covered[number], run_at(head, number, self.uuid)
        now = run_at(self.read(run.number << self.shift, RUN_HEADER.size), run.number, self.uuid)
        return now is None or now.generation != run.generation or (own is not None and own.generation > run.generation)

    def _segment(self, head: bytes, number: int) -> Segment | None:
        """By its header, or, where that was torn by who was about to use it again, by its retirement."""
        segment = segment_at(head, number, self.uuid)
        run = self.covered.get(number)
        own = [segment, *retirements(head, number, self.uuid)]
        if run is not None and all(s is None or s.generation <= run.generation for s in own):
            salt = run.salt if run.number == number else 0
            segment = Segment(number, run.generation, salt, run.epoch, run.stable, 0)
            segment.torn = segment.of_run = True
            return segment
        if segment is None:
            retired = [s for s in retirements(head, number, self.uuid) if self.gone(s)]
            segment = max(retired, key=lambda s: s.retired, default=None)
            if segment is not None:
                segment.torn = True
        return segment

    # ---- looking up

    def record(self, index: int) -> Record:
        """The record of an index."""
        return Record(
            self.addresses[index],
            self.shapes[index],
            self.page_colours[index],
            self.versions[index],
            self.prev_colours[index],
            self.standings[index],
        )

    def index_of(self, address: int) -> int | None:
        """The index of the record at an address, if it was read."""
        index = bisect_left(self.addresses, address)
        return index if index < len(self.addresses) and self.addresses[index] == address else None

    def find(self, address: int) -> Record | None:
        """The whole record at an address, read again if it was not there when its lease was read."""
        index = self.index_of(address)
        if index is not None:
            return self.record(index)
        if address not in self._late:
            self._late[address] = self.look(address)
        return self._late[address]

    def segment(self, number: int) -> Segment | None:
        """A segment of which something must be there, as it is now."""
        found = self.segment_now(number)
        if found is None:
            self.missed.add(number)
        return found

    def judge_headers(self) -> None:
        """At the end: a header that does not hold, of a segment of which something must be there, is damage."""
        for number in sorted(self.broken & self.missed):
            base = number << self.shift
            self.findings.damage("log", base, f"the header of segment {number} is damaged: all in it is lost")

    def look(self, address: int) -> Record | None:
        """The whole record that is at an address now."""
        segment = self.segment(address >> self.shift)
        inside = address & (1 << self.shift) - 1
        if segment is None or inside < BLOCK + LEASE_HEADER.size or address % 8:
            return None
        head = self.read(address, RECORD.size)
        if len(head) < RECORD.size:
            return None
        n = body_of(RECORD.unpack(head)[1])
        if inside + RECORD.size + n > 1 << self.shift:
            return None
        fields = whole(self.read(address, RECORD.size + n), 0, address, segment.seed)
        if fields is None:
            return None
        word, shape, page_colour, version, prev_colour = fields
        standing = PART if shape & INNER else COMMITTED if word >> 32 else SCRATCH
        return Record(address, shape, page_colour, version, prev_colour, standing)

    def refresh(self, address: int) -> Lease | None:
        """The lease at an address as it is now: its end may have moved since it was read."""
        number = address >> self.shift
        segment = self.segment(number)
        room = ((number + 1) << self.shift) - address
        if segment is None or address % BLOCK or room < BLOCK:
            return None
        lease = lease_at(self.read(address, BLOCK), 0, address, segment, room)
        if lease is None:
            return None
        data, at = self.read(address, lease.size), LEASE_HEADER.size
        while (fields := whole(data, at, address + at, segment.seed)) is not None:
            at += span_of(body_of(fields[1]))
        lease.end = min(address + at, address + lease.size)
        return lease

    # ---- judging pages

    def chain(
        self, record: Record, find: Callable[[int], Record | None] | None = None
    ) -> list[Record] | Problem:
        """The chain under a record, newest first, or the first thing that is wrong with it."""
        page, chain, find = record.page, [record], find or self.find
        while True:
            wrong = self._wrong_in(record)
            if wrong is not None:
                return Problem("log", record.address, wrong, page)
            damaged = self._wrong_with_extent(record) if record.shape & EXTENT else None
            if damaged is None and record.shape & COMPRESSED:
                damaged = self._wrong_with_frame(record)
            if damaged is not None:
                return damaged
            if record.kind in (BASE, FREE):
                return chain
            older = find(record.prev)
            if older is None:
                what = f"the record that the one at {record.address} continues is damaged"
                return Problem("log", record.prev, what, page)
            fits = older.page == page and older.depth + 1 == record.depth and older.version < record.version
            if not fits or older.kind == FREE:
                return Problem("log", record.address, f"does not continue the record at {older.address}", page)
            if older.standing == SCRATCH:
                what = f"is not committed, but the record at {record.address} continues it"
                return Problem("log", older.address, what, page)
            chain.append(older)
            record = older

    def _wrong_in(self, record: Record) -> str | None:
        wrong = sane(record.shape, record.version, record.prev)
        tagged = self.native and record.kind != FREE and record.page >= 2
        if record.kind == INTENT:
            wrong = "what a flush intended is no part of a page"
        if wrong is None and (record.tag != 0) != tagged:
            wrong = f"class {record.tag} cannot be under the store's materializer"
        return wrong

    def extent(self, record: Record) -> Extent:
        """What a record with EXTENT says, which was whole when it was read."""
        return Extent(self.read(record.address + RECORD.size, EXTENT_BODY.size).ljust(EXTENT_BODY.size, b"\0"))

    def payload(self, record: Record) -> bytes:
        """The fragment of a record that was whole when it was read, and whose chain was judged; empty where that found
        that it cannot be decompressed.
        """
        stored = self.stored(record)
        return (decompressed(stored) or b"") if record.shape & COMPRESSED else stored

    def stored(self, record: Record) -> bytes:
        """The payload as it lies in the log; without what is damaged in a run: that its chain tells."""
        if record.shape & EXTENT:
            pieces = self.extent(record).checked(self.read, self.uuid)
            return b"".join(piece for _at, piece in pieces if piece is not None)
        return self.read(record.address + RECORD.size, record.length)

    def _wrong_with_extent(self, record: Record) -> Problem | None:
        """Every byte of a payload that lies in a run, and the header of that."""
        extent = self.extent(record)
        if (extent.address, extent.generation) in self._extents:
            return None
        wrong = self._wrong_with_run(extent, record.page)
        if wrong is not None:
            return Problem("log", extent.address, wrong, record.page)
        for at, piece in extent.checked(self.read, self.uuid):
            if piece is None:
                what = "a piece of the payload" if at != extent.table else "the checksums of the payload"
                return Problem("log", at, f"{what} of the record at {record.address} is damaged", record.page)
            self.bytes += len(piece)
        self._extents.add((extent.address, extent.generation))
        return None

    def _wrong_with_frame(self, record: Record) -> Problem | None:
        key = record.address, record.version
        if key in self._frames:
            return None
        if decompressed(self.stored(record)) is None:
            return Problem("log", record.address, "its payload cannot be decompressed", record.page)
        self._frames.add(key)
        return None

    def _wrong_with_run(self, extent: Extent, page: int) -> str | None:
        number, step = extent.address >> self.shift, 1 << self.shift
        run = run_at(self.read(extent.address, RUN_HEADER.size), number, self.uuid)
        if extent.address & step - 1 or run is None:
            return "the header of the run that its payload lies in is damaged"
        fits = (run.generation, run.salt, run.page) == (extent.generation, extent.salt, page)
        if not fits or extent.end > extent.address + (run.segments << self.shift):
            return f"the run there is of page {run.page} and generation {run.generation}"
        return None
