"""A store of which every byte is written here, by docs/format.md alone: what a loss of power can leave of flushes of
several processes, down to the page of the log that one of them brought to the disk and the page that it did not.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from mmpc._layout import (
    ADDRESS_BITS,
    BASE,
    BLOCK,
    CONFIG,
    CONFIG_MAGIC,
    FORMAT,
    INTENT,
    INTENT_HEADER,
    LEASE_HEADER,
    LEASE_MAGIC,
    LEASE_SUMMED,
    MARK_LEASE,
    MARK_MAGIC,
    MARK_SECTOR,
    MARKS_SIZE,
    PAGE_BITS,
    PAGE_MASK,
    PIECE,
    PLACE_BITS,
    RECORD,
    SECTOR,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    WITNESS_MAGIC,
    commit_of,
    crc,
    crc_word,
    span_of,
)
from support import loss

SHIFT = 16
GENERATION = 7
UUID, SALT = bytes(range(16)), 0x1122334455667788
BYTES = 1  # class of such a fragment


class Minted:
    """One segment; its leases stand one behind the other, and are written to in memory: `log` is what a kernel would
    have. What of it did not reach the disk is for `write` to leave out.
    """

    def __init__(self) -> None:
        self.log = bytearray(1 << SHIFT)
        self.marks: dict[int, bytes] = {}  # by place
        self.fills: dict[int, int] = {}  # of each lease
        self.free = BLOCK
        self.seed = crc_word(SALT, crc(UUID))
        head = SEGMENT_HEADER.pack(SEGMENT_MAGIC, 0, GENERATION, 0, SALT, 1, 0, UUID)
        self.log[: len(head)] = _sealed(head, 8, 12, 0)

    def lease(self, blocks: int = 1) -> int:
        """The address of a new one."""
        at, self.free = self.free, self.free + blocks * BLOCK
        head = LEASE_HEADER.pack(0, LEASE_MAGIC, at, blocks, GENERATION, 0, 0, 0, 1, 0, 0)
        sum_ = crc(head[4:LEASE_SUMMED], self.seed)
        self.log[at : at + len(head)] = sum_.to_bytes(4, "little") + head[4:]
        self.fills[at] = LEASE_HEADER.size
        return at

    def page(self, lease: int, page: int, value: bytes, colour: int) -> int:
        """A page whose only fragment is `value`, as mmpc.Append has it."""
        payload = b"\xc4" + bytes([len(value)]) + value
        return self._record(lease, BYTES << 48 | BASE << 40, page, colour << PLACE_BITS, payload, colour)

    def intent(self, lease: int, epoch: int, base: int, payload: bytes, committed: bool = True) -> int:
        return self._record(lease, INTENT << 40, PAGE_MASK, base, payload, epoch, committed)

    def said(self, listed: list[int], carried: Sequence[tuple[int, int]] = (), stable: int = 1) -> bytes:
        """The payload of an intent that lists these leases as they are filled now, and carries of some what stands in
        them from there on.
        """
        payload = INTENT_HEADER.pack(stable, len(listed), len(carried))
        payload += b"".join(MARK_LEASE.pack(a, self.fills[a], GENERATION) for a in listed)
        for lease, start in carried:
            payload += PIECE.pack(listed.index(lease), start) + self.log[lease + start : lease + self.fills[lease]]
        return payload

    def _record(
        self, lease: int, shape: int, page: int, version: int, payload: bytes, colour: int, committed: bool = True
    ) -> int:
        at = lease + self.fills[lease]
        shape |= len(payload) | 1 << 32
        rest = RECORD.pack(0, shape, page | (colour & 0xFFFFFF) << PAGE_BITS, version, colour >> 24 << ADDRESS_BITS)[8:]
        sum_ = crc(rest, crc(payload, crc_word(at, self.seed)))
        self.fills[lease] += span_of(len(payload))
        commit = commit_of(sum_) if committed else 0
        data = (sum_ | commit << 32).to_bytes(8, "little") + rest + payload
        self.log[at : at + len(data)] = data
        return at

    # ---- marks

    def mark(self, slot: int, block: int, epoch: int, leases: list[int]) -> None:
        """Of this epoch, in all eight sectors of a block, listing these leases as they are filled now."""
        named = b"".join(MARK_LEASE.pack(a, self.fills[a], GENERATION) for a in leases)
        for sector in range(8):
            self._sector(MARK_MAGIC, slot, 8 * block + sector, epoch, named if sector == 0 else b"", segments=1)

    def witness(self, slot: int, block: int, epoch: int) -> None:
        self._sector(WITNESS_MAGIC, slot, 8 * block, epoch, b"")

    def _sector(self, magic: bytes, slot: int, place: int, epoch: int, named: bytes, segments: int = 0) -> None:
        head = MARK_SECTOR.pack(magic, 0, len(named) // MARK_LEASE.size, epoch, slot, place, segments, 0, 0)
        self.marks[(slot * 16 + place) * SECTOR] = _sealed((head + named).ljust(SECTOR, b"\0"), 8, 12, crc(UUID))

    # ---- files

    def write(
        self, path: str, without: Sequence[tuple[int, int]] = (), discards: Sequence[tuple[int, int]] = ()
    ) -> str:
        """A store as a loss of power leaves it: no `control`, and zeros from the one address to the other `without`."""
        os.mkdir(path)
        log = bytearray(self.log)
        for begin, end in without:
            log[begin:end] = bytes(end - begin)
        marks = bytearray(MARKS_SIZE)
        for at, sector in self.marks.items():
            marks[at : at + SECTOR] = sector
        for name, data in (("log", log), ("marks", marks), ("lock", b""), ("config", _config(discards))):
            loss.put(path, name, bytes(data))
        return path


def _config(discards: Sequence[tuple[int, int]]) -> bytes:
    names = b"".join(struct.pack("<I", len(n)) + n for n in (b"mmpc.append-1", b"msgpack-1"))
    pairs = struct.pack("<I", len(discards)) + b"".join(struct.pack("<QQ", *p) for p in discards) + bytes(4)
    length = CONFIG.size + len(names) + len(pairs)
    data = CONFIG.pack(CONFIG_MAGIC, FORMAT, 0, length, SHIFT, 0, 0, 0, UUID, 1) + names + pairs
    return data[:12] + crc(data[16:]).to_bytes(4, "little") + data[16:]


def _sealed(data: bytes, at: int, begin: int, seed: int) -> bytes:
    return data[:at] + crc(data[begin:], seed).to_bytes(4, "little") + data[at + 4 :]
