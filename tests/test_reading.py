"""Reading: the object cache, merging from the cached value, consolidation, and what comes back of each kind
of value.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from support.children import Children
from support.looks import DEEPEST, THRESHOLD, depth
from support.mergers import Moody, Sized, Tally

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]


def test_a_hit_is_the_identical_object(store: Store) -> None:
    pid, _ = store.allocate([1])
    first = store.get(pid)
    assert store.get(pid) is first
    assert store.get_many([pid, pid]) == [first, first]
    assert store.get_many([pid])[0] is first


def test_a_hit_decodes_and_merges_nothing(open_store: Open) -> None:
    merger = Tally()
    pc = open_store(merger)
    pid, _ = pc.allocate([1])
    pc.append(pid, [2])
    pc.get(pid)
    calls, misses = list(merger.calls), pc._cache_info()[3]
    for _ in range(10):
        pc.get(pid)
    assert merger.calls == calls
    assert pc._cache_info()[3] == misses


@pytest.mark.parametrize("store", ["Append", "Tally"], indirect=True)
def test_what_another_handle_wrote_is_seen_by_the_next_get(open_store: Open, store: Store) -> None:
    other = open_store(type(store._materializer)())
    pid, _ = store.allocate([0])
    for i in range(1, 40):
        assert store.get(pid).unwrap() == list(range(i))
        other.append(pid, [i])
    page = store.get(pid)
    other.replace(pid, page.key, [7])
    assert store.get(pid).unwrap() == [7]
    other.free(pid, other.get(pid).key)
    assert store.get(pid).is_free()


def test_merging_goes_on_from_the_cached_value(open_store: Open) -> None:
    """One new fragment on a cached value of many: merge gets two."""
    merger = Tally()
    pc = open_store(merger, page_consolidation_threshold=200)
    pid, _ = pc.allocate([0])
    for i in range(1, 50):
        pc.append(pid, [i])
    pc.get(pid)
    for i in range(50, 60):
        merger.calls.clear()
        pc.append(pid, [i])
        assert pc.get(pid).unwrap() == list(range(i + 1))
        assert merger.calls == [2]


def test_a_value_returned_before_is_not_changed_by_later_writes(store: Store) -> None:
    pid, _ = store.allocate([0])
    before = store.get(pid)
    for i in range(1, 100):
        store.append(pid, [i])
        store.get(pid)
    assert before.value == [0]


def test_a_consolidation_keeps_the_cached_object(open_store: Open) -> None:
    """A move is no change: the next get may not decode again, and answers the same value and version."""
    mine, other = open_store(), open_store()
    pid, _ = mine.allocate([0])
    mine.append(pid, [1])
    page = mine.get(pid)
    other._consolidate(pid)
    again = mine.get(pid)
    assert again == page
    assert again.value is page.value


@pytest.mark.parametrize("store", ["Append", "Tally"], indirect=True)
def test_appends_without_reads_keep_the_chain_bounded(store: Store) -> None:
    pid, _ = store.allocate([0])
    deepest = 0
    for i in range(1, 5001):
        store.append(pid, [i])
        if i % 7 == 0:
            deepest = max(deepest, depth(store, pid))
    assert deepest <= DEEPEST * THRESHOLD
    store._drop()
    assert store.get(pid).unwrap() == list(range(5001))


def test_append_many_to_one_page_keeps_the_chain_bounded(store: Store) -> None:
    pid, _ = store.allocate([0])
    for i in range(20):
        store.append_many([(pid, [i])] * 250)
        assert depth(store, pid) <= DEEPEST * THRESHOLD
    assert len(store.get(pid).unwrap()) == 5001


@pytest.mark.parametrize("threshold", [1, 2, 200])
@pytest.mark.parametrize("make", [mmpc.Append, Tally])
def test_chains_are_bounded_for_every_threshold(open_store: Open, make: Any, threshold: int) -> None:
    pc = open_store(make(), page_consolidation_threshold=threshold)
    pid, _ = pc.allocate([0])
    for i in range(1, 1900):
        pc.append(pid, [i])
        if i % 50 == 0:
            assert depth(pc, pid) <= DEEPEST * threshold
    pc._drop()
    assert pc.get(pid).unwrap() == list(range(1900))


def test_a_get_of_a_long_chain_shortens_it(store: Store) -> None:
    pid, _ = store.allocate([0])
    for i in range(THRESHOLD + 3):
        store.append(pid, [i])
    store.get(pid)
    assert depth(store, pid) <= THRESHOLD


def test_two_processes_appending_without_pause_keep_the_chain_bounded(
    store: Store, children: Children
) -> None:
    pid, _ = store.allocate([0])

    def write() -> int:
        deepest = 0
        for i in range(3000):
            store.append(pid, [i])
            if i % 16 == 0:
                deepest = max(deepest, depth(store, pid))
        return deepest

    assert max(children.map(write, [(), ()])) <= DEEPEST * THRESHOLD + 2
    assert len(store.get(pid).unwrap()) == 6001


# ---- a merge that fails


@pytest.mark.parametrize(
    "error", [ValueError("moody"), KeyboardInterrupt(), MemoryError(), RecursionError()], ids=repr
)
def test_a_failing_merge_raises_in_get_and_leaves_everything_usable(
    open_store: Open, error: BaseException
) -> None:
    moody = Moody()
    pc = open_store(moody)
    pid, _ = pc.allocate([0])
    other, _ = pc.allocate([5])
    pc.append(pid, [1])
    moody.error = error
    for _ in range(3):
        with pytest.raises(type(error)):
            pc.get(pid)
        with pytest.raises(type(error)):
            pc.get_many([other, pid])
        with pytest.raises(type(error)):
            pc.update(pid, lambda v: v)
    assert pc.get(other).unwrap() == [5]
    assert pc.get_page_frags(pid)[1] == [[0], [1]]
    pc.append(pid, [2])
    moody.error = None
    assert pc.get(pid).unwrap() == [0, 1, 2]


def test_a_merge_that_fails_in_a_consolidation_is_no_error_of_the_read_that_met_it(open_store: Open) -> None:
    """A get whose own merge worked answers, whatever becomes of the consolidation after it."""
    merger = Tally()
    pc = open_store(merger)
    pid, _ = pc.allocate([0])
    for i in range(1, 40):
        pc.append(pid, [i])
    assert pc.get(pid).unwrap() == list(range(40))


class Unstorable(mmpc.Materializer[Any]):
    """Merges to a value that has no encoding."""

    name = "test-unstorable-1"

    def merge(self, fragments: Any) -> Any:
        return {"all": {repr(f) for f in fragments}}


def test_a_merged_value_that_cannot_be_stored_can_still_be_read(open_store: Open) -> None:
    pc = open_store(Unstorable(), page_consolidation_threshold=3)
    pid, _ = pc.allocate(1)
    for i in range(2, 8):
        pc.append(pid, i)
    assert pc.get(pid).unwrap() == {"all": set("1234567")}


class Reentrant(mmpc.Materializer[Any]):
    """A merge that uses the handle."""

    name = "test-reentrant-1"
    act: Callable[[], Any] | None = None

    def merge(self, fragments: Any) -> Any:
        act, self.act = self.act, None
        if act is not None:
            act()
        return [x for f in fragments for x in f]


def test_a_merge_may_use_the_handle(open_store: Open) -> None:
    merger = Reentrant()
    pc = open_store(merger)
    pid, _ = pc.allocate([0])
    acts: list[Callable[[], Any]] = [
        lambda: pc.get(pid),
        lambda: pc.append(pid, [9]),
        lambda: pc._drop(),
        lambda: pc._consolidate(pid),
        lambda: pc.get_many([pid, pid]),
        lambda: pc.replace(pid, pc.get(pid).key, [1]),
        lambda: pc.free(pid, pc.get(pid).key),
    ]
    for act in acts:
        pc.append(pid, [1])
        pc.append(pid, [2])
        pc._drop()
        merger.act = act
        pc.get(pid)
    assert pc.get(pid).is_free()


def test_a_merge_that_closes_the_handle_breaks_nothing(open_store: Open) -> None:
    merger = Reentrant()
    pc = open_store(merger)
    pid, _ = pc.allocate([0])
    pc.append(pid, [1])
    merger.act = pc.close
    try:
        assert pc.get(pid).unwrap() == [0, 1]
    except mmpc.Closed:
        pass
    with pytest.raises(mmpc.Closed):
        pc.get(pid)


# ---- the bound of the cache


def bounded(pc: Store) -> None:
    entries, size, capacity, _, _ = pc._cache_info()
    assert 0 <= size <= capacity, (entries, size, capacity)


MIXES: dict[str, Callable[[Any, int, int], Any]] = {
    "get": lambda pc, pid, i: pc.get(pid),
    "get_many": lambda pc, pid, i: pc.get_many([pid, pid + 1 if pid < 60 else 2]),
    "append+get": lambda pc, pid, i: (pc.append(pid, [i] * 20), pc.get(pid)),
    "replace+get": lambda pc, pid, i: (pc.replace(pid, pc.get(pid).key, [i] * 99), pc.get(pid)),
    "update": lambda pc, pid, i: pc.update(pid, lambda v: [*v[-50:], i]),
    "allocate+get": lambda pc, pid, i: pc.get(pc.allocate([i] * 50)[0]),
    "free+allocate": lambda pc, pid, i: (pc.free(pid, pc.get(pid).key), pc.allocate([i])),
}


@pytest.mark.parametrize("mix", [*MIXES, "all"])
@pytest.mark.parametrize("make", [mmpc.Append, Tally, Sized])
def test_the_cache_is_bounded_for_every_mix_of_verbs(open_store: Open, make: Any, mix: str) -> None:
    """Seed defect 5: pages that were only replaced and read were never counted."""
    pc = open_store(make(), cache_capacity=50_000)
    pids = [pc.allocate([i] * 30)[0] for i in range(60)]
    names = list(MIXES) if mix == "all" else [mix]
    for i in range(600):
        pid = pids[i * 7 % 60]
        if pc.get(pid).is_materialized():
            MIXES[names[i % len(names)]](pc, pid, i)
        bounded(pc)
    assert pc._cache_info()[4] > 0 or mix == "free+allocate" or pc._cache_info()[1] < 50_000


def test_a_cache_of_no_bytes_works(open_store: Open) -> None:
    pc = open_store(cache_capacity=0)
    pid, _ = pc.allocate([0])
    for i in range(1, 30):
        pc.append(pid, [i])
        assert pc.get(pid).unwrap() == list(range(i + 1))
        assert pc._cache_info()[:2] == (0, 0)


def test_a_value_larger_than_the_cache_is_read_and_not_kept(open_store: Open) -> None:
    pc = open_store(cache_capacity=10_000)
    pid, _ = pc.allocate(bytes(50_000))
    small, _ = pc.allocate(b"small")
    pc.get(small)
    assert len(pc.get(pid).unwrap()) == 50_000
    bounded(pc)
    assert pc.get(small).unwrap() == b"small"


def test_the_cache_counts_what_the_materializer_says(open_store: Open) -> None:
    pc = open_store(Sized(), cache_capacity=100_000)
    for i in range(30):
        pc.get(pc.allocate([i] * 10)[0])
        bounded(pc)
    assert pc._cache_info()[0] <= 10


@pytest.mark.parametrize("answer", ["many", None, 1.5, -5, 1 << 80])
def test_a_size_that_is_no_size_is_an_error_or_counted_somehow(open_store: Open, answer: Any) -> None:
    class Odd(Tally):
        def size_in_bytes(self, fragment: Any) -> int:
            return answer  # type: ignore[no-any-return]

    pc = open_store(Odd(), cache_capacity=5000)
    pid, _ = pc.allocate([1])
    for _ in range(3):
        try:
            assert pc.get(pid).unwrap() == [1]
        except (TypeError, ValueError, OverflowError):
            pass
        bounded(pc)


# ---- values

PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    (1 << 64) - 1,
    -(1 << 63),
    1.5,
    math.inf,
    -0.0,
    "",
    "ä€😀",
    b"",
    b"\x00\xff" * 100,
    [],
    {},
    {"a": [1, {"b": None}], 5: b"x"},
    [[[[[]]]]],
    bytes(range(256)) * 300,
    "x" * 70_000,
    list(range(20_000)),
]


@pytest.mark.parametrize("store", ["LastWriteWins"], indirect=True)
def test_what_msgpack_takes_comes_back_equal_and_of_its_type(open_store: Open, store: Store) -> None:
    other = open_store(mmpc.LastWriteWins())
    for thing in PLAIN:
        pid, _ = store.allocate(thing)
        for handle in (store, other):
            back = handle.get(pid).unwrap()
            assert (type(back), back) == (type(thing), thing)
            assert handle.get_page_frags(pid)[1] == [thing]
        store.append(pid, "newer")
        store.append(pid, thing)
        assert other.get(pid).unwrap() == thing


def test_tuples_come_back_as_lists_and_buffers_as_bytes(open_store: Open) -> None:
    pc = open_store(mmpc.LastWriteWins())
    for given, expected in [((1, (2,)), [1, [2]]), (bytearray(b"ab"), b"ab"), (memoryview(b"ab"), b"ab")]:
        pid, _ = pc.allocate(given)
        back = pc.get(pid).unwrap()
        assert (type(back), back) == (type(expected), expected)


DTYPES = ["?", "i1", "u2", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8"]
DTYPES += ["<c8", "<c16", "<U5", "S3", "<M8[ns]", "<m8[s]", ">i4", ">f8"]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (3, 4), (0, 5), (5, 0), (2, 1, 3), (1000,)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_dtype_and_shape_come_back(open_store: Open, dtype: str) -> None:
    np = pytest.importorskip("numpy")
    writer, reader = open_store(mmpc.LastWriteWins()), open_store(mmpc.LastWriteWins())
    for shape in SHAPES:
        array = (np.arange(math.prod(shape)) % 100).astype(dtype).reshape(shape)
        for form in (array, np.asfortranarray(array), array[::-1] if shape else array):
            for fragment in (form, [form, 1], {"a": form}):
                pid, _ = writer.allocate(fragment)
                back = reader.get(pid).unwrap()
                got = back if fragment is form else back[0] if isinstance(back, list) else back["a"]
                assert (got.dtype, got.shape) == (form.dtype, form.shape)
                assert np.array_equal(got, form)
                assert not got.flags.writeable


@pytest.mark.parametrize("store", ["Append"], indirect=True)
def test_appended_arrays_concatenate_along_the_first_axis(store: Store) -> None:
    np = pytest.importorskip("numpy")
    rows = np.arange(60, dtype="f4").reshape(20, 3)
    pid, _ = store.allocate(rows[:1])
    for i in range(1, 20):
        store.append(pid, rows[i : i + 1])
        store.append(pid, rows[:0])
    for _ in range(2):
        back = store.get(pid).unwrap()
        assert (back.dtype, back.shape) == (rows.dtype, rows.shape)
        assert np.array_equal(back, rows)
        store._consolidate(pid)
        store._drop()
    for wrong in (rows[:1].astype("f8"), rows[:1, :2], rows[0], np.float32(1), np.array(1.0, "f4")):
        with pytest.raises(mmpc.FragmentTypeError):
            store.append(pid, wrong)
    assert store.get(pid).unwrap().shape == (20, 3)


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i4", "<u8", "<f4", "<f8", "<c16"])
def test_added_arrays_are_numpys_sums(open_store: Open, dtype: str) -> None:
    np = pytest.importorskip("numpy")
    pc = open_store(mmpc.Add())
    rng = np.random.default_rng(5)
    arrays = [(rng.random(100) * 200).astype(dtype) for _ in range(30)]
    pid, _ = pc.allocate(arrays[0])
    total = arrays[0].copy()
    for array in arrays[1:]:
        pc.append(pid, array)
        total = total + array
    assert np.array_equal(pc.get(pid).unwrap(), total)
    pc._drop()
    assert np.array_equal(pc.get(pid).unwrap(), total)


def test_sums_are_exact_beyond_64_bits(open_store: Open) -> None:
    pc = open_store(mmpc.Add())
    pid, _ = pc.allocate((1 << 64) - 1)
    for _ in range(99):
        pc.append(pid, (1 << 64) - 1)
    for _ in range(2):
        assert pc.get(pid).unwrap() == 100 * ((1 << 64) - 1)
        pc._drop()
    pc.append(pid, -5)
    assert pc.get(pid).unwrap() == 100 * ((1 << 64) - 1) - 5
    pc.update(pid, lambda total: 0)
    assert pc.get(pid).unwrap() == 0


def test_union_goes_on_from_the_cached_value_as_from_the_log(open_store: Open) -> None:
    pc, cold = open_store(mmpc.Union()), open_store(mmpc.Union(), cache_capacity=0)
    pid, _ = pc.allocate({"a": 1})
    expected: dict[Any, Any] = {"a": 1}
    for i in range(60):
        change = {i % 7: i, "a": None if i % 3 else i, b"k": [i]}
        pc.append(pid, change)
        for key, value in change.items():
            expected.pop(key, None) if value is None else expected.__setitem__(key, value)
        warm = pc.get(pid).unwrap()
        assert warm == cold.get(pid).unwrap() == expected
        assert list(warm) == list(cold.get(pid).unwrap()) == list(expected)


def test_threads_that_share_a_handle_read_what_is_there(store: Store) -> None:
    """Readers never see a list that is not a prefix of what the writers wrote."""
    pid, _ = store.allocate([0])
    stop = threading.Event()
    wrong: list[Any] = []

    def read() -> None:
        last = 0
        while not stop.is_set():
            seen = store.get(pid).unwrap()
            if seen != list(range(len(seen))) or len(seen) < last:
                wrong.append(seen)
            last = len(seen)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(1, 400):
        store.append(pid, [i])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("merger", [mmpc.LastWriteWins, mmpc.Append, Tally])
def test_values_that_just_fit_the_buffer_of_a_read_and_do_not(open_store: Open, merger: Any) -> None:
    """A page of one record that is longer than the buffer is looked at once, with room for it."""
    pc = open_store(merger())
    for size in (16_000, *range(16_374, 16_388), 20_000, 70_000):
        value: Any = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        value, more = ([value], [b"more"]) if merger is Tally else (value, b"more")
        pid, _ = pc.allocate(value)
        assert pc.get(pid).unwrap() == value, size
        pc._drop(pid)
        assert pc.get(pid).unwrap() == value, size
        pc.append(pid, more)
        both = more if merger is mmpc.LastWriteWins else value + more
        assert pc.get(pid).unwrap() == both
        pc._drop(pid)
        assert pc.get(pid).unwrap() == both
