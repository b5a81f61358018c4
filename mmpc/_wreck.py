"""A damaged log, read past the damage.

A recovery stops at the first bad record of a lease, since behind it nothing is promised. Who salvages goes on: it looks
for the next whole record at each multiple of 8, and for the next lease at each block. A checksum is seeded with the
salt of the segment and the address, so what looks like a record is one. Without its header a segment has no salt; then
the salt is taken from wherever it still stands, and believed when a checksum under it holds.
"""

from __future__ import annotations

import os
import re

from ._extent import Extent
from ._findings import Findings
from ._lasting import Config
from ._layout import (
    BLOCK,
    CONTROL_SEGMENTS,
    INNER,
    INTENT,
    LEASE_HEADER,
    LEASE_MAGIC,
    LEASE_SUMMED,
    MASK32,
    PAGE_MASK,
    RECORD,
    SEGMENT_ENTRY,
    SEGMENT_ENTRY_SIZE,
    body_of,
    commit_of,
    crc,
    crc_word,
    sane,
    span_of,
)
from ._log import COMMITTED, PART, SCRATCH, Lease, Log, Record, Segment, segment_at
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._log import Piece

_EVERY_COLOUR = 2**64 - 1
_SOMETHING = re.compile(rb"[^\0]")


class Spot:
    """A place where a record should be and none is whole; `end`: where the next one is, or the lease's end."""

    __slots__ = ("end", "followed", "page", "start", "version")

    def __init__(self, start: int, end: int, followed: bool, page: int | None, version: int) -> None:
        self.start, self.end, self.followed, self.page, self.version = start, end, followed, page, version


class Wreck(Log):
    """All that is whole in a log, wherever it lies; `spots`: the damage that was read past."""

    def __init__(
        self, fd: int, control: int | None, config: Config, findings: Findings, pieces: Sequence[Piece] = ()
    ) -> None:
        super().__init__(fd, config, _EVERY_COLOUR, _EVERY_COLOUR, findings, pieces)
        self.control = control
        self.spots: list[Spot] = []
        self.lost_segments: list[int] = []

    def look(self, address: int) -> Record | None:
        return None  # everything was read

    def _wrong_with_run(self, extent: Extent, page: int) -> str | None:
        return None  # what the record says is enough

    def _scan_segment(self, number: int) -> None:
        base = number << self.shift
        covered = self._segment(self.read(base, BLOCK), number) if number in self.covered else None
        if covered is not None and covered.of_run:
            self.segments[number] = covered
            return
        data = self.read(base, 1 << self.shift)
        segment = segment_at(data, number, self.uuid) or self._without_header(data, number)
        if segment is None:
            if any(data[:BLOCK]) or _SOMETHING.search(data, BLOCK):
                self.lost_segments.append(number)
            return
        self.segments[number] = segment
        at, bad, end = BLOCK, -1, len(data)
        while at + RECORD.size <= end:
            if at % BLOCK == 0 and (lease := _lease(data, at, base + at, segment.seed)) is not None:
                self._spot(data, base, bad, at, False, segment.seed)
                self.leases[base + at] = lease
                at, bad = at + LEASE_HEADER.size, -1
                continue
            something = _SOMETHING.search(data, at)
            if something is None:
                break
            if something.start() >= at + 8:
                at = something.start() & -8
                continue
            fields = accepted(data, at, base + at, segment.seed)
            if fields is None:
                bad = at if bad < 0 else bad
                at += 8
                continue
            self._spot(data, base, bad, at, True, segment.seed)
            bad = -1
            self._add(base + at, fields)
            at += span_of(body_of(fields[1]))
        self._spot(data, base, bad, end, False, segment.seed)

    def _add(self, address: int, fields: tuple[int, ...]) -> None:
        word, shape, page_colour, version, prev_colour = fields
        if shape >> 40 & 7 == INTENT:
            return  # of no page
        self.flags |= shape
        self.addresses.append(address)
        self.shapes.append(shape)
        self.page_colours.append(page_colour)
        self.versions.append(version)
        self.prev_colours.append(prev_colour)
        self.standings.append(PART if shape & INNER else COMMITTED if word >> 32 else SCRATCH)

    def _spot(self, data: bytes, base: int, start: int, end: int, followed: bool, seed: int) -> None:
        if start >= 0:
            page, version = whose(data, start, base + start, seed)
            self.spots.append(Spot(base + start, base + end, followed, page, version))

    # ---- a segment whose header does not hold

    def _without_header(self, data: bytes, number: int) -> Segment | None:
        start = crc(self.uuid)
        for salt in self._salts(data, number):
            seed = crc_word(salt, start)
            if _fits(data, number << self.shift, seed):
                return Segment(number, 0, salt, 0, 0, seed)
        return None

    def _salts(self, data: bytes, number: int) -> Iterator[int]:
        own = int.from_bytes(data[24:32], "little")
        yield own
        if self.control is not None:
            entry = os.pread(self.control, SEGMENT_ENTRY_SIZE, CONTROL_SEGMENTS + number * SEGMENT_ENTRY_SIZE)
            if len(entry) == SEGMENT_ENTRY_SIZE:
                yield SEGMENT_ENTRY.unpack(entry)[3]
        for bit in range(64):
            yield own ^ 1 << bit


def _fits(data: bytes, base: int, seed: int) -> bool:
    """Whether the checksum of a lease header among the first blocks, or of the first record, holds under the seed."""
    if accepted(data, BLOCK + LEASE_HEADER.size, base + BLOCK + LEASE_HEADER.size, seed) is not None:
        return True
    return any(_lease(data, at, base + at, seed) for at in range(BLOCK, min(len(data), 256 * BLOCK), BLOCK))


def _lease(data: bytes, at: int, address: int, seed: int) -> Lease | None:
    if at + LEASE_HEADER.size > len(data):
        return None
    sum_, magic, own, blocks, _generation, previous, filled, before, stable, _end, _epoch = LEASE_HEADER.unpack_from(
        data, at
    )
    if magic != LEASE_MAGIC or own != address or sum_ != crc(data[at + 4 : at + LEASE_SUMMED], seed):
        return None
    return Lease(address, blocks * BLOCK, (previous, before, filled), stable, (0, 0))


def accepted(data: bytes, at: int, address: int, seed: int) -> tuple[int, int, int, int, int] | None:
    """The words of a record that can be believed: its sum is the checksum, or the one that its commit word stands for;
    the other of the two may be damaged.
    """
    if at + RECORD.size > len(data):
        return None
    word, shape, page_colour, version, prev_colour = RECORD.unpack_from(data, at)
    n = body_of(shape)
    if at + RECORD.size + n > len(data) or sane(shape, version, prev_colour & (1 << 42) - 1) is not None:
        return None
    start = ffi.from_buffer(data)
    sum_ = lib.mm_crc32c(crc_word(address, seed), start + (at + 40), n)
    sum_ = lib.mm_crc32c(sum_, start + (at + 8), 32)
    if sum_ != word & MASK32 and word >> 32 != commit_of(sum_):
        return None
    return word, shape, page_colour, version, prev_colour


def whose(data: bytes, at: int, address: int, seed: int) -> tuple[int | None, int]:
    """Page and version of a damaged record, as far as its header can be read: as it is when one bit is turned back,
    else as it stands. Good enough to say whose it was, not to use it.
    """
    head = data[at : at + RECORD.size]
    if len(head) < RECORD.size:
        return None, 0
    for bit in range(64, 8 * RECORD.size):
        number = int.from_bytes(head, "little") ^ 1 << bit
        turned = number.to_bytes(RECORD.size, "little")
        word, shape, page_colour, version, prev_colour = RECORD.unpack(turned)
        n = body_of(shape)
        if at + RECORD.size + n > len(data) or sane(shape, version, prev_colour & (1 << 42) - 1) is not None:
            continue
        payload = data[at + RECORD.size : at + RECORD.size + n]
        if crc(turned[8:], crc(payload, crc_word(address, seed))) == word & MASK32:
            return page_colour & PAGE_MASK, version
    _word, shape, page_colour, version, prev_colour = RECORD.unpack(head)
    if sane(shape, version, prev_colour & (1 << 42) - 1) is None:
        return page_colour & PAGE_MASK, version
    return None, 0
