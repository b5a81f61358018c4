"""Kills or stops a child at instructions of the core, in any build, and judges the store each time.

    python -P -m support.step_driver MODE CASE DIRECTORY MOST SEED

A child is forked from this process, runs at full speed to each function of the core that it calls and is stepped to its
return (support/stepper.py). The cases and what must hold are those of kill_driver. MODE is

    kill    SIGKILL at an instruction
    stop    SIGSTOP there: everybody else does everything, then it goes on
    calls   SIGKILL before and after a system call of whatever the child does, the core's or Python's
    inside  SIGKILL some time after a system call that grows or syncs a file began

MOST places are taken (0: all), at equal distances from one that SEED draws. Prints one line of JSON.

Which instructions. All would be too many where a region is long. But what others see are the shared mappings and the
state of the kernel (files, locks). Between two instructions that change one of these, a death or a stop leaves exactly
the same: nobody outside can tell the instructions apart. A survey runs the case once and compares the mappings after
every instruction; a system call counts as a change. Then the child is killed right after each change and right before
the next one, and at a few random instructions between them. That argument is only as good as the comparison, so where a
case has at most FEW instructions each of them is taken. Another child gets to an instruction at nearly full speed: by a
breakpoint near to it that the survey has passed only a few times, and by steps from there (stepper.Trace.place).
"""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import random
import signal
import sys
import time
import traceback
from itertools import pairwise

from .kill_cases import Case, Model
from .kill_driver import FAILURES, WATCHDOG, Driver, Forked
from .kill_world import World, Wrong, copy_store, must
from .step_cases import COUNTED, DEAD, LOST, REAP, die, find
from .stepper import Entries, Stepper, Trace, Watch, trace_me

SURVEY_WATCHDOG = 240  # seconds
FEW = 4000  # instructions of a case that are all taken
BETWEEN = 2  # random instructions taken between two changes
ENDS = 6  # changes by one instruction that are taken at the start, at the end, and between
TIMES = 6  # that a slow system call is taken
LONGEST = 0.002  # seconds after its beginning

# System calls that grow, write, sync or rename a file
_SLOW = {
    "x86_64": {18, 26, 74, 75, 77, 82, 285, 316},
    "aarch64": {38, 46, 47, 68, 82, 83, 227, 276},
}
SLOW = _SLOW.get(platform.machine(), set())


class Stepped(Forked):
    """A child that is stepped to a place, and then killed or stopped, unless it has ended before."""

    def __init__(self, world: World, case: Case, entries: Entries) -> None:
        super().__init__(world, case, trace_me)
        self.stepper = Stepper(self.pid, entries)

    def kill(self) -> None:
        if not self.stepper.ended:
            os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        if not self.stepper.ended:
            os.kill(self.pid, signal.SIGSTOP)
            self.stepper.leave()

    def wait(self) -> str:
        if not self.stepper.ended:
            return super().wait()
        self.status = self.stepper.child.detail
        return self.over()


class StepDriver(Driver):
    """Runs one case in one mode, place after place."""

    def __init__(self, mode: str, case: Case, python: bool, directory: str) -> None:
        super().__init__(mode, case, python, directory)
        self.entries = Entries()
        self.trace = Trace()
        self.places: list[int] = []
        self.calls: list[int] = []
        self.taken = self.at = 0
        self.exact = 0  # places where the child stood at the very instruction that the survey had met there

    # ---- stores

    def prepare(self) -> tuple[World, Model]:
        if self.case is REAP:
            world, model = super().prepare()
            must(Forked(world, DEAD, die).wait() == "killed", "the child did not kill itself")
            return world, model
        if self.case.new_store != "reboot":
            return super().prepare()
        world = self.store()
        model = world.prepare(self.case)
        world.checker.flush()
        world.checker.append(world.p, ["discarded"])
        crashed = World(world.path + "-crashed", self.python)
        crashed.p, crashed.q = world.p, world.q
        copy_store(world.path, crashed.path)
        world.remove()
        os.environ["MMPC_BOOT_ID"] = f"boot {self.stores}"
        self.world = crashed
        return crashed, model

    @property
    def alone(self) -> bool:
        return self.case.new_store == "reboot" or super().alone

    def leave_uncommitted(self, world: World, model: Model) -> None:
        """A dead process published a fragment of p and did not commit it: killed right after its CAS of the head."""
        child = Stepped(world, LOST, self.entries)
        child.stepper.until_change(Watch(world.path, ("table",)))
        child.kill()
        must(child.wait() == "killed", "the child did not change the table", child.reports)
        model.named[world.q].append("warm")
        model.named[world.p].append("lost")

    # ---- places

    def survey(self) -> None:
        """Runs the case once, undisturbed, and decides where to take it."""
        first = World(os.path.join(self.directory, "first"), self.python)
        first.enter()  # imports what only an open imports
        first.remove()
        world, _model = self.prepare()
        child = Stepped(world, self.case, self.entries)
        if self.mode in ("kill", "stop"):
            self.trace = child.stepper.survey(Watch(world.path))
            self.places = self.instructions()
        else:
            while (call := child.stepper.to_call()) is not None:
                self.calls.append(call)
            inside = [n for n in range(0, len(self.calls), 2) if self.calls[n] in SLOW]
            self.places = list(range(len(self.calls))) if self.mode == "calls" else sorted(inside * TIMES)
        must(child.wait() == "done", "the child did not end", child.reports)
        must(child.error is None, "an operation failed", child.reports)
        self.drop()

    def instructions(self) -> list[int]:
        """Which instructions are taken: their numbers, from 1 on; 0 is the entry."""
        n, places = self.trace.steps, {0}
        if n <= FEW and self.mode == "kill":
            return list(range(n + 1))
        for before, change in pairwise([0, *self.thinned(), n]):
            places |= {max(change - 1, 0), change}
            places |= set(random.sample(range(before, change), min(BETWEEN, change - before)))
        return sorted(places)

    def thinned(self) -> list[int]:
        """The changes, but of those that one instruction makes in a loop (a copied payload) a few: its first ones, its
        last ones and some in between.
        """
        by_address: dict[int, list[int]] = {}
        for change in self.trace.changes:
            by_address.setdefault(self.trace.address(change), []).append(change)
        taken: set[int] = set()
        for changes in by_address.values():
            inner = changes[ENDS:-ENDS]
            taken |= {*changes[:ENDS], *changes[-ENDS:], *random.sample(inner, min(ENDS, len(inner)))}
        return sorted(taken)

    def start(self, world: World, n: int) -> Forked:
        """A child that was killed or stopped at the n-th place."""
        at = self.at = self.places[n]
        child = Stepped(world, self.case, self.entries)
        if self.mode in ("kill", "stop"):
            child.stepper.go(self.trace.place(at))
            self.exact += not child.stepper.ended and self.trace.stands_at(at, child.stepper.where())
        else:
            for _ in range(at + 1):
                if child.stepper.to_call() is None:
                    break
        if self.mode == "inside" and not child.stepper.ended:
            child.stepper.release()
            end = time.perf_counter() + random.random() ** 3 * LONGEST
            while time.perf_counter() < end:
                pass
        if self.mode == "stop":
            child.stop()
        else:
            child.kill()
        return child

    # ---- judging

    def way(self, n: int) -> int:
        return random.randrange(4)

    @property
    def living(self) -> tuple[int, ...]:
        return (3, 4, 5) if self.case is REAP else super().living  # it may hold the byte of the slot that it reaps

    def expect(self, world: World, model: Model, child: Forked, done: int, visible: int) -> None:
        super().expect(world, model, child, done, visible)
        if self.case is COUNTED and self.at <= self.trace.steps - len(self.trace.instructions[-1]):  # not yet counted
            # checker, home, the newcomer and itself
            must(child.reports[1].get("value") == 4, "somebody attached was not alive", child.reports)

    # ---- all places

    def take(self, most: int) -> None:
        """All places, or about so many, at equal distances from a random one on."""
        faulthandler.dump_traceback_later(SURVEY_WATCHDOG, exit=True)
        self.survey()
        must(self.places, "there is no such place")
        step = -(-len(self.places) // most) if most else 1
        for n in range(random.randrange(step), len(self.places), step):
            self.taken += 1
            if len(self.failures) >= FAILURES:
                break
            faulthandler.dump_traceback_later(WATCHDOG, exit=True)
            try:
                self.once(n)
            except Exception as e:
                text = str(e) if isinstance(e, Wrong) else traceback.format_exc()
                self.failures.append(f"{self.mode} {self.case.name} at {self.places[n]}: {text}")
                self.world = None  # left as it is, to be looked at
        faulthandler.cancel_dump_traceback_later()
        self.drop()


def main(mode: str, name: str, directory: str, most: str, seed: str) -> None:
    case, python = find(name)
    random.seed(f"{seed} {name} {mode}")
    driver = StepDriver(mode, case, python, directory)
    start = time.monotonic()
    driver.take(int(most))
    answer = {
        "case": name,
        "instructions": driver.trace.steps,
        "states": len(driver.trace.changes) + 1,
        "regions": driver.trace.regions,
        "calls": len(driver.calls),
        "places": len(driver.places),
        "taken": driver.taken,
        "hit": driver.hit,
        "exact": driver.exact,
        "applied": driver.applied,
        "failures": driver.failures,
    }
    print(json.dumps({**answer, "seconds": round(time.monotonic() - start, 2)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
