"""A device that fails for real: ext4 on a loop device whose backing file, on a full tmpfs, lost the pages below a
part of the log.

The loop driver reports a write as done of which only the first part found room. So the part that fails begins where no
write begins before it: at a segment, whose size no folio of the page cache exceeds.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .mounts import Mounted, ext4, memory

_FIEMAP = 0xC020660B
_HEADER, _EXTENT = struct.Struct("<QQIIII"), struct.Struct("<QQQQQIIII")
_PUNCH = 0x01 | 0x02  # keep the size, punch a hole
GLOBALS, SLOTS, SLOT = 4096, 12288, 1024
EPOCH, STABLE, FAILED = GLOBALS, GLOBALS + 64, GLOBALS + 128
SYNCING, LEASE, FILL = 24, 72, 88


def extents(path: Path) -> Iterator[tuple[int, int, int]]:
    """(offset in the file, offset on the device, length) of all that is allocated."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        room = 256
        answer = bytearray(_HEADER.pack(0, 2**64 - 1, 0, 0, room, 0) + bytes(room * _EXTENT.size))
        fcntl.ioctl(f.fileno(), _FIEMAP, answer)
    count = _HEADER.unpack_from(answer)[3]
    for i in range(count):
        logical, physical, length, *_ = _EXTENT.unpack_from(answer, _HEADER.size + i * _EXTENT.size)
        yield logical, physical, length


def word(store: Path, offset: int) -> int:
    """A 64-bit word of `control`."""
    with open(store / "control", "rb") as f:
        return int.from_bytes(os.pread(f.fileno(), 8, offset), "little")


def forge(store: Path, offset: int, value: int) -> None:
    """Writes a word of `control`, as a process would leave it."""
    with open(store / "control", "r+b", buffering=0) as f:
        os.pwrite(f.fileno(), value.to_bytes(8, "little"), offset)


SEGMENT = 256 << 10
LARGE = b"x" * 30_000  # goes into a lease of its own


def used(store: Path) -> int:
    """Where the last record of any slot ends."""
    slots = [SLOTS + i * SLOT for i in range(word(store, GLOBALS + 832))]
    return max(word(store, at + LEASE) + word(store, at + FILL) for at in slots)


class Failing:
    """`disk` is the file system on the device; it fails from `break_down` to `mend`, below what is new in the log."""

    def __init__(self, under: Mounted, image: Path, disk: Mounted) -> None:
        self.under, self.image, self.disk = under, image, disk

    @property
    def store(self) -> Path:
        return self.disk.path / "store"

    def break_down(self, pc: Any) -> None:
        """The next segment cannot be written, and the next large fragment goes there. All else can be written.

        `pc`: a handle; what it does here is durable.
        """
        pid, _ = pc.allocate([])
        while used(self.store) % SEGMENT < SEGMENT - len(LARGE) - 200:
            pc.append(pid, [LARGE])
            pc.replace(pid, pc.get(pid).key, [])
        pc.flush()
        self.fail_between((used(self.store) + SEGMENT - 1) // SEGMENT * SEGMENT, 1 << 62)

    def fail_between(self, start: int, end: int) -> None:
        """That part of the log cannot be written, and what is there is lost."""
        self.under.fill()
        with open(self.image, "r+b") as f:
            for logical, physical, length in extents(self.store / "log"):
                first, last = max(start, logical), min(end, logical + length)
                if first < last:
                    assert (physical + first - logical) % 4096 == 0
                    _punch(f.fileno(), physical + first - logical, last - first)
        self.under.fill("more")

    def mend(self) -> None:
        """The device can write again."""
        for name in ("ballast", "more"):
            (self.under.path / name).unlink(missing_ok=True)


def _punch(fd: int, at: int, length: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.fallocate(fd, _PUNCH, ctypes.c_long(at), ctypes.c_long(length))
    assert done == 0, os.strerror(ctypes.get_errno())


@contextmanager
def failing(megabytes: int = 24) -> Iterator[Failing]:
    """A device that is in order until it is told to break down."""
    with memory(f"{megabytes + 8}m") as under:
        image = under.path / "image"
        with ext4(image, megabytes, allocate=True) as disk:
            yield Failing(under, image, disk)
