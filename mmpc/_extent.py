"""Large payloads in the log: what a record says of one, the headers of runs, and the check in pieces."""

from __future__ import annotations

from array import array

from ._layout import (
    BLOCK,
    EXTENT_BODY,
    EXTENT_MOST,
    EXTENT_PIECE,
    RUN_HEADER,
    RUN_MAGIC,
    crc,
    crc_word,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int, int], bytes]


class Run:
    """A run of segments, as the header at its start says."""

    __slots__ = ("epoch", "generation", "number", "page", "salt", "segments", "stable")

    def __init__(self, number: int, generation: int, page: int, segments: int, salt: int = 0) -> None:
        self.number, self.generation, self.page, self.segments, self.salt = number, generation, page, segments, salt
        self.epoch = self.stable = 0

    def packed(self, uuid: bytes) -> bytes:
        """The header."""
        names = (self.salt, self.epoch, self.stable, uuid, self.page, self.segments)
        data = RUN_HEADER.pack(RUN_MAGIC, 0, self.generation, self.number, *names)
        return data[:8] + crc(data[12:]).to_bytes(4, "little") + data[12:]


def run_at(data: bytes, number: int, uuid: bytes) -> Run | None:
    """The run whose header `data` begins with."""
    if len(data) < RUN_HEADER.size:
        return None
    magic, sum_, generation, own, salt, epoch, stable, owner, page, segments = RUN_HEADER.unpack_from(data)
    if magic != RUN_MAGIC or own != number or owner != uuid or not segments or not generation:
        return None
    if sum_ != crc(data[12 : RUN_HEADER.size]):
        return None
    run = Run(number, generation, page, segments, salt)
    run.epoch, run.stable = epoch, stable
    return run


class Extent:
    """What a record says of its payload."""

    __slots__ = ("address", "generation", "length", "salt", "sum")

    def __init__(self, data: bytes) -> None:
        self.address, self.length, self.salt, self.generation, self.sum = EXTENT_BODY.unpack(data)

    @property
    def pieces(self) -> int:
        return -(-int(self.length) // EXTENT_PIECE)

    @property
    def table(self) -> int:
        """Address of the checksums of the pieces."""
        return int(self.address + BLOCK + (self.length + 7 & -8))

    @property
    def end(self) -> int:
        return self.table + 4 * self.pieces

    def checked(self, read: Read, uuid: bytes) -> Iterator[tuple[int, bytes | None]]:
        """(address, bytes) of each piece, or None instead of the bytes where they are damaged; (address of the table,
        None) alone where that is.
        """
        seed = crc_word(self.salt, crc(uuid))
        data = read(self.table, 4 * self.pieces) if self.length <= EXTENT_MOST else b""
        if len(data) != 4 * self.pieces or crc(data, crc_word(self.table, seed)) != self.sum:
            yield self.table, None
            return
        for k, sum_ in enumerate(array("I", data)):
            at = self.address + BLOCK + k * EXTENT_PIECE
            piece = read(at, min(EXTENT_PIECE, self.length - k * EXTENT_PIECE))
            yield at, piece if crc(piece, crc_word(at, seed)) == sum_ else None
