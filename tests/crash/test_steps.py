"""Die or stop at every instruction of every verb, flush, snapshot and recovery, in the build that is installed.

Each test starts a process (support/step_driver.py) that forks a child for each place and steps it there with ptrace;
which places those are, and why they suffice, stands there.  In short form some are taken, from a random one on, in long
form (MMPC_LONG=1) all; MMPC_SEED repeats a run.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import driving, step_cases, step_mutants, stepper
from support.kill_mutants import build

LONG = os.environ.get("MMPC_LONG") == "1"
pytestmark = pytest.mark.steps

SEED = os.environ.get("MMPC_SEED") or str(random.randrange(10**6))
LIMIT = 3600 if LONG else 300  # seconds for one case; the driver has a watchdog for each place
MOST = {"kill": 20, "stop": 10, "calls": 24, "inside": 12}  # places of a case in short form

ALONE = ("create", "recover", "reboot")  # nobody else is in the store
OTHERS = [name for name in step_cases.names() if name not in ALONE]
if not LONG:  # half a million instructions, a minute each: the points suite has them in short form
    OTHERS = [name for name in OTHERS if not name.startswith("clean")]
SYSTEM = [*ALONE, "attach", "allocate-growth", "new-segment", "flush", "flush-carries", "snapshot"]


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    reason = stepper.why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def memory() -> Iterator[Path]:
    with driving.memory() as path:
        yield path


def drive(mode: str, name: str, directory: Path, core: Path | None = None, most: int | None = None) -> dict[str, Any]:
    """Runs one case; the driver's answer, its counts printed."""
    most = most if most is not None else 0 if LONG else MOST[mode]
    args = ("-m", "support.step_driver", mode, name, str(directory), str(most), SEED)
    answer: dict[str, Any] = json.loads(driving.python(core, *args, limit=LIMIT, seed=SEED))
    of = f"{answer['calls']} stops at system calls" if answer["calls"] else f"{answer['instructions']} instructions"
    print(
        f"{mode} {name}: {of}, {answer['states']} states; {answer['hit']} of {answer['places']} places taken, "
        f"{answer['applied']} of them after the change was made, {answer['seconds']} s, seed {SEED}"
    )
    return answer


def passes(mode: str, name: str, directory: Path, core: Path | None = None, most: int | None = None) -> None:
    answer = drive(mode, name, directory, core, most)
    assert not answer["failures"], f"seed {SEED}\n" + "\n".join(answer["failures"])
    # A child may have gone another way, and ended before: a walk that is stepped through waits long for each record,
    # and reads ahead.
    # `inside` races with the kernel, and a fast device wins.
    assert answer["hit"] >= (1 if mode == "inside" else answer["taken"] // 2)
    assert mode in ("calls", "inside") or answer["exact"] >= answer["hit"] // 2


@pytest.mark.parametrize("name", [*OTHERS, *ALONE])
def test_killed_at_any_instruction_leaves_all_that_returned(name, memory):
    passes("kill", name, memory)


@pytest.mark.parametrize("name", OTHERS)
def test_stopped_at_any_instruction_delays_nobody(name, memory):
    passes("stop", name, memory)


@pytest.mark.parametrize("name", [*SYSTEM, "append", "close", "tx"])
def test_killed_before_and_after_any_system_call(name, memory):
    passes("calls", name, memory)


@pytest.mark.parametrize("name", SYSTEM)
def test_killed_while_a_file_grows_or_is_synced(name, tmp_path):
    """On the disk: in memory a sync takes no time."""
    passes("inside", name, tmp_path)


@pytest.mark.parametrize(
    "mutant", [m for m in step_mutants.MUTANTS if LONG or m.name in step_mutants.SHORT], ids=lambda m: m.name
)
def test_a_broken_core_is_noticed(mutant, memory):
    core = build(mutant, driving.TESTS.parent, memory, defines="")
    failures = []
    for mode, name in mutant.cases:
        try:
            failures += drive(mode, name, memory, core, most=0 if LONG else 60)["failures"]
        except AssertionError as e:  # the watchdog: somebody waits
            assert "Timeout (0:00:" in str(e)
            failures.append(str(e))
    assert failures, "nobody noticed"
    print(failures[0])


@pytest.mark.skipif(not LONG, reason="the long form builds it")
def test_a_sound_core_built_the_same_way_passes(memory):
    core = build(step_mutants.SOUND, driving.TESTS.parent, memory, defines="")
    for mode, name in step_mutants.SOUND.cases:
        passes(mode, name, memory, core, most=60)
