"""The same job on lmdb, for comparison.

lmdb does it the way that suits it: one write transaction a file, keys ``word NUL file id`` in order through
``putmulti``, no sync. The same files, words, workers and sockets; no kills. Both stores start empty, take
turns, and are timed from their opening to the last answer; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import mmpc

from . import index
from .crew import Crew, JobFailed
from .place import bytes_on_disk
from .sources import Tree
from .writer import Writer

LMDB_SIZE = 1 << 33


@dataclass(frozen=True)
class Duel:
    """Both stores with the same number of workers: medians of the rounds."""

    workers: int
    rounds: int
    mmpc_rate: float
    """Postings a second."""
    lmdb_rate: float
    ratio: float
    mmpc_bytes: int
    lmdb_bytes: int


class LmdbWriter:
    """One file into lmdb."""

    def __init__(self, folder: Path) -> None:
        self._env = _open_lmdb(folder)

    def add(self, file_id: int, counts: Mapping[str, int]) -> None:
        """Write the postings of a file in one transaction."""
        tail = b"\0" + file_id.to_bytes(4, "big")
        postings = sorted(
            (word.encode() + tail, count.to_bytes(4, "little")) for word, count in counts.items()
        )
        with self._env.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(postings)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def available() -> bool:
    """Is lmdb installed?"""
    return find_spec("lmdb") is not None


def duel(
    tree: Tree,
    postings: int,
    *,
    workers: int,
    rounds: int,
    seed: int,
    folder: Path,
    progress: Callable[[int], None] = lambda jobs: None,
) -> Duel:
    """Run both in turns, ``rounds`` times, in new directories of ``folder``. JobFailed if one is wrong."""
    rates: dict[str, list[float]] = {"mmpc": [], "lmdb": []}
    sizes: dict[str, int] = {}
    jobs = {"mmpc": _on_mmpc, "lmdb": _on_lmdb}
    for turn in range(rounds):
        for name in sorted(jobs, reverse=turn % 2 == 1):  # who goes first alternates
            place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
            try:
                stored, seconds = jobs[name](tree, place, workers, seed + turn)
                rates[name].append(postings / seconds)
                sizes[name] = bytes_on_disk(place)
            finally:
                shutil.rmtree(place)
            if stored != postings:
                raise JobFailed(f"{name} holds {stored} postings, the sources have {postings}")
            progress(1)
    ratios = [ours / theirs for ours, theirs in zip(rates["mmpc"], rates["lmdb"], strict=True)]
    return Duel(
        workers=workers,
        rounds=rounds,
        mmpc_rate=median(rates["mmpc"]),
        lmdb_rate=median(rates["lmdb"]),
        ratio=median(ratios),
        mmpc_bytes=sizes["mmpc"],
        lmdb_bytes=sizes["lmdb"],
    )


def _on_mmpc(tree: Tree, place: Path, workers: int, seed: int) -> tuple[int, float]:
    """Postings in the store, and seconds; without the last close, which syncs, as lmdb never does."""
    started = time.perf_counter()
    with mmpc.open(place, mmpc.Union(), create=True) as pages:
        layout = index.create(pages, tree)
        Crew(tree, lambda: Writer(pages, layout), workers=workers, seed=seed).run(range(len(tree)))
        seconds = time.perf_counter() - started
        return sum(index.finished(pages, layout).values()), seconds


def _on_lmdb(tree: Tree, place: Path, workers: int, seed: int) -> tuple[int, float]:
    started = time.perf_counter()
    Crew(tree, lambda: LmdbWriter(place), workers=workers, seed=seed).run(range(len(tree)))
    seconds = time.perf_counter() - started
    env = _open_lmdb(place)
    try:
        return env.stat()["entries"], seconds
    finally:
        env.close()


def _open_lmdb(folder: Path) -> Any:
    import lmdb

    return lmdb.open(str(folder), map_size=LMDB_SIZE, sync=False, metasync=False)
