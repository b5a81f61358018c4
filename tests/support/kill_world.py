"""A store with handles of this process in it, and what must hold in it after somebody died, stopped or was refused.

It runs in a process of its own: of kill_driver, with the points build of mmpc, or of step_driver, with any.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mmpc
from mmpc._layout import EXTENT_STATE
from mmpc._native import ffi, lib

from .kill_cases import ALL, LARGE, THRESHOLD, VIEWED, Case, Lists, Model
from .runs import consistent, runs

DEEP = 200  # a threshold that never makes a handle consolidate here
FAILED_OFFSET = 4096 + 2 * 64  # of control: globals.failed
MAX_PID_OFFSET = 4096 + 9 * 64  # of control: globals.max_pid
FRESH_TABLE = 1024  # head words in the table of a new store


class Wrong(AssertionError):
    """Something that must hold does not."""


def must(condition: object, text: str, *details: object) -> None:
    if not condition:
        raise Wrong(text + "".join(f"\n    {d!r}" for d in details))


def copy_store(path: str, target: str) -> None:
    """The files as they are at this moment, as a loss of power that loses nothing would leave them."""
    os.mkdir(target, 0o700)
    for name in os.listdir(path):
        source, copied = os.path.join(path, name), os.path.join(target, name)
        with open(source, "rb") as f, open(copied, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as g:
            os.truncate(g.fileno(), os.fstat(f.fileno()).st_size)
            for start, end in _data(f.fileno()):
                g.seek(start)
                f.seek(start)
                g.write(f.read(end - start))


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes."""
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, end
        at = end


@contextmanager
def another_boot() -> Iterator[None]:
    before = os.environ.get("MMPC_BOOT_ID")
    os.environ["MMPC_BOOT_ID"] = f"{before}-and-another"
    try:
        yield
    finally:
        os.environ.pop("MMPC_BOOT_ID")
        if before is not None:
            os.environ["MMPC_BOOT_ID"] = before


class World:
    """The store at `path`; `home` is the handle that a forked child takes over, `checker` looks on."""

    def __init__(self, path: str, python: bool) -> None:
        self.path, self.python = path, python
        self.home: Any = None
        self.checker: Any = None
        self.p = self.q = self.v = 0
        self.number = -1  # the largest of generate_id that is known

    # ---- handles

    def open(self, threshold: int = THRESHOLD) -> Any:
        return mmpc.open(
            self.path,
            Lists() if self.python else mmpc.Append(),
            create=True,
            page_consolidation_threshold=threshold,
            segment_size=1 << 16,
            idgen_persist_interval=2,
        )

    def enter(self) -> None:
        self.home, self.checker = self.open(), self.open(DEEP)

    def leave(self) -> None:
        for handle in (self.home, self.checker):
            if handle is not None:
                handle.close()
        self.home = self.checker = None

    def rebuild(self, alone: bool = False) -> None:
        """Everybody leaves, the table is lost, the log has to tell; `alone`: not a snapshot, which knows heads that
        nobody committed.
        """
        self.leave()
        gone = [name for name in os.listdir(self.path) if name == "table" or (alone and name.startswith("snapshot-"))]
        for name in gone:
            os.unlink(os.path.join(self.path, name))
        self.enter()

    def remove(self) -> None:
        self.leave()
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def failed(self) -> bool:
        """A sync has failed."""
        with open(os.path.join(self.path, "control"), "rb") as f:
            f.seek(FAILED_OFFSET)
            return any(f.read(8))

    def forge_max_pid(self, pid: int) -> None:
        """As if all ids below had been handed out; nobody is attached."""
        with open(os.path.join(self.path, "control"), "r+b") as f:
            f.seek(MAX_PID_OFFSET)
            f.write(struct.pack("<Q", pid))

    def empty(self) -> None:
        """Every page is free, and nobody looks at what was: no run is left."""
        for _ in range(4):
            self.checker.flush()
            while self.checker._clean(ALL, 1 << 30).retired:
                pass
        must(not runs(self.checker), "runs are left of pages that are free", *runs(self.checker))

    # ---- pages

    def prepare(self, case: Case) -> Model:
        """Pages p and q as the case wants them; `checker` has read p when it was young."""
        pc = self.checker
        tokens = [f"p{i}" for i in range(case.depth)]
        self.p, self.q = pc.allocate(tokens[:1])[0], pc.allocate(["q0"])[0]
        pc.get(self.p)
        for token in tokens[1:]:
            pc.append(self.p, [token])
        if case.views:
            self.v = pc.allocate(VIEWED[0])[0]
        return Model({self.p: tokens, self.q: ["q0"]})

    def scan(self, pc: Any) -> dict[int, list]:
        """Every page that has a list as its value, by id."""
        pages = ((pid, pc.get(pid)) for pid in range(2, pc.stats().pages))
        lists = ((pid, page.value) for pid, page in pages if isinstance(page, mmpc.Materialized))
        return {pid: value for pid, value in lists if isinstance(value, list)}

    def observed(self, case: Case, model: Model, done: int, most: int = 0) -> tuple[int, dict[int, list]]:
        """How many effects of the case are visible: those of the first `done` operations must be, and none behind the
        next one may be, or behind the first `most`.
        """
        counts = case.effects_before
        seen = self.scan(self.checker)
        effects = [effect for op in case.ops for effect in op.effects]
        last = counts[max(most, min(done + 1, len(case.ops)))]
        for visible in range(counts[done], last + 1):
            expected = model.copy()
            for effect in effects[:visible]:
                effect(expected, self)
            if expected.equals(seen):
                return visible, seen
        raise Wrong(
            f"{done} operations had returned of {len(case.ops)}; "
            f"effects {counts[done]} to {last} fit not\n    {model}\n    {seen}"
        )

    def given(self, numbers: list[int]) -> None:
        """A process was given these: rising, none that was known, and what is drawn now is above all of them."""
        must(numbers == sorted(set(numbers)) and self.number not in numbers, "numbers", numbers, self.number)
        self.number = max([self.number, *numbers])
        self.draw(self.checker)

    def draw(self, pc: Any) -> None:
        number = pc.generate_id()
        must(number > self.number, "generate_id gave a number again, or a smaller one", number, self.number)
        self.number = number

    def reuse(self) -> None:
        """Replaces the viewed page, and writes over the old record if a cleaner might: pins first, then views."""
        triple, r = ffi.new("uint64_t[3]"), ffi.new("mm_result *")
        must(lib.mm_chain(self.checker._attachment.mm, self.v, triple, 1, r) == 0, "mm_chain failed")
        self.checker.replace(self.v, self.checker.get(self.v).key, VIEWED[1])
        retired = self.checker.stats().epoch
        self.checker.flush()
        if self.checker.stats().oldest_pin > retired and self.checker.stats().views == 0:
            with open(os.path.join(self.path, "log"), "r+b") as f:
                f.seek(at := triple[0] + 43)
                old = f.read(len(VIEWED[0])) == VIEWED[0]  # else a cleaner was here already
                f.seek(at)
                f.write(bytes(len(VIEWED[0]) if old else 0))

    # ---- what must hold

    def sound(self) -> None:
        """What the dead left is no damage, whoever has not looked at it yet."""
        report = mmpc.verify(self.path)
        must(report.ok, "verify finds damage", *report.damage[:5])

    def reaped(self, *living: int) -> None:
        """The dead leave no slot: one of these numbers of slots is live."""
        n = ffi.new("uint64_t *")
        must(lib.mm_reap_all(self.checker._attachment.mm, n) == 0, "mm_reap_all failed")
        must(self.checker.stats().slots in living, "not the slots of the living", living, self.checker.stats(), n[0])
        if living == (2,):  # nobody is in the middle of anything
            left = [run for run in runs(self.checker) if run.state == EXTENT_STATE and not run.published]
            must(not left, "a run is in the hands of the dead", *left)
            consistent(self.checker)

    def newcomer(self) -> Any:
        """A handle opened now; no pin in the store is older than it, and nobody views anything."""
        self.checker.flush()
        epoch = self.checker.stats().epoch
        fresh = self.open()
        must(fresh.stats().oldest_pin >= epoch, "a pin of the dead lives on", epoch, fresh.stats())
        must(fresh.stats().views == 0, "a view of the dead lives on", fresh.stats())
        return fresh

    def lasts(self, expected: dict[int, list]) -> None:
        """After a flush, what a copy of the files says after another boot: only what is durable counts there."""
        self.checker.flush()
        copy = World(self.path + "-copy", self.python)
        copy_store(self.path, copy.path)
        with another_boot():
            copy.enter()
            self.agree(expected, copy.checker, copy.home)
            copy.number = self.number
            copy.draw(copy.checker)
            copy.remove()

    def agree(self, expected: dict[int, list], *handles: Any) -> None:
        for pc in handles:
            seen = self.scan(pc)
            must(seen == expected, "a handle reads something else", expected, seen)

    def use(self, seen: dict[int, list], pc: Any) -> dict[int, list]:
        """Every verb on the same pages by somebody else; what is there afterwards."""
        now = {}
        for pid, value in seen.items():
            if len(value[0]) > LARGE:  # takes no fragment more
                pc.update(pid, lambda v: [*v, "u"])
                now[pid] = [*value, "u"]
                continue
            key = pc.append(pid, ["a"])
            pc.link(pid, key, ["l"])
            pc.append_many([(pid, ["m"])])
            must(pc.get_many([pid])[0].value == [*value, "a", "l", "m"], "get_many reads something else", pid)
            pc.update(pid, lambda v: [*v, "u"])
            frags = pc.get_page_frags(pid)[1]
            must([x for f in frags for x in f] == [*value, "a", "l", "m", "u"], "fragments differ", pid, frags)
            now[pid] = [*value, "a", "l", "m", "u"]
        for pid in list(now)[1:]:
            pc.replace(pid, pc.get(pid).key, ["r"])
            now[pid] = ["r"]
        for token in ("n1", "n2"):
            pid, _key = pc.allocate([token])
            must(pid not in now and pid >= 2, "a page id was handed out twice", pid, now)
            now[pid] = [token]
        return now

    def clear(self, expected: dict[int, list], *handles: Any) -> None:
        """Frees every page, by the handles in turn."""
        for i, pid in enumerate(sorted(expected)):
            pc = handles[i % len(handles)]
            pc.free(pid, pc.get(pid).key)
            must(pc.get(pid).is_free(), "a freed page does not read as free", pid)
        for pc in handles:
            must(self.scan(pc) == {}, "pages are left", self.scan(pc))
            pc._check()
