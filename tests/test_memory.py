"""What a process takes: private memory, what it keeps mapped, and what it waits for when nothing is in mixes."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path
from typing import Any

import pytest

import mmpc
from support.children import Children

_FILE = Path(__file__).resolve().parent.parent / "bench" / "mixes.py"
_spec = importlib.util.spec_from_file_location("mixes", _FILE)
assert _spec is not None
assert _spec.loader is not None
mixes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mixes)

MIB = 1 << 20
CAPACITY = 4 * MIB
SLACK = 24 * MIB  # less than mixes.CONSTANT, which is promised: it has to be found out with little data
VOLUME = 24 * MIB  # of log in a store; several times as much passes through
COMBINATIONS = [
    ("get", "LastWriteWins"),
    ("replace", "Append"),
    ("append", "Union"),
    ("mixed", "Append"),
    ("mixed", "Append of large values"),
    ("mixed", "arrays"),
    ("get", "merge in Python"),
    ("mixed", "size in Python"),
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A path for each materializer; filled by who comes first."""
    return {name: tmp_path_factory.mktemp("memory") / "store" for name in mixes.MATERIALIZERS}


def taken(stores: dict[str, Path], mix: str, name: str, seed: int, capacity: int, *more: str) -> dict[str, float]:
    """What one process took that ran a mix."""
    if not stores[name].exists():
        mixes.fill(stores[name], name, VOLUME, seed)
    options = ["--capacity", str(capacity), "--passes", "6", "--seed", str(seed), *more]
    return mixes.measured(stores[name], mix, name, *options)


@pytest.mark.parametrize(("mix", "name"), COMBINATIONS)
def test_private_memory_is_bounded(stores: dict[str, Path], mix: str, name: str, seed: int) -> None:
    found = taken(stores, mix, name, seed, CAPACITY)
    assert found["growth"] <= CAPACITY + (mixes.CONSTANT if "large" in name else SLACK), found


def test_the_measure_sees_what_is_kept(stores: dict[str, Path], seed: int) -> None:
    """The same with a cache that holds all of it: without a bound it would not be kept."""
    found = taken(stores, "get", "merge in Python", seed, 1 << 40)
    assert found["evictions"] == 0
    assert found["growth"] > CAPACITY + SLACK, found


@pytest.mark.parametrize("mix", ["get", "mixed"])
def test_what_stays_mapped_is_bounded(stores: dict[str, Path], mix: str, seed: int) -> None:
    bound = 6 * MIB
    assert taken(stores, mix, "Append", seed, CAPACITY)["mapped"] > 2 * bound
    found = taken(stores, mix, "Append", seed, CAPACITY, "--mapped", str(bound))
    assert found["mapped"] <= bound + 2 * MIB, found


def test_the_bound_is_an_option_like_the_others(tmp_path: Path) -> None:
    import pickle

    for bad in (0, 1, (4 << 20) - 1, 1 << 63):
        with pytest.raises(ValueError, match="mapped_capacity"):
            mmpc.open(tmp_path / "a", mmpc.Append(), create=True, mapped_capacity=bad)
    with (
        mmpc.open(tmp_path / "b", mmpc.Append(), create=True, mapped_capacity=4 << 20) as pages,
        pickle.loads(pickle.dumps(pages)) as other,
    ):
        assert other._options.mapped == 4 << 20


# ---- nothing is lost when it is unmapped


def _writer(path: str, seed: int, rounds: int) -> dict[int, bytes]:
    rng, model = random.Random(seed), dict[int, bytes]()
    with mmpc.open(path, mmpc.Append(), cache_capacity=0, mapped_capacity=4 << 20) as pages:
        for _ in range(rounds):
            one = rng.randbytes(rng.choice((20, 3000, 60_000)))
            if not model or rng.random() < 0.3:
                model[pages.allocate(one)[0]] = one
            else:
                pid = rng.choice(list(model))
                if rng.random() < 0.3 or len(model[pid]) > 300_000:
                    pages.replace(pid, pages.get(pid).key, one)
                    model[pid] = one
                else:
                    pages.append(pid, one)
                    model[pid] += one
            if rng.random() < 0.2:
                pid = rng.choice(list(model))
                assert pages.get(pid).value == model[pid]
        assert mixes.mapped_of(Path(path) / "log") <= 6 * MIB
        for pid, value in model.items():
            assert pages.get(pid).value == value
    return model


def test_what_was_written_and_unmapped_is_not_lost(tmp_path: Path, children: Children, seed: int) -> None:
    """Two writers whose granules come and go; then from the mapping of others, and from the device."""
    path = str(tmp_path / "store")
    with mmpc.open(path, mmpc.Append(), create=True, cache_capacity=0) as pages:
        started = [children.start(_writer, path, seed + i, 1500) for i in range(2)]
        models = [child.result() for child in started]
        for model in models:
            for pid, value in model.items():
                assert pages.get(pid).value == value
        assert pages.stats().log_bytes > 24 * MIB
    drop(path)
    assert mmpc.verify(path).ok
    with mmpc.open(path, mmpc.Append()) as pages:
        for model in models:
            assert {pid: pages.get(pid).value for pid in model} == model


# ---- cold chains


def drop(path: str) -> None:
    """Nothing of the log stays in memory; nobody may have it mapped."""
    fd = os.open(os.path.join(path, "log"), os.O_RDWR)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _scattered(path: str, seed: int, options: dict[str, Any]) -> list[int]:
    rng = random.Random(seed)
    with mmpc.open(path, mmpc.Append(), create=True, **options) as pages:
        pids = [pages.allocate(b"x" * 900)[0] for _ in range(3000)]
        for _ in range(9):
            rng.shuffle(pids)
            pages.append_many([(pid, b"y" * 900) for pid in pids])
    return pids


def _waits(path: str, pid: int, options: dict[str, Any]) -> int:
    """How often a get of a cold page waited for the device without having asked before: major faults."""
    from resource import RUSAGE_THREAD, getrusage

    with mmpc.open(path, mmpc.Append(), **options) as pages:
        before = getrusage(RUSAGE_THREAD).ru_majflt
        assert pages.get(pid).value == b"x" * 900 + b"y" * 8100
        return getrusage(RUSAGE_THREAD).ru_majflt - before


def test_a_cold_chain_is_fetched_at_once(tmp_path: Path, children: Children, seed: int) -> None:
    """Ten records in ten places: one wait for the first, and all others are on their way when they are looked at. A few
    more are allowed for, since a page may be in memory by chance, or a wait be too short to be noticed.
    """
    path, options = str(tmp_path / "store"), {"page_consolidation_threshold": 64}
    pids, waits = children.start(_scattered, path, seed, options).result(), []
    for pid in random.Random(seed).sample(pids, 15):
        drop(path)
        waits.append(children.start(_waits, path, pid, options).result())
    if max(waits) == 0:
        pytest.skip("this file system keeps files in memory alone")
    assert sorted(waits)[7] <= 3, waits
