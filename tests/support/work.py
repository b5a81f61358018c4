"""Functions that workers of every start method run; importable by name, as spawn needs it."""

from __future__ import annotations

import os
from typing import Any

import mmpc

Store = mmpc.PageCache[Any]


def add(pc: Store, pid: int, times: int) -> int:
    """Adds 1 to a counter page, `times` times; returns the pid of the process."""
    for _ in range(times):
        pc.append(pid, 1)
    return os.getpid()


def read(pc: Store, pid: int) -> Any:
    """The value that this process sees."""
    return pc.get(pid).unwrap()


def allocate(pc: Store, count: int) -> list[int]:
    """Allocates and frees now and then; returns the ids that it kept."""
    kept = []
    for i in range(count):
        pid, key = pc.allocate([os.getpid(), i])
        if i % 3:
            kept.append(pid)
        else:
            pc.free(pid, key)
    return kept


def own_pages(pc: Store, pids: list[int], seed: int, steps: int) -> dict[int, list[int]]:
    """Random verbs on pages that only this process writes; checks each answer and returns what they hold."""
    import random

    rng = random.Random(seed)
    model = {pid: [0] for pid in pids}
    for step in range(steps):
        pid = rng.choice(pids)
        page = pc.get(pid)
        assert page.unwrap() == model[pid]
        action = rng.randrange(5)
        if action == 0:
            pc.replace(pid, page.key, [step])
            model[pid] = [step]
        elif action == 1:
            pc.link(pid, page.key, [step])
            model[pid].append(step)
        elif action == 2:
            pc.append_many([(pid, [step]), (pid, [step])])
            model[pid] += [step, step]
        else:
            pc.append(pid, [step])
            model[pid].append(step)
    return model


def durable_by_itself(pc: Store, pid: int, patience: float) -> bool:
    """Writes, and waits until somebody has made it durable."""
    import time

    end = time.monotonic() + patience
    key = pc.append(pid, [1])
    while pc.stable_lsn < key.last_lsn and time.monotonic() < end:
        time.sleep(0.002)
    return pc.stable_lsn >= key.last_lsn
