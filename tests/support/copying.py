"""Plain copies of a store that is in use."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

LASTING = ["config", "lock", "log", "marks"]


class Copier:
    """Copies the files of a store one after the other, each from its beginning, as `cp -r` does. `between` is called
    now and then; without it some of the copies stop for a moment there.
    """

    def __init__(self, path: str, rng: random.Random, between: Callable[[], None] | None = None) -> None:
        self.path, self.rng, self.between = path, rng, between

    def copy(self, dest: str, names: list[str]) -> None:
        """In that order."""
        os.mkdir(dest, 0o700)
        step = self.rng.choice([1 << 12, 1 << 14, 1 << 16])
        often = self.rng.choice([0, 0.02, 0.2] if self.between else [0, 0, 0.02, 0.2])
        for name in names:
            with open(os.path.join(self.path, name), "rb") as source, open(os.path.join(dest, name), "wb") as target:
                size = os.fstat(source.fileno()).st_size
                target.truncate(size)
                at = 0
                while 0 <= (at := self._data(source.fileno(), at)) < size:
                    part = os.pread(source.fileno(), min(step, size - at), at)
                    if not part:
                        break
                    at += os.pwrite(target.fileno(), part, at)
                    if self.rng.random() < often:
                        self._pause()
            if self.between:
                self.between()

    def _pause(self) -> None:
        if self.between:
            self.between()
        else:
            time.sleep(self.rng.random() * 0.01)

    @staticmethod
    def _data(fd: int, at: int) -> int:
        try:
            return os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return -1

    def names(self, order: str) -> list[str]:
        """`marks first`, `log first`, or any order, of some of the volatile files too."""
        if order == "marks first":
            return ["config", "lock", "marks", "log"]
        if order == "log first":
            return LASTING
        names = [n for n in os.listdir(self.path) if n in (*LASTING, "control", "table", "ids", "rts")]
        self.rng.shuffle(names)
        return names
