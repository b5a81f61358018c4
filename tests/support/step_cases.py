"""What is stepped: the cases of support/kill_cases.py, and those that only make sense here."""

from __future__ import annotations

import mmpc

from .kill_cases import ATTACH, CASES, WARM, Case, Op, all_runs, append, identifier, open_store

LOST = Case("lost", (WARM, append("lost")))
REBOOT = Case("reboot", (Op(open_store), Op(lambda c: c.pc.close())), armed=0, new_store="reboot", stoppable=False)

MORE = [REBOOT]
if hasattr(mmpc.PageCache, "snapshot"):
    MORE.append(Case("snapshot", (WARM, Op(lambda c: c.pc.snapshot() and None))))


def runs() -> list[tuple[Case, bool]]:
    return [*all_runs(), *((case, False) for case in MORE)]


def find(name: str) -> tuple[Case, bool]:
    for case, python in runs():
        if identifier(case, python) == name:
            return case, python
    raise KeyError(name)
