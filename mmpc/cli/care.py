"""check, gc and backup: the commands that read or move all of a store."""

from __future__ import annotations

import json

import mmpc

from .frame import DONE, FOUND, command
from .show import Bar

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


def add(commands: Any) -> None:
    """Describes the three commands."""
    check = command(
        commands,
        "check",
        _check,
        "read all of a store, say what is damaged, save what can be saved",
        "Reads every byte that a store relies on and says what is damaged. Changes nothing; others may\n"
        "use the store meanwhile.",
        "python -m mmpc check /var/lib/things --salvage /var/lib/things.saved",
        "0 sound (warnings allowed), 1 damage, 2 the store could not be checked",
        damage_found=False,
    )
    check.add_argument(
        "--salvage",
        metavar="DIR",
        help="write what can be saved into a new store in DIR, which is empty or does not exist; list what cannot",
    )
    check.add_argument("--materializer", metavar="NAME", help="with --salvage, where 'config' is lost: the store's")
    command(
        commands,
        "gc",
        _gc,
        "give back the space that a store can do without",
        "Empties every segment of the log from which space can be gained, and gives all that is free back to the file\n"
        "system. Others may use the store meanwhile: nothing that they read changes, and nobody waits. The store's\n"
        "materializer is not needed.",
        "python -m mmpc gc /var/lib/things",
        "0 done, 1 done but for segments that hold damage, 2 it could not be done",
        reads_only=False,
        damage_found=False,
    )
    backup = command(
        commands,
        "backup",
        _backup,
        "copy a store while others write to it",
        "Copies the store into DEST, a directory that is empty or does not exist. Others may write meanwhile. The\n"
        "copy is a store: it holds everything that was written when the backup began, and is opened like any other.\n"
        "The store's materializer is not needed.",
        "python -m mmpc backup /var/lib/things /mnt/backups/things-monday",
        "0 done, 1 the store is damaged, 2 it could not be done; unless it is 0, DEST is no store",
        reads_only=False,
    )
    backup.add_argument("dest", metavar="DEST", help="where the copy goes: an empty directory, or none yet")


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
    return DONE if report.ok else FOUND


def _gc(options: argparse.Namespace) -> int:
    with Bar("cleaning") as bar:
        report = mmpc.clean(options.path, progress=bar)
    print(json.dumps(report.as_dict()) if options.json else report)
    return FOUND if report.damage else DONE


def _backup(options: argparse.Namespace) -> int:
    with Bar("copying") as bar:
        report = mmpc.backup(options.path, options.dest, progress=bar)
    print(json.dumps(report.as_dict()) if options.json else report)
    return DONE
