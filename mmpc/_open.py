"""Opening a store: options are checked here, before anything is touched."""

from __future__ import annotations

import os

from . import _compression, _files, _store
from ._checks import check_bool, check_cleanup, check_int, check_path, check_power
from ._face import T
from .materializer import Materializer, by_name
from .observer import Observer
from .pagecache import PageCache, ReadOnlyPageCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_CACHE = 64 << 20
DEFAULT_THRESHOLD = 10
DEFAULT_FACTOR = 5
NEVER = 1000  # deeper than any chain


def open(
    path: str | os.PathLike[str] | None,
    materializer: Materializer[T],
    *,
    create: bool = False,
    read_only: bool = False,
    temporary: bool = False,
    cache_capacity: int = DEFAULT_CACHE,
    mapped_capacity: int | None = None,
    page_consolidation_threshold: int = DEFAULT_THRESHOLD,
    segment_size: int | None = None,
    flush_every_ms: int | None = None,
    segment_cleanup_threshold: float = 0.4,
    segment_cleanup_skew: int = 10,
    idgen_persist_interval: int = _store.ID_INTERVAL,
    event_log: str | os.PathLike[str] | None = None,
    metrics: bool = True,
    print_profile_on_close: bool = False,
    use_compression: bool = False,
    compression_factor: int = DEFAULT_FACTOR,
) -> PageCache[T]:
    """Opens the store in directory `path`, for any number of processes at once.

    `create` makes it when it is not there (with mode 0700).  A store made with `temporary` is removed when the last
    process leaves it, whatever that one asked for; `path` may then be None. `read_only` refuses every verb that writes;
    it pins what it reads as everybody does, which writes to the store's files. Without permission to, and on a medium
    that cannot be written to, it gives an `Observer`, which touches nothing. `cache_capacity` (bytes) bounds the
    private cache of decoded values: beside it a process takes at most 48 MiB and what its running calls hold.
    `mapped_capacity` (bytes, at least 4 MiB) bounds what this handle keeps mapped of the log, which counts as
    resident memory of the process although it is the kernel's page cache; None: whatever it touches stays mapped
    until the kernel needs the memory.  Chains of more than `page_consolidation_threshold` fragments are merged to one
    (1 to 200).  `segment_size` (a power of two from 64 KiB to 1 GiB, default 8 MiB) is chosen at creation for
    good; fragments of half a segment and more take segments of their own.  With `flush_every_ms` (1 to
    3,600,000) a thread of this handle sees to it that what any process writes is flushed within about that
    time: one flush a period, however many processes
    ask for it, and none when nothing is dirty; a `read_only` handle asks for none.  None, the default: who
    needs durability calls `flush`.

    Writers keep the log within a factor of what is live. Beyond that, `attempt_gc` and the thread of
    `flush_every_ms` empty segments of which at most the share `segment_cleanup_threshold` (0.01 to 0.99) is live,
    `segment_cleanup_skew` (0 to 98) percent more at the beginning of the log and less towards its end.

    `metrics`: this process counts and times what it does, for `PageCache.metrics`, at a cost of a percent or two.
    `print_profile_on_close` prints those of all processes to standard output when this handle is closed.

    `idgen_persist_interval` (1 to 2^40): `generate_id` writes a record once in so many numbers, and a recovery skips at
    most twice as many.  Each process may have its own; a small one makes numbers slow, since each record is flushed.

    `event_log`, a directory that is made if need be, or the environment variable MMPC_EVENT_LOG: what the handle does
    is written there, for programs that judge it (`mmpc.event_log`); it makes every verb slow.

    `use_compression`: what this handle writes is compressed with zstandard, each fragment by itself, at the level
    `compression_factor` (1 to 22), where that makes it smaller. It needs the extra `mmpc[compression]`, and so does
    every later open of that store. Any handle reads what is compressed and what is not.

    Errors: FileNotFoundError (no store, no `create`); IncompatibleStore (another format, materializer or
    segment size; `temporary` for a store made to stay; a directory that is not a store); CorruptionError;
    Unsupported (a file system that cannot do it, no write permission, no zstandard where it is needed);
    StoreBusy; DiskFullError; ValueError, TypeError.
    docs/options.md has all options in a table, and what becomes of one that is changed at the next open.
    """
    if not isinstance(materializer, Materializer):
        raise TypeError(f"materializer must be an mmpc.Materializer, not {type(materializer).__name__}")
    for option, value in (("create", create), ("read_only", read_only), ("temporary", temporary)):
        check_bool(option, value)
    if path is None and not temporary:
        raise TypeError("path may be None only with temporary=True")
    if path is None:
        path, create = _files.temporary_path(), True
    where = check_path("path", path)
    check_int("cache_capacity", cache_capacity, 0, 1 << 62)
    if mapped_capacity is not None:
        check_int("mapped_capacity", mapped_capacity, 4 << 20, 1 << 62)
    check_int("page_consolidation_threshold", page_consolidation_threshold, 1, 200)
    shift = check_power("segment_size", segment_size, 1 << 16, 1 << 30) if segment_size is not None else None
    if flush_every_ms is not None:
        check_int("flush_every_ms", flush_every_ms, 1, 3_600_000)
    check_int("idgen_persist_interval", idgen_persist_interval, 1, 1 << 40)
    cleanup = check_cleanup(segment_cleanup_threshold, segment_cleanup_skew)
    name, kind = _identify(materializer)
    # A reader merges for itself and leaves the chains as they are.
    threshold = page_consolidation_threshold if not read_only else NEVER
    options = _store.Options(
        where,
        name,
        kind,
        threshold,
        shift,
        temporary,
        flush_every_ms,
        cleanup,
        mapped_capacity,
        idgen_persist_interval,
    )
    options.metrics = check_bool("metrics", metrics)
    options.profile = check_bool("print_profile_on_close", print_profile_on_close)
    check_int("compression_factor", compression_factor, 1, 22)
    if check_bool("use_compression", use_compression) and not read_only:
        _compression.needed("use_compression=True was asked for")
        options.compression = compression_factor
    observes = read_only and not _files.may_write(where)
    told = event_log if event_log is not None else os.environ.get("MMPC_EVENT_LOG") or None
    recorded = check_path("event_log", told) if told is not None else None
    if recorded and not observes:
        from . import event_log as events

        return events.opened(recorded, read_only, materializer, options, create, cache_capacity)  # type: ignore[no-any-return]
    make: type[PageCache[T]] = Observer if observes else ReadOnlyPageCache if read_only else PageCache
    return make(materializer, options, create, cache_capacity)


def _identify(materializer: Materializer[Any]) -> tuple[str, int]:
    name = getattr(materializer, "name", None)
    if not isinstance(name, str) or not 0 < len(name.encode()) <= 200:
        raise TypeError("a materializer needs a `name`: a string of 1 to 200 bytes, recorded in the store")
    # A subclass of a native materializer may merge otherwise: C must not merge for it.
    kind = int(materializer.kind) if type(materializer) is type(by_name(name)) else 0
    if name.startswith("mmpc.") and not kind:
        what = type(materializer).__name__
        raise ValueError(f"names that begin with 'mmpc.' are the native materializers', not {what}'s")
    return name, kind


def reopen(
    path: str,
    materializer: Materializer[T],
    read_only: bool,
    temporary: bool,
    capacity: int,
    threshold: int,
    flush_every_ms: int | None,
    cleanup: tuple[int, int],
    mapped: int | None,
    id_interval: int = _store.ID_INTERVAL,
    metrics: bool = True,
    profile: bool = False,
    compression: int | None = None,
    event_log: str | None = None,
) -> PageCache[T]:
    """What a pickled handle becomes."""
    return open(
        path,
        materializer,
        read_only=read_only,
        temporary=temporary,
        cache_capacity=capacity,
        mapped_capacity=mapped,
        page_consolidation_threshold=threshold if threshold != NEVER else DEFAULT_THRESHOLD,
        flush_every_ms=flush_every_ms,
        segment_cleanup_threshold=cleanup[0] / 100,
        segment_cleanup_skew=cleanup[1],
        idgen_persist_interval=id_interval,
        event_log=event_log,
        metrics=metrics,
        print_profile_on_close=profile,
        use_compression=compression is not None,
        compression_factor=compression if compression is not None else DEFAULT_FACTOR,
    )
