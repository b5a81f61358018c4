"""Rows that are measured in turn, and the figures that compare them.

The clock of a shared machine moves while one looks. So nothing is measured for long: in every *round* each
row of a question is measured once, for about a millisecond, in an order that is shuffled anew; a figure is
computed round by round from neighbours in time, and what is reported is the median of the rounds with its
spread.
"""

import gc
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from resource import RUSAGE_THREAD, getrusage
from statistics import median
from time import perf_counter
from typing import Any

Run = Callable[[Any], object]
Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Env:
    """What a question is asked with: a folder for stores, how long to look, and the seed of every random
    choice."""

    folder: Path
    quick: bool
    seed: int

    def fresh(self, name: str) -> Path:
        """A path in the folder that nothing has used yet."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder)) / name

    def shuffled(self, items: Iterable[Any]) -> list[Any]:
        """The items in an order that depends on the seed only."""
        mixed = list(items)
        random.Random(self.seed).shuffle(mixed)
        return mixed

    def rounds(self, full: int) -> int:
        """`full`, or a few with --quick."""
        return max(5, full // 10) if self.quick else full


@dataclass(frozen=True)
class Row:
    """One thing measured: `measure()` takes one sample, in `unit`. None: the peer is not installed."""

    name: str
    unit: str
    measure: Callable[[], float] | None


@dataclass(frozen=True)
class Figure:
    """A number made from one row, or from two of the same round, and the bar it has to reach, if any."""

    name: str
    row: str
    over: str | None = None  # divided by this row,
    minus: str | None = None  # or less this row
    at_most: float | None = None
    at_least: float | None = None

    def values(self, samples: Samples) -> list[float]:
        """The figure of every round; none if a row was not measured."""
        mine = samples.get(self.row, [])
        if self.over is not None:
            return [a / b for a, b in zip(mine, samples.get(self.over, []), strict=False) if b > 0]
        if self.minus is not None:
            return [a - b for a, b in zip(mine, samples.get(self.minus, []), strict=False)]
        return list(mine)

    def reached(self, value: float) -> bool:
        """Whether the value is on the right side of the bar; true without one."""
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    def bar(self) -> str:
        """The bar as text, empty without one."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"


@dataclass
class Question:
    """Rows to be measured together. `finish` runs after the last round and raises if the subject computed
    nonsense. `series`: names of columns and tuples of them, over time, to be saved and drawn."""

    title: str
    rows: list[Row]
    figures: list[Figure]
    rounds: int
    finish: Callable[[], object] | None = None
    series: dict[str, tuple[tuple[str, ...], list[tuple[float, ...]]]] = field(default_factory=dict)


Setup = Callable[[Env], AbstractContextManager[Question]]


@dataclass(frozen=True)
class Spread:
    """Median and the middle four fifths of some samples."""

    median: float
    p10: float
    p90: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """The spread of at least one sample."""
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(median(ordered), ordered[round(last * 0.1)], ordered[round(last * 0.9)], len(ordered))


def interleave(question: Question, seed: int) -> Samples:
    """Measure every row once a round, each round in another order, after one unrecorded round; garbage
    collection is off."""
    rows = [(row.name, row.measure) for row in question.rows if row.measure is not None]
    samples: Samples = {name: [] for name, _ in rows}
    order = random.Random(seed)
    gc.collect()
    gc.disable()
    try:
        for _, measure in rows:
            measure()
        for _ in range(question.rounds):
            taken = {name: measure() for name, measure in order.sample(rows, len(rows))}
            for name, value in taken.items():
                samples[name].append(value)
    finally:
        gc.enable()
    if question.finish is not None:
        question.finish()
    return samples


# ---- samplers


def _empty(items: Sequence[Any]) -> None:
    for _item in items:
        pass


def _empty_pairs(items: Sequence[Any]) -> None:
    for _first, _second in items:
        pass


def calls(function: Callable[[Any], object]) -> Run:
    """A loop of `function(item)`."""

    def run(items: Sequence[Any]) -> None:
        for item in items:
            function(item)

    return run


def calls_with_pairs(function: Callable[[Any, Any], object]) -> Run:
    """A loop of `function(first, second)`."""

    def run(items: Sequence[Any]) -> None:
        for first, second in items:
            function(first, second)

    return run


def undisturbed(sample: Callable[[], float], attempts: int = 10) -> float:
    """A sample in which the kernel gave this thread's core to nobody else; after some attempts, any."""
    while True:
        switches = getrusage(RUSAGE_THREAD).ru_nivcsw
        value = sample()
        attempts -= 1
        if not attempts or getrusage(RUSAGE_THREAD).ru_nivcsw == switches:
            return value


def per_item(
    name: str,
    run: Run | None,
    items: Sequence[Any],
    before: Callable[[], object] | None = None,
    count: int = 0,
) -> Row:
    """Nanoseconds for each of `items` (or of `count`) when `run(items)` loops over them.

    The same loop with an empty body is timed right behind it and subtracted. Pairs are unpacked by both
    loops. `before` is not timed. A `run` of None gives a row that says 'not installed'.
    """
    if run is None:
        return Row(name, "ns", None)
    work, empty = run, _empty_pairs if isinstance(items[0], tuple) and len(items[0]) == 2 else _empty
    number = count or len(items)

    def sample() -> float:
        if before is not None:
            before()
        start = perf_counter()
        work(items)
        middle = perf_counter()
        empty(items)
        end = perf_counter()
        return ((middle - start) - (end - middle)) / number * 1e9

    return Row(name, "ns", lambda: undisturbed(sample))


def ignored(_result: Any) -> None:
    """What is done with a result that nobody needs."""


def once(name: str, run: Callable[[], Any] | None, after: Callable[[Any], object] = ignored) -> Row:
    """Milliseconds of one `run()`; `after(its result)` is not timed."""
    if run is None:
        return Row(name, "ms", None)
    work = run

    def measure() -> float:
        start = perf_counter()
        result = work()
        end = perf_counter()
        after(result)
        return (end - start) * 1e3

    return Row(name, "ms", measure)
