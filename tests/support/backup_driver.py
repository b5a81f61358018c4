"""Backups in the disk build: copies made while others write, and copies that the power cuts off.

    python -P -m support.backup_driver copies|cut DIRECTORY COUNT SEED

`copies`: processes write, clean and flush; each backup made meanwhile is opened, and judged by the history of all
stores: it has what had returned when it began, nothing that never was, and for each thing what its author had seen.
`cut`: images of the copy's own directory, at any moment of its making: no store, and a backup can be made there; or the
whole copy.
Prints one line of JSON.
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

import mmpc

from .children import ChildFailed
from .disk_history import History, State, Value, Wrong, must
from .disk_judge import next_boot, observe, open_store
from .disk_model import Disk, Files, draw
from .disk_scenarios import PATIENCE, Author, World
from .disk_trace import Recorder, note

TRACE = 256 << 20
AT_ONCE = 120  # images of one recording
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)  # the watchdog is a thread


def _work(author: Author, n: int) -> None:
    """Everything that a copy may come across: chains, groups, large fragments, frees, cleaning, new segments."""
    author.wide = 4
    mine = author.allocate()
    for i in range(n):
        author.some(4, flushes=0.15)
        author.keyed(mine, "replace")
        if i % 3 == author.name % 3:
            author.clean()
        if i % 8 == 7:
            author.keyed(author.page(), "free")


class Driver:
    def __init__(self, directory: str, count: int, seed: str) -> None:
        self.directory, self.count, self.seed = directory, count, seed
        self.failures: list[str] = []
        self.rounds = self.judged = self.older = self.events = 0

    def run(self, name: str) -> None:
        work = {"copies": self.copies, "cut": self.cut}[name]
        while self.judged < self.count and not self.failures:
            self.rounds += 1
            base = os.path.join(self.directory, f"round-{self.rounds}")
            os.mkdir(base, 0o700)
            try:
                work(base, random.Random(f"{self.seed} {name} {self.rounds}"))
            except (Wrong, ChildFailed, mmpc.MmpcError) as e:
                self.failures.append(f"{name}, round {self.rounds}: {type(e).__name__} {e}")
            if not self.failures:
                shutil.rmtree(base)

    # ---- while others write

    def copies(self, base: str, rng: random.Random) -> None:
        path, made = os.path.join(base, "store"), []
        os.mkdir(path, 0o700)
        next_boot()
        recorder = Recorder(TRACE)
        recorder.start(path)
        world = World(path, rng, recorder.os)
        try:
            with world.children:
                made = self._copy_often(world, base)
        finally:
            events = recorder.stop()
        self.events += len(events)
        history = History({}, {})
        history.read(events, Files())
        for name in made:
            self._judge_copy(history, os.path.join(base, name), name)

    def _copy_often(self, world: World, base: str) -> list[str]:
        pc = world.begin()
        first = Author(pc, 0, world.rng)
        for _ in range(5):
            first.allocate()
        busy, made = [world.start(lambda a: _work(a, 14)) for _ in range(3)], []
        while any(child.running() for child in busy) or not made:
            made.append(f"copy-{len(made)}")
            note(note="copying", name=made[-1])
            pc.backup(os.path.join(base, made[-1]))
            note(note="copied", name=made[-1])
            time.sleep(world.rng.random() * 0.03)
        for child in busy:
            child.result(PATIENCE)
        world.leave(pc)
        return made

    def _judge_copy(self, history: History, path: str, name: str) -> None:
        next_boot()
        must(mmpc.verify(path).ok, f"{name}:", *mmpc.verify(path).problems[:3])
        pc = open_store(path)
        state, values = observe(pc)
        history.judge_copy(name, state, values)
        pc._check()
        pc.close()
        must(mmpc.verify(path).ok, f"{name}, opened:", *mmpc.verify(path).problems[:3])
        self.older += any(max(v) > state.get(pid, 0) for pid, v in history.pages.items())
        self.judged += 1

    # ---- the power goes

    def cut(self, base: str, rng: random.Random) -> None:
        source, dest = os.path.join(base, "store"), os.path.join(base, "copy")
        self._store(source, rng)
        os.mkdir(dest, 0o700)
        recorder = Recorder(TRACE)
        recorder.start(dest)
        try:
            with open_store(source) as pc:
                pc.backup(dest)
        finally:
            events = recorder.stop()
        self.events += len(events)
        disk = Disk(Files(), events, os.stat(dest).st_ino)
        missed = disk.newest().difference(Files.read(dest))
        must(not missed, "the trace does not tell all of what is on the disk:", missed)
        expected = self._content(dest)
        for number in range(min(AT_ONCE, self.count - self.judged)):
            crash, bias, image = draw(disk, rng, range(disk.end + 1))
            try:
                self._judge_cut(source, os.path.join(base, f"image-{number}"), image, expected)
            except (Wrong, mmpc.MmpcError) as e:
                where = f"image {number} ({bias}) before event {crash} of {disk.end}"
                raise Wrong(f"{where}: {type(e).__name__} {e}") from e
            self.judged += 1

    @staticmethod
    def _store(path: str, rng: random.Random) -> None:
        next_boot()
        with open_store(path, create=True) as pc:
            pages = [pc.allocate(["a"])[0] for _ in range(6)]
            for i in range(40):
                pid = rng.choice(pages)
                pc.replace(pid, pc.get(pid).key, [str(i) + "-" * rng.choice((3, 700, 5000, 90_000))])
                if i % 10 == 9:
                    pc.flush()
                    pc._clean(2, 1 << 17)

    @staticmethod
    def _content(path: str) -> tuple[State, dict[int, Value]]:
        next_boot()
        with open_store(path) as pc:
            return observe(pc)

    def _judge_cut(self, source: str, path: str, image: Files, expected: Any) -> None:
        image.write(path)
        if "config" in image.names:
            report = mmpc.verify(path)
            must(not report.damage, "a copy that has its name is damaged:", *report.damage[:3])
        else:
            self.older += 1
            try:
                open_store(path).close()
                must(False, "a copy without its name was opened")
            except (FileNotFoundError, mmpc.MmpcError):
                pass
            with open_store(source) as pc:
                pc.backup(path)
        must(self._content(path) == expected, "the copy holds something else")
        shutil.rmtree(path)


def main(name: str, directory: str, count: str, seed: str) -> None:
    begun = time.monotonic()
    driver = Driver(directory, int(count), seed)
    driver.run(name)
    answer = {
        "judged": driver.judged,
        "older": driver.older,
        "events": driver.events,
        "rounds": driver.rounds,
        "failures": driver.failures,
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
