"""Series over time as a picture, if matplotlib is there (extra `bench`)."""

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> Path | None:
    """An SVG with a panel for each series of a result: its first column to the right, the others upwards, those of one
    unit on one axis. None: the result has none, or nobody can draw.
    """
    series = result.get("series")
    if not series:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 3 * len(series)), layout="constrained")
    for axes, (name, one) in zip(figure.subplots(len(series), squeeze=False)[:, 0], series.items(), strict=True):
        columns, values = one["columns"], one["values"]
        times = [row[0] for row in values]
        for i in (1, 2):
            axes.plot(times, [row[i] for row in values], label=columns[i])
        axes.set_title(name, loc="left", fontsize="medium")
        axes.set_xlabel(columns[0])
        axes.set_ylabel("MiB")
        axes.set_ylim(bottom=0)
        other = axes.twinx()
        other.plot(times, [row[3] for row in values], color="grey", linewidth=0.7, label=columns[3])
        other.set_ylabel(columns[3], color="grey")
        other.set_ylim(bottom=0)
        axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path)
    return path
