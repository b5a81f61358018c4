"""What happens before the power goes: scenarios of several processes, each recorded as one life of a store or more.

A process notes when an operation has returned and which version of a page it made or saw.  Everything else that the
judge needs stands in the trace.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mmpc
from mmpc._native import lib

from .children import Child, Children
from .disk_judge import open_store
from .disk_trace import note

PATIENCE = 60
Work = Callable[["Author"], None]
_prctl = ctypes.CDLL(None).prctl


class World:
    """The store of a scenario while it is recorded."""

    def __init__(self, path: str, rng: random.Random, recorded: Any) -> None:
        self.path, self.rng = path, rng
        self.os = recorded
        self.children = Children()
        self.authors = 0
        self.compresses = False  # some of the processes do

    def begin(self) -> Any:
        """The first process: creates or recovers."""
        pc = open_store(self.path, create=not os.path.exists(os.path.join(self.path, "config")))
        note(note="live")
        return pc

    def leave(self, pc: Any) -> None:
        """The last one leaves."""
        pc.close()
        self.left()

    @staticmethod
    def left() -> None:
        """Nobody has the store open: all that was done is durable."""
        note(note="closed")

    def start(self, work: Work, *, die: int = 0, die_in: str = "", linger: str = "table", us: int = 600) -> Child:
        """Forks a process that works.  `die`: it is killed at that event (in that file); `linger`: the file after whose
        events it often sleeps, up to `us` microseconds.
        """
        self.authors += 1
        compresses = self.compresses and self.rng.random() < 0.6
        plan = Plan(self.authors, self.rng.getrandbits(62) | 1, die, die_in, linger, us, compresses)
        return self.children.start(_live, self.path, work, plan)

    def together(self, *works: Work) -> None:
        for child in [self.start(work) for work in works]:
            child.result(PATIENCE)


@dataclass(frozen=True)
class Plan:
    """Of a process: its name, and what happens to it."""

    name: int
    seed: int
    die: int
    die_in: str
    linger: str
    us: int
    compresses: bool


def _live(path: str, work: Work, plan: Plan) -> None:
    """In a child."""
    _prctl(1, signal.SIGKILL)
    number = {name: os.stat(os.path.join(path, name)).st_ino for name in ("table", "marks", "log")}
    lib.mm_disk_jitter(plan.seed, 150, plan.us, number[plan.linger])
    pc = open_store(path, use_compression=plan.compresses)
    author = Author(pc, plan.name, random.Random(plan.seed))
    if plan.die:
        lib.mm_disk_die(plan.die, number[plan.die_in] if plan.die_in else 0)
    work(author)
    author.pc.close()


class Author:
    """A process at work on a handle; what it does is noted."""

    def __init__(self, pc: Any, name: int, rng: random.Random) -> None:
        self.pc, self.name, self.rng = pc, name, rng
        self.n = 0
        self.large = 25  # one token in so many is
        self.wide = 0  # one in so many lies in a run of its own
        self.pads = (0, 0, 0, 3, 20, 60, 60, 200, 700)

    def token(self) -> str:
        self.n += 1
        if self.wide and self.n % self.wide == 0:
            return f"{self.name}.{self.n}" + "-" * self.rng.choice((35_000, 62_000, 90_000))
        pad = self.rng.choice(self.pads) if self.n % self.large else 5000
        return f"{self.name}.{self.n}" + "-" * pad

    @staticmethod
    def op(key: Any) -> Any:
        note(note="op", page=key.pid, wts=key.wts)
        return key

    @staticmethod
    def saw(key: Any) -> Any:
        note(note="saw", page=key.pid, wts=key.wts)
        return key

    def page(self) -> int:
        """Any page that there is."""
        return self.rng.randrange(2, max(3, self.pc.stats().pages))

    def read(self, pid: int) -> Any:
        page = self.pc.get(pid)
        if not page.is_unallocated():
            self.saw(page.key)
        return page

    def append(self, pid: int) -> None:
        try:
            self.op(self.pc.append(pid, [self.token()]))
        except (mmpc.PageFreed, mmpc.PageNotFound):
            self.read(pid)
        except mmpc.FragmentTooLarge:
            self.keyed(pid, "replace")

    def keyed(self, pid: int, verb: str) -> None:
        """link, replace or free, from what was read."""
        page = self.read(pid)
        if not page.is_materialized():
            return
        arguments = [] if verb == "free" else [[self.token()]]
        try:
            self.op(getattr(self.pc, verb)(pid, page.key, *arguments))
        except mmpc.Conflict as e:
            self.saw(e.current)
        except mmpc.PageFreed:
            self.read(pid)
        except mmpc.FragmentTooLarge:
            if verb == "link":
                self.keyed(pid, "replace")

    def allocate(self) -> int:
        pid, key = self.pc.allocate([self.token()])
        self.op(key)
        return int(pid)

    def flush(self) -> None:
        note(note="flush")
        self.pc.flush()
        note(note="flushed")

    def stable(self, pid: int) -> None:
        """The other way to make an operation durable."""
        try:
            key = self.op(self.pc.append(pid, [self.token()]))
        except (mmpc.PageFreed, mmpc.PageNotFound, mmpc.FragmentTooLarge):
            return
        self.pc.make_stable(key.last_lsn)
        note(note="stable", page=pid, wts=key.wts)

    def batch(self) -> None:
        try:
            keys = self.pc.append_many([(self.page(), [self.token()]) for _ in range(3)])
        except (mmpc.PageFreed, mmpc.PageNotFound, mmpc.FragmentTooLarge) as e:
            keys = e.applied  # type: ignore[attr-defined]
        for key in keys:
            self.op(key)

    def clean(self) -> None:
        """Empties what gains anything."""
        self.pc._clean(2, 1 << 17)

    def some(self, n: int, flushes: float = 0.06) -> None:
        """Operations of all kinds."""
        for _ in range(n):
            draw = self.rng.random()
            if draw < flushes:
                self.flush()
            elif draw < flushes + 0.02:
                self.stable(self.page())
            elif draw < 0.25:
                self.read(self.page())
            elif draw < 0.30:
                self.batch()
            elif draw < 0.75:
                self.append(self.page())
            elif draw < 0.90:
                self.keyed(self.page(), "link" if self.rng.random() < 0.4 else "replace")
            elif draw < 0.95:
                self.keyed(self.page(), "free")
            else:
                self.allocate()


# ---- lives


def create(world: World) -> None:
    """A store comes to be, is used by two processes, and is left."""
    pc = world.begin()
    first = Author(pc, 0, world.rng)
    first.allocate()
    world.together(lambda a: a.some(10), lambda a: a.some(10))
    first.allocate()
    world.leave(pc)


def _pages(pc: Any, world: World, n: int) -> Author:
    first = Author(pc, 0, world.rng)
    for _ in range(n):
        first.allocate()
    return first


def writers(world: World) -> None:
    """Four processes on the same pages; each flushes now and then."""
    pc = world.begin()
    _pages(pc, world, 5)
    world.together(*[lambda a: a.some(120)] * 4)
    world.leave(pc)


def _grow(author: Author, n: int) -> None:
    """Two pages that everybody appends to and reads, so that they are consolidated all the time."""
    for i in range(n):
        pid = author.rng.choice((2, 3))
        author.append(pid)
        author.read(5 - pid)
        if i % 12 == 11:
            author.flush()
        if i % 40 == 39:
            author.keyed(pid, "replace")


def groups(world: World) -> None:
    pc = world.begin()
    _pages(pc, world, 2)
    world.together(*[lambda a: _grow(a, 60)] * 3)
    world.leave(pc)


def _rivals(author: Author, n: int) -> None:
    """One page and no pause: most compare-and-swaps are lost.  What was seen on it goes to a page of one's own."""
    mine = author.allocate()
    for i in range(n):
        author.append(2)
        author.read(2)
        author.append(mine)
        if i % 8 == author.name % 8:
            author.flush()


def rivals(world: World) -> None:
    pc = world.begin()
    _pages(pc, world, 1)
    world.together(*[lambda a: _rivals(a, 50)] * 4)
    world.leave(pc)


def _steady(author: Author, n: int) -> None:
    """Small operations in a lease that lasts, so that flushes need one sync.  One process reads what the others have
    just written, notes it on a page of its own and flushes: what belongs together lies in the leases of all.
    """
    author.pads, author.large = (3000,), 1 << 30
    for _ in range(3):
        author.allocate()
    author.pads = (0, 3, 20)
    mine = author.allocate()
    author.flush()
    for _ in range(n):
        author.append(author.rng.choice((2, mine)))
        if author.name == 1 or author.rng.random() < 0.1:
            for pid in (2, author.page(), author.page()):
                author.read(pid)
            author.append(mine)
            author.flush()


def steady(world: World) -> None:
    pc = world.begin()
    _pages(pc, world, 1)
    world.together(*[lambda a: _steady(a, 40)] * 3)
    world.leave(pc)


def _carry(author: Author, n: int) -> None:
    """The same, and all of them flush most of the time, so intents carry what others wrote since the one before."""
    author.pads, author.large = (3000,), 1 << 30
    for _ in range(3):
        author.allocate()
    author.pads = (0, 3, 20, 60, 300)
    mine = author.allocate()
    author.flush()
    for _ in range(n):
        author.append(author.rng.choice((2, mine, mine)))
        if author.rng.random() < 0.2:
            author.read(author.page())
            author.append(mine)
        if author.rng.random() < 0.6:
            author.flush()


def carrying(world: World) -> None:
    pc = world.begin()
    _pages(pc, world, 1)
    world.together(*[lambda a: _carry(a, 80)] * 3)
    world.leave(pc)


def carrying_on(world: World) -> None:
    """In the life after a loss of power, and some are killed."""
    pc = world.begin()
    dying = world.start(lambda a: _carry(a, 40), die=world.rng.randint(100, 3000))
    world.together(*[lambda a: _carry(a, 40)] * 2)
    dying.wait(PATIENCE)
    world.leave(pc)


def handover(world: World) -> None:
    """Slots change hands: processes come, work, flush, and go or are killed, also in a flush, two at a time."""
    pc = world.begin()
    _pages(pc, world, 3)
    for turn in range(10):
        dies, lives = world.rng.randint(1, 900), turn % 3 == 2
        pair = [
            world.start(lambda a: a.some(30, flushes=0.15), die=0 if lives else dies),
            world.start(lambda a: a.some(15, flushes=0.15), die=world.rng.randint(1, 3), die_in="marks"),
        ]
        for child in pair:
            child.wait(PATIENCE)
    world.leave(pc)


def deaths(world: World) -> None:
    """Authors are killed when they have just published: others find their records, and build on them."""
    pc = world.begin()
    first = _pages(pc, world, 3)
    for _ in range(12):
        dying = world.start(lambda a: a.some(40, flushes=0), die=world.rng.randint(1, 6), die_in="table")
        living = world.start(lambda a: a.some(20))
        dying.wait(PATIENCE)
        for pid in (2, 3, 4):
            first.read(pid)
            first.append(2)
        first.flush()
        living.wait(PATIENCE)
    world.leave(pc)


def close(world: World) -> None:
    """The last ones leave at the same time, and somebody comes back in the same boot; nobody calls flush."""
    pc = world.begin()
    _pages(pc, world, 2)
    world.leave(pc)
    for turn in range(4):
        slow = [world.start(lambda a: a.some(2, flushes=0), linger="marks", us=15000) for _ in range(turn % 2)]
        world.together(*[lambda a: a.some(8, flushes=0)] * 3)
        for child in slow:
            child.result(PATIENCE)
        world.left()
    pc = open_store(world.path)
    Author(pc, 0, world.rng).append(2)
    world.leave(pc)


def rebuild(world: World) -> None:
    """Everybody is killed, the table is lost, the same boot goes on: all that was committed counts."""
    pc = world.begin()
    _pages(pc, world, 3)
    for _ in range(3):
        busy = [world.start(lambda a: a.some(60), die=world.rng.randint(100, 2500)) for _ in range(2)]
        busy.append(world.start(lambda a: a.some(60), die=world.rng.randint(1, 20), die_in="table"))
        pc.close()  # not as the last one, unless the others are quick
        for child in busy:
            child.wait(PATIENCE)
        world.os.unlink(os.path.join(world.path, "table"))
        pc = open_store(world.path)
        Author(pc, 0, world.rng).some(10)
    world.leave(pc)


def leaders(world: World) -> None:
    """Those who flush sleep in the middle of it, so that others lose patience: several flushes at a time."""
    pc = world.begin()
    _pages(pc, world, 3)
    busy = [world.start(lambda a: a.some(40, flushes=0.3), linger="marks", us=15000) for _ in range(2)]
    busy += [world.start(lambda a: a.some(60, flushes=0.2)) for _ in range(2)]
    for child in busy:
        child.result(PATIENCE)
    world.leave(pc)


def go_on(world: World) -> None:
    """A recovery, and some work after it."""
    pc = world.begin()
    world.together(*[lambda a: a.some(25)] * 2)
    world.leave(pc)


def _fill(author: Author, n: int) -> None:
    """Many segments: a snapshot knows what is in most of them."""
    author.large = 4
    author.some(n)


def snapshots(world: World) -> None:
    """Writers, and somebody who writes snapshots meanwhile."""
    pc = world.begin()
    _pages(pc, world, 12)
    busy = [world.start(lambda a: _fill(a, 80)) for _ in range(3)]
    for child in busy:
        while child.running():
            pc.snapshot()
        child.result(PATIENCE)
    world.leave(pc)


def _churn(author: Author, n: int) -> None:
    """Pages are replaced by large values again and again; the cleaner moves what stays, and segments are used again."""
    author.large = 3
    mine = author.allocate()
    for i in range(n):
        author.keyed(mine, "replace")
        author.some(1)
        if i % 6 == author.name % 6:
            author.clean()
        if i % 10 == 9:
            author.keyed(author.page(), "free")


def cleaning(world: World) -> None:
    """Several processes clean at once while all write; some are killed in the middle of it."""
    pc = world.begin()
    _pages(pc, world, 8)
    for _ in range(2):
        busy = [world.start(lambda a: _churn(a, 25)) for _ in range(2)]
        busy += [world.start(lambda a: _churn(a, 25), die=world.rng.randint(200, 3000))]
        for child in busy:
            child.wait(PATIENCE)
    world.leave(pc)


def cleaning_and_snapshots(world: World) -> None:
    """The same, with snapshots of segments that are retired and used again meanwhile."""
    pc = world.begin()
    _pages(pc, world, 8)
    busy = [world.start(lambda a: _churn(a, 20)) for _ in range(3)]
    for child in busy:
        while child.running():
            pc.snapshot()
            Author(pc, 0, world.rng).clean()
        child.result(PATIENCE)
    world.leave(pc)


def _widen(author: Author, n: int) -> None:
    """Large values come and go: runs are taken, freed, and used again, also by leases."""
    author.wide = 2
    mine = author.allocate()
    for i in range(n):
        author.keyed(mine, "replace")
        author.some(1, flushes=0.2)
        if i % 5 == author.name % 5:
            author.clean()
        if i % 8 == 7:
            author.keyed(author.page(), "free")


def extents(world: World) -> None:
    """Three processes with large fragments; one is killed, now and then while it writes one."""
    pc = world.begin()
    _pages(pc, world, 4)
    for _ in range(2):
        busy = [world.start(lambda a: _widen(a, 14)) for _ in range(2)]
        busy += [world.start(lambda a: _widen(a, 14), die=world.rng.randint(200, 9000))]
        for child in busy:
            child.wait(PATIENCE)
    world.leave(pc)


def _draw(author: Author, n: int) -> None:
    """Numbers, of small intervals; what they are for is written beside; who flushes besides is others' business."""
    rng = author.rng
    with open_store(author.pc.path, idgen_persist_interval=rng.choice((1, 2, 5))) as pc:
        for _ in range(n):
            note(note="number", value=pc.generate_id())
            if rng.random() < 0.3:
                author.append(author.page())
            if rng.random() < 0.1:
                author.flush()


def ids(world: World) -> None:
    """Processes draw numbers; some are killed in the middle of it."""
    pc = world.begin()
    _pages(pc, world, 2)
    for _ in range(3):
        busy = [world.start(lambda a: _draw(a, 30)) for _ in range(2)]
        busy += [world.start(lambda a: _draw(a, 30), die=world.rng.randint(50, 1500))]
        for child in busy:
            child.wait(PATIENCE)
    world.leave(pc)


def _squeeze(author: Author, n: int) -> None:
    """Most of what is written is worth compressing; what is large comes to lie in a record."""
    author.pads, author.wide = (0, 20, 200, 700, 3000), 5
    for _ in range(n):
        author.some(1)
        author.read(author.page())


def compressing(world: World) -> None:
    """Some of the processes compress, the first of them while others are at work; some are killed early."""
    pc = world.begin()
    _pages(pc, world, 5)
    world.compresses = True
    for _ in range(2):
        busy = [world.start(lambda a: _squeeze(a, 30)) for _ in range(3)]
        busy += [world.start(lambda a: _squeeze(a, 30), die=world.rng.randint(1, 400))]
        for child in busy:
            child.wait(PATIENCE)
    world.leave(pc)


def extents_and_snapshots(world: World) -> None:
    """The same, with snapshots that know of runs which are gone soon."""
    pc = world.begin()
    _pages(pc, world, 4)
    busy = [world.start(lambda a: _widen(a, 12)) for _ in range(2)]
    for child in busy:
        while child.running():
            pc.snapshot()
            Author(pc, 0, world.rng).clean()
        child.result(PATIENCE)
    world.leave(pc)


@dataclass(frozen=True)
class Scenario:
    """One life, or several: each but the first begins with an image of the one before."""

    name: str
    lives: tuple[Callable[[World], None], ...]
    cut: bool = False  # the last life but one ends in its creation or recovery


SCENARIOS = [
    Scenario("create", (create,)),
    Scenario("create-cut", (create, create), cut=True),
    Scenario("writers", (writers,)),
    Scenario("groups", (groups,)),
    Scenario("rivals", (rivals,)),
    Scenario("steady", (steady,)),
    Scenario("carrying", (carrying,)),
    Scenario("carrying-lives", (carrying, carrying_on, carrying_on)),
    Scenario("handover", (handover,)),
    Scenario("deaths", (deaths,)),
    Scenario("close", (close,)),
    Scenario("rebuild", (rebuild,)),
    Scenario("leaders", (leaders,)),
    Scenario("recovery", (writers, go_on)),
    Scenario("lives", (writers, go_on, go_on, go_on)),
    Scenario("cleaning", (cleaning,)),
    Scenario("cleaning-lives", (cleaning, cleaning_and_snapshots, cleaning)),
    Scenario("extents", (extents,)),
    Scenario("extents-lives", (extents, extents_and_snapshots, extents)),
    Scenario("compressing", (compressing,)),
    Scenario("compressing-lives", (compressing, go_on, compressing)),
    Scenario("ids", (ids,)),
    Scenario("ids-lives", (ids, ids, ids)),
    Scenario("recovery-cut", (writers, go_on, go_on), cut=True),
]
if hasattr(mmpc.PageCache, "snapshot"):
    SCENARIOS.append(Scenario("snapshots", (snapshots, go_on)))
