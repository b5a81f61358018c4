"""Processes that append to pages of their own. The floor is packing alone, which shares nothing: what the
machine has to give."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack

import mmpc

from .harness import Env, Figure, Question
from .peers import fragment, key, lmdb, lmdb_puts, open_lmdb, open_sqlite, packed, sqlite, sqlite_puts
from .workers import Job, Pool, Step

PAGES = 1000
CHUNK = 50
SECONDS = 0.03
COUNTS = (1, 2, 4)


def chunks(items: list[Any], run: Callable[[list[Any]], object]) -> Step:
    """Steps that go round the items, CHUNK at a time."""
    parts = itertools.cycle([items[i : i + CHUNK] for i in range(0, len(items), CHUNK)])

    def step() -> int:
        part = next(parts)
        run(part)
        return len(part)

    return step


def numbers(worker: int) -> list[int]:
    """Numbers that no other worker has."""
    return list(range(worker * PAGES, (worker + 1) * PAGES))


def packs(worker: int, _none: Any) -> Step:
    """Pack, nothing else."""
    pack = msgpack.Packer().pack

    def run(items: list[Any]) -> None:
        for item in items:
            pack(item)

    return chunks([fragment(number) for number in numbers(worker)], run)


def appends(worker: int, path: str) -> Step:
    """Append fragments to pages of this process."""
    pages = mmpc.open(path, mmpc.LastWriteWins())
    append = pages.append

    def run(items: list[Any]) -> None:
        for pid, one in items:
            append(pid, one)

    fragments = [fragment(number) for number in numbers(worker)]
    return chunks([(pages.allocate(one)[0], one) for one in fragments], run)


def ready(worker: int, name: Callable[[int], Any]) -> list[tuple[Any, bytes]]:
    """Keys of this process and the packed fragments."""
    return [(name(number), packed(fragment(number))) for number in numbers(worker)]


def lmdb_job(worker: int, argument: tuple[str, bool]) -> Step:
    """Put ready-made bytes, a transaction each."""
    run = lmdb_puts(open_lmdb(*argument))
    assert run is not None
    return chunks(ready(worker, key), run)


def sqlite_job(worker: int, path: str) -> Step:
    """Upsert ready-made bytes, a transaction each."""
    return chunks(ready(worker, int)[:CHUNK], sqlite_puts(open_sqlite(path)))


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """One pool of workers that all rows share."""
    path, database = str(env.fresh("mmpc")), env.fresh("sqlite")
    with sqlite(database):
        pass  # makes it
    jobs: dict[str, tuple[Job, Any]] = {
        "pack only": (packs, None),
        "mmpc append": (appends, path),
        "sqlite3 upsert": (sqlite_job, str(database)),
        "lmdb put": (lmdb_job, (str(env.fresh("lmdb")), False)),
        "lmdb put, writemap": (lmdb_job, (str(env.fresh("writemap")), True)),
    }
    with mmpc.open(path, mmpc.LastWriteWins(), create=True), Pool(max(COUNTS), jobs) as pool:
        installed = [name for name in jobs if lmdb is not None or not name.startswith("lmdb")]
        rows = [pool.row(f"{name}, {count}", name, count, SECONDS) for name in installed for count in COUNTS]
        own = {count: f"mmpc append, {count}, by time on a core" for count in COUNTS[:2]}
        rows += [
            pool.row(label, "mmpc append", count, SECONDS, own_core=True) for count, label in own.items()
        ]
        figures = [
            Figure("mmpc append, two processes / one", "mmpc append, 2", over="mmpc append, 1", at_least=1.7),
            Figure("mmpc append, two processes / one, by time on a core", own[2], over=own[1]),
            Figure("pack only, two processes / one", "pack only, 2", over="pack only, 1"),
            *(
                Figure(
                    f"mmpc append / {peer}, {count} processes",
                    f"mmpc append, {count}",
                    over=f"{peer}, {count}",
                )
                for peer in ("lmdb put", "lmdb put, writemap", "sqlite3 upsert")
                for count in COUNTS
            ),
        ]
        yield Question("scaling: appends to pages of one's own, summed", rows, figures, env.rounds(21))
