"""Views: one of 1 MiB opened and released, against a copy of 1 MiB, a cached get and an array made of a view.

Also what it costs the first time, when the checksum is verified, and what several processes that read one large
array take of private memory.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import mmpc

from .harness import Env, Figure, Question, Row, Run, calls, per_item

MIB = 1 << 20
READERS = 8
LARGE = 200 * MIB  # bytes of the array that all read


def with_view(view: Any) -> Run:
    """A loop of `with view(pid)`."""

    def run(items: list[int]) -> None:
        for pid in items:
            with view(pid):
                pass

    return run


def through_numpy(view: Any) -> Run:
    """A loop of one array on each view."""
    asarray = np.asarray

    def run(items: list[int]) -> None:
        for pid in items:
            asarray(view(pid))

    return run


def private() -> int:
    """Bytes of this process that no other has."""
    with open("/proc/self/smaps_rollup") as f:
        return sum(int(line.split()[1]) << 10 for line in f if line.startswith("Private_"))


def read_large(path: str, pid: int, barrier: Any, answers: Any) -> None:
    """Sums the array through a view; answers how much private memory that took."""
    pages = mmpc.open(path, mmpc.LastWriteWins(), cache_capacity=0)
    with pages.view(pid) as view:
        array = np.asarray(view)
        array[:10].sum()
        before = private()
        total = int(array[:: 4096 // array.itemsize].sum())
        barrier.wait()
        answers.put((total, private() - before))
        barrier.wait()
        del array
    pages.close()


def largest_share(path: str, size: int) -> float:
    """MiB of private memory of the process that took most."""
    with mmpc.open(path, mmpc.LastWriteWins(), create=True, segment_size=1 << 30) as pages:
        pid, _ = pages.allocate(np.ones(size // 8, "f8"))
        context = multiprocessing.get_context("spawn")
        barrier, answers = context.Barrier(READERS), context.Queue()
        readers = [context.Process(target=read_large, args=(path, pid, barrier, answers)) for _ in range(READERS)]
        for reader in readers:
            reader.start()
        got = [answers.get(timeout=120) for _ in readers]
        for reader in readers:
            reader.join()
    if any(total != size // 4096 for total, _ in got):
        raise AssertionError("a reader read something else")
    return max(grown for _, grown in got) / MIB


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """Pages of 1 MiB; each is viewed once before it is measured, but for the first views of a new handle."""
    data = os.urandom(MIB)
    with mmpc.open(env.fresh("mmpc"), mmpc.LastWriteWins(), create=True) as pages:
        pids = [pages.allocate(data)[0] for _ in range(8)]
        arrays = [pages.allocate(np.frombuffer(data, "f8"))[0] for _ in range(8)]
        fresh: list[Any] = []

        def reopen() -> None:
            for handle in fresh:
                handle.close()
            fresh[:] = [mmpc.open(pages.path, mmpc.LastWriteWins())]

        for pid in pids + arrays:
            if bytes(pages.view(pid).raw) != data:
                raise AssertionError("a view shows something else")
        share = largest_share(str(env.fresh("large")), LARGE // 8 if env.quick else LARGE)
        source = bytearray(data)
        rows = [
            per_item("mmpc view of 1 MiB", calls(pages.view), pids * 50),
            per_item("with mmpc view of 1 MiB", with_view(pages.view), pids * 50),
            per_item("numpy.asarray of an mmpc view", through_numpy(pages.view), arrays * 50),
            per_item("first mmpc view of 1 MiB", lambda items: [fresh[0].view(i) for i in items], pids, before=reopen),
            per_item("copy of 1 MiB", calls(bytes), [source] * 8),
            per_item("mmpc get, cached", calls(pages.get), pids * 50),
            Row(f"private memory of {READERS} readers of one array", "MiB", lambda: share),
        ]
        figures = [
            Figure("1 MiB view, ns", rows[0].name, at_most=5000),
            Figure("1 MiB view / copy of 1 MiB", rows[0].name, over=rows[4].name, at_most=0.1),
            Figure("array on a view, ns", rows[2].name, at_most=5000),
            Figure("first view / copy of 1 MiB", rows[3].name, over=rows[4].name),
            Figure("largest private share, MiB", rows[6].name, at_most=10),
        ]
        yield Question("views: 1 MiB pages, and one large array", rows, figures, env.rounds(51))
        for handle in fresh:
            handle.close()
