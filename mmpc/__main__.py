"""`python -m mmpc COMMAND PATH`: what can be done with a store from the command line.

A command is a module-level function that adds its arguments, and one that runs it and returns the exit status:
0 if all is well, 1 if the store is damaged, 2 if the command could not be carried out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import mmpc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

SOUND, DAMAGED, IMPOSSIBLE = 0, 1, 2
EXIT_CODES = "exit status: 0 sound (warnings allowed), 1 damage, 2 the store could not be checked"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (mmpc.MmpcError, OSError, ValueError) as error:
        print(f"mmpc: {type(error).__name__}: {error}", file=sys.stderr)
        return IMPOSSIBLE
    except KeyboardInterrupt:
        print("\nmmpc: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmpc", description="Looks after mmpc stores.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_check,):
        add(commands)
    return parser


# ---- check


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="read all of a store, say what is damaged, save what can be saved",
        description="Reads every byte that a store relies on and says what is damaged. Changes nothing; others may\n"
        "use the store meanwhile.",
        epilog=f"example: python -m mmpc check /var/lib/things --salvage /var/lib/things.saved\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("path", metavar="PATH", help="the store's directory")
    check.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    check.add_argument(
        "--salvage",
        metavar="DIR",
        help="write what can be saved into a new store in DIR, which is empty or does not exist; list what cannot",
    )
    check.add_argument("--materializer", metavar="NAME", help="with --salvage, where 'config' is lost: the store's")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    saved = None
    if options.salvage is None:
        with Bar("checking") as bar:
            report = mmpc.verify(options.path, progress=bar)
    else:
        with Bar("salvaging") as bar:
            saved = mmpc.salvage(options.path, options.salvage, materializer=options.materializer, progress=bar)
        report = saved.before
    if options.json:
        found = report.as_dict() | ({} if saved is None else {"salvage": saved.as_dict()})
        print(json.dumps(found))
    else:
        print(report)
        if saved is not None:
            print(saved)
    return SOUND if report.ok else DAMAGED


class Bar:
    """A progress bar on stderr, if that is a terminal and the work lasts longer than a second."""

    WIDTH = 40

    def __init__(self, what: str) -> None:
        self._what, self._begun, self._drawn = what, time.monotonic(), 0.0
        self._on = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._on or now - self._begun < 1 or now - self._drawn < 0.1:
            return
        self._drawn = now
        part = min(1.0, done / total) if total else 1.0
        bar = ("#" * round(part * self.WIDTH)).ljust(self.WIDTH, ".")
        sys.stderr.write(f"\r{self._what} [{bar}] {part:4.0%} of {total / 1e6:.0f} MB")
        sys.stderr.flush()

    def __enter__(self) -> Callable[[int, int], None]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            sys.stderr.write("\r" + " " * (self.WIDTH + 40) + "\r")


if __name__ == "__main__":
    sys.exit(main())
