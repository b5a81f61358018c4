"""bench: what this machine and this disk give, measured in a minute with nothing but mmpc.

The suite in the source tree (`python -m bench`) compares mmpc with other stores, and guards its bars; this one is for
who has installed mmpc and asks what to expect of the place where a store will lie.
"""

from __future__ import annotations

import json
import os
import sys
import time

import mmpc

from . import show
from .frame import DONE, at_least, command, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any

    Work = Callable[["mmpc.PageCache[Any]", list[int], int], object]

PAGES = 1000
FRAGMENT = b"x" * 100
_ROUND = 200  # operations between two looks at the clock


def add(commands: Any) -> None:
    """Describes the command."""
    parser = command(
        commands,
        "bench",
        _bench,
        "measure what this machine and this disk give",
        "Makes a temporary store below DIR and measures the verbs in one process, a flush, and appends by several\n"
        "processes at once. It needs mmpc alone, and some hundred megabytes at DIR. In the source tree, `python\n"
        "-m bench` compares mmpc with other stores.",
        "python -m mmpc bench /var/lib --seconds 2 --processes 4",
        "0 measured, 2 it could not be done",
        path=None,
        reads_only=False,
    )
    parser.add_argument(
        "path",
        metavar="DIR",
        nargs="?",
        default=".",
        help="where the store is made and removed again (default: the current directory)",
    )
    parser.add_argument("--seconds", type=seconds, default=0.5, help="for each row (default: %(default)s)")
    parser.add_argument(
        "--processes",
        type=at_least(1, 64),
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="that append at once (default: %(default)s)",
    )


def _bench(options: argparse.Namespace) -> int:
    import tempfile

    rows = []
    with tempfile.TemporaryDirectory(prefix="mmpc-bench-", dir=options.path) as folder:
        for row in measure(os.path.join(folder, "store"), options.seconds, options.processes):
            rows.append(row)
            if not options.json:
                print(_line(row), flush=True)
    if options.json:
        where = {
            "path": os.path.abspath(options.path),
            "cores": len(os.sched_getaffinity(0)),
            "python": sys.version.split()[0],
        }
        print(json.dumps(where | {"seconds": options.seconds, "rows": rows}))
    return DONE


def _line(row: dict[str, Any]) -> str:
    rate, median, tail = show.number(row["per_second"]), show.brief(row["median"]), show.brief(row["p99"])
    return f"{row['what']:<42} {rate:>12}/s   median {median:>8}   p99 {tail:>8}"


def measure(path: str, length: float, processes: int) -> Iterator[dict[str, Any]]:
    """Rows: `what`, `per_second`, and `median` and `p99` in seconds of one operation (of a flush each; else of rounds
    of 200, divided).
    """
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        ids = [pc.allocate(FRAGMENT)[0] for _ in range(PAGES)]
        for what, work, each in _works():
            yield {"what": what} | _timed(pc, ids, work, length, each)
    yield {"what": f"append, {processes} processes, 1000 pages"} | _together(path, ids, length, processes)


def _works() -> list[tuple[str, Work, int]]:
    """(name, work, operations of one call of it)"""

    def get(pc: mmpc.PageCache[Any], ids: list[int], i: int) -> None:
        for k in range(i, i + _ROUND):
            pc.get(ids[k % PAGES])

    def append(pc: mmpc.PageCache[Any], ids: list[int], i: int) -> None:
        for k in range(i, i + _ROUND):
            pc.append(ids[k % PAGES], FRAGMENT)

    def allocate(pc: mmpc.PageCache[Any], _ids: list[int], _i: int) -> None:
        for _ in range(_ROUND):
            pc.allocate(FRAGMENT)

    def replace(pc: mmpc.PageCache[Any], ids: list[int], i: int) -> None:
        for k in range(i, i + _ROUND):
            pid = ids[k % PAGES]
            key, _fragments = pc.get_page_frags(pid)
            pc.replace(pid, key, FRAGMENT)

    def durable(pc: mmpc.PageCache[Any], ids: list[int], i: int) -> None:
        pc.append(ids[i % PAGES], FRAGMENT)
        pc.flush()

    return [
        ("get of a cached page", get, _ROUND),
        ("append of 100 bytes", append, _ROUND),
        ("allocate of 100 bytes", allocate, _ROUND),
        ("get and replace of 100 bytes", replace, _ROUND),
        ("append and flush: one durable write", durable, 1),
    ]


def _timed(pc: mmpc.PageCache[Any], ids: list[int], work: Work, length: float, each: int) -> dict[str, float]:
    taken: list[float] = []
    work(pc, ids, 0)  # the first round maps, and fills caches
    i, end = each, time.perf_counter() + length
    while not taken or time.perf_counter() < end:
        before = time.perf_counter()
        work(pc, ids, i)
        taken.append((time.perf_counter() - before) / each)
        i += each
    taken.sort()
    return {
        "per_second": len(taken) / sum(taken),
        "median": taken[len(taken) // 2],
        "p99": taken[min(len(taken) - 1, len(taken) * 99 // 100)],
    }


def _together(path: str, ids: list[int], length: float, processes: int) -> dict[str, float]:
    """Rates of all processes, added; the latency of one operation as each of them sees it."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        found = pool.starmap(appender, [(path, ids, length)] * processes)
    medians, tails = sorted(f["median"] for f in found), sorted(f["p99"] for f in found)
    return {"per_second": sum(f["per_second"] for f in found), "median": medians[len(medians) // 2], "p99": tails[-1]}


def appender(path: str, ids: list[int], length: float) -> dict[str, float]:
    """What one of several processes measures."""
    work = _works()[1][1]
    with mmpc.open(path, mmpc.Append()) as pc:
        return _timed(pc, ids, work, length, _ROUND)
