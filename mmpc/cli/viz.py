"""viz: SVG pictures of a store: the map of its segments, live data and garbage by age and over time, chain lengths,
latencies.

Each picture shows what was read for it and nothing else: what is sampled says so, and what is not known has no picture.
"""

from __future__ import annotations

import json
import os
import time

from .._layout import ADDRESS_MASK, RECORD, WORDS_OFFSET, words
from . import gather, show
from .frame import DONE, Refused, at_least, command, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any

LIVE, GARBAGE, FREE, OPEN, LEAVING = "#2a7f9e", "#d98032", "#e6e6e6", "#5b4b9a", "#b5476d"
INK, FAINT = "#222222", "#777777"
MOST_SQUARES = 5000
_NAMES = ("segments", "age", "time", "chains", "latencies")
_LINES = ("#2a7f9e", "#d98032", "#5b4b9a", "#5a8f3c", "#b5476d", "#8a6d3b")


def add(commands: Any) -> None:
    """Describes the command."""
    parser = command(
        commands,
        "viz",
        _viz,
        "draw SVG pictures: segment map, live data and garbage, chains, latencies",
        "Draws pictures of a store into --out: 'segments' (the map of the log: what of each segment is live),\n"
        "'age' (live data and garbage by when their segments were opened), 'chains' (how many fragments pages\n"
        "have), 'latencies' (how long things took since the metrics began) and, with --seconds, 'time' (live\n"
        "data and garbage while others work, sampled). It needs matplotlib: pip install 'mmpc[viz]'. It only\n"
        "reads.",
        "python -m mmpc viz /var/lib/things --out pictures --seconds 30",
        "0 drawn, 1 the store is damaged, 2 it could not be done",
    )
    parser.add_argument(
        "--out", metavar="DIR", default=".", help="where the pictures go (default: the current directory)"
    )
    parser.add_argument("--only", action="append", choices=_NAMES, help="only this picture; may be given again")
    parser.add_argument("--seconds", type=seconds, metavar="N", help="watch for so long, for the picture 'time'")
    parser.add_argument(
        "--pages",
        type=at_least(1),
        default=50_000,
        metavar="N",
        help="of 'chains', look at so many at most (default: %(default)s)",
    )


def _viz(options: argparse.Namespace) -> int:
    plan: dict[str, Callable[[argparse.Namespace], Any]] = {
        "segments": _segments,
        "age": _age,
        "time": _time,
        "chains": _chains,
        "latencies": _latencies,
    }
    chosen = [n for n in plan if (n in options.only if options.only else n != "time" or options.seconds)]
    if "time" in chosen and not options.seconds:
        raise Refused("the picture 'time' needs --seconds N: what was in the past is not recorded")
    gather.figures(options.path)  # what is wrong with the store is said before anything is imported, or made
    _matplotlib()
    os.makedirs(options.out, exist_ok=True)
    drawn, left = {}, {}
    for name in chosen:
        figure = plan[name](options)
        if isinstance(figure, str):
            left[name] = figure
            continue
        drawn[name] = os.path.join(options.out, f"mmpc-{name}.svg")
        figure.savefig(drawn[name], format="svg", metadata={"Date": None, "Creator": "mmpc viz"})
    if options.json:
        print(json.dumps({"path": os.path.abspath(options.path), "pictures": drawn, "left_out": left}))
    else:
        for name, file in drawn.items():
            print(f"{name}: {file}")
        for name, why in left.items():
            print(f"{name}: left out: {why}")
    return DONE


def _matplotlib() -> None:
    try:
        import matplotlib
    except ImportError:
        raise Refused("pictures need matplotlib: pip install 'mmpc[viz]'") from None
    matplotlib.use("svg", force=True)
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "mmpc",
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": FAINT,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "figure.facecolor": "white",
        }
    )


def _figure(title: str, below: str, width: float = 9.0, height: float = 4.6) -> tuple[Any, Any]:
    """A figure with a title, a line below it that says what was read, and axes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=24)
    axes.text(0, 1.02, below, transform=axes.transAxes, fontsize=9, color=FAINT, va="bottom")
    return figure, axes


def _unit(most: float) -> tuple[float, str]:
    """A unit for sizes up to `most`: its bytes, and its name."""
    for length, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= length:
            return length, name
    return 1.0, "bytes"


def _named(path: str) -> str:
    return os.path.basename(os.path.abspath(path)) or path


# ---- the map of the segments


def _segments(options: argparse.Namespace) -> Any:
    with gather.Store(options.path) as store:
        found, current = store.segments(disk=False), store.current
    if not found:
        return "the log has no segments yet"
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Patch

    columns = max(8, round((len(found) * 2.2) ** 0.5))
    rows = -(-len(found) // columns)
    taken, live = gather.filled(found)
    said = f"{_named(options.path)}: {show.count(len(found), 'segment')} of {show.size(found[0].size)}; "
    said += f"{show.size(live)} live of {show.size(taken)} in use"
    if not current:
        said += "; live as the newest snapshot says"
    figure, axes = _figure("Segments of the log, by live share", said, height=max(2.6, 1.8 + 7.0 * rows / columns))
    colours = LinearSegmentedColormap.from_list("live", [GARBAGE, "#f2d9b0", "#9cc9d6", LIVE])
    _cells(axes, [_colour(s, colours) for s in found], columns)
    axes.set_xlim(-0.1, columns)
    axes.set_ylim(rows, -0.1)
    axes.set_aspect("equal", anchor="NW")
    places = range(0, columns, max(1, columns // 8))
    axes.set_xticks([c + 0.46 for c in places], [f"+{c}" for c in places])
    axes.set_xlabel("segment number = number of the row + column")
    axes.set_yticks(
        [r + 0.46 for r in range(0, rows, max(1, rows // 8))],
        [str(r * columns) for r in range(0, rows, max(1, rows // 8))],
    )
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=axes, fraction=0.03, pad=0.02, panchor=False)
    bar.set_label("live share")
    bar.ax.yaxis.set_major_formatter(lambda x, _pos: f"{100 * x:.0f} %")
    bar.outline.set_visible(False)
    kinds = {s.state for s in found}
    patches = [
        (OPEN, "written to now", {"open"}),
        (LEAVING, "being emptied, or waits for readers", {"claimed", "retired", "punching"}),
    ]
    patches += [(FREE, "free, or a hole", {"free", "hole", "preparing"})]
    handles = [Patch(color=colour, label=label) for colour, label, states in patches if states & kinds]
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return figure


def _cells(axes: Any, colours: list[Any], columns: int) -> None:
    """A square for each; of very many a grid of pixels, which stays small as a file."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    if len(colours) <= MOST_SQUARES:
        for i, colour in enumerate(colours):
            axes.add_patch(Rectangle((i % columns, i // columns), 0.92, 0.92, facecolor=colour, linewidth=0))
        return
    rows = -(-len(colours) // columns)
    pixels = [to_rgba(colour) for colour in colours] + [to_rgba("white")] * (rows * columns - len(colours))
    grid = [pixels[i : i + columns] for i in range(0, len(pixels), columns)]
    axes.imshow(grid, interpolation="nearest", extent=(0, columns, rows, 0))


def _colour(s: gather.Segment, colours: Callable[[float], Any]) -> Any:
    if s.state in ("claimed", "retired", "punching"):
        return LEAVING
    if not s.used:
        return FREE
    if s.state == "open":
        return OPEN
    return colours(min(1.0, s.live / (s.taken if s.taken else s.size)))


# ---- live data and garbage


def _age(options: argparse.Namespace) -> Any:
    """Segments in use, from the oldest to the newest."""
    with gather.Store(options.path) as store:
        used = sorted((s for s in store.segments(disk=False) if s.used), key=lambda s: (s.opened, s.number))
        current, epoch = store.current, store.word("epoch")
    if not used:
        return "nothing is in use"
    if not current:
        return "how much of each segment was taken is known once the store was opened on this machine"
    groups = _grouped(used, 60)
    bars = [gather.filled(g) for g in groups]
    length, unit = _unit(max(taken for taken, _live in bars))
    live, waste = [live / length for _taken, live in bars], [(taken - live) / length for taken, live in bars]
    most, total = gather.filled(used)
    each = f"{len(groups[0])} segments a bar, " if len(groups) < len(used) else ""
    since = f"{used[0].opened} to {used[-1].opened}" if used[0].opened != used[-1].opened else f"{used[0].opened}"
    said = f"{_named(options.path)}: {show.count(len(used), 'segment')} in use, {each}opened in epoch {since} "
    said += f"(now {epoch}); {show.share(total, most)} live"
    figure, axes = _figure("Live data and garbage, from the oldest segments to the newest", said)
    places = range(len(groups))
    axes.bar(places, live, width=0.9, color=LIVE, label="live")
    axes.bar(places, waste, width=0.9, bottom=live, color=GARBAGE, label="garbage")
    axes.set_ylabel(f"{unit} of the log")
    axes.set_xlabel(
        f"epoch in which the {'segment' if len(groups) == len(used) else 'first segment of the bar'} was opened"
    )
    ticks = sorted({round(i * (len(groups) - 1) / 8) for i in range(9)}) if len(groups) > 1 else [0]
    axes.set_xticks(ticks, [str(groups[i][0].opened) for i in ticks])
    axes.set_xlim(-0.7, len(groups) - 0.3)
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return figure


def _grouped(segments: list[gather.Segment], most: int) -> list[list[gather.Segment]]:
    each = -(-len(segments) // most)
    return [segments[i : i + each] for i in range(0, len(segments), each)]


def _time(options: argparse.Namespace) -> Any:
    """Sampled while others work."""
    samples = list(_sampled(options.path, options.seconds))
    times = [s[0] for s in samples]
    length, unit = _unit(max(s[2] + s[3] for s in samples))
    rate = show.number(samples[-1][4])
    said = (
        f"{_named(options.path)}: {len(samples)} samples in {times[-1]:.0f} s; {rate} operations per second on average"
    )
    figure, axes = _figure("Live data and garbage over time", said)
    live = [s[1] / length for s in samples]
    waste = [(s[2] - s[1]) / length for s in samples]
    waiting = [s[3] / length for s in samples]
    labels = ["live", "garbage", "empty, waits for readers"]
    axes.stackplot(times, live, waste, waiting, colors=[LIVE, GARBAGE, LEAVING], labels=labels, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, times[-1])
    axes.set_xlabel("seconds since the first sample")
    axes.set_ylabel(f"{unit} of the log in use")
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
    return figure


def _sampled(path: str, length: float) -> Iterator[tuple[float, int, int, int, float]]:
    """(seconds, live, taken, empty, operations per second since the first), about two hundred times at most."""
    first, step = gather.moment(path), max(0.02, length / 200)
    now, done = first, False
    with show.Bar("watching", "s") as bar:
        while True:
            taken, live = gather.filled(now.segments)
            empty = sum(s.size for s in now.segments if s.state == "retired")
            yield now.time - first.time, live, taken, empty, now.operations(first)
            bar(round(now.time - first.time), round(length))
            if done:
                return
            done = now.time - first.time + step >= length
            time.sleep(step)
            now = gather.moment(path)


# ---- chains


def _chains(options: argparse.Namespace) -> Any:
    depths, looked, there = _depths(options.path, options.pages)
    if depths is None:
        return "the pages of a store are known once it was opened on this machine"
    if not depths:
        return "there are no pages"
    from matplotlib.ticker import MaxNLocator

    total = sum(depths.values())
    mean = sum(d * n for d, n in depths.items()) / total
    every = "all" if looked == there else f"{show.number(looked)}, evenly spread, of"
    said = f"{_named(options.path)}: {every} {show.number(there)} page ids; {show.number(total)} pages in use, "
    said += f"{mean:.1f} fragments on average, {max(depths)} at most"
    figure, axes = _figure("Chain lengths", said)
    axes.bar(list(depths), list(depths.values()), width=0.85, color=LIVE)
    axes.set_yscale("log" if max(depths.values()) > 200 * min(depths.values()) else "linear")
    axes.set_xlim(0.2, max(depths) + 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(lambda x, _pos: show.number(x) if x >= 1 else "")
    if axes.get_yscale() == "log":
        axes.set_ylim(bottom=0.7)
    axes.set_xlabel("fragments in the page's chain (a long one is consolidated)")
    axes.set_ylabel("pages" + (" (logarithmic)" if axes.get_yscale() == "log" else ""))
    return figure


def _depths(path: str, most: int) -> tuple[dict[int, int] | None, int, int]:
    """Pages by depth of their chain (None: not known), how many ids were looked at, and how many there are."""
    with gather.Store(path) as store:
        if not store.current or "table" not in store.fds:
            return None, 0, 0
        end, found, looked = store.word("max_pid"), dict[int, int](), 0
        stride = max(1, -(-end // most))
        with show.Bar("looking at chains", "pages") as bar:
            for first in range(0, end, 65536):
                heads = words(os.pread(store.fds["table"], 8 * min(65536, end - first), WORDS_OFFSET + 8 * first))
                for i in range(-first % stride, len(heads), stride):
                    looked += 1
                    if heads[i]:
                        depth = _depth(store.fds["log"], (heads[i] & ADDRESS_MASK) << 3, first + i)
                        if depth:
                            found[depth] = found.get(depth, 0) + 1
                bar(first, end)
        return dict(sorted(found.items())), looked, end


def _depth(log: int, address: int, pid: int) -> int:
    """Of the newest record of a page; 0 for a free page, or where it was moved meanwhile."""
    data = os.pread(log, RECORD.size, address)
    if len(data) < RECORD.size:
        return 0
    _sum, shape, page_colour, _version, _prev = RECORD.unpack(data)
    same = page_colour & (1 << 40) - 1 == pid
    return shape >> 32 & 255 if same and shape >> 40 & 7 in (1, 2) else 0


# ---- latencies


def _latencies(options: argparse.Namespace) -> Any:
    """Of all that was timed since the metrics began, by all processes."""
    found = gather.metrics(os.path.abspath(options.path))
    if found is None:
        return "the store keeps no metrics now; they begin with the next recovery"
    timed = [t for t in (gather.Latency(found.histograms[name]) for name in gather.LATENCIES) if t.count]
    if not timed:
        return "nothing was timed yet"
    from matplotlib.ticker import FuncFormatter, NullFormatter

    timed = sorted(timed, key=lambda t: -t.count)[: len(_LINES)]
    age = show.span(time.time() - found.since)
    said = f"{_named(options.path)}: what all processes did in the last {age}; median and 99th percentile in the legend"
    figure, axes = _figure("How long things take", said)
    for t, colour in zip(timed, _LINES, strict=False):
        label = (
            f"{t.name}: {show.brief(t.percentile(50))}, {show.brief(t.percentile(99))} ({show.number(t.count)} calls)"
        )
        edges, shares = _steps(t)
        axes.stairs(shares, edges, color=colour, linewidth=1.6, label=label)
        axes.stairs(shares, edges, color=colour, alpha=0.12, fill=True)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _pos: show.brief(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _pos: f"{y:g} %"))
    axes.set_xlabel("time (logarithmic; a step is an eighth of a doubling)")
    axes.set_ylabel("calls in each step")
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return figure


def _steps(t: gather.Latency) -> tuple[list[float], list[float]]:
    """Edges of steps in seconds, and the percentage in each; where nothing was seen there is a step of 0."""
    edges, shares = [max(t.buckets[0][0], 1) / 1e9], list[float]()
    for low, high, n in t.buckets:
        if low / 1e9 > edges[-1]:
            edges.append(low / 1e9)
            shares.append(0.0)
        edges.append(high / 1e9)
        shares.append(100 * n / t.count)
    return edges, shares
