"""Processes that do one job at the same time.

A pool starts its processes once. Each opens a store when it is first told to use it. For a sample they open
what they need, report that they are ready (the barrier), are given one moment of the shared clock to begin
at, work until the time is up, and report operations and seconds through their pipes. A worker ends when its
pipe does, and ends itself if it is stuck.
"""

import faulthandler
import gc
import multiprocessing
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from time import perf_counter, sleep, thread_time
from types import TracebackType
from typing import Any

from .harness import Row

STUCK = 60.0  # seconds after which a silent worker is given up, and gives itself up

Step = Callable[[], int]  # does some operations and says how many
Job = Callable[[int, Any], Step]  # (number of the worker, the job's argument) -> step; opens what it needs


def _sample(step: Step, begin: float, seconds: float) -> tuple[int, float, float]:
    """Operations, seconds, and seconds that this process had a core."""
    done = 0
    sleep(max(0.0, begin - perf_counter() - 0.001))
    while perf_counter() < begin:
        pass
    end, worked = begin + seconds, thread_time()
    while (now := perf_counter()) < end:
        done += step()
    return done, now - begin, thread_time() - worked


def _serve(pipe: Connection, number: int, jobs: Mapping[str, tuple[Job, Any]]) -> None:
    """The life of a worker: until nobody is at the other end of the pipe."""
    gc.disable()
    steps: dict[str, Step] = {}
    with suppress(EOFError, ConnectionError):
        while True:
            name, seconds = pipe.recv()
            faulthandler.dump_traceback_later(STUCK, exit=True)
            warmed = 0
            if name not in steps:
                job, argument = jobs[name]
                steps[name] = job(number, argument)
                warmed = steps[name]()
            pipe.send(warmed)
            pipe.send(_sample(steps[name], pipe.recv(), seconds))
            faulthandler.cancel_dump_traceback_later()


class Pool:
    """`count` worker processes, ended when the `with` block is left."""

    def __init__(self, count: int, jobs: Mapping[str, tuple[Job, Any]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers = []
        self.done: dict[str, int] = {}  # operations of each job, those of the first step included
        for number in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, number, dict(jobs)), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, mine))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for _process, pipe in self._workers:
            pipe.close()
        for process, _pipe in self._workers:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    def run(self, name: str, processes: int, seconds: float, own_core: bool = False) -> float:
        """Operations per second, summed over that many processes doing a job for that long at the same time.

        `own_core` counts the seconds in which a process had a core: what the processes do to each other, but
        not what other work on the machine does to them, nor the time that a process waits for a lock.
        """
        pipes = [pipe for _process, pipe in self._workers[:processes]]
        for pipe in pipes:
            pipe.send((name, seconds))
        warmed = sum(self._receive(pipe, name) for pipe in pipes)
        self.done[name] = self.done.get(name, 0) + warmed
        begin = perf_counter() + 0.003
        for pipe in pipes:
            pipe.send(begin)
        total = 0.0
        for pipe in pipes:
            done, took, worked = self._receive(pipe, name)
            self.done[name] += done
            total += done / (worked if own_core else took)
        return total

    def row(self, label: str, name: str, processes: int, seconds: float, own_core: bool = False) -> Row:
        """A row of millions of operations a second."""
        return Row(label, "M/s", lambda: self.run(name, processes, seconds, own_core) / 1e6)

    def _receive(self, pipe: Connection, name: str) -> Any:
        if not pipe.poll(STUCK):
            raise TimeoutError(f"{name}: a worker was silent for {STUCK:.0f} s")
        try:
            return pipe.recv()
        except EOFError:
            raise RuntimeError(f"{name}: a worker died; its message is above") from None
