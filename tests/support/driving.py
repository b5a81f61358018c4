"""Starts a process that tries a store in one build of mmpc, and leaves nothing of it behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


@contextmanager
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: the kills are many, and none of them is a loss of power."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    path = Path(tempfile.mkdtemp(prefix="mmpc-crash-", dir=base))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def python(build: Path | None, *args: str, limit: float, seed: str) -> str:
    """What a Python with that build of mmpc (None: the installed one) prints."""
    paths = [str(p) for p in (build, TESTS) if p is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-P", *args]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=limit)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    assert process.returncode == 0, f"exit status {process.returncode}, seed {seed}\n{out}\n{err}"
    return out
