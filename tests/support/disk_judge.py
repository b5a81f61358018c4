"""Opens what a loss of power has left, as the next boot would, and says whether it is right."""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import traceback
from typing import Any

import mmpc

from .disk_history import History, State, Value, Wrong, must, said
from .disk_model import Disk, Files, draw

WATCHDOG = 30  # seconds for one image
Known = tuple[State, dict[int, Value], int]  # of the store at the end of a life: pages, and numbers up to this
FAILURES = 3  # after so many the rest is not worth looking at
THRESHOLD, SEGMENT = 2, 1 << 16
_boots = iter(range(1, 1 << 60))


def next_boot() -> None:
    """The machine starts: what is volatile counts no more."""
    os.environ["MMPC_BOOT_ID"] = f"boot {os.getpid()} {next(_boots)}"


def open_store(path: str, create: bool = False, **options: Any) -> Any:
    return mmpc.open(
        path,
        mmpc.Append(),
        create=create,
        **options,
        page_consolidation_threshold=THRESHOLD,
        segment_size=SEGMENT if create else None,
    )


def observe(pc: Any) -> tuple[State, dict[int, Value]]:
    """Versions and values of all pages that were ever allocated."""
    state: State = {}
    values: dict[int, Value] = {}
    for pid in range(2, pc.stats().pages):
        page = pc.get(pid)
        if page.is_unallocated():
            continue
        state[pid], values[pid] = page.key.wts, page.value if page.is_materialized() else None
    return state, values


class Judge:
    """Judges images of one life; `created`: the event after which the store must be there; crash points often lie
    before `focus`.  Two judges by two code paths: what the core makes of an image, and what mmpc.verify says of its
    bytes, before anybody has opened it and after; the second only if `verifies`.
    """

    def __init__(
        self, disk: Disk, history: History, created: int, focus: int, path: str, seed: str, verifies: bool
    ) -> None:
        self.verifies = verifies
        self.disk, self.history, self.created, self.focus = disk, history, created, focus
        self.path, self.seed = path, seed
        self.failures: list[str] = []
        self.points: set[int] = set()
        self.images = self.lost = self.verified = 0

    def run(self, numbers: range) -> Judge:
        for number in numbers:
            if len(self.failures) == FAILURES:
                break
            rng = random.Random(f"{self.seed} {number}")
            crash, bias, image = draw(self.disk, rng, range(self.disk.end + 1), self.focus)
            faulthandler.dump_traceback_later(WATCHDOG, exit=True)
            try:
                self.images += 1
                self.points.add(crash)
                self.judge(crash, image, rng)
            except Exception as e:
                text = str(e) if isinstance(e, Wrong) else traceback.format_exc(limit=-4)
                self.failures.append(f"image {number} ({bias}) before event {crash} of {self.disk.end}: {text}")
                self.keep(image, number)
            finally:
                faulthandler.cancel_dump_traceback_later()
                shutil.rmtree(self.path, ignore_errors=True)
        return self

    def keep(self, image: Files, number: int) -> None:
        path = f"{self.path}-failed-{number}"
        shutil.rmtree(path, ignore_errors=True)
        image.write(path)

    def judge(self, crash: int, image: Files, rng: random.Random) -> Known:
        """What came back, and the largest number that was given; Wrong, or what mmpc raised, when it may not be so."""
        image.write(self.path)
        next_boot()
        if "config" in image.names:
            self.verify("before it is opened", raw=True)
        pc = open_store(self.path, create=crash <= self.created)
        state, values = observe(pc)
        self.history.judge(crash, state, values)
        number = self.drawn(pc, self.history.given(crash))
        self.lost += any(max(v) > state.get(pid, 0) for pid, v in self.history.pages.items())
        pc._check()
        self.verify("after its recovery")
        pc.close()
        if rng.random() < 0.2:
            self.again("in the same boot", state, values)
        next_boot()
        pc = self.again("in the next boot", state, values, keep=True)
        self.drawn(pc, number)
        expected = self.go_on(pc, dict(values), rng)
        pc.close()
        next_boot()
        self.again("after new operations", None, expected)
        self.verify("after new operations")
        return state, values, self.history.given(crash)

    def drawn(self, pc: Any, least: int) -> int:
        """A number, where others were given; it is larger than they."""
        if len(self.history.numbers) == 1 and least < 0:
            return least
        number: int = pc.generate_id()
        must(number > least, f"generate_id gave {number}; {least} had been given")
        return number

    def verify(self, when: str, raw: bool = False) -> None:
        """An image is not damaged, though the power may have torn what nobody synced; what came back has no flaw."""
        if not self.verifies:
            return
        report = mmpc.verify(self.path)
        must(not (report.damage if raw else report.problems), f"verify, {when}:", *report.problems[:5])
        self.verified += 1

    def again(self, when: str, state: State | None, values: dict[int, Value], keep: bool = False) -> Any:
        """Opened once more it holds the same."""
        pc = open_store(self.path)
        now, seen = observe(pc)
        must(seen == values, f"{when} there is something else:", _differences(values, seen))
        must(state is None or now == state, f"{when} versions differ:", state, now)
        if keep:
            return pc
        pc.close()
        return None

    @staticmethod
    def go_on(pc: Any, values: dict[int, Value], rng: random.Random) -> dict[int, Value]:
        """A new life on what came back: nothing that was discarded may turn up beside it."""
        for pid in rng.sample(sorted(values), min(3, len(values))):
            value = values[pid]
            if value is None:
                continue
            if rng.random() < 0.3:
                pc.free(pid, pc.get(pid).key)
                values[pid] = None
            else:
                values[pid] = _added(pc, pid, value)
        values[pc.allocate(["new"])[0]] = ["new"]
        pc.flush()
        return values


def _added(pc: Any, pid: int, value: list) -> list:
    """The value of a page that something is added to; one that is full is replaced."""
    try:
        pc.append(pid, ["new"])
    except mmpc.FragmentTooLarge:
        pc.replace(pid, pc.get(pid).key, ["new"])
        return ["new"]
    return [*value, "new"]


def _differences(expected: dict[int, Value], seen: dict[int, Value]) -> str:
    return "; ".join(
        f"page {pid} {said(seen[pid]) if pid in seen else 'absent'}, not "
        f"{said(expected[pid]) if pid in expected else 'absent'}"
        for pid in sorted({*expected, *seen})
        if expected.get(pid, 0) != seen.get(pid, 0)
    )
