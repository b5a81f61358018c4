"""View without CPython's C API: what csrc/hot_view.c is, over cffi.

The memory is a cffi buffer over a pointer whose finalizer lets go of the page's bytes; memoryviews and arrays made
of the view keep the buffer, so the bytes stay until the last of them is gone. `memoryview(view)` itself needs the
buffer protocol for Python classes (PyPy, CPython 3.12); before, `view.raw` and `numpy.asarray(view)` do it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from . import errors
from ._native import ffi, lib
from .results import PagePtr

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

NONE = 0xFFFFFFFF  # MM_VIEW_NONE
BYTES, ARRAY = 1, 2  # enum mm_form_kind
WRITABLE, FORMAT = 1, 4  # PyBUF_*


class Hold:
    """A page's bytes in the mapping; `cell` is where the core writes what is to be dropped."""

    __slots__ = ("__weakref__", "cell", "form", "owner")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.form = ffi.new("mm_form *")
        self.cell = ffi.new("uint32_t *", NONE)

    def take(self, mm: Any, pid: int, r: Any) -> int:
        """A status of the core."""
        return int(lib.mm_view_page(mm, pid, (1 << 64) - 1, self.form, self.cell, r))

    def usable(self) -> bool:
        """False: it was opened before a fork and could not be taken over."""
        return bool(lib.mm_view_usable(self.owner.attachment.mm, self.cell[0]))

    def memory(self) -> memoryview:
        """Keeps this object as long as anything made of it."""
        pointer = ffi.gc(self.form.data, _Keep(self))
        return memoryview(ffi.buffer(pointer, self.form.bytes)).toreadonly()

    def __del__(self) -> None:
        said = lib.mm_view_drop(self.owner.attachment.mm, self.cell[0])
        if said:
            self.owner._dropped(said)


class _Keep:
    """A finalizer that does nothing but keep an object until it is due."""

    __slots__ = ("_kept",)

    def __init__(self, kept: object) -> None:
        self._kept = kept

    def __call__(self, _pointer: Any) -> None:
        self._kept = None


class View:
    """The bytes of a page, read-only, where they lie in the log; made by PageCache.view, a context manager.

    `memoryview(view)`, `numpy.asarray(view)` and `from_dlpack(view)` take them without a copy. They stay as they
    are while the view, or what was made of it, lives: through replace, free, close of the handle and fork, and
    delay only the reuse of their own segment of the log. `release()`, or the end of a with block, ends the view
    itself: it then raises Closed; what was made of it before stays valid.
    """

    __slots__ = ("__weakref__", "_form", "_hold", "_key", "_memory", "_plain", "_released")
    __module__ = "mmpc"
    _form: Any  # mm_form
    _hold: Hold | None  # None: a private copy, or released
    _key: PagePtr
    _memory: memoryview
    _plain: bool  # somebody asked for bytes without a format: numpy may keep this object alone
    _released: bool

    def __init__(self, *_args: Any) -> None:
        raise TypeError("cannot create 'mmpc.View' instances")

    @classmethod
    def _of(cls, form: Any, key: PagePtr, memory: memoryview, hold: Hold | None) -> View:
        self: View = object.__new__(cls)
        self._form, self._key, self._memory, self._hold = form, key, memory, hold
        self._released = self._plain = False
        return self

    def _live(self) -> View:
        if self._released:
            raise errors.Closed("this view was released; open another one")
        if self._hold is not None and not self._hold.usable():
            raise errors.Closed("this view was opened before a fork, and could not be taken over; open one here")
        return self

    def __buffer__(self, flags: int) -> memoryview:
        self._live()
        if flags & WRITABLE:
            raise BufferError("a view is read-only")
        if not flags & FORMAT:
            self._plain = True
            return self._memory
        if self._form.kind == BYTES:
            return self._memory
        return memoryview(self.__array__())  # type: ignore[arg-type, unused-ignore]

    def release(self) -> None:
        """Ends the view: it gives no more buffers. What was made of it before stays valid, and holds the bytes
        until it is gone. Idempotent, from any thread.
        """
        self._released = True
        if not self._plain:
            self._hold = None
            self._memory = memoryview(b"")

    def __enter__(self) -> View:
        return self._live()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def key(self) -> PagePtr:
        """PagePtr of the version that is viewed."""
        return self._key

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return int(self._live()._form.bytes)

    @property
    def dtype(self) -> str | None:
        """numpy's dtype.str of an array; None: the page holds bytes."""
        form = self._live()._form
        return ffi.string(form.dtype).decode() if form.kind == ARRAY else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array; (nbytes,) of bytes."""
        form = self._live()._form
        return tuple(int(form.shape[i]) for i in range(form.ndim))

    @property
    def raw(self) -> memoryview:
        """A flat, read-only memoryview of the bytes."""
        return self._live()._memory[:]

    @property
    def zero_copy(self) -> bool:
        """False: the fragments could not be consolidated, and the view is of a private copy."""
        return self._live()._hold is not None

    @property
    def released(self) -> bool:
        """Whether release() was called."""
        return self._released

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        from ._arrays import array_of

        return array_of(self, dtype, copy)

    def __dlpack__(self, **options: Any) -> Any:
        from ._arrays import dlpack

        return dlpack(self, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        from ._arrays import dlpack_device

        return dlpack_device(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a View cannot be pickled: it is memory of this process; send the page id, or bytes(view)"
        )

    def __repr__(self) -> str:
        if self._released:
            return f"<View of page {self._key.pid}, released>"
        array = "" if self._form.kind == BYTES else f", dtype {ffi.string(self._form.dtype).decode()}"
        return f"<View of page {self._key.pid}, {self._form.bytes} bytes{array}>"


def held(hold: Hold, key: PagePtr) -> View:
    """The View of what `hold` has taken; Unsupported: neither bytes nor an array."""
    _check(hold.form, key.pid)
    return View._of(hold.form, key, hold.memory(), hold)


def copied(payload: bytes, key: PagePtr) -> View:
    """A View of an encoded value in private memory."""
    form, source = ffi.new("mm_form *"), ffi.from_buffer(payload)
    if lib.mm_form_read(source, len(payload), form):
        form.kind = 0
    _check(form, key.pid)
    start = int(ffi.cast("uintptr_t", form.data)) - int(ffi.cast("uintptr_t", source))
    return View._of(form, key, memoryview(payload)[start : start + form.bytes], None)


def _check(form: Any, pid: int) -> None:
    if form.kind not in (BYTES, ARRAY):
        name = ffi.string(form.dtype).decode()
        raise errors.Unsupported(
            f"page {pid} holds a value of type {name}: bytes and numpy arrays have a view; use get()"
        )
