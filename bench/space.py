"""How much of the disk a store takes for what is live in it, and what cleaning costs.

Each load runs once, beside a model of what is live. In every window of it the room of the log on the device (blocks,
not bytes of the file) is divided by the live data, that is the bytes of the values alone; what counts is the largest
quotient once the constant that the README states is taken off. Writers pay for cleaning as they go: operations per
second before the first segment is emptied are compared with those of the last half, and the longest pauses of single
writes are told (p99.99, without a bar: a flush is among them, which the device decides). The series are saved as JSON
and, where matplotlib is installed, drawn to an SVG beside it.
"""

import os
import random
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import mmpc

from .harness import Env, Figure, Question, Row

CONSTANT = 48 << 20  # bytes; the README states it
MIB = 1 << 20


class Load:
    """One load, run when first asked; then its results."""

    def __init__(self, path: Path, materializer: Any, run: Callable[["Load", Any], None]) -> None:
        self.path, self.materializer, self._run = str(path), materializer, run
        self.series: list[tuple[float, float, float, float]] = []  # s, MiB on the device, MiB live, thousand ops/s
        self.live = self.written = self.moved = 0
        self.waits = array("f")  # s, of single writes, while it cleans
        self._before: list[float] = []
        self._begun = self._last = 0.0
        self._done = False

    def note(self, pages: Any, operations: int) -> None:
        """The end of a window of so many operations."""
        now, stats = perf_counter(), pages.stats()
        rate = operations / (now - self._last) / 1e3
        disk = os.stat(os.path.join(self.path, "log")).st_blocks * 512
        self.series.append((now - self._begun, disk / MIB, self.live / MIB, rate))
        if not stats.cleaned:
            self._before.append(rate)
        self.written, self.moved, self._last = stats.written, stats.moved, perf_counter()

    def done(self) -> "Load":
        """Runs the load, and checks every page that it left."""
        if not self._done:
            self._done = True
            with mmpc.open(self.path, self.materializer, create=True) as pages:
                self._begun = self._last = perf_counter()
                self._run(self, pages)
                pages._check()
        return self

    def restart(self) -> None:
        """What comes from here on is measured."""
        self._last = perf_counter()
        self._before.clear()
        self.series.clear()
        del self.waits[:]

    def factor(self) -> float:
        """The largest quotient of disk, less the constant, and live data."""
        return max(max(disk - CONSTANT / MIB, 0) / live for _s, disk, live, _rate in self.done().series)

    def speed(self) -> float:
        """Operations a second while it cleans, over those before it had to."""
        self.done()
        steady = [rate for _s, _disk, _live, rate in self.series[len(self.series) // 2 :]]
        return median(steady) / median(self._before or [self.series[0][3]])

    def pause(self) -> float:
        """ms that one write in ten thousand took, or more, in the last half."""
        self.done()
        steady = sorted(self.waits[len(self.waits) // 2 :])
        return steady[int(len(steady) * 0.9999)] * 1e3

    def amplification(self) -> float:
        """Bytes leased, over those that were not leased for copies."""
        self.done()
        return self.written / max(1, self.written - self.moved)


def overwrite(pages: int, size: int, times: int) -> Callable[[Load, Any], None]:
    """Pages of that size, replaced at random for so many times their volume."""

    def run(load: Load, store: Any) -> None:
        rng, pad = random.Random(1), bytes(size - 8)
        keys = [store.allocate(i.to_bytes(8, "little") + pad)[1] for i in range(pages)]
        load.live = pages * size
        load.restart()
        window = max(2000, pages // 40)
        for done in range(1, pages * times + 1):
            i, begun = rng.randrange(pages), perf_counter()
            keys[i] = store.replace(keys[i].pid, keys[i], done.to_bytes(8, "little") + pad)
            load.waits.append(perf_counter() - begun)
            if done % window == 0:
                load.note(store, window)

    return run


def small(pages: int, seconds: float) -> Callable[[Load, Any], None]:
    """A thousand small pages, overwritten as fast as it goes."""

    def run(load: Load, store: Any) -> None:
        pids = [store.allocate(bytes(30))[0] for _ in range(pages)]
        load.live = pages * 30
        load.restart()
        end = perf_counter() + seconds
        while perf_counter() < end:
            for _ in range(20):
                store.append_many([(pid, bytes(30)) for pid in pids])
            load.note(store, 20 * pages)

    return run


def zipfian(pages: int, operations: int) -> Callable[[Load, Any], None]:
    """Sizes and pages of a heavy tail: replaced, deleted, and made anew."""

    def run(load: Load, store: Any) -> None:
        rng = random.Random(2)
        keys: list[Any] = []
        sizes = array("I")
        for _ in range(pages):
            sizes.append(rng.randrange(50, 3000))
            keys.append(store.allocate(bytes(sizes[-1]))[1])
        load.live = sum(sizes)
        load.restart()
        for done in range(1, operations + 1):
            i = min(int(rng.paretovariate(0.6)) - 1, pages - 1)
            size = rng.randrange(50, 3000)
            if rng.random() < 0.1:
                store.free(keys[i].pid, keys[i])
                keys[i] = store.allocate(bytes(size))[1]
            else:
                keys[i] = store.replace(keys[i].pid, keys[i], bytes(size))
            load.live += size - sizes[i]
            sizes[i] = size
            if done % 4000 == 0:
                load.note(store, 4000)

    return run


def appends(pages: int, count: int) -> Callable[[Load, Any], None]:
    """Counters that are only ever added to."""

    def run(load: Load, store: Any) -> None:
        pids = [store.allocate(0)[0] for _ in range(pages)]
        load.live = pages * 9
        load.restart()
        batch = [(pid, 1) for pid in pids] * 10
        for done in range(count // len(batch)):
            store.append_many(batch)
            if done % 50 == 49:
                load.note(store, 50 * len(batch))
        if sum(page.unwrap() for page in store.get_many(pids)) != count // len(batch) * len(batch):
            raise AssertionError("appends were lost")

    return run


def empty(path: Path) -> float:
    """MiB on the device of a store with nothing in it."""
    with mmpc.open(path, mmpc.Append(), create=True):
        return sum(f.stat().st_blocks * 512 for f in path.iterdir()) / MIB


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """Four loads, each in a store of its own."""
    part = 10 if env.quick else 1
    loads = {
        "1 KiB pages overwritten at random": Load(
            env.fresh("random"), mmpc.LastWriteWins(), overwrite(200_000 // part, 1024, 5)
        ),
        "1,000 small pages overwritten": Load(env.fresh("small"), mmpc.LastWriteWins(), small(1000, 60 / part)),
        "zipfian sizes, with deletes": Load(
            env.fresh("zipf"), mmpc.LastWriteWins(), zipfian(100_000 // part, 1_000_000 // part)
        ),
        "appends to 100 pages": Load(env.fresh("append"), mmpc.Add(), appends(100, 10_000_000 // part)),
    }
    nothing = env.fresh("empty")
    names = list(loads)
    rows = [Row("an empty store", "MiB", lambda: empty(nothing) if not nothing.exists() else empty(env.fresh("empty")))]
    for name, load in loads.items():
        rows += [
            Row(f"{name}: (disk - constant) / live", "", load.factor),
            Row(f"{name}: speed while cleaning / before", "", load.speed),
            Row(f"{name}: bytes written / bytes not copied", "", load.amplification),
        ]
    over = loads["1 KiB pages overwritten at random"]
    rows.append(Row("1 KiB pages overwritten at random: pause of a write, p99.99", "ms", over.pause))
    figures = [
        Figure("an empty store, MiB", rows[0].name, at_most=1.5),
        Figure("random overwriting: (disk - constant) / live", rows[1].name, at_most=1.6),
        Figure("random overwriting: speed while cleaning / before", rows[2].name, at_least=0.5),
        Figure("small pages: (disk - constant) / live", rows[4].name, at_most=3),
        Figure("zipfian: (disk - constant) / live", rows[7].name, at_most=1.6),
        Figure("appends: (disk - constant) / live", rows[10].name, at_most=3),
    ]
    columns = ("seconds", "MiB on the device", "MiB live", "thousand operations/s")
    series = {name: (columns, loads[name].series) for name in names}
    yield Question("space: what a store takes for what is in it", rows, figures, 1, series=series)
