"""Who copies or verifies a store that changes between any two steps of that: small and large fragments, segments that
are used again, become runs and are given back. Backups are the state that they began with; plain copies a state that
was, or refused; and nothing is called damaged.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from support.copying import Copier

Open = Callable[..., mmpc.PageCache[Any]]
SMALL = 1 << 16  # the smallest segment
ROUNDS = 40 if os.environ.get("MMPC_LONG") else 5


class Changing:
    """A store and what is in it: of each page the number that its value begins with; and all states that it had."""

    def __init__(self, pc: mmpc.PageCache[Any], rng: random.Random) -> None:
        self.pc, self.rng = pc, rng
        self.model: dict[int, float] = {}
        self.states: set[int] = set()

    def some(self, times: int) -> None:
        """So many operations."""
        for _ in range(times):
            self._one()
            self.states.add(state_of(self.model))

    def _one(self) -> None:
        what, rng, pc, model = self.rng.random(), self.rng, self.pc, self.model
        pid = rng.choice(list(model)) if len(model) >= 5 else 0
        if what < 0.15 or pid == 0:
            value = self._value()
            model[pc.allocate(value)[0]] = value[0]
        elif what < 0.25:
            pc.free(pid, pc.get(pid).key)
            del model[pid]
        elif what < 0.9:
            value = self._value()
            pc.replace(pid, pc.get(pid).key, value)
            model[pid] = value[0]
        elif what < 0.94:
            pc.flush()
        elif what < 0.95:
            pc.attempt_gc()

    def _value(self) -> list[Any]:
        """Small, or large enough for a run of segments."""
        return [self.rng.random(), "v" * self.rng.choice((10, 600, 600, 4000, 4000, 60_000, 150_000))]


def state_of(model: dict[int, float]) -> int:
    """The same for the same pages and numbers."""
    return sum(map(hash, model.items()))


def read(copy: mmpc.PageCache[Any], most: int) -> dict[int, float]:
    """The model that a copy holds, and its check; `most`: no page is above."""
    pages = {pid: copy.get(pid) for pid in range(2, most)}
    copy._check()
    return {pid: page.unwrap()[0] for pid, page in pages.items() if page.is_materialized()}


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The machine starts anew; what is volatile counts no more."""
    return lambda name: monkeypatch.setenv("MMPC_BOOT_ID", name)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_backup_is_the_state_that_it_began_with(open_store: Open, path: str, number: int, seed: int) -> None:
    rng = random.Random(seed * 100 + number)
    store = Changing(open_store(segment_size=SMALL), rng)
    for turn in range(4):
        store.some(120)
        model, dest = dict(store.model), f"{path}.{turn}"
        store.pc.backup(dest, progress=lambda _done, _total: store.some(rng.choice((0, 0, 0, 1, 20))))
        assert mmpc.verify(dest).damage == []
        with mmpc.open(dest, mmpc.Append()) as copy:
            assert read(copy, max(store.model) + 100) == model
        shutil.rmtree(dest)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_plain_copy_is_a_state_that_was_or_refused(
    open_store: Open, path: str, boots: Callable[[str], None], number: int, seed: int
) -> None:
    rng = random.Random(seed * 100 + number)
    boots("first")
    store = Changing(open_store(segment_size=SMALL), rng)
    copier = Copier(path, rng, lambda: store.some(rng.choice((0, 1, 5, 20))))
    for turn in range(6):
        store.some(rng.choice((20, 100, 200)))
        store.pc.flush()
        dest = f"{path}.{turn}"
        copier.copy(dest, copier.names(rng.choice(("any", "marks first", "log first"))))
        boots(f"copy {turn}")
        try:
            with mmpc.open(dest, mmpc.Append()) as copy:
                assert state_of(read(copy, max(store.model) + 100)) in store.states
        except mmpc.CorruptionError:
            pass
        boots("first")
        shutil.rmtree(dest)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_verify_finds_nothing_in_a_store_that_changes_meanwhile(
    open_store: Open, path: str, number: int, seed: int
) -> None:
    rng = random.Random(seed * 100 + number)
    store = Changing(open_store(segment_size=SMALL), rng)
    for _ in range(4):
        store.some(100)
        report = mmpc.verify(path, progress=lambda _done, _total: store.some(rng.choice((0, 0, 0, 1, 10))))
        assert report.problems == []
