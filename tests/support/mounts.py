"""Small real file systems: in memory, and ext4 on a loop device. Each is unmounted whatever happens."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _need(*programs: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


class Mounted:
    """A mounted file system that can be filled, emptied, mounted anew."""

    def __init__(self, path: Path, source: str, options: str, kind: str) -> None:
        self.path, self._source, self._options, self._kind = path, source, options, kind
        self.mounted = False
        self.mount()

    def mount(self) -> None:
        try:
            _run("mount", "-t", self._kind, "-o", self._options, self._source, str(self.path))
        except OSError as e:
            pytest.skip(f"mounting is not permitted here: {e}")
        self.mounted = True

    def unmount(self, patience: int = 50) -> None:
        """Also drops the page cache of what was on it. OSError: somebody still has a file open there."""
        while True:
            try:
                _run("umount", str(self.path))
                break
            except OSError:
                if not patience:
                    raise
                patience -= 1
                time.sleep(0.1)
        self.mounted = False

    def end(self) -> None:
        """Unmounted, also under those who still have files open there, as a test that failed leaves them."""
        if self.mounted:
            try:
                self.unmount(10)
            except OSError:
                _run("umount", "-l", str(self.path))

    def remount(self, options: str) -> None:
        _run("mount", "-o", f"remount,{options}", str(self.path))

    def again(self) -> None:
        """Unmounted and mounted: what is there now comes from the device."""
        self.unmount()
        self.mount()

    def room(self) -> int:
        """Bytes that are free."""
        s = os.statvfs(self.path)
        return s.f_bavail * s.f_frsize

    def fill(self, name: str = "ballast", leave: int = 0) -> Path:
        """A file that takes the room that is left, but for about `leave` bytes."""
        ballast = self.path / name
        with open(ballast, "wb", buffering=0) as f:
            for size in (1 << 20, 1 << 16, 1 << 12, 1 << 10):
                try:
                    while self.room() >= leave + size and f.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
        return ballast


@contextmanager
def memory(size: str = "2m", options: str = "") -> Iterator[Mounted]:
    """A tmpfs."""
    _need("mount", "umount")
    path = Path(tempfile.mkdtemp(prefix="mmpc-mount-"))
    try:
        mounted = Mounted(path, "tmpfs", f"size={size},mode=755{options}", "tmpfs")
        try:
            yield mounted
        finally:
            mounted.end()
    finally:
        path.rmdir()


@contextmanager
def ext4(image: Path, megabytes: int = 16, options: str = "", allocate: bool = False) -> Iterator[Mounted]:
    """An ext4 in the file `image`; `allocate`: the file has no holes."""
    _need("mount", "umount", "mkfs.ext4", "losetup")
    with open(image, "wb") as f:
        f.truncate(megabytes << 20)
    eager = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    block = "4096" if allocate else "1024"
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", block, "-E", eager, "-J", "size=4", str(image))
    if allocate:
        with open(image, "r+b") as f:
            os.posix_fallocate(f.fileno(), 0, megabytes << 20)
    path = Path(tempfile.mkdtemp(prefix="mmpc-mount-"))
    try:
        mounted = Mounted(path, str(image), f"loop{options}", "ext4")
        try:
            yield mounted
        finally:
            mounted.end()
    finally:
        path.rmdir()
