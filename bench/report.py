"""What a run leaves: a table for people, JSON for scripts, and where it was measured."""

import importlib.metadata
import os
import platform
import sqlite3
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .harness import Figure, Question, Row, Samples, Spread


def cpu_name() -> str:
    """The processor as the kernel calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """The type of the file system that holds a folder."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, point, fstype = line.split()[:3]
        if Path(point) in (folder, *folder.parents) and len(point) >= len(best):
            best, kind = point, fstype
    return kind


def version(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit(folder: Path) -> str | None:
    """The commit of the tree that holds a folder, `-dirty` if it has been changed since; None if it has no
    commit."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def machine(folder: Path) -> dict[str, Any]:
    """The machine, the file system of the stores, and the versions of everything measured."""
    packages = {name: version(name) for name in ("mmpc", "msgpack", "numpy", "cffi", "lmdb")}
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "file_system": file_system(folder),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {**packages, "sqlite": sqlite3.sqlite_version},
        "commit": commit(Path.cwd()),
        "command": sys.argv[1:],
    }


def row_result(row: Row, samples: Samples) -> dict[str, Any]:
    """A row as JSON: its spread, or nothing if it was not measured."""
    taken = samples.get(row.name)
    return {"name": row.name, "unit": row.unit, **(asdict(Spread.of(taken)) if taken else {})}


def figure_result(figure: Figure, samples: Samples) -> dict[str, Any]:
    """A figure as JSON; `missed` says whether it misses its bar, None if it has none or was not measured."""
    values = figure.values(samples)
    spread = Spread.of(values) if values else None
    missed = None if spread is None or not figure.bar() else not figure.reached(spread.median)
    return {"name": figure.name, "bar": figure.bar(), "missed": missed, **(asdict(spread) if spread else {})}


def question_result(question: Question, samples: Samples) -> dict[str, Any]:
    """A question as JSON."""
    return {
        "title": question.title,
        "rows": [row_result(row, samples) for row in question.rows],
        "figures": [figure_result(figure, samples) for figure in question.figures],
        **({"series": _rounded(question)} if question.series else {}),
    }


def _rounded(question: Question) -> dict[str, Any]:
    return {
        name: {"columns": columns, "values": [[round(x, 3) for x in values] for values in series]}
        for name, (columns, series) in question.series.items()
    }


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(result: dict[str, Any], unit: str, verdict: str) -> str:
    """One line of the table."""
    if "median" not in result:
        return f"  {result['name']:<62} not installed"
    spread = f"[{number(result['p10'])} .. {number(result['p90'])}]"
    return f"  {result['name']:<62} {number(result['median']):>8} {unit:<4}{spread:<20} {verdict}".rstrip()


def verdict(figure: dict[str, Any]) -> str:
    """The bar and whether it was reached."""
    if not figure["bar"]:
        return ""
    return (
        f"{figure['bar']:<8} {'MISSED' if figure['missed'] else 'ok'}"
        if "median" in figure
        else figure["bar"]
    )


def table(result: dict[str, Any]) -> str:
    """A question as text: rows, then figures, each with median and [p10 .. p90] of the rounds."""
    rounds = max((row.get("count", 0) for row in result["rows"]), default=0)
    lines = [f"{result['title']}  ({rounds} rounds: median [p10 .. p90])"]
    lines += [line(row, row["unit"], "") for row in result["rows"]]
    lines += ["  " + "-" * 62]
    lines += [line(figure, "", verdict(figure)) for figure in result["figures"]]
    return "\n".join(lines)
