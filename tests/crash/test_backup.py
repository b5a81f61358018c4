"""Copies made while others write, and copies that the power cuts off (support/backup_driver.py, in the disk build).

In short form a few dozen copies and a few hundred images; in long form (MMPC_LONG=1) hundreds and thousands, and all
mutants.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import disk_mutants, driving
from support.backup_mutants import MUTANTS, SHORT
from support.disk_mutants import Mutant

FULL = os.environ.get("MMPC_LONG") == "1"
pytestmark = pytest.mark.disk

TESTS = Path(__file__).resolve().parents[1]
BUILD = os.environ.get("MMPC_DISK_DIR", "")
SEED = os.environ.get("MMPC_SEED") or str(random.randrange(10**6))
COUNTS = {"copies": 300 if FULL else 30, "cut": 4000 if FULL else 300}
LIMIT = 1500 if FULL else 120

@pytest.fixture
def memory() -> Iterator[Path]:
    with driving.memory() as path:
        yield path


def drive(build: Path, name: str, directory: Path, count: int) -> dict[str, Any]:
    out = driving.python(
        build, "-m", "support.backup_driver", name, str(directory), str(count), SEED, limit=LIMIT, seed=SEED
    )
    answer: dict[str, Any] = json.loads(out)
    print(
        f"backup, {name}: {answer['judged']} judged, {answer['older']} of them without something, {answer['rounds']} "
        f"recordings, {answer['events']} events; {answer['seconds']} s, seed {SEED}"
    )
    return answer


@pytest.fixture(scope="module")
def build() -> Path:
    """Where the disk build is."""
    if not BUILD:
        pytest.fail("MMPC_DISK_DIR does not name the disk build: run `.ci/run disk`")
    return Path(BUILD)


@pytest.mark.parametrize("name", list(COUNTS))
def test_a_backup_is_a_state_that_was_or_is_no_store(build: Path, memory: Path, name: str) -> None:
    answer = drive(build, name, memory, COUNTS[name])
    assert not answer["failures"], f"seed {SEED}\n" + "\n".join(answer["failures"])
    assert answer["judged"] >= COUNTS[name]
    assert answer["older"] > answer["judged"] // 4, "nothing was written meanwhile, or lost: they prove nothing"


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if FULL or m.name in SHORT], ids=lambda m: m.name)
def test_a_broken_backup_is_noticed(build: Path, memory: Path, mutant: Mutant) -> None:
    built = disk_mutants.build(mutant, TESTS.parent, build, memory)
    (name,) = mutant.scenarios
    directory = memory / "work"
    directory.mkdir()
    failures = drive(built, name, directory, COUNTS[name] * 3)["failures"]
    shutil.rmtree(directory)
    assert failures, f"nobody noticed, seed {SEED}"
    print(failures[0])
