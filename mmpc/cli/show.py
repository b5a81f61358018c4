"""How figures are shown: sizes, times, tables, colours on a terminal, the progress bar."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

RIGHT = frozenset("0123456789")
CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
FILLS, PLAIN_FILLS = " ▁▂▃▄▅▆▇█", "0123456789"


def size(n: float) -> str:
    """Bytes, in decimal units: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 999.95 or (unit == "B" and abs(n) < 1000):
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} TB"


def number(n: float) -> str:
    """A count: `12 345`, with a thin group separator that a terminal shows as a space."""
    return f"{n:,.0f}".replace(",", " ")


def count(n: int, thing: str) -> str:
    """So many things: `1 segment`, `12 345 segments`."""
    return f"{number(n)} {thing}{'' if n == 1 else 's'}"


def share(part: float, whole: float) -> str:
    """A percentage, or `-` of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def span(seconds: float) -> str:
    """A time that has passed: `4.2 s`, `3.1 h`."""
    seconds = max(seconds, 0.0)
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def brief(seconds: float) -> str:
    """A latency: `850 ns`, `12.3 us`, `4.1 ms`."""
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def when(nanoseconds: int) -> str:
    """A time since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9)) if nanoseconds else "unknown"


def colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that is to show colours: https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def unicode(stream: TextIO) -> bool:
    """Whether a stream takes the block characters of the strip."""
    try:
        FILLS.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def paint(text: str, style: str) -> str:
    """The text between the escape sequences of a style: names of CODES, joined by spaces."""
    codes = ";".join(CODES[name] for name in style.split())
    return f"\033[{codes}m{text}\033[0m" if codes else text


def line(spans: Sequence[tuple[str, str]], coloured: bool) -> str:
    """Spans of (text, style) as one line."""
    return "".join(paint(text, style) if coloured else text for text, style in spans).rstrip()


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need to be; those of numbers and sizes to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) if cells else len(name) for i, name in enumerate(head)]
    right = [all(row[i][:1] in RIGHT or row[i] in ("-", "") for row in cells) for i in range(len(head))]

    def laid(row: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()

    return "\n".join([laid(head), *map(laid, cells)])


class Bar:
    """A progress bar on stderr, if that is a terminal and the work lasts longer than a second. `unit`: what is counted;
    without one it is bytes.
    """

    WIDTH = 40

    def __init__(self, what: str, unit: str = "") -> None:
        self._what, self._unit, self._begun, self._drawn = what, unit, time.monotonic(), 0.0
        self._on = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._on or now - self._begun < 1 or now - self._drawn < 0.1:
            return
        self._drawn = now
        part = min(1.0, done / total) if total else 1.0
        bar = ("#" * round(part * self.WIDTH)).ljust(self.WIDTH, ".")
        of = f"{number(total)} {self._unit}" if self._unit else f"{total / 1e6:.0f} MB"
        sys.stderr.write(f"\r{self._what} [{bar}] {part:4.0%} of {of}")
        sys.stderr.flush()

    def __enter__(self) -> Callable[[int, int], None]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            sys.stderr.write("\r" + " " * (self.WIDTH + 40) + "\r")
