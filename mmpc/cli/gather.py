"""The figures of a store, read from its files: the one place that commands take them from.

It attaches to nothing, takes no slot, needs no permission to write, and holds nobody up. Others change the words
meanwhile, so each figure is right by itself, not all at one instant. While `control` is of this boot and of this log,
it says everything; else the store must be recovered by the next open, and what can be known is in `config`, the
marks, the headers of segments and the newest snapshot.
"""

from __future__ import annotations

import os
import time

from .. import _files, _metrics, _readers, errors
from .._extent import run_at
from .._findings import Findings
from .._intents import Intents
from .._lasting import Config, read_marks
from .._layout import (
    BLOCK,
    CONTROL_GLOBALS,
    CONTROL_SEGMENTS,
    CONTROL_SLOTS,
    FIGURES,
    FORMAT,
    GLOBALS,
    IN_USE,
    LAYOUT_VERSION,
    MASK32,
    MAX_SEGMENTS,
    REST_RUN,
    SEGMENT_ENTRY,
    SEGMENT_ENTRY_SIZE,
    SLOT_COUNTS,
    SLOT_COUNTS_AT,
    SLOT_SIZE,
    SLOTS,
    SNAPSHOT_ENTRY,
    SNAPSHOT_HEADER,
    SNAPSHOT_RUN,
    STATES,
    WRITTEN_ALWAYS,
)
from .._log import segment_at
from .._volatile import OTHER_LAYOUT, Control, read_control
from . import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .._log import Piece

_NAMES = ("control", "table", "log", "ids", "rts", "marks", "lock")
UNKNOWN = "unknown"
FOREIGN = OTHER_LAYOUT
_TRIES, _PAUSE = 5, 0.05
_USED = ("open", "sealed", "claimed", "extent")


class Segment:
    """One segment of the log.

    `state` is a name of STATES; of a store that must be recovered first, "sealed" for one with a header that holds.
    `taken`: bytes that leases took, or None if that is not known; `live`: bytes in records that are reachable, about;
    of a run, which holds one large payload, both are what lies in this segment of it. `disk`: bytes of it that are no
    hole in the file. `opened` and `written` are epochs: when it was opened, and when its last finished lease ended
    (None: not known).
    """

    __slots__ = ("disk", "generation", "live", "number", "opened", "size", "state", "taken", "written")

    def __init__(self, number: int, state: str, generation: int, size: int) -> None:
        self.number, self.state, self.generation, self.size = number, state, generation, size
        self.taken: int | None = 0
        self.live, self.disk, self.opened = 0, 0, 0
        self.written: int | None = None

    @property
    def used(self) -> bool:
        """It holds records that are needed, as far as anybody knows; a retired one holds none."""
        return self.state in _USED

    @property
    def share(self) -> float | None:
        """The live part of what was taken, 0 to 1; None where nothing was taken, or that is not known."""
        return min(1.0, self.live / self.taken) if self.used and self.taken else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {"share": self.share}


class Snapshot:
    """The header of the newest snapshot: its name, when it was written (ns since 1970), how much log there was then."""

    __slots__ = ("created", "entries", "log_taken", "name", "pages")

    def __init__(self, name: str, pages: int, log_taken: int, created: int, entries: list[tuple[int, int]]) -> None:
        self.name, self.pages, self.log_taken, self.created, self.entries = name, pages, log_taken, created, entries


class Store:
    """The files of the store in `path`, open for reading; a context manager.

    `current`: `control` is of this boot and this log, so it is believed. `foreign`: it is, but of another version of
    mmpc, which has the store open. Errors: FileNotFoundError, IncompatibleStore, CorruptionError, PermissionError.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.config = read_config(self.path)
        self.shift = self.config.segment_shift
        self.fds: dict[str, int] = {}
        self.foreign = False
        for _ in range(_TRIES):
            self._open()
            if self.current or not self._held():
                return
            self.foreign = self.control.of_this_boot
            self.__exit__()
            time.sleep(_PAUSE)  # a recovery may just be replacing `control`
        if not self.foreign:
            said = f"{self.path!r} is open, and 'control' does not say by whom: it is damaged, or was replaced"
            raise errors.CorruptionError(said, file="control", offset=0)
        self._open()

    def _held(self) -> bool:
        """Whether somebody has the store open, by the locks."""
        return "lock" in self.fds and _readers._locked(self.fds["lock"], 0, SLOTS)

    def _open(self) -> None:
        try:
            for name in _NAMES:
                try:
                    self.fds[name] = _files.open_file(os.path.join(self.path, name))
                except FileNotFoundError:
                    continue
                except errors.CorruptionError:
                    if name in ("log", "marks"):
                        raise
            self.findings = Findings()
            self.control: Control = read_control(self.fds, self.config.uuid, _files.boot_id(), self.findings)
        except BaseException:
            self.__exit__()
            raise
        self.current = self.control.known and "lock" in self.fds

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}

    def lasting(self) -> Config:
        """What `config` says, as those who read the log want it."""
        c = self.config
        return Config(c.uuid, c.segment_shift, c.materializer, c.codec, c.discards)

    # ---- words of `control`

    def word(self, name: str) -> int:
        """A global; 0 where `control` says nothing."""
        if not self.current:
            return 0
        at = CONTROL_GLOBALS + (FIGURES[name] if name in FIGURES else GLOBALS[name])
        return int.from_bytes(os.pread(self.fds["control"], 8, at), "little")

    def durable(self) -> int:
        """The newest durable epoch: everything with an LSN up to it survives a loss of power."""
        return self.word("stable") if self.current else self.mark()

    def mark(self) -> int:
        """The newest durable epoch by what lasts: the newest mark, and what flushes said in the log itself."""
        return self.lasts()[0]

    def lasts(self) -> tuple[int, list[Piece]]:
        """That, and the bytes of the log that only such a flush has, out of their places."""
        if "marks" not in self.fds:
            return 0, []
        marks = read_marks(self.fds["marks"], self.config.uuid, self.findings)
        if "log" not in self.fds:
            return marks.durable, []
        bounded = self.control.of_this_boot
        intents = Intents(self.lasting(), marks, lambda at, n: os.pread(self.fds["log"], n, at), bounded)
        intents.promote()
        return marks.durable, intents.pieces

    def readers(self) -> list[_readers.Reader]:
        """Who has the store open."""
        return _readers.held(self.fds["control"], self.fds["lock"], self.shift) if self.current else []

    def counts(self) -> list[tuple[int, int]]:
        """(operations, conflicts) of every slot that was ever claimed."""
        data = (
            os.pread(self.fds["control"], min(self.word("slots_used"), SLOTS) * SLOT_SIZE, CONTROL_SLOTS)
            if self.current
            else b""
        )
        return [
            (int(pair[0]), int(pair[1]))
            for at in range(SLOT_COUNTS_AT, len(data), SLOT_SIZE)
            for pair in (SLOT_COUNTS.unpack_from(data, at),)
        ]

    # ---- files and segments

    def files(self) -> dict[str, tuple[int, int]]:
        """(apparent size, bytes on the device) of each file of the store that is there."""
        found = {}
        for name in sorted(os.listdir(self.path)):
            if _files.belongs(name):
                try:
                    status = os.stat(os.path.join(self.path, name), follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found[name] = status.st_size, status.st_blocks * 512
        return found

    def segments(self, disk: bool = True) -> list[Segment]:
        """All segments, by number. `disk`: with what each takes on the device, which costs some system calls each."""
        found = self._entries() if self.current else self._headers()
        if disk and "log" in self.fds:
            _measure(self.fds["log"], found, self.shift)
        return found

    def _entries(self) -> list[Segment]:
        count = min(self.word("segments"), MAX_SEGMENTS)
        data = os.pread(self.fds["control"], count * SEGMENT_ENTRY_SIZE, CONTROL_SEGMENTS)
        found, runs = [], []
        for number, entry in enumerate(SEGMENT_ENTRY.iter_unpack(data)):
            word, fill, live, _salt, opened, written, _since, looked = entry
            state, generation = word & 15, word >> 4 & 0xFFFFFF
            s = Segment(number, STATES[state] if state < len(STATES) else UNKNOWN, generation, 1 << self.shift)
            taken = fill & MASK32 if fill >> 32 == generation else 0
            if word >> 28 & REST_RUN and s.state in ("extent", "retired"):
                runs.append((s, taken, looked, opened))
            elif state in IN_USE:
                s.taken = taken * BLOCK
                s.live = live if live < 1 << 63 else 0  # it is a sum of what many add and take away
                s.opened, s.written = opened, written if written != WRITTEN_ALWAYS else None
            found.append(s)
        for first, segments, size, opened in runs:
            _lay(first, found[first.number : first.number + segments], size, opened)
        return found

    def _headers(self) -> list[Segment]:
        """Of a store that must be recovered first. Runs are those that the newest snapshot knows: whether a later one
        is in use is for the records to say.
        """
        log, found, snapshot = self.fds.get("log"), [], self.snapshot(entries=True)
        size = os.fstat(log).st_size if log is not None else 0
        entries = snapshot.entries if snapshot is not None else []
        live = {n: b for n, (_word, b) in enumerate(entries)}
        words, runs = {n: word for n, (word, _b) in enumerate(entries)}, []
        for number in range((size + (1 << self.shift) - 1) >> self.shift):
            assert log is not None
            block = os.pread(log, BLOCK, number << self.shift)
            header, run = segment_at(block, number, self.config.uuid), run_at(block, number, self.config.uuid)
            state = "free" if header is None else "retired" if header.retired else "sealed"
            s = Segment(number, state, header.generation if header is not None else 0, 1 << self.shift)
            if header is not None:
                s.taken, s.opened = None, header.epoch
                s.live = live.get(number, 0)
            elif run is not None and words.get(number, 0) == run.generation << 32 | SNAPSHOT_RUN:
                runs.append((s, run))
            found.append(s)
        for first, run in runs:
            for s in found[first.number : first.number + run.segments]:
                s.state, s.generation, s.taken, s.opened, s.live = "extent", run.generation, None, run.epoch, s.size
        return found

    def snapshot(self, entries: bool = False) -> Snapshot | None:
        """The newest snapshot whose header can be read. `entries`: with what it says of the segments."""
        names = sorted((n for n in os.listdir(self.path) if _files.is_snapshot(n)), reverse=True)
        for name in names:
            try:
                fd = _files.open_file(os.path.join(self.path, name))
            except (OSError, errors.MmpcError):
                continue
            try:
                head = os.pread(fd, SNAPSHOT_HEADER.size, 0)
                if len(head) < SNAPSHOT_HEADER.size:
                    continue
                *_start, segments, pages, _size, taken, _shift, _sums, created = SNAPSHOT_HEADER.unpack(head)
                data = (
                    os.pread(fd, SNAPSHOT_ENTRY.size * segments, BLOCK) if entries and segments <= MAX_SEGMENTS else b""
                )
                whole = len(data) // SNAPSHOT_ENTRY.size * SNAPSHOT_ENTRY.size
                said = [(int(word), int(live)) for word, live in SNAPSHOT_ENTRY.iter_unpack(data[:whole])]
                return Snapshot(name, pages, taken, created, said)
            finally:
                os.close(fd)
        return None


def _lay(first: Segment, run: list[Segment], size: int, opened: int) -> None:
    """Says of each segment of a run what it holds of the payload; the first one is retired before the others."""
    for k, s in enumerate(run):
        if s.state not in ("extent", first.state):
            continue  # read a moment apart
        s.state, s.opened = first.state, opened
        s.taken = max(0, min(s.size, size - k * s.size))
        s.live = s.taken if s.used else 0


def filled(segments: Iterable[Segment]) -> tuple[int, int]:
    """(bytes taken of the segments in use, bytes live in them); one of which the first is not known counts whole."""
    used = [s for s in segments if s.used]
    taken = sum(s.taken if s.taken is not None else s.size for s in used)
    return taken, min(taken, sum(s.live for s in used))  # what is live is known about


def read_config(path: str) -> _files.Config:
    """The config of the store in `path`.

    Errors: FileNotFoundError, IncompatibleStore, CorruptionError, PermissionError.
    """
    try:
        config = _files.read_config(path)
        names = os.listdir(path) if config is None and os.path.isdir(path) else []
    except errors.Unsupported as e:
        raise e.__cause__ if isinstance(e.__cause__, PermissionError) else e from None
    if config is not None:
        return config
    if {"log", "marks"} & set(names):
        raise errors.CorruptionError(f"'config' is missing in {path!r}", file="config", offset=0)
    if names:
        raise errors.IncompatibleStore(f"{path!r} is not an mmpc store: it holds no 'config'")
    raise FileNotFoundError(2, "no store here", path)


def _measure(log: int, segments: list[Segment], shift: int) -> None:
    """What of each segment is no hole."""
    at, end = 0, os.fstat(log).st_size
    while at < end:
        try:
            start = os.lseek(log, at, os.SEEK_DATA)
            at = os.lseek(log, start, os.SEEK_HOLE)
        except OSError:  # nothing but a hole up to the end
            return
        for number in range(start >> shift, (at - 1 >> shift) + 1):
            if number < len(segments):
                low, high = max(start, number << shift), min(at, (number + 1) << shift)
                segments[number].disk += high - low


# ---- the figures of a store as one object


def figures(path: str) -> dict[str, Any]:
    """All figures of a store, as `stat --json` prints them; docs/cli.md says what each means."""
    with Store(path) as store:
        config, snapshot, readers = store.config, store.snapshot(), store.readers()
        return {
            "path": store.path,
            "state": _state(store, readers),
            "format": FORMAT,
            "layout": LAYOUT_VERSION,
            "uuid": config.uuid.hex(),
            "created": config.created / 1e9,
            "options": {
                "materializer": config.materializer,
                "codec": config.codec,
                "segment_size": 1 << store.shift,
            },
            "recoveries_that_discarded": len(config.discards),
            "bytes": _bytes(store),
            "log": _log(store),
            "pages": _pages(store, snapshot),
            "epoch": _epoch(store),
            "flushes": {
                "syncs": store.word("flushes"),
                "shared": store.word("shared"),
                "seconds": store.word("flush_time") / 1e9,
            },
            "snapshot": _snapshot(store, snapshot),
            "processes": _processes(store, readers),
            "failed": store.word("failed"),
        }


def _bytes(store: Store) -> dict[str, Any]:
    files = store.files()
    return {
        "apparent": sum(size for size, _disk in files.values()),
        "disk": sum(disk for _size, disk in files.values()),
        "files": {name: {"apparent": size, "disk": disk} for name, (size, disk) in files.items()},
    }


def _log(store: Store) -> dict[str, Any]:
    segments = store.segments(disk=False)
    taken, live = filled(segments)
    return {
        "segments": {name: sum(s.state == name for s in segments) for name in STATES},
        "taken": taken if store.current else None,
        "live": live,
        "share": live / taken if taken and store.current else None,
        "waiting": sum(s.size for s in segments if s.state == "retired"),
        "written": store.word("log_taken"),
        "cleaned": store.word("cleaned"),
        "moved": store.word("moved"),
    }


def _pages(store: Store, snapshot: Snapshot | None) -> dict[str, int | None]:
    known = snapshot.pages if snapshot is not None else None
    return {"ids": store.word("max_pid") if store.current else known, "free_about": store.word("free_ids")}


def _epoch(store: Store) -> dict[str, int]:
    now, durable = store.word("epoch"), store.durable()
    lag = max(0, now - 1 - durable) if store.current else 0
    return {"now": now, "durable": durable, "lag": lag, "dirty": store.word("dirty")}


def _snapshot(store: Store, snapshot: Snapshot | None) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    return {
        "name": snapshot.name,
        "created": snapshot.created / 1e9,
        "log_since": max(0, store.word("log_taken") - snapshot.log_taken) if store.current else None,
        "written_in_this_life": store.word("snapshots"),
    }


def _processes(store: Store, readers: list[_readers.Reader]) -> dict[str, int]:
    counts = store.counts()
    return {
        "alive": sum(r.alive for r in readers),
        "dead": sum(not r.alive for r in readers),
        "reaped": store.word("reaped"),
        "helped": store.word("helped"),
        "operations": sum(a for a, _b in counts),
        "conflicts": sum(b for _a, b in counts),
    }


def _state(store: Store, readers: list[_readers.Reader]) -> str:
    if store.word("failed"):
        return "failed"
    if store.foreign:
        return "open in another version"
    if not store.current:
        return "to be recovered"
    return "open" if any(r.alive for r in readers) else "closed"


# ---- one moment after the other

# Of the metrics: what people wait for, the frequent things first.
LATENCIES = (
    "get_hit",
    "page_in",
    "append",
    "link",
    "replace",
    "allocate",
    "free",
    "flush",
    "sync",
    "clean",
    "snapshot",
)


def metrics(path: str) -> _metrics.Metrics | None:
    """What was counted and timed in the store; None: it keeps no metrics now."""
    try:
        return _metrics.read(path)
    except errors.Unsupported:
        return None


class Latency:
    """How long one kind of thing took: between two histograms, or ever.

    `count` is an estimate where one call in `every` is timed.
    """

    __slots__ = ("buckets", "count", "every", "name", "what")

    def __init__(self, now: _metrics.Histogram, before: _metrics.Histogram | None = None) -> None:
        self.name, self.what, self.every = now.name, now.what, now.every
        old = {low: n for low, _high, n in before.buckets()} if before is not None else {}
        risen = [(low, high, n - old.get(low, 0)) for low, high, n in now.buckets()]
        self.buckets = [(low, high, n) for low, high, n in risen if n > 0]
        self.count = sum(n for _low, _high, n in self.buckets)

    def percentile(self, q: float) -> float:
        """In seconds, to within a sixteenth of itself; 0.0 where nothing was timed."""
        seen = 0
        for low, high, n in self.buckets:
            seen += n
            if seen >= q / 100 * self.count:
                return (low + high - 1) / 2e9
        return 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in seconds."""
        said = {f"p{q:g}".replace(".", ""): self.percentile(q) for q in (50, 90, 99, 99.9)}
        return {"name": self.name, "count": self.count, "every": self.every} | said


class Moment:
    """The counters of a store at one time; two of them give rates."""

    __slots__ = ("counts", "globals", "metrics", "readers", "segments", "stable", "time")

    def __init__(self, store: Store) -> None:
        self.time = time.monotonic()
        names = (
            "epoch",
            "dirty",
            "flushes",
            "shared",
            "reaped",
            "helped",
            "cleaned",
            "moved",
            "log_taken",
            "snapshots",
            "max_pid",
            "flush_time",
            "failed",
        )
        self.globals = {name: store.word(name) for name in names}
        self.stable = store.word("stable")
        self.readers, self.counts = store.readers(), store.counts()
        self.segments = store.segments(disk=False)
        self.metrics = metrics(store.path)

    def counted(self, before: Moment, *names: str) -> float | None:
        """How fast these counters of the metrics rise together, per second; None: the store keeps none."""
        if self.metrics is None or before.metrics is None:
            return None
        now, then = self.metrics.counters, before.metrics.counters
        return max(0, sum(now[n] - then[n] for n in names)) / max(self.time - before.time, 1e-9)

    def latencies(self, before: Moment) -> list[Latency]:
        """What was timed between the two moments, in the order of LATENCIES."""
        if self.metrics is None or before.metrics is None:
            return []
        timed = [Latency(self.metrics.histograms[n], before.metrics.histograms[n]) for n in LATENCIES]
        return [t for t in timed if t.count]

    def rate(self, before: Moment, name: str) -> float:
        """How fast a global rises, per second."""
        return max(0.0, self.globals[name] - before.globals[name]) / max(self.time - before.time, 1e-9)

    def operations(self, before: Moment, slot: int | None = None) -> float:
        """Operations per second that published something, of one slot or of all."""
        return self._counted(before, 0, slot)

    def conflicts(self, before: Moment) -> float:
        """Lost compare-and-swaps per second."""
        return self._counted(before, 1, None)

    def _counted(self, before: Moment, which: int, slot: int | None) -> float:
        """A slot that somebody else claimed meanwhile may count from 0 again."""
        old = {i: pair[which] for i, pair in enumerate(before.counts)}
        chosen = [(i, pair[which]) for i, pair in enumerate(self.counts) if slot is None or i == slot]
        risen = sum(n - old.get(i, 0) if n >= old.get(i, 0) else n for i, n in chosen)
        return risen / max(self.time - before.time, 1e-9)


def moment(path: str) -> Moment:
    """The counters now. Errors: those of Store; Refused: the store must be recovered first, nothing happens in it."""
    with Store(path) as store:
        if store.foreign:
            raise frame.Refused(f"{store.path}: {FOREIGN}")
        if not store.current:
            raise frame.Refused(
                f"{store.path}: nobody has opened the store since the machine started: nothing to watch"
            )
        return Moment(store)
