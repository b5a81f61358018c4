"""The portable face: verbs and object cache in Python over cffi, for interpreters without CPython's C API.

It behaves as the C face does (csrc/hot_*.c) and passes the same tests; ``MMPC_FACE=cffi`` chooses it. It
is the slower one: a cached get is one call of the core, which answers that nothing is newer.

Rule for all of it: a call into the user's Python (merge, size_in_bytes, a destructor) may use the handle,
close it, or let another thread do so. So what `_bind` was given is read anew for each call of the core that
follows one, and the object cache is never left half changed across one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from . import errors
from ._native import ffi, lib
from ._portable_cache import Entry, ObjectCache
from ._portable_view import Hold, View, copied, held
from .results import Counter, Free, Materialized, Meta, PagePtr, Unallocated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .tx import Tx

__all__ = ["Counter", "Free", "Materialized", "Meta", "PagePtr", "Unallocated", "Verbs", "View"]

T = TypeVar("T")

KIND_FREE = 3  # MM_KIND_FREE of csrc/layout.h
PIDS = 1 << 40  # page ids are below
NO_ID = 2**64 - 1  # MM_ID_NONE
SCRATCH = 16 << 10
READ_FRAGMENTS, READ_TO_MERGE = 2, 3  # of csrc/mmpc.h: MM_READ_FRAGMENTS, MM_READ_TO_MERGE
ALLOCATE, APPEND, LINK, REPLACE, CONSOLIDATE = 0, 1, 2, 3, 5  # enum mm_write
_EVICTIONS = lib.mm_metric_named(0, b"cache_evictions")
_SERIALIZE, _DESERIALIZE = lib.mm_metric_named(1, b"serialize"), lib.mm_metric_named(1, b"deserialize")
_EVERY_SERIALIZE, _EVERY_DESERIALIZE = 256, 256  # one in so many is timed, and stands for as many (csrc/metrics.h)


class Binding(NamedTuple):
    """What `_bind` was given; replaced as a whole."""

    mm: Any
    unpack: Callable[[Any], Any]
    merge: Callable[[Any], Any]
    kind: int
    last: bool
    size_of: Callable[[Any], int] | None
    owner: Any
    decompress: Callable[[int, bytes, int], bytes]
    compress: Callable[[bytes], bytes | None] | None


class Payload(NamedTuple):
    """An encoded fragment; compressed, it has the class of what it was."""

    body: bytes
    compressed: bool = False
    tag: int = 0


class Read(NamedTuple):
    """What mm_read answered: the numbers of mm_result, and the bytes."""

    key: PagePtr
    generation: int
    cost: int
    fragments: int
    kind: int
    whole: bool
    merged: bool
    tidy: bool
    body: bytes


class Verbs(Generic[T]):
    """The verbs of a page cache, and its cache of decoded objects."""

    __slots__ = ("_binding", "_objects")
    _binding: Binding | None
    _objects: ObjectCache

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Unbound: every verb calls _mend(CLOSED)."""
        self = super().__new__(cls)
        self._binding = None
        self._objects = ObjectCache(0)
        return self

    # ---- the handle

    def _bind(
        self,
        address: int,
        pack: Callable[[Any], bytes],
        unpack: Callable[[Any], Any],
        merge: Callable[[Any], Any],
        kind: int,
        size_rule_last: bool,
        size_of: Callable[[Any], int] | None,
        capacity: int,
        owner: Any,
        decompress: Callable[[int, bytes, int], bytes],
        compress: Callable[[bytes], bytes | None] | None,
        compress_from: int,
        /,
    ) -> None:
        """Attaches the verbs to the core; what is cached stays. `owner` keeps the attachment for views; the last three
        are of `_compression`, which asks for the least size itself.

        `pack` serves one caller at a time, which only the C face can promise: here codec.encode is called.
        """
        if capacity < self._objects.capacity:
            self._objects.clear()
        self._objects.capacity = capacity
        core = ffi.cast("mm *", address)
        of_values = (unpack, merge, kind, size_rule_last, size_of)
        self._binding = Binding(core, *of_values, owner, decompress, compress)

    def _tell(self) -> None:
        """Counts in the metrics what was not counted there yet: nothing."""

    def _unbind(self) -> None:
        """Detaches the verbs and drops the object cache."""
        self._binding = None
        self._objects.clear()

    def _due(self) -> None:
        """A write noticed that the log has grown enough for a snapshot."""

    def _mend(self, status: int, result: tuple[int, ...], pid: int, fragment: Any) -> None:
        raise errors.Closed("this handle was never opened")

    def _bound(self, pid: Any = None, fragment: Any = None) -> Binding:
        while (binding := self._binding) is None:
            self._mend(errors.CLOSED, (0,) * 8, pid, fragment)
        return binding

    def _failed(self, status: int, r: Any, pid: Any, fragment: Any) -> None:
        k = r.key
        result = (k.pid, k.head, k.wts, k.lsn, r.length, r.offset, r.file, r.os_error)
        self._mend(status, result, pid, fragment)

    def _cache_info(self) -> tuple[int, int, int, int, int]:
        """(entries, bytes, capacity, misses, evictions) of the object cache."""
        o = self._objects
        return len(o.entries), o.bytes, o.capacity, o.misses, o.evictions

    def _drop(self, pid: int | None = None) -> None:
        """Forgets the cached object of a page, or all."""
        if pid is None:
            self._objects.clear()
        else:
            _page_id(pid)
            self._objects.remove(pid)

    # ---- reading

    def get(self, pid: int, tx: Tx | None = None) -> Materialized[T] | Free | Unallocated | Counter | Meta:
        """The value and its key as Materialized, or Free, Unallocated, Counter (page 1), Meta (page 0).

        While nobody changes the page the same object is returned; treat its value as immutable.
        """
        _check_tx(self, tx)
        page: Materialized[T] | Free | Unallocated | Counter | Meta = self._get(pid, True)
        return page

    def get_many(
        self, pids: Iterable[int], tx: Tx | None = None
    ) -> list[Materialized[T] | Free | Unallocated | Counter | Meta]:
        """The results of get for each page id, in order."""
        self._bound()
        _check_tx(self, tx)
        return [self._get(pid, True) for pid in list(pids)]

    def get_page_frags(self, pid: int, tx: Tx | None = None) -> tuple[PagePtr, list[T]]:
        """The page's key and its fragments, oldest first, not merged.

        Raises PageNotFound, PageFreed, or Unsupported for pages 0 and 1.
        """
        _check_tx(self, tx)
        r = ffi.new("mm_result *")
        known = _page_id(pid)
        while True:
            binding = self._bound(pid)
            status, body = errors.NOPAGE if not known else errors.RESERVED if pid < 2 else errors.OK, b""
            if status == errors.OK:
                status, body = _read(binding, pid, 0, READ_FRAGMENTS, r)
            if status == errors.OK and r.kind == KIND_FREE:
                status = errors.FREED
            if status == errors.OK:
                return _key(r), _decode(binding, body)
            self._failed(status, r, pid, None)

    def _get(self, pid: int, may_tidy: bool) -> Any:
        known = _page_id(pid)
        if not known:
            self._bound(pid)
            return Unallocated()
        r = ffi.new("mm_result *")
        while True:
            binding = self._bound(pid)
            entry = self._objects.entries.get(pid)
            wts, page, size = (entry.wts, entry.page, entry.size) if entry is not None else (0, None, 0)
            status, body = _read(binding, pid, wts, int(binding.kind != 0 and pid > 1), r)
            if status == errors.OK:
                return self._answer(binding, _result(r, body), pid, page, size, may_tidy)
            if status in (errors.NOPAGE, errors.FREED):
                self._objects.remove(pid)
                return Unallocated() if status == errors.NOPAGE else Free(_key(r))
            self._failed(status, r, pid, None)

    def _answer(self, binding: Binding, read: Read, pid: int, page: Any, size: int, may_tidy: bool) -> Any:
        if read.kind == KIND_FREE:
            self._objects.remove(pid)
            return Free(read.key)
        if pid < 2:
            value = _decode(binding, read.body)
            return (Counter if pid else Meta)(value if read.merged else value[0], read.key)
        entry = self._objects.entries.get(pid)
        if not read.whole and read.fragments == 0 and page is not None:
            head, generation = read.key.head, read.generation
            if read.tidy and may_tidy:
                head, generation = self._tidy(binding, read, page.value)
            if entry is not None and entry.wts == read.key.wts:
                entry.visited, entry.head, entry.generation = True, head, generation
            return page
        self._objects.misses += 1
        weight = _sample(self._objects.misses - 1, _EVERY_DESERIALIZE)
        begun = lib.mm_ticks(binding.mm) if weight else 0
        value = _assemble(binding, read, page)
        self._time(_DESERIALIZE, begun, weight)
        size = _measure(binding, value, read, size)
        key, generation = read.key, read.generation
        if read.tidy and may_tidy:
            head, generation = self._tidy(binding, read, value)
            key = PagePtr(pid, head, key.wts, key.last_lsn)
        page = Materialized(value, key)
        if self._binding is not None:
            before = self._objects.evictions
            gone = self._objects.put(Entry(pid, key.head, generation, key.wts, size, page))
            if self._objects.evictions > before and self._binding is not None:
                lib.mm_metrics_add(self._binding.mm, _EVICTIONS, self._objects.evictions - before)
            del gone
        return page

    # ---- views

    def view(self, pid: int, tx: Tx | None = None) -> View:
        """The bytes of a bytes or numpy page as a View: read-only, in the mapping, without a copy.

        They stay as they are while the view, or a memoryview or array made of it, lives: through replace, free,
        close and fork. A page of several fragments is consolidated first; where that cannot be, the view is of a
        copy (zero_copy is False), as is that of a page that is compressed. The checksum is verified when this
        process first views the bytes. Raises PageNotFound, PageFreed, CorruptionError, or Unsupported for pages 0
        and 1 and for values of another type.
        """
        _check_tx(self, tx)
        known, tries = _page_id(pid), 0
        r = ffi.new("mm_result *")
        while True:
            binding = self._bound(pid)
            hold = Hold(binding.owner)
            status = hold.take(binding.mm, pid, r) if known else errors.NOPAGE
            if status == errors.OK:
                return held(hold, _key(r))
            if status == errors.COMPRESSED:
                status, body = self._whole(binding, pid, r)
                if status == errors.OK:
                    return copied(body, _key(r))
            if status != errors.CHAIN:
                self._failed(status, r, pid, None)
            elif (copy := self._contiguous(pid, tries)) is not None:
                return copied(*copy)
            else:
                tries += 1

    def _whole(self, binding: Binding, pid: int, r: Any) -> tuple[int, bytes]:
        """The encoded value of a page; CHAIN: of several fragments that Python merges."""
        status, body = _read(binding, pid, 0, READ_TO_MERGE, r)
        if status != errors.OK or r.kind == KIND_FREE:
            return status or errors.FREED, b""
        if not r.merged and r.count != 1:
            return errors.CHAIN, b""
        return errors.OK, body if r.merged else body[1:]  # without the header of the array

    def _contiguous(self, pid: int, tries: int) -> tuple[bytes, PagePtr] | None:
        """Makes the page one record, or answers its value, encoded, and its key."""
        raise errors.Closed("this handle was never opened")

    # ---- consolidation

    def _tidy(self, binding: Binding, read: Read, value: Any) -> tuple[int, int]:
        """After a read that met a long chain; the head and generation of the page then.

        Nothing that fails here is an error of the read.
        """
        r = ffi.new("mm_result *")
        pid, wts = read.key.pid, read.key.wts
        try:
            status = self._publish(binding, pid, wts, value, r)
        except Exception:
            status = errors.CHAIN
        if status == errors.OK and r.key.pid == pid and r.key.wts == wts and r.generation:
            return r.key.head, r.generation
        return read.key.head, read.generation

    def _publish(self, binding: Binding, pid: int, wts: int, value: Any, r: Any) -> int:
        """Publishes the merge of everything up to `wts` as the base of the page."""
        if binding.kind:
            return self._merge_chain(binding, pid, r)
        return self._consolidated(pid, wts, _packed(binding, _encode(value)), r)

    def _consolidated(self, pid: int, wts: int, payload: Payload, r: Any) -> int:
        mm, key = self._bound(pid).mm, ffi.new("mm_key *", {"pid": pid, "wts": wts})
        if payload.compressed:
            body = payload.body
            return int(lib.mm_write_compressed(mm, CONSOLIDATE, key, payload.tag, body, len(body), r))
        return int(lib.mm_consolidate(mm, pid, wts, payload.body, len(payload.body), r))

    def _merge_chain(self, binding: Binding, pid: int, r: Any) -> int:
        """Merges a chain, native materializers only: in C, or, where it is compressed or to be compressed, here."""
        status = int(lib.mm_consolidate_native(binding.mm, pid, r))
        if status != errors.COMPRESSED:
            return status
        status, body = self._whole(self._bound(pid), pid, r)
        if status == errors.OK and r.depth < 2:
            return errors.CONFLICT
        if status != errors.OK:
            return status
        return self._consolidated(pid, r.key.wts, _packed(binding, body), r)

    def _consolidate(self, pid: int, /) -> bool:
        """Merges the page's chain to a new base; False: nothing to do, or somebody else did."""
        known = _page_id(pid)
        while True:
            r = ffi.new("mm_result *")
            binding = self._bound(pid)
            status = errors.NOPAGE if not known else errors.RESERVED if pid < 2 else errors.OK
            if status == errors.OK:
                page = self._get(pid, False) if not binding.kind else None
                if page is not None and not isinstance(page, Materialized):
                    return False
                value, wts = (page.value, page.key.wts) if page is not None else (None, 0)
                status = self._publish(self._bound(pid), pid, wts, value, r)
            if status == errors.OK:
                return True
            if status in (errors.CONFLICT, errors.CHAIN, errors.FREED):
                return False
            self._failed(status, r, pid, None)

    # ---- numbers

    def generate_id(self) -> int:
        """A number that no process was given before, nor will be: rising over all processes, restarts and crashes,
        with gaps.

        Once in idgen_persist_interval numbers it writes how far they may go, and flushes if that of the time before
        is not durable yet.
        """
        out, r = ffi.new("uint64_t *", NO_ID), ffi.new("mm_result *")
        while status := lib.mm_generate_id(self._bound(1).mm, out, 0, r):
            self._failed(status, r, 1, None)
        return int(out[0])

    # ---- writing

    def append(self, pid: int, fragment: T, tx: Tx | None = None) -> PagePtr:
        """Adds a fragment whatever the page's version is; returns the new key.

        Visible to every process on return; durable once stable_lsn reaches key.last_lsn.
        """
        _check_tx(self, tx)
        known = _page_id(pid)
        self._bound(pid, fragment)
        payload = self._encoded(fragment)
        return self._append(pid, known, payload, fragment)

    def append_many(self, items: Iterable[tuple[int, T]], tx: Tx | None = None) -> list[PagePtr]:
        """Appends the fragments of pairs (pid, fragment) in order; returns their keys.

        All are encoded before the first is applied; a later exception carries in `applied` the keys of those
        that were.
        """
        self._bound()
        _check_tx(self, tx)
        batch: list[tuple[int, bool, Payload, Any]] = []
        for i, item in enumerate(list(items)):
            pair: tuple[Any, ...] = tuple(item)
            if len(pair) != 2:
                raise TypeError(f"item {i} of append_many is not a pair (pid, fragment)")
            batch.append((pair[0], _page_id(pair[0]), self._encoded(pair[1]), pair[1]))
        applied: list[PagePtr] = []
        try:
            for pid, known, payload, fragment in batch:
                applied.append(self._append(pid, known, payload, fragment))
        except Exception as error:
            error.applied = applied  # type: ignore[attr-defined]
            raise
        return applied

    def allocate(self, fragment: T, tx: Tx | None = None) -> tuple[int, PagePtr]:
        """A new page with this base; returns (pid, key)."""
        _check_tx(self, tx)
        self._bound(None, fragment)
        payload = self._encoded(fragment)
        r = ffi.new("mm_result *")
        while status := _write(lib.mm_allocate, ALLOCATE, self._bound(None, fragment).mm, _NO_KEY, payload, r):
            self._failed(status, r, None, fragment)
        key = _key(r)
        return key.pid, key

    def link(self, pid: int, key: PagePtr, fragment: T, tx: Tx | None = None) -> PagePtr:
        """Adds a fragment if nobody wrote since `key`; returns the new key.

        Raises Conflict (.current, .rejected) otherwise.
        """
        return self._at_key(lib.mm_link, LINK, pid, key, fragment, tx)

    def replace(self, pid: int, key: PagePtr, fragment: T, tx: Tx | None = None) -> PagePtr:
        """Makes `fragment` the whole page if nobody wrote since `key`; returns the new key.

        Raises Conflict (.current, .rejected) otherwise.
        """
        return self._at_key(lib.mm_replace, REPLACE, pid, key, fragment, tx)

    def free(self, pid: int, key: PagePtr, tx: Tx | None = None) -> PagePtr:
        """Frees the page if nobody wrote since `key`; returns the key of the free page.

        Raises Conflict (.current) otherwise.
        """
        self._bound(pid)
        _check_tx(self, tx)
        known, k = _page_key(pid, key)
        r = ffi.new("mm_result *")
        while status := lib.mm_free(self._bound(pid).mm, k, r) if known else errors.NOPAGE:
            self._failed(status, r, pid, None)
        self._objects.remove(pid)
        return _key(r)

    def _encoded(self, fragment: Any) -> Payload:
        weight, binding = _sample(self._objects.encoded, _EVERY_SERIALIZE), self._binding
        self._objects.encoded += 1
        begun = lib.mm_ticks(binding.mm) if weight and binding is not None else 0
        payload = _encode(fragment)
        self._time(_SERIALIZE, begun, weight)
        return _packed(binding, payload)

    def _time(self, histogram: int, begun: int, weight: int) -> None:
        if begun and self._binding is not None:
            lib.mm_metrics_time(self._binding.mm, histogram, begun, weight)

    def _append(self, pid: int, known: bool, payload: Payload, fragment: Any) -> PagePtr:
        r, key = ffi.new("mm_result *"), ffi.new("mm_key *", {"pid": pid if known else 0})
        while True:
            mm = self._bound(pid, fragment).mm
            status = _write(lib.mm_append, APPEND, mm, key, payload, r) if known else errors.NOPAGE
            if status == errors.OK:
                return self._written(r)
            self._failed(status, r, pid, fragment)

    def _at_key(self, core: Any, verb: int, pid: int, key: PagePtr, fragment: Any, tx: Tx | None) -> PagePtr:
        self._bound(pid, fragment)
        _check_tx(self, tx)
        known, k = _page_key(pid, key)
        payload = self._encoded(fragment)
        r = ffi.new("mm_result *")
        while True:
            mm = self._bound(pid, fragment).mm
            status = _write(core, verb, mm, k, payload, r) if known else errors.NOPAGE
            if status == errors.OK:
                return self._written(r)
            self._failed(status, r, pid, fragment)

    def _written(self, r: Any) -> PagePtr:
        """The key of a write that succeeded; a consolidation that fails is no error of the write."""
        key = _key(r)
        binding = self._binding
        due = bool(r.due)
        if r.tidy and binding is not None and binding.kind:
            self._merge_after(binding, key.pid, r)
        if due:
            self._due()
        return key

    def _merge_after(self, binding: Binding, pid: int, r: Any) -> None:
        try:
            self._merge_chain(binding, pid, r)
        except Exception:
            return


# ---- arguments


def _page_id(pid: object) -> bool:
    """Whether a page can have this id; TypeError: it is no int."""
    if not isinstance(pid, int) or isinstance(pid, bool):
        raise TypeError(f"pid must be an int, not {type(pid)!r}")
    return 0 <= pid < PIDS


def _check_tx(handle: Verbs[Any], tx: Tx | None) -> None:
    if tx is not None:
        if not hasattr(tx, "_check"):
            raise TypeError(f"tx must be a Tx, not {type(tx)!r}")
        tx._check(handle)


def _page_key(pid: object, key: object) -> tuple[bool, Any]:
    if not isinstance(key, PagePtr):
        raise TypeError(f"key must be a PagePtr, not {type(key)!r}")
    known = _page_id(pid)
    if key.pid != pid:
        raise ValueError(f"the key is of page {key.pid}, not of page {pid}")
    return known, ffi.new("mm_key *", {"pid": key.pid, "head": key.head, "wts": key.wts, "lsn": key.last_lsn})


def _sample(n: int, every: int) -> int:
    """For how many the time of the n-th stands; 0: it is not looked at."""
    return 1 if n < every else every if n % every == every - 1 else 0


# ---- the core's answers


def _key(r: Any) -> PagePtr:
    k = r.key
    return PagePtr(k.pid, k.head, k.wts, k.lsn)


def _read(binding: Binding, pid: int, known: int, how: int, r: Any) -> tuple[int, bytes]:
    room = SCRATCH
    while True:
        buffer = ffi.new("uint8_t[]", room)
        status = lib.mm_read(binding.mm, pid, known, how, buffer, room, r)
        if status == errors.COMPRESSED:
            body = binding.decompress(pid, ffi.buffer(buffer, r.length)[:], r.merged)
            r.cost = lib.mm_merge_cost(body, len(body))
            return errors.OK, body
        if status != errors.SPACE:
            has_body = status == errors.OK and r.kind != KIND_FREE
            return status, ffi.buffer(buffer, r.length)[:] if has_body else b""
        room = r.length


def _result(r: Any, body: bytes) -> Read:
    flags = bool(r.whole), bool(r.merged), bool(r.tidy)
    return Read(_key(r), r.generation, r.cost, r.count, r.kind, *flags, body)


def _assemble(binding: Binding, read: Read, page: Any) -> Any:
    """The merged value of a page. A single fragment is the value as it is, without a merge."""
    if read.merged:
        return _decode(binding, read.body)
    base = [page.value] if not read.whole and page is not None else []
    if read.fragments == 1 and not base:
        return _decode(binding, read.body[1:])  # without the header of the array
    return binding.merge(base + _decode(binding, read.body))


def _measure(binding: Binding, value: Any, read: Read, before: int) -> int:
    """Bytes that the cache accounts for `value`."""
    if binding.size_of is not None:
        return max(0, int(binding.size_of(value)))
    if read.whole:
        return read.cost
    return max(before, read.cost) if binding.last else before + read.cost


# ---- writing


_NO_KEY = ffi.new("mm_key *")


def _packed(binding: Binding | None, body: bytes) -> Payload:
    """The payload, compressed where the handle does that and it gains anything."""
    if binding is None or binding.compress is None:
        return Payload(body)
    tag = int(lib.mm_merge_class(binding.kind, body, len(body))) if binding.kind else 0
    frame = binding.compress(body) if tag or not binding.kind else None  # else the core says what is wrong with it
    return Payload(body) if frame is None else Payload(frame, True, tag)


def _write(core: Any, verb: int, mm: Any, key: Any, payload: Payload, r: Any) -> int:
    """A verb of the core, or what stands for it where the payload is compressed."""
    body = payload.body
    if payload.compressed:
        return int(lib.mm_write_compressed(mm, verb, key, payload.tag, body, len(body), r))
    if verb == ALLOCATE:
        return int(core(mm, body, len(body), r))
    return int(core(mm, key.pid if verb == APPEND else key, body, len(body), r))


# ---- the codec


def _encode(fragment: Any) -> bytes:
    from . import codec

    return codec.encode(fragment)


def _decode(binding: Binding, body: bytes) -> Any:
    try:
        if 0xC7 <= body[0] <= 0xD8:
            raise ValueError  # an array that is the whole value shares the memory of `body`
        return binding.unpack(body)
    except (TypeError, ValueError, OverflowError, RecursionError):
        from . import codec

        return codec.decode(body)
