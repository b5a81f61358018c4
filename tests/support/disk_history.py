"""What happened in a life of a store, told by its trace: every version of every page, and who had seen what.

A page's versions are read off the stores to its head word.  The version after store number n of the trace is what the
chain said that the word named at that moment; a group that moves a page must not change it.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_right
from typing import Any

import msgpack
import zstandard

from .disk_model import Files
from .disk_trace import CREATE, CUT, NOTE, RENAME, SECTOR, STORE, Event

BASE, DELTA, FREE = 1, 2, 3
WORDS = 4096  # where the head words begin in `table`
EXTENT, BLOCK = 4, 4096  # a flag of records; bytes
COMPRESSED = 1 << 43  # a flag of records, in its word
_RECORD = struct.Struct("<5Q")
ADDRESS = (1 << 42) - 1

Value = list | None  # None: the page is free
State = dict[int, int]  # of each page its version (wts); a page that is not there was never allocated


class Wrong(AssertionError):
    """Something that may not be."""


def must(condition: object, *what: object) -> None:
    if not condition:
        raise Wrong(" ".join(map(str, what)))


class Version:
    __slots__ = ("index", "past", "value")

    def __init__(self, index: int, value: Value, past: State) -> None:
        self.index = index  # of the event that made it
        self.value = value
        self.past = past  # what its author, and those of all earlier versions of the page, had seen


class Copied:
    """A backup that was made while others wrote."""

    def __init__(self, required: State) -> None:
        self.required = required
        self.done = -1  # the event before which it was complete


class History:
    """A life: it begins with `start`, the state in which the store was recovered, and `values` of it."""

    def __init__(self, start: State, values: dict[int, Value], number: int = -1) -> None:
        # Of a page all versions by number; several of one number where a rebuilt table forgot one that nobody saw.
        self.pages = {pid: {wts: [Version(-1, values[pid], {})]} for pid, wts in start.items()}
        self.operations = 0
        self.numbers = [(-1, number)]  # of generate_id: event, and the largest that was told up to it
        self._told: set[int] = set()
        self._newest = dict(start)
        self._live = False
        self._log = bytearray()
        self._tables: dict[int, dict[int, int]] = {}  # head words, by file
        self._table = 0  # the one that counts
        self._aside = 0  # the one that is being made
        self._seen: dict[int, State] = {}  # of a process
        self._required: list[tuple[int, State]] = [(-1, dict(start))]  # from that event on this much must be there
        self._returned: State = dict(start)
        self._flushing: dict[int, State] = {}
        self.copies: dict[str, Copied] = {}

    # ---- reading the trace

    def read(self, events: list[Event], files: Files) -> None:
        logs = {files.names["log"]} if "log" in files.names else set()
        self._aside = files.names.get("table.new", 0)
        for sector, content in (pair for f in logs for pair in files.sectors[f].items()):
            self._write(sector * SECTOR, content)
        for index, event in enumerate(events):
            if event.kind == CREATE:
                name = event.data.decode()
                logs |= {event.file} if name == "log" else set()
                self._aside = event.file if name == "table.new" else self._aside
            elif event.kind == RENAME and event.data == b"table.new\0table\0":
                self._table = self._aside
                self._rebuilt()
            elif event.kind == CUT:
                self._tables.pop(event.file, None)
            elif event.kind == STORE and event.file in logs:
                self._write(event.offset, event.data)
            elif event.kind == STORE and event.file in (self._table, self._aside) and event.offset >= WORDS:
                self._heads(index, event)
            elif event.kind == NOTE:
                self._note(index, event.process, json.loads(event.data))

    def _write(self, at: int, data: bytes) -> None:
        if at + len(data) > len(self._log):
            self._log.extend(bytes(at + len(data) - len(self._log)))
        self._log[at : at + len(data)] = data

    def _heads(self, index: int, event: Event) -> None:
        first = (event.offset - WORDS) // 8
        for pid, (word,) in enumerate(struct.iter_unpack("<Q", event.data), first):
            self._tables.setdefault(event.file, {})[pid] = word
            if pid >= 2 and event.file == self._table:
                self._head(index, event.process, pid, word)

    def _head(self, index: int, process: int, pid: int, word: int) -> None:
        wts, kind, value = self._walk(word)
        newest = self._newest.get(pid, 0)
        before = self.pages[pid][newest][-1] if newest else None
        if before and wts == newest:
            must(value == before.value, f"page {pid}: a move has changed its value at event {index}")
            return
        must(wts == newest + 1, f"page {pid}: version {wts} follows {newest} at event {index}")
        if kind == DELTA:
            must(before and before.value is not None, f"page {pid}: a fragment on nothing at event {index}")
            must(value[: len(before.value)] == before.value, f"page {pid}: an append has changed what was there")
        past = dict(before.past) if before else {}
        _raise(past, self._seen.get(process, {}))
        self.pages.setdefault(pid, {}).setdefault(wts, []).append(Version(index, value, past))
        self._newest[pid] = wts

    def _rebuilt(self) -> None:
        """A recovery has made another table: it has what was there, but in the same boot may forget what nobody saw."""
        words = self._tables.get(self._table, {})
        for pid, newest in self._newest.items():
            wts, _kind, value = self._walk(words[pid]) if words.get(pid) else (0, 0, None)
            least = self._returned.get(pid, 0) if self._live else newest
            must(least <= wts <= newest, f"page {pid}: a rebuilt table has version {wts}, not {least} to {newest}")
            must(not wts or value == self.pages[pid][wts][-1].value, f"page {pid}: a rebuilt table has another value")
            self._newest[pid] = wts

    def _walk(self, word: int) -> tuple[int, int, Value]:
        """Version, kind and value that a head word names."""
        address, fragments, wts, first = (word & ADDRESS) << 3, [], 0, 0
        while True:
            _crc, shape, _colour, version, prev = _RECORD.unpack_from(self._log, address)
            length, kind = shape & 0xFFFFFFFF, shape >> 40 & 7
            wts, first = wts or version >> 16, first or kind
            if kind == FREE:
                return wts, first, None
            at = address + _RECORD.size
            if shape >> 44 & EXTENT:  # it lies a block behind the start of its run
                run, length = struct.unpack_from("<QQ", self._log, at)
                at = run + BLOCK
            payload = bytes(self._log[at : at + length])
            if shape & COMPRESSED:
                payload = zstandard.ZstdDecompressor().decompress(payload)
            fragments.append(msgpack.unpackb(payload))
            if kind == BASE:
                return wts, first, [item for fragment in reversed(fragments) for item in fragment]
            must(kind == DELTA, "a head names what is no record, at", address)
            address = (prev & ADDRESS) << 3

    def _note(self, index: int, process: int, said: dict[str, Any]) -> None:
        seen = self._seen.setdefault(process, {})
        kind = said["note"]
        if kind == "live":
            self._live = True
        elif kind in ("op", "saw"):
            here = {said["page"]: said["wts"]}
            _raise(seen, here)
            _raise(self._returned, here)
            self.operations += kind == "op"
        elif kind == "number":
            self._number(index, said["value"])
        elif kind == "flush":
            self._flushing[process] = dict(self._returned)
        elif kind == "flushed":
            self._require(index, self._flushing.pop(process))
        elif kind == "copying":
            self.copies[said["name"]] = Copied(dict(self._returned))
        elif kind == "copied":
            self.copies[said["name"]].done = index
        elif kind == "closed":
            self._require(index, self._returned)
        elif kind == "stable":
            self._require(index, {said["page"]: said["wts"]})

    def _number(self, index: int, value: int) -> None:
        must(value not in self._told, f"generate_id gave {value} twice")
        must(value > self.numbers[0][1], f"generate_id gave {value}, which an earlier life may have given")
        self._told.add(value)
        self.numbers.append((index, max(value, self.numbers[-1][1])))

    def _require(self, index: int, state: State) -> None:
        total = dict(self._required[-1][1])
        _raise(total, state)
        self._required.append((index, total))

    # ---- judging

    def required(self, crash: int) -> State:
        """What a loss of power before event `crash` must leave: the notes that lie before it say so."""
        return self._required[bisect_right(self._required, crash, key=lambda r: r[0] + 1) - 1][1]

    def given(self, crash: int) -> int:
        """The largest number of generate_id that somebody had told of before event `crash`."""
        return self.numbers[bisect_right(self.numbers, crash, key=lambda n: n[0] + 1) - 1][1]

    def judge(self, crash: int, state: State, values: dict[int, Value]) -> None:
        """Cover, truth and closure of what was recovered."""
        self._covers(self.required(crash), state)
        self._true_and_closed(crash, state, values)

    def judge_copy(self, name: str, state: State, values: dict[int, Value]) -> None:
        """A backup has all that had returned when it began; what else it has is of before its end."""
        copy = self.copies[name]
        self._covers(copy.required, state)
        self._true_and_closed(copy.done, state, values)

    @staticmethod
    def _covers(required: State, state: State) -> None:
        for pid, wts in required.items():
            back = state.get(pid, 0)
            must(back >= wts, f"cover: page {pid} came back as version {back}, {wts} was flushed")

    def _true_and_closed(self, crash: int, state: State, values: dict[int, Value]) -> None:
        for pid, wts in state.items():
            versions = [v for v in self.pages.get(pid, {}).get(wts, ()) if v.index < crash]
            must(versions, f"truth: page {pid} never had version {wts} before the crash")
            version = next((v for v in versions if v.value == values[pid]), None)
            must(
                version,
                f"truth: page {pid} at version {wts} was {said(versions[-1].value)}, came back as {said(values[pid])}",
            )
            for other, seen in version.past.items():
                must(
                    state.get(other, 0) >= seen,
                    f"closure: page {pid} came back as version {wts}, whose author had seen version {seen} of page "
                    f"{other}, which came back as {state.get(other, 0)}",
                )


def _raise(state: State, by: State) -> None:
    for pid, wts in by.items():
        if state.get(pid, 0) < wts:
            state[pid] = wts


def said(value: Value) -> str:
    return "free" if value is None else f"[{', '.join(t[:12] for t in value)}]"
