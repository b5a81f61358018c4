"""The power goes, at any moment of what several processes do: what was flushed is there, and nothing false.

`.ci/run disk` makes the disk build and names its directory in MMPC_DISK_DIR.  Each test starts a process that has it
loaded (support/disk_driver.py), which records a scenario and judges images of what the disk may hold.  In short form
there are a few hundred images of each scenario and a few mutants, in long form (MMPC_LONG=1) thousands, and all
mutants; MMPC_SEED repeats the drawing (how the processes interleave is the machine's).
"""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import disk_mutants, driving
from support.disk_scenarios import SCENARIOS

FULL = os.environ.get("MMPC_LONG") == "1"
pytestmark = pytest.mark.disk

TESTS = Path(__file__).resolve().parents[1]
BUILD = os.environ.get("MMPC_DISK_DIR", "")
SEED = os.environ.get("MMPC_SEED") or str(random.randrange(10**6))
IMAGES = 2500 if FULL else 180  # of each scenario
MOST = 4000 if FULL else 1200  # until a mutant must have been noticed
LIMIT = 1500 if FULL else 90  # seconds for one run; the driver has a watchdog for each image
SHORT = ("commit-word-skipped-at-help", "log-not-synced", "what-was-discarded-is-not-recorded")
SHORT += ("numbers-before-their-ceiling-is-durable",)
MUTANTS = [m for m in disk_mutants.MUTANTS if FULL or m.name in SHORT]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: no power is lost but the one that is computed."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    path = Path(tempfile.mkdtemp(prefix="mmpc-disk-", dir=base))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def build() -> Path:
    """Where the disk build is."""
    if not BUILD:
        pytest.fail("MMPC_DISK_DIR does not name the disk build: run `.ci/run disk`")
    return Path(BUILD)


@pytest.fixture(scope="module")
def totals() -> Iterator[dict[str, int]]:
    """Counts of the whole run, printed at its end."""
    counts = dict.fromkeys(("scenarios", "images", "verified", "points", "opening", "events", "mutants"), 0)
    yield counts
    print(
        f"disk: {counts['images']} images of {counts['scenarios']} scenarios, verified {counts['verified']} times, "
        f"{counts['points']} crash points ({counts['opening']} in a creation or recovery) in {counts['events']} "
        f"events; {counts['mutants']} mutants caught; seed {SEED}"
    )


def drive(build: Path, name: str, directory: Path, images: int, judges: str = "both") -> dict[str, Any]:
    """Runs one scenario; the driver's answer.  Nothing that it started is left behind."""
    args = ("-m", "support.disk_driver", name, str(directory), str(images), SEED, judges)
    out = driving.python(build, *args, limit=LIMIT, seed=SEED)
    answer: dict[str, Any] = json.loads(out)
    print(
        f"{name}: {answer['images']} images at {answer['points']} crash points ({answer['opening']} in a creation or "
        f"recovery) of {answer['rounds']} recordings, {answer['events']} events, {answer['operations']} operations; "
        f"{answer['lossy']} images lost something; verified {answer['verified']} times; "
        f"{answer['seconds']} s, seed {SEED}"
    )
    return answer


@pytest.mark.parametrize("name", [s.name for s in SCENARIOS])
def test_what_a_loss_of_power_leaves_is_right(build, name, memory, totals, record_property):
    answer = drive(build, name, memory, IMAGES)
    assert not answer["failures"], f"seed {SEED}\n" + "\n".join(answer["failures"])
    assert answer["images"] >= IMAGES
    assert answer["lossy"] > IMAGES // 4, "the images lose nothing: they prove nothing"
    assert answer["verified"] > 2 * IMAGES, "most images have a config: they are verified before and after"
    totals["scenarios"] += 1
    for count in ("images", "verified", "points", "opening", "events"):
        record_property(count, answer[count])
        totals[count] += answer[count]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_broken_durability_is_noticed(build, mutant, memory, totals):
    """Each mutant leaves out, or swaps, one step; one of the scenarios named with it must fail on it, by what comes
    back of an image: mmpc.verify, which would see most of them too, is asked only where nothing else can tell.
    """
    built = disk_mutants.build(mutant, TESTS.parent, build, memory)
    for name in mutant.scenarios:
        failures = drive(built, name, memory, MOST, mutant.judges)["failures"]
        if failures:
            print(failures[0])
            totals["mutants"] += 1
            return
    pytest.fail(f"nobody noticed, seed {SEED}")
