"""page: the chain of one page, record by record."""

from __future__ import annotations

import json
import os

from .._findings import Findings, Problem
from .._layout import (
    ADDRESS_BITS,
    ADDRESS_MASK,
    BASE,
    BLOCK,
    COMPRESSED,
    DELTA,
    EXTENT,
    FREE,
    INDEX,
    INNER,
    PAGE_MASK,
    PLACE_BITS,
    RECORD,
    WORDS_OFFSET,
)
from .._log import COMMITTED, Log, Record
from ..verify import Check, Files
from . import gather, lines, show
from .frame import DONE, FOUND, Broken, at_least, command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

COLUMNS = (
    *("address", "segment", "state", "kind", "depth", "wts", "place"),
    *("colour", "bytes", "decoded", "run", "tag", "flags", "committed", "durable"),
)
_KINDS = {BASE: "base", DELTA: "delta", FREE: "free"}
_FLAGS = ((INNER, "inner"), (INDEX, "index"), (EXTENT, "extent"), (COMPRESSED, "compressed"))
_TRIES = 100  # against writers that change the page all the time


def add(commands: Any) -> None:
    """Describes the command."""
    parser = command(
        commands,
        "page",
        _page,
        "the chain of one page: every record, where it lies, whether it is durable",
        "Shows the head word of a page and the records that it leads to, newest first: address, segment, kind,\n"
        "depth, version (wts and place), colour (the epoch of the write), bytes as they are stored and of the\n"
        "fragment (decoded), first segment of the run that a large one lies in, its class (tag), and whether each\n"
        "is committed and durable. In a store that nobody has opened since the machine started, the whole log is\n"
        "read for it.",
        "python -m mmpc page /var/lib/things 4711 --value",
        "0 shown, also if the page is free or was never allocated, 1 the chain is damaged, 2 it could not be read",
    )
    parser.add_argument("pid", metavar="PID", type=at_least(0, PAGE_MASK), help="the page id; 0 is Meta, 1 is Counter")
    parser.add_argument("--value", action="store_true", help="with each fragment, in the form of a dump (docs/cli.md)")
    parser.add_argument("--hex", action="store_true", help="with the bytes of each payload as they lie in the log")
    parser.add_argument(
        "--bytes",
        type=at_least(1),
        default=256,
        metavar="N",
        help="of --hex, at most so many of each (default: %(default)s)",
    )


def _page(options: argparse.Namespace) -> int:
    with gather.Store(options.path) as store:
        log = _log(store)
        head, chain, wrong = _live(store, log, options.pid) if store.current else _asleep(store, options.pid)
        found = _described(store, log, options, head, chain)
        found["damage"] = None if wrong is None else str(wrong)
    print(json.dumps(found) if options.json else _text(found))
    return DONE if wrong is None else FOUND


def _log(store: gather.Store) -> Log:
    if "log" not in store.fds:
        raise Broken(f"'log' is missing in {store.path!r}")
    if store.current and not store.control.failed:
        return Log(store.fds["log"], store.lasting(), store.durable(), (1 << 64) - 1, Findings())
    limit, pieces = store.lasts()
    return Log(store.fds["log"], store.lasting(), store.durable(), limit, Findings(), pieces)


# ---- finding the chain


def _live(store: gather.Store, log: Log, pid: int) -> tuple[int, list[Record], Problem | None]:
    """By the head word. While that is the same before and after, no segment of the chain was used again meanwhile."""
    head = _head(store, pid)
    chain: list[Record] = []
    wrong: Problem | None = None
    for _ in range(_TRIES):
        chain, wrong = _walk(log, pid, head)
        before, head = head, _head(store, pid)
        if before == head or wrong is None:
            return before, chain, wrong
    return head, chain, wrong


def _head(store: gather.Store, pid: int) -> int:
    if pid >= store.word("table_pages"):
        return 0
    return int.from_bytes(os.pread(store.fds["table"], 8, WORDS_OFFSET + 8 * pid), "little")


def _walk(log: Log, pid: int, head: int) -> tuple[list[Record], Problem | None]:
    """The records of a chain as far as they can be read, and the first thing that is wrong."""
    if head == 0:
        return [], None
    if head.bit_count() & 1:
        return [], Problem("table", WORDS_OFFSET + 8 * pid, "the head word is damaged", pid)
    newest = log.look((head & ADDRESS_MASK) << 3)
    if newest is None or newest.page != pid:
        return [], Problem("log", (head & ADDRESS_MASK) << 3, "here is no whole record of the page", pid)
    seen: list[Record] = []

    def look(address: int) -> Record | None:
        record = log.look(address)
        if record is not None:
            seen.append(record)
        return record

    judged = log.chain(newest, look)
    return ([newest, *seen], judged) if isinstance(judged, Problem) else (judged, None)


def _asleep(store: gather.Store, pid: int) -> tuple[int, list[Record], Problem | None]:
    """Of a store that must be recovered first: what a recovery would find."""
    with Files(store.path) as files, show.Bar("reading the log") as bar:
        check = Check(files, bar)
        check.run()
        log = check.log
        index = log.newest.get(pid) if log is not None else None
        if log is None or index is None:
            return 0, [], next((p for p in check.findings.problems if p.page == pid and p.severity == "damage"), None)
        chain = log.chain(log.record(index))
        return (0, [log.record(index)], chain) if isinstance(chain, Problem) else (0, chain, None)


# ---- describing it


def _described(
    store: gather.Store, log: Log, options: argparse.Namespace, head: int, chain: list[Record]
) -> dict[str, Any]:
    segments, durable = {s.number: s for s in store.segments(disk=False)}, log.durable
    records, committed = [], False
    for record in chain:
        committed = committed or record.standing == COMMITTED  # what a committed record continues is committed
        place = record.address >> store.shift
        found: dict[str, Any] = {
            "address": record.address,
            "segment": place,
            "segment_state": segments[place].state if place in segments else gather.UNKNOWN,
            "kind": _KINDS.get(record.kind, str(record.kind)),
            "depth": record.depth,
            "wts": record.version >> PLACE_BITS,
            "place": record.version & (1 << PLACE_BITS) - 1,
            "colour": record.colour,
            "length": record.length,
            "decoded": _decoded(log, record),
            "run": log.extent(record).address >> store.shift if record.shape & EXTENT else None,
            "flags": [name for bit, name in _FLAGS if record.shape & bit],
            "tag": record.tag,
            "committed": committed,
            "durable": committed and record.colour <= durable,
        }
        if options.value and record.kind != FREE:
            found["value"] = lines.written(log.payload(record))
        if options.hex:
            begin, length = _stored(log, record)
            found["begin"], found["bytes"] = begin, log.read(begin, min(options.bytes, length)).hex()
            found["more"] = max(0, length - options.bytes)
        records.append(found)
    return {
        "path": store.path,
        "page": options.pid,
        "state": _state(options.pid, chain),
        "head": None
        if not store.current
        else {
            "word": head,
            "address": (head & ADDRESS_MASK) << 3,
            "tag": head >> ADDRESS_BITS & 0x1FFFFF,
            "sound": head.bit_count() % 2 == 0,
        },
        "durable_epoch": durable,
        "records": records,
    }


def _stored(log: Log, record: Record) -> tuple[int, int]:
    """Where the fragment lies, compressed or not, and its bytes there."""
    if record.shape & EXTENT:
        extent = log.extent(record)
        return extent.address + BLOCK, int(extent.length)
    return record.address + RECORD.size, record.length


def _decoded(log: Log, record: Record) -> int:
    """Bytes of the fragment, as it is encoded."""
    return len(log.payload(record)) if record.shape & COMPRESSED else _stored(log, record)[1]


def _state(pid: int, chain: list[Record]) -> str:
    if not chain:
        return "unallocated"
    return "free" if chain[0].kind == FREE else {0: "meta", 1: "counter"}.get(pid, "materialized")


def _text(found: dict[str, Any]) -> str:
    said = [f"page {found['page']}: {found['state']}"]
    head = found["head"]
    if head is not None and head["word"]:
        sound = "" if head["sound"] else "; its parity is WRONG"
        said.append(
            f"head word {head['word']:#018x}: address {head['address']:#x}, {head['tag']} changes (modulo 2^21){sound}"
        )
    elif head is None:
        said.append("nobody has opened the store since the machine started: this is what a recovery would find")
    rows = [_row(r) for r in found["records"]]
    if rows:
        said.append(show.table(COLUMNS, rows))
    for r in found["records"]:
        if "value" in r:
            said.append(f"{r['address']:#x}: {json.dumps(r['value'], ensure_ascii=False)}")
        if "bytes" in r:
            said.append(_dumped(r["begin"], bytes.fromhex(r["bytes"]), r["more"]))
    if found["damage"]:
        said.append(found["damage"])
    return "\n".join(said)


def _row(r: dict[str, Any]) -> tuple[object, ...]:
    yes, run = {True: "yes", False: "no"}, "-" if r["run"] is None else r["run"]
    of_log = (f"{r['address']:#x}", r["segment"], r["segment_state"])
    of_record = (r["kind"], r["depth"], r["wts"], r["place"], r["colour"], r["length"], r["decoded"], run, r["tag"])
    return *of_log, *of_record, ",".join(r["flags"]), yes[r["committed"]], yes[r["durable"]]


def _dumped(address: int, data: bytes, more: int) -> str:
    """Sixteen bytes a line, with those that are printable ASCII beside."""
    said = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        said.append(f"  {address + at:#010x}  {part.hex(' '):<47}  {text}")
    if more:
        said.append(f"  ... {more} more bytes")
    return "\n".join(said)
