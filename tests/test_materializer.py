"""The Python side of the materializers; that C agrees with them is shown in test_merge.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from mmpc.errors import FragmentTypeError
from mmpc.materializer import (
    NATIVE,
    Add,
    Append,
    LastWriteWins,
    Materializer,
    Max,
    Union,
    by_name,
    defines_size,
)


class Sets(Materializer[list[int]]):
    name = "sets-1"

    def merge(self, fragments: Sequence[list[int]]) -> list[int]:
        return sorted({item for fragment in fragments for item in fragment})


class Sized(Sets):
    def size_in_bytes(self, fragment: list[int]) -> int:
        return 8 * len(fragment)


def test_a_programs_own() -> None:
    mine = Sets()
    assert mine.merge([[3, 1], [2, 3]]) == [1, 2, 3]
    assert (mine.kind, mine.size_rule) == (0, "last")
    mine.check(object())
    assert mine.size_in_bytes([1]) > 0


def test_the_base_does_not_merge() -> None:
    with pytest.raises(TypeError, match="Materializer does not define merge"):
        Materializer[int]().merge([1])


def test_a_size_of_its_own_is_noticed() -> None:
    assert not defines_size(Sets())
    assert defines_size(Sized())
    assert not any(map(defines_size, NATIVE))


def test_native_ones_are_found_by_name() -> None:
    names = ["mmpc.append-1", "mmpc.add-1", "mmpc.max-1", "mmpc.last-write-wins-1", "mmpc.union-1"]
    assert [m.name for m in NATIVE] == names
    assert [m.kind for m in NATIVE] == [1, 2, 3, 4, 5]
    assert [m.size_rule for m in NATIVE] == ["sum", "last", "last", "last", "sum"]
    assert all(by_name(m.name) is m for m in NATIVE)
    assert by_name("sets-1") is None


def test_append() -> None:
    assert Append().merge([b"a", b"b"]) == b"ab"
    assert Append().merge(["a", "b"]) == "ab"
    assert Append().merge([[1], (2, 3)]) == [1, 2, 3]
    joined = Append().merge([np.arange(2, dtype=">i2"), np.arange(3, dtype=">i2")])
    assert (joined.tolist(), joined.dtype.str) == ([0, 1, 0, 1, 2], ">i2")


def test_add_and_max() -> None:
    assert Add().merge([1, np.int64(2), 3]) == 6
    assert type(Add().merge([np.float64(1)])) is float
    assert Add().merge([np.array([250], "u1"), np.array([10], "u1")]).tolist() == [4]
    assert Max().merge(["a", "b", "ab"]) == "b"
    assert Max().merge([3, 4.5]) == 4.5
    assert Max().merge([np.array([1.0, 5.0]), np.array([3.0, np.nan])]).tolist()[0] == 3.0


def test_an_array_result_is_a_new_array() -> None:
    one = np.ones(3)
    for m in (Add(), Max()):
        merged = m.merge([one, one])
        assert not np.shares_memory(merged, one)
        assert one.tolist() == [1, 1, 1]
        assert isinstance(m.merge([np.ones(()), np.ones(())]), np.ndarray)


def test_union_and_last_write() -> None:
    assert Union().merge([{"a": 1, "b": 2}, {"a": None, "c": 3}]) == {"b": 2, "c": 3}
    assert LastWriteWins().merge([1, object, None]) is None


@pytest.mark.parametrize(
    ("m", "fragment", "words"),
    [
        (Append(), 1, "append-1 takes bytes, str, lists"),
        (Append(), np.ones(()), "not an array of dtype float64 and shape ()"),
        (Add(), True, "not bool"),
        (Add(), "1", "not str"),
        (Add(), bytearray(b"1"), "not bytearray"),
        (Add(), 1 << 64, "64 bits"),
        (Add(), np.ones(2, "f2"), "dtype float16"),
        (Max(), None, "not NoneType"),
        (Max(), np.bool_(True), "bool"),
        (Union(), [1], "not list"),
        (Union(), {1.5: 1}, "not float"),
        (Union(), {True: 1}, "not bool"),
    ],
)
def test_what_does_not_fit_is_named(m: Materializer[object], fragment: object, words: str) -> None:
    with pytest.raises(FragmentTypeError) as error:
        m.check(fragment)
    assert words in str(error.value)
    with pytest.raises(FragmentTypeError):
        m.merge([fragment, True])


def test_mixtures_are_named() -> None:
    with pytest.raises(FragmentTypeError, match="one page cannot hold bytes, str together"):
        Append().merge([b"a", "b"])
    with pytest.raises(FragmentTypeError, match="one page cannot hold int, str together"):
        Max().merge([1, "b"])
    with pytest.raises(FragmentTypeError, match="128 bits"):
        Add().merge([(1 << 127) - 1, 1])


def test_numpy_and_msgpack_stay_out() -> None:
    code = """if True:
        import sys
        from mmpc import codec, materializer as m
        assert 'msgpack' not in sys.modules
        m.Add().merge([1, 2.5])
        m.Union().merge([{'a': 1}])
        m.Append().merge([[1], [2]])
        m.Max().check('x')
        codec.decode(codec.encode([1, 'a', b'b', {'c': 1.5}]))
        assert 'numpy' not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
