"""segments: a table of the segments of the log."""

from __future__ import annotations

import json
import sys

from .._layout import STATES
from . import gather, show, strip
from .frame import DONE, at_least, command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

_ORDERS = ("number", "share", "live", "opened", "disk")


def add(commands: Any) -> None:
    """Describes the command."""
    parser = command(
        commands,
        "segments",
        _segments,
        "a table of the segments of the log: state, live share, age",
        "Lists the segments of the log: generation, state, what of them is live, the epochs when each was opened\n"
        "and when its last finished lease ended, and what it takes on the device. The last column shows the live\n"
        "share.",
        "python -m mmpc segments /var/lib/things --state sealed --below 40 --sort share",
        "0 listed, 1 the store is damaged, 2 it could not be read",
    )
    parser.add_argument(
        "--state",
        action="append",
        choices=STATES,
        metavar="STATE",
        help=f"only those: {', '.join(STATES)}; may be given again",
    )
    parser.add_argument(
        "--below", type=at_least(0, 100), metavar="PERCENT", help="only those of which less than this is live"
    )
    parser.add_argument(
        "--sort", choices=_ORDERS, default="number", help="the order of the rows (default: %(default)s)"
    )
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="at most so many rows")


def _segments(options: argparse.Namespace) -> int:
    with gather.Store(options.path) as store:
        everything = store.segments()
        path = store.path
    chosen = [s for s in everything if _wanted(s, options)]
    chosen.sort(key=lambda s: (_key(s, options.sort), s.number))
    chosen = chosen[: options.limit]
    if options.json:
        print(json.dumps({"path": path, "segments": [s.as_dict() for s in chosen], "of": len(everything)}))
        return DONE
    coloured, full = show.colours(sys.stdout), show.unicode(sys.stdout)
    head = ("segment", "generation", "state", "live", "taken", "share", "opened", "written", "on device", "")
    lines = show.table(head, [_row(s) for s in chosen]).splitlines()
    width = max(map(len, lines))
    print(lines[0].rstrip())
    for text, s in zip(lines[1:], chosen, strict=True):
        print(show.line([(text.ljust(width + 2), ""), strip.gauge(s, full)], coloured))
    print(f"{len(chosen)} of {len(everything)} segments")
    return DONE


def _wanted(s: gather.Segment, options: argparse.Namespace) -> bool:
    if options.state and s.state not in options.state:
        return False
    return options.below is None or (s.share is not None and s.share * 100 < options.below)


def _key(s: gather.Segment, order: str) -> float:
    if order == "share":
        return 2.0 if s.share is None else s.share
    return float(getattr(s, order))


def _row(s: gather.Segment) -> tuple[object, ...]:
    if not s.used:
        return s.number, s.generation, s.state, "-", "-", "-", "-", "-", show.size(s.disk), ""
    taken = "-" if s.taken is None else show.size(s.taken)
    share = "-" if s.share is None else f"{100 * s.share:.0f} %"
    written = "-" if s.written is None else s.written
    return s.number, s.generation, s.state, show.size(s.live), taken, share, s.opened, written, show.size(s.disk), ""
