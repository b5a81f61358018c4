"""Get hit: a cached page against a plain dict and against other stores. 1000 hot pages in random order,
24-byte values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack

import mmpc

from .harness import Env, Figure, Question, Row, Run, calls, per_item
from .peers import VALUE, key, lmdb_env, lmdb_fill, packed, sqlite

PAGES = 1000
PASSES = 10  # over all pages in a sample: the pages are hot, in the caches of the processor too


def lmdb_rows(env: Any, names: list[bytes]) -> list[Row]:
    """A get and its decoding, with a transaction at hand and with one of its own."""
    unpack = msgpack.unpackb

    def begin_each(items: list[bytes]) -> None:
        begin = env.begin
        for name in items:
            with begin() as txn:
                unpack(txn.get(name))

    def in_one(items: list[bytes]) -> None:
        with env.begin() as txn:
            get = txn.get
            for name in items:
                unpack(get(name))

    here = env is not None
    return [
        per_item("lmdb get + unpackb, one transaction for all", in_one if here else None, names),
        per_item("lmdb begin + get + unpackb", begin_each if here else None, names),
    ]


def sqlite_select(db: Any) -> Run:
    """A loop of selects by primary key, decoded."""
    execute, unpack = db.execute, msgpack.unpackb

    def run(items: list[tuple[int]]) -> None:
        for item in items:
            unpack(execute("select v from kv where k = ?", item).fetchone()[0])

    return run


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """Fill the stores, warm the object cache."""
    data = packed(VALUE)
    with (
        mmpc.open(env.fresh("mmpc"), mmpc.LastWriteWins(), create=True) as pages,
        lmdb_env(env.fresh("lmdb")) as peer,
        sqlite(env.fresh("sqlite")) as db,
    ):
        pids = env.shuffled(pages.allocate(VALUE)[0] for _ in range(PAGES))
        lmdb_fill(peer, [(key(pid), data) for pid in pids])
        db.executemany("insert into kv values (?, ?)", [(pid, data) for pid in pids])
        table = {pid: pages.get(pid) for pid in pids}
        rows = [
            per_item("dict.get", calls(table.get), pids * PASSES),
            per_item("mmpc get", calls(pages.get), pids * PASSES),
            per_item("msgpack.unpackb of the value", calls(msgpack.unpackb), [data] * PAGES),
            *lmdb_rows(peer, [key(pid) for pid in pids]),
            per_item("sqlite3 select + unpackb", sqlite_select(db), [(pid,) for pid in pids[:100]]),
        ]
        figures = [
            Figure("mmpc get / dict.get", "mmpc get", over="dict.get", at_most=1.5),
            Figure("lmdb get + unpackb / mmpc get", rows[3].name, over="mmpc get", at_least=15),
            Figure("lmdb begin + get + unpackb / mmpc get", rows[4].name, over="mmpc get"),
            Figure("sqlite3 / mmpc get", rows[5].name, over="mmpc get"),
        ]
        yield Question("get hit: 1000 hot pages, 24-byte values", rows, figures, env.rounds(151))
