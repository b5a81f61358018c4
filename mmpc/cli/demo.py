"""demo: hands its arguments to `python -m mmpc.demo`."""

from __future__ import annotations

from .frame import command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


def add(commands: Any) -> None:
    """Describes the command."""
    parser = command(
        commands,
        "demo",
        _demo,
        "index Python's standard library with processes that are killed meanwhile",
        "Runs `python -m mmpc.demo` with all that follows: index, search, check. `mmpc demo index --help` says more.",
        "python -m mmpc demo index --workers 4 --kill-every 0.1",
        "that of the demo: 0 all is well, 1 something was lost, or not found, 2 it could not be done",
        path=None,
        json=False,
        reads_only=False,
    )
    parser.add_argument("arguments", nargs="...", metavar="...", help="for the demo")


def _demo(options: argparse.Namespace) -> int:
    from ..demo.__main__ import main

    return main(options.arguments)
