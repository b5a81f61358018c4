"""Figures of a store and of the processes that have it open."""

from __future__ import annotations

from . import _readers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Stats:
    """Figures of a store, read without stopping anybody: each is right by itself, not all at one instant."""

    __slots__ = (
        "cleaned",
        "conflicts",
        "epoch",
        "free_hints",
        "helped",
        "log_bytes",
        "log_live",
        "log_used",
        "moved",
        "oldest_pin",
        "operations",
        "pages",
        "path",
        "reaped",
        "segments",
        "segments_free",
        "segments_retired",
        "slots",
        "stable",
        "table_bytes",
        "views",
        "written",
    )

    path: str
    epoch: int  # the clock of the store
    stable: int  # what has this epoch or an older one is durable
    pages: int  # page ids ever given
    free_hints: int  # about how many may be used again
    slots: int  # processes attached
    operations: int  # writes that succeeded, of those that have or had the slots
    conflicts: int  # compare-and-swaps lost
    reaped: int  # dead processes cleaned up after
    helped: int  # commit words stored for others
    oldest_pin: int  # epoch
    views: int  # segments that views hold
    segments: int  # of the log, ever used
    segments_free: int
    segments_retired: int  # empty, and not free yet
    log_bytes: int  # of the file
    log_used: int  # of segments that hold anything
    log_live: int  # of records that are reachable, about
    table_bytes: int
    written: int  # bytes leased, ever
    cleaned: int  # segments emptied
    moved: int  # bytes copied for that

    def __init__(self, s: Any, path: str) -> None:
        self.path = path
        for name in self.__slots__:
            if name != "path":
                setattr(self, name, int(getattr(s, name)))

    @property
    def readers(self) -> list[_readers.Reader]:
        """Who has the store open and what each holds, read when it is asked for; who holds the oldest pin comes first.

        `stats().readers[0]` thus says who is to be asked when space or page ids are not used again.
        """
        found = _readers.readers(self.path)
        return sorted(found, key=lambda r: (r.oldest is None, r.oldest or 0, r.slot))

    def __repr__(self) -> str:
        return "Stats(" + ", ".join(f"{n}={getattr(self, n)!r}" for n in self.__slots__) + ")"
