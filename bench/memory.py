"""Private memory of a process that uses a store, beyond what it had when the handle was just open.

The bound: `cache_capacity` and 48 MiB, whatever passes through. Every mix of verbs is run under native materializers
and merges in Python, in a process of its own; what it holds is read from /proc as it goes on, and the largest value
counts. Memory is private if it is no page of a file of the store: those are shared with every other process, and the
kernel takes them back as it likes. `mapped_capacity` bounds how many of them one process keeps mapped.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from .harness import Env, Figure, Question, Row
from .mixes import CAPACITY, CONSTANT, MATERIALIZERS, MIB, MIXES, fill, measured

MAPPED = 8 << 20  # bytes


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """Each mix under each materializer; then what stays mapped, with and without a bound."""
    rows, figures = [], []
    volume, passes = (16 << 20, "1") if env.quick else (64 << 20, "2")
    options = ("--passes", passes, "--seed", str(env.seed))
    stores = {name: env.fresh("memory") for name in MATERIALIZERS}
    for name, path in stores.items():
        fill(path, name, volume, env.seed)

    def row(title: str, mix: str, name: str, what: str, *more: str) -> Row:
        return Row(title, "MiB", lambda: measured(stores[name], mix, name, *options, *more)[what] / MIB)

    for name in MATERIALIZERS:
        for mix in MIXES:
            rows.append(row(f"{name}, {mix}: private memory", mix, name, "growth"))
            most = (CAPACITY + CONSTANT) / MIB
            figures.append(Figure(f"{name}, {mix}: growth, MiB", rows[-1].name, at_most=most))
    for mix in ("get", "mixed"):
        rows.append(row(f"Append, {mix}: mapped without a bound", mix, "Append", "mapped"))
        title = f"Append, {mix}: mapped with a bound of {MAPPED / MIB:g} MiB"
        rows.append(row(title, mix, "Append", "mapped", "--mapped", str(MAPPED)))
        figures.append(Figure(f"{title}, MiB", title, at_most=MAPPED / MIB + 2))
    yield Question(f"memory: a cache of {CAPACITY / MIB:g} MiB, everything else of a process", rows, figures, 1)
