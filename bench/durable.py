"""What durability costs: one append and flush against one fdatasync, four processes that flush each operation,
the bytes that a flush sends to the device, and what flushes do to the appends of others.

`append, fdatasync of log` makes the same append and then syncs the same file through a descriptor of its own: the floor
that no store can be below; `stores that share a sync` is that of several processes (rounds.py). The peers commit each
operation with their durable settings: lmdb's default, and sqlite3 in WAL mode with synchronous=FULL.
"""

import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import mmpc

from .harness import Env, Figure, Question, Row
from .peers import MAP_SIZE, lmdb
from .rounds import FUTEX, prepare, rounds
from .workers import Job, Pool, Step

APPENDS = 40  # of a sample of the single ones
PAGES = 100
SECONDS = 0.25  # of a sample of several processes
TAIL = 20_000  # appends whose slowest hundredth is looked at
VALUE = b"x" * 30


def durable_appends(worker: int, path: str) -> Step:
    """Append 30 bytes to a page of the worker's own and flush."""
    pages = mmpc.open(path, mmpc.LastWriteWins())
    pid, _key = pages.allocate(VALUE)

    def step() -> int:
        pages.append(pid, VALUE)
        pages.flush()
        return 1

    return step


def lmdb_commits(worker: int, path: str) -> Step:
    """Put 30 bytes in a transaction of its own."""
    begin, turn = lmdb.open(path, map_size=MAP_SIZE).begin, iter(range(1 << 60))

    def step() -> int:
        with begin(write=True) as txn:
            txn.put(b"%d %d" % (worker, next(turn) % PAGES), VALUE)
        return 1

    return step


def sqlite_commits(worker: int, path: str) -> Step:
    """Write a row of 30 bytes in a transaction of its own."""
    execute, turn = open_durable(path).execute, iter(range(1 << 60))

    def step() -> int:
        execute("insert or replace into kv values (?, ?)", (worker * PAGES + next(turn) % PAGES, VALUE))
        return 1

    return step


def open_durable(path: str) -> sqlite3.Connection:
    """sqlite3 in WAL mode, a commit durable when it returns."""
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    db.execute("pragma journal_mode=wal")
    db.execute("pragma synchronous=full")
    db.execute("create table if not exists kv (k integer primary key, v blob)")
    return db


def device_bytes(folder: Path) -> Callable[[], int] | None:
    """Bytes that the folder's device was sent so far, or None where that cannot be known."""
    number = os.stat(folder).st_dev
    stat = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    return (lambda: int(stat.read_text().split()[6]) * 512) if stat.exists() else None


def flushes_in_a_loop(path: str, wanted: Any) -> None:
    """A process that flushes without pause while it is wanted (1), rests (0), and ends (2, or orphaned)."""
    parent = os.getppid()
    with mmpc.open(path, mmpc.LastWriteWins()) as pages:
        while wanted.value != 2 and os.getppid() == parent:
            if wanted.value:
                pages.flush()
            else:
                sleep(0.001)


class Single:
    """Rows of one process, in microseconds."""

    def __init__(self, pages: Any, pid: int, log: int) -> None:
        self.pages, self.pid, self.log = pages, pid, log

    def flushed(self) -> float:
        """One append and one flush."""
        append, flush, pid = self.pages.append, self.pages.flush, self.pid
        start = perf_counter()
        for _ in range(APPENDS):
            append(pid, VALUE)
            flush()
        return (perf_counter() - start) / APPENDS * 1e6

    def synced(self) -> float:
        """One append and one fdatasync of the store's log."""
        append, pid, log, sync = self.pages.append, self.pid, self.log, os.fdatasync
        start = perf_counter()
        for _ in range(APPENDS):
            append(pid, VALUE)
            sync(log)
        return (perf_counter() - start) / APPENDS * 1e6

    def kib_of_a_flush(self, sent: Callable[[], int]) -> float:
        """KiB that reach the device for one append and flush."""
        before = sent()
        self.pages.append(self.pid, VALUE)
        self.pages.flush()
        return (sent() - before) / 1024

    def slowest(self, wanted: Any, busy: int) -> float:
        """Nanoseconds that the 99th of a hundred appends takes, while the other process flushes or rests."""
        append, pid, times = self.pages.append, self.pid, []
        wanted.value = busy
        sleep(0.01)
        for _ in range(TAIL):
            start = perf_counter()
            append(pid, VALUE)
            times.append(perf_counter() - start)
        wanted.value = 0
        return sorted(times)[TAIL * 99 // 100] * 1e9


@contextmanager
def flusher(path: str) -> Iterator[Any]:
    """A process that flushes in a loop when the value is 1."""
    context = multiprocessing.get_context("spawn")
    wanted = context.Value("i", 0, lock=False)
    process = context.Process(target=flushes_in_a_loop, args=(path, wanted), daemon=True)
    process.start()
    try:
        yield wanted
    finally:
        wanted.value = 2
        process.join(10)
        process.kill()


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """A store of our own, one for four workers, and one of each peer."""
    path, shared = str(env.fresh("mmpc")), str(env.fresh("shared"))
    database = str(env.fresh("sqlite"))
    open_durable(database).close()
    jobs: dict[str, tuple[Job, Any]] = {
        "mmpc append, flush": (durable_appends, shared),
        "sqlite3 commit, synchronous=full": (sqlite_commits, database),
    }
    if lmdb is not None:
        jobs["lmdb commit"] = (lmdb_commits, str(env.fresh("lmdb")))
    prepare(bare := env.fresh("rounds"))
    floor = {n: f"stores that share a sync, {n} process{'es' * (n > 1)}" for n in (1, 4)}
    floors: dict[str, tuple[Job, Any]] = {floor[n]: (rounds, (str(bare), n)) for n in floor}
    with (
        mmpc.open(path, mmpc.LastWriteWins(), create=True) as pages,
        mmpc.open(shared, mmpc.LastWriteWins(), create=True),
        flusher(path) as wanted,
        Pool(4, jobs | floors) as pool,
    ):
        pid, _key = pages.allocate(VALUE)
        log = os.open(os.path.join(path, "log"), os.O_RDWR)
        one, sent = Single(pages, pid, log), device_bytes(env.folder)
        ours, sqlite_row = "mmpc append, flush", "sqlite3 commit, synchronous=full"
        four = {name: f"{name}, 4 processes" for name in jobs}
        rows = [
            Row("append, flush", "us", one.flushed),
            Row("append, fdatasync of log", "us", one.synced),
            Row("device KiB of an append and flush", "KiB", (lambda: one.kib_of_a_flush(sent)) if sent else None),
            Row("p99 of appends", "ns", lambda: one.slowest(wanted, 0)),
            Row("p99 of appends while another flushes", "ns", lambda: one.slowest(wanted, 1)),
            Row(f"{ours}, 1 process", "k/s", lambda: pool.run(ours, 1, SECONDS) / 1e3),
            *(Row(four[n], "k/s", lambda n=n: pool.run(n, 4, SECONDS) / 1e3) for n in jobs),  # type: ignore[misc]
            *(
                Row(floor[n], "k/s", (lambda n=n: pool.run(floor[n], n, SECONDS) / 1e3) if FUTEX else None)  # type: ignore[misc]
                for n in floor
            ),
        ]
        figures = [
            Figure("append and flush / append and fdatasync", rows[0].name, over=rows[1].name, at_most=2.2),
            Figure("device KiB of a flush of one small record", rows[2].name, at_most=64),
            Figure("p99 of appends, while another flushes / without", rows[4].name, over=rows[3].name, at_most=10),
            Figure("four processes flushing each append / one", four[ours], over=rows[5].name, at_least=2.5),
            Figure("four processes, mmpc / sqlite3", four[ours], over=four[sqlite_row], at_least=2),
        ]
        if FUTEX:
            figures += [
                Figure("stores that share a sync, four processes / one", floor[4], over=floor[1]),
                Figure("four processes, mmpc / stores that share a sync", four[ours], over=floor[4], at_least=0.75),
            ]
        if lmdb is not None:
            figures.append(Figure("four processes, mmpc / lmdb", four[ours], over=four["lmdb commit"], at_least=2))
        try:
            yield Question("durable: what a flush costs", rows, figures, env.rounds(41))
        finally:
            os.close(log)
