"""Recovery: what comes back after the death of all, after power losses, after deaths inside recoveries, and again.

`Lives` runs a store through lives, each a child that ends by SIGKILL, and compares every page with a dict at each start.
One process at a time writes, so what comes back is exact: all of it without a power loss, else what was flushed last.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mmpc
from support import loss
from support.children import Children
from support.sealed import numbers, seal

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
Model = dict[int, "list[int] | None"]  # numbers of the fragments of each page, or None: freed

SEGMENT = 1 << 16
NEVER = {"cache_capacity": 0, "page_consolidation_threshold": 4, "segment_size": SEGMENT}


@pytest.fixture
def memory() -> Iterator[str]:
    """A directory in memory, where a sync costs nothing: these tests sync a thousand times."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name:
        yield name


def check(pc: Store, model: Model, bound: int) -> None:
    """Every page is what the model says, and no other page is there."""
    for pid in range(2, bound):
        page = pc.get(pid)
        if pid not in model:
            assert not page.is_materialized(), f"page {pid} was lost or never there, and reads as {page}"
        elif model[pid] is None:
            assert page.is_free(), f"page {pid} was freed, and reads as {page}"
        else:
            assert page.is_materialized(), f"page {pid} should hold {model[pid]} and reads as {page}"
            assert numbers(pid, page.unwrap()) == model[pid], f"page {pid}"


def act(pc: Store, model: Model, rng: random.Random, number: int) -> None:
    """One random verb, on the store and on the model."""
    live = [pid for pid, held in model.items() if held is not None]
    action = rng.randrange(12)
    if action < 2 or not live:
        pid, key = pc.allocate([])
        model[pid] = []
        if action == 0:
            pc.link(pid, key, [seal(pid, number, rng.choice([0, 30, 1000]))])
            model[pid] = [number]
        return
    pid = rng.choice(live)
    fragment = [seal(pid, number, rng.choice([0, 30, 1000]))]
    held = model[pid]
    assert held is not None
    if len(held) > 24:  # what is appended to fits half a segment
        action = 9
    if action < 8:
        pc.append(pid, fragment)
        model[pid] = [*held, number]
    elif action == 8:
        pc.append_many([(pid, fragment), (pid, fragment)])
        model[pid] = [*held, number, number]
    elif action == 9:
        pc.replace(pid, pc.get(pid).key, fragment)
        model[pid] = [number]
    elif action == 10:
        pc.free(pid, pc.get(pid).key)
        model[pid] = None
    else:
        pc.get(rng.choice(live))  # a reader consolidates


class Lives:
    """A store, what it holds, and what of it is on the disk."""

    def __init__(self, top: str, children: Children, rng: random.Random) -> None:
        self.top, self.children, self.rng = top, children, rng
        self.path = os.path.join(top, "life-0")
        self.disk = loss.Disk(os.path.join(top, "disk"))
        self.kept = os.path.join(top, "kept")  # a snapshot of an earlier life
        os.makedirs(self.kept)
        self.now: Model = {}
        self.durable: Model = {}
        self.bound, self.lives, self.number, self.boot = 2, 0, 0, "boot-0"
        self.story: list[str] = []

    def live(self, steps: int, recovered: bool) -> None:
        """One life: checks everything, changes something, dies. `recovered`: opening made all of it durable."""
        read, write = os.pipe()
        child = self.children.start(self._life, steps, recovered, write)
        os.close(write)
        with open(read, "rb") as f:
            answer = f.read()
        if not answer:
            child.result()
        assert child.wait() == -signal.SIGKILL
        self.now, self.durable, self.bound, self.number = pickle.loads(answer)
        self.lives += 1

    def _life(self, steps: int, recovered: bool, write: int) -> None:
        os.environ["MMPC_BOOT_ID"] = self.boot
        pc = mmpc.open(self.path, mmpc.Append(), create=not self.lives, **NEVER)
        assert pc.was_recovered == bool(self.lives)
        check(pc, self.now, self.bound + 3)
        pc._check()
        if recovered:
            self._synced()
        for _ in range(steps):
            self.number += 1
            act(pc, self.now, self.rng, self.number)
            self.bound = max([self.bound, *self.now])
            what = self.rng.randrange(25)
            if what == 0:
                pc.flush()
            elif what == 1:
                pc.snapshot()
            if what < 2:
                self._synced()
        with open(write, "wb") as f:
            f.write(pickle.dumps((self.now, self.durable, self.bound, self.number)))
        os.kill(os.getpid(), signal.SIGKILL)

    def _synced(self) -> None:
        self.durable = dict(self.now)
        self.disk.sync(self.path)

    # ---- between two lives; each returns whether the next open recovers

    def go_on(self) -> bool:
        """The same boot, nothing lost."""
        return False

    def lose_volatile(self) -> bool:
        """The same boot; a file that can be made again is gone."""
        for name in self.rng.choice([["table"], ["ids"], ["rts"], ["table", "ids", "rts"]]):
            os.unlink(os.path.join(self.path, name))
        return True

    def reboot(self) -> bool:
        """Another boot that finds the files as they were written, all of them."""
        self.boot = f"boot-{self.lives}-{self.rng.random()}"
        self.now = dict(self.durable)
        return True

    def lose_control(self) -> bool:
        """Nobody knows of which boot the rest is."""
        os.unlink(os.path.join(self.path, "control"))
        self.now = dict(self.durable)
        return True

    def lose_power(self) -> bool:
        """A disk with any subset of what was not synced."""
        new = os.path.join(self.top, f"life-{self.lives}")
        self.disk.after_loss(self.path, new, self.rng)
        shutil.rmtree(self.path)
        self.path = new
        return self.reboot()

    # ---- what may happen to a store that nobody has open, without changing what it holds

    def touch_snapshots(self) -> None:
        """Keeps one for later, removes all, or puts an older one in their place."""
        names, kept = loss.snapshots(self.path), os.listdir(self.kept)
        what = self.rng.randrange(4)
        if what == 0 and names:
            shutil.copy(os.path.join(self.path, names[-1]), self.kept)
        elif what == 1 or (what == 2 and kept):
            for name in names:
                os.unlink(os.path.join(self.path, name))
            if what == 2:
                shutil.copy(os.path.join(self.kept, self.rng.choice(kept)), self.path)

    def die_inside(self, boots: list[str]) -> None:
        """Deaths of those who try to open it, under one boot id or several."""
        for _ in range(self.rng.randrange(1, 5)):
            boot = self.rng.choice(boots)
            child = self.children.start(loss.open_and_die, self.path, mmpc.Append(), boot, self.rng)
            self.rng.random()
            assert child.wait() < 0

    def run(self, lives: int, ways: list[Callable[[], bool]]) -> None:
        """So many lives, with what happens between them drawn from `ways`."""
        self.live(self.rng.randrange(40), recovered=True)
        for _ in range(lives):
            way = self.rng.choice(ways)
            recovers = way()
            self.story.append(way.__name__)
            if recovers:
                self.touch_snapshots()
                if self.rng.random() < 0.4:
                    self.story.append("deaths inside")
                    self.die_inside([self.boot])
            try:
                self.live(self.rng.randrange(60), recovered=recovers)
            except BaseException:
                print(" ".join(self.story))
                raise


def every_way(lives: Lives) -> list[Callable[[], bool]]:
    return [lives.go_on, lives.lose_volatile, lives.reboot, lives.lose_control, lives.lose_power]


def test_lives_of_all_kinds_find_what_the_model_says(memory: str, children: Children, seed: int) -> None:
    lives = Lives(memory, children, random.Random(seed))
    lives.run(40, every_way(lives))


@pytest.mark.slow
def test_very_many_lives_find_what_the_model_says(memory: str, children: Children, seed: int) -> None:
    for turn in range(60):
        print(f"turn {turn}: MMPC_SEED={seed + turn}")
        top = os.path.join(memory, str(turn))
        os.mkdir(top)
        lives = Lives(top, children, random.Random(seed + turn))
        lives.run(40, every_way(lives))
        shutil.rmtree(top)
