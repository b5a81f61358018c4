"""What `control` and the log say of runs, for tests of large fragments."""

from __future__ import annotations

import os
from typing import Any

from mmpc._layout import CONTROL_SEGMENTS, EXTENT_STATE, REST_MEMBER, REST_RUN, RETIRED, SEGMENT_ENTRY, SLOTS

HOLE = 7


class Seen:
    """The first segment of a run as `control` has it."""

    def __init__(self, number: int, entry: tuple[int, ...]) -> None:
        word, fill, self.page = entry[:3]
        self.number, self.segments = number, fill & 0xFFFFFFFF
        self.state, self.generation, self.slot = word & 15, word >> 4 & 0xFFFFFF, word >> 28 & ~REST_RUN
        self.published = self.state == EXTENT_STATE and self.slot == SLOTS

    def __repr__(self) -> str:
        return f"run of page {self.page} at {self.number} + {self.segments}: state {self.state}, slot {self.slot}"


def entries(pc: Any) -> list[tuple[int, ...]]:
    with open(os.path.join(pc.path, "control"), "rb") as f:
        f.seek(CONTROL_SEGMENTS)
        data = f.read(pc.stats().segments * SEGMENT_ENTRY.size)
    return list(SEGMENT_ENTRY.iter_unpack(data))


def runs(pc: Any) -> list[Seen]:
    """Those that are taken, or not yet free."""
    found = []
    for number, entry in enumerate(entries(pc)):
        if entry[0] & 15 in (EXTENT_STATE, RETIRED) and entry[0] >> 28 & REST_RUN:
            found.append(Seen(number, entry))
    return found


def run_of(pc: Any, page: int) -> Seen:
    """The one run in use of a page."""
    (found,) = [run for run in runs(pc) if run.page == page and run.published]
    return found


def consistent(pc: Any) -> None:
    """Every other segment of a run points to its first, and no segment points to none."""
    table, members = entries(pc), set()
    for run in runs(pc):
        for number in range(run.number + 1, run.number + run.segments):
            word = table[number][0]
            assert (word & 15, word >> 28) == (EXTENT_STATE, REST_MEMBER | run.number), (run, number)
            members.add(number)
    for number, entry in enumerate(table):
        if entry[0] & 15 == EXTENT_STATE and entry[0] >> 28 & REST_MEMBER:
            assert number in members, number


def taken(pc: Any) -> int:
    """Bytes that the log has on the device."""
    return os.stat(os.path.join(pc.path, "log")).st_blocks * 512
