"""What processes did to a store, written down so that a program can judge it: for tests and for debugging.

`mmpc.open(path, materializer, event_log=DIRECTORY)` gives a handle that writes each call and each return to a file of
its own in DIRECTORY; so does every handle while the environment variable MMPC_EVENT_LOG names one. Without, nothing is
written, and no verb asks whether it should. docs/event-log.md describes the lines; `read` makes operations of them.

`state` says which records each page consists of, and in which segments; `differences` compares two of them. A recorded
handle that has the store for itself writes its state when it opens and before it closes: what the last one left is what
the next one finds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import time
from typing import Any, NamedTuple

from . import _files, codec, errors
from ._layout import (
    CONTROL_GLOBALS,
    CONTROL_SEGMENTS,
    FREE,
    GLOBALS,
    SEGMENT_ENTRY,
    SEGMENT_ENTRY_SIZE,
    body_of,
    span_of,
)
from ._native import ffi, lib
from ._recording import Recording
from .pagecache import PageCache, ReadOnlyPageCache

VERSION = 1
LONGEST = 512  # bytes of an encoded value that are written as they are; of more a digest
_USED = (2, 3, 4)  # OPEN, SEALED, CLAIMED


# ---- states


def state(pages: PageCache[Any]) -> dict[str, Any]:
    """Pages and segments as they stand, for JSON; exact while nobody writes.

    `pages`: of each page that was ever allocated [id, version, whether it is free, addresses of its records, newest
    first]. `segments`: of each that is in use [number, generation, bytes of records that pages consist of]. `roots` and
    `ceiling`: what pages 0 and 1 hold. Errors: those of `get`.
    """
    found, live = [], dict[int, int]()
    shift = pages._segment_shift()
    stats: Any = pages.stats()
    for page in range(stats.pages):
        records = _chain(pages, page)
        if not records:
            continue
        for address, _version, shape in records:
            live[address >> shift] = live.get(address >> shift, 0) + span_of(body_of(shape))
        free = records[0][2] >> 40 & 7 == FREE
        found.append([page, records[0][1] >> 16, free, [address for address, _version, _shape in records]])
    segments = [[number, generation, live.get(number, 0)] for number, generation in _segments(pages.path)]
    counter: Any = pages.get(1)
    return {"pages": found, "segments": segments, "roots": pages.meta(), "ceiling": counter.value}


def _chain(pages: PageCache[Any], page: int) -> list[tuple[int, int, int]]:
    """(address, version, shape) of each record of a page, newest first; none: it was never allocated."""
    triples, r = ffi.new("uint64_t[]", 3 * 256), ffi.new("mm_result *")
    pages._here()
    status = lib.mm_chain(pages._attachment.mm, page, triples, 256, r)
    if status == errors.NOPAGE:
        return []
    if status:
        raise errors.from_status(status, pid=page, length=0, offset=r.offset, file=r.file, os_error=r.os_error)
    numbers = [int(x) for x in triples[0 : 3 * r.count]]
    return list(zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True))


def _segments(path: str) -> list[tuple[int, int]]:
    """(number, generation) of each segment in use."""
    with open(os.path.join(path, "control"), "rb") as control:
        control.seek(CONTROL_GLOBALS + GLOBALS["segments"])
        count = int.from_bytes(control.read(8), "little")
        control.seek(CONTROL_SEGMENTS)
        data = control.read(count * SEGMENT_ENTRY_SIZE)
    words = [entry[0] for entry in SEGMENT_ENTRY.iter_unpack(data)]
    return [(number, word >> 4 & 0xFFFFFF) for number, word in enumerate(words) if word & 15 in _USED]


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not the same in two states, in sentences; none: they are equal."""
    said = []
    for what in ("pages", "segments"):
        old, new = ({x[0]: x[1:] for x in one[what]} for one in (before, after))
        for number in sorted({*old, *new}):
            if old.get(number) != new.get(number):
                said.append(f"{what[:-1]} {number} was {old.get(number)}, and is {new.get(number)}")
    for what in ("roots", "ceiling"):
        if before[what] != after[what]:
            said.append(f"{what}: were {before[what]}, and are {after[what]}")
    return said


# ---- writing


class _Inside(threading.local):
    """Whether this thread is in a verb that is recorded: those that it is made of are not."""

    verb = False


class Recorder:
    """The file of one handle in one process: a line for each thing, written by one system call, so that what a process
    did before it was killed is there.
    """

    def __init__(self, directory: str, handle: dict[str, Any]) -> None:
        self.directory, self._handle = directory, handle
        self._numbers = itertools.count(1)
        self._owner, self._fd, self._closed_by = 0, -1, 0
        self.inside = _Inside()
        os.makedirs(directory, mode=0o700, exist_ok=True)

    def _file(self) -> int:
        """A forked child has one of its own."""
        if self._owner != os.getpid():
            self._owner = os.getpid()
            name = f"events-{self._owner}-{os.urandom(4).hex()}.jsonl"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(os.path.join(self.directory, name), flags, 0o600)
            self.write("open", version=VERSION, process=self._owner, **self._handle)
        return self._fd

    def write(self, event: str, /, **fields: Any) -> None:
        if self._closed_by == os.getpid():
            return
        fd = self._file()
        line = json.dumps({"event": event, "time": time.monotonic_ns(), **fields}, separators=(",", ":"))
        os.write(fd, line.encode() + b"\n")

    def call(self, verb: str, /, **fields: Any) -> int:
        """The number of the call, for what is said of its end."""
        number = next(self._numbers)
        self.write("call", n=number, thread=threading.get_native_id(), verb=verb, **fields)
        return number

    def returned(self, call: int, /, **fields: Any) -> None:
        self.write("return", n=call, **fields)

    def close(self) -> None:
        if self._owner == os.getpid() and self._fd >= 0:
            self.write("close")
            os.close(self._fd)
        self._closed_by = os.getpid()


def encoded(value: Any) -> str:
    """A value as it stands in a line: the hexadecimal digits of its encoding, or of a digest."""
    data = codec.encode(value)
    if len(data) <= LONGEST:
        return data.hex()
    return f"blake2b:{hashlib.blake2b(data, digest_size=16).hexdigest()}:{len(data)}"


class RecordedPageCache(Recording, PageCache[Any]):
    """A handle whose verbs are written down."""

    __slots__ = ("_recorder",)


class RecordedReadOnlyPageCache(Recording, ReadOnlyPageCache[Any]):
    """The same of a handle opened with read_only=True."""

    __slots__ = ("_recorder",)


def opened(directory: str, read_only: bool, materializer: Any, options: Any, create: bool, capacity: int) -> Any:
    """What `mmpc.open` gives where events are recorded."""
    make = RecordedReadOnlyPageCache if read_only else RecordedPageCache
    pages = make(materializer, options, create, capacity)
    config = _files.read_config(options.path)
    uuid = config.uuid.hex() if config is not None else ""
    handle = {
        "store": options.path,
        "uuid": uuid,
        "boot": _files.boot_id().rstrip(b"\0").decode(errors="replace"),
        "materializer": options.materializer,
        "read_only": read_only,
    }
    pages.record(Recorder(directory, handle), state, encoded)
    return pages


# ---- reading


class Operation(NamedTuple):
    """A call and its end. `returned` and `result` are None where the process ended before it said so: the operation may
    have happened or not. Times are ns of one clock for all processes. `handle` is the file: one for each handle in each
    process.
    """

    handle: str
    process: int
    thread: int
    verb: str
    called: int
    returned: int | None
    arguments: dict[str, Any]
    result: dict[str, Any] | None


class State(NamedTuple):
    """A state that was written when a handle was opened or closed that had the store for itself (`alone`)."""

    handle: str
    when: str
    time: int
    alone: bool
    state: dict[str, Any]


class History(NamedTuple):
    """All that the files of a directory say, in the order of time."""

    operations: list[Operation]
    states: list[State]

    def restarts(self) -> list[tuple[State, State]]:
        """Pairs of states: before the last one left, and when the next one had come, nobody between."""
        pairs = []
        for before, after in itertools.pairwise(self.states):
            if before.alone and after.alone and (before.when, after.when) == ("close", "open"):
                pairs.append((before, after))
        return pairs


_TAKEN = ("event", "time", "n", "thread", "verb")


def read(directory: str | os.PathLike[str]) -> History:
    """What was recorded in a directory, by however many processes; others may be writing. A last line that is cut short
    is left out. Errors: FileNotFoundError; ValueError (a line that is none of ours, a version that is not known).
    """
    operations: list[Operation] = []
    states: list[State] = []
    for name in sorted(os.listdir(directory)):
        if name.startswith("events-") and name.endswith(".jsonl"):
            _read_file(os.path.join(os.fsdecode(directory), name), name, operations, states)
    operations.sort(key=lambda o: o.called)
    states.sort(key=lambda s: s.time)
    return History(operations, states)


def _read_file(path: str, name: str, operations: list[Operation], states: list[State]) -> None:
    with open(path, "rb") as f:
        lines = f.read().split(b"\n")[:-1]
    calls: dict[int, dict[str, Any]] = {}
    ends: dict[int, dict[str, Any]] = {}
    process = 0
    for line in lines:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "open":
            if event["version"] != VERSION:
                raise ValueError(f"{path!r} has version {event['version']}, this mmpc reads {VERSION}")
            process = event["process"]
        elif event["event"] == "call":
            calls[event["n"]] = event
        elif event["event"] == "return":
            ends[event["n"]] = event
        elif event["event"] == "state":
            states.append(State(name, event["when"], event["time"], event["alone"], event["state"]))
    for number, call in calls.items():
        end = ends.get(number)
        given = {key: value for key, value in call.items() if key not in _TAKEN}
        result = None if end is None else {key: value for key, value in end.items() if key not in _TAKEN}
        returned = None if end is None else int(end["time"])
        operations.append(
            Operation(name, process, call["thread"], call["verb"], call["time"], returned, given, result)
        )
