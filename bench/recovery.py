"""What it takes to open a store after a reboot: from a snapshot, and from the log alone.

Each sample is the first open in a new process under another boot id, with the store's files thrown out of the page
cache before (as far as the kernel does it). The time is that of `mmpc.open` alone.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mmpc

from .harness import Env, Figure, Question, Row

PAGES = 10_000_000
RECORDS = 2_000_000
WHERE = str(Path(mmpc.__file__).parent.parent)
OPEN = f"""
import os, sys, time
sys.path.insert(0, {WHERE!r})
import filelock, mmpc
os.environ["MMPC_BOOT_ID"] = sys.argv[2]
start = time.perf_counter()
pages = mmpc.open(sys.argv[1], mmpc.LastWriteWins())
took = time.perf_counter() - start
count = pages.stats().pages
print(took, count)
sys.stdout.flush()
os._exit(0)
"""


def forget(path: str) -> None:
    """Throws the files of a store out of the page cache."""
    for name in os.listdir(path):
        fd = os.open(os.path.join(path, name), os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


class Reboots:
    """Opens a store under one boot id after the other."""

    def __init__(self, path: str, pages: int) -> None:
        self.path, self.pages, self.boots = path, pages, 0

    def opened(self) -> float:
        """Seconds of an open. AssertionError: pages are missing."""
        self.boots += 1
        forget(self.path)
        command = [sys.executable, "-P", "-c", OPEN, self.path, f"{self.path} {self.boots}"]
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.split()
        if int(out[1]) != self.pages:
            raise AssertionError(f"{out[1]} pages came back of {self.pages}")
        return float(out[0])


def without_snapshot(reboots: Reboots) -> float:
    """The same from the log alone."""
    for name in os.listdir(reboots.path):
        if name.startswith("snapshot-"):
            os.unlink(os.path.join(reboots.path, name))
    return reboots.opened()


def filled(path: str, pages: int, appends: int) -> None:
    """A store of that many pages and appends to them, closed."""
    with mmpc.open(path, mmpc.LastWriteWins(), create=True) as store:
        value = b"x" * 8
        pids = [store.allocate(value)[0] for _ in range(pages)]
        for _ in range(appends // max(pages, 1)):
            for start in range(0, pages, 1000):
                store.append_many([(pid, value) for pid in pids[start : start + 1000]])


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """One store of many pages, one of many records."""
    wide, long = str(env.fresh("wide")), str(env.fresh("long"))
    pages, records = (PAGES // 10, RECORDS // 4) if env.quick else (PAGES, RECORDS)
    filled(wide, pages, 0)
    filled(long, records // 4, records - records // 4)
    cold, replay = Reboots(wide, pages + 2), Reboots(long, records // 4 + 2)
    rows = [
        Row(f"open of {pages:,} pages from a snapshot", "s", cold.opened),
        Row(f"replay of {records:,} records", "M/s", lambda: records / without_snapshot(replay) / 1e6),
    ]
    figures = [
        Figure("cold open of 10 million pages from a snapshot, s", rows[0].name, at_most=1),
        Figure("replay, million records a second", rows[1].name, at_least=2),
    ]
    try:
        yield Question("recovery: the first open after a reboot", rows, figures, 5)
    finally:
        shutil.rmtree(wide, ignore_errors=True)
        shutil.rmtree(long, ignore_errors=True)
