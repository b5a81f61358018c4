"""PageCache: a handle of this process to a store."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref

from . import _backup, _compression, _files, _maintenance, _snapshot, _store, _views, errors
from ._checks import check_int, check_path
from ._face import Materialized, PagePtr, T, Verbs
from ._meta import Collections
from ._metrics import Measured
from ._native import ffi, lib
from ._stats import Stats
from .materializer import Materializer
from .tx import Tx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

_VIEW_TRIES = 8  # consolidations for one view, against writers that append all the time
_ROOM_TRIES = 300  # looks at 5 ms, while another process makes room on a full disk


class PageCache(Measured, Verbs[T], Collections):
    """A handle to an open store; made by `mmpc.open`, a context manager.

    Any number of threads may share a handle.  It pickles (path and options) and survives fork: a forked child
    attaches by itself at its first operation.  The verbs `get`, `get_many`, `get_page_frags`, `allocate`,
    `view`, `append`, `append_many`, `link`, `replace`, `free` and `generate_id` are those of `Verbs`, those of named
    collections are those of `Collections`. Values that `get` returns are
    shared with the cache: treat them as immutable.
    """

    # No __dict__: the interpreter finds a verb faster on an object that cannot have an attribute of that name.
    __slots__ = (
        "__weakref__",
        "_attachment",
        "_capacity",
        "_closed",
        "_compression",
        "_flusher",
        "_former",
        "_lock",
        "_materializer",
        "_options",
        "_owner",
        "_pid",
        "_snapshotter",
        "_was_recovered",
    )
    _may_consolidate = True  # for a view
    _caches = True

    def __init__(self, materializer: Materializer[T], options: _store.Options, create: bool, capacity: int) -> None:
        self._materializer = materializer
        self._options = options
        self._capacity = capacity
        self._lock = threading.RLock()
        self._closed = False
        self._former: list[_store.Attachment] = []  # of parent processes: other threads may be inside still
        self._attachment, existed = self._attach(create)
        self._pid = os.getpid()
        self._was_recovered = existed
        self._flusher: _maintenance.Flusher | None = None
        self._snapshotter: _maintenance.Snapshotter | None = None
        self._bind_face()
        _handles.add(self)
        self._start_flusher()

    def _attach(self, create: bool) -> tuple[_store.Attachment, bool]:
        """A new attachment, and whether the store existed before."""
        return _store.open_store(self._options, create)

    def _start_flusher(self) -> None:
        period = self._options.flush_every_ms
        if period is not None and not isinstance(self, ReadOnlyPageCache):
            self._flusher = _maintenance.Flusher(self, period)

    def _bind_face(self) -> None:
        from . import codec

        m = self._materializer
        size_of = m.size_in_bytes if type(m).size_in_bytes is not Materializer.size_in_bytes else None
        lib.mm_mapped_bound(self._attachment.mm, self._options.mapped or 0)
        address = int(ffi.cast("uintptr_t", self._attachment.mm))
        last = m.size_rule == "last"
        self._owner = _views.Owner(self._attachment, self._options)
        c = self._compression = _compression.Compression(
            self._attachment, self._options.kind, self._options.compression
        )
        self._bind(
            address,
            codec.packer(),
            codec.unpacker(),
            m.merge,
            self._options.kind,
            last,
            size_of,
            self._capacity if self._caches else 0,
            self._owner,
            c.decompress,
            c.compress,
            _compression.LEAST,
        )

    # ---- verbs that are loops around others

    def update(self, pid: int, fn: Callable[[T], T], tx: Tx | None = None) -> PagePtr:
        """Replaces the page's value by `fn(value)`, again and again until nobody wrote in between; returns
        the new key.

        `fn` may run several times and must not change its argument.  Errors: PageNotFound, PageFreed, and
        those of `replace`.
        """
        while True:
            page = self.get(pid, tx)
            if not isinstance(page, Materialized):
                raise self._not_materialized(pid, page)
            try:
                return self.replace(pid, page.key, fn(page.value), tx)
            except errors.Conflict:
                continue

    @staticmethod
    def _not_materialized(pid: int, page: Any) -> errors.MmpcError:
        if pid in (0, 1):
            return errors.Unsupported(f"page {pid} belongs to the store (0 is Meta, 1 is Counter)")
        if page.is_free():
            return errors.PageFreed(f"page {pid} is free; allocate() hands its id out again")
        return errors.PageNotFound(f"page {pid} was never allocated")

    def begin(self) -> Tx:
        """A Tx: an epoch pin and a timestamp, which is a number of `generate_id` and may wait for a flush as that does.

        On a full disk its record takes what is kept for `free`.  Errors: Closed, StoreFailed, CorruptionError (page 1),
        DiskFullError (nothing is left of that either).
        """
        self._here()
        return Tx(self._attachment, self._options.path)

    def bump_page_rts(self, pid: int, ts: int, tx: Tx | None = None) -> None:
        """Raises the page's read timestamp to at least `ts`; nothing happens on a page that was never
        allocated.  Not durable.
        """
        check_int("ts", ts, 0, 2**64 - 1)
        self._call(lib.mm_bump_rts, pid, ts, tx=tx, missing_ok=True)

    def get_page_rts(self, pid: int, tx: Tx | None = None) -> int | None:
        """The page's read timestamp (0 if it was never raised), or None if the page was never allocated."""
        out = ffi.new("uint64_t *")
        return int(out[0]) if self._call(lib.mm_get_rts, pid, out, tx=tx, missing_ok=True) else None

    def _call(self, fn: Any, pid: object, *args: Any, tx: Tx | None, missing_ok: bool) -> bool:
        if not isinstance(pid, int) or isinstance(pid, bool):
            raise TypeError(f"a page id is an int, not {type(pid).__name__}")
        if tx is not None and not isinstance(tx, Tx):
            raise TypeError(f"tx is a Tx or None, not {type(tx).__name__}")
        if tx is not None:
            tx._check(self)
        r = ffi.new("mm_result *")
        while True:
            self._here()
            status = errors.NOPAGE if not 0 <= pid < 2**40 else fn(self._attachment.mm, pid, *args, r)
            if status == errors.OK:
                return True
            if status == errors.NOPAGE and missing_ok:
                return False
            self._mend(status, (pid, 0, 0, 0, r.length, r.offset, r.file, r.os_error), pid, None)

    # ---- durability

    def flush(self) -> int:
        """Makes everything that any process did before durable.  Returns how far `stable_lsn` rose while it
        waited (0: nothing was dirty, and no sync was made).  Callers at the same time share syncs.

        Errors: StoreFailed (a sync failed, here or elsewhere), DiskFullError (no room for the mark).
        """
        return self._flush(0)

    def make_stable(self, lsn: int) -> int:
        """Makes everything up to `lsn` (the `last_lsn` of a key) durable; returns how far `stable_lsn` rose.

        The key of a `get` has the LSN of the moment it was read: what it names may be durable already although
        `stable_lsn` is smaller.  Errors: ValueError (an LSN never given), StoreFailed, DiskFullError.
        """
        check_int("lsn", lsn, 0, 2**64 - 1)
        self._here()
        newest = self._clock()[0]
        if lsn > newest:
            raise ValueError(f"LSN {lsn} was never given; the newest is {newest}")
        return self._flush(lsn) if lsn else 0

    def _flush(self, lsn: int) -> int:
        r, advanced = ffi.new("mm_result *"), ffi.new("uint64_t *")
        while True:
            self._here()
            status = lib.mm_flush(self._attachment.mm, lsn, advanced, r)
            if status == errors.OK:
                return int(advanced[0])
            self._mend(status, (0, 0, 0, 0, r.length, r.offset, r.file, r.os_error), 0, None)

    def snapshot(self) -> int:
        """Writes a snapshot of the page table, so that the next recovery has less to read; nobody pauses
        meanwhile.  Flushes.  Returns the epoch that it stands for.

        Snapshots are also written by themselves: when the log has grown by 64 MiB and by twice their size, and at
        the last close.  Errors: StoreFailed, DiskFullError, OSError; the older snapshot stays then.
        """
        while True:
            self._here()
            try:
                return _snapshot.write(self._attachment, self._options.path)
            except errors.Closed:
                if self._closed or not self._orphaned():
                    raise
                self._reattach()

    def _due(self) -> None:
        """A write noticed that the log has grown enough for a snapshot, or that this process owes some cleaning."""
        lib.mm_clean_help(self._attachment.mm)
        with self._lock:
            if self._closed or (self._snapshotter is not None and self._snapshotter.running()):
                return
            if lib.mm_snapshot_claim(self._attachment.mm):
                self._snapshotter = _maintenance.Snapshotter(self._attachment, self._options.path)

    def backup(
        self, dest: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None
    ) -> _backup.Backup:
        """Copies the store into the directory `dest`, which is empty or does not exist, while everybody goes on.

        The copy is a store of its own (with the uuid of this one, which seeds its checksums). It holds all that
        returned before, and of what is written meanwhile a closed part: what somebody saw is never missing where what
        he wrote on it is there. An ordinary `open` recovers it. It is durable on return; cut off before, `dest` is no
        store. `dest` may lie on any file system; the copy can be opened on a local one. A `read_only` handle can make
        one too. Flushes.

        `progress(done, total)` is called now and then with bytes. Errors: IncompatibleStore (`dest` holds something),
        ValueError (it is the store, or in it), DiskFullError (`dest` is as it was), CorruptionError, StoreFailed,
        StoreBusy (somebody else makes a backup there).
        """
        self._here()
        where = check_path("dest", dest)
        return _backup.copy_store(self._attachment.mm, self._options.path, where, progress)

    # ---- space

    def attempt_gc(self) -> bool:
        """Empties about one segment, if one is worth it (see `open`), and gives back what is free.  True: it did.
        Writers do as much by themselves while the log is too large; this is for quiet times.

        Nothing that anybody reads changes, and nobody waits. Flushes if space waits for it.  Errors: CorruptionError (a
        segment holds damage, and is left as it is), StoreFailed, DiskFullError.
        """
        report = self._clean(errors.BACKGROUND, 1 << self._segment_shift())
        return bool(report.retired or report.more)

    def _segment_shift(self) -> int:
        return int(getattr(_files.read_config(self._options.path), "segment_shift", 23))

    def _clean(self, effort: int, gain: int) -> Any:
        r, report = ffi.new("mm_result *"), ffi.new("mm_clean_report *")
        while True:
            self._here()
            status = lib.mm_clean(self._attachment.mm, effort, gain, report, r)
            if status == errors.OK:
                return report
            self._mend(status, (0, 0, 0, 0, r.length, r.offset, r.file, r.os_error), r.key.pid, None)

    def _made_room(self) -> bool:
        """On a full disk: whether segments were emptied, by this process or, while it looked, by another one."""
        mm, report, before = self._attachment.mm, ffi.new("mm_clean_report *"), self.stats()
        for _ in range(_ROOM_TRIES):
            lib.mm_clean(mm, errors.ALL, 1 << 62, report, ffi.new("mm_result *"))
            now = self.stats()
            if report.retired or now.cleaned > before.cleaned or now.segments_free > before.segments_free:
                return True
            if not report.busy:
                return False
            time.sleep(0.005)
        return False

    def rewrite(self, pid: int, tx: Tx | None = None) -> None:
        """Moves the page, as it is, to where the log is written now.  Its content, version and keys stay valid.

        Errors: PageNotFound, CorruptionError, DiskFullError.
        """
        self._call(lib.mm_rewrite_page, pid, tx=tx, missing_ok=False)

    @property
    def stable_lsn(self) -> int:
        """Everything with a `last_lsn` up to this is durable."""
        return self._clock()[1]

    def _clock(self) -> tuple[int, int]:
        """The epoch now, and the newest durable one."""
        epoch, stable = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        while True:
            self._here()
            status = lib.mm_clock(self._attachment.mm, epoch, stable)
            if status == errors.OK:
                return int(epoch[0]), int(stable[0])
            self._mend(status, (0,) * 8, 0, None)

    @property
    def was_recovered(self) -> bool:
        """True when the store was there before this handle was opened."""
        return self._was_recovered

    @property
    def path(self) -> str:
        """The store's directory, absolute."""
        return self._options.path

    # ---- what the faces call when the core does not say OK

    def _mend(self, status: int, result: tuple[int, ...], pid: int, fragment: Any) -> None:
        """Raises the exception for `status`, or removes its cause; the verb is then tried again."""
        if status == errors.CLOSED and not self._closed and self._pid != os.getpid():
            status = errors.FORKED
        if status == errors.FORKED:
            self._reattach()
            return
        if status == errors.CHAIN:
            self._consolidate(pid)
            return
        if status == errors.FULL and self._made_room():
            return
        _pid, head, wts, lsn, length, offset, file, os_error = result
        if status == errors.CORRUPT and not file:
            raise self._attachment.damage()
        if status == errors.CONFLICT:
            key = PagePtr(pid, head, wts, lsn)
            raise errors.Conflict(
                f"page {pid} is at version {wts} now: somebody wrote since the key was taken", key, fragment
            )
        raise errors.from_status(
            status, pid=pid, length=length, offset=offset, file=file, os_error=os_error, path=self._options.path
        )

    def _contiguous(self, pid: int, tries: int) -> tuple[bytes, PagePtr] | None:
        """For `view` of a page of several fragments: consolidates them, so that it can try again; or its value,
        encoded, and its key, where there is no room to, or writers were faster again and again.
        """
        from . import codec

        if self._may_consolidate and tries < _VIEW_TRIES:
            try:
                self._consolidate(pid)
                return None
            except (errors.DiskFullError, errors.FragmentTooLarge):
                tries = _VIEW_TRIES
        page = self.get(pid)
        if not isinstance(page, Materialized):
            raise self._not_materialized(pid, page)
        return codec.encode(page.value), page.key

    # ---- fork, pickle, close

    def _here(self) -> None:
        """Raises Closed on a closed handle; attaches a handle that a fork brought here."""
        if self._closed:
            raise errors.Closed("this handle is closed; open the store again")
        if self._pid != os.getpid():
            self._reattach()

    def _after_fork(self) -> None:
        """In the child: gives up what was inherited at once, so that the parent's death can be seen."""
        self._lock = threading.RLock()
        if self._closed:
            return
        if self._owner.inherited is None:
            lib.mm_orphan(self._attachment.mm)
            return
        try:
            self._reattach()  # at once: views are open
        except (errors.MmpcError, OSError):
            return  # the parent goes on holding them (_views.py); the next verb tries again, and tells

    def _reattach(self) -> None:
        with self._lock:
            if self._closed:
                raise errors.Closed("this handle is closed; open the store again")
            if self._pid == os.getpid() and not self._orphaned():
                return
            old, owner = self._attachment, self._owner
            if owner.inherited is None:
                lib.mm_orphan(old.mm)
            self._attachment, _ = self._attach(create=False)
            self._former.append(old)
            self._pid = os.getpid()
            self._bind_face()
            owner.bequeath(self._owner)
            lib.mm_orphan(old.mm)
            self._snapshotter = None
            self._start_flusher()

    def _orphaned(self) -> bool:
        r, pin = ffi.new("mm_result *"), ffi.new("uint32_t *")
        status = lib.mm_pin(self._attachment.mm, pin, ffi.NULL)
        del r
        if status == errors.OK:
            lib.mm_unpin(self._attachment.mm, pin[0])
        return bool(status == errors.FORKED)

    def close(self) -> None:
        """Leaves the store.  The last process to leave flushes, so everything is durable then; a temporary
        store is removed.

        Idempotent, from any thread.  Calls of other threads that are inside finish; later ones raise Closed.
        The memory is unmapped when the last of them, the last open Tx and the last view have ended.

        Errors: StoreFailed, DiskFullError: the last flush failed, so what was written since the one before may not
        survive a loss of power. The handle is closed all the same.
        """
        with self._lock:
            if self._closed:
                return
            if self._options.profile and self._pid == os.getpid():
                self._print_profile()
            self._closed = True
            _handles.discard(self)
            self._unbind()
            if self._pid != os.getpid():
                lib.mm_orphan(self._attachment.mm)
                return
            self._leave()

    def _leave(self) -> None:
        mm, options = self._attachment.mm, self._options
        lib.mm_guard_install()  # a program that has put its own handler there would meet a cut file for ever
        if self._flusher is not None:
            self._flusher.stop()
        if self._snapshotter is not None:
            self._snapshotter.join()
        _views.sweep()
        if options.temporary:
            if self._owner.in_use():
                _store.remove_if_last(options.path, but=self._attachment.slot)  # views need no directory
            lib.mm_close(mm)
            _store.remove_if_last(options.path)
            return
        last = _store.alone(self._attachment)
        free = last and _store.has_free_end(self._attachment)
        error = _store.settle(self._attachment, options.path) if last else None
        lib.mm_close(mm)
        _store.flush_after_last(options)
        if free and error is None:
            _store.truncate_after_last(options)
        if error is not None:
            raise error

    def __del__(self) -> None:
        # A handle that was forgotten leaves the store as a closed one does: the last one flushes.
        if hasattr(self, "_attachment") and not self._closed:
            try:
                self.close()
            except (errors.MmpcError, OSError):
                return

    def __enter__(self) -> PageCache[T]:
        self._here()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        o = self._options
        from ._open import reopen

        return reopen, (
            o.path,
            self._materializer,
            isinstance(self, ReadOnlyPageCache),
            o.temporary,
            self._capacity,
            o.threshold,
            o.flush_every_ms,
            o.cleanup,
            o.mapped,
            o.id_interval,
            o.metrics,
            o.profile,
            o.compression,
        )

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<{type(self).__name__} {self._options.path!r} {self._options.materializer}{state}>"

    # ---- looking

    def stats(self) -> Stats:
        """Counters of the store and of all attached processes, as they stand. `readers` says who holds what."""
        self._here()
        s = ffi.new("mm_stats *")
        while True:
            status = lib.mm_get_stats(self._attachment.mm, s)
            if status == errors.OK:
                return Stats(s, self._options.path)
            self._mend(status, (0,) * 8, 0, None)

    def _check(self) -> int:
        """Verifies every page that the table reaches; returns how many there are.  CorruptionError names the
        first damage.
        """
        self._here()
        pages, r = ffi.new("uint64_t *"), ffi.new("mm_result *")
        status = lib.mm_check(self._attachment.mm, pages, r)
        if status:
            self._mend(status, (0, 0, 0, 0, r.length, r.offset, r.file, r.os_error), r.key.pid, None)
        return int(pages[0])


class ReadOnlyPageCache(PageCache[T]):
    """A handle opened with read_only=True: every verb that writes raises Unsupported."""

    __slots__ = ()
    _may_consolidate = False

    def _refuse(self, *_args: Any, **_options: Any) -> Any:
        raise errors.Unsupported("this handle was opened read_only; open the store again to write")

    allocate = append = append_many = link = replace = free = update = bump_page_rts = _refuse
    flush = make_stable = snapshot = attempt_gc = rewrite = generate_id = cas_root_in_meta = _refuse


# Handles of this process that are open: a fork and the interpreter's exit have to find them.
_handles: weakref.WeakSet[PageCache[Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    _views.after_fork_in_child()
    for handle in list(_handles):
        handle._after_fork()
    _views.after_handles_in_child()


def _at_exit() -> None:
    failed: Exception | None = None
    for handle in list(_handles):
        try:
            handle.close()
        except (errors.MmpcError, OSError) as e:
            failed = e  # the other stores are closed all the same
    if failed is not None:
        raise failed


os.register_at_fork(
    before=_views.before_fork,
    after_in_parent=_views.after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
atexit.register(_at_exit)
