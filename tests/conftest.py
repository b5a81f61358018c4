"""Fixtures that speak of stores, and check every store that a test opened when it ends."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmpc
from support.children import Children
from support.mergers import MAKE

WATCHDOG = 100  # seconds for one test
LONG = "1" in (os.environ.get("MMPC_LONG"), os.environ.get("MMPC_POINTS_FULL"))
OWN = ("slow", "steps", *(("points", "disk") if LONG else ()))  # tests whose drivers have a watchdog of their own


@pytest.fixture(autouse=True)
def _watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that hangs."""

    def bark(*_: object) -> None:
        raise TimeoutError(f"the test still ran after {WATCHDOG} s")

    before = signal.signal(signal.SIGALRM, bark)
    own = any(request.node.get_closest_marker(name) for name in OWN)
    signal.alarm(0 if own else WATCHDOG)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def seed() -> int:
    """A seed for this test, printed when it fails; MMPC_SEED repeats it."""
    value = int(os.environ.get("MMPC_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"MMPC_SEED={value}")
    return value


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the store of this test is; nothing is there yet."""
    return str(tmp_path / "store")


@pytest.fixture
def memory() -> Iterator[str]:
    """A directory in memory, where a sync costs nothing, for tests that make hundreds of them."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name:
        yield name


@pytest.fixture
def open_store(path: str) -> Iterator[Callable[..., mmpc.PageCache[Any]]]:
    """Opens handles to the test's store, makes it if need be; at the end the store is checked and each handle
    closed.
    """
    handles: list[mmpc.PageCache[Any]] = []

    def opened(materializer: Any = None, **options: Any) -> mmpc.PageCache[Any]:
        handle = mmpc.open(
            path, mmpc.Append() if materializer is None else materializer, **{"create": True} | options
        )
        handles.append(handle)
        return handle

    yield opened
    try:
        for handle in handles:
            if not handle._closed:
                handle._check()
    finally:
        for handle in handles:
            handle.close()


@pytest.fixture
def store(
    request: pytest.FixtureRequest, open_store: Callable[..., mmpc.PageCache[Any]]
) -> mmpc.PageCache[Any]:
    """A fresh store; Append, or what `indirect` parametrization names (a name of support.mergers.MAKE, or an
    object).
    """
    wanted = getattr(request, "param", "Append")
    return open_store(MAKE[wanted]() if isinstance(wanted, str) else wanted)


@pytest.fixture
def children() -> Iterator[Children]:
    """Starts children; those that still run at the end are killed."""
    with Children() as started:
        yield started
