"""Kills, stops or refuses a child at every access to shared memory of one case, and judges the store each time.

    python -P -m support.kill_driver MODE CASE DIRECTORY STEP SEED

MODE is kill, stop or fail.  Every STEP-th access is taken, from an offset that SEED draws.  Prints one line of JSON.
A child is forked from this process and attaches by itself; children die with this process, and a watchdog ends this
process when it hangs.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import mmpc
from mmpc._native import lib

from .kill_cases import ALL, LARGE, WARM, Case, Child, Effect, Model, append, find
from .kill_world import FRESH_TABLE, World, Wrong, must

WATCHDOG = 20  # seconds for one access
RENEWED = 40  # children after which a new store is made: in an old one everything takes more steps
FAILURES = 3  # after so many the rest is not worth looking at
ACTIONS = {"kill": 1, "stop": 2, "fail": 3, "full": 4}
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)  # the watchdog is a thread
_prctl = ctypes.CDLL(None).prctl


class Forked:
    """A child at work on a case; `reports` is what it said. It calls `arm` before the operations that matter."""

    def __init__(self, world: World, case: Case, arm: Callable[[], object]) -> None:
        ours, theirs = os.pipe()
        self.fd, self.reports, self.status = ours, [], 0
        self._rest = b""
        self.pid = os.fork()
        if self.pid == 0:
            _prctl(1, signal.SIGKILL)
            os.close(ours)
            _work(world, case, arm, theirs)
        os.close(theirs)
        os.set_blocking(ours, False)

    def wait(self) -> str:
        """`stopped`, `killed` or `done`."""
        _pid, self.status = os.waitpid(self.pid, os.WUNTRACED)
        self._read()
        return "stopped" if os.WIFSTOPPED(self.status) else self.over()

    def over(self) -> str:
        """`killed` or `done`: the child has ended with `status`."""
        self._read()
        os.close(self.fd)
        if os.WIFSIGNALED(self.status):
            must(
                os.WTERMSIG(self.status) == signal.SIGKILL,
                "the child died of a signal of its own",
                os.WTERMSIG(self.status),
            )
            return "killed"
        must(self.status == 0, "the child failed", self.status, self.reports)
        return "done"

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                break
            if not data:
                break
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        self.reports += [json.loads(line) for line in lines]

    @property
    def returned(self) -> int:
        """How many operations returned without an error."""
        return sum("value" in r for r in self.reports)

    @property
    def error(self) -> str | None:
        return next((r["error"] for r in self.reports if "error" in r), None)

    @property
    def points(self) -> int:
        return next((r["end"] for r in self.reports if "end" in r), 0)

    @property
    def unused(self) -> bool:
        return any(r.get("unused") for r in self.reports)


def _work(world: World, case: Case, arm: Callable[[], object], fd: int) -> None:
    """In the child; never returns."""
    try:
        gc.disable()
        child = Child(world.home, world.p, world.q, world.path, world.v)
        for i, op in enumerate(case.ops):
            if i == case.armed:
                arm()
            try:
                value = op.run(child)
            except (mmpc.MmpcError, OSError) as e:
                os.write(fd, json.dumps({"error": type(e).__name__, "text": str(e)}).encode() + b"\n")
                break
            os.write(fd, json.dumps({"value": value if isinstance(value, int) else None}).encode() + b"\n")
        passed = lib.mm_points_passed()
        # A failure that was asked for, and had no growth or sync to hit
        unused = passed > 0 and lib.mm_sync_fd(-1) == errno.EIO
        os.write(fd, json.dumps({"end": passed, "unused": unused}).encode() + b"\n")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def armed(n: int, mode: str) -> Callable[[], object]:
    """What a child calls to be killed, stopped or refused at its n-th access from then on."""
    return lambda: lib.mm_points_arm(n, ACTIONS[mode])


class Driver:
    """Runs one case in one mode, access after access."""

    def __init__(self, mode: str, case: Case, python: bool, directory: str) -> None:
        self.mode, self.case, self.python, self.directory = mode, case, python, directory
        self.world: World | None = None
        self.hit = self.applied = self.stores = self.points = self.used = self.turn = 0
        self.refused = 0  # accesses after which an operation failed
        self.lost_at = 0  # the access at which a death leaves a record without its commit word
        self.failures: list[str] = []

    # ---- stores

    def store(self) -> World:
        self.used += 1
        if self.used % RENEWED == 0:
            self.drop()
        if self.world is None:
            self.stores += 1
            self.world = World(os.path.join(self.directory, f"store-{self.stores}"), self.python)
            if self.case.new_store != "create":
                self.world.enter()
        return self.world

    def drop(self) -> None:
        if self.world is not None:
            self.world.remove()
        self.world = None

    def prepare(self) -> tuple[World, Model]:
        """A store and the pages of the case in it, for one child."""
        world, kind = self.store(), self.case.new_store
        if kind == "create":
            return world, Model({})
        model = world.prepare(self.case)
        if self.case.help_needed:
            self.leave_uncommitted(world, model)
        if kind == "recover":
            world.leave()
            os.unlink(os.path.join(world.path, "table"))
        elif self.mode == "fail":
            world.checker.flush()  # what comes back after a failed sync
        if kind == "full-table":
            world.leave()
            world.forge_max_pid(FRESH_TABLE - 1)
            world.enter()
        return world, model

    def leave_uncommitted(self, world: World, model: Model) -> None:
        """A dead process published a fragment of p and did not commit it."""
        lost = Case("lost", (WARM, append("lost")))
        at = self.lost_at
        while True:
            at = at or 1
            child = Forked(world, lost, armed(at, "kill"))
            must(child.wait() == "killed", "no death leaves a record without its commit word")
            if self.lost_at:
                break
            before = world.checker.stats().helped
            applied = world.checker.get(world.p).value != model.named[world.p]
            if applied and world.checker.stats().helped == before + 1:
                self.lost_at = at
            model.named[world.q].append("warm")
            if applied:
                model.named[world.p].append("lost")
            if self.lost_at:
                return self.leave_uncommitted(world, model)
            at += 1
        model.named[world.q].append("warm")
        model.named[world.p].append("lost")
        return None

    # ---- one access

    def start(self, world: World, n: int) -> Forked:
        return Forked(world, self.case, armed(n, self.mode))

    def once(self, n: int) -> bool:
        """True when the child got through before its n-th access."""
        world, model = self.prepare()
        child = self.start(world, n)
        end = child.wait()
        if end == "stopped":
            self.beside(world, model, child)
        elif self.alone:
            world.enter()
        self.hit += end != "done" or (self.mode == "fail" and not child.unused)
        self.hit += self.mode == "full" and child.points >= n
        self.refused += child.error is not None
        if end != "stopped":
            must(child.error is None or self.mode in ("fail", "full"), "an operation failed", child.reports)
            if not self.alone and (child.error == "StoreFailed" or world.failed):
                self.failed_store(world, model, child)
            else:
                self.judge(world, model, child, n)
        if end == "done":
            self.points = child.points
        return end == "done" and (self.points < n or child.unused)

    @property
    def alone(self) -> bool:
        """The child was the only one in the store; whoever comes next starts over."""
        return self.case.new_store in ("create", "recover")

    def way(self, n: int) -> int:
        """Which of the costly looks a store gets: 0, 1 and 3 rebuild it, 2 is another boot."""
        return (n + self.turn) % 4

    def judge(self, world: World, model: Model, child: Forked, n: int) -> None:
        """What holds after a death, or after an operation was refused."""
        world.sound()
        way = self.way(n)
        if way == 3 and not self.case.help_needed:  # what nobody committed may go when nobody has seen it
            world.rebuild(alone=True)  # before anybody has looked, and helped
        visible, seen = world.observed(self.case, model, child.returned)
        before = self.case.effects_before[child.returned]
        if child.error is not None:
            allowed = ("DiskFullError", "StoreFailed", "OSError") if self.alone else ("DiskFullError",)
            if self.case.name == "snapshot":
                allowed += ("OSError",)  # the snapshot's own sync: there is none then, and that is all
            must(child.error in allowed, "not the error of a full disk", child.reports)
            must(
                visible == before or len(self.case.ops[child.returned].effects) > 1,
                "a refused operation was applied",
                seen,
            )
        self.applied += visible > before
        world.reaped(2)
        self.numbers(world, child)
        if way == 2:
            world.lasts(seen)
        if way == 1:
            world.rebuild()
            world.agree(seen, world.checker, world.home)
        self.finish(world, seen, rebuild=way == 0)

    def finish(self, world: World, seen: dict[int, list], rebuild: bool) -> None:
        """A newcomer uses the pages; everything is freed."""
        fresh = world.newcomer()
        world.agree(seen, fresh)
        now = world.use(seen, fresh)
        world.agree(now, world.checker, fresh)
        if rebuild:
            fresh.close()
            world.rebuild()
            fresh = world.open()
            world.agree(now, world.checker, fresh)
        world.clear(now, fresh, world.checker)
        fresh.close()
        world.reaped(2)
        if self.case.name.startswith("extent"):
            world.empty()
        if self.case.new_store:
            self.drop()

    def numbers(self, world: World, child: Forked) -> None:
        """Others go on above what the child was given."""
        if self.case.draws:
            world.given([r["value"] for r in child.reports if "value" in r][self.case.armed :])

    # ---- stopped

    def beside(self, world: World, model: Model, child: Forked) -> None:
        """While the child stands still everybody else finishes; then it goes on, and the store is right."""
        case, done = self.case, child.returned
        visible, seen = world.observed(case, model, done)
        for effect in [e for op in case.ops for e in op.effects][:visible]:
            effect(model, world)
        world.checker.flush()
        fresh = world.open()
        world.agree(seen, fresh)
        if case.views:
            world.reuse()
        self.others(world, model, fresh)
        world.agree(world.scan(world.checker), fresh)
        must(model.equals(world.scan(fresh)), "others read something else", model, world.scan(fresh))
        self.numbers(world, child)
        child.resume()
        must(child.wait() == "done", "the child did not go on", child.reports)
        self.numbers(world, child)
        self.expect(world, model, child, done, visible)
        seen = world.scan(world.checker)
        must(model.equals(seen), "the store is wrong after the child went on", model, seen, child.reports)
        fresh.close()
        world.reaped(2)
        self.finish(world, seen, rebuild=False)
        if case.views:
            self.drop()  # its log is damaged where no page is

    @property
    def living(self) -> tuple[int, ...]:
        """Slots while a child stands still: it may have none yet, but nobody takes one away."""
        return tuple(n + self.case.beside for n in (3, 4))

    def others(self, world: World, model: Model, pc: Any) -> None:
        """Every verb on the pages that the stopped child works on."""
        for pid in list(model.live()):
            key = pc.append(pid, ["a"])
            pc.link(pid, key, ["l"])
            model.named[pid] += ["a", "l"]
            pc.get_page_frags(pid)
        pc.allocate(["n"])
        model.extra.append(["n"])
        world.reaped(*self.living)
        key = pc.get(world.q).key
        for letter in "ABCDEF":  # segments are filled, sealed and emptied, also that of the child's lease
            key = pc.replace(world.q, key, [letter * LARGE])
        if not self.case.views:  # there the log is damaged on purpose, where no page is: a cleaner says so
            pc._clean(ALL, 1 << 20)
        pc.replace(world.q, key, ["r"])
        model.named[world.q] = ["r"]
        pc.flush()
        if random.random() < 0.5 and model.named[world.p] is not None:
            pc.free(world.p, pc.get(world.p).key)
            model.named[world.p] = None

    def expect(self, world: World, model: Model, child: Forked, done: int, visible: int) -> None:
        """Applies to `model` what the child did after it was stopped."""
        counts = self.case.effects_before
        for i in range(done, len(self.case.ops)):
            op = self.case.ops[i]
            rest = op.effects[max(visible - counts[i], 0) :]
            if i >= child.returned:
                must(child.error in ("Conflict", "PageFreed"), "the child failed otherwise", child.reports)
                must(rest or not op.effects, "an operation that was visible was reported as failed", child.reports)
                if len(op.effects) > 1:
                    self.expect_part(world, model, rest)
                return
            must(not (op.keyed and rest and i == done), "a key that was overtaken did not conflict", child.reports)
            for effect in rest:
                effect(model, world)

    def expect_part(self, world: World, model: Model, effects: tuple[Effect, ...]) -> None:
        """An `append_many` that failed in the middle: what comes before the item that failed is applied."""
        seen = world.scan(world.checker)
        for effect in effects:
            if model.equals(seen):
                break
            effect(model, world)

    # ---- refused

    def failed_store(self, world: World, model: Model, child: Forked) -> None:
        """After a failed sync nobody does anything; once all have left, the store comes back as it was durable."""
        # None: the sync was that of the cleaning which a write pays for; the write stands, and the next verb is told.
        must(child.error in ("StoreFailed", None), "not the error of a failed sync", child.reports)
        for verb in (
            lambda: world.checker.get(world.q),
            lambda: world.checker.append(world.q, ["x"]),
            world.checker.flush,
            world.home.flush,
            lambda: world.home.allocate([]),
            lambda: world.home.get_page_frags(world.q),
        ):
            try:
                verb()
            except mmpc.StoreFailed:
                continue
            raise Wrong("a verb did not raise StoreFailed after a sync had failed")
        world.leave()
        world.enter()
        self.numbers(world, child)
        _visible, now = world.observed(self.case, model, 0, len(self.case.ops))
        world.agree(now, world.home, world.checker)
        self.finish(world, now, rebuild=False)

    # ---- all accesses

    def run(self, step: int, offset: int) -> None:
        n = 1 + offset
        while len(self.failures) < FAILURES:
            faulthandler.dump_traceback_later(WATCHDOG, exit=True)
            try:
                if self.once(n):
                    break
            except Exception as e:
                text = str(e) if isinstance(e, Wrong) else traceback.format_exc()
                self.failures.append(f"{self.mode} {self.case.name} at access {n}: {text}")
                self.world = None  # left as it is, to be looked at
            n += step
        faulthandler.cancel_dump_traceback_later()
        self.drop()


def main(mode: str, name: str, directory: str, step: str, seed: str) -> None:
    case, python = find(name)
    random.seed(f"{seed} {name}")
    driver = Driver(mode, case, python, directory)
    start = time.monotonic()
    driver.run(int(step), random.randrange(int(step)))
    if mode == "kill" and int(step) == 1:
        driver.turn = 1  # once more, each store judged in the next way
        driver.run(1, 0)
    answer = {
        "case": name,
        "points": driver.points,
        "hit": driver.hit,
        "applied": driver.applied,
        "refused": driver.refused,
        "failures": driver.failures,
    }
    print(json.dumps({**answer, "seconds": round(time.monotonic() - start, 2)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
