"""top: a live screen of a store. What it shows is a list of blocks of lines of (text, style), which rich draws in
panels on a terminal, and which is printed plainly otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time

from . import gather, show, strip
from .frame import DONE, at_least, command, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

    Line = list[tuple[str, str]]
    Block = tuple[str, list[Line]]

WIDTH, STRIP_ROWS, MOST_PROCESSES = 100, 4, 12
FRAME = 2  # lines around each block


def add(commands: Any) -> None:
    """Describes the command."""
    parser = command(
        commands,
        "top",
        _top,
        "a live screen: segments, operations, durability, processes",
        "Watches a store: its segments by live share, operations and flushes per second, cleaning, processes and\n"
        "how far each lags behind, the dead that were reaped. It only reads, and costs those who work nothing.\n"
        "Ctrl-C ends it. On a terminal it is drawn with rich, if that is installed (pip install 'mmpc[cli]');\n"
        "else, and into a pipe, it is printed plainly.",
        "python -m mmpc top /var/lib/things --interval 0.5",
        "0 ended, 1 the store is damaged, 2 it could not be watched",
    )
    parser.add_argument("--once", action="store_true", help="one interval, and no more")
    parser.add_argument(
        "--interval", type=seconds, default=1.0, metavar="SECONDS", help="between two looks (default: %(default)s)"
    )
    parser.add_argument("--count", type=at_least(1), metavar="N", help="end after so many looks")


def _top(options: argparse.Namespace) -> int:
    count = 1 if options.once or options.json else options.count
    looks = _looks(options.path, options.interval, count)
    if options.json:
        before, after = next(looks)
        print(json.dumps(figures(os.path.abspath(options.path), before, after)))
        return DONE
    try:
        live = _rich() if sys.stdout.isatty() and not options.once and os.environ.get("TERM") != "dumb" else None
        if live is not None:
            live(options.path, looks)
        else:
            _plain(options.path, looks, count == 1)
    except KeyboardInterrupt:  # that is how it is ended
        if count is not None:
            raise
    return DONE


def _looks(path: str, interval: float, count: int | None) -> Iterator[tuple[gather.Moment, gather.Moment]]:
    """Two moments each, `interval` seconds apart; the first pair comes a little earlier."""
    before, done = gather.moment(path), 0
    time.sleep(min(interval, 0.5) if count != 1 else interval)
    while count is None or done < count:
        after = gather.moment(path)
        yield before, after
        before, done = after, done + 1
        if count is None or done < count:
            time.sleep(interval)


# ---- what is shown


def figures(path: str, before: gather.Moment, after: gather.Moment) -> dict[str, Any]:
    """One look as an object: rates per second, as docs/cli.md lists them."""
    taken, live = gather.filled(after.segments)
    return {
        "path": path,
        "seconds": after.time - before.time,
        "operations": after.operations(before),
        "conflicts": after.conflicts(before),
        "gets": after.counted(before, "cache_hits", "cache_misses"),
        "gets_cached": after.counted(before, "cache_hits"),
        "written": after.rate(before, "log_taken"),
        "flushes": after.rate(before, "flushes"),
        "flushes_shared": after.rate(before, "shared"),
        "flush_seconds": after.globals["flush_time"] / 1e9,
        "cleaned": after.rate(before, "cleaned"),
        "moved": after.rate(before, "moved"),
        "reaped": after.globals["reaped"],
        "helped": after.globals["helped"],
        "snapshots": after.globals["snapshots"],
        "epoch": after.globals["epoch"],
        "durable": after.stable,
        "failed": after.globals["failed"],
        "pages": after.globals["max_pid"],
        "log": {"taken": taken, "live": live, "share": live / taken if taken else None}
        | {"waiting": sum(s.size for s in after.segments if s.state == "retired")},
        "latencies": [t.as_dict() for t in after.latencies(before)],
        "segments": [{"number": s.number, "state": s.state, "share": s.share} for s in after.segments],
        "processes": [_process(r, before, after) for r in after.readers],
    }


def _process(r: Any, before: gather.Moment, after: gather.Moment) -> dict[str, Any]:
    held = r.oldest is not None
    return {
        "slot": r.slot,
        "process": r.process,
        "alive": r.alive,
        "attached": max(0.0, time.time() - r.since),
        "operations": after.operations(before, r.slot),
        "lag": max(0, after.globals["epoch"] - r.oldest) if held else 0,
        "held": r.held,
        "pins": r.pins,
        "views": len(r.views),
        "delays": r.delays,
    }


def blocks(
    f: dict[str, Any], segments: list[gather.Segment], width: int, full: bool, height: int | None = None
) -> list[Block]:
    """One look as blocks of lines. `height`: lines that there are room for, with two for each block; where that is too
    few, processes that do least and latencies of what is rare are left out.
    """
    activity, segment_strip = ("activity", _activity(f)), _strip(f, segments, width, full)
    processes, times = min(MOST_PROCESSES, len(f["processes"])), len(f["latencies"])
    if height is not None:
        room = height - sum(FRAME + len(lines) for _name, lines in (activity, segment_strip)) - FRAME - 1
        if processes + (processes < len(f["processes"])) > room:
            processes = max(1, room - 1)
        room -= processes + (processes < len(f["processes"]))
        times = min(times, max(0, room - FRAME - 1))
    timed = [_latencies(f, times)] if times else []
    return [activity, *timed, segment_strip, _processes(f, processes)]


def _activity(f: dict[str, Any]) -> list[Line]:
    lag = max(0, f["epoch"] - 1 - f["durable"])
    shown: list[Line] = []
    if f["failed"]:
        shown.append(
            [(f"a sync FAILED ({os.strerror(f['failed'])}): close the store everywhere, and open it again", "bold red")]
        )
    shown += [
        _pairs(
            ("operations", f"{show.number(f['operations'])}/s", "bold green"),
            (
                "conflicts",
                f"{show.number(f['conflicts'])}/s",
                "yellow" if f["conflicts"] > f["operations"] / 10 else "",
            ),
            ("written", f"{show.size(f['written'])}/s", "bold"),
        ),
        *_gets(f),
        _pairs(
            ("flushes", f"{f['flushes']:.1f}/s", "bold"),
            ("each about", show.brief(f["flush_seconds"]) if f["flush_seconds"] else "-", ""),
            ("shared", f"{f['flushes_shared']:.1f}/s", ""),
        ),
        _pairs(
            ("epoch", show.number(f["epoch"]), ""),
            ("durable", show.number(f["durable"]), ""),
            ("behind", str(lag), "yellow" if lag > 1 else "green"),
        ),
        _pairs(
            ("cleaning", f"{f['cleaned']:.1f} segs/s", "bold" if f["cleaned"] else ""),
            ("moved", f"{show.size(f['moved'])}/s", ""),
            ("snapshots", show.number(f["snapshots"]), ""),
        ),
        _pairs(
            ("kills healed", show.number(f["reaped"]), "magenta" if f["reaped"] else ""),
            ("helped others", show.number(f["helped"]), ""),
            ("page ids", show.number(f["pages"]), ""),
        ),
    ]
    return shown


def _gets(f: dict[str, Any]) -> list[Line]:
    """Gets are known where the store keeps metrics."""
    if f["gets"] is None:
        return []
    hits = show.share(f["gets_cached"], f["gets"])
    return [_pairs(("gets", f"{show.number(f['gets'])}/s", "bold green"), ("from the cache", hits, ""))]


def _latencies(f: dict[str, Any], most: int) -> Block:
    """Of what was done most often, in the order in which it is given."""
    often = sorted(f["latencies"], key=lambda t: -t["count"])[:most]
    head = f"{'':>10} {'calls':>12} {'median':>9} {'p90':>9} {'p99':>9} {'p99.9':>9}"
    lines: list[Line] = [[(head, "dim")]]
    for t in (t for t in f["latencies"] if t in often):
        rate = f"{show.number(t['count'] / f['seconds'])}/s"
        times = [show.brief(t[name]) for name in ("p50", "p90", "p99", "p999")]
        lines.append(
            [(f"{t['name']:>10} {rate:>12} ", ""), (f"{times[0]:>9}", "bold"), *((f" {x:>9}", "") for x in times[1:])]
        )
    return "latencies in this interval", lines


def _pairs(*pairs: tuple[str, str, str]) -> Line:
    """Three names and values, in columns that a terminal of 80 has room for."""
    line: Line = []
    for (name, value, style), width in zip(pairs, (12, 14, 9), strict=False):
        line += [(f"{name:>{width}} ", "dim"), (value.ljust(12), style)]
    return line


def _strip(f: dict[str, Any], segments: list[gather.Segment], width: int, full: bool) -> Block:
    lines, each = strip.strip(segments, width, STRIP_ROWS, full)
    log = f["log"]
    group = "" if each == 1 else f", {each} in a cell"
    live = f"{show.size(log['live'])} live of {show.size(log['taken'])} ({show.share(log['live'], log['taken'])})"
    live += f", {show.size(log['waiting'])} empty waits for readers" if log["waiting"] else ""
    legend: Line = [(strip.LEGEND, "dim")]
    title = f"{show.count(len(segments), 'segment')}{group}: {live}"
    return title, [*([(c, s) for c, s in line] for line in lines), legend]


def _processes(f: dict[str, Any], most: int) -> Block:
    rows = sorted(f["processes"], key=lambda p: (p["alive"], -p["lag"], -p["operations"], p["slot"]))
    head = f"{'slot':>5} {'process':>8} {'attached':>10} {'published':>12} {'lag':>7} {'held':>9}"
    head += f" {'views':>6} {'delays':>10}"
    lines: list[Line] = [[(head, "dim")]]
    for p in rows[:most]:
        style = "red" if not p["alive"] else "yellow" if p["held"] > 10 else ""
        lag = f"{p['lag']}" if p["pins"] or p["lag"] else "-"
        held = show.span(p["held"]) if p["held"] else "-"
        delays = show.size(p["delays"]) if p["delays"] else "-"
        rate = f"{show.number(p['operations'])}/s" if p["alive"] else "dead"
        text = f"{p['slot']:>5} {p['process']:>8} {show.span(p['attached']):>10} {rate:>12} {lag:>7} {held:>9}"
        lines.append([(f"{text} {p['views']:>6} {delays:>10}", style)])
    if len(rows) > most:
        lines.append([(f"and {len(rows) - most} more", "dim")])
    alive = sum(p["alive"] for p in f["processes"])
    return f"{alive} process{'' if alive == 1 else 'es'}; lag in epochs behind the newest", lines


# ---- how it is shown


def _title(path: str) -> str:
    return f"mmpc top  {os.path.abspath(path)}  {time.strftime('%H:%M:%S')}"


def _plain(path: str, looks: Iterator[tuple[gather.Moment, gather.Moment]], once: bool) -> None:
    coloured, full = show.colours(sys.stdout), show.unicode(sys.stdout)
    clear = sys.stdout.isatty() and not once and os.environ.get("TERM") != "dumb"
    for before, after in looks:
        terminal = shutil.get_terminal_size((WIDTH, 24))
        width = terminal.columns - 2 if sys.stdout.isatty() else WIDTH
        height = terminal.lines - 2 if clear else None
        lines = [_title(path)]
        for name, block in blocks(figures(path, before, after), after.segments, max(20, width), full, height):
            lines += [show.line([(name, "bold")], coloured), *(" " + show.line(line, coloured) for line in block)]
        print(("\033[H\033[2J" if clear else "") + "\n".join(line.rstrip() for line in lines), flush=True)


def _rich() -> Any:
    """The live screen of rich, or None where that is not installed."""
    try:
        from rich.live import Live
    except ImportError:
        return None

    def run(path: str, looks: Iterator[tuple[gather.Moment, gather.Moment]]) -> None:
        from rich.console import Console

        console = Console()
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for before, after in looks:
                live.update(screen(path, before, after, console.width, console.height), refresh=True)

    return run


def screen(path: str, before: gather.Moment, after: gather.Moment, width: int, height: int) -> Any:
    """One look as something that rich draws."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    found = blocks(figures(path, before, after), after.segments, max(20, width - 4), True, height - 2)
    panels = []
    for name, block in found:
        text = Text("\n").join(Text.assemble(*[(part, style) for part, style in line if part]) for line in block)
        text.no_wrap = True
        panels.append(Panel(text, title=Text(name), title_align="left", border_style="blue"))
    return Group(Text(_title(path), style="bold"), *panels, Text("Ctrl-C ends", style="dim"))
