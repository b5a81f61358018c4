"""What is stepped: the cases of support/kill_cases.py, and those that only make sense here."""

from __future__ import annotations

import os
import signal
from typing import Any

import mmpc
from mmpc._native import ffi, lib

from .kill_cases import ATTACH, WARM, Case, Child, Op, all_runs, append, identifier, open_store


def reap_all(c: Child) -> int:
    reaped = ffi.new("uint64_t *")
    assert lib.mm_reap_all(c.pc._attachment.mm, reaped) == 0
    return int(reaped[0])


def living(c: Child) -> int:
    return int(c.pc.stats().slots)


def pin_often(c: Child) -> None:
    """Some more pins than one call uses."""
    c.key = [c.pc.begin() for _ in range(5)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Preparations, not stepped themselves: a record without its commit word, a dead slot with pins
LOST = Case("lost", (WARM, append("lost")))
DEAD = Case("dead", (ATTACH, Op(pin_often), ATTACH), armed=2)

SNAPSHOT = Case("snapshot", (WARM, Op(lambda c: c.pc.snapshot())))
REAP = Case("reap", (ATTACH, Op(reap_all)))  # of DEAD
COUNTED = Case("attach-counted", (ATTACH, Op(living)), armed=0)  # says how many are alive, itself included
# The lasting state of before an append, and that append; another boot
REBOOT = Case("reboot", (Op(open_store), Op(lambda c: c.pc.close())), armed=0, new_store="reboot", stoppable=False)


def runs() -> list[tuple[Case, bool]]:
    more = [REAP, COUNTED, REBOOT, *([SNAPSHOT] if hasattr(mmpc.PageCache, "snapshot") else [])]
    return [*all_runs(), *((case, False) for case in more)]


def find(name: str) -> tuple[Case, bool]:
    """The run with this identifier, as kill_cases.find."""
    return next((case, python) for case, python in runs() if identifier(case, python) == name)


def names(of: Any = None) -> list[str]:
    return [identifier(case, python) for case, python in runs() if of is None or of(case)]
