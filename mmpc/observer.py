"""Observer: a handle of a process that may read a store and not write to it.

On a live store it maps the files for reading, copies what a page holds, and believes it if nothing was given away
meanwhile (csrc/observe.c). Where nobody is attached, and `control` and `table` do not count, it opens alone: it makes
them again in memory of its own, as a recovery would, and leaves the store as it is (on a medium for reading there is no
other way). It has no slot, nobody knows of it, and nobody waits for it.

Whoever opens the store for writing after a loss of power, or after everybody left, replaces `control` first. So after
each look it is asked whether `control` still is the file of before: then what was read was true.
"""

from __future__ import annotations

import os
import time

from . import _files, _recovery, _store, errors
from ._face import Materialized, PagePtr, T
from ._files import Descriptors
from ._native import ffi, lib
from ._stats import Stats
from .pagecache import ReadOnlyPageCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ._face import Counter, Free, Meta, Unallocated
    from .tx import Tx

_LIVE = ("control", "table", "log", "ids", "rts")
_PATIENCE = 10.0  # seconds for somebody else's recovery
_TRIES = 20  # looks at a page, each with the store as it stands then


class Seen:
    """The file `control` as it was, or that there was none. It is kept open, so that no other file gets its number."""

    __slots__ = ("_fd", "_is")

    def __init__(self, path: str) -> None:
        self._fd = -1
        self._is: tuple[int, int] | None = None
        try:
            self._fd = os.open(os.path.join(path, "control"), os.O_PATH | os.O_CLOEXEC)
            self._is = _number(os.fstat(self._fd))
        except FileNotFoundError:
            return

    def still(self, path: str) -> bool:
        """Whether it still is that one: nobody has opened the store anew."""
        try:
            return _number(os.stat(os.path.join(path, "control"))) == self._is
        except FileNotFoundError:
            return self._is is None

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _number(s: os.stat_result) -> tuple[int, int]:
    return s.st_dev, s.st_ino


class Observer(ReadOnlyPageCache[T]):
    """The `PageCache` that `mmpc.open` gives for `read_only=True` without write permission: it reads pages, and changes
    no byte of the store.

    `get`, `get_many`, `get_page_frags`, `get_page_rts`, `stable_lsn` and `stats` work, also while others write. It
    keeps no cache of values, and cannot hold anything in place: `view`, `begin` and `backup` raise Unsupported. A page
    that is changed so fast that no copy of it is whole raises StoreBusy.
    """

    __slots__ = ("_seen",)
    _caches = False

    def _attach(self, create: bool) -> tuple[_store.Attachment, bool]:
        attachment, self._seen = attach(self._options)
        return attachment, True

    def _fresh(self) -> bool:
        return self._seen.still(self._options.path)

    def _renew(self, old: _store.Attachment) -> None:
        with self._lock:
            if self._attachment is not old or self._closed:
                return  # another thread has
            self._attachment, _ = self._attach(create=False)
            self._former.append(old)  # other threads may be inside still
            self._bind_face()
            lib.mm_close(old.mm)

    def _observed(self, look: Callable[[], Any]) -> Any:
        """What `look` returns or raises, if it was so at one moment while the store was the one that is attached."""
        for attempt in range(_TRIES):
            self._here()
            attachment, error, value = self._attachment, None, None
            try:
                value = look()
            except (errors.CorruptionError, errors.StoreFailed, errors.StoreBusy) as e:
                error = e
            if self._fresh():
                if error is None:
                    return value
                if isinstance(error, errors.StoreFailed) or attempt >= 3:
                    raise error
            self._renew(attachment)
        raise errors.StoreBusy(f"{self.path!r}: the store is opened anew, or the page changed, again and again")

    def get(self, pid: int, tx: Tx | None = None) -> Materialized[T] | Free | Unallocated | Counter | Meta:
        return self._observed(lambda: super(Observer, self).get(pid, tx))  # type: ignore[no-any-return]

    def get_many(self, pids: Iterable[int], tx: Tx | None = None) -> list[Any]:
        wanted = list(pids)
        return self._observed(lambda: super(Observer, self).get_many(wanted, tx))  # type: ignore[no-any-return]

    def get_page_frags(self, pid: int, tx: Tx | None = None) -> tuple[PagePtr, list[T]]:
        return self._observed(lambda: super(Observer, self).get_page_frags(pid, tx))  # type: ignore[no-any-return]

    def get_page_rts(self, pid: int, tx: Tx | None = None) -> int | None:
        return self._observed(lambda: super(Observer, self).get_page_rts(pid, tx))  # type: ignore[no-any-return]

    def stats(self) -> Stats:
        return self._observed(super().stats)  # type: ignore[no-any-return]

    def _clock(self) -> tuple[int, int]:
        return self._observed(super()._clock)  # type: ignore[no-any-return]

    def _cannot_hold(self, *_args: Any, **_options: Any) -> Any:
        raise errors.Unsupported(
            f"{self.path!r}: this handle may not write to the store, so it cannot pin: it has no views, no Tx and no "
            "backup; get() copies. Give the user write permission, or copy the store"
        )

    view = begin = backup = _cannot_hold

    def _mend(self, status: int, result: tuple[int, ...], pid: int, fragment: Any) -> None:
        if status == errors.CLOSED and not self._closed and self._pid == os.getpid():
            return  # another thread has renewed the attachment
        if status == errors.BUSY:
            raise errors.StoreBusy(f"page {pid} is changed so fast that no copy of it was whole; try again")
        super()._mend(status, result, pid, fragment)

    def _leave(self) -> None:
        lib.mm_guard_install()
        lib.mm_close(self._attachment.mm)
        self._seen.close()


def attach(options: _store.Options) -> tuple[_store.Attachment, Seen]:
    """An attachment that observes, and the `control` that it goes with."""
    _files.check_platform()
    try:
        return _attach(options)
    except errors.MmpcError:
        raise
    except FileNotFoundError:
        raise
    except OSError as e:
        raise _files.explained(e, options.path) from e


def _attach(options: _store.Options) -> tuple[_store.Attachment, Seen]:
    end = time.monotonic() + _PATIENCE
    while True:
        config = _files.read_config(options.path)
        if config is None:
            raise _store.absent(options.path)
        _store._compare(config, options)
        seen = Seen(options.path)
        attachment = _live(config, options) or _alone(config, options)
        if attachment is not None and seen.still(options.path):
            return attachment, seen
        if time.monotonic() > end:
            raise errors.StoreBusy(f"{options.path!r} is being recovered, or opened and left, all the time")
        time.sleep(0.01)


def _live(config: _files.Config, options: _store.Options) -> _store.Attachment | None:
    """None: `control` and `table` are not of this boot, or are being replaced."""
    r = ffi.new("mm_result *")
    with Descriptors(reading=True) as files:
        try:
            files.open(options.path, _LIVE)
        except FileNotFoundError:
            return None
        c = _store._core_config(config, options, files)
        if lib.mm_identity_check(c, r) != errors.OK:
            if r.file == errors.MISMATCH_FAILED and _somebody_is_attached(options.path):
                raise _store._failed(errors.FAILED, r)
            return None
        _files.check_file_system(files.get("log"), options.path)
        return _mapped(c, files)


def _mapped(c: Any, files: Descriptors) -> _store.Attachment:
    r, status = ffi.new("mm_result *"), ffi.new("int *")
    c.observes = lib.MM_OBSERVE_LIVE  # also of one that was alone until now
    files.taken()
    mm = lib.mm_attach(c, status, r)
    if mm == ffi.NULL:
        raise _store._failed(status[0], r)
    return _store.Attachment(mm)


def _alone(config: _files.Config, options: _store.Options) -> _store.Attachment | None:
    """With tables of its own. None: somebody is attached, so the store's are about to count.

    Beside a recovery it decides as that one does; and when that one has ended the caller finds another `control`.
    """
    r, newest = ffi.new("mm_result *"), ffi.new("uint64_t *")
    with Descriptors(reading=True) as files:
        files.open(options.path, ("log", "marks"))
        if _somebody_is_attached(options.path):
            return None
        limit = _store._limit(config, options, files)
        if limit is None:
            return None
        for name in _files.VOLATILE:
            files.fds[name] = os.memfd_create(f"mmpc-{name}", os.MFD_CLOEXEC)
        c = _store._core_config(config, options, files)
        c.observes = lib.MM_OBSERVE_ALONE
        carried = ffi.new("mm_carried **")
        _recovery.must(lib.mm_durable(c, *_store._pairs(config), limit.this_boot, newest, carried, r), r)
        kept = ffi.gc(carried[0], lib.mm_carried_free)
        c.carried = kept
        found = _recovery.Found(c, config, options.path, int(newest[0]), limit.durable_only, alone=True)
        _recovery.must(lib.mm_set_epoch(c, found.rebuild(), found.durable, r), r)
        return _mapped(c, files)


def _somebody_is_attached(path: str) -> bool:
    """Asked without a lock, which would need write permission and be in the way of others."""
    try:
        fd = _files.open_file(os.path.join(path, "lock"))
    except FileNotFoundError:
        return False
    try:
        return bool(lib.mm_range_held(fd, 0, _files.SLOTS))
    finally:
        os.close(fd)
