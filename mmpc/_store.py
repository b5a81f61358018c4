"""A store's directory and this process in it: open, attach, create, recover, leave.

Attaching to a live store takes no lock but the slot's own byte: read `config`, open the files, check the
identity, claim a slot, check the identity again.  Whoever replaces the volatile files clears the identity
first and only then asks whether any slot byte is locked, so one of the two sees the other.  Everything else
(creation, recovery) happens under `open.lock`.
"""

from __future__ import annotations

import os
import threading
import time

from . import _compression, _files, _recovery, _snapshot, errors, failpoints
from ._files import Config, Descriptors
from ._native import ffi, lib
from ._recovery import must

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CODEC = "msgpack-1"
ID_INTERVAL = 1_000_000  # MM_ID_INTERVAL
_EMPTY_MAP = b"\x80"
_ZERO = b"\x00"
_FILES_OF_ATTACHMENT = ("control", "table", "log", "ids", "rts", "marks", "lock")


class Attachment:
    """One `mm` of the core.

    The mapping lives until it is closed, or until the last call and Tx leave.  The structure itself outlives this
    object: in a garbage cycle the collector may finalize it before a Tx or a handle that still names it.  It is
    freed when the next attachment is made.
    """

    __slots__ = ("__weakref__", "_failpoints", "mm", "slot", "snapshotting")

    def __init__(self, mm: Any) -> None:
        while _graves:
            lib.mm_destroy(_graves.pop())
        self.mm = mm
        self._failpoints = failpoints._block  # the core has a pointer to it
        self.slot = int(lib.mm_slot_number(mm))
        self.snapshotting = threading.Lock()  # one file of the slot's name at a time

    def __del__(self) -> None:
        lib.mm_close(self.mm)
        _graves.append(self.mm)

    def damage(self) -> Exception:
        """CorruptionError for a call of the core that found damage and had no mm_result to say where."""
        r = ffi.new("mm_result *")
        lib.mm_last_fault(self.mm, r)
        return _failed(errors.CORRUPT, r)


_graves: list[Any] = []


class Options:
    """What this process asks for; the store's own facts are in Config."""

    __slots__ = (
        "cleanup",
        "compression",
        "decodes",
        "flush_every_ms",
        "id_interval",
        "kind",
        "mapped",
        "materializer",
        "metrics",
        "path",
        "profile",
        "segment_shift",
        "temporary",
        "threshold",
        "wants_temporary",
    )

    def __init__(
        self,
        path: str,
        materializer: str,
        kind: int,
        threshold: int,
        segment_shift: int | None,
        temporary: bool,
        flush_every_ms: int | None = None,
        cleanup: tuple[int, int] = (40, 10),
        mapped: int | None = None,
        id_interval: int = ID_INTERVAL,
        metrics: bool = True,
        profile: bool = False,
        compression: int | None = None,
        decodes: bool = True,
    ) -> None:
        self.compression = compression  # compression_factor, where writes compress
        self.decodes = decodes  # False: fragments are moved and not looked into
        self.cleanup = cleanup  # segment_cleanup_threshold and _skew, in percent
        self.mapped = mapped
        self.id_interval = id_interval  # idgen_persist_interval
        self.metrics = metrics
        self.profile = profile  # printed on close
        self.flush_every_ms = flush_every_ms
        self.path = path
        self.materializer = materializer
        self.kind = kind
        self.threshold = threshold
        self.segment_shift = segment_shift
        self.temporary = self.wants_temporary = temporary  # `temporary`: what the store says, once it is open


def _failed(status: int, r: Any, pid: int = 0) -> Exception:
    return errors.from_status(status, pid=pid, length=r.length, offset=r.offset, file=r.file, os_error=r.os_error)


def open_store(options: Options, create: bool) -> tuple[Attachment, bool]:
    """Attaches; creates or recovers first if need be.  Returns the attachment and whether the store existed
    before.  What the system refuses is told with the path, the cause and a remedy.
    """
    _files.check_platform()
    try:
        return _open(options, create)
    except errors.DiskFullError as e:
        raise _files.full(options.path, str(e)) from e
    except (errors.MmpcError, FileNotFoundError):
        raise
    except OSError as e:
        raise _files.explained(e, options.path) from e


def _open(options: Options, create: bool) -> tuple[Attachment, bool]:
    for attempt in range(100):
        time.sleep(min(attempt, 10) * 0.002)
        config = _files.read_config(options.path)
        if config is not None:
            _compare(config, options)
            attachment = _attach(config, options) if _says_so(config, options) else None
            if attachment is not None:
                return attachment, True
        elif not create:
            raise absent(options.path)
        found = _open_locked(options, create)
        if found is not None:
            return found
    raise errors.StoreBusy(
        f"{options.path!r}: all {_files.SLOTS} slots are taken, or others recover or remove it again and again"
    )


def absent(path: str) -> Exception:
    """What to raise where no store is."""
    if os.path.isdir(path) and set(os.listdir(path)) - {"open.lock"}:
        return errors.IncompatibleStore(f"{path!r} is not an mmpc store: it holds no 'config'")
    return FileNotFoundError(2, "no store here; pass create=True to make one", path)


def _compare(config: Config, options: Options) -> None:
    """IncompatibleStore, naming both sides, where the store is not what the caller takes it for. What the store decides
    is taken over: whoever leaves a temporary one last removes it, also without knowing that it is one.
    """
    if config.materializer != options.materializer:
        raise errors.IncompatibleStore(
            f"the store was made with materializer {config.materializer!r}, it is opened with {options.materializer!r}"
        )
    if config.codec != CODEC:
        raise errors.IncompatibleStore(f"the store's codec is {config.codec!r}, this mmpc has {CODEC!r}")
    if options.segment_shift is not None and options.segment_shift != config.segment_shift:
        raise errors.IncompatibleStore(
            f"segment_size is {1 << config.segment_shift} in the store, "
            f"{1 << options.segment_shift} was asked for; it cannot change"
        )
    if options.wants_temporary and not config.temporary:
        raise errors.IncompatibleStore(
            f"{options.path!r} was made to stay (temporary=False); temporary=True would remove it at the last close"
        )
    options.temporary = config.temporary
    if config.compressed and options.decodes:
        _compression.check_here(options.path)


def _says_so(config: Config, options: Options) -> bool:
    """Whether the store says what this handle may write into it. That is durable before the handle is attached: died at
    any time, there is no compressed record in a store that does not say that there may be one.
    """
    return config.compressed or options.compression is None


def _say_so(config: Config, options: Options) -> None:
    """Under `open.lock`. Processes that are attached go by what they find in each record."""
    if not _says_so(config, options):
        config.incompat |= _files.COMPRESSED
        _files.write_config(options.path, config)


def _core_config(config: Config, options: Options, files: Descriptors) -> Any:
    c = ffi.new("mm_config *")
    for name in _FILES_OF_ATTACHMENT:
        setattr(c, name, files.get(name))
    c.merge_kind, c.threshold, c.segment_shift = options.kind, options.threshold, config.segment_shift
    c.clean_threshold, c.clean_skew = options.cleanup
    c.compress_from = _compression.LEAST if options.compression is not None else 0
    c.failpoints = failpoints._block
    c.observes = lib.MM_OBSERVE_LIVE if files.reading else lib.MM_OBSERVE_NOT
    c.id_interval = options.id_interval
    c.discarded = config.discards[-1][1] if config.discards else 0
    ffi.memmove(c.uuid, config.uuid, 16)
    ffi.memmove(c.boot_id, _files.boot_id(), 64)
    return c


# ---- attaching to a live store


def _attach(config: Config, options: Options, locked: bool = False) -> Attachment | None:
    """None when the volatile files are not of this boot, or are being replaced, or a process may have died in a
    sync that failed: the slow path (`locked`) decides.
    """
    r, status = ffi.new("mm_result *"), ffi.new("int *")
    with Descriptors() as files:
        try:
            files.open(options.path, _FILES_OF_ATTACHMENT)
        except FileNotFoundError:
            return None
        _files.check_file_system(files.get("log"), options.path)
        c = _core_config(config, options, files)
        rc = lib.mm_identity_check(c, r)
        if rc == errors.MISMATCH:
            return None
        if rc:
            raise _failed(rc, r)
        if lib.mm_suspected(c) and not _settled(config, c, locked):
            return None
        files.taken()
        mm = lib.mm_attach(c, status, r)
        if mm == ffi.NULL:
            if status[0] == errors.BUSY:
                return None  # all taken, or somebody holds all bytes for a moment: `open_store` tries again
            raise _failed(status[0], r)
    attachment = Attachment(mm)
    if options.metrics:
        _files.count(options.path, mm)
    if lib.mm_identity_check(c, r) or not _same_file(c.control, os.path.join(options.path, "control")):
        return None
    return attachment


def _settled(config: Config, c: Any, locked: bool) -> bool:
    """The first to come after a process died in a sync writes again what the kernel may call clean and has not written.
    It may have forgotten such pages, too: what intents carry of them is put there before.
    False: the slow path is to do it.  While others are attached their flushes take care of it.
    """
    if lib.mm_lock_range(c.lock, 0, _files.SLOTS) != errors.OK:
        return True
    try:
        if locked:
            r = ffi.new("mm_result *")
            must(lib.mm_promote(c, *_pairs(config), True, r), r)
            must(lib.mm_settle(c, r), r)
        return locked
    finally:
        lib.mm_unlock_range(c.lock, 0, _files.SLOTS)


def _same_file(fd: int, path: str) -> bool:
    try:
        a, b = os.fstat(fd), os.stat(path)
    except OSError:
        return False
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


# ---- creation and recovery, one process at a time


def _open_locked(options: Options, create: bool) -> tuple[Attachment, bool] | None:
    from filelock import FileLock

    path = options.path
    made = create and _files.make_directory(path)
    lock = FileLock(os.path.join(path, "open.lock"), mode=0o600)
    try:
        lock.acquire()
    except FileNotFoundError:
        return None  # the last process of a temporary store has just removed the directory
    except OSError:
        if made:
            _files.remove_directory(path)
        raise
    try:
        config = _files.read_config(path)
        if config is None:
            if not create:
                raise absent(path)
            return _create(options), False
        _compare(config, options)
        _say_so(config, options)
        attachment = _attach(config, options, locked=True) or _recover(config, options)
        return None if attachment is None else (attachment, True)
    finally:
        lock.release()


def _create(options: Options) -> Attachment:
    """The lasting files, `config` last: a death before leaves a directory that the next one starts over.

    Refused for want of room or of anything else it leaves `open.lock` alone, which others may wait for.
    """
    _files.check_unborn(options.path)
    try:
        _files.create_lasting(options.path)
        shift = options.segment_shift if options.segment_shift is not None else 23
        options.temporary = options.wants_temporary
        compat = _files.TEMPORARY if options.temporary else 0
        features = _files.COMPRESSED if options.compression is not None else 0
        facts = (options.materializer, CODEC, time.time_ns())
        config = Config(os.urandom(16), shift, *facts, compat=compat, incompat=features)
        _files.write_config(options.path, config)
        attachment = _recover(config, options)
        if attachment is None:
            raise errors.StoreBusy(f"{options.path!r}: somebody else makes a store here")
        return attachment
    except (errors.MmpcError, OSError):
        _files.remove_unborn(options.path)
        raise


def _recover(config: Config, options: Options) -> Attachment | None:
    """Makes the volatile files again from the log, and attaches.  None when there is nothing to recover from.

    The same boot, with `control` and `log` in place: every committed record counts.  Otherwise the durable
    state does: colours up to the newest mark, and what lies above is recorded as discarded before anybody can
    write, so that it never comes back.  Cut off anywhere, it is done again.
    """
    r, newest, begun = ffi.new("mm_result *"), ffi.new("uint64_t *"), time.monotonic()
    with Descriptors() as files:
        files.open(options.path, ("log", "marks", "lock"))
        limit = _limit(config, options, files)
        if limit is None:
            return None
        _exclude_others(files.get("lock"), options.path)
        failpoints.reach("recovery begin")
        if limit.this_boot:
            _rewrite(config, options, files)
        _marks_say_all(config, options, files, limit)
        must(lib.mm_log_trim(_core_config(config, options, files), r), r)
        _snapshot.remove_temporary(options.path)
        _files.remove_volatile(options.path, control=not limit.this_boot)
        try:
            for name in _files.VOLATILE:
                files.open(options.path, (name,), suffix=".new", create=True)
            c = _core_config(config, options, files)
            must(lib.mm_marks_newest(c, newest, r), r)
            found = _recovery.Found(c, config, options.path, int(newest[0]), limit.durable_only)
            epoch = found.rebuild()
            failpoints.reach("recovery table")
            _snapshot.keep_only(options.path, found.used)
            must(lib.mm_marks_mend(c, r), r)
            must(lib.mm_set_epoch(c, epoch, found.durable, r), r)
            must(lib.mm_identity_write(c, 0, r), r)  # cut off from here on, all of this boot still counts
            for name in _files.VOLATILE:
                failpoints.reach("recovery mv")
                os.rename(os.path.join(options.path, name + ".new"), os.path.join(options.path, name))
        except (errors.MmpcError, OSError):
            _files.remove_new(options.path)
            raise
        attachment = _take_over(c, files, options)
    found.tell(time.monotonic() - begun, attachment.mm)
    return attachment


class _Limit:
    """What counts in a recovery, by the `control` of the life that ended."""

    __slots__ = ("durable_only", "this_boot")

    def __init__(self, durable_only: bool, this_boot: bool) -> None:
        self.durable_only = durable_only  # else no power was lost, and all that was committed counts
        self.this_boot = this_boot  # `control` is of this boot and this log


def _rewrite(config: Config, options: Options, files: Descriptors) -> None:
    """Before the recovery's own sync: pages of the log that a failed sync of this boot left clean, and maybe not on
    the disk, are made dirty again.
    """
    r = ffi.new("mm_result *")
    with Descriptors() as old:
        old.open(options.path, ("control",))
        old.fds["log"] = os.dup(files.get("log"))
        must(lib.mm_rewrite(_core_config(config, options, old), r), r)


def _limit(config: Config, options: Options, files: Descriptors) -> _Limit | None:
    """Only what is durable counts after another boot, with other files, after a failed sync.  None: the store is well.

    Marks the old identity as being replaced: from now on nobody attaches by it. With `files` that are for reading it
    marks nothing, and nothing is kept from anybody.
    """
    r = ffi.new("mm_result *")
    with Descriptors(files.reading) as old:
        try:
            old.open(options.path, ("control",))
        except FileNotFoundError:
            return _Limit(durable_only=True, this_boot=False)
        for name in ("table", "ids", "rts"):
            try:
                old.open(options.path, (name,))
            except FileNotFoundError:
                pass
        for name in ("log", "marks"):
            old.fds[name] = os.dup(files.get(name))
        c = _core_config(config, options, old)
        rc = lib.mm_identity_check(c, r)
        if rc == errors.OK:
            return None
        trusted = rc == errors.MISMATCH and r.offset != 0
        failed = rc == errors.MISMATCH and r.file == errors.MISMATCH_FAILED
        known, newest = _recovery.known_stable(c.control, config.uuid), ffi.new("uint64_t *")
        rc = errors.OK if trusted else lib.mm_durable(c, *_pairs(config), failed, newest, ffi.NULL, r)
        if not trusted and rc == errors.OK and newest[0] < known:
            raise errors.CorruptionError(
                f"'control' knows that epoch {known} was durable, the marks and the log say {newest[0]}: 'marks' is "
                "older than it was (if it was put back on purpose, remove 'control')",
                file="marks",
                offset=0,
            )
        if not files.reading:
            _exclude_others(files.get("lock"), options.path)  # before it is made impossible to attach
            must(lib.mm_identity_clear(c, r), r)
        return _Limit(durable_only=not trusted, this_boot=trusted or failed)


def _marks_say_all(config: Config, options: Options, files: Descriptors, limit: _Limit) -> None:
    """What is durable, a mark says durably, and all of it is in its place: a recovery goes by marks alone.

    What flushes said elsewhere, in the log (csrc/intent.c) or in marks that they did not sync, is looked for.
    """
    r, c = ffi.new("mm_result *"), _core_config(config, options, files)
    must(lib.mm_promote(c, *_pairs(config), limit.this_boot, r), r)


def _pairs(config: Config) -> tuple[Any, int]:
    """The discards of `config` as the core takes them."""
    return ffi.new("uint64_t[]", [x for pair in config.discards for x in pair]), len(config.discards)


def _exclude_others(fd: int, path: str) -> None:
    """No slot byte may be locked.  Those who are just leaving get a moment."""
    for _ in range(200):
        if lib.mm_lock_range(fd, 0, _files.SLOTS) == errors.OK:
            lib.mm_unlock_range(fd, 0, _files.SLOTS)
            return
        time.sleep(0.01)
    raise errors.StoreBusy(f"{path!r} must be recovered, but other processes still have it open; close them first")


def _take_over(c: Any, files: Descriptors, options: Options) -> Attachment:
    """Attaches, completes pages 0 and 1, marks the recovered state durable, and lets the others in."""
    r, status = ffi.new("mm_result *"), ffi.new("int *")
    files.taken()
    mm = lib.mm_attach(c, status, r)
    if mm == ffi.NULL:
        raise _failed(status[0], r)
    attachment = Attachment(mm)
    try:
        _files.create_metrics(options.path, c.control)
        if options.metrics:
            _files.count(options.path, mm)
        _begin_life(mm, c, r)
    except BaseException:
        lib.mm_close(mm)  # now: who catches the error may keep what refers to the attachment, and try again
        raise
    return attachment


def _begin_life(mm: Any, c: Any, r: Any) -> None:
    for pid, payload in ((0, _EMPTY_MAP), (1, _ZERO)):
        rc = lib.mm_install(mm, pid, payload, len(payload), r)
        if rc not in (errors.OK, errors.CONFLICT):
            raise _failed(rc, r, pid)
    must(lib.mm_flush(mm, 0, ffi.new("uint64_t *"), r), r)
    must(lib.mm_ids_begin(mm, r), r)
    failpoints.reach("recovery post")
    must(lib.mm_identity_write(c, 1, r), r)


class Held:
    """Nothing that can be read of a live store is used again while this lasts: a pin, for who reads its files beside
    the core. Where nobody is attached, or it cannot be attached to, nothing is held.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._attachment: Attachment | None = None
        self._pin = ffi.new("uint32_t *")

    def __enter__(self) -> Held:
        try:
            config = _files.read_config(self.path)
            if config is not None and not nobody_left(self.path):
                self._options = Options(self.path, config.materializer, 0, 200, None, config.temporary)
                self._attachment = _attach(config, self._options)
        except (errors.MmpcError, OSError):
            self._attachment = None
        if self._attachment is not None and lib.mm_pin(self._attachment.mm, self._pin, ffi.NULL) != errors.OK:
            self._attachment = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._attachment is not None:
            lib.mm_unpin(self._attachment.mm, self._pin[0])
            lib.mm_close(self._attachment.mm)
            self._attachment = None
            left(self._options)


# ---- leaving


def alone(attachment: Attachment) -> bool:
    """True when no other slot is live, or `control` cannot be read: then nobody else can flush either."""
    s = ffi.new("mm_stats *")
    status = lib.mm_get_stats(attachment.mm, s)
    return bool(status == errors.CORRUPT or (status == errors.OK and s.slots == 1))


def nobody_left(path: str) -> bool:
    """True when no process is attached at this moment."""
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return bool(lib.mm_lock_range(fd, 0, _files.SLOTS) == errors.OK)
    finally:
        os.close(fd)


def remove_if_last(path: str, but: int | None = None, wait: bool = True) -> None:
    """Removes a temporary store unless somebody is attached, or is in another slot than `but`, the caller's own.

    Under `open.lock`, so that nobody is creating it, and with all slot bytes held, so that nobody can come in. Who
    does not `wait` for that lock leaves the store to whoever holds it. The store that was left may be gone, and another
    one, made to stay, have its place.
    """
    from filelock import FileLock, Timeout

    if not os.path.isdir(path):
        return  # a FileLock would make it again
    try:
        with FileLock(os.path.join(path, "open.lock"), mode=0o600, timeout=-1 if wait else 0):
            fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC)
            try:
                own = _files.SLOTS if but is None else but
                ranges = [(0, own), (own + 1, _files.SLOTS - own - 1)]
                if all(n <= 0 or lib.mm_lock_range(fd, start, n) == errors.OK for start, n in ranges):
                    config = _files.read_config(path)
                    if config is not None and config.temporary:
                        _files.remove_store(path)
            finally:
                os.close(fd)
    except (errors.MmpcError, OSError, Timeout):
        return  # somebody else has removed it, or is there


def left(options: Options) -> None:
    """An attachment without a handle has gone, and with it the slot."""
    if options.temporary:
        remove_if_last(options.path, wait=False)
    else:
        flush_after_last(options)


def settle(attachment: Attachment, path: str) -> Exception | None:
    """The last flush of a life, and a snapshot if something was written since the newest one.

    Returns what went wrong with the flush. A snapshot that cannot be written costs the next recovery time.
    """
    r, advanced = ffi.new("mm_result *"), ffi.new("uint64_t *")
    rc = lib.mm_flush(attachment.mm, 0, advanced, r)
    if rc:
        return _failed(rc, r)
    lib.mm_clean(attachment.mm, errors.BACKGROUND, 0, ffi.new("mm_clean_report *"), r)  # what is free is given back
    if lib.mm_snapshot_stale(attachment.mm):
        try:
            _snapshot.write(attachment, path)
        except (errors.MmpcError, OSError) as e:
            import logging

            logging.getLogger("mmpc").warning("%s: no snapshot was written: %s", path, e)
    rc = lib.mm_flush_to_marks(attachment.mm, r)  # whoever looks at the files finds all that is durable in the marks
    return _failed(rc, r) if rc else None


def truncate_after_last(options: Options) -> None:
    """Gives the free end of the log back to the file system, unless somebody is attached or comes in just now."""
    from filelock import FileLock

    from . import _cut

    r, cut = ffi.new("mm_result *"), ffi.new("uint64_t *")
    try:
        if _files.read_config(options.path) is None:
            return
        with FileLock(os.path.join(options.path, "open.lock"), mode=0o600, timeout=1), Descriptors() as files:
            files.open(options.path, _FILES_OF_ATTACHMENT)
            if lib.mm_lock_range(files.get("lock"), 0, _files.SLOTS) != errors.OK:
                return
            config = _files.read_config(options.path)  # nobody else writes it now: what it says is kept
            if config is None:
                return
            c = _core_config(config, options, files)
            if lib.mm_identity_check(c, r) == errors.OK and _cut.said(options.path, config, c, r):
                lib.mm_log_truncate(c, cut, r)
    except (errors.MmpcError, OSError, TimeoutError):
        return  # space is given back by the next one who leaves


def has_free_end(attachment: Attachment) -> bool:
    """True when segments at the end of the log may be free."""
    s = ffi.new("mm_stats *")
    return bool(lib.mm_get_stats(attachment.mm, s) == errors.OK and s.segments_free)


def flush_after_last(options: Options) -> None:
    """Called by each process that has left: flushes what nobody else will.

    Processes that leave at the same time each think that another one stays; and while the last one flushed, another
    may have come, written, and left, relying on it.
    """
    while nobody_left(options.path) and _unflushed(options.path):
        try:
            config = _files.read_config(options.path)
            attachment = _attach(config, options, locked=True) if config is not None else None
        except (errors.MmpcError, OSError):
            return
        if attachment is None:
            return  # somebody else has just asked the same, and looks after it
        error = settle(attachment, options.path)
        lib.mm_close(attachment.mm)
        if error is not None:
            raise error


def _unflushed(path: str) -> bool:
    """True when something was written since the newest flush."""
    try:
        fd = os.open(os.path.join(path, "control"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return bool(lib.mm_control_dirty(fd))
    finally:
        os.close(fd)
