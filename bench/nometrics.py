"""The hot verbs beside a build of the same source without metrics (MMPC_NO_METRICS), by one process and by two.

Both builds are made here, in the folder of the run, so that they differ in that macro alone. Each variant has its own
processes and its own store. How a process, and how code, happens to lie in memory shifts a ratio by a few percent, more
than what is looked for. So both builds are made several times, with their files linked in other orders (the first is
that of the package), and every `RENEWED` rounds the processes are started anew, of the next order; a figure is the
median over all of them. `again` is the build without metrics in the order of another turn: its figure says how far
from 1 nothing at all may be.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from .harness import Env, Figure, Question, Row

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ("csrc", "mmpc", "pyproject.toml", "README.md", "LICENSE")
VERBS = ("get hit", "get miss", "append", "replace", "mixed")
BUILDS = {"with": "", "without": "MMPC_NO_METRICS"}
VARIANTS = {"metrics": ("with", True), "off": ("with", False), "none": ("without", True), "again": ("without", True)}
PROCESSES = (1, 2)
RENEWED = 10  # rounds
ORDERS = 4  # in which the files of a build are linked
MOST = 1.03
HANGS = 120.0  # seconds after which a process is given up

CODE = "import sys; sys.path[:0] = sys.argv[1:3]; from bench.nometrics_worker import serve; serve(*sys.argv[3:])"


def relink(sources: Path, seed: int) -> None:
    """Have the C files linked in another order, which is that of their names."""
    files = sorted(sources.glob("*.c"))
    random.Random(seed).shuffle(files)
    for number, file in enumerate(files):
        file.rename(file.with_name(f"{number:02}_{file.name}"))


def build(folder: Path, macros: str, order: int) -> Path:
    """The package, built with these macros from a copy of the tree; where it lies. RuntimeError: it cannot be built."""
    source, target = folder / "source", folder / "built"
    source.mkdir(parents=True)
    for name in SOURCE:
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        copy = partial(shutil.copytree, ignore=ignored) if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    if order:
        relink(source / "csrc", order)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    environment = {**os.environ, "MMPC_DEFINES": macros}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"the build with {macros or 'no macro'} failed:\n{done.stderr[-2000:]}")
    return target


class Workers:
    """The processes of one variant on one store, ended by `stop`."""

    def __init__(self, package: Path, store: Path, counted: bool, seed: int) -> None:
        self._pipes = [
            subprocess.Popen(
                [sys.executable, "-P", "-c", CODE, str(package), str(ROOT), str(store), str(int(counted)), str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in PROCESSES
        ]
        self.counted = counted and "without" not in package.parts

    def ask(self, verb: str, processes: int) -> float:
        """Nanoseconds of an operation, on the average over that many processes that begin at the same time."""
        pipes = self._pipes[:processes]
        begin = perf_counter() + 0.001
        for pipe in pipes:
            assert pipe.stdin is not None
            pipe.stdin.write(json.dumps([verb, begin]) + "\n")
            pipe.stdin.flush()
        return sum(self._answer(pipe) for pipe in pipes) / processes

    def _answer(self, pipe: "subprocess.Popen[str]") -> float:
        assert pipe.stdout is not None
        line = pipe.stdout.readline()
        if not line:
            raise RuntimeError("a process died; its message is above")
        return float(json.loads(line))

    def stop(self) -> None:
        """End the processes. RuntimeError: one counted and should not have, or the other way round: the wrong build."""
        for pipe in self._pipes:
            assert pipe.stdin is not None
            pipe.stdin.write(json.dumps(["appends counted", 0]) + "\n")
            pipe.stdin.close()
        for pipe in self._pipes:
            found = self._answer(pipe)
            if pipe.wait(HANGS) or (found > 0) != self.counted:
                raise RuntimeError(f"{found} appends were counted by {pipe.args!r}")

    def kill(self) -> None:
        """End them at once."""
        for pipe in self._pipes:
            pipe.kill()
            pipe.wait()


class Ring:
    """All variants, asked one right after the other; started anew now and then."""

    def __init__(self, env: Env, packages: dict[str, list[Path]]) -> None:
        self._env = env
        self._packages = packages
        self._turn = 0
        self._order = random.Random(env.seed)
        self._workers: dict[str, Workers] = {}
        self._asked = 0
        self._taken: dict[tuple[str, int], dict[str, float]] = {}

    def row(self, verb: str, processes: int, variant: str) -> Row:
        """One variant of a verb: whichever is asked first in a round has all of them measured."""

        def measure() -> float:
            taken = self._taken.setdefault((verb, processes), {})
            if not taken:
                taken.update(self._measure(verb, processes))
            return taken.pop(variant)

        return Row(f"{verb}, {processes}: {variant}", "ns", measure)

    def _measure(self, verb: str, processes: int) -> dict[str, float]:
        if self._asked % (RENEWED * len(VERBS) * len(PROCESSES)) == 0:
            self._renew()
        self._asked += 1
        order = self._order.sample(list(VARIANTS), len(VARIANTS))
        return {variant: self._workers[variant].ask(verb, processes) for variant in order}

    def _renew(self) -> None:
        self.stop()
        for variant, (name, counted) in VARIANTS.items():
            packages = self._packages[name]
            package = packages[(self._turn + (variant == "again")) % len(packages)]
            self._workers[variant] = Workers(package, self._env.fresh(variant), counted, self._env.seed)
        self._turn += 1
        for workers in self._workers.values():
            for verb in VERBS:
                workers.ask(verb, max(PROCESSES))

    def stop(self) -> None:
        """End all processes, and remove their stores."""
        while self._workers:
            self._workers.popitem()[1].stop()

    def kill(self) -> None:
        """End what `stop` has not ended."""
        for workers in self._workers.values():
            workers.kill()


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """Two builds in several orders, four variants of processes."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        orders = range(2 if env.quick else ORDERS)
        made = {n: [pool.submit(build, env.folder / f"{n}{i}" / n, m, i) for i in orders] for n, m in BUILDS.items()}
        packages = {name: [one.result() for one in several] for name, several in made.items()}
    with ExitStack() as stack:
        ring = Ring(env, packages)
        stack.callback(ring.kill)
        rows = [ring.row(verb, count, variant) for count in PROCESSES for verb in VERBS for variant in VARIANTS]
        figures = []
        for count in PROCESSES:
            for verb in VERBS:
                base, title = f"{verb}, {count}: none", f"{verb}, {count} process{'es' if count > 1 else ''}"
                bars: dict[str, Any] = {"metrics": MOST, "off": None, "again": None}
                figures += [
                    Figure(f"{title}: {variant} / none", f"{verb}, {count}: {variant}", over=base, at_most=bar)
                    for variant, bar in bars.items()
                ]
        yield Question("what metrics cost beside a build without them", rows, figures, env.rounds(600), ring.stop)
