"""What a loss of power can leave on the disk, computed from a trace.

For each sector of 512 bytes by itself: any version since, and including, the one that the last completed sync of its
file, or of a range with it inside, guarantees, which is what memory held when that sync began.  The size of a file: any
since the last sync of the whole file.  Creations,
renames and removals: those before the last sync of the directory, then any number of the later ones, in their order
(the file systems are journalled).  A loss of power can come between any two events.
"""

from __future__ import annotations

import os
import random
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

from .disk_trace import CREATE, CUT, GROW, RENAME, SECTOR, STORE, SYNC_BEGIN, SYNC_END, UNLINK, Event

ZEROS = bytes(SECTOR)
VOLATILE = ("control", "table", "ids", "rts")  # of another boot, and never synced: some versions of each sector do
KEPT = 48  # so many of those
UNSEEN = ("open.lock",)  # made by a library, and empty
UNTOLD = ("metrics",)  # what is in it is no event: nothing depends on it


class Files:
    """A directory: names, and of each file (by a number) the size and the sectors that are not all zeros."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.sizes: dict[int, int] = {}
        self.sectors: dict[int, dict[int, bytes]] = {}

    @classmethod
    def read(cls, path: str) -> Files:
        files = cls()
        for name in sorted(set(os.listdir(path)) - set(UNSEEN)):
            fd = os.open(os.path.join(path, name), os.O_RDONLY)
            try:
                status = os.fstat(fd)
                files.names[name] = status.st_ino
                files.sizes[status.st_ino] = status.st_size
                files.sectors[status.st_ino] = dict(_sectors(fd, status.st_size))
            finally:
                os.close(fd)
        return files

    def write(self, path: str) -> None:
        os.makedirs(path, mode=0o700)
        for name, file in self.names.items():
            fd = os.open(os.path.join(path, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            try:
                size = self.sizes[file]
                os.ftruncate(fd, size)
                for at, data in _runs(self.sectors[file]):
                    if at < size:
                        os.pwrite(fd, data[: size - at], at)
            finally:
                os.close(fd)

    def difference(self, other: Files) -> str:
        """The first thing that is not the same; numbers of files do not count."""
        if set(self.names) != set(other.names):
            return f"names {sorted(self.names)} and {sorted(other.names)}"
        for name in set(self.names) - set(UNTOLD):
            a, b = self.names[name], other.names[name]
            if self.sizes[a] != other.sizes[b]:
                return f"{name}: sizes {self.sizes[a]} and {other.sizes[b]}"
            ours, theirs = self.sectors[a], other.sectors[b]
            for sector in sorted({*ours, *theirs}):
                left, right = ours.get(sector, ZEROS), theirs.get(sector, ZEROS)
                if left != right:
                    at = next(i for i in range(SECTOR) if left[i] != right[i])
                    return f"{name}: offset {sector * SECTOR + at} of {self.sizes[a]}"
        return ""


def _sectors(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA) // SECTOR * SECTOR
        except OSError:
            return
        end = os.lseek(fd, at, os.SEEK_HOLE)
        data = os.pread(fd, end - at, at)
        for i in range(0, len(data), SECTOR):
            part = data[i : i + SECTOR].ljust(SECTOR, b"\0")
            if part != ZEROS:
                yield (at + i) // SECTOR, part
        at = end


def _runs(sectors: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    run: list[bytes] = []
    start = last = -2
    for sector in sorted(sectors):
        if sector != last + 1:
            if run:
                yield start * SECTOR, b"".join(run)
            run, start = [], sector
        run.append(sectors[sector])
        last = sector
    if run:
        yield start * SECTOR, b"".join(run)


class Versions:
    """Of one sector, or of one size: what it was, and the index of the event that made it so (-1: the start)."""

    __slots__ = ("since", "values")

    def __init__(self, first: Any) -> None:
        self.since = [-1]
        self.values = [first]

    def add(self, index: int, value: Any) -> None:
        if value == self.values[-1]:
            return
        if self.since[-1] == index:
            self.values[-1] = value
        else:
            self.since.append(index)
            self.values.append(value)

    def thin(self) -> None:
        keep = [0, *range(2, len(self.values) - 1, 2), len(self.values) - 1]
        self.since, self.values = [self.since[i] for i in keep], [self.values[i] for i in keep]

    def range(self, floor: int, crash: int) -> tuple[int, int]:
        """The oldest and the newest that can be on the disk."""
        return max(bisect_left(self.since, floor) - 1, 0), bisect_left(self.since, crash) - 1


Pick = Callable[[int, int, int, Versions], int]  # (file, oldest, newest, versions) -> one between


class Disk:
    """All that a trace says of the files."""

    def __init__(self, start: Files, events: list[Event], directory: int) -> None:
        self.directory = directory
        self.end = len(events)
        self.first_names = dict(start.names)
        self.sizes = {file: Versions(size) for file, size in start.sizes.items()}
        self.sectors = {f: {n: Versions(data) for n, data in sectors.items()} for f, sectors in start.sectors.items()}
        self.syncs: dict[int, list[tuple[int, int]]] = {}  # of a file: (end, begin), the begin of the best until then
        self.ranges: dict[int, dict[int, list[tuple[int, int]]]] = {}  # of a file and sector, by syncs of a range
        self.moves: list[tuple[int, Event]] = []  # in the directory
        self.boundaries: list[int] = []
        self.volatile = {f for name, f in start.names.items() if _stem(name) in VOLATILE}
        for index, event in enumerate(events):
            self._take(index, event)

    def _take(self, index: int, event: Event) -> None:
        kind, file = event.kind, event.file
        if kind in (STORE, GROW, CUT) and file not in self.sizes:
            return  # of another directory: a copy that is made of this one, or what this is a copy of
        if kind == STORE:
            self._store(index, file, event.offset, event.data)
        elif kind == GROW:
            self._resize(index, file, max(event.offset, self.sizes[file].values[-1]))
        elif kind == CUT:
            self._cut(index, file, event.offset)
        elif kind in (CREATE, RENAME, UNLINK):
            self.moves.append((index, event))
            if kind == CREATE:
                self.sizes[file], self.sectors[file] = Versions(0), {}
                if _stem(event.data.decode()) in VOLATILE:
                    self.volatile.add(file)
        elif kind == SYNC_END and event.data:
            start, end = struct.unpack("<QQ", event.data)
            for sector in range(start // SECTOR, end // SECTOR):
                _ended(self.ranges.setdefault(file, {}).setdefault(sector, []), index, event.offset)
        elif kind == SYNC_END:
            _ended(self.syncs.setdefault(file, []), index, event.offset)
        if kind in (SYNC_BEGIN, SYNC_END, CREATE, RENAME, UNLINK, CUT):
            self.boundaries.append(index)

    def _store(self, index: int, file: int, at: int, data: bytes) -> None:
        end = at + len(data)
        if end > self.sizes[file].values[-1]:
            self._resize(index, file, end)
        while data:
            sector, inside = divmod(at, SECTOR)
            part = data[: SECTOR - inside]
            versions = self.sectors[file].setdefault(sector, Versions(ZEROS))
            before = versions.values[-1]
            versions.add(index, before[:inside] + part + before[inside + len(part) :])
            if file in self.volatile and len(versions.values) > 2 * KEPT:
                versions.thin()
            data, at = data[len(part) :], at + len(part)

    def _resize(self, index: int, file: int, size: int) -> None:
        self.sizes[file].add(index, size)

    def _cut(self, index: int, file: int, size: int) -> None:
        for sector, versions in self.sectors[file].items():
            keep = min(max(size - sector * SECTOR, 0), SECTOR)
            versions.add(index, versions.values[-1][:keep].ljust(SECTOR, b"\0"))
        self._resize(index, file, size)

    # ---- states of the disk

    def floor(self, file: int, crash: int) -> int:
        """What happened to the file before this event is on the disk."""
        return _begun(self.syncs.get(file, []), crash)

    def floors(self, file: int, crash: int) -> Callable[[int], int]:
        """The same of a sector."""
        all_of_it, ranges = self.floor(file, crash), self.ranges.get(file)
        if not ranges:
            return lambda _sector: all_of_it
        return lambda sector: max(all_of_it, _begun(ranges.get(sector, []), crash))

    def names(self, moves: int) -> dict[str, int]:
        """The directory after so many operations in it."""
        names = dict(self.first_names)
        for _index, event in self.moves[:moves]:
            if event.kind == CREATE:
                names[event.data.decode()] = event.file
            elif event.kind == UNLINK:
                names.pop(event.data.decode(), None)
            else:
                old, new = event.data.decode().split("\0")[:2]
                names[new] = names.pop(old)
        return names

    def moves_range(self, crash: int) -> tuple[int, int]:
        done = [index for index, _event in self.moves]
        return bisect_left(done, self.floor(self.directory, crash)), bisect_left(done, crash)

    def image(self, crash: int, pick: Pick, moves: int | None = None) -> Files:
        """One state after a loss of power just before event `crash`."""
        files = Files()
        files.names = self.names(self.moves_range(crash)[1] if moves is None else moves)
        for file in files.names.values():
            floor = self.floor(file, crash)
            sizes = self.sizes[file]
            files.sizes[file] = sizes.values[self._one(file, sizes, floor, crash, pick)]
            chosen, floors = files.sectors.setdefault(file, {}), self.floors(file, crash)
            for number, versions in self.sectors[file].items():
                data = versions.values[self._one(file, versions, floors(number), crash, pick)]
                if data != ZEROS:
                    chosen[number] = data
        return files

    @staticmethod
    def _one(file: int, versions: Versions, floor: int, crash: int, pick: Pick) -> int:
        oldest, newest = versions.range(floor, crash)
        return newest if oldest >= newest else pick(file, oldest, newest, versions)

    def newest(self) -> Files:
        """What the files hold when nothing is lost."""
        return self.image(self.end, lambda _file, _oldest, newest, _versions: newest)

    def open_sectors(self, crash: int) -> list[Versions]:
        """Those of lasting files that can be on the disk in more than one version."""
        found = []
        for file in self.names(self.moves_range(crash)[1]).values():
            floors = self.floors(file, crash)
            if file not in self.volatile:
                open_now = ((v, v.range(floors(n), crash)) for n, v in self.sectors[file].items())
                found += [versions for versions, (oldest, newest) in open_now if oldest < newest]
        return found


def _ended(done: list[tuple[int, int]], index: int, begun: int) -> None:
    done.append((index, max(begun, done[-1][1] if done else 0)))


def _begun(done: list[tuple[int, int]], crash: int) -> int:
    """When the best sync began that had ended before `crash`."""
    n = bisect_left(done, (crash, -1))
    return done[n - 1][1] if n else 0


def _stem(name: str) -> str:
    return name.removesuffix(".new")


# ---- drawing


def draw(disk: Disk, rng: random.Random, points: range, focus: int = 0) -> tuple[int, str, Files]:
    """A crash point out of `points`, often before `focus`; the name of a bias; an image."""
    if focus and rng.random() < 0.4:
        points = range(points.start, max(focus, points.start + 1))
    crash = _crash_point(disk, rng, points)
    name = rng.choice(list(BIASES))
    pick = BIASES[name](disk, rng, crash)
    low, high = disk.moves_range(crash)
    moves = {"old": low, "new": high}.get(name, rng.choice((high, high, rng.randint(low, high))))
    return crash, name, disk.image(crash, pick, moves)


def _crash_point(disk: Disk, rng: random.Random, points: range) -> int:
    """Any, or one near a sync or an operation in the directory."""
    near = disk.boundaries[bisect_left(disk.boundaries, points.start) : bisect_left(disk.boundaries, points.stop)]
    if rng.random() < 0.5 or not near:
        return rng.choice(points)
    at = rng.choice(near) + rng.choice((0, 1, 1, 2, rng.randint(-20, 20), rng.randint(0, 200)))
    return min(max(at, points.start), points.stop - 1)


def _old(_disk: Disk, _rng: random.Random, _crash: int) -> Pick:
    return lambda _file, oldest, _newest, _versions: oldest


def _new(_disk: Disk, _rng: random.Random, _crash: int) -> Pick:
    return lambda _file, _oldest, newest, _versions: newest


def _any(_disk: Disk, rng: random.Random, _crash: int) -> Pick:
    return lambda _file, oldest, newest, _versions: rng.randint(oldest, newest)


def _ends(_disk: Disk, rng: random.Random, _crash: int) -> Pick:
    """Each sector old or new, by a coin that is not fair."""
    p = rng.choice((0.05, 0.2, 0.5, 0.8, 0.95))
    return lambda _file, oldest, newest, _versions: newest if rng.random() < p else oldest


def _one_old(disk: Disk, rng: random.Random, crash: int) -> Pick:
    """All is new but one sector."""
    found = disk.open_sectors(crash)
    lost = rng.choice(found) if found else None
    return lambda _f, oldest, newest, v: rng.choice((oldest, rng.randint(oldest, newest))) if v is lost else newest


def _one_new(disk: Disk, rng: random.Random, crash: int) -> Pick:
    found = disk.open_sectors(crash)
    kept = rng.choice(found) if found else None
    return lambda _f, oldest, newest, v: rng.choice((newest, rng.randint(oldest, newest))) if v is kept else oldest


def _file_old(disk: Disk, rng: random.Random, crash: int) -> Pick:
    lost = rng.choice(sorted(disk.names(disk.moves_range(crash)[1]).values()) or [0])
    return lambda file, oldest, newest, _versions: oldest if file == lost else newest


def _file_new(disk: Disk, rng: random.Random, crash: int) -> Pick:
    kept = rng.choice(sorted(disk.names(disk.moves_range(crash)[1]).values()) or [0])
    return lambda file, oldest, newest, _versions: newest if file == kept else oldest


def _newest_lost(disk: Disk, rng: random.Random, crash: int) -> Pick:
    """As if the disk had stood still a little earlier, but for a few sectors."""
    end = max(0, crash - rng.choice((1, 3, 10, 30, 100, 300, 1000)))
    odd = rng.choice((0, 0.02, 0.1))

    def pick(_file: int, oldest: int, newest: int, versions: Versions) -> int:
        if rng.random() < odd:
            return rng.randint(oldest, newest)
        return min(max(bisect_left(versions.since, end) - 1, oldest), newest)

    return pick


BIASES: dict[str, Callable[[Disk, random.Random, int], Pick]] = {
    "old": _old,
    "new": _new,
    "any": _any,
    "ends": _ends,
    "one-old": _one_old,
    "one-new": _one_new,
    "file-old": _file_old,
    "file-new": _file_new,
    "newest-lost": _newest_lost,
}
