"""backup: a copy of a store that others write to, which opens as a state that was.

The state is cut(E), E a mark made for it, or later: every committed record with a colour up to E, which is closed
(csrc/flush.c). The copy has no `control`, so its first open is a recovery, and what it finds beyond E it discards, as
after a power loss at the moment of the mark. So this module has three things to see to (docs/design.md, Backup):

* That all of cut(E) is in the copy. A pin comes first, then a flush with E at or above it. What is retired from then on
  is not used again while the pin stands; what was retired before, nothing in cut(E) needs. Copying begins after the
  mark, so every commit word of cut(E) is in memory then.
* That nothing in the copy knows of more than its mark. A lease that was begun when a newer epoch was durable holds
  nothing of cut(E): it is left out; and so is all of a segment that was opened after E. Their headers may stay, told
  that E was the newest.
* That what must be whole is named. The mark of the copy is E with the leases that the mark of the store lists.

The bytes are copied, never shared with the original (reflinks): a store to a shared block needs room, and finds none
on a full disk, as a SIGBUS.
"""

from __future__ import annotations

import os
import time

from . import _files, errors, failpoints
from ._extent import Run, run_at
from ._lasting import Config, Marks, newest_complete, parse_config
from ._layout import (
    BLOCK,
    CONTROL_SEGMENTS,
    EXTENT_STATE,
    IN_USE,
    LAST_GENERATION,
    LEASE_HEADER,
    MARK_LEASE,
    MARK_MAGIC,
    MARK_SECTOR,
    MARK_SECTORS,
    MARKS_SIZE,
    PAGE_MASK,
    REST_MEMBER,
    REST_RUN,
    RETIRED,
    RETIREMENTS_AT,
    RUN_HEADER,
    RUN_MAGIC,
    SECTOR,
    SECTOR_LEASES,
    SEGMENT_ENTRY_SIZE,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    crc,
)
from ._log import Lease, Segment, lease_at, retirements, segment_at
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Progress = Callable[[int, int], None]

_SINCE = 48  # of a segment entry
_AT_ONCE = 1 << 20
_FREE = 0
_EMPTY = (_FREE, 1, 6, 7)  # states of a segment in which nothing counts: FREE, PREPARING, PUNCHING, HOLE
_BEGUN = "config.new"  # says whose copy was begun here; stays as it is until the copy has its name
_UNFINISHED = {"config.last", "log.new", "marks.new", "log", "marks", "lock", _BEGUN, "open.lock"}


class Backup:
    """A copy that was made: `path` of the original and `dest`, the `epoch` that it stands for, the `bytes` that were
    copied, and `seconds`.
    """

    __slots__ = ("bytes", "dest", "epoch", "path", "seconds")

    def __init__(self, path: str, dest: str) -> None:
        self.path, self.dest = path, dest
        self.epoch = self.bytes = 0
        self.seconds = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        return f"{self.dest}: {self.bytes / 1e6:.1f} MB copied, the state of epoch {self.epoch}; {self.seconds:.1f} s"

    def __repr__(self) -> str:
        return f"<mmpc.Backup {self}>"


def copy_store(mm: Any, path: str, dest: str, progress: Progress | None) -> Backup:
    """The work of PageCache.backup, for an attachment."""
    from filelock import FileLock, Timeout

    begun, report = time.monotonic(), Backup(path, dest)
    try:
        made = _prepare(path, dest)
        with FileLock(os.path.join(dest, "open.lock"), mode=0o600, timeout=0):
            _check(path, dest)
            try:
                _copy(mm, path, dest, report, progress or (lambda _done, _total: None))
            except BaseException:
                _clear(dest, made)
                raise
    except Timeout:
        raise errors.StoreBusy(f"{dest!r}: somebody else makes a backup, or a store, there") from None
    except OSError as e:
        raise e if isinstance(e, (errors.MmpcError, FileExistsError)) else _files.explained(e, dest) from e
    report.seconds = time.monotonic() - begun
    return report


# ---- where it goes


def _prepare(path: str, dest: str) -> bool:
    """Makes the directory, if it is not there, and says so."""
    ours, theirs = os.path.realpath(path), os.path.realpath(dest)
    if theirs == ours or theirs.startswith(ours + os.sep):
        raise ValueError(f"{dest!r} is the store itself, or lies in it; choose a directory outside")
    if not os.path.isdir(dest):
        return _files.make_directory(dest)
    if set(os.listdir(dest)) - _UNFINISHED:
        raise _taken(dest)
    return False


def _check(path: str, dest: str) -> None:
    """Nobody else makes anything here. What a backup of this store left that was cut off goes away: it was begun by
    `config.new`, which is durable before there is anything else. A store that lost its `config` stays.
    """
    names = set(os.listdir(dest))
    if names <= {"open.lock", _BEGUN}:
        return
    left = parse_config(_bytes(os.path.join(dest, _BEGUN)) if _BEGUN in names else b"")
    ours = parse_config(_bytes(os.path.join(path, "config")))
    if names - _UNFINISHED or not isinstance(left, Config) or not isinstance(ours, Config) or left.uuid != ours.uuid:
        raise _taken(dest)
    for name in names - {"open.lock", _BEGUN}:
        _files.remove_file(os.path.join(dest, name))
    _files.sync_directory(dest)  # before it is written anew


def _taken(dest: str) -> Exception:
    names = set(os.listdir(dest)) - {"open.lock"}
    what = "a store" if "config" in names else ", ".join(sorted(names)[:5])
    return errors.IncompatibleStore(f"{dest!r} holds {what}; choose a directory that is empty or does not exist")


def _bytes(name: str) -> bytes:
    with open(_files.open_file(name), "rb") as f:
        return f.read(_files.MAX_CONFIG)


def _clear(dest: str, made: bool) -> None:
    """After a refusal: what was made. Killed, it stays, and is no store."""
    if os.path.exists(os.path.join(dest, "config")):
        return  # it was complete, or is somebody else's
    for name in _UNFINISHED - {"open.lock"} | ({"open.lock"} if made else set()):
        _files.remove_file(os.path.join(dest, name))
    if made:
        _files.remove_directory(dest)


# ---- the copy


def _copy(mm: Any, path: str, dest: str, report: Backup, progress: Progress) -> None:
    pin, epoch = ffi.new("uint32_t *"), ffi.new("uint64_t *")
    _must(lib.mm_pin(mm, pin, epoch), ffi.new("mm_result *"))
    try:
        data = _bytes(os.path.join(path, "config"))
        config = parse_config(data)
        if not isinstance(config, Config):
            raise errors.CorruptionError(f"'config': {config}", file="config", offset=0)
        lasting = _files.lasting_config(data)
        _write(os.path.join(dest, _BEGUN), lasting)
        r, advanced = ffi.new("mm_result *"), ffi.new("uint64_t *")
        _must(lib.mm_flush(mm, epoch[0], advanced, r), r)
        _must(lib.mm_flush_to_marks(mm, r), r)
        with _files.Descriptors() as files:
            for name in ("log", "marks", "control"):
                files.fds[name] = _files.open_file(os.path.join(path, name))
            files.fds["copy"] = _files.create_file(os.path.join(dest, "log.new"))
            marks = _newest(files.get("marks"), config, int(epoch[0]))
            copy = _Copy(files, config, marks, progress)
            copy.run()
            os.fsync(files.get("copy"))
        _must(lib.mm_clock(mm, epoch, ffi.new("uint64_t *")), r)  # nothing in the copy has a colour above
        now = _files.decode_config(_bytes(os.path.join(path, "config")))  # it says what there may be before there is
        _write(os.path.join(dest, "config.last"), _without(lasting, marks.durable, int(epoch[0]), now.incompat))
        report.epoch, report.bytes = marks.durable, copy.done
    finally:
        lib.mm_unpin(mm, pin[0])
    _write_mark(os.path.join(dest, "marks.new"), config, marks, copy.required())
    _write(os.path.join(dest, "lock"), b"")
    for name in ("log", "marks"):
        os.rename(os.path.join(dest, name + ".new"), os.path.join(dest, name))
    _files.sync_directory(dest)  # the others are there when it is
    os.rename(os.path.join(dest, "config.last"), os.path.join(dest, "config"))
    _files.remove_file(os.path.join(dest, _BEGUN))
    _files.sync_directory(dest)


def _without(data: bytes, durable: int, newest: int, features: int) -> bytes:
    """`config` for the copy: what is newer than its mark is discarded, so that nothing in the log brings it back: what
    a flush of the copied life intended may be there without all that it was for.
    """
    config = _files.decode_config(data)
    pairs = (*config.discards, (durable, newest))
    return config.changed(discards=pairs, incompat=config.incompat | features).encode()


def _must(rc: int, r: Any) -> None:
    if rc:
        raise errors.from_status(rc, pid=0, length=r.length, offset=r.offset, file=r.file, os_error=r.os_error)


def _write(name: str, data: bytes) -> None:
    fd = _files.create_file(name)
    try:
        _put(fd, memoryview(data), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _put(fd: int, data: memoryview, at: int) -> None:
    failpoints.reach("backup write")
    while data:
        n = os.pwrite(fd, data, at)
        data, at = data[n:], at + n


def _newest(fd: int, config: Config, pinned: int) -> Marks:
    """A mark at or above the pin, with all that it lists: one that is just being written is read again."""
    for _ in range(1000):
        marks = newest_complete(fd, config.uuid)
        if marks is not None and marks.durable >= pinned:
            return marks
        time.sleep(0.001)
    raise errors.CorruptionError("no mark in 'marks' is whole that was made just now", file="marks", offset=0)


class _Copy:
    """The copy of one log as of a mark."""

    def __init__(self, files: _files.Descriptors, config: Config, marks: Marks, progress: Progress) -> None:
        self.source, self.control, self.target = files.get("log"), files.get("control"), files.get("copy")
        self.config, self.marks, self.progress = config, marks, progress
        self.size = os.fstat(self.source).st_size
        self.total = min(os.fstat(self.source).st_blocks * 512, self.size)
        self.done = 0
        self.buffer = bytearray(_AT_ONCE)
        self.leases: dict[int, Lease] = {}  # those that are in the copy
        self.left_out: set[int] = set()  # addresses of those that are not
        self.segments: dict[int, Segment] = {}  # with a header that holds
        self.runs: set[int] = set()  # first segments of those that are in the copy
        self.kept: set[int] = set()  # of which more than the header was copied

    def run(self) -> None:
        os.ftruncate(self.target, self.size)
        step = 1 << self.config.shift
        count = (self.size + step - 1) >> self.config.shift
        words = os.pread(self.control, count * SEGMENT_ENTRY_SIZE, CONTROL_SEGMENTS)
        for number in range(count):
            at = number * SEGMENT_ENTRY_SIZE
            word, since = (int.from_bytes(words[at + k : at + k + 8], "little") for k in (0, _SINCE))
            state, rest = word & 15, word >> 28
            gone = state == RETIRED and since <= self.marks.durable  # not kept by the pin, and not needed in the cut
            if state == EXTENT_STATE or (state == RETIRED and rest & REST_RUN):
                self._part_of_run(number, word >> 4 & 0xFFFFFF, rest, gone)
            else:
                self._segment(number, _FREE if gone else state, word >> 4 & 0xFFFFFF)

    def _part_of_run(self, number: int, generation: int, rest: int, gone: bool) -> None:
        """A run that was taken after the cut holds nothing of it, nor does one that was retired before, which may be
        given back meanwhile. Of another one all bytes are copied: it waits for the pin. Its header as it was looked at:
        who names the run later writes it anew, and may know of more than the mark.
        """
        base, run = number << self.config.shift, None
        if not rest & REST_MEMBER and not gone:
            run = run_at(os.pread(self.source, RUN_HEADER.size, base), number, self.config.uuid)
            if run is not None and run.generation == generation and run.epoch <= self.marks.durable:
                self.runs.add(number)
        if (rest & ~REST_MEMBER if rest & REST_MEMBER else number) not in self.runs:
            self._gone_by(number, generation)
            return
        self._bytes(base, min(base + (1 << self.config.shift), self.size))
        if run is not None:
            run.stable = min(run.stable, self.marks.durable)
            self._put(run.packed(self.config.uuid), base)

    def _gone_by(self, number: int, generation: int) -> None:
        """What others name in the segment is of an earlier generation: a header of its own says so in the copy."""
        base = number << self.config.shift
        if generation:
            self._put(Run(number, generation, PAGE_MASK, 1).packed(self.config.uuid), base)
        if number == 0:  # the log begins with it, whatever the segment is
            self._put(os.pread(self.source, 8, RETIREMENTS_AT), RETIREMENTS_AT)

    def _segment(self, number: int, state: int, generation: int) -> None:
        """A segment that is free holds nothing of the cut, and one that was opened later neither: the header is enough,
        which says that what others name in it is gone.
        """
        base = number << self.config.shift
        segment = self._header(number, state, generation)
        if segment is not None:
            self.segments[number] = segment
        later = segment is not None and (segment.epoch > self.marks.durable or self._gone(segment))
        if later or state in _EMPTY:
            return
        self.kept.add(number)
        self._bytes(base + BLOCK if segment is not None else base, min(base + (1 << self.config.shift), self.size))
        if segment is not None and state in IN_USE:
            self._leases(segment)

    def _gone(self, segment: Segment) -> bool:
        """Retired in the state of the cut: a recovery does not look into it, and it may be used again."""
        discarded = any(lo < segment.retired <= hi for lo, hi in self.config.discards)
        return 0 < segment.retired <= self.marks.durable and not discarded

    def _header(self, number: int, state: int, generation: int) -> Segment | None:
        """Copies the first block, once the header in it is whole: somebody may be writing it. If he died in the middle,
        what the segment says of its retirement tells. A header of a run in a segment that was free is of a later life.
        """
        base, segment, run, data = number << self.config.shift, None, None, bytearray()
        for _ in range(200 if state in _EMPTY or state in IN_USE else 1):
            data = bytearray(os.pread(self.source, BLOCK, base))
            segment = segment_at(bytes(data), number, self.config.uuid)
            if segment is not None or bytes(data[:8]) not in (SEGMENT_MAGIC, RUN_MAGIC):
                break
            run = run_at(bytes(data), number, self.config.uuid)
            if run is not None:
                break
            time.sleep(0.001)
        if segment is None:
            retired = retirements(bytes(data), number, self.config.uuid)
            if state in _EMPTY and (run or (any(data) and not any(s.generation >= generation for s in retired))):
                # It was in a run, or is in one that was taken since: then leases may name it by the word's generation.
                self._gone_by(number, min(generation + 1, LAST_GENERATION) if generation else 0)
                return None
            if any(data):
                self._put(data, base)  # as it is
            retired = [s for s in retired if self._gone(s)]
            return max(retired, key=lambda s: s.retired, default=None)
        if segment.stable > self.marks.durable:
            data[40:48] = self.marks.durable.to_bytes(8, "little")
            data[8:12] = crc(bytes(data[12 : SEGMENT_HEADER.size])).to_bytes(4, "little")
        self._put(data, base)
        return segment

    def _put(self, data: bytes | bytearray, at: int) -> None:
        _put(self.target, memoryview(data), at)
        self._told(len(data))

    def _bytes(self, at: int, end: int) -> None:
        """What is no hole."""
        while at < end:
            try:
                at = os.lseek(self.source, at, os.SEEK_DATA)
                stop = min(os.lseek(self.source, at, os.SEEK_HOLE), end)
            except OSError:  # nothing but holes
                return
            while at < stop:
                part = memoryview(self.buffer)[: min(_AT_ONCE, stop - at)]
                n = os.preadv(self.source, [part], at)
                if n == 0:
                    raise errors.CorruptionError(f"'log' was cut at {at}", file="log", offset=at)
                _put(self.target, part[:n], at)
                at += n
                self._told(n)

    def _told(self, n: int) -> None:
        self.done += n
        self.progress(min(self.done, self.total), self.total)

    def _leases(self, segment: Segment) -> None:
        """The leases of a segment as they are in the copy, where nobody writes; those begun later are taken out."""
        base = segment.number << self.config.shift
        at, end = base + BLOCK, base + (1 << self.config.shift)
        while at < min(end, self.size):
            lease = lease_at(os.pread(self.target, LEASE_HEADER.size, at), 0, at, segment, end - at)
            if lease is None:
                at += BLOCK
                continue
            if lease.stable > self.marks.durable:  # the rest of it is not looked at without
                _put(self.target, memoryview(bytes(LEASE_HEADER.size)), at)
                self.left_out.add(at)
            else:
                self.leases[at] = lease
            at += lease.size

    def required(self) -> list[tuple[int, int, int]]:
        """What the mark lists, but for what was begun later or is gone."""
        return [lease for lease in self.marks.leases if self._needed(*lease)]

    def _needed(self, address: int, _fill: int, generation: int) -> bool:
        number = address >> self.config.shift
        segment = self.segments.get(number)
        if segment is not None and (segment.generation != generation or number not in self.kept):
            return False
        if address not in self.leases and address not in self.left_out:
            said = f"the lease at {address} that the newest mark lists is damaged"
            raise errors.CorruptionError(said, file="log", offset=address)
        return address in self.leases


# ---- its mark


def _write_mark(name: str, config: Config, marks: Marks, leases: list[tuple[int, int, int]]) -> None:
    """`marks` as it is after one flush of slot 0."""
    fd = _files.create_file(name)
    try:
        os.ftruncate(fd, MARKS_SIZE)
        os.posix_fallocate(fd, 0, _files.SLOTS_READY * 2 * BLOCK)
        _put(fd, memoryview(b"".join(_sectors(config, marks, leases))), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _sectors(config: Config, marks: Marks, leases: list[tuple[int, int, int]]) -> Iterator[bytes]:
    seed = crc(config.uuid)
    for place in range(MARK_SECTORS):
        own = leases[place * SECTOR_LEASES : (place + 1) * SECTOR_LEASES]
        says = (marks.segments, marks.retirements, marks.discarded)
        head = MARK_SECTOR.pack(MARK_MAGIC, 0, len(own), marks.durable, 0, place, *says)
        data = (head + b"".join(MARK_LEASE.pack(*lease) for lease in own)).ljust(SECTOR, b"\0")
        yield data[:8] + crc(data[12:], seed).to_bytes(4, "little") + data[12:]
