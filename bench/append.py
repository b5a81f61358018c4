"""Append of a 30-byte fragment, encoding included, against a put of ready-made bytes in a transaction of its
own.

`newest wins` appends to 1000 pages for ever, so what consolidation costs is in it: the state a put is in.
`short chains` appends five fragments to each of 200 pages that are reset in between: the cost of the append
alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import msgpack

import mmpc

from .harness import Env, Figure, Question, calls, calls_with_pairs, per_item
from .peers import fragment, key, lmdb_env, lmdb_puts, packed, sqlite, sqlite_puts

PAGES = 1000
SHORT = 200
DEPTH = 5


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """Two stores of ours, two of lmdb's, one of sqlite's; all with the same number of keys."""
    with (
        mmpc.open(env.fresh("newest"), mmpc.LastWriteWins(), create=True) as newest,
        mmpc.open(env.fresh("short"), mmpc.Append(), create=True) as short,
        lmdb_env(env.fresh("lmdb")) as plain,
        lmdb_env(env.fresh("writemap"), writemap=True) as mapped,
        sqlite(env.fresh("sqlite")) as db,
    ):
        fragments = [fragment(number) for number in range(PAGES)]
        pids = env.shuffled(newest.allocate(one)[0] for one in fragments)
        chains = [short.allocate([])[0] for _ in range(SHORT)]

        def reset() -> None:
            for pid in chains:
                end, _fragments = short.get_page_frags(pid)
                short.replace(pid, end, [])

        pairs = list(zip(pids, fragments, strict=True))
        ready = [(pid, packed(one)) for pid, one in pairs]
        keyed = [(key(pid), data) for pid, data in ready]
        spread = [(pid, fragments[i]) for i, pid in enumerate(chains * DEPTH)]
        rows = [
            per_item("Packer().pack", calls(msgpack.Packer().pack), fragments),
            per_item("mmpc append, newest wins", calls_with_pairs(newest.append), pairs),
            per_item("mmpc append, short chains", calls_with_pairs(short.append), spread, before=reset),
            per_item("mmpc append of bytes, newest wins", calls_with_pairs(newest.append), ready),
            per_item("lmdb put, sync=False", lmdb_puts(plain), keyed[:200]),
            per_item("lmdb put, writemap", lmdb_puts(mapped), keyed[:500]),
            per_item("sqlite3 upsert, WAL, synchronous=off", sqlite_puts(db), ready[:100]),
        ]
        plain_row, mapped_row, sqlite_row = (row.name for row in rows[4:])
        figures = []
        for row in rows[1:3]:
            figures += [
                Figure(f"lmdb put / {row.name}", plain_row, over=row.name, at_least=10),
                Figure(f"lmdb put with writemap / {row.name}", mapped_row, over=row.name, at_least=2.5),
            ]
        figures += [
            Figure("sqlite3 / mmpc append, newest wins", sqlite_row, over=rows[1].name),
            Figure("mmpc append, newest wins / Packer().pack", rows[1].name, over=rows[0].name),
        ]
        yield Question("append: a 30-byte fragment, encoding included", rows, figures, env.rounds(101))
