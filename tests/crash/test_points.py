"""Die, stop, or be refused at every access to shared memory of every verb: nobody else minds.

`.ci/run points` makes the points build and names its directory in MMPC_POINTS_DIR.  Each test starts a process that
has it loaded (support/kill_driver.py) and forks a child for each access.  In short form every sixth access is taken,
from a random one on, in long form (MMPC_LONG=1 or MMPC_POINTS_FULL=1) each; MMPC_SEED repeats a run.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import driving, kill_mutants

pytestmark = pytest.mark.points

POINTS = os.environ.get("MMPC_POINTS_DIR", "")
FULL = "1" in (os.environ.get("MMPC_POINTS_FULL"), os.environ.get("MMPC_LONG"))
STEP = 1 if FULL else 6
SEED = os.environ.get("MMPC_SEED") or str(random.randrange(10**6))
LIMIT = 900 if FULL else 120  # seconds for one case; the driver has a watchdog for each access

# The names of support/kill_cases.py, which can only be imported with the points build; a test compares.
VERBS = [
    "attach",
    "allocate",
    "allocate-warm",
    "allocate-reuse",
    "allocate-growth",
    "append",
    "append-warm",
    "append-full-chain",
    "append-large",
    "new-segment",
    "extent",
    "extent-allocate",
    "extent-link",
    "extent-consolidates",
    "extent-consolidates-python",
    "extent-reuse",
    "extent-clean",
    "link",
    "link-warm",
    "replace",
    "replace-warm",
    "free",
    "free-warm",
    "get",
    "get-cached",
    "get-helps",
    "append-helps",
    "get-consolidates",
    "get-many",
    "get-page-frags",
    "update",
    "append-many",
    "tx",
    "view",
    "generate-id",
    "bump-rts",
    "flush",
    "flush-carries",
    "snapshot",
    "rewrite",
    "clean",
    "clean-python",
    "clean-free",
    "clean-reuse",
    "stats",
    "close",
    "append-full-chain-python",
    "get-consolidates-python",
]
OPENING = ["create", "recover"]
ROOMLESS = ["free", "free-warm", "get", "get-cached", "get-helps", "get-many", "get-page-frags", "view"]
ROOMLESS += ["flush", "flush-carries", "stats", "close"]  # needs no room on the disk
GROWING = ["attach", "allocate-growth", "append-large", "new-segment", "extent", "bump-rts", "create", "recover"]


@pytest.fixture
def memory() -> Iterator[Path]:
    with driving.memory() as path:
        yield path


@pytest.fixture(scope="module")
def build() -> Path:
    """Where the points build is."""
    if not POINTS:
        pytest.fail("MMPC_POINTS_DIR does not name the points build: run `.ci/run points`")
    return Path(POINTS)


def python(build: Path, *args: str) -> str:
    return driving.python(build, *args, limit=LIMIT, seed=SEED)


def drive(build: Path, mode: str, name: str, directory: Path, step: int = STEP) -> dict[str, Any]:
    """Runs one case; the driver's answer, its count printed."""
    out = python(build, "-m", "support.kill_driver", mode, name, str(directory), str(step), SEED)
    answer: dict[str, Any] = json.loads(out)
    print(
        f"{mode} {name}: {answer['points']} accesses, {answer['hit']} taken, "
        f"{answer['applied']} of them after the change was made, {answer['seconds']} s, seed {SEED}"
    )
    return answer


def passes(build: Path, mode: str, name: str, directory: Path, step: int = STEP) -> dict[str, Any]:
    answer = drive(build, mode, name, directory, step)
    assert not answer["failures"], f"seed {SEED}\n" + "\n".join(answer["failures"])
    return answer


def test_every_case_has_its_name_here(build):
    code = "from support.kill_cases import *; print(*[identifier(*r) for r in all_runs()])"
    assert sorted(python(build, "-c", code).split()) == sorted(VERBS + OPENING)


@pytest.mark.parametrize("name", VERBS + OPENING)
def test_killed_anywhere_leaves_all_that_returned(build, name, memory, record_property):
    answer = passes(build, "kill", name, memory)
    record_property("points", answer["points"])
    record_property("kills", answer["hit"])
    assert answer["hit"] >= answer["points"] // STEP


@pytest.mark.parametrize("name", VERBS)
def test_stopped_anywhere_delays_nobody(build, name, memory, record_property):
    """Creation and recovery are left out: only they may delay those who open the store."""
    answer = passes(build, "stop", name, memory)
    record_property("points", answer["points"])
    record_property("stops", answer["hit"])
    assert answer["hit"] >= answer["points"] // STEP


@pytest.mark.parametrize("name", GROWING)
def test_growth_that_fails_changes_nothing(build, name, memory):
    passes(build, "fail", name, memory)


@pytest.mark.parametrize("name", VERBS + OPENING if FULL else GROWING + ROOMLESS + ["append-many", "append-full-chain"])
def test_a_disk_that_is_full_from_there_on_refuses_what_needs_room(build, name, memory):
    """Reads, frees, flushes and leaving need none: the reserve, and what is allocated at creation and attaching."""
    answer = passes(build, "full", name, memory)
    assert answer["hit"] >= answer["points"] // STEP
    if name in ROOMLESS:
        assert answer["refused"] == 0


def test_a_sync_that_fails_stops_the_store_for_all_until_it_is_reopened(build, memory):
    assert passes(build, "fail", "flush", memory, step=1)["hit"]


def test_a_snapshot_that_cannot_be_written_leaves_the_store_as_it_is(build, memory):
    assert passes(build, "fail", "snapshot", memory, step=1)["hit"]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", kill_mutants.MUTANTS, ids=lambda m: m.name)
def test_a_broken_core_is_noticed(mutant, memory):
    """Each mutant breaks one step of the protocol; the cases named with it must fail on it."""
    built = kill_mutants.build(mutant, driving.TESTS.parent, memory)
    failures = []
    for mode, name in mutant.cases:
        try:
            failures += drive(built, mode, name, memory, step=1)["failures"]
        except AssertionError as e:  # the watchdog: somebody waits
            assert "Timeout (0:00:" in str(e)
            failures.append(str(e))
    assert failures, "nobody noticed"
    print(failures[0])


@pytest.mark.slow
def test_a_sound_core_built_the_same_way_passes(memory):
    built = kill_mutants.build(kill_mutants.SOUND, driving.TESTS.parent, memory)
    for mode, name in kill_mutants.SOUND.cases:
        passes(built, mode, name, memory, step=3)
