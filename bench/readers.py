"""Processes that read the same 1000 hot pages, alone and while another process keeps appending to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack

import mmpc

from .harness import Env, Figure, Question
from .peers import VALUE, key, lmdb, lmdb_fill, open_lmdb, packed
from .scaling import chunks
from .workers import Job, Pool, Step

PAGES = 1000
SECONDS = 0.03


def gets(_worker: int, argument: tuple[str, list[int]]) -> Step:
    """Get the pages."""
    path, pids = argument
    get = mmpc.open(path, mmpc.LastWriteWins()).get

    def run(items: list[int]) -> None:
        for pid in items:
            get(pid)

    return chunks(pids, run)


def gets_beside_a_writer(worker: int, argument: tuple[str, list[int]]) -> Step:
    """The first worker appends, and counts for nothing; the others get."""
    if worker:
        return gets(worker, argument)
    path, pids = argument
    append = mmpc.open(path, mmpc.LastWriteWins()).append

    def run(items: list[int]) -> None:
        for pid in items:
            append(pid, VALUE)

    work = chunks(pids, run)
    return lambda: work() * 0


def lmdb_gets(_worker: int, argument: tuple[str, list[int]]) -> Step:
    """Get and decode, a transaction each."""
    path, numbers = argument
    begin, unpack = open_lmdb(path).begin, msgpack.unpackb

    def run(items: list[bytes]) -> None:
        for name in items:
            with begin() as txn:
                unpack(txn.get(name))

    return chunks([key(number) for number in numbers], run)


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """The pages are filled here and read by the workers."""
    path, quiet, peer_path = (str(env.fresh(name)) for name in ("mmpc", "quiet", "lmdb"))
    with (
        mmpc.open(path, mmpc.LastWriteWins(), create=True) as pages,
        mmpc.open(quiet, mmpc.LastWriteWins(), create=True) as others,
    ):
        pids = env.shuffled(pages.allocate(VALUE)[0] for _ in range(PAGES))
        quiet_pids = env.shuffled(others.allocate(VALUE)[0] for _ in range(PAGES))
        jobs: dict[str, tuple[Job, Any]] = {
            "mmpc get": (gets, (quiet, quiet_pids)),
            "mmpc get beside a writer": (gets_beside_a_writer, (path, pids)),
        }
        if lmdb is not None:
            jobs["lmdb begin + get + unpackb"] = (lmdb_gets, (peer_path, pids))
            with open_lmdb(peer_path) as peer:
                lmdb_fill(peer, [(key(pid), packed(VALUE)) for pid in pids])
        with Pool(4, jobs) as pool:
            rows = [
                pool.row(f"{name}, {count}", name, count, SECONDS) for name in jobs for count in (1, 2, 4)
            ]
            rows = [row for row in rows if row.name != "mmpc get beside a writer, 1"]
            figures = [
                Figure("mmpc get, two processes / one", "mmpc get, 2", over="mmpc get, 1"),
                Figure(
                    "one reader beside a writer / one alone",
                    "mmpc get beside a writer, 2",
                    over="mmpc get, 1",
                ),
                *(
                    Figure(
                        f"mmpc / lmdb, {count} processes",
                        f"mmpc get, {count}",
                        over=f"lmdb begin + get + unpackb, {count}",
                    )
                    for count in (1, 2, 4)
                ),
            ]
            yield Question("readers: the same 1000 pages, get hit, summed", rows, figures, env.rounds(21))
