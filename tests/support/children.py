"""Processes of a test: forked, watched, and never left running."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

PATIENCE = 60.0


class ChildFailed(AssertionError):
    """The child raised, died of a signal, or ran out of time."""


class Child:
    """One forked process that runs `fn(*args)` and answers with its result.

    Made by `Children.start`. The child leaves by `os._exit`: no exit handlers, no output of pytest.
    """

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.name = getattr(fn, "__name__", "child")
        self._read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._read)
            _run(fn, args, write)
        os.close(write)
        self.status: int | None = None

    def result(self, patience: float = PATIENCE) -> Any:
        """What `fn` returned. ChildFailed: it raised, was killed, or took longer than `patience` seconds."""
        data = self._drain(time.monotonic() + patience)
        status = self.wait(patience)
        if status < 0:
            raise ChildFailed(f"{self.name} died of {signal.Signals(-status).name}")
        if not data:
            raise ChildFailed(f"{self.name} left without an answer, exit status {status}")
        good, value = pickle.loads(data)
        if not good:
            raise ChildFailed(f"{self.name} failed:\n{value}")
        return value

    def wait(self, patience: float = PATIENCE) -> int:
        """The exit status, negative for a signal. ChildFailed after `patience` seconds; the child is then killed."""
        end = time.monotonic() + patience
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                self.kill()
                raise ChildFailed(f"{self.name} still ran after {patience} s")
            else:
                time.sleep(0.001)
        return self.status

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def signal(self, number: int) -> None:
        """Sends a signal, unless the child has been waited for."""
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self) -> None:
        """Kills what still runs and closes the pipe."""
        self.kill()
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def _drain(self, end: float) -> bytes:
        data = b""
        while True:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.kill()
                raise ChildFailed(f"{self.name} gave no answer in time and was killed")
            part = os.read(self._read, 1 << 16)
            if not part:
                return data
            data += part


def _run(fn: Callable[..., Any], args: tuple[Any, ...], write: int) -> None:
    try:
        try:
            answer = pickle.dumps((True, fn(*args)))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        while answer:
            answer = answer[os.write(write, answer) :]
    finally:
        os._exit(0)


class Children:
    """All children of a test; a context manager that ends what is left."""

    def __init__(self) -> None:
        self._all: list[Child] = []

    def start(self, fn: Callable[..., Any], *args: Any) -> Child:
        """Forks a child that runs `fn(*args)`."""
        child = Child(fn, args)
        self._all.append(child)
        return child

    def run(self, fn: Callable[..., Any], *args: Any, patience: float = PATIENCE) -> Any:
        """Runs `fn(*args)` in a child and returns its result."""
        return self.start(fn, *args).result(patience)

    def map(
        self, fn: Callable[..., Any], arguments: list[tuple[Any, ...]], patience: float = PATIENCE
    ) -> list[Any]:
        """One child for each tuple of arguments, all at once; their results in order."""
        children = [self.start(fn, *a) for a in arguments]
        return [child.result(patience) for child in children]

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for child in self._all:
            child.end()


class Gate:
    """A pipe that holds children back until the parent opens it for all at once."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def wait(self) -> None:
        """In a child: returns when the gate opens."""
        if self._write >= 0:
            os.close(self._write)
            self._write = -1
        os.read(self._read, 1)

    def open(self) -> None:
        """In the parent: lets everybody through."""
        os.close(self._write)
        os.close(self._read)
        self._read = self._write = -1
