"""Many pages in one call: get_many and append_many per item, against lmdb with all of it in one
transaction."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack

import mmpc

from .harness import Env, Figure, Question, Run, calls, calls_with_pairs, per_item
from .peers import fragment, key, lmdb_env, lmdb_fill, packed

PAGES = 1000
PASSES = 10


def lmdb_batch_put(env: Any) -> Run | None:
    """All pairs packed and put in one transaction."""
    if env is None:
        return None
    pack = msgpack.Packer().pack

    def run(items: list[tuple[bytes, Any]]) -> None:
        with env.begin(write=True) as txn:
            put = txn.put
            for name, value in items:
                put(name, pack(value))

    return run


def lmdb_batch_get(env: Any) -> Run | None:
    """All keys by one cursor call, then decoded."""
    if env is None:
        return None
    unpack = msgpack.unpackb

    def run(items: list[bytes]) -> None:
        with env.begin() as txn:
            for _name, value in txn.cursor().getmulti(items):
                unpack(value)

    return run


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """1000 pages and as many keys."""
    with (
        mmpc.open(env.fresh("mmpc"), mmpc.LastWriteWins(), create=True) as pages,
        mmpc.open(env.fresh("reading"), mmpc.LastWriteWins(), create=True) as reading,
        lmdb_env(env.fresh("lmdb")) as plain,
        lmdb_env(env.fresh("writemap"), writemap=True) as mapped,
    ):
        fragments = [fragment(number) for number in range(PAGES)]
        pairs = [(pages.allocate(one)[0], one) for one in fragments]
        pids = env.shuffled(reading.allocate(one)[0] for one in fragments)
        keyed = [(key(pid), one) for pid, one in pairs]
        for peer in (plain, mapped):
            lmdb_fill(peer, [(name, packed(value)) for name, value in keyed])
        rows = [
            per_item("mmpc append", calls_with_pairs(pages.append), pairs),
            per_item("mmpc append_many of 1000", calls(pages.append_many), [pairs], count=PAGES),
            per_item(
                "mmpc append_many of 10",
                calls(pages.append_many),
                [pairs[i : i + 10] for i in range(0, PAGES, 10)],
                count=PAGES,
            ),
            per_item("lmdb pack + put, 1000 a transaction", lmdb_batch_put(plain), keyed),
            per_item("lmdb pack + put, 1000 a transaction, writemap", lmdb_batch_put(mapped), keyed),
            per_item("mmpc get", calls(reading.get), pids * PASSES),
            per_item("mmpc get_many of 1000", calls(reading.get_many), [pids] * PASSES, count=PAGES * PASSES),
            per_item("lmdb getmulti of 1000 + unpackb", lmdb_batch_get(plain), [key(pid) for pid in pids]),
        ]
        name = [row.name for row in rows]
        figures = [
            Figure("mmpc append_many / append, per item", name[1], over=name[0]),
            Figure("lmdb batch / mmpc append_many, per item", name[3], over=name[1]),
            Figure("lmdb batch with writemap / mmpc append_many, per item", name[4], over=name[1]),
            Figure("mmpc get_many / get, per item", name[6], over=name[5]),
            Figure("lmdb getmulti / mmpc get_many, per item", name[7], over=name[6]),
        ]
        yield Question("batches: 1000 pages in one call, per item", rows, figures, env.rounds(51))
