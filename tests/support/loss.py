"""Power losses, imitated with copies of a store's files.

A copy has other inodes, so it counts as another boot. `Disk` keeps what the newest sync made certain;
`Disk.after_loss` mixes it, sector by sector, with what was written since: any subset of it may have reached a device.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import mmpc
from mmpc._layout import BLOCK, INTENT, LEASE_HEADER, RECORD, body_of, colour_of, span_of

SECTOR = 512
_GLOBALS = 4096  # MM_CONTROL_GLOBALS, docs/format.md
_STABLE, _FLUSHES, _SNAPSHOTS = 64, 1664, 1984


def _word(path: str, offset: int) -> int:
    with open(os.path.join(path, "control"), "rb") as f:
        f.seek(_GLOBALS + offset)
        return int(struct.unpack("<Q", f.read(8))[0])


def syncs(path: str) -> int:
    """Syncs of the log in this life of the store, whoever made them."""
    return _word(path, _FLUSHES)


def stable(path: str) -> int:
    """The durable epoch that `control` publishes, read without being attached."""
    return _word(path, _STABLE)


def snapshots(path: str) -> list[str]:
    """Names of the snapshots of a store, oldest first."""
    return sorted(name for name in os.listdir(path) if name.startswith("snapshot-"))


def temporaries(path: str) -> list[str]:
    return sorted(name for name in os.listdir(path) if name.startswith("snapshot.new"))


def copy(path: str, into: str) -> str:
    """The lasting files of a store, also of one that others write meanwhile, if they do not flush: `marks` before
    `log`, so that no mark says more than the log holds, and the log knows of no newer one.
    """
    os.mkdir(into, 0o700)
    for name in ("config", *snapshots(path), "marks", "log", "lock"):
        try:
            put(into, name, get(path, name))
        except FileNotFoundError:
            if not name.startswith("snapshot-"):  # a newer one took its place
                raise
    return into


def get(path: str, name: str) -> bytes:
    with open(os.path.join(path, name), "rb") as f:
        return f.read()


def put(path: str, name: str, data: bytes) -> None:
    """A new file with holes where there are only zeros: `marks` is 8 MiB of them."""
    with open(os.path.join(path, name), "wb") as f:
        f.truncate(len(data))
        words = np.frombuffer(data[: len(data) // 4096 * 4096], np.uint64).reshape(-1, 512)
        for block in [*np.flatnonzero(words.any(axis=1)).tolist(), len(words)]:
            f.seek(block * 4096)
            f.write(data[block * 4096 : block * 4096 + 4096])


def intents(log: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Where each intent of a log lies, its epoch and its payload, lease after lease."""
    for lease in range(BLOCK, len(log), BLOCK):
        if log[lease + 4 : lease + 8] != b"ESEL":
            continue
        at = lease + LEASE_HEADER.size
        while at + RECORD.size <= len(log):
            commit, shape, page_colour, _base, prev_colour = RECORD.unpack_from(log, at)
            if not commit >> 32 and not shape:
                break
            if shape >> 40 & 7 == INTENT:
                payload = log[at + RECORD.size : at + RECORD.size + body_of(shape)]
                yield at, colour_of(page_colour, prev_colour), payload
            at += span_of(body_of(shape))


class Disk:
    """What is certainly on the disk, in a directory of its own."""

    def __init__(self, where: str) -> None:
        self.where = where
        os.makedirs(where, exist_ok=True)

    def sync(self, path: str) -> None:
        """Everything was durable a moment ago, and nobody flushed since."""
        for name in ("marks", "log"):
            put(self.where, name, get(path, name))

    def after_loss(self, path: str, into: str, rng: random.Random) -> str:
        """The store as the next boot finds it."""
        old, new = (np.frombuffer(get(p, "log"), np.uint8) for p in (self.where, path))
        size = max(len(old), len(new))
        size += -size % SECTOR
        old, new = (np.pad(a, (0, size - len(a))).reshape(-1, SECTOR) for a in (old, new))
        kept = np.random.default_rng(rng.randrange(1 << 32)).random(len(old)) < rng.choice([0, 0.1, 0.5, 0.9, 1])
        os.mkdir(into, 0o700)
        for name in ("config", "lock", *snapshots(path)):
            shutil.copy(os.path.join(path, name), into)
        put(into, "marks", get(self.where, "marks"))
        put(into, "log", np.where(kept[:, None], new, old).tobytes())
        return into


def die_at_event(number: int) -> None:
    """In a child: SIGKILL at that call or return of a Python or C function, counted from now."""
    left = number

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def die_after(seconds: float) -> None:
    """In a child: death after a while, wherever it is then, also in the middle of C."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))


def open_and_die(path: str, materializer: mmpc.Materializer[Any], boot: str, rng: random.Random) -> None:
    """In a child: dies at a random moment of opening, or of closing: the last one to leave a store cuts its log."""
    os.environ["MMPC_BOOT_ID"] = boot
    if rng.random() < 0.7:
        die_at_event(rng.randrange(1, rng.choice([1200, 6000])))  # about 4000 to the end of opening
    else:
        die_after(rng.random() * rng.choice([0.03, 0.2]))
    pc = mmpc.open(path, materializer)
    sys.setprofile(None)
    pc.close()
    os.kill(os.getpid(), signal.SIGKILL)
