"""stat: a page of what matters about a store."""

from __future__ import annotations

import json
import os
import time

from . import gather, show
from .frame import DONE, command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any


def add(commands: Any) -> None:
    """Describes the command."""
    command(
        commands,
        "stat",
        _stat,
        "a page of what matters: size, live share, durability, processes",
        "Shows what a store is, what it takes, what of that is live, how far it is durable and who uses it. It reads\n"
        "counters and headers, never the data, and attaches to nothing.",
        "python -m mmpc stat /var/lib/things",
        "0 shown, 1 the store is damaged, 2 it could not be read",
    )


def _stat(options: argparse.Namespace) -> int:
    found = gather.figures(options.path)
    if options.json:
        print(json.dumps(found))
        return DONE
    rows = list(_page(found))
    width = max(len(name) for name, _text in rows)
    print(found["path"])
    print("\n".join(f"  {name.ljust(width)}  {text}".rstrip() for name, text in rows))
    return DONE


def _page(f: dict[str, Any]) -> Iterator[tuple[str, str]]:
    options, now = f["options"], time.time()
    yield "state", _state(f)
    yield "made", f"{show.when(int(f['created'] * 1e9))}, format {f['format']}, uuid {f['uuid']}"
    segments = f"segments of {show.size(options['segment_size'])}"
    yield "options", f"materializer {options['materializer']}, codec {options['codec']}, {segments}"
    yield "size", f"{show.size(f['bytes']['disk'])} on the device, {show.size(f['bytes']['apparent'])} apparent"
    for name, of in f["bytes"]["files"].items():
        if of["disk"] >= 1 << 20 or name == "log":
            yield f"  {name}", f"{show.size(of['disk'])} on the device, {show.size(of['apparent'])} apparent"
    yield from _log(f["log"])
    pages = f["pages"]
    if pages["ids"] is not None:
        yield "pages", f"ids up to {show.number(pages['ids'])}, about {show.number(pages['free_about'])} of them free"
    yield from _durability(f)
    if f["snapshot"] is None:
        yield "snapshot", "none: a recovery reads the whole log"
    else:
        snapshot = f["snapshot"]
        since = f", {show.size(snapshot['log_since'])} written since" if snapshot["log_since"] is not None else ""
        yield "snapshot", f"{snapshot['name']}, {show.span(now - snapshot['created'])} old{since}"
    yield from _processes(f["processes"])
    if f["recoveries_that_discarded"]:
        yield "recoveries", f"{f['recoveries_that_discarded']} discarded what was not durable after a loss of power"


def _state(f: dict[str, Any]) -> str:
    alive = f["processes"]["alive"]
    return {
        "open": f"open in {alive} process{'' if alive == 1 else 'es'}",
        "closed": "closed: nobody has it open",
        "to be recovered": "closed; the next open recovers it (another boot, or a copy): counters are not known",
        "open in another version": gather.FOREIGN,
        "failed": f"FAILED: a sync failed ({os.strerror(f['failed'])}); close the store everywhere and open it again",
    }[f["state"]]


def _log(log: dict[str, Any]) -> Iterator[tuple[str, str]]:
    there = [f"{count} {name}" for name, count in log["segments"].items() if count]
    yield "segments", f"{sum(log['segments'].values())}: {', '.join(there) or 'none yet'}"
    if log["taken"] is None:
        yield "live", f"{show.size(log['live'])} when the newest snapshot was written"
        return
    waiting = f"; {show.size(log['waiting'])} more is empty and waits for readers" if log["waiting"] else ""
    part = f"{show.size(log['live'])} of {show.size(log['taken'])} ({show.share(log['live'], log['taken'])})"
    yield "live", f"{part}{waiting}"
    cleaning = f"{show.count(log['cleaned'], 'segment')} emptied, {show.size(log['moved'])} moved for that"
    yield "cleaning", f"{cleaning}; {show.size(log['written'])} ever written"


def _durability(f: dict[str, Any]) -> Iterator[tuple[str, str]]:
    epoch, flushes = f["epoch"], f["flushes"]
    if f["state"] in ("to be recovered", "open in another version"):
        yield "durable", f"up to epoch {epoch['durable']}"
        return
    dirty = (
        "everything" if epoch["dirty"] <= epoch["durable"] else f"not what was written since epoch {epoch['durable']}"
    )
    yield "durable", f"{dirty}; epoch {epoch['now']}, durable {epoch['durable']}, {epoch['lag']} behind"
    took = f", about {show.brief(flushes['seconds'])} each" if flushes["seconds"] else ""
    shared = f"{show.number(flushes['shared'])} more were answered by another's"
    yield "flushes", f"{show.count(flushes['syncs'], 'sync')}{took}; {shared}"


def _processes(p: dict[str, int]) -> Iterator[tuple[str, str]]:
    yield (
        "processes",
        f"{p['alive']} alive, {p['dead']} dead and not reaped yet, {show.number(p['reaped'])} reaped in this life",
    )
    done = f"{show.number(p['operations'])} published, {show.number(p['conflicts'])} conflicts"
    yield "operations", f"{done}, {show.number(p['helped'])} finished for others"
