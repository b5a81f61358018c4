"""Cold get: nothing of the log is in memory. A page of one fragment, and one of ten that lie scattered over the log.

Before each sample the log is written out and dropped from the page cache, and a handle is opened that has mapped none
of it. The floors are what the device takes for one block, for one block and then nine that are asked for at once (less
is not possible without knowing where they lie before the first was read), and for ten at once, which is what knowing
that would be worth; ten one after the other are what the index saves. On a device that takes its time for one block and
serves many at once the second is twice the first, and the third the same as the first; on one that does not, more.
"""

import mmap
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import mmpc

from .harness import Env, Figure, Question, Row

PAGES = 20_000
FRAGMENTS = 10
SIZES = (30, 1000)
OPTIONS: dict[str, Any] = {"page_consolidation_threshold": 64}  # nothing is merged by the way


def fill(path: Path, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Pages of one fragment, and pages of ten, one in each of ten turns over all of them."""
    rng, fragment = random.Random(seed), b"x" * size
    with mmpc.open(path, mmpc.Append(), create=True, **OPTIONS) as pages:
        pids = [pages.allocate(fragment)[0] for _ in range(PAGES)]
        many = pids[: PAGES // 2]
        for _ in range(FRAGMENTS - 1):
            rng.shuffle(many)
            pages.append_many([(pid, fragment) for pid in many])
    return pids[PAGES // 2 :], many


def bytes_of_indexes(path: Path, pids: list[int]) -> float:
    """Bytes of index for each append to some pages."""
    from mmpc._native import ffi, lib

    total, triples, r = 0, ffi.new("uint64_t[]", 3 * FRAGMENTS), ffi.new("mm_result *")
    with mmpc.open(path, mmpc.Append(), **OPTIONS) as pages:
        for pid in pids:
            lib.mm_chain(pages._attachment.mm, pid, triples, FRAGMENTS, r)
            shapes = [triples[3 * i + 2] for i in range(r.count)]
            total += sum(shape >> 56 for shape in shapes if shape >> 45 & 1)
    return total / len(pids) / (FRAGMENTS - 1)


class Log:
    """The log of a store, dropped from memory at will."""

    def __init__(self, path: Path, seed: int) -> None:
        self.fd = os.open(path / "log", os.O_RDWR)
        self.size = os.fstat(self.fd).st_size
        self.rng = random.Random(seed)

    def drop(self) -> None:
        """Nothing of it stays in the page cache: nobody may have it mapped."""
        os.fdatasync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def get(self, path: Path, pid: int) -> float:
        """Microseconds of a get in a handle that is just open."""
        self.drop()
        with mmpc.open(path, mmpc.Append(), **OPTIONS) as pages:
            start = perf_counter()
            pages.get(pid)
            return (perf_counter() - start) * 1e6

    def blocks(self, *trips: int) -> float:
        """Microseconds of so many blocks, through a mapping: those of a trip at once, the trips one after the other."""
        self.drop()
        with mmap.mmap(self.fd, self.size, access=mmap.ACCESS_READ) as mapped:
            mapped.madvise(mmap.MADV_RANDOM)
            chosen = [[self.rng.randrange(self.size // 4096) * 4096 for _ in range(count)] for count in trips]
            start = perf_counter()
            for trip in chosen:
                for at in trip if len(trip) > 1 else ():
                    os.posix_fadvise(self.fd, at, 4096, os.POSIX_FADV_WILLNEED)
                for at in trip:
                    _ = mapped[at]
            return (perf_counter() - start) * 1e6


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """A store for each size of fragment; another handle keeps the log mapped nowhere."""
    rows, figures, logs = [], [], []
    for size in SIZES:
        path = env.fresh("coldchain")
        one, ten = fill(path, size, env.seed)
        log = Log(path, env.seed)
        logs.append(log)

        def cold(pids: list[int], path: Path = path, log: Log = log) -> float:
            return log.get(path, log.rng.choice(pids))

        def floor(*trips: int, log: Log = log) -> float:
            return log.blocks(*trips)

        whats = "one fragment", "ten fragments", "one block", "one and nine", "ten at once", "ten in turn"
        names = [f"{what}, {size} bytes" for what in whats]
        rows += [
            Row(names[0], "us", lambda c=cold, p=one: c(p)),
            Row(names[1], "us", lambda c=cold, p=ten: c(p)),
            Row(names[2], "us", lambda f=floor: f(1)),
            Row(names[3], "us", lambda f=floor: f(1, FRAGMENTS - 1)),
            Row(names[4], "us", lambda f=floor: f(FRAGMENTS)),
            Row(names[5], "us", lambda f=floor: f(*[1] * FRAGMENTS)),
        ]
        figures += [
            Figure(f"ten fragments / one, {size} bytes", names[1], over=names[0]),
            Figure(f"one block and nine / one, of the device, {size}", names[3], over=names[2]),
            Figure(f"ten blocks at once / one, of the device, {size}", names[4], over=names[2]),
            Figure(f"ten blocks in turn / one, of the device, {size}", names[5], over=names[2]),
            Figure(f"ten fragments / one block and nine, {size} bytes", names[1], over=names[3], at_most=2),
            Figure(f"ten fragments / ten blocks at once, {size} bytes", names[1], over=names[4]),
        ]
        spent = bytes_of_indexes(path, ten[:1000])
        rows.append(Row(f"index of an append, {size} bytes", "B", lambda spent=spent: spent))
    try:
        yield Question("cold chains: nothing of the log in memory", rows, figures, env.rounds(51))
    finally:
        for log in logs:
            os.close(log.fd)
