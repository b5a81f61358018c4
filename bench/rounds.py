"""The floor of a flush that several processes share: the others bring a word in shared memory and sleep, one of them
stores for all into one page, calls fdatasync and wakes them. No log, no checksum: what the file system and the
scheduler take.

The first process is the one that syncs. Nobody is waited for long, so that a sample can end.
"""

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from .workers import Step

FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if platform.system() == "Linux" else None
PATIENCE = 0.0005  # seconds that the one who syncs waits for the others
LATE = 20_000_000  # ns that the others wait for it
BLOCK = 4096


def prepare(folder: Path) -> None:
    """The file that is synced, written once so that no sync has to change its extents; and the words."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "data", "wb") as new:
        os.posix_fallocate(new.fileno(), 0, 16 * BLOCK)
    with open(folder / "words", "wb") as words:
        words.truncate(BLOCK)
    with open(folder / "data", "r+b") as data, mmap.mmap(data.fileno(), 0) as mapped:
        for at in range(0, len(mapped), BLOCK):
            mapped[at] = 1
        os.fsync(data.fileno())


def futex(words: mmap.mmap) -> tuple[Callable[[int], None], Callable[[], None]]:
    """Sleep while the first word has that value; wake all who do."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    word, late = ctypes.c_uint32.from_buffer(words, 0), struct.pack("qq", 0, LATE)
    timeout = ctypes.create_string_buffer(late)

    def wait(value: int) -> None:
        call(FUTEX, ctypes.byref(word), 0, ctypes.c_uint32(value), timeout, None, 0)

    def wake() -> None:
        call(FUTEX, ctypes.byref(word), 1, 1 << 30, None, None, 0)

    return wait, wake


def rounds(worker: int, argument: tuple[str, int]) -> Step:
    """Store, and come back when it is durable, with so many processes in all."""
    folder, processes = Path(argument[0]), argument[1]
    data_fd, words_fd = os.open(folder / "data", os.O_RDWR), os.open(folder / "words", os.O_RDWR)
    data, words = mmap.mmap(data_fd, 0), mmap.mmap(words_fd, 0)
    ended, came = memoryview(words)[:4].cast("I"), memoryview(words)[64:].cast("I")  # rounds; of each process
    others, (wait, wake) = range(1, processes), futex(words)

    def sync() -> int:
        before, until = ended[0], perf_counter() + PATIENCE
        while any(came[i] <= before for i in others) and perf_counter() < until:
            os.sched_yield()
        data[0] = (data[0] + sum(came[i] for i in others) + 1) & 255
        os.fdatasync(data_fd)
        ended[0] = before + 1
        if processes > 1:
            wake()
        return 1

    def follow() -> int:
        before = ended[0]
        came[worker] = before + 1
        wait(before)
        return 1

    return sync if worker == 0 else follow
