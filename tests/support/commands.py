"""The command line as people meet it: real processes, on pipes and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import Any

COMMAND = [sys.executable, "-P", "-W", "error", "-m", "mmpc"]
PATIENCE = 90.0


def run(*arguments: str, data: bytes = b"", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m mmpc` with these arguments, on pipes; `data` is its standard input."""
    done = subprocess.run(
        [*COMMAND, *arguments], input=data, capture_output=True, timeout=PATIENCE, env=os.environ | (env or {})
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def sound(*arguments: str, data: bytes = b"") -> str:
    """The output of a command that does what it is asked for, and complains of nothing."""
    done = run(*arguments, data=data)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def object_of(*arguments: str) -> dict[str, Any]:
    """The one JSON object that a command prints."""
    out = sound(*arguments, "--json")
    assert len(out.splitlines()) == 1
    found: dict[str, Any] = json.loads(out)
    return found


def refused(*arguments: str, data: bytes = b"") -> tuple[int, str]:
    """Exit status and complaint of a command that fails: one line, which begins with `mmpc:`, and nothing else."""
    done = run(*arguments, data=data)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mmpc: ")
    return done.returncode, line.removeprefix("mmpc: ")


def on_terminal(
    *arguments: str,
    seconds: float = PATIENCE,
    interrupt: bool = False,
    env: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Exit status and output of a command whose three streams are one terminal of 100 columns.

    `interrupt`: Ctrl-C after `seconds`, which may be all that it waits for.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color"} | (env or {})
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        data = _until_end(ours, process, seconds, interrupt)
        return process.wait(PATIENCE), data.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _until_end(terminal: int, process: subprocess.Popen[bytes], seconds: float, interrupt: bool) -> bytes:
    data, end = b"", time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            assert interrupt, f"still running after {seconds} s: {data[-500:]!r}"
            process.send_signal(signal.SIGINT)
            interrupt, end = False, time.monotonic() + PATIENCE
            continue
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # its last other end was closed
            return data
        if not part:
            return data
        data += part
