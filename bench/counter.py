"""Four processes that count on ONE page. Exact: the page has to hold the number of operations, or the run
fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mmpc

from .harness import Env, Figure, Question
from .peers import lmdb, open_lmdb, open_sqlite, sqlite
from .workers import Job, Pool, Step

STEPS = 20
NAME = b"counter"
SECONDS = 0.04


def adds(_worker: int, argument: tuple[str, int]) -> Step:
    """Append 1 to the page."""
    path, pid = argument
    append = mmpc.open(path, mmpc.Add()).append

    def step() -> int:
        for _ in range(STEPS):
            append(pid, 1)
        return STEPS

    return step


def lmdb_adds(_worker: int, argument: tuple[str, bool]) -> Step:
    """Read, add one and write in a write transaction."""
    begin = open_lmdb(*argument).begin

    def step() -> int:
        for _ in range(STEPS):
            with begin(write=True) as txn:
                number = int.from_bytes(txn.get(NAME, b""), "little")
                txn.put(NAME, (number + 1).to_bytes(8, "little"))
        return STEPS

    return step


def sqlite_adds(_worker: int, path: str) -> Step:
    """Add one in the database."""
    execute = open_sqlite(path).execute

    def step() -> int:
        for _ in range(STEPS):
            execute("update kv set v = v + 1 where k = 0")
        return STEPS

    return step


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """One page, four workers."""
    path, database = str(env.fresh("mmpc")), env.fresh("sqlite")
    with sqlite(database) as db:
        db.execute("insert into kv values (0, 0)")
    with mmpc.open(path, mmpc.Add(), create=True) as pages:
        pid, _key = pages.allocate(0)
        jobs: dict[str, tuple[Job, Any]] = {
            "mmpc append(pid, 1)": (adds, (path, pid)),
            "sqlite3 update": (sqlite_adds, str(database)),
            "lmdb read, add, write": (lmdb_adds, (str(env.fresh("lmdb")), False)),
            "lmdb read, add, write, writemap": (lmdb_adds, (str(env.fresh("writemap")), True)),
        }
        ours, sqlite_row, plain, mapped = jobs
        with Pool(4, jobs) as pool:

            def exact() -> None:
                page, wanted = pages.get(pid), pool.done[ours]
                if not isinstance(page, mmpc.Materialized) or page.value != wanted:
                    raise AssertionError(f"after {wanted} appends of 1 the page is {page}")

            installed = [name for name in jobs if lmdb is not None or not name.startswith("lmdb")]
            rows = [pool.row(name, name, 4, SECONDS) for name in installed]
            rows.append(pool.row("mmpc, one process", ours, 1, SECONDS))
            figures = [
                Figure("mmpc / lmdb, 4 processes on one page", ours, over=plain, at_least=5),
                Figure("mmpc / lmdb with writemap", ours, over=mapped),
                Figure("mmpc / sqlite3", ours, over=sqlite_row),
                Figure("mmpc, four processes / one", ours, over="mmpc, one process"),
            ]
            yield Question(
                "counter: 4 processes, one page, exact", rows, figures, env.rounds(31), finish=exact
            )
