"""What all commands share: how arguments are described, how a run ends, how errors are told.

Exit statuses: 0 done, and nothing is wrong; 1 damage, or something else that the command looks for, was found; 2 the
command could not be carried out, or was called wrongly; 130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from importlib import import_module

from .. import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

DONE, FOUND, IMPOSSIBLE, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141


class Refused(Exception):
    """A command cannot do what it was asked for; the message is a sentence for the user."""


class Broken(Exception):
    """Something that the command was given is damaged; the message is a sentence for the user."""


def run(commands: Mapping[str, str], arguments: Sequence[str] | None) -> int:
    """Parses the arguments and runs the command; returns the exit status. Errors become one line on stderr.

    `commands`: the module of each. Only that of the command that is called is imported, or all, for who calls none.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    called = [commands[word] for word in words[:1] if word in commands]
    parser = argparse.ArgumentParser(
        prog="mmpc", description="Looks after mmpc stores.", epilog=__doc__.partition("\n\n")[2]
    )
    parser.add_argument("--version", action="version", version=f"mmpc {_version()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in called or dict.fromkeys(commands.values()):
        import_module(f".{name}", __package__).add(subparsers)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal has no character for stops nothing
    options = parser.parse_args(words)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return UNREAD
    except KeyboardInterrupt:
        print("\nmmpc: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (errors.MmpcError, Refused, Broken, OSError, ValueError) as error:
        print(f"mmpc: {said(error, options)}", file=sys.stderr)
        return FOUND if isinstance(error, (Broken, errors.CorruptionError)) and options.damage_found else IMPOSSIBLE
    return status


def _version() -> str:
    from .. import __version__

    return __version__


def said(error: Exception, options: argparse.Namespace) -> str:
    """An error as a sentence that names the place and, where there is one, the remedy."""
    cause = error.__cause__
    if isinstance(error, errors.Unsupported) and isinstance(cause, PermissionError) and options.reads_only:
        error = cause
    if isinstance(error, errors.CorruptionError):
        remedy = (
            "" if options.command == "check" else f"; python -m mmpc check {getattr(options, 'path', 'PATH')} says more"
        )
        return f"damaged: {error}{remedy}"
    if isinstance(error, OSError) and not isinstance(error, errors.MmpcError):
        return _system(error, getattr(options, "path", None))
    return str(error)


def _system(error: OSError, path: str | None) -> str:
    where = os.fsdecode(error.filename) if error.filename else path or ""
    why = (error.strerror or str(error)).replace("; pass create=True to make one", "")
    if isinstance(error, PermissionError):
        why += f": user {os.geteuid()} needs to be allowed to read it"
    return f"{where}: {why}" if where else why


def command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    what: str,
    description: str,
    example: str,
    status: str,
    *,
    path: str | None = "the store's directory",
    json: bool = True,
    reads_only: bool = True,
    damage_found: bool = True,
) -> Any:
    """A parser for one command, with the arguments that all have.

    `path` is the help of PATH; None: it has no such argument. `reads_only`: it needs no permission to write.
    `damage_found`: a damaged store that cannot be read at all is exit status 1, not 2.
    """
    parser = commands.add_parser(
        name,
        help=what,
        description=description,
        epilog=f"example: {example}\n\nexit status: {status}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if path is not None:
        parser.add_argument("path", metavar="PATH", help=path)
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=run, command=name, reads_only=reads_only, damage_found=damage_found)
    return parser


def at_least(least: int, most: int = (1 << 63) - 1) -> Callable[[str], int]:
    """For `type=` of an argument: an integer within bounds."""

    def integer(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    return integer


def seconds(text: str) -> float:
    """For `type=` of an argument: a time from a hundredth of a second to a day."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0.01 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.01 and 86400 seconds")
    return value
