"""clean: gives back at once what a store can do without, for quiet times and for `python -m mmpc gc`."""

from __future__ import annotations

import os
import time

from . import errors
from ._native import ffi, lib
from ._visit import visit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .pagecache import PageCache

    Progress = Callable[[int, int], None]

PATIENCE = 10.0  # seconds that a write under way is waited for
_LEAST = 8 << 20  # bytes that one call of the core is to gain: each ends with a flush


class Cleaned:
    """What `clean` did.

    `before`, `after`: bytes that the log takes on the device. `emptied`: segments; `moved`: bytes copied for that.
    `damage`: what could not be emptied, one CorruptionError each. `waiting`: a write that does not end, of a process
    that was stopped, kept a segment; `retired`: segments that are empty and still held by a pin or a view.
    """

    __slots__ = ("after", "before", "damage", "emptied", "moved", "path", "retired", "seconds", "waiting")

    def __init__(self, path: str) -> None:
        self.path = path
        self.before = self.after = self.emptied = self.moved = self.retired = 0
        self.damage: list[errors.CorruptionError] = []
        self.waiting = False
        self.seconds = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {name: getattr(self, name) for name in self.__slots__ if name != "damage"}
        damage = [{"file": e.file, "offset": e.offset, "message": str(e)} for e in self.damage]
        return found | {"ok": not damage, "damage": damage}

    def __str__(self) -> str:
        size = f"the log takes {self.after / 1e6:.1f} MB, {self.before / 1e6:.1f} MB before"
        work = f"{self.emptied} segments emptied, {self.moved / 1e6:.1f} MB moved; {self.seconds:.1f} s"
        lines = [f"{self.path}: {size}; {work}"]
        if self.retired:
            lines.append(f"{self.retired} more wait for readers: python -m mmpc readers {self.path}")
        if self.waiting:
            lines.append("a write under way does not end: somebody was stopped; run it again later")
        return "\n".join([*lines, *(f"damage: {e}" for e in self.damage)])


def clean(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Cleaned:
    """Empties every segment of the store in `path` from which space can be gained, and gives all that is free back to
    the file system. Anybody may use the store meanwhile; nothing that they read changes, and nobody waits.

    Writers keep the log small by themselves, and `attempt_gc` does a little at a time; this does all of it. Damage in
    a segment is reported, and the others are emptied. `progress(done, total)` is called now and then with bytes.
    Errors: those of `open`; StoreFailed, DiskFullError.
    """
    begun, log = time.monotonic(), os.path.join(os.path.abspath(os.fsdecode(path)), "log")
    with visit(path) as pc:
        report = Cleaned(pc.path)
        report.before = _taken(log)
        _empty(pc, report, progress or (lambda _done, _total: None))
        report.retired = pc.stats().segments_retired
    report.after = _taken(log)  # the last one to leave made it shorter
    report.seconds = time.monotonic() - begun
    return report


def _taken(log: str) -> int:
    return os.stat(log).st_blocks * 512


def _empty(pc: PageCache[Any], report: Cleaned, progress: Progress) -> None:
    """Until nothing is left to do; others may write as fast as this cleans, so at most twice what the log held."""
    total, done, end = pc.stats().log_used, 0, 0.0
    gain = max(_LEAST, 1 << pc._segment_shift())
    seen: set[int] = set()
    while done <= 2 * total:
        progress(min(done, total), total)
        found, damage = _step(pc, gain)
        report.emptied += found.retired
        report.moved += found.moved
        done += found.scanned
        if damage is not None:
            place = (damage.offset or 0) >> pc._segment_shift()
            if place in seen:
                return
            seen.add(place)
            report.damage.append(damage)
        elif not found.more and not found.scanned:
            return
        elif found.scanned:
            end = 0.0
        elif end and time.monotonic() > end:
            report.waiting = True
            return
        else:  # publishes from before the claim are waited for
            end = end or time.monotonic() + PATIENCE
            time.sleep(0.01)


def _step(pc: PageCache[Any], gain: int) -> tuple[Any, errors.CorruptionError | None]:
    r, report = ffi.new("mm_result *"), ffi.new("mm_clean_report *")
    status = lib.mm_clean(pc._attachment.mm, errors.ALL, gain, report, r)
    try:
        if status:
            pc._mend(status, (0, 0, 0, 0, r.length, r.offset, r.file, r.os_error), r.key.pid, None)
    except errors.CorruptionError as e:
        return report, e
    return report, None
