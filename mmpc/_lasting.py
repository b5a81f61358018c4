"""`config`, `marks` and snapshots as their bytes say, by docs/format.md alone: the second path beside the core's."""

from __future__ import annotations

import os

from ._findings import Findings
from ._layout import (
    ADDRESS_MASK,
    BLOCK,
    CONFIG,
    CONFIG_MAGIC,
    FORMAT,
    INCOMPAT_COMPRESSED,
    MARK_LEASE,
    MARK_MAGIC,
    MARK_SECTOR,
    MARK_SECTORS,
    MARKS_SIZE,
    MAX_SEGMENTS,
    PAGE_MASK,
    SECTOR,
    SECTOR_LEASES,
    SLOTS,
    SNAPSHOT_CHUNK,
    SNAPSHOT_ENTRY,
    SNAPSHOT_HEADER,
    SNAPSHOT_MAGIC,
    WITNESS_MAGIC,
    crc,
    crc_word,
    words,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# ---- config


class Config:
    """What `config` says."""

    __slots__ = ("codec", "compatible", "compressed", "cuts", "discards", "materializer", "shift", "uuid")

    def __init__(
        self,
        uuid: bytes,
        shift: int,
        materializer: str,
        codec: str,
        discards: tuple[tuple[int, int], ...],
        cuts: tuple[tuple[int, int], ...] = (),
        compatible: bool = True,
        compressed: bool = False,
    ) -> None:
        self.uuid, self.shift, self.materializer, self.codec = uuid, shift, materializer, codec
        self.discards, self.cuts, self.compatible, self.compressed = discards, cuts, compatible, compressed

    def cut_since(self, stable: int, number: int) -> bool:
        """The log was cut off before that segment after `stable` was durable: it held nothing that counts."""
        return any(stable < epoch and number >= kept for epoch, kept in self.cuts)


def parse_config(data: bytes) -> Config | str:
    """The config, or what is wrong with it."""
    if len(data) < CONFIG.size:
        return f"{len(data)} bytes are too short"
    magic, form, sum_, length, shift, incompat, ro_compat, _compat, uuid, _created = CONFIG.unpack_from(data)
    if magic != CONFIG_MAGIC:
        return "the magic number is wrong"
    if length != len(data):
        return f"it has {len(data)} bytes, not the {length} that it says"
    if sum_ != crc(data[16:]):
        return "the checksum is wrong"
    if form != FORMAT:
        return f"format {form} is not {FORMAT}"
    try:
        names, at = [], CONFIG.size
        for _ in range(2):
            n = int.from_bytes(data[at : at + 4], "little")
            names.append(data[at + 4 : at + 4 + n].decode())
            at += 4 + n
    except UnicodeDecodeError:
        return "a name is not UTF-8"
    discards, at = _pairs(data, at)
    cuts, at = _pairs(data, at)
    if at != len(data) or not 16 <= shift <= 30:
        return "the fields do not fit"
    compatible = not (incompat & ~INCOMPAT_COMPRESSED or ro_compat)
    features = (compatible, bool(incompat & INCOMPAT_COMPRESSED))
    return Config(uuid, shift, names[0], names[1], discards, cuts, *features)


def _pairs(data: bytes, at: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """Pairs of numbers, and where they end; what does not fit ends behind the data."""
    count = int.from_bytes(data[at : at + 4], "little")
    end = at + 4 + 16 * count
    if end > len(data):
        return (), end
    numbers = [int.from_bytes(data[k : k + 8], "little") for k in range(at + 4, end, 8)]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True)), end


def mended_config(data: bytes) -> Config | None:
    """The config with the one bit turned back that makes it whole."""
    for at in range(len(data)):
        for bit in range(8):
            turned = data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]
            config = parse_config(turned)
            if isinstance(config, Config):
                return config
    return None


# ---- marks


class Marks:
    """The newest mark: its epoch D (0: none), and the leases that it lists, with their fills."""

    __slots__ = (
        "discarded",
        "durable",
        "hidden",
        "leases",
        "named",
        "retirements",
        "sectors",
        "segments",
        "whole",
        "witness",
    )

    def __init__(self) -> None:
        self.durable = 0
        self.witness = 0  # the largest epoch that a witness says was durable, by what stands in the log
        self.leases: list[tuple[int, int, int]] = []  # address, fill, generation of its segment
        self.named: set[tuple[int, int]] = set()  # address and generation of the leases that any mark lists
        self.retirements = 0  # of segments, ever
        self.segments = self.discarded = 0  # of the log in use; newest colour that config must call discarded
        self.hidden = False  # a block may have said something newer
        self.whole = 0
        self.sectors = 0  # of the newest mark that are whole

    @property
    def complete(self) -> bool:
        """All of the newest mark was read: it lists what it was written with."""
        return self.sectors == MARK_SECTORS


def read_marks(fd: int, uuid: bytes, findings: Findings) -> Marks:
    """Reads `marks`. A sector that is being written is looked at again."""
    marks, size = Marks(), os.fstat(fd).st_size
    if size != MARKS_SIZE:
        findings.damage("marks", min(size, MARKS_SIZE), f"the file has {size} bytes, not {MARKS_SIZE}")
        marks.hidden = size < MARKS_SIZE
    seed = crc(uuid)
    for at in _blocks_with_data(fd, min(size, MARKS_SIZE)):
        _judge_block(fd, at, seed, marks, findings)
    return marks


def newest_complete(fd: int, uuid: bytes) -> Marks | None:
    """The newest mark of which every sector is whole. A witness may stand in one of a newer mark."""
    found, seed = Marks(), crc(uuid)
    for at in _blocks_with_data(fd, min(os.fstat(fd).st_size, MARKS_SIZE)):
        one = Marks()
        _judge_block(fd, at, seed, one, Findings())
        if one.complete and one.durable > found.durable:
            found = one
    return found if found.durable else None


def _blocks_with_data(fd: int, size: int) -> Iterator[int]:
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA) // BLOCK * BLOCK
        except OSError:
            return
        if at < size:
            yield at
        at += BLOCK


def _judge_block(fd: int, at: int, seed: int, marks: Marks, findings: Findings) -> None:
    bad, others = [], 0  # others: those that are whole, and those that were never written to
    for place in range(at, at + BLOCK, SECTOR):
        found, data = _read_sector(fd, place, seed, findings)
        if found is None and any(data):
            bad.append(place)
        elif found is not None and found.witness:  # what the mark said in this place is not known
            marks.witness = max(marks.witness, found.epoch)
        else:
            others += 1
            if found is not None:
                _count_sector(found, marks)
    if bad and not others:
        marks.hidden = True
        findings.damage("marks", at, "no sector of this block is whole: what its mark said is lost")
    else:
        for place in bad:
            findings.warn("marks", place, "this sector of a mark is damaged; it is not the only one")


class _Sector:
    """A whole sector of `marks`, of a mark or a witness."""

    __slots__ = ("epoch", "leases", "says", "witness")

    def __init__(self, witness: bool, epoch: int, says: list[int], leases: list[tuple[int, int, int]]) -> None:
        self.witness, self.epoch, self.says, self.leases = witness, epoch, says, leases


def _read_sector(fd: int, place: int, seed: int, findings: Findings) -> tuple[_Sector | None, bytes]:
    """What a sector says, if it is whole, and its bytes."""
    found, data = None, b""
    for _ in range(3):  # a writer may be at it
        try:
            data = os.pread(fd, SECTOR, place)
        except OSError as e:
            findings.damage("marks", place, f"cannot be read: {e.strerror}")
            break
        found = _sector(data, place, seed)
        if found is not None or not any(data):
            break
    return found, data


def _sector(data: bytes, place: int, seed: int) -> _Sector | None:
    if len(data) < SECTOR:
        return None
    magic, sum_, count, epoch, slot, own, *says = MARK_SECTOR.unpack_from(data)
    if magic not in (MARK_MAGIC, WITNESS_MAGIC) or count > SECTOR_LEASES or slot >= SLOTS:
        return None
    if sum_ != crc(data[12:], seed) or slot * 2 * MARK_SECTORS + own != place // SECTOR:
        return None
    leases = MARK_LEASE.iter_unpack(data[MARK_SECTOR.size : MARK_SECTOR.size + MARK_LEASE.size * count])
    return _Sector(magic == WITNESS_MAGIC, epoch, says, [(address, fill, of) for address, fill, of in leases])


def _count_sector(sector: _Sector, marks: Marks) -> None:
    marks.whole += 1
    marks.named.update((address, generation) for address, _fill, generation in sector.leases)
    if sector.epoch > marks.durable:
        marks.durable, marks.leases, marks.sectors = sector.epoch, [], 0
        marks.segments, marks.retirements, marks.discarded = sector.says
    if sector.epoch == marks.durable:
        marks.sectors += 1
        marks.leases += sector.leases


# ---- snapshots


class Snapshot:
    """A snapshot that holds in every byte."""

    __slots__ = ("b", "entries", "fd", "heads_at", "log_size", "name", "pages")

    def __init__(self, name: str, fd: int, b: int, pages: int, log_size: int, entries: list[int]) -> None:
        self.name, self.fd, self.b, self.pages, self.log_size = name, fd, b, pages, log_size
        self.entries = entries  # the first word of each
        self.heads_at = BLOCK + SNAPSHOT_ENTRY.size * len(entries)

    def heads(self) -> Iterator[tuple[int, int]]:
        """(page, address) of every head word in it."""
        for first in range(0, self.pages, 65536):
            n = min(65536, self.pages - first)
            for i, head in enumerate(words(os.pread(self.fd, 8 * n, self.heads_at + 8 * first))):
                if head:
                    yield first + i, (head & ADDRESS_MASK) << 3


def read_snapshot(name: str, fd: int, config: Config, findings: Findings) -> Snapshot | None:
    """The snapshot, if all of it holds. Damage to it is a warning: it only makes a recovery shorter."""
    try:
        return _snapshot(name, fd, config, findings)
    except OSError as e:
        findings.warn(name, 0, f"cannot be read: {e.strerror}")
        return None


def _snapshot(name: str, fd: int, config: Config, findings: Findings) -> Snapshot | None:
    head, size, seed = os.pread(fd, BLOCK, 0), os.fstat(fd).st_size, crc(config.uuid)
    if len(head) < BLOCK:
        findings.warn(name, len(head), "the snapshot is cut short")
        return None
    magic, sum_, form, a, b, salt, segments, pages, log_size, _taken, shift, sums_crc, _created = (
        SNAPSHOT_HEADER.unpack_from(head)
    )
    if magic != SNAPSHOT_MAGIC or sum_ != crc(head[12:], seed) or form != FORMAT or shift != config.shift:
        findings.warn(name, 0, "the header of the snapshot is damaged, or of another store")
        return None
    body = SNAPSHOT_ENTRY.size * segments + 8 * pages
    chunks = (body + SNAPSHOT_CHUNK - 1) // SNAPSHOT_CHUNK
    if a > b or segments > MAX_SEGMENTS or pages > PAGE_MASK or size != BLOCK + body + 4 * chunks:
        findings.warn(name, min(size, BLOCK + body + 4 * chunks), "the snapshot has not the size that it says")
        return None
    if name != f"snapshot-{b:016x}":
        findings.warn(name, 0, f"the snapshot was written as snapshot-{b:016x}")
    sums = os.pread(fd, 4 * chunks, BLOCK + body)
    if sums_crc != crc(sums, seed):
        findings.warn(name, BLOCK + body, "the checksums of the snapshot are damaged")
        return None
    for k in range(chunks):
        at = k * SNAPSHOT_CHUNK
        chunk = os.pread(fd, min(SNAPSHOT_CHUNK, body - at), BLOCK + at)
        if crc(chunk, crc_word(k, crc_word(salt, seed))) != int.from_bytes(sums[4 * k : 4 * k + 4], "little"):
            findings.warn(name, BLOCK + at, "a chunk of the snapshot is damaged")
            return None
    entries: Any = words(os.pread(fd, SNAPSHOT_ENTRY.size * segments, BLOCK))
    return Snapshot(name, fd, b, pages, log_size, list(entries[::2]))
