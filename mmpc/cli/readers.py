"""readers: who has a store open, what each holds, and for how long."""

from __future__ import annotations

import json
import os

import mmpc

from . import gather
from .frame import DONE, command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


def add(commands: Any) -> None:
    """Describes the command."""
    command(
        commands,
        "readers",
        _readers,
        "say who has a store open, what each holds, and for how long",
        "Lists the processes that have the store open: since when, the oldest epoch that a call or a Tx of each holds\n"
        "and for how long, the segments that views hold, and how many bytes of the log wait for it. It attaches to\n"
        "nothing and needs to read the files, no more.",
        "python -m mmpc readers /var/lib/things --json",
        "0 listed, 1 the store is damaged, 2 it could not be read",
    )


def _readers(options: argparse.Namespace) -> int:
    gather.read_config(os.path.abspath(options.path))
    found = mmpc.readers(options.path)
    if options.json:
        print(json.dumps({"path": options.path, "readers": [reader.as_dict() for reader in found]}))
    else:
        print("\n".join(map(str, found)) or "nobody has the store open")
    return DONE
