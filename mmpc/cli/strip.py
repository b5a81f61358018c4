"""The segment strip: one cell for a segment, or for a group of them, by live share."""

from __future__ import annotations

from .gather import filled
from .show import FILLS, PLAIN_FILLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .gather import Segment

GAUGE = 10
LEGEND = "blocks: live share; . free, _ a hole, o open, x emptied or waits for readers"


def style(share: float) -> str:
    """Red where little is live, so that cleaning gains much; green where nearly all is."""
    return "red" if share < 0.4 else "yellow" if share < 0.75 else "green"


def cell(group: list[Segment], full: bool) -> tuple[str, str]:
    """One cell for some segments; `full`: block characters can be shown."""
    states = {s.state for s in group}
    used = [s for s in group if s.used]
    if states <= {"claimed", "retired", "punching"}:
        return "x", "magenta"
    if not used:
        return ("_", "dim") if states <= {"hole"} else (".", "dim")
    if states <= {"open"}:
        return "o", "blue"
    taken, live = filled(used)
    share = live / taken if taken else 0.0
    return fill(share, full), style(share)


def fill(share: float, full: bool) -> str:
    """The character for a share; also the smallest one can be seen."""
    if full:
        return FILLS[max(1, min(8, round(share * 8)))]
    return PLAIN_FILLS[min(9, int(share * 10))]


def strip(segments: list[Segment], width: int, rows: int, full: bool) -> tuple[list[list[tuple[str, str]]], int]:
    """Lines of cells, at most `rows` of `width`, and how many segments a cell stands for."""
    room = max(1, width * rows)
    each = max(1, -(-len(segments) // room))
    cells = [cell(segments[i : i + each], full) for i in range(0, len(segments), each)]
    return [cells[i : i + width] for i in range(0, len(cells), width)], each


def gauge(s: Segment, full: bool) -> tuple[str, str]:
    """The live share of one segment as a bar."""
    if s.share is None:
        return "", ""
    return ("█" if full else "#") * max(1, round(s.share * GAUGE)), style(s.share)
