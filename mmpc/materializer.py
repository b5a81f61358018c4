"""Materializers: how the fragments of a page become one value.

A program's own materializer subclasses `Materializer`. The native ones are merged by C on the encoded
fragments (csrc/merge*.c); their `merge` here is the same function on decoded values, and the two give equal
results, types included. The name of a materializer is recorded in the store; the native ones are found again
by it.

numpy is never imported here: who has an array in hand has imported it.
"""

from __future__ import annotations

import sys

from .errors import FragmentTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar, Generic, Literal, TypeVar

    T = TypeVar("T")
else:

    class Generic:
        """Lets `Materializer[T]` be written without importing typing."""

        __slots__ = ()

        def __class_getitem__(cls, _):
            return cls

    T = None

INT64_MIN, UINT64_MAX = -(1 << 63), (1 << 64) - 1
INT128_MIN, INT128_MAX = -(1 << 127), (1 << 127) - 1


class Materializer(Generic[T]):
    """Merges the fragments of a page to one value; subclass it and give it a `name`.

    `merge` must be a pure function, and merging in steps must give the same: merge([merge([a, b]), c]) ==
    merge([a, b, c]). The fragments and the result are shared with other readers: do not change them.
    """

    name: str = ""
    """Recorded in the store; opening it with a materializer of another name is refused."""
    kind: ClassVar[int] = 0
    """The number under which C merges for it; 0: Python merges."""
    size_rule: ClassVar[Literal["sum", "last"]] = "last"
    """Whether a merged value is about as large as all fragments together or as the last one."""

    def merge(self, fragments: Sequence[T]) -> T:
        """The value of a page from its fragments, at least one, oldest first."""
        raise TypeError(f"{type(self).__qualname__} does not define merge(fragments)")

    def size_in_bytes(self, fragment: T) -> int:
        """The private memory that a value needs, for the bound of the object cache.

        Optional: while a class does not define it, the cache estimates from the encoded size.
        """
        return sys.getsizeof(fragment)

    def check(self, fragment: object) -> None:
        """FragmentTypeError if the fragment can never be merged."""


def defines_size(materializer: Materializer[Any]) -> bool:
    """Whether a materializer has a `size_in_bytes` of its own."""
    return type(materializer).size_in_bytes is not Materializer.size_in_bytes


class Append(Materializer["Any"]):
    """bytes, str, lists and arrays (along the first axis) concatenate; a page holds one of these types."""

    name = "mmpc.append-1"
    kind = 1
    size_rule = "sum"

    def merge(self, fragments: Sequence[Any]) -> Any:
        """The concatenation. FragmentTypeError: the fragments are not of one type (arrays: dtype, shape)."""
        types = {self._type_of(fragment) for fragment in fragments}
        if len(types) != 1:
            raise _mixed(self, fragments)
        kind = types.pop()
        if kind is bytes:
            return b"".join(fragments)
        if kind is str:
            return "".join(fragments)
        if kind is list:
            return [item for fragment in fragments for item in fragment]
        merged = _numpy().concatenate(fragments)
        return merged if merged.dtype == fragments[0].dtype else merged.astype(fragments[0].dtype)

    def check(self, fragment: object) -> None:
        """FragmentTypeError unless it is bytes, str, a list, a tuple or an array of one dimension or more."""
        self._type_of(fragment)

    def _type_of(self, fragment: Any) -> object:
        if isinstance(fragment, (bytes, bytearray, memoryview)):
            return bytes
        if isinstance(fragment, str):
            return str
        if isinstance(fragment, (list, tuple)):
            return list
        if _is_array(fragment) and fragment.ndim > 0:
            return fragment.dtype.str, fragment.shape[1:]
        raise _unfit(self, fragment, "bytes, str, lists and arrays with at least one dimension")


class _Numeric(Materializer["Any"]):
    """What Add and Max share: numbers, and arrays whose items C can combine."""

    lanes: ClassVar[str]
    takes: ClassVar[str]

    def check(self, fragment: object) -> None:
        """FragmentTypeError unless it is a number within 64 bits or an array that can be combined."""
        kind = self._type_of(fragment)
        if kind is int and not INT64_MIN <= _plain(fragment) <= UINT64_MAX:
            raise _unfit(self, fragment, f"{self.takes} (integers: 64 bits at most)")

    def _type_of(self, fragment: Any) -> object:
        """int, float, another class, or (dtype, shape) of an array."""
        if _is_array(fragment):
            dtype = fragment.dtype
            if dtype.str[0] != ">" and dtype.str[1:] in self.lanes.split():
                return dtype.str, fragment.shape
        elif isinstance(fragment, bool):
            pass
        elif isinstance(fragment, (int, float)):
            return float if isinstance(fragment, float) else int
        elif type(scalar := _plain(fragment)) in (int, float):
            return type(scalar)
        raise _unfit(self, fragment, self.takes)

    def _types(self, fragments: Sequence[Any]) -> set[object]:
        """The types of the fragments, where int and float go together."""
        types = {self._type_of(fragment) for fragment in fragments}
        if len(types) != 1 and not types <= {int, float}:
            raise _mixed(self, fragments)
        return types


class Add(_Numeric):
    """Integers (exact, up to 128 bits), floats, arrays by element; integer arrays wrap as numpy's do."""

    name = "mmpc.add-1"
    kind = 2
    lanes = "i1 i2 i4 i8 u1 u2 u4 u8 f4 f8 c8 c16"
    takes = "integers, floats and arrays of integers, float32, float64 and complex numbers (not big-endian)"

    def merge(self, fragments: Sequence[Any]) -> Any:
        """The sum, from left to right. FragmentTypeError: they do not add, or the sum needs 129 bits."""
        if any(isinstance(kind, tuple) for kind in self._types(fragments)):
            return _combine("add", fragments)
        total = _plain(fragments[0])
        for fragment in fragments[1:]:
            total = total + _plain(fragment)
            if isinstance(total, int) and not INT128_MIN <= total <= INT128_MAX:
                raise FragmentTypeError(f"{self.name}: the sum needs more than 128 bits")
        return total


class Max(_Numeric):
    """The largest of numbers (compared exactly, NaN wins), str (by code point), bytes; arrays by element.

    Of equal values the oldest stays.
    """

    name = "mmpc.max-1"
    kind = 3
    lanes = "i1 i2 i4 i8 u1 u2 u4 u8 f4 f8"
    takes = "integers, floats, str, bytes and arrays of integers, float32 and float64 (not big-endian)"

    def merge(self, fragments: Sequence[Any]) -> Any:
        """The maximum. FragmentTypeError: the fragments do not compare."""
        if any(isinstance(kind, tuple) for kind in self._types(fragments)):
            return _combine("maximum", fragments)
        best = _plain(fragments[0])
        for fragment in fragments[1:]:
            value = _plain(fragment)
            if best == best and (value != value or value > best):
                best = value
        return best

    def _type_of(self, fragment: Any) -> object:
        if isinstance(fragment, (bytes, bytearray, memoryview)):
            return bytes
        return str if isinstance(fragment, str) else super()._type_of(fragment)


class LastWriteWins(Materializer["Any"]):
    """The newest fragment is the value; any type."""

    name = "mmpc.last-write-wins-1"
    kind = 4

    def merge(self, fragments: Sequence[Any]) -> Any:
        """The last fragment."""
        return fragments[-1]


class Union(Materializer["Any"]):
    """Mappings merge by key: later ones win, a value of None removes the key; keys are str, bytes, int."""

    name = "mmpc.union-1"
    kind = 5
    size_rule = "sum"

    def merge(self, fragments: Sequence[Any]) -> Any:
        """A new dict without None. FragmentTypeError: not mappings, or a key of another type."""
        merged: dict[Any, Any] = {}
        for fragment in fragments:
            self.check(fragment)
            for key, value in fragment.items():
                plain = _plain(key)
                if value is None:
                    merged.pop(plain, None)
                else:
                    merged[plain] = value
        return merged

    def check(self, fragment: object) -> None:
        """FragmentTypeError unless it is a dict with keys of type str, bytes or int (not bool)."""
        if not isinstance(fragment, dict):
            raise _unfit(self, fragment, "dicts with keys of str, bytes or int")
        for key in fragment:
            plain = _plain(key)
            if isinstance(plain, bool) or not isinstance(plain, (str, bytes, int)):
                raise FragmentTypeError(f"{self.name} takes keys of str, bytes or int, not {_type_name(key)}")


NATIVE: tuple[Materializer[Any], ...] = (Append(), Add(), Max(), LastWriteWins(), Union())


def by_name(name: str) -> Materializer[Any] | None:
    """The native materializer that a store's config names, or None: that name is of a program's own."""
    return next((materializer for materializer in NATIVE if materializer.name == name), None)


def _numpy() -> Any:
    return sys.modules["numpy"]


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _plain(value: Any) -> Any:
    """A number or byte string as it is stored: numpy's scalars and subclasses of int and float are plain."""
    numpy = sys.modules.get("numpy")
    if isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_)):
        return bool(value)
    if isinstance(value, int) or (numpy is not None and isinstance(value, numpy.integer)):
        return int(value)
    if isinstance(value, float) or (numpy is not None and isinstance(value, numpy.floating)):
        return float(value)
    return bytes(value) if isinstance(value, (bytearray, memoryview)) else value


def _combine(ufunc: str, arrays: Sequence[Any]) -> Any:
    """numpy's `ufunc` from left to right, in the arrays' own dtype; a new array, also of one."""
    numpy = _numpy()
    into = numpy.array(arrays[0], order="C")
    with numpy.errstate(all="ignore"):
        for array in arrays[1:]:
            getattr(numpy, ufunc)(into, array, out=into)
    return into


def _type_name(value: Any) -> str:
    if _is_array(value):
        return f"an array of dtype {value.dtype} and shape {value.shape}"
    return type(value).__qualname__


def _unfit(materializer: Materializer[Any], fragment: object, takes: str) -> FragmentTypeError:
    return FragmentTypeError(f"{materializer.name} takes {takes}, not {_type_name(fragment)}")


def _mixed(materializer: Materializer[Any], fragments: Sequence[Any]) -> FragmentTypeError:
    names = ", ".join(sorted({_type_name(fragment) for fragment in fragments}))
    return FragmentTypeError(f"{materializer.name}: one page cannot hold {names or 'no fragments'} together")
