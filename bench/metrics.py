"""What counting costs: the hot verbs with `metrics` and without, a store each (`nometrics`: beside a build without)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import mmpc

from .harness import Env, Figure, Question, Row, Run, calls, per_item
from .peers import VALUE, fragment

PAGES = 1000
COUNT = 1000
MOST = 1.03  # of the time without


def replaces(pages: Any) -> Run:
    """A loop of `key = replace(pid, key, fragment)` on one page."""
    pid, at = pages.allocate(fragment(0))

    def run(items: list[Any]) -> None:
        nonlocal at
        current, verb = at, pages.replace
        for item in items:
            current = verb(pid, current, item)
        at = current

    return run


def appends(pages: Any) -> Run:
    """A loop of appends to one page, which is consolidated as it grows."""
    pid, _ = pages.allocate(fragment(0))

    def run(items: list[Any]) -> None:
        append = pages.append
        for item in items:
            append(pid, item)

    return run


def misses(pages: Any, pids: list[int]) -> Run:
    """A loop of gets of which none is answered by the cache."""

    def run(items: list[int]) -> None:
        get, drop = pages.get, pages._drop
        for pid in items:
            drop(pid)
            get(pid)

    return run


def rows_of(env: Env, pages: Any, how: str) -> list[Row]:
    """The verbs on one store."""
    pids = env.shuffled(pages.allocate(VALUE)[0] for _ in range(PAGES))
    fragments = [fragment(number) for number in range(COUNT)]
    for pid in pids:
        pages.get(pid)
    return [
        per_item(f"get hit, {how}", calls(pages.get), pids * 10),
        per_item(f"get miss, {how}", misses(pages, pids), pids),
        per_item(f"append, {how}", appends(pages), fragments),
        per_item(f"replace, {how}", replaces(pages), fragments),
    ]


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """Two stores that differ in the option alone."""
    with ExitStack() as stack:
        rows: list[list[Row]] = []
        for how, counted in (("metrics", True), ("none", False)):
            pages = mmpc.open(env.fresh(how), mmpc.LastWriteWins(), create=True, metrics=counted)
            rows.append(rows_of(env, stack.enter_context(pages), how))
        figures = [
            Figure(on.name.replace(", ", " with ") + " / without", on.name, over=off.name, at_most=MOST)
            for on, off in zip(*rows, strict=True)
        ]
        yield Question("what metrics cost", [*rows[0], *rows[1]], figures, env.rounds(301))
