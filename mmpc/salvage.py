"""salvage: what can be saved of a damaged store, in a new one.

The damaged store is only read. Of each page the newest version is saved whose whole chain verifies, under the same page
id; where the newest one of all is damaged an older one is saved and listed, and a page of which nothing is intact is
listed as lost. Payloads are copied as bytes, so the program's materializer need not be there.
"""

from __future__ import annotations

import os
import time

from . import _reserved, _store, _volatile, errors
from ._compression import Compression, needed
from ._findings import Findings, Problem
from ._lasting import Config
from ._layout import ADDRESS_MASK, BASE, COMPRESSED, FREE, PAGE_MASK, SEGMENT_HEADER, SEGMENT_MAGIC, colour_of
from ._log import COMMITTED, Record
from ._native import ffi, lib
from ._wreck import Wreck
from .materializer import by_name
from .verify import Check, Files, Report, find_config, verify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Progress = Callable[[int, int], None]

DEEP = 200  # page_consolidation_threshold of the attachment that writes: no chain is shortened on the way


class Salvaged:
    """What `salvage` saved, and what it could not.

    `pages` and `records` were written to `dest`. `older`: pages of which only an older version is intact; `lost`: pages
    of which nothing is; each a Problem with the file and offset of the damage. `before` is the report on the damaged
    store, `after` the one on the new store. `state` says which versions counted: "all committed" or "durable".
    """

    __slots__ = ("after", "before", "dest", "free", "lost", "older", "pages", "path", "records", "seconds", "state")

    def __init__(self, path: str, dest: str) -> None:
        self.path, self.dest = path, dest
        self.pages = self.records = self.free = 0
        self.older: list[Problem] = []
        self.lost: list[Problem] = []
        self.state = ""
        self.seconds = 0.0
        self.before: Report
        self.after: Report

    @property
    def ok(self) -> bool:
        """Every page was saved in its newest version, and the new store is sound."""
        return not self.older and not self.lost and self.after.ok

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = ("path", "dest", "state", "pages", "records", "free", "seconds")
        found: dict[str, Any] = {"ok": self.ok} | {name: getattr(self, name) for name in plain}
        found["older"] = [p.as_dict() for p in self.older]
        found["lost"] = [p.as_dict() for p in self.lost]
        found["after"] = self.after.as_dict()
        return found

    def __str__(self) -> str:
        lines = [
            f"saved {self.pages} pages ({self.free} of them free, {self.records} records; {self.state}) to {self.dest}",
            *(f"older: {p.file} at {p.offset}: page {p.page}: {p.message}" for p in self.older),
            *(f"lost: {p.file} at {p.offset}: page {p.page}: {p.message}" for p in self.lost),
            f"the new store is {'sound' if self.after.ok else 'DAMAGED'}",
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<mmpc.salvage of {self.path!r}: {self.pages} saved, {len(self.older)} older, {len(self.lost)} lost>"


def salvage(
    path: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    materializer: str | None = None,
    progress: Progress | None = None,
) -> Salvaged:
    """Writes what can be saved of the store in `path` into a new store in `dest`, and says what cannot.

    `dest` is an empty directory, or none. The new store has the same materializer, segment size and page ids, free
    pages stay free, and pages 0 and 1 come along; it is durable on return. Of a store of this boot all committed
    versions count, else those that were durable, or all if that cannot be known. Nobody should write to `path`
    meanwhile.
    `materializer`: its name, needed only where `config` is lost. `progress(done, total)` gets bytes now and then.

    Errors: FileNotFoundError, FileExistsError (`dest` holds something), IncompatibleStore, CorruptionError (nothing can
    be made of `config`, and no `materializer` is given), DiskFullError, OSError, Unsupported (no zstandard).
    """
    where, into = os.path.abspath(os.fsdecode(path)), os.path.abspath(os.fsdecode(dest))
    if not os.path.isdir(where):
        raise FileNotFoundError(2, "no store here", where)
    if os.path.exists(into) and (not os.path.isdir(into) or os.listdir(into)):
        raise FileExistsError(17, "the new store needs an empty directory", into)
    begun = time.monotonic()
    result = Salvaged(where, into)
    with Files(where) as files:
        config = _config(files, materializer)
        found = _Found(files, config, result, progress)
        if found.log is not None and found.log.flags & COMPRESSED:
            config.compressed = True  # what says so may be what was lost
        with _New(into, config) as new:
            for page in sorted(found.known - {_reserved.COUNTER}):
                _save(found, new, page, result)
            _save_counter(found, new, result)
            new.finish()
    result.after = verify(into)
    result.seconds = time.monotonic() - begun
    return result


def _config(files: Files, materializer: str | None) -> Config:
    try:
        config = find_config(files, Findings())
    except errors.CorruptionError:
        if materializer is None:
            raise
        return _config_of_log(files, materializer)
    if config.codec != _store.CODEC:
        raise errors.IncompatibleStore(f"the store's codec is {config.codec!r}, this mmpc has {_store.CODEC!r}")
    return config


def _config_of_log(files: Files, materializer: str) -> Config:
    """What the headers of segments say; which colours were discarded is lost with `config`."""
    fd = files.fds.get("log")
    head = os.pread(fd, SEGMENT_HEADER.size, 0) if fd is not None else b""
    if fd is None or len(head) < SEGMENT_HEADER.size or not head.startswith(SEGMENT_MAGIC):
        raise errors.CorruptionError("neither 'config' nor the head of 'log' can be read", file="config", offset=0)
    size = os.fstat(fd).st_size
    for shift in range(16, 31):
        at = os.pread(fd, SEGMENT_HEADER.size, 1 << shift)
        if 1 << shift >= size or (at.startswith(SEGMENT_MAGIC) and at[16:24] == (1).to_bytes(8, "little")):
            return Config(head[48:64], shift, materializer, _store.CODEC, ())
    raise errors.CorruptionError("'config' is lost, and 'log' does not tell its segment size", file="config", offset=0)


# ---- what is there


class _Found:
    """All whole records of the damaged store, and what is known of those that are not."""

    def __init__(self, files: Files, config: Config, result: Salvaged, progress: Progress | None) -> None:
        check = Check(files, None)
        check.run(config)
        result.before = check.report()
        self.log: Wreck | None = None
        self.pages: dict[int, list[int]] = {}  # indices of committed records that count
        self.gone: dict[int, tuple[int, int]] = {}  # page: version (0: not known) and address of a damaged record
        self.known: set[int] = set()
        if "log" not in files.fds:
            result.state = "nothing"
            return
        log = self.log = Wreck(files.fds["log"], files.fds.get("control"), config, Findings(), check.pieces)
        log.scan(lambda done: progress(done, log.size) if progress is not None else None)
        certain = not any(p.file == "marks" for p in check.findings.problems if p.severity == "damage")
        limit = check.marks.durable if certain and not check.same_boot else 2**64 - 1
        result.state = "durable" if limit < 2**64 - 1 else "all committed"
        self._candidates(config, limit)
        self._losses(check)
        self.known = self.pages.keys() | self.gone.keys()

    def _candidates(self, config: Config, limit: int) -> None:
        log = self.log
        assert log is not None
        for index, standing in enumerate(log.standings):
            if standing != COMMITTED:
                continue
            colour = colour_of(log.page_colours[index], log.prev_colours[index])
            if colour <= limit and not any(lo < colour <= hi for lo, hi in config.discards):
                self.pages.setdefault(log.page_colours[index] & PAGE_MASK, []).append(index)

    def _losses(self, check: Check) -> None:
        """Records that were there: below what marks and leases require, named by heads, or, of this boot, followed by
        others in their lease.
        """
        log = self.log
        assert log is not None
        ranges = sorted((address, address + fill) for address, fill in _required(check))
        for spot in log.spots:
            below = any(low <= spot.start < high for low, high in ranges)
            if spot.page is not None and (below or (check.same_boot and spot.followed)):
                self._note(spot.page, spot.version, spot.start)
        for snapshot in check.snapshots:
            left = check.left(snapshot)
            for page, address in snapshot.heads():
                if address >> log.shift not in left:
                    self._head(page, address)
        if check.control is not None and check.control.table_counts:
            for page, head in _volatile.heads(check.control):
                if head.bit_count() % 2 == 0:
                    self._head(page, (head & ADDRESS_MASK) << 3)

    def _head(self, page: int, address: int) -> None:
        assert self.log is not None
        record = self.log.find(address)
        if record is None or record.page != page:
            self._note(page, 0, address)
        elif page not in self.pages:  # published, and its author died before the commit word
            self.pages[page] = [index for index in [self.log.index_of(address)] if index is not None]

    def _note(self, page: int, version: int, address: int) -> None:
        before = self.gone.get(page)
        if before is None or before[0] < version:
            self.gone[page] = version, address

    def best(self, page: int) -> tuple[list[Record] | None, Problem | None]:
        """The newest intact chain of a page, newest first, and what is wrong with what was newer."""
        log, wrong = self.log, None
        assert log is not None
        for index in sorted(self.pages.get(page, ()), key=lambda i: log.versions[i], reverse=True):
            chain = log.chain(log.record(index))
            if not isinstance(chain, Problem):
                return chain, wrong or self._newer(page, chain[0])
            wrong = wrong or chain
        return None, wrong or self._newer(page, None)

    def _newer(self, page: int, newest: Record | None) -> Problem | None:
        version, address = self.gone.get(page, (0, -1))
        if address < 0 or (newest is not None and version and version <= newest.version):
            return None
        if newest is not None and not version and address == newest.address:
            return None
        return Problem("log", address, "its record here is damaged", page)

    def ceilings(self) -> list[int]:
        """What any whole record of page 1 says, whether it counts or not."""
        log = self.log
        if log is None:
            return []
        those = [i for i, word in enumerate(log.page_colours) if word & PAGE_MASK == _reserved.COUNTER]
        said = [_reserved.ceiling(self.payload(log.record(i))) for i in those]
        return [number for number in said if number is not None]

    def payload(self, record: Record) -> bytes:
        assert self.log is not None
        return self.log.payload(record)  # all of it: its chain was judged

    def stored(self, record: Record) -> bytes:
        assert self.log is not None
        return self.log.stored(record)


def _required(check: Check) -> list[tuple[int, int]]:
    """(address, bytes) of what must be whole in leases: by the marks, by the lease that came next, by their own end."""
    log = check.log
    if log is None:
        return [(address, fill) for address, fill, _generation in check.marks.leases]
    named = list(check.marks.leases)
    named += [(a.previous, a.filled, a.previous_generation) for a in log.leases.values() if a.followed]
    required = [(address, fill) for address, fill, generation in named if log.needed(address, generation)]
    return required + [(at, a.ended) for at, a in log.leases.items() if a.ended and log.counts(a.ended_epoch)]


# ---- the new store


class _New:
    """The new store, with this process attached to it."""

    def __init__(self, path: str, config: Config, factor: int | None = None) -> None:
        """`factor`: compression_factor of what `put` is given; None: it is stored as it is."""
        if factor is not None:
            needed("compression was asked for")
        native = by_name(config.materializer)
        kind = int(native.kind) if native is not None else 0
        self.path = path
        options = _store.Options(path, config.materializer, kind, DEEP, config.shift, False)
        options.compression = factor if factor is not None or not config.compressed else 1  # the store is to say so
        self.attachment, _existed = _store.open_store(options, True)
        self._kind, self._compress = kind, Compression(self.attachment, kind, factor).compress
        self._open = True

    def put(self, page: int, kind: int, payload: bytes) -> str | None:
        """Publishes a record; None, or why it cannot be. Errors: DiskFullError, OSError."""
        if self._compress is not None and kind != FREE and page != _reserved.COUNTER:
            native = self._kind != 0 and page >= 2
            tag = int(lib.mm_merge_class(self._kind, payload, len(payload))) if native else 0
            frame = self._compress(payload) if tag or not native else None  # else the core says what is wrong with it
            if frame is not None:
                return self.put_frame(page, kind, tag, frame)
        r = ffi.new("mm_result *")
        return self._said(lib.mm_restore(self.attachment.mm, page, kind, payload, len(payload), r), r, page)

    def put_frame(self, page: int, kind: int, tag: int, frame: bytes) -> str | None:
        """The same for a fragment that is compressed already; `tag`: the class of what it was."""
        r = ffi.new("mm_result *")
        mm = self.attachment.mm
        return self._said(lib.mm_restore_compressed(mm, page, kind, tag, frame, len(frame), r), r, page)

    def _said(self, status: int, r: Any, page: int) -> str | None:
        if status == errors.OK:
            return None
        error = errors.from_status(
            status, pid=page, length=r.length, offset=r.offset, file=r.file, os_error=r.os_error
        )
        if status in (errors.TYPE, errors.TOOBIG, errors.LIMIT):
            return str(error)
        raise error

    def go_on(self) -> None:
        """Numbers of generate_id go on above what page 1 says now."""
        r = ffi.new("mm_result *")
        status = lib.mm_ids_begin(self.attachment.mm, r)
        if status:
            raise errors.from_status(status, pid=1, length=0, offset=0, file=0, os_error=0, path=self.path)

    def finish(self) -> None:
        """Flushes, writes a snapshot, and leaves."""
        error = _store.settle(self.attachment, self.path)
        self.close()
        if error is not None:
            raise error

    def close(self) -> None:
        if self._open:
            self._open = False
            lib.mm_close(self.attachment.mm)

    def __enter__(self) -> _New:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _save(found: _Found, new: _New, page: int, result: Salvaged) -> None:
    chain, wrong = found.best(page)
    if chain is None:
        if wrong is not None:
            result.lost.append(wrong)
        return
    for record in reversed(chain):
        stored = found.stored(record)
        if record.shape & COMPRESSED:
            refused = new.put_frame(page, record.kind, record.tag, stored)
        else:
            refused = new.put(page, record.kind, stored)
        if refused is not None:
            result.lost.append(Problem("log", record.address, refused, page))
            return
    result.pages += 1
    result.records += len(chain)
    result.free += chain[0].kind == FREE
    if wrong is not None:
        result.older.append(wrong)


def _save_counter(found: _Found, new: _New, result: Salvaged) -> None:
    """Page 1: no number that was ever handed out may come again, so the largest ceiling that can be read counts, of
    whatever state; and where a newer one may be lost, far more.
    """
    chain, wrong = found.best(_reserved.COUNTER) if found.log is not None else (None, None)
    number = max(found.ceilings(), default=0)
    if chain is None or wrong is not None:
        number += _reserved.MARGIN
        where = wrong or Problem("log", 0, "no record of it is left", _reserved.COUNTER)
        said = f"{where.message}; numbers of generate_id go on at {number}"
        (result.older if chain else result.lost).append(Problem(where.file, where.offset, said, _reserved.COUNTER))
    refused = new.put(_reserved.COUNTER, BASE, _reserved.encoded(min(number, _reserved.MAX_ID)))
    if refused is not None:
        raise errors.MmpcError(refused)
    new.go_on()
    result.pages += 1
    result.records += 1
