"""A process of `nometrics`: opens the store, measures what it is told to, and answers with nanoseconds an operation."""

import gc
import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import mmpc

from .harness import Run, calls, per_item
from .metrics import appends, misses, replaces
from .peers import VALUE, fragment

PAGES = 1000
COUNT = 1000
MIXED = 100  # of ten operations six are hits, two appends, one is a replace, one a miss


def called(items: list[Callable[[], object]]) -> None:
    """Call each."""
    for item in items:
        item()


def mixed(pages: Any, pids: list[int], rng: random.Random) -> list[Callable[[], object]]:
    """Operations on all pages, in an order that depends on the seed only."""
    pid, at = pages.allocate(fragment(0))

    def replace(number: int) -> None:
        nonlocal at
        at = pages.replace(pid, at, fragment(number))

    def miss(number: int) -> None:
        pages._drop(number)
        pages.get(number)

    work: list[Callable[[], object]] = []
    for turn in range(MIXED):
        some = rng.sample(pids, 9)
        work += [partial(pages.get, one) for one in some[:6]]
        work += [partial(pages.append, one, fragment(one)) for one in some[6:8]]
        work += [partial(miss, some[8]), partial(replace, turn)]
    rng.shuffle(work)
    return work


def samplers(pages: Any, seed: int) -> dict[str, Callable[[], float]]:
    """What takes one sample of each verb."""
    rng = random.Random(seed)
    pids = [pages.allocate(VALUE)[0] for _ in range(PAGES)]
    rng.shuffle(pids)
    fragments = [fragment(number) for number in range(COUNT)]
    # The pages of `mixed` are its own: what it appends must not make the hits of the others misses.
    others = [pages.allocate(VALUE)[0] for _ in range(PAGES)]
    for pid in [*pids, *others]:
        pages.get(pid)
    work: dict[str, tuple[Run, list[Any]]] = {
        "get hit": (calls(pages.get), pids * 10),
        "get miss": (misses(pages, pids), pids),
        "append": (appends(pages), fragments),
        "replace": (replaces(pages), fragments),
        "mixed": (called, mixed(pages, others, rng)),
    }
    return {name: per_item(name, run, items).measure or float for name, (run, items) in work.items()}


def serve(path: str, counted: str, seed: str) -> None:
    """Answer until the input ends."""
    gc.disable()
    with mmpc.open(Path(path), mmpc.LastWriteWins(), create=True, metrics=counted == "1") as pages:
        take = samplers(pages, int(seed))
        take["appends counted"] = lambda: float(pages.metrics().counters["appends"])
        for line in sys.stdin:
            name, begin = json.loads(line)
            sleep(max(0.0, begin - perf_counter() - 0.0005))
            while perf_counter() < begin:
                pass
            print(json.dumps(take[name]()), flush=True)
