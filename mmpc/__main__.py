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
    for add in (_add_check, _add_gc, _add_readers, _add_backup):
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


# ---- gc


def _add_gc(commands: Any) -> None:
    gc = _command(
        commands,
        "gc",
        "give back the space that a store can do without",
        "Empties every segment of the log from which space can be gained, and gives all that is free back to the file\n"
        "system. Others may use the store meanwhile: nothing that they read changes, and nobody waits. The store's\n"
        "materializer is not needed.",
        "python -m mmpc gc /var/lib/things",
        "0 done, 1 done but for segments that hold damage, 2 it could not be done",
    )
    gc.set_defaults(run=_gc)


def _gc(options: argparse.Namespace) -> int:
    with Bar("cleaning") as bar:
        report = mmpc.clean(options.path, progress=bar)
    print(json.dumps(report.as_dict()) if options.json else report)
    return DAMAGED if report.damage else SOUND


# ---- readers


def _add_readers(commands: Any) -> None:
    readers = _command(
        commands,
        "readers",
        "say who has a store open, what each holds, and for how long",
        "Lists the processes that have the store open: since when, the oldest epoch that a call or a Tx of each holds\n"
        "and for how long, the segments that views hold, and how many bytes of the log wait for it. It attaches to\n"
        "nothing and needs to read the files, no more.",
        "python -m mmpc readers /var/lib/things --json",
        "0 listed, 2 the store could not be read",
    )
    readers.set_defaults(run=_readers)


def _readers(options: argparse.Namespace) -> int:
    found = mmpc.readers(options.path)
    if options.json:
        print(json.dumps({"path": options.path, "readers": [reader.as_dict() for reader in found]}))
    else:
        print("\n".join(map(str, found)) or "nobody has the store open")
    return SOUND


# ---- backup


def _add_backup(commands: Any) -> None:
    backup = _command(
        commands,
        "backup",
        "copy a store while others write to it",
        "Copies the store into DEST, a directory that is empty or does not exist. Others may write meanwhile. The\n"
        "copy is a store: it holds everything that was written when the backup began, and is opened like any other.\n"
        "The store's materializer is not needed.",
        "python -m mmpc backup /var/lib/things /mnt/backups/things-monday",
        "0 done, 1 the store is damaged, 2 it could not be done; unless it is 0, DEST is no store",
    )
    backup.add_argument("dest", metavar="DEST", help="where the copy goes: an empty directory, or none yet")
    backup.set_defaults(run=_backup)


def _backup(options: argparse.Namespace) -> int:
    try:
        with Bar("copying") as bar:
            report = mmpc.backup(options.path, options.dest, progress=bar)
    except mmpc.CorruptionError as error:
        print(f"mmpc: {type(error).__name__}: {error}", file=sys.stderr)
        return DAMAGED
    print(json.dumps(report.as_dict()) if options.json else report)
    return SOUND


def _command(commands: Any, name: str, what: str, description: str, example: str, status: str) -> Any:
    parser = commands.add_parser(
        name,
        help=what,
        description=description,
        epilog=f"example: {example}\n\nexit status: {status}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="the store's directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


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
