"""readers: who has a store open, what each holds, and for how long.

Read from `control` as it lies in the page cache: it attaches to nothing, takes no slot, and holds nobody up. Others
change the words meanwhile, so each is right by itself. A pin is an epoch; who steps the epoch notes the time now and
then (csrc/times.c), and that bounds how long a pin has been held.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from . import _files, errors
from ._findings import Findings
from ._layout import (
    CONTROL_GLOBALS,
    CONTROL_SEGMENTS,
    CONTROL_SLOTS,
    CONTROL_TIMES,
    GLOBALS,
    MASK32,
    MAX_SEGMENTS,
    PINS,
    REST_RUN,
    RETIRED,
    SEGMENT_ENTRY,
    SEGMENT_ENTRY_SIZE,
    SLOT,
    SLOT_SIZE,
    SLOTS,
    TIME_SAMPLE,
    TIMES,
)
from ._volatile import OTHER_LAYOUT, read_control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_FLOCK = struct.Struct("hhqqi4x")  # struct flock
_LIVE = 1


class Reader:
    """One process that has the store open, or had it and died.

    `slot`, `incarnation` (rises with each that comes to the slot), `process` (its id, as it sees it itself), `alive`
    (it holds the lock of its slot; the words of a dead one are cleared by whoever they are in the way of), `since`
    (seconds since 1970, when it attached), `pins` (calls and `Tx` that run), `oldest` (the smallest epoch that they
    hold, or None), `held` (seconds: it is held for at least so long), `held_most` (and for at most so long), `writing`
    (in the middle of a write), `views` (numbers of the segments that zero-copy views hold), `delays` (bytes of the log
    that are empty and wait for it).
    """

    __slots__ = (
        "alive",
        "delays",
        "held",
        "held_most",
        "incarnation",
        "oldest",
        "pins",
        "process",
        "since",
        "slot",
        "views",
        "writing",
    )

    def __init__(self, slot: int, words: tuple[int, ...], alive: bool) -> None:
        state, self.process, opened, announce = words[:4]
        self.incarnation = state >> 8
        pins = [epoch for epoch in words[4 : 4 + PINS] if epoch]
        self.slot, self.alive, self.since = slot, alive, opened / 1e9
        self.pins, self.writing = len(pins), announce != 0
        self.oldest = min([*pins, *([announce] if announce else [])], default=None)
        self.views = [(word & 0xFFFFFFFF) - 1 for word in words[4 + PINS :] if word]
        self.held = self.held_most = 0.0
        self.delays = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        said = [f"slot {self.slot}: process {self.process}{'' if self.alive else ' (dead)'}"]
        said.append(f"attached for {_span(time.time() - self.since)}")
        if self.oldest is not None:
            calls = f"{self.pins} running call{'' if self.pins == 1 else 's'} or Tx"
            what = calls if self.pins else "a write under way"
            said.append(f"{what}, the oldest since epoch {self.oldest}, at least {_span(self.held)} ago")
        if self.views:
            said.append(f"views of {len(self.views)} segments")
        if self.delays:
            said.append(f"{self.delays / 1e6:.1f} MB of the log wait for it")
        return "; ".join(said)

    def __repr__(self) -> str:
        return f"<mmpc.Reader {self}>"


def _span(seconds: float) -> str:
    seconds = max(seconds, 0.0)
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def readers(path: str | os.PathLike[str]) -> list[Reader]:
    """Who has the store in `path` open, by slot; nobody, if it is closed. It needs to read the files, no more.

    A pin that is held for long, by a `Tx` that nobody ended or by a process that was stopped, delays the reuse of space
    and of page ids; `delays` says how many bytes. Errors: FileNotFoundError (no store); IncompatibleStore (another
    format, or another version of mmpc has it open); CorruptionError (`control` is damaged).
    """
    where = os.path.abspath(os.fsdecode(path))
    config = _files.read_config(where)
    if config is None:
        raise FileNotFoundError(2, "no store here", where)
    fds: dict[str, int] = {}
    try:
        for name in ("control", "table", "log", "ids", "rts", "lock"):
            try:
                fds[name] = _files.open_file(os.path.join(where, name))
            except FileNotFoundError:
                continue
        if "lock" not in fds:
            return []
        judged = read_control(fds, config.uuid, _files.boot_id(), Findings())
        if judged.known:
            return held(fds["control"], fds["lock"], config.segment_shift)
        if _locked(fds["lock"], 0, SLOTS):
            if judged.of_this_boot:
                raise errors.IncompatibleStore(f"{where!r}: {OTHER_LAYOUT}")
            said = f"{where!r} is open, and 'control' does not say by whom: it is damaged, or was replaced"
            raise errors.CorruptionError(said, file="control", offset=0)
        return []
    finally:
        for fd in fds.values():
            os.close(fd)


def held(control: int, lock: int, shift: int) -> list[Reader]:
    """The slots in use, from descriptors of the two files."""
    used = min(_global(control, "slots_used"), SLOTS)
    data = os.pread(control, used * SLOT_SIZE, CONTROL_SLOTS)
    found = []
    for slot in range(len(data) // SLOT_SIZE):
        words = SLOT.unpack_from(data, slot * SLOT_SIZE)
        alive = _locked(lock, slot)
        if alive or words[0] & 255 == _LIVE:
            found.append(Reader(slot, words, alive))
    samples = [s for s in TIME_SAMPLE.iter_unpack(_whole(os.pread(control, 16 * TIMES, CONTROL_TIMES), 16)) if s[1]]
    retired = list(_retired(control))
    for reader in found:
        _date(reader, samples)
        reader.delays = sum(
            segments << shift
            for number, segments, since in retired
            if number in reader.views or (reader.oldest is not None and since >= reader.oldest)
        )
    return found


def _global(control: int, name: str) -> int:
    return int.from_bytes(os.pread(control, 8, CONTROL_GLOBALS + GLOBALS[name]), "little")


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]


def _locked(lock: int, slot: int, slots: int = 1) -> bool:
    """Whether somebody holds the byte of the slot, or of one of several."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, slots, 0)
    try:
        answer = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _retired(control: int) -> Iterator[tuple[int, int, int]]:
    """(number, how many, epoch) of the segments that are empty and not free yet; those of a run go together."""
    count = min(_global(control, "segments"), MAX_SEGMENTS)
    data = _whole(os.pread(control, count * SEGMENT_ENTRY_SIZE, CONTROL_SEGMENTS), SEGMENT_ENTRY_SIZE)
    for number, entry in enumerate(SEGMENT_ENTRY.iter_unpack(data)):
        if entry[0] & 15 == RETIRED:
            yield number, entry[1] & MASK32 if entry[0] >> 28 & REST_RUN else 1, entry[6]


def _date(reader: Reader, samples: list[tuple[int, int]]) -> None:
    """A pin was taken before the epoch left it, and after the epoch came to it; and not before its process came."""
    if reader.oldest is None:
        return
    now = time.time()
    left = min((when for epoch, when in samples if epoch > reader.oldest), default=None)
    came = max((when for epoch, when in samples if epoch <= reader.oldest), default=0)
    reader.held = max(0.0, now - left / 1e9) if left is not None else 0.0
    reader.held_most = max(reader.held, now - max(came / 1e9, reader.since))
