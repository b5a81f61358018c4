"""Numbers that are unique over all processes, restarts and crashes: how many a second, eight processes at once.

All of them are drawn from one word, so each is larger than all that anybody had before; now and then one of the
processes writes how far they may go, and waits for the disk."""

import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mmpc

from .harness import Env, Figure, Question, Row
from .workers import Job, Pool, Step

STEPS = 2000
SECONDS = 0.1
PROCESSES = 8


def draws(_worker: int, path: str) -> Step:
    """Draw numbers, one call each; they only rise."""
    draw, last = mmpc.open(path, mmpc.Append()).generate_id, -1

    def step() -> int:
        nonlocal last
        found = [draw() for _ in range(STEPS)]
        if found[0] <= last or found[-1] - found[0] < STEPS - 1:
            raise AssertionError(f"{found[0]} to {found[-1]} came after {last}")
        last = found[-1]
        return STEPS

    return step


def counts(_worker: int, _argument: None) -> Step:
    """A floor: a counter of this process alone."""
    draw = itertools.count().__next__

    def step() -> int:
        deque([draw() for _ in range(STEPS)], 0)
        return STEPS

    return step


def begins(_worker: int, path: str) -> Step:
    """Begin a Tx, which draws a number as its timestamp, and end it."""
    begin = mmpc.open(path, mmpc.Append()).begin

    def step() -> int:
        for _ in range(100):
            begin().close()
        return 100

    return step


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """An empty store, eight workers."""
    path = str(env.fresh("mmpc"))
    with mmpc.open(path, mmpc.Append(), create=True) as pages:
        first = pages.generate_id()
        jobs: dict[str, tuple[Job, Any]] = {
            "generate_id": (draws, path),
            "itertools.count, each its own": (counts, None),
            "begin and end a Tx": (begins, path),
        }
        ours, floor, transactions = jobs
        with Pool(PROCESSES, jobs) as pool:

            def unique() -> None:
                given, wanted = pages.generate_id() - first - 1, pool.done[ours] + pool.done[transactions]
                if given < wanted:
                    raise AssertionError(f"{wanted} numbers were drawn, but only {given} passed")

            rows = [pool.row(name, name, PROCESSES, SECONDS) for name in jobs]
            rows.append(pool.row("generate_id, one process", ours, 1, SECONDS))
            rows.append(Row("records of page 1 for each million", "", lambda: _records(pages, first)))
            figures = [
                Figure("8 processes, million numbers/s in all", ours, at_least=5),
                Figure("8 processes / one", ours, over="generate_id, one process"),
                Figure("numbers / counters of each process", ours, over=floor),
            ]
            yield Question("ids: 8 processes, one sequence", rows, figures, env.rounds(31), finish=unique)


def _records(pages: mmpc.PageCache[Any], first: int) -> float:
    page = pages.get(1)
    assert isinstance(page, mmpc.Counter)
    return 1e6 * page.key.wts / max(1, int(page.value) - first)
