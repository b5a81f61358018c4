"""The verbs that carry a key, `update`, and a page's whole life, against the same work in lmdb."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack

import mmpc

from .harness import Env, Figure, Question, Row, Run, calls, per_item
from .peers import fragment, key, lmdb_env, lmdb_fill, lmdb_puts, packed

COUNT = 300


def keyed_verb(pages: Any, verb: Any) -> Run:
    """A loop of `key = verb(pid, key, fragment)` on one page."""
    pid, at = pages.allocate(fragment(0))

    def run(items: list[Any]) -> None:
        nonlocal at
        current = at
        for item in items:
            current = verb(pid, current, item)
        at = current

    return run


def lives(pages: Any) -> Run:
    """A loop of allocate and free."""
    allocate, free = pages.allocate, pages.free

    def run(items: list[Any]) -> None:
        for item in items:
            pid, at = allocate(item)
            free(pid, at)

    return run


def add_one(number: int) -> int:
    """What `update` is given."""
    return number + 1


def lmdb_rows(env: Any, fragments: list[Any]) -> list[Row]:
    """The same work, a transaction for each step."""
    put = lmdb_puts(env)
    if put is None:
        return [per_item(name, None, fragments) for name in ("lmdb put", "lmdb update", "lmdb put + delete")]
    pack, unpack, begin = msgpack.Packer().pack, msgpack.unpackb, env.begin

    def update(items: list[bytes]) -> None:
        for name in items:
            with begin(write=True) as txn:
                txn.put(name, pack(unpack(txn.get(name)) + 1))

    def life(items: list[tuple[bytes, bytes]]) -> None:
        for name, value in items:
            with begin(write=True) as txn:
                txn.put(name, value)
            with begin(write=True) as txn:
                txn.delete(name)

    names = [key(number) for number in range(COUNT)]
    lmdb_fill(env, [(name, packed(0)) for name in names])
    pairs = [(b"x" + name, packed(one)) for name, one in zip(names, fragments, strict=True)]
    return [
        per_item("lmdb put", put, pairs),
        per_item("lmdb update", update, names),
        per_item("lmdb put + delete", life, [(b"y" + name, value) for name, value in pairs]),
    ]


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """One store of ours, one of lmdb's (writemap, its fastest)."""
    with (
        mmpc.open(env.fresh("mmpc"), mmpc.LastWriteWins(), create=True) as pages,
        lmdb_env(env.fresh("lmdb"), writemap=True) as peer,
    ):
        fragments = [fragment(number) for number in range(COUNT)]
        numbers = [pages.allocate(0)[0] for _ in range(COUNT)]
        rows = [
            per_item("mmpc link", keyed_verb(pages, pages.link), fragments),
            per_item("mmpc replace", keyed_verb(pages, pages.replace), fragments),
            per_item("mmpc update", calls(lambda pid: pages.update(pid, add_one)), numbers),
            per_item("mmpc allocate + free", lives(pages), fragments),
            *lmdb_rows(peer, fragments),
        ]
        name = [row.name for row in rows]
        figures = [
            Figure("lmdb put with writemap / mmpc link", name[4], over=name[0]),
            Figure("lmdb put with writemap / mmpc replace", name[4], over=name[1]),
            Figure("lmdb update with writemap / mmpc update", name[5], over=name[2]),
            Figure("lmdb put + delete with writemap / mmpc allocate + free", name[6], over=name[3]),
        ]
        yield Question("verbs with a key, update, a page's life", rows, figures, env.rounds(51))
