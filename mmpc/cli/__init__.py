"""The command line: `python -m mmpc COMMAND PATH`, or `mmpc COMMAND PATH`. docs/cli.md says what each command shows.

Reading order: `frame` (arguments, exit statuses, how errors are told), `show` (sizes, tables, colours, the progress
bar), `gather` (the figures of a store, read from its files); then a module for each command or a few. A command
module has an `add` that describes its arguments, and a function that carries it out and returns the exit status.

Modules that are not always there (rich, matplotlib), or slow to import (numpy), are imported where they are needed.
"""

from __future__ import annotations

from . import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# The module of each command, in the order of `mmpc --help`.
COMMANDS = {
    "stat": "stat",
    "top": "top",
    "segments": "segments",
    "readers": "readers",
    "page": "page",
    "check": "care",
    "gc": "care",
    "backup": "care",
    "dump": "dump",
    "load": "load",
    "bench": "bench",
    "viz": "viz",
    "doctor": "doctor",
    "demo": "demo",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return frame.run(COMMANDS, arguments)
