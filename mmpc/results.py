"""What the verbs answer, in Python: PagePtr, and Materialized, Free, Unallocated, Counter, Meta.

The portable face uses these classes; the C face (csrc/hot_results.c) has the same in C. Programs import them
from `mmpc`, and `mmpc` is the module that pickles name, so either face reads what the other pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

T = TypeVar("T")
V = TypeVar("V")
_set = object.__setattr__


class _Immutable:
    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")


class PagePtr(_Immutable):
    """Names one version of a page.

    Keys are equal when page and version are; a move of the page changes neither. The state that a key names
    is durable once `stable_lsn` has reached its `last_lsn`.
    """

    __match_args__ = ("pid", "head", "wts", "last_lsn")
    __module__ = "mmpc"
    if TYPE_CHECKING:  # what cannot be changed is a property to a type checker

        @property
        def pid(self) -> int: ...
        @property
        def head(self) -> int: ...
        @property
        def wts(self) -> int: ...
        @property
        def last_lsn(self) -> int: ...
    else:
        __slots__ = __match_args__

    def __init__(self, pid: int, head: int, wts: int, last_lsn: int) -> None:
        for value in (pid, head, wts, last_lsn):
            if not isinstance(value, int):
                raise TypeError(f"a PagePtr is made of integers, not {type(value).__name__}")
            if not 0 <= value < 1 << 64:
                raise OverflowError(f"{value} does not fit 64 bits")
        _set(self, "pid", pid)
        _set(self, "head", head)
        _set(self, "wts", wts)
        _set(self, "last_lsn", last_lsn)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PagePtr):
            return NotImplemented
        return self.pid == other.pid and self.wts == other.wts

    def __hash__(self) -> int:
        return hash((self.pid, self.wts))

    def __repr__(self) -> str:
        return f"PagePtr(pid={self.pid}, head={self.head}, wts={self.wts}, last_lsn={self.last_lsn})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.pid, self.head, self.wts, self.last_lsn)


class _Page(_Immutable, Generic[T]):
    """What the five results share; T is what `unwrap` returns, NoReturn where it always raises."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def unwrap(self) -> T:
        """The value of a Materialized; ValueError for anything else."""
        raise ValueError(f"unwrap called on non-Materialized: {self!r}")

    def expect(self, message: object) -> T:
        """The value of a Materialized; ValueError with this message for anything else."""
        raise ValueError(str(message))

    def is_materialized(self) -> bool:
        """Whether the page has a value."""
        return isinstance(self, Materialized)

    def is_free(self) -> bool:
        """Whether the page was freed and not used again."""
        return isinstance(self, Free)

    def is_unallocated(self) -> bool:
        """Whether the page was never allocated."""
        return isinstance(self, Unallocated)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        ours, theirs = self._fields(), other._fields()
        return all(a is b or bool(a == b) for a, b in zip(reversed(ours), reversed(theirs), strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._fields()

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)


class _Valued(_Page[T], Generic[T, V]):
    __match_args__ = ("value", "key")
    if TYPE_CHECKING:

        @property
        def value(self) -> V: ...
        @property
        def key(self) -> PagePtr: ...
    else:
        __slots__ = ("key", "value")

    def __init__(self, value: V, key: PagePtr) -> None:
        _set(self, "value", value)
        _set(self, "key", key)


class Materialized(_Valued[T, T]):
    """The page has this `value`, shared with the cache: treat it as immutable. `key` is for the next CAS."""

    __slots__ = ()
    __module__ = "mmpc"

    def unwrap(self) -> T:
        """The value."""
        return self.value

    def expect(self, message: object) -> T:
        """The value."""
        return self.value


class Free(_Page[NoReturn]):
    """The page was freed, and its id not used again."""

    __match_args__ = ("key",)
    __module__ = "mmpc"
    if TYPE_CHECKING:

        @property
        def key(self) -> PagePtr: ...
    else:
        __slots__ = ("key",)

    def __init__(self, key: PagePtr) -> None:
        _set(self, "key", key)


class Unallocated(_Page[NoReturn]):
    """No such page."""

    __slots__ = ()
    __module__ = "mmpc"


class Counter(_Valued[NoReturn, int]):
    """Page 1: the ceiling of the ids handed out."""

    __slots__ = ()
    __module__ = "mmpc"


class Meta(_Valued[NoReturn, dict[str, int]]):
    """Page 0: the roots of named collections."""

    __slots__ = ()
    __module__ = "mmpc"
