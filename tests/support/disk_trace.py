"""The trace of a scenario: all stores, writes, syncs and directory operations of all its processes, in their order.

The core of the disk build (csrc/disk.c) writes its part; what the modules of mmpc do with files by `os` comes from a
proxy that stands in for `os` in them.  Notes of the driver (an operation returned, a flush began) lie in between.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from mmpc._native import ffi, lib

STORE, GROW, CUT, SYNC_BEGIN, SYNC_END, CREATE, RENAME, UNLINK, NOTE = range(1, 10)
SECTOR = 512
PIECE = 64
HEADER = 64
_EVENT = struct.Struct("<IIQQII")
NAMES = ("_files", "_store", "_snapshot", "_recovery", "_backup", "_cut")  # all that change files of a store
_MODULES = tuple(f"mmpc.{name}" for name in NAMES)  # those of them that there are


class Event(NamedTuple):
    kind: int
    file: int  # inode number
    offset: int  # SYNC_END: the index of the event with which it began
    data: bytes  # SYNC_END: empty, or two words, from and to: of these bytes alone
    process: int


class Recorder:
    """Memory for a trace, shared with the children of this process."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size)
        self._size = size

    def start(self, root: str) -> None:
        """Records from now on, in this process and those that it forks; `root` is the directory of the store."""
        if lib.mm_disk_start(ffi.from_buffer(self._memory), self._size):
            raise RuntimeError("this is no disk build: run `.ci/run disk`")
        self.os = RecordingOs(root)
        _stand_in(self.os)

    def stop(self) -> list[Event]:
        """Nothing is recorded any more; what was."""
        end = lib.mm_disk_position()
        lib.mm_disk_start(ffi.NULL, 0)
        _stand_in(os)
        events = list(_parse(self._memory, end))
        self._memory.close()
        return events


def _stand_in(module: Any) -> None:
    for name in _MODULES:
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        if hasattr(found, "os"):
            found.os = module


def _parse(memory: Any, end: int) -> Iterator[Event]:
    at, index = HEADER, {}
    while at < end:
        kind, length, file, offset, process, _zero = _EVENT.unpack_from(memory, at)
        index[at] = len(index)
        start = at + _EVENT.size
        yield Event(kind, file, index[offset] if kind == SYNC_END else offset, memory[start : start + length], process)
        at = start + (length + 7 & ~7)


def event(kind: int, file: int, offset: int = 0, data: bytes = b"") -> int:
    return int(lib.mm_disk_note(kind, file, offset, data, len(data)))


def note(**fields: Any) -> None:
    """What the driver, or a process of a scenario, has to say at this moment."""
    event(NOTE, 0, 0, json.dumps(fields).encode())


@contextmanager
def _held() -> Iterator[None]:
    lib.mm_disk_hold()
    try:
        yield
    finally:
        lib.mm_disk_release()


class RecordingOs:
    """`os`, with what changes files of the store written down."""

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(root)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _name(self, path: str) -> str | None:
        """The name of a file of the store; None for files elsewhere."""
        folder, name = os.path.split(os.path.realpath(path))
        return name if folder == self._root else None

    def open(self, path: str, flags: int, mode: int = 0o777, **options: Any) -> int:
        name = self._name(path)
        with _held():
            there = os.path.lexists(path)
            fd = os.open(path, flags, mode, **options)
            if name is not None and not there:
                event(CREATE, os.fstat(fd).st_ino, 0, name.encode())
            elif name is not None and flags & os.O_TRUNC:
                event(CUT, os.fstat(fd).st_ino, 0)
        return fd

    def write(self, fd: int, data: Any) -> int:
        with _held():
            at = os.lseek(fd, 0, os.SEEK_CUR)
            n = os.write(fd, data)
            _wrote(fd, bytes(data[:n]), at)
        return n

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        with _held():
            n = os.pwrite(fd, data, offset)
            _wrote(fd, bytes(data[:n]), offset)
        return n

    def ftruncate(self, fd: int, length: int) -> None:
        with _held():
            os.ftruncate(fd, length)
            event(CUT, os.fstat(fd).st_ino, length)

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        with _held():
            os.posix_fallocate(fd, offset, length)
            event(GROW, os.fstat(fd).st_ino, offset + length)

    def fsync(self, fd: int) -> None:
        begun = event(SYNC_BEGIN, os.fstat(fd).st_ino)
        os.fsync(fd)
        if begun:
            event(SYNC_END, os.fstat(fd).st_ino, begun)

    fdatasync = fsync

    def rename(self, old: str, new: str) -> None:
        with _held():
            os.rename(old, new)
            event(RENAME, 0, 0, b"".join((self._name(p) or "?").encode() + b"\0" for p in (old, new)))

    replace = rename

    def unlink(self, path: str) -> None:
        with _held():
            os.unlink(path)
            event(UNLINK, 0, 0, (self._name(path) or "?").encode())

    remove = unlink


def _wrote(fd: int, data: bytes, at: int) -> None:
    """In pieces: each sector reaches the disk by itself, and one that is just written may be torn."""
    file = os.fstat(fd).st_ino
    while data:
        n = PIECE - at % PIECE
        event(STORE, file, at, data[:n])
        data, at = data[n:], at + n
