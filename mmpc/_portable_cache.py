"""The object cache of the portable face: what csrc/objects.c is, in Python."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OVERHEAD = 512  # what an entry costs beside the value: twice what it does in csrc/objects.h


class Entry:
    """One object of the cache and its place in the queue."""

    __slots__ = ("generation", "head", "newer", "older", "page", "pid", "size", "visited", "wts")

    def __init__(self, pid: int, head: int, generation: int, wts: int, size: int, page: Any) -> None:
        self.pid = pid
        self.head = head
        self.generation = generation
        self.wts = wts
        self.size = size
        self.page = page
        self.visited = False
        self.newer: Entry | None = None
        self.older: Entry | None = None


class ObjectCache:
    """Decoded pages by page id, bounded in bytes, evicted by SIEVE (see csrc/objects.h); any thread.

    Victims leave the lock alive: their destructors, which may use the cache, run when the caller lets go.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.bytes = self.misses = self.evictions = 0
        self.encoded = 0  # fragments
        self.entries: dict[int, Entry] = {}
        self._newest: Entry | None = None
        self._oldest: Entry | None = None
        self._hand: Entry | None = None
        self._lock = threading.Lock()

    def put(self, entry: Entry) -> list[Entry]:
        """Stores `entry` if it fits and no newer version of the page is there; returns what had to go."""
        charge = entry.size + OVERHEAD
        gone: list[Entry] = []
        with self._lock:
            old = self.entries.get(entry.pid)
            if old is not None and old.wts > entry.wts:
                return gone
            if old is not None:
                self._take(old)
                gone.append(old)
            if charge > self.capacity:
                return gone
            while self.bytes + charge > self.capacity:
                gone.append(self._evict())
            self._enqueue(entry)
        entry.visited = old is not None
        return gone

    def remove(self, pid: int) -> Entry | None:
        """Takes the entry of a page out."""
        with self._lock:
            entry = self.entries.get(pid)
            if entry is not None:
                self._take(entry)
            return entry

    def clear(self) -> list[Entry]:
        """Takes everything out."""
        with self._lock:
            gone = list(self.entries.values())
            self.entries = {}
            self._newest = self._oldest = self._hand = None
            self.bytes = 0
        for entry in gone:
            entry.newer = entry.older = None
        return gone

    def _enqueue(self, entry: Entry) -> None:
        entry.older = self._newest
        if self._newest is not None:
            self._newest.newer = entry
        else:
            self._oldest = entry
        self._newest = entry
        self.entries[entry.pid] = entry
        self.bytes += entry.size + OVERHEAD

    def _take(self, entry: Entry) -> None:
        if self._hand is entry:
            self._hand = entry.newer
        if entry.newer is not None:
            entry.newer.older = entry.older
        else:
            self._newest = entry.older
        if entry.older is not None:
            entry.older.newer = entry.newer
        else:
            self._oldest = entry.newer
        entry.newer = entry.older = None
        del self.entries[entry.pid]
        self.bytes -= entry.size + OVERHEAD

    def _evict(self) -> Entry:
        entry = self._hand or self._oldest
        assert entry is not None
        while entry.visited:
            entry.visited = False
            entry = entry.newer or self._oldest
            assert entry is not None
        self._hand = entry
        self.evictions += 1
        self._take(entry)
        return entry
