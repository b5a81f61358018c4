"""Compression: a fragment as it is encoded, to a frame of zstandard and back.

The core moves bytes and knows of a record only whether its payload is a frame (docs/format.md). Who compresses and
decompresses are the faces, through the `Compression` of their handle, and those who read a store beside the core
(verify, salvage, the commands), through `decompressed`. So there is one place for each.

zstandard gives up the GIL while it works, and one of its objects serves one call at a time. They stand in a list from
which a call takes one, and to which it gives it back: so a forked child inherits none that is in use.
"""

from __future__ import annotations

import struct

from . import errors
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._store import Attachment

LEAST = 96  # bytes that a fragment must have: of smaller ones a frame is hardly ever the smaller (bench/compression.py)
MOST = (1 << 30) + 4096  # MM_EXTENT_MOST: of a fragment, as it is encoded
EXPANSION = 1 << 15  # a block of a frame makes 128 KiB of 4 bytes, at most
LARGE = 1 << 18  # a compressor that served a larger payload keeps several times as much memory: it is not kept
IDLE = 4  # compressors of a handle that are kept, of 6 MiB each at most
LAST = 4  # MM_MERGE_LWW: the newest fragment is the value
_STORED = struct.Struct("<QQ")  # address of the record; length << 1 | whether it is compressed
_COMPRESS, _DECOMPRESS = lib.mm_metric_named(1, b"compress"), lib.mm_metric_named(1, b"decompress")
_IN, _OUT, _KEPT = (lib.mm_metric_named(0, b"compress_" + n) for n in (b"in", b"out", b"kept"))
_FRAMES, _FRAGMENTS = (lib.mm_metric_named(0, b"decompress_" + n) for n in (b"in", b"out"))

_decompressors: list[Any] = []


def needed(what: str) -> Any:
    """The module zstandard. Unsupported: it is not installed; `what` needs it."""
    try:
        import zstandard
    except ImportError as e:
        raise errors.Unsupported(f"{what}, and zstandard is not installed: pip install 'mmpc[compression]'") from e
    return zstandard


def check_here(path: str) -> None:
    """Unsupported, where zstandard is not, for a store that says that it may hold compressed fragments."""
    needed(f"{path!r} may hold compressed fragments")


def decompressed(frame: bytes | memoryview) -> bytes | None:
    """What was compressed; None: it is no frame, or not one that mmpc has made. Takes no more memory than the frame's
    header says, and believes none that says more than a fragment may have, or than such a frame can give.
    """
    zstandard = needed("a fragment is compressed")
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= min(MOST, EXPANSION * len(frame)):
            return None
        plain: bytes = (tool := _decompressor(zstandard)).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        return None
    if len(_decompressors) < 16:
        _decompressors.append(tool)
    return plain if len(plain) == size else None


def _decompressor(zstandard: Any) -> Any:
    try:
        return _decompressors.pop()
    except IndexError:
        return zstandard.ZstdDecompressor()


class Compression:
    """What a handle needs of it: `compress` for its writes, or None, and `decompress` for what it reads."""

    __slots__ = ("_attachment", "_compressors", "_kind", "_level", "compress")

    def __init__(self, attachment: Attachment, kind: int, level: int | None) -> None:
        self._attachment, self._kind, self._level = attachment, kind, level
        self._compressors: list[Any] = []
        self.compress = self.frame if level is not None else None

    def frame(self, payload: bytes) -> bytes | None:
        """The payload, compressed; None: it is to be stored as it is, since a record would not get smaller."""
        if not LEAST <= len(payload) <= MOST:
            return None
        mm, small = self._attachment.mm, len(payload) <= LARGE
        begun = lib.mm_ticks(mm)
        try:
            tool = self._compressors.pop() if small else None
        except IndexError:
            tool = None
        if tool is None:
            tool = needed("use_compression=True").ZstdCompressor(level=self._level, write_content_size=True)
        frame: bytes = tool.compress(payload)
        if small and len(self._compressors) < IDLE:
            self._compressors.append(tool)
        lib.mm_metrics_time(mm, _COMPRESS, begun, 1)
        if len(frame) + 7 & -8 >= len(payload) + 7 & -8:  # records are multiples of 8
            lib.mm_metrics_add(mm, _KEPT, len(payload))
            return None
        lib.mm_metrics_add(mm, _IN, len(payload))
        lib.mm_metrics_add(mm, _OUT, len(frame))
        return frame

    def decompress(self, pid: int, stored: bytes, merged: int) -> bytes:
        """What mm_read would have given, of what it gave with MM_COMPRESSED: fragments as they are stored become one
        array of them, or one value, merged by C. Errors: CorruptionError; Unsupported (zstandard is not installed).
        """
        view, at, newest = memoryview(stored), 0, 0
        fragments: list[bytes | memoryview] = []
        while at < len(stored):
            newest, word = _STORED.unpack_from(stored, at)
            at += _STORED.size
            payload = view[at : at + (word >> 1)]
            at += word >> 1
            fragments.append(self._plain(pid, newest, payload) if word & 1 else payload)
        if merged:
            return self._merged(pid, newest, fragments)
        n = len(fragments)
        return (bytes((0x90 | n,)) if n < 16 else b"\xdc" + n.to_bytes(2, "big")) + b"".join(fragments)

    def _plain(self, pid: int, address: int, frame: memoryview) -> bytes:
        mm = self._attachment.mm
        begun = lib.mm_ticks(mm)
        plain = decompressed(frame)
        if plain is None:
            said = f"page {pid}: a compressed fragment cannot be decompressed ('log' at offset {address})"
            raise errors.CorruptionError(said, file="log", offset=address)
        lib.mm_metrics_time(mm, _DECOMPRESS, begun, 1)
        lib.mm_metrics_add(mm, _FRAMES, len(frame))
        lib.mm_metrics_add(mm, _FRAGMENTS, len(plain))
        return plain

    def _merged(self, pid: int, newest: int, fragments: list[bytes | memoryview]) -> bytes:
        if self._kind == LAST:
            return bytes(fragments[-1])
        n = len(fragments)
        spans, length = ffi.new("mm_span[]", n), ffi.new("uint64_t *")
        kept = [ffi.from_buffer(f) for f in fragments]
        for i, fragment in enumerate(kept):
            spans[i].p, spans[i].n = fragment, len(fragment)
        room = int(lib.mm_merge_bound(self._kind, spans, n))
        out = bytearray(room)
        status = lib.mm_merge(self._kind, spans, n, ffi.from_buffer(out), room, length)
        if status:
            if status == _MEMORY:
                raise MemoryError(f"page {pid}: no memory to merge its fragments")
            said = f"page {pid}: its fragments do not merge (newest at offset {newest} of 'log')"
            raise errors.CorruptionError(said, file="log", offset=newest)
        return bytes(memoryview(out)[: length[0]])


_MEMORY = 4  # MM_MERGE_MEMORY
