"""Kills or stops a child at instructions of the core, in any build, and judges the store each time.

    python -P -m support.step_driver MODE CASE DIRECTORY STEP SEED

A child is forked from this process, runs at full speed to each function of the core that it calls and is stepped to its
return (support/stepper.py). The cases and what must hold are those of kill_driver. MODE is

    kill    SIGKILL at an instruction
    stop    SIGSTOP there: everybody else does everything, then it goes on
    calls   SIGKILL before and after a system call of whatever the child does, the core's or Python's
    inside  SIGKILL some time after a system call that grows or syncs a file began

Every STEP-th place is taken, from an offset that SEED draws. Prints one line of JSON.

Which instructions. Re-running to instruction k costs k steps, so all of them cost n^2 / 2: too much where a region is
long. But what others can see are the shared mappings and the state of the kernel (files, locks). Between two
instructions that change one of these, a death or a stop leaves exactly the same: nobody outside can tell the
instructions apart. A survey runs the case once and compares the mappings after every instruction; a system call counts
as a change. Then the child is killed right after each change and right before the next one, and at a few random
instructions between them. That argument is only as good as the comparison, so where a case has at most FEW instructions
each of them is taken.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from .kill_cases import Case, Model
from .kill_driver import FAILURES, RENEWED, WATCHDOG, Driver, Forked
from .kill_world import World, Wrong, another_boot, copy_store, must
from .step_cases import LOST, find
from .stepper import Entries, Stepper, Watch, trace_me

FEW = 4000  # instructions of a case that are all taken
BETWEEN = 2  # random instructions taken between two changes
FAR = 10**9
Place = tuple[int, int]  # after so many changes so many instructions; changes are -1 where none are counted


class Stepped(Forked):
    """A child that was stepped to a place, and then killed or stopped, unless it ended before."""

    def __init__(self, world: World, case: Case, entries: Entries, watch: Watch | None) -> None:
        super().__init__(world, case, trace_me)
        self.entries = entries
        self.stepper = Stepper(self.pid, watch)

    def go(self, place: Place) -> None:
        changes, instructions = place
        while self.stepper.changes < changes and not self.stepper.ended:
            self.stepper.forward(self.entries, FAR)
        before = self.stepper.changes
        while instructions > 0 and not self.stepper.ended and self.stepper.changes == before:
            instructions -= self.stepper.forward(self.entries, instructions)

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
        self.places: list[Place] = []
        self.instructions = self.changes = self.between = 0
        self.regions: list[str] = []

    # ---- stores

    def prepare(self) -> tuple[World, Model]:
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
        self.world = crashed
        return crashed, model

    @property
    def alone(self) -> bool:
        return self.case.new_store == "reboot" or super().alone

    def leave_uncommitted(self, world: World, model: Model) -> None:
        """A dead process published a fragment of p and did not commit it: killed right after its CAS of the head."""
        child = Stepped(world, LOST, self.entries, Watch(world.path, ("table",)))
        child.go((1, 0))
        child.kill()
        must(child.wait() == "killed", "the child did not change the table", child.reports)
        model.named[world.q].append("warm")
        model.named[world.p].append("lost")

    # ---- places

    def survey(self) -> None:
        """Runs the case once and notes the gaps between changes."""
        self.drop()
        world, _model = self.prepare()
        child = Stepped(world, self.case, self.entries, Watch(world.path))
        gaps = []
        while not child.stepper.ended:
            gaps.append(child.stepper.forward(self.entries, FAR))
        must(child.wait() == "done", "the child did not end", child.reports)
        must(child.error is None, "an operation failed", child.reports)
        self.regions = child.stepper.regions
        self.instructions, self.changes = child.stepper.steps, child.stepper.changes
        self.drop()
        if self.instructions <= FEW and self.mode == "kill":
            self.places = [(-1, k) for k in range(1, self.instructions + 1)]
            return
        for changes, gap in enumerate(gaps):
            inside = random.sample(range(1, gap - 1), min(BETWEEN, gap - 2)) if gap > 2 else []
            self.places += [(changes, k) for k in sorted({0, gap - 1, *inside})]

    def start(self, world: World, n: int) -> Forked:
        place = self.places[n]
        watch = Watch(world.path) if place[0] >= 0 else None
        child = Stepped(world, self.case, self.entries, watch)
        child.go(place)
        if self.mode == "kill":
            child.kill()
        else:
            child.stop()
        return child

    # ---- all places

    def run(self, step: int, offset: int) -> None:
        self.survey()
        for n in range(offset, len(self.places), step):
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


def main(mode: str, name: str, directory: str, step: str, seed: str) -> None:
    case, python = find(name)
    random.seed(f"{seed} {name} {mode}")
    driver = StepDriver(mode, case, python, directory)
    start = time.monotonic()
    driver.run(int(step), random.randrange(int(step)))
    answer = {
        "case": name,
        "instructions": driver.instructions,
        "changes": driver.changes,
        "regions": driver.regions,
        "places": len(driver.places),
        "hit": driver.hit,
        "applied": driver.applied,
        "failures": driver.failures,
    }
    print(json.dumps({**answer, "seconds": round(time.monotonic() - start, 2)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
