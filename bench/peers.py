"""Other stores, opened the way a user who wants speed opens them, and the data all stores are given."""

import importlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import msgpack

try:
    lmdb: Any = importlib.import_module("lmdb")
except ImportError:
    lmdb = None

MAP_SIZE = 1 << 32
VALUE = {"k00": 123456, "w": 0.5, "n": 7}  # packs to 24 bytes


def fragment(number: int) -> tuple[object, ...]:
    """A 5-tuple that packs to about 30 bytes, another for each number."""
    return (number % 10_000, 1_700_000_000 + number, f"word-{number % 100_000:05d}", 0.5, 7)


def chain_fragment(number: int) -> dict[str, object]:
    """A mapping that packs to 28 bytes: one key of its own and one that every fragment has."""
    return {f"key-{number % 1000:03d}": (number % 100, 1_700_000_000, 1), "w": 0.5}


def packed(value: Any) -> bytes:
    """A value as msgpack."""
    result: bytes = msgpack.packb(value)
    return result


def key(number: int) -> bytes:
    """The 8-byte key of a number."""
    return number.to_bytes(8, "big")


def open_lmdb(path: str, writemap: bool = False) -> Any:
    """An lmdb environment that never syncs (writemap: through a writable map)."""
    return lmdb.open(path, map_size=MAP_SIZE, sync=False, writemap=writemap, map_async=writemap)


@contextmanager
def lmdb_env(path: Path, writemap: bool = False) -> Iterator[Any]:
    """The same, closed at the end; None if lmdb is not installed."""
    if lmdb is None:
        yield None
    else:
        with open_lmdb(str(path), writemap) as env:
            yield env


def lmdb_fill(env: Any, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    """Put all pairs in one transaction."""
    if env is not None:
        with env.begin(write=True) as txn:
            txn.cursor().putmulti(pairs)


def lmdb_puts(env: Any) -> Callable[[Any], object] | None:
    """A loop of puts of (key, value), a transaction each."""
    if env is None:
        return None
    begin = env.begin

    def run(pairs: Any) -> None:
        for name, value in pairs:
            with begin(write=True) as txn:
                txn.put(name, value)

    return run


def open_sqlite(path: str) -> sqlite3.Connection:
    """A sqlite database kv(k, v) in WAL mode that never syncs and commits every statement by itself."""
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute("pragma journal_mode=wal")
    db.execute("pragma synchronous=off")
    db.execute("create table if not exists kv (k integer primary key, v blob)")
    return db


def sqlite(path: Path) -> AbstractContextManager[sqlite3.Connection]:
    """The same, closed at the end."""
    return closing(open_sqlite(str(path)))


def sqlite_puts(db: sqlite3.Connection) -> Callable[[Any], object]:
    """A loop of upserts of (k, v), a transaction each."""
    execute = db.execute

    def run(pairs: Any) -> None:
        for pair in pairs:
            execute("insert or replace into kv values (?, ?)", pair)

    return run
