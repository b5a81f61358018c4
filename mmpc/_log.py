"""The log as its bytes say: segments, leases, records. A second path beside csrc/scan.c, by docs/format.md alone.

Somebody may write to the log meanwhile. A lease is read in one piece, after `marks`; what a writer was just about to
write ends it, as it ends the scan of a recovery. Who needs a record that was not there yet asks `find`, which looks
again.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left

from ._findings import Findings, Problem
from ._layout import (
    ADDRESS_MASK,
    BASE,
    BLOCK,
    COMMIT_XOR,
    FREE,
    INDEX,
    INNER,
    LEASE_HEADER,
    LEASE_MAGIC,
    MASK32,
    PAGE_MASK,
    RECORD,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    body_of,
    colour_of,
    crc,
    crc_word,
    inner_of,
    sane,
    span_of,
)
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ._lasting import Config

SCRATCH, COMMITTED, PART = 0, 1, 2  # standing of a whole record: no commit word; commits; inside a group


class Segment:
    """One segment with a header that holds."""

    __slots__ = ("epoch", "generation", "number", "salt", "seed", "stable")

    def __init__(self, number: int, generation: int, salt: int, epoch: int, stable: int, seed: int) -> None:
        self.number, self.generation, self.salt = number, generation, salt
        self.epoch, self.stable, self.seed = epoch, stable, seed


class Lease:
    """One lease: what its header says, and where its whole records end."""

    __slots__ = ("address", "counts", "end", "filled", "followed", "previous", "size", "stable")

    def __init__(self, address: int, size: int, previous: int, filled: int, stable: int) -> None:
        self.address, self.size = address, size
        self.previous, self.filled, self.stable = previous, filled, stable
        self.end = address + LEASE_HEADER.size
        self.counts = self.followed = False


class Record:
    """One whole record."""

    __slots__ = ("address", "colour", "depth", "kind", "length", "page", "prev", "shape", "standing", "tag", "version")

    def __init__(
        self, address: int, shape: int, page_colour: int, version: int, prev_colour: int, standing: int
    ) -> None:
        self.address, self.shape, self.version, self.standing = address, shape, version, standing
        self.length, self.depth, self.kind = shape & MASK32, shape >> 32 & 255, shape >> 40 & 15
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
    sum_, magic, own, blocks, generation, previous, filled, stable = LEASE_HEADER.unpack_from(data, at)
    if magic != LEASE_MAGIC or own != address or generation != segment.generation or not 0 < blocks * BLOCK <= room:
        return None
    if sum_ != crc(data[at + 4 : at + LEASE_HEADER.size], segment.seed):
        return None
    return Lease(address, blocks * BLOCK, previous, filled, stable)


def segment_at(data: bytes, number: int, uuid: bytes) -> Segment | None:
    """The segment whose header `data` begins with."""
    if len(data) < SEGMENT_HEADER.size:
        return None
    magic, sum_, generation, own, salt, epoch, stable, owner = SEGMENT_HEADER.unpack_from(data)
    if magic != SEGMENT_MAGIC or own != number or owner != uuid or sum_ != crc(data[12 : SEGMENT_HEADER.size]):
        return None
    return Segment(number, generation, salt, epoch, stable, crc_word(salt, crc(uuid)))


class Log:
    """Everything that is whole in the log, in order of address.

    `newest` and `newest_durable` give for each page the index of the newest record that counts: committed, its group
    complete, its colour in none of the discards; and not above `durable` for the second. A lease counts that holds a
    record that counts with a colour up to `limit`: of the records that a recovery would take.
    """

    def __init__(
        self,
        fd: int,
        config: Config,
        durable: int,
        limit: int,
        findings: Findings,
    ) -> None:
        self.fd, self.uuid, self.shift, self.discards = fd, config.uuid, config.shift, config.discards
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
        self._late: dict[int, Record | None] = {}

    # ---- reading

    def read(self, at: int, n: int) -> bytes:
        """Bytes of the log; fewer at its end. What the device cannot read is damage, and reads as nothing."""
        parts = []
        while n > 0:
            try:
                part = os.pread(self.fd, min(n, 1 << 30), at)
            except OSError as e:
                self.findings.damage("log", at, f"cannot be read: {e.strerror}")
                break
            if not part:
                break
            parts.append(part)
            at, n = at + len(part), n - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def scan(self, progress: Callable[[int], None]) -> None:
        """Reads all of it."""
        step = 1 << self.shift
        for number in range((self.size + step - 1) >> self.shift):
            self._scan_segment(number)
            progress(min((number + 1) << self.shift, self.size))

    def _scan_segment(self, number: int) -> None:
        base = number << self.shift
        end = min(base + (1 << self.shift), self.size)
        head = self.read(base, BLOCK)
        segment = segment_at(head, number, self.uuid)
        if segment is None:
            if any(head[: SEGMENT_HEADER.size]):
                self.findings.damage("log", base, f"the header of segment {number} is damaged: all in it is lost")
            return
        if any(head[SEGMENT_HEADER.size :]):
            self.findings.warn("log", base + SEGMENT_HEADER.size, "unused bytes behind a segment header are not zero")
        self.segments[number] = segment
        at = base + BLOCK
        while at + BLOCK <= end:
            head = self.read(at, BLOCK)
            lease = lease_at(head, 0, at, segment, (number + 1 << self.shift) - at)
            if lease is None:
                at += BLOCK
                continue
            self.leases[at] = lease
            n = min(at + lease.size, end) - at
            self._scan_lease(lease, head if n == BLOCK else self.read(at, n), segment.seed)
            at += lease.size

    def _scan_lease(self, lease: Lease, data: bytes, seed: int) -> None:
        """Appends the whole records of a lease, up to the first that is not."""
        start, number, sum_of, unpack = ffi.from_buffer(data), ffi.new("uint64_t *"), lib.mm_crc32c, RECORD.unpack_from
        base, at, end, inner, inner_page = lease.address, LEASE_HEADER.size, len(data), 0, -1
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
            page = page_colour & PAGE_MASK
            if shape & INNER:
                inner = inner + 1 if page == inner_page else 1
                inner_page = page
                standing = PART
                if commit:
                    self.findings.damage("log", base + at, "a record inside a group has a commit word", page)
            else:
                standing = COMMITTED if commit else SCRATCH
                if commit and inner_of(shape) > (inner if page == inner_page else 0):
                    self.findings.damage("log", base + at, f"a group lacks some of its {inner_of(shape)} records", page)
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
        lease.end = base + at
        self.bytes += at - LEASE_HEADER.size

    def _count(self, lease: Lease, page: int, index: int, version: int, colour: int) -> None:
        self.committed += 1
        if colour > self.max_colour:
            self.max_colour = colour
        for lo, hi in self.discards:
            if lo < colour <= hi:
                self.discarded += 1
                return
        before = self.newest.get(page)
        if before is None or self.versions[before] < version:
            self.newest[page] = index
        elif self.versions[before] == version:
            self.findings.damage("log", self.addresses[index], "two committed records have the same version", page)
        if colour <= self.limit:
            lease.counts = True
        if colour <= self.durable:
            before = self.newest_durable.get(page)
            if before is None or self.versions[before] < version:
                self.newest_durable[page] = index

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
            self._late[address] = self._look(address)
        return self._late[address]

    def _look(self, address: int) -> Record | None:
        number = address >> self.shift
        segment = self.segments.get(number) or segment_at(self.read(number << self.shift, BLOCK), number, self.uuid)
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
        segment = self.segments.get(number) or segment_at(self.read(number << self.shift, BLOCK), number, self.uuid)
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

    def judge_chain(self, record: Record) -> None:
        """What is wrong with the chain under a record becomes damage."""
        found = self.chain(record)
        if isinstance(found, Problem):
            self.findings.damage(found.file, found.offset, found.message, found.page)

    def chain(self, record: Record) -> list[Record] | Problem:
        """The chain under a record, newest first, or the first thing that is wrong with it."""
        page, chain = record.page, [record]
        while True:
            wrong = self._wrong_in(record)
            if wrong is not None:
                return Problem("log", record.address, wrong, page)
            if record.kind in (BASE, FREE):
                return chain
            older = self.find(record.prev)
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
        if wrong is None and (record.tag != 0) != tagged:
            wrong = f"class {record.tag} cannot be under the store's materializer"
        return wrong
