"""What the demo prints: progress while it works, then the verdict."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from .crew import Tally
from .peer import Duel
from .recount import Verdict
from .search import Answer

FRAMES = 0.08  # seconds between two pictures of the bar
LINES = 1.0  # seconds between two lines of text


class Progress(Protocol):
    """Shows how far a job is. ``step`` may be called as often as one likes."""

    def begin(self, title: str, total: int) -> None: ...
    def step(self, done: int, note: str = "") -> None: ...
    def end(self) -> None: ...


class Silent:
    """Shows nothing: for scripts."""

    def begin(self, title: str, total: int) -> None:
        """Nothing."""

    def step(self, done: int, note: str = "") -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines:
    """A line of plain text a second, and one at the end."""

    def begin(self, title: str, total: int) -> None:
        """Start a job of ``total`` steps."""
        self._title, self._total = title, total
        self._next = time.monotonic() + LINES

    def step(self, done: int, note: str = "") -> None:
        """Print a line, unless there was one a moment ago."""
        now = time.monotonic()
        if now >= self._next or done == self._total:
            self._next = now + LINES
            print(f"{self._title:<12}{done:>7,} of {self._total:,}  {note}".rstrip(), flush=True)

    def end(self) -> None:
        """Nothing more to say."""


class Bar:
    """A bar, drawn by rich. It has no thread of its own: the process that shows it forks workers."""

    def begin(self, title: str, total: int) -> None:
        """Draw an empty bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = [
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ]
        self._bar = RichProgress(
            *columns,
            TextColumn("{task.fields[note]}"),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(title, total=total, note="")
        self._drawn = 0.0
        self._bar.start()

    def step(self, done: int, note: str = "") -> None:
        """Redraw the bar, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._drawn >= FRAMES:
            self._drawn = now
            self._bar.update(self._task, completed=done, note=note)
            self._bar.refresh()

    def end(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def progress(*, silent: bool) -> Progress:
    """The bar on a terminal if rich is installed, else lines; nothing if ``silent``."""
    if silent:
        return Silent()
    return Bar() if sys.stdout.isatty() and find_spec("rich") else Lines()


def summary(verdict: Verdict, tally: Tally | None) -> dict[str, Any]:
    """Verdict, and what the parent saw if there was a job, as one flat mapping for ``--json``."""
    facts: dict[str, Any] = {
        "files": verdict.files,
        "words": verdict.words,
        "postings": verdict.postings,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "torn": verdict.torn,
        "orphan_pages": verdict.orphans,
        "examples": verdict.examples,
    }
    if tally is not None:
        facts |= {
            "workers": tally.workers,
            "killed": tally.killed,
            "interrupted": tally.interrupted,
            "crashed": tally.crashed,
            "files_written": tally.files,
            "postings_written": tally.postings,
            "seconds": round(tally.seconds, 3),
            "postings_per_second": round(tally.postings / tally.seconds),
            "seconds_counting": round(tally.counting_ns / 1e9, 3),
            "seconds_writing": round(tally.writing_ns / 1e9, 3),
        }
    return facts


def show_verdict(facts: dict[str, Any]) -> None:
    """Print a summary as a person likes to read it."""
    size, postings = facts["bytes_on_disk"], facts["postings"]
    rows = [
        ("files", f"{facts['files']:,}", f"{facts['words']:,} different words"),
        ("postings", f"{postings:,}", _speed(facts) if "seconds" in facts else ""),
        ("on disk", f"{size / 1e6:,.1f} MB", f"{size / max(postings, 1):,.0f} bytes a posting"),
    ]
    if "workers" in facts:
        rows.insert(2, ("workers", f"{facts['workers']:,}", _crew(facts)))
    if facts["orphan_pages"]:
        rows.append(
            ("orphans", f"{facts['orphan_pages']:,}", "pages whose worker died before it linked them")
        )
    rows.append(("", "", ""))
    rows += [(name, f"{facts[name]:,}", "") for name in ("lost", "duplicated", "torn")]
    print()
    for name, figure, remark in rows:
        print(f"  {name:<12}{figure:>12}   {remark}".rstrip())
    print()
    for example in facts["examples"]:
        print(f"  {example}")
    print(_coloured(_conclusion(facts), good=facts["ok"]))


def _speed(facts: dict[str, Any]) -> str:
    busy = facts["seconds_counting"] + facts["seconds_writing"]
    share = facts["seconds_writing"] / busy if busy else 0.0
    return (
        f"{facts['postings_per_second']:,} a second, {facts['seconds']:.1f} s, {share:.0%} of it in the store"
    )


def _crew(facts: dict[str, Any]) -> str:
    parts = [f"{facts['killed']:,} killed and replaced"]
    if facts["interrupted"]:
        parts.append(f"{facts['interrupted']:,} files done again")
    if facts["crashed"]:
        parts.append(f"{len(facts['crashed'])} crashed ({', '.join(sorted(set(facts['crashed'])))})")
    return ", ".join(parts)


def _conclusion(facts: dict[str, Any]) -> str:
    recounted = f"recounted from the sources in {facts['seconds_recounting']:.1f} s by one process"
    if facts["ok"]:
        return f"  Every posting is there, once. ({recounted})"
    if facts.get("crashed"):
        return f"  Workers crashed that nobody killed. ({recounted})"
    return f"  The index is wrong. ({recounted})"


def _coloured(text: str, *, good: bool) -> str:
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\033[{32 if good else 31}m{text}\033[0m"


def show_duels(duels: Sequence[Duel]) -> None:
    """Print the comparison."""
    print(f"\n  {'postings a second':<19}{'mmpc':>12}{'lmdb':>12}{'ratio':>9}{'on disk':>22}")
    for duel in duels:
        title = f"{duel.workers} worker{'s' if duel.workers > 1 else ''}"
        sizes = f"{duel.mmpc_bytes / 1e6:,.0f} and {duel.lmdb_bytes / 1e6:,.0f} MB"
        print(f"  {title:<19}{duel.mmpc_rate:>12,.0f}{duel.lmdb_rate:>12,.0f}{duel.ratio:>7.2f} x{sizes:>22}")
    print(f"\n  Medians of {duels[0].rounds} rounds, in turns, no kills, nothing synced.")


def show_answer(answer: Answer, opened_ms: float, answered_ms: float) -> None:
    """Print what a search found, and how long it took."""
    width = max(5, *map(len, answer.words))
    if answer.best:
        print("  ".join(f"{word:>{width}}" for word in answer.words) + "  file")
    for path, counts in answer.best:
        print("  ".join(f"{count:>{width},}" for count in counts) + f"  {path}")
    each = ", ".join(f"{word}: {files:,}" for word, files in answer.files_with.items())
    more = f", the first {len(answer.best)} shown" if answer.found > len(answer.best) else ""
    files = f"{answer.found:,} file{'' if answer.found == 1 else 's'}"
    print(f"\n{files}{more} ({each}) in {answered_ms:.2f} ms; store opened in {opened_ms:.1f} ms")
