"""Snapshots of a store: written aside and renamed, found again, and the newest good one chosen for a recovery.

A snapshot saves a recovery the reading of most of the log. Nothing depends on it: one that is torn, damaged, missing,
or older than it could be costs time. The bytes are csrc/snapshot.c's business; names and renames are this module's.
"""

from __future__ import annotations

import os

from . import _files, errors, failpoints
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

def found(path: str) -> list[str]:
    """Names of the snapshots in a store, newest first."""
    return sorted((n for n in os.listdir(path) if _files.is_snapshot(n)), reverse=True)


def write(attachment: Any, path: str) -> int:
    """Writes a snapshot of the store and removes older ones; returns the epoch whose mark makes it usable.

    It has its name when its bytes are durable, and is durable under it on return. Errors: those of a flush;
    DiskFullError, OSError: there is none then, and the older ones stay.
    """
    with attachment.snapshotting:
        taken = _write_aside(attachment.mm, path, os.path.join(path, f"snapshot.new-{attachment.slot}"))
    failpoints.reach("snap write mv post")
    _files.sync_directory(path)
    lib.mm_snapshot_named(attachment.mm, taken)
    _remove_older(path, _name(taken.b))
    return int(taken.b)


def _name(epoch: int) -> str:
    return f"snapshot-{epoch:016x}"


def _write_aside(mm: Any, path: str, temporary: str) -> Any:
    r, taken = ffi.new("mm_result *"), ffi.new("mm_snapshot_taken *")
    fd = _files.create_file(temporary)
    try:
        _files.share_as_log(fd, path)
        rc = lib.mm_snapshot_write(mm, fd, taken, r)
        if rc:
            raise errors.from_status(
                rc, pid=0, length=r.length, offset=r.offset, file=r.file, os_error=r.os_error, path=path
            )
        failpoints.reach("snap write mv")
        os.rename(temporary, os.path.join(path, _name(int(taken.b))))
    except BaseException:
        _files.remove_file(temporary)
        raise
    finally:
        os.close(fd)
    return taken


def _remove_older(path: str, name: str) -> None:
    """The new one is durable under its name. A writer that was stopped for long may not be the newest."""
    for other in found(path):
        if other < name:
            failpoints.reach("snap write rm old")
            _files.remove_file(os.path.join(path, other))


def remove_temporary(path: str) -> None:
    """Removes what dead writers left; nobody is attached."""
    for name in os.listdir(path):
        if _files.is_temporary_snapshot(name):
            _files.remove_file(os.path.join(path, name))


def keep_only(path: str, name: str | None) -> None:
    """Removes all snapshots but one, durably.

    A head that nobody committed or saw counts with its snapshot and is not found without it. So what a recovery
    passed over must not be used by a later one.
    """
    others = [n for n in found(path) if n != name]
    for other in others:
        try:
            _files.remove_file(os.path.join(path, other))
        except OSError:
            continue  # a directory of that name: it will never be used
    if others:
        _files.sync_directory(path)


class Chosen:
    """A snapshot that holds, open for reading."""

    __slots__ = ("fd", "info", "name")

    def __init__(self, name: str, fd: int, info: Any) -> None:
        self.name, self.fd, self.info = name, fd, info

    def close(self) -> None:
        os.close(self.fd)


def choose(c: Any, path: str, durable: int, notes: list[str]) -> Chosen | None:
    """The newest snapshot that holds in every byte, or None; `notes` learns why others were passed over.

    CorruptionError: one holds that was made after a mark newer than the newest mark there is: a mark is lost.
    """
    for name in found(path):
        try:
            fd = _files.open_file(os.path.join(path, name))
        except (errors.CorruptionError, OSError) as e:
            notes.append(f"{name} cannot be read ({e}) and was not used")
            continue
        chosen = None
        try:
            chosen = _judge(c, name, fd, durable, notes)
        finally:
            if chosen is None:
                os.close(fd)
        if chosen is not None:
            return chosen
    return None


def _judge(c: Any, name: str, fd: int, durable: int, notes: list[str]) -> Chosen | None:
    info, r = ffi.new("mm_snapshot_info *"), ffi.new("mm_result *")
    rc = lib.mm_snapshot_look(c, fd, info, r)
    if rc == errors.OK and info.b > durable:
        raise errors.CorruptionError(
            f"{name!r} was made when epoch {info.b} was durable, the newest mark says {durable}: 'marks' is damaged",
            file="marks",
            offset=0,
        )
    if rc == errors.OK:
        rc = lib.mm_snapshot_check(c, fd, info, r)
    if rc == errors.OK:
        return Chosen(name, fd, info)
    what = f"is damaged at offset {r.offset}" if rc == errors.CORRUPT else f"cannot be read ({os.strerror(r.os_error)})"
    notes.append(f"{name} {what} and was not used")
    return None
