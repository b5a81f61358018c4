"""Records a scenario with the disk build, draws images of the disk from its trace, and judges each.

    python -P -m support.disk_driver SCENARIO DIRECTORY IMAGES SEED [core]

DIRECTORY should lie in memory: no power is lost but the one that is computed.  `core`: only what the core makes of an
image is judged, mmpc.verify is not asked.  Prints one line of JSON.  SEED draws
the work and the images; how the processes interleave is the machine's, so a run is not repeated to the letter.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
import warnings
from typing import Any

from .children import ChildFailed, Children
from .disk_history import History, Wrong, must
from .disk_judge import Judge, Known, next_boot
from .disk_model import Disk, Files, draw
from .disk_scenarios import SCENARIOS, Scenario, World
from .disk_trace import NOTE, Recorder

TRACE = 256 << 20
ROUND = 120  # images of one recording; then the processes run again
WORKERS = 2
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)  # the watchdog is a thread


class Life:
    """A recorded life, and what its trace says."""

    def __init__(self, path: str, work: Any, start: Files, known: Known, rng: Any) -> None:
        if start.names:
            start.write(path)
            start = Files.read(path)  # files have other numbers now
        else:
            os.mkdir(path, 0o700)
        next_boot()
        directory = os.stat(path).st_ino
        recorder = Recorder(TRACE)
        recorder.start(path)
        world = World(path, rng, recorder.os)
        try:
            with world.children:
                work(world)
        finally:
            self.events = recorder.stop()
        self.disk = Disk(start, self.events, directory)
        missed = self.disk.newest().difference(Files.read(path))
        must(not missed, "the trace does not tell all of what is on the disk:", missed)
        self.history = History(*known)
        self.history.read(self.events, start)
        self.live = next(i for i, e in enumerate(self.events) if e.kind == NOTE and b'"live"' in e.data)
        self.created = -1 if "config" in start.names else self.live
        self.focus = self.live + 40 if start.names else 0  # a recovery is more than other events of its kind
        shutil.rmtree(path)

    def judge(self, path: str, seed: str, verifies: bool) -> Judge:
        return Judge(self.disk, self.history, self.created, self.focus, path, seed, verifies)


class Driver:
    def __init__(self, scenario: Scenario, directory: str, images: int, seed: str, verifies: bool) -> None:
        self.scenario, self.directory, self.images, self.seed = scenario, directory, images, seed
        self.verifies = verifies
        self.failures: list[str] = []
        self.points: set[tuple[int, int, int]] = set()
        self.judged = self.lost = self.verified = self.opening = self.events = self.operations = self.rounds = 0

    def run(self) -> None:
        while self.judged < self.images and not self.failures:
            self.rounds += 1
            try:
                self.round(min(ROUND, self.images - self.judged))
            except (Wrong, ChildFailed) as e:
                self.failures.append(f"{self.scenario.name}: {e}")

    def round(self, images: int) -> None:
        """All lives once; images of the last, and as many in all of those before."""
        rng = random.Random(f"{self.seed} {self.scenario.name} {self.rounds}")
        start, known = Files(), ({}, {}, -1)
        lives = self.scenario.lives
        for number, work in enumerate(lives):
            life = Life(os.path.join(self.directory, f"life-{self.rounds}-{number}"), work, start, known, rng)
            self.events += len(life.events)
            self.operations += life.history.operations
            last = number == len(lives) - 1
            share = images if len(lives) == 1 else images // 2 // (1 if last else len(lives) - 1)
            self.judge(life, max(1, share), number)  # else the last few would never be drawn
            if not last and not self.failures:
                start, known = self.crash(life, rng, number)

    def judge(self, life: Life, images: int, number: int) -> None:
        with Children() as children:
            workers = [children.start(self.work, life, images, number, i) for i in range(WORKERS)]
            for worker in workers:
                judged, lost, verified, points, failures = worker.result(600.0)
                self.judged += judged
                self.lost += lost
                self.verified += verified
                self.points |= {(self.rounds, number, point) for point in points}
                self.opening += sum(point <= life.live for point in points)
                self.failures += failures

    def work(self, life: Life, images: int, number: int, i: int) -> tuple[int, int, int, set[int], list[str]]:
        """In a child: every WORKERS-th image."""
        name = f"{self.scenario.name}-{self.rounds}-{number}"
        path = os.path.join(self.directory, f"image-{name}-{i}")
        judge = life.judge(path, f"{self.seed} {name}", self.verifies).run(range(i, images, WORKERS))
        failures = [f"{name}: {text}" for text in judge.failures]
        return judge.images, judge.lost, judge.verified, judge.points, failures

    def crash(self, life: Life, rng: random.Random, number: int) -> tuple[Files, Known]:
        """The end of a life that is not the last: an image, and what comes back of it."""
        cut = self.scenario.cut and number == len(self.scenario.lives) - 2
        points = range(life.live + 1) if cut else range(life.disk.end // 3, life.disk.end + 1)
        at, _bias, image = draw(life.disk, rng, points)
        path = os.path.join(self.directory, f"crash-{self.rounds}-{number}")
        try:
            return image, life.judge(path, "", self.verifies).judge(at, image, rng)
        finally:
            shutil.rmtree(path, ignore_errors=True)


def main(name: str, directory: str, images: str, seed: str, judges: str = "both") -> None:
    begun = time.monotonic()
    scenario = next(s for s in SCENARIOS if s.name == name)
    driver = Driver(scenario, directory, int(images), seed, judges != "core")
    driver.run()
    answer = {
        "images": driver.judged,
        "lossy": driver.lost,
        "verified": driver.verified,
        "points": len(driver.points),
        "opening": driver.opening,
        "events": driver.events,
        "operations": driver.operations,
        "rounds": driver.rounds,
        "failures": driver.failures,
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
