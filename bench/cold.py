"""Cold get: the object cache is empty, the log's pages are in memory. Chains of 1, 3 and 10 fragments of 28
bytes.

The floor is one `unpackb` of the same fragments in one array, and the same merge in Python: what is left when
reading the chain costs nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgpack

import mmpc

from .harness import Env, Figure, Question, Row, Run, calls, per_item
from .peers import chain_fragment, key, lmdb_env, lmdb_fill, packed

PAGES = 120
DEPTHS = (1, 3, 10)
FEW = 16 << 10  # bytes; holds a few pages only, so that every get misses, inserts and evicts


class Updates(mmpc.Materializer[dict[Any, Any]]):
    """Later keys win: a merge in Python."""

    name = "bench-updates-1"

    def merge(self, fragments: Sequence[Any]) -> dict[Any, Any]:
        """One mapping of all fragments, oldest first."""
        merged: dict[Any, Any] = {}
        for fragment in fragments:
            merged.update(fragment)
        return merged

    def size_in_bytes(self, fragment: Any) -> int:
        """About what a small mapping takes."""
        return 64 + 100 * len(fragment)


def write_chains(env: Env, pages: Any, chains: Sequence[Sequence[Any]]) -> list[int]:
    """A page for each chain; the pages, shuffled."""
    pids = []
    for chain in chains:
        pid, at = pages.allocate(chain[0])
        for one in chain[1:]:
            at = pages.link(pid, at, one)
        pids.append(pid)
    return env.shuffled(pids)


def floor() -> Run:
    """A loop of one unpackb and one merge."""
    unpack, merge = msgpack.unpackb, Updates().merge

    def run(items: list[bytes]) -> None:
        for item in items:
            merge(unpack(item))

    return run


def chains_of(depth: int) -> list[list[Any]]:
    """As many chains as there are pages."""
    return [[chain_fragment(start + i) for i in range(depth)] for start in range(PAGES)]


def lmdb_row(env: Any, chains: Sequence[Sequence[Any]]) -> Row:
    """The merged value got and decoded, in one transaction for all."""
    if env is None:
        return per_item("lmdb get + unpackb of the merged value", None, [])
    merge, unpack = Updates().merge, msgpack.unpackb
    names = [key(number) for number in range(len(chains))]
    lmdb_fill(env, [(name, packed(merge(chain))) for name, chain in zip(names, chains, strict=True)])

    def run(items: list[bytes]) -> None:
        with env.begin() as txn:
            get = txn.get
            for name in items:
                unpack(get(name))

    return per_item("lmdb get + unpackb of the merged value", run, names)


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """A store with a merge in Python and one with the native Union; their object caches are far too small."""
    rows, figures = [], []
    options: dict[str, Any] = {"create": True, "cache_capacity": FEW, "page_consolidation_threshold": 64}
    with (
        mmpc.open(env.fresh("python"), Updates(), **options) as python,
        mmpc.open(env.fresh("union"), mmpc.Union(), **options) as union,
        lmdb_env(env.fresh("lmdb")) as peer,
    ):
        for depth in DEPTHS:
            chains = chains_of(depth)
            least = per_item(f"unpackb + merge, {depth}", floor(), [packed(chain) for chain in chains])
            rows.append(least)
            for name, pages in (("merge in Python", python), ("Union", union)):
                row = per_item(
                    f"mmpc cold get, {name}, {depth}", calls(pages.get), write_chains(env, pages, chains)
                )
                rows.append(row)
                bar = 1.3 if depth == 10 else None
                figures.append(Figure(f"{row.name} / {least.name}", row.name, over=least.name, at_most=bar))
        rows.append(lmdb_row(peer, chains_of(10)))
        yield Question("cold get: chains of 1, 3, 10 fragments of 28 bytes", rows, figures, env.rounds(101))
