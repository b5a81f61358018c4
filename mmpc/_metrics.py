"""Metrics: what all processes of a store have counted and timed, those that left or died included, as one value.

Read from the files `metrics` and `control` as they lie in the page cache: it attaches to nothing, takes no slot, holds
nobody up and takes milliseconds. Others count meanwhile, so each number is right by itself, not all at one instant.
csrc/metrics.h has the names and what they mean, and says why nothing is lost when a process dies.
"""

from __future__ import annotations

import os

from . import _files, _readers, errors
from ._layout import (
    BUCKETS,
    CONTROL_GLOBALS,
    COUNTER_WORDS,
    COUNTERS,
    GLOBALS,
    HISTOGRAM_WORDS,
    METRICS_ROWS,
    ROW_WORDS,
    SLOTS,
    WORDS_OF_COUNTERS,
)
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

_COUNTER, _HISTOGRAM = 0, 1
# A part of a counter has a word of its own, and the word of the whole counts the others alone.
_PARTS = {"cache_hits_asked": "cache_hits", "cache_misses_slow": "cache_misses"}
_GAUGES = {  # the word of `control`, and what it is
    "epoch": ("epoch", "the clock of the store: rises with each flush"),
    "stable_epoch": ("stable", "what has this epoch or an older one is durable"),
    "log_bytes": ("log_size", "bytes of the log"),
    "pages": ("max_pid", "page ids ever given"),
}


class _Kind:
    """What csrc/metrics.h says of a metric."""

    __slots__ = ("every", "name", "unit", "what")

    def __init__(self, m: Any) -> None:
        self.name, self.what, self.unit = (ffi.string(t).decode() for t in (m.name, m.what, m.unit))
        self.every = int(m.every)


def _kinds(kind: int) -> list[_Kind]:
    m = ffi.new("mm_metric *")
    found: list[_Kind] = []
    while lib.mm_metric_at(kind, len(found), m):
        found.append(_Kind(m))
    return found


class Histogram:
    """How values are distributed, in buckets an eighth of a doubling wide.

    `unit` is "ns", "bytes" or "calls". `count`, `sum`, `least`, `greatest` are of the values seen; of a sampled one
    (`every` > 1: one in so many is looked at, and counts for as many) count and sum are estimates, up to `every` a
    process too small, and the counter of the same thing is exact.
    """

    __slots__ = ("_buckets", "count", "every", "greatest", "least", "name", "sum", "unit", "what")

    def __init__(self, kind: Any, words: Any) -> None:
        self.name, self.what, self.unit, self.every = str(kind.name), str(kind.what), str(kind.unit), int(kind.every)
        self.sum, self.greatest = int(words[0]), int(words[1])
        self.least = 2**64 - 1 - int(words[2]) if words[2] else 0
        self._buckets = [(i, int(n)) for i, n in enumerate(words[4 : 4 + BUCKETS]) if n]
        self.count = sum(n for _, n in self._buckets)

    @property
    def mean(self) -> float:
        """Of all values; 0.0 when there is none."""
        return self.sum / self.count if self.count else 0.0

    def percentile(self, q: float) -> float:
        """The value that `q` percent (0 to 100) of all values do not exceed, to within a sixteenth of itself; 0.0 when
        there is none.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"a percentile is between 0 and 100, not {q}")
        rank, seen = q / 100 * self.count, 0
        for low, high, n in self.buckets():
            seen += n
            if seen >= rank:
                return float(min(max((low + high - 1) / 2, self.least), self.greatest))
        return float(self.greatest)

    @property
    def p50(self) -> float:
        """The median."""
        return self.percentile(50)

    @property
    def p90(self) -> float:
        """The 90th percentile."""
        return self.percentile(90)

    @property
    def p99(self) -> float:
        """The 99th percentile."""
        return self.percentile(99)

    @property
    def p999(self) -> float:
        """The 99.9th percentile."""
        return self.percentile(99.9)

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """(low, high, how many) of the buckets that hold values in [low, high), in order; the last one takes all that
        are larger, too.
        """
        for i, n in self._buckets:
            yield int(lib.mm_bucket_least(i)), int(lib.mm_bucket_least(i + 1)), n

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {n: getattr(self, n) for n in ("unit", "every", "count", "sum", "least", "greatest")}
        return found | {"mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99, "p999": self.p999}

    def __repr__(self) -> str:
        return (
            f"<mmpc.Histogram {self.name}: {self.count} values, p50 {self.p50:.0f} {self.unit}, p99 {self.p99:.0f}, "
            f"max {self.greatest}>"
        )


class ProcessMetrics:
    """What one process that is attached has counted since it came: `slot`, `process` (its id, as it sees it itself),
    `alive` (False: it died, and was not cleaned up after yet), `since` (seconds since 1970), `counters` by name.
    """

    __slots__ = ("alive", "counters", "process", "since", "slot")

    def __init__(self, reader: _readers.Reader, counters: dict[str, int]) -> None:
        self.slot, self.process, self.alive, self.since = reader.slot, reader.process, reader.alive, reader.since
        self.counters = counters

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return f"<mmpc.ProcessMetrics of process {self.process} in slot {self.slot}>"


class Metrics:
    """What was counted and timed in a store since `since` (seconds since 1970), when its volatile files were made:
    after a boot, or a recovery.

    `counters` and `histograms` are by name, over all processes that ever were there, also those that died. `processes`
    are the ones that are there now. `gauges` are figures of the store. docs/design.md says what is sampled.
    """

    __slots__ = ("counters", "gauges", "histograms", "path", "processes", "since")

    def __init__(self, path: str, since: float, row: Any, gauges: dict[str, int]) -> None:
        self.path, self.since, self.gauges = path, since, gauges
        self.counters = _counters(row[:COUNTERS])
        self.histograms: dict[str, Histogram] = {}
        self.processes: list[ProcessMetrics] = []
        for i, kind in enumerate(_kinds(_HISTOGRAM)):
            at = WORDS_OF_COUNTERS + i * HISTOGRAM_WORDS
            self.histograms[kind.name] = Histogram(kind, row[at : at + HISTOGRAM_WORDS])

    @property
    def hit_rate(self) -> float:
        """The share of gets that the cache of decoded values answered; 0.0 when there was none."""
        hits, misses = self.counters["cache_hits"], self.counters["cache_misses"]
        return hits / (hits + misses) if hits + misses else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": self.path,
            "since": self.since,
            "counters": self.counters,
            "histograms": {name: h.as_dict() for name, h in self.histograms.items()},
            "gauges": self.gauges,
            "processes": [p.as_dict() for p in self.processes],
        }

    def print_profile(self, file: IO[str] | None = None) -> None:
        """Prints all of it as a table, times in microseconds, to `file` (default: standard output)."""
        from ._profile import profile

        print(profile(self), file=file)

    def __repr__(self) -> str:
        done = ", ".join(f"{n}={self.counters[n]}" for n in ("cache_hits", "cache_misses", "appends", "replaces"))
        return f"<mmpc.Metrics of {self.path!r}: {len(self.processes)} processes, {done}>"


def _counters(words: Any) -> dict[str, int]:
    found = {kind.name: int(words[i]) for i, kind in enumerate(_kinds(_COUNTER))}
    for part, whole in _PARTS.items():
        found[whole] += found[part]
    return found


def read(path: str | os.PathLike[str]) -> Metrics:
    """The metrics of the store in `path`, whether anybody has it open or not. It needs to read the files, no more.

    Errors: FileNotFoundError (no store); IncompatibleStore; Unsupported (this store keeps no metrics now: there was no
    room for them when it was opened, or another version of mmpc has it open); CorruptionError (`control` is damaged).
    """
    where = os.path.abspath(os.fsdecode(path))
    if _files.read_config(where) is None:
        raise FileNotFoundError(2, "no store here", where)
    for _ in range(3):  # somebody may be putting new files in place
        found = _read(where)
        if found is not None:
            return found
    raise errors.Unsupported(
        f"{where!r} keeps no metrics now: its file 'metrics' is missing, or of another version; they begin with the "
        "next recovery"
    )


def _read(where: str) -> Metrics | None:
    fds: dict[str, int] = {}
    try:
        for name in ("control", "lock", _files.METRICS):
            fds[name] = _files.open_file(os.path.join(where, name))
        created, row = ffi.new("uint64_t *"), ffi.new("uint64_t[]", ROW_WORDS)
        if not lib.mm_metrics_belongs(fds[_files.METRICS], fds["control"], created):
            return None
        gauges = {name: _global(fds["control"], word) for name, (word, _) in _GAUGES.items()}
        used = min(_global(fds["control"], "slots_used"), SLOTS)
        error = lib.mm_metrics_read(fds[_files.METRICS], 0, used, row)
        if error:
            raise OSError(error, os.strerror(error), os.path.join(where, _files.METRICS))
        found = Metrics(where, created[0] / 1e9, ffi.unpack(row, ROW_WORDS), gauges)
        for reader in _readers.held(fds["control"], fds["lock"], 0):
            found.processes.append(_process(reader, fds[_files.METRICS]))
        return found
    except FileNotFoundError:
        return None
    finally:
        for fd in fds.values():
            os.close(fd)


def _global(control: int, name: str) -> int:
    return int.from_bytes(os.pread(control, 8, CONTROL_GLOBALS + GLOBALS[name]), "little")


def _process(reader: _readers.Reader, fd: int) -> ProcessMetrics:
    """Who came before metrics were kept, or does without, has counted nothing."""
    head = os.pread(fd, COUNTER_WORDS.size, METRICS_ROWS + reader.slot * ROW_WORDS * 8)
    words = COUNTER_WORDS.unpack(head.ljust(COUNTER_WORDS.size, b"\0"))
    counted, base = words[:COUNTERS], words[COUNTERS + 2 :]
    ours = words[COUNTERS] == reader.incarnation
    since = [max(now - then, 0) if ours else 0 for now, then in zip(counted, base, strict=False)]
    return ProcessMetrics(reader, _counters(since))


def described(which: str) -> list[tuple[str, str]]:
    """Names of the `counters` or `gauges`, and what they are."""
    if which == "gauges":
        return [(name, what) for name, (_, what) in _GAUGES.items()]
    return [(kind.name, kind.what) for kind in _kinds(_COUNTER)]


class Measured:
    """The part of PageCache that shows metrics."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def path(self) -> str: ...

        def _here(self) -> None: ...
        def _tell(self) -> None: ...

    def metrics(self) -> Metrics:
        """What all processes of this store have counted and timed; `stats` has what the store is like now.

        Exact, but for `cache_hits`: a handle adds its own to the shared numbers at each 256th, at each miss, at a close
        and in this call. Others see them that late, and a process that is killed takes fewer than 256 with it.

        Errors: Closed; Unsupported (this store keeps none now).
        """
        self._here()
        self._tell()
        return read(self.path)

    def print_profile(self, file: IO[str] | None = None) -> None:
        """Prints the metrics of all processes as a table to `file` (default: standard output)."""
        self.metrics().print_profile(file)


    def _print_profile(self) -> None:
        """At a close, which goes on whatever happens here."""
        try:
            self.print_profile()
        except (errors.MmpcError, OSError, ValueError):
            return  # no store any more, or nobody listens


def prometheus(*stores: Measured | str | os.PathLike[str]) -> str:
    """The metrics of stores, given as paths or as open handles, in the text format of Prometheus (version 0.0.4), for
    an endpoint of yours: `Content-Type: text/plain; version=0.0.4`. Each sample has the label `store`, a path.

    Errors: those of `PageCache.metrics`, and FileNotFoundError (no store there).
    """
    from ._profile import exposition

    return exposition([s.metrics() if isinstance(s, Measured) else read(s) for s in stores])
