"""Views: zero-copy, read-only, and valid as long as anything made of them lives. Both faces pass these tests."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmpc
from mmpc import _face, _store, _views
from mmpc._native import lib
from support.children import Children, Gate
from support.looks import depth, live
from support.mergers import Tally

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]

PORTABLE = _face.Verbs.__module__ == "mmpc._portable"
BUFFERS = not PORTABLE or sys.version_info >= (3, 12)  # memoryview(view)
WORDS = 64  # of a slot
SMALL = 1 << 16  # segment
LWW = mmpc.LastWriteWins


def held(pc: Store) -> int:
    """Segments that views of living processes hold."""
    live(pc)
    return int(pc.stats().views)


def segments(pc: Store, count: int) -> list[int]:
    """Pages that lie in a segment of their own each."""
    pids = []
    for i in range(count):  # two fill one
        pids.append(pc.allocate(bytes([i % 251]) * (SMALL * 7 // 16))[0])
        pc.allocate(bytes(SMALL * 7 // 16))
    return pids


@pytest.fixture
def pc(open_store: Open) -> Store:
    return open_store(LWW())


# ---- values

BYTES = [b"", b"a", bytes(255), bytes(range(256)), b"x" * 65536, random.Random(1).randbytes(1 << 20)]


@pytest.mark.parametrize("value", BYTES, ids=lambda b: str(len(b)))
def test_a_view_of_bytes_shows_them(pc: Store, value: bytes) -> None:
    pid, key = pc.allocate(value)
    view = pc.view(pid)
    assert bytes(view.raw) == value
    assert (view.nbytes, view.shape, view.dtype, view.zero_copy) == (len(value), (len(value),), None, True)
    assert view.key == key
    array = np.asarray(view)
    assert array.dtype == np.uint8
    assert array.tobytes() == value


DTYPES = ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16"]
DTYPES += [">i4", ">u8", ">f8", ">c16", "S5", "<U3", ">U3", "<M8[ns]", "<m8[25s]"]
SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (0,), (3, 0, 2), (3, 4), (2, 3, 5), (1,) * 32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_view_of_an_array_has_its_dtype_and_shape(pc: Store, dtype: str, seed: int) -> None:
    rng = random.Random(seed)
    for shape in SHAPES:
        count = int(np.prod(shape, dtype=int))
        items = [rng.randrange(2) for _ in range(count)]
        value = np.array(items, dtype="i8").astype(dtype).reshape(shape)
        view = pc.view(pc.allocate(value)[0])
        array = np.asarray(view)
        assert (array.dtype, array.shape) == (value.dtype, shape)
        assert array.tobytes() == value.tobytes() == bytes(view.raw)
        assert (view.dtype, view.shape, view.nbytes) == (value.dtype.str, shape, value.nbytes)
        assert array.flags.aligned
        assert array.flags.c_contiguous


def test_an_array_in_another_order_is_seen_as_it_was_stored(pc: Store) -> None:
    value = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(np.asarray(pc.view(pc.allocate(value)[0])), value)


@pytest.mark.skipif(not BUFFERS, reason="classes of Python have no buffers before 3.12")
def test_memoryview_has_format_and_shape(pc: Store) -> None:
    numbers = memoryview(pc.view(pc.allocate(np.arange(6, dtype="<i4").reshape(2, 3))[0]))  # type: ignore[arg-type]
    assert (numbers.format, numbers.shape, numbers.tolist()) == ("i", (2, 3), [[0, 1, 2], [3, 4, 5]])
    text = memoryview(pc.view(pc.allocate(b"abc")[0]))  # type: ignore[arg-type]
    assert (text.format, text.shape, text[1:].tobytes()) == ("B", (3,), b"bc")
    assert bytes(pc.view(pc.allocate(b"abc")[0])) == b"abc"  # type: ignore[call-overload]
    with pytest.raises((BufferError, ValueError)):
        memoryview(pc.view(pc.allocate(np.zeros(3, "M8[s]"))[0]))  # type: ignore[arg-type]


def test_dlpack_where_numpy_offers_it(pc: Store) -> None:
    value = np.arange(10, dtype="f4").reshape(2, 5)
    view = pc.view(pc.allocate(value)[0])
    try:
        value.flags.writeable = False
        np.from_dlpack(value)
    except BufferError:
        pytest.skip("this numpy exports no read-only arrays")
    array = np.from_dlpack(view)
    del view
    gc.collect()
    np.testing.assert_array_equal(array, value)
    assert held(pc) == 1
    del array
    gc.collect()
    assert held(pc) == 0
    with pytest.raises((BufferError, TypeError)):
        np.from_dlpack(pc.view(pc.allocate(np.zeros(3, "S3"))[0]))


def test_asarray_takes_what_numpy_gives(pc: Store) -> None:
    view = pc.view(pc.allocate(np.arange(4, dtype="i4"))[0])
    assert np.array(view).flags.writeable
    assert np.asarray(view, dtype="f8").tolist() == [0.0, 1.0, 2.0, 3.0]
    assert view.__array__(copy=True).flags.writeable
    assert view.__array__("i4", copy=False).base is not None
    with pytest.raises(ValueError, match="without a copy"):
        view.__array__("f8", copy=False)


def test_zero_copy_means_the_mapping(pc: Store) -> None:
    pid, _ = pc.allocate(np.arange(1000))
    first, second = (np.asarray(pc.view(pid)) for _ in range(2))
    assert first.ctypes.data == second.ctypes.data
    with open("/proc/self/maps") as f:
        spans = [line.split() for line in f if line.rstrip().endswith("/log")]
    low, high = (int(x, 16) for x in spans[0][0].split("-"))
    assert low <= first.ctypes.data < high


# ---- read-only


def test_nobody_writes_through_a_view(pc: Store) -> None:
    view = pc.view(pc.allocate(np.arange(4))[0])
    array = np.asarray(view)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(TypeError):
        view.raw[0] = 1
    assert view.raw.readonly
    with pytest.raises((BufferError, TypeError)):
        (ctypes.c_char * 8).from_buffer(view)


# ---- release


def test_a_released_view_raises_and_what_was_made_of_it_stays(pc: Store) -> None:
    pid, _ = pc.allocate(np.arange(10))
    with pc.view(pid) as view:
        array, raw = np.asarray(view), view.raw
        assert not view.released
    assert view.released
    assert "released" in repr(view)
    for use in (
        lambda: view.raw,
        lambda: view.nbytes,
        lambda: view.shape,
        lambda: view.dtype,
        lambda: view.zero_copy,
        lambda: np.asarray(view),
        lambda: view.__enter__(),
        lambda: view.__dlpack__(),
    ):
        with pytest.raises(mmpc.Closed, match="released"):
            use()
    view.release()
    assert view.key.pid == pid
    assert held(pc) == 1
    assert array.tolist() == list(range(10))
    assert bytes(raw) == array.tobytes()
    del array, raw
    gc.collect()
    assert held(pc) == 0


@pytest.mark.skipif(not BUFFERS, reason="classes of Python have no buffers before 3.12")
def test_an_array_that_keeps_the_view_alone_keeps_the_bytes(pc: Store) -> None:
    """numpy.ndarray(buffer=) gives the buffer back at once, and keeps the object that it was handed."""
    pid, _ = pc.allocate(b"abcd" * 1000)
    view = pc.view(pid)
    array = np.ndarray((4000,), "u1", view)  # type: ignore[arg-type]
    view.release()
    assert held(pc) == 1
    assert array[:4].tobytes() == b"abcd"
    del array, view
    gc.collect()
    assert held(pc) == 0


def test_a_dropped_view_lets_go(pc: Store) -> None:
    pid, _ = pc.allocate(b"x" * 100)
    views = [pc.view(pid) for _ in range(1000)]
    assert held(pc) == 1  # one word for all of a segment
    views.clear()
    gc.collect()
    assert held(pc) == 0


# ---- errors


def test_pages_that_have_no_view(pc: Store) -> None:
    pid, key = pc.allocate(b"x")
    pc.free(pid, key)
    with pytest.raises(mmpc.PageFreed):
        pc.view(pid)
    for absent in (pid + 1000, -1, 1 << 60):
        with pytest.raises(mmpc.PageNotFound):
            pc.view(absent)
    for reserved in (0, 1):
        with pytest.raises(mmpc.Unsupported, match="belongs to the store"):
            pc.view(reserved)
    for wrong in ("2", 2.0, None, True):
        with pytest.raises(TypeError):
            pc.view(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pc.view(2, tx=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, True, 3, -3, 1.5, "text", ["a"], {"k": 1}], ids=repr)
def test_values_of_other_types_are_named(pc: Store, value: Any) -> None:
    pid, _ = pc.allocate(value)
    with pytest.raises(mmpc.Unsupported, match=rf"\b{type(value).__name__.replace('NoneType', 'None')}\b"):
        pc.view(pid)
    assert held(pc) == 0


def test_a_view_takes_a_tx_of_its_handle(open_store: Open) -> None:
    pc, other = open_store(LWW()), open_store(LWW())
    pid, _ = pc.allocate(b"x")
    with pc.begin() as tx, other.begin() as stranger:
        assert bytes(pc.view(pid, tx).raw) == b"x"
        assert bytes(pc.view(pid, tx=tx).raw) == b"x"
        with pytest.raises(mmpc.Closed):
            pc.view(pid, stranger)


def test_a_closed_handle_opens_no_view(pc: Store) -> None:
    pid, _ = pc.allocate(b"x")
    pc.close()
    with pytest.raises(mmpc.Closed):
        pc.view(pid)


def test_a_view_stays_in_its_process(pc: Store) -> None:
    view = pc.view(pc.allocate(b"x")[0])
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickle"):
            send(view)
    with pytest.raises(TypeError, match="cannot create"):
        mmpc.View()


def test_damage_is_found_when_the_bytes_are_first_viewed(path: str) -> None:
    with mmpc.open(path, LWW(), create=True) as pc:
        pid, _ = pc.allocate(b"needle" * 1000)
        with mmpc.open(path, LWW()) as other:
            assert bytes(pc.view(pid).raw[:6]) == b"needle"
            log = Path(path, "log")
            at = log.read_bytes().index(b"needle")
            with log.open("r+b") as f:
                f.seek(at)
                f.write(b"N")
            with pytest.raises(mmpc.CorruptionError) as caught:
                other.view(pid)
            assert caught.value.file == "log"
            assert bytes(pc.view(pid).raw[:6]) == b"Needle"  # this handle has looked at the checksum before
            with log.open("r+b") as f:
                f.seek(at)
                f.write(b"n")
            assert bytes(other.view(pid).raw[:6]) == b"needle"
        with pytest.raises(mmpc.Closed):
            other.view(pid)


def test_large_pages_are_verified_once_although_they_lie_alike(path: str) -> None:
    """Records of one size begin at the same place of a block; what remembers them must tell them apart."""
    with mmpc.open(path, LWW(), create=True, segment_size=SMALL) as pc:
        pids = segments(pc, 150)
        for pid in pids:
            pc.view(pid)
        log = Path(path, "log")
        with log.open("r+b") as f:
            whole = f.read()
            for pid in pids:
                f.seek(((pc.view(pid).key.head & ((1 << 42) - 1)) << 3) + 1000)
                f.write(b"\xff")
            f.flush()
            again = 0
            for pid in pids:
                try:
                    pc.view(pid)
                except mmpc.CorruptionError:
                    again += 1
            f.seek(0)
            f.write(whole)
    assert again < 8


# ---- several fragments


def test_fragments_are_consolidated_first(open_store: Open) -> None:
    pc = open_store(mmpc.Append())
    pid, _ = pc.allocate(b"a")
    pc.append(pid, b"b")
    key = pc.append(pid, b"c")
    view = pc.view(pid)
    assert (bytes(view.raw), view.zero_copy, view.key) == (b"abc", True, key)
    assert depth(pc, pid) == 1
    numbers, _ = pc.allocate(np.arange(3))
    pc.append(numbers, np.arange(2))
    assert np.asarray(pc.view(numbers)).tolist() == [0, 1, 2, 0, 1]


def test_a_materializer_in_python_merges_for_a_view(open_store: Open) -> None:
    class Join(mmpc.Materializer[Any]):
        name = "test.join-1"

        def merge(self, fragments: Any) -> Any:
            return b"-".join(fragments)

    pc = open_store(Join())
    pid, _ = pc.allocate(b"a")
    pc.append(pid, b"b")
    view = pc.view(pid)
    assert (bytes(view.raw), view.zero_copy) == (b"a-b", True)
    assert depth(pc, pid) == 1


def test_the_newest_fragment_is_the_value_with_last_write_wins(pc: Store) -> None:
    pid, _ = pc.allocate(b"old")
    pc.append(pid, b"new")
    assert bytes(pc.view(pid).raw) == b"new"
    assert depth(pc, pid) == 2


def test_a_merged_value_of_another_type_is_named(open_store: Open) -> None:
    pc = open_store(Tally())
    pid, _ = pc.allocate([1])
    pc.append(pid, [2])
    with pytest.raises(mmpc.Unsupported, match="list"):
        pc.view(pid)


def test_a_reader_leaves_the_chain_alone_and_views_a_copy(open_store: Open) -> None:
    pc = open_store(mmpc.Append())
    pid, _ = pc.allocate(np.arange(3))
    pc.append(pid, np.arange(2))
    reader = open_store(mmpc.Append(), create=False, read_only=True)
    view = reader.view(pid)
    array = np.asarray(view)
    assert (array.tolist(), view.zero_copy, view.dtype) == ([0, 1, 2, 0, 1], False, "<i8")
    assert not array.flags.writeable
    assert depth(pc, pid) == 2
    view.release()
    assert array.tolist() == [0, 1, 2, 0, 1]
    pc.free(pid, pc.get(pid).key)
    with pytest.raises(mmpc.PageFreed):
        reader.view(pid)
    whole, _ = pc.allocate(b"one")
    assert reader.view(whole).zero_copy


def test_where_there_is_no_room_to_consolidate_the_view_is_of_a_copy(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pc = open_store(mmpc.Append())
    pid, _ = pc.allocate(b"a")
    pc.append(pid, b"b")

    def full(*_: object) -> bool:
        raise mmpc.DiskFullError("no room")

    monkeypatch.setattr(mmpc.PageCache, "_consolidate", full)
    view = pc.view(pid)
    assert (bytes(view.raw), view.zero_copy) == (b"ab", False)


def test_writers_that_are_always_faster_do_not_hold_up_a_view(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pc = open_store(mmpc.Append())
    pid, _ = pc.allocate(b"a")
    pc.append(pid, b"b")
    consolidate, tries = mmpc.PageCache._consolidate, []

    def beaten(self: Store, page: int) -> bool:
        tries.append(consolidate(self, page))
        self.append(page, b"c")
        return True

    monkeypatch.setattr(mmpc.PageCache, "_consolidate", beaten)
    view = pc.view(pid)
    assert (bytes(view.raw), view.zero_copy) == (b"ab" + b"c" * len(tries), False)
    assert 1 < len(tries) < 20


# ---- valid while it lives


def test_replace_free_and_new_pages_change_nothing(pc: Store) -> None:
    value = os.urandom(100_000)
    pid, key = pc.allocate(value)
    view = pc.view(pid)
    key = pc.replace(pid, key, b"other")
    pc.free(pid, key)
    for _ in range(50):
        pc.allocate(os.urandom(100_000))
    pc.flush()
    assert bytes(view.raw) == value


def test_a_view_outlives_its_handle(path: str) -> None:
    pc = mmpc.open(path, LWW(), create=True)
    pid, _ = pc.allocate(b"x" * 1000)
    view, array = pc.view(pid), np.asarray(pc.view(pid))
    pc.close()
    del pc
    gc.collect()
    assert bytes(view.raw) == array.tobytes() == b"x" * 1000
    with mmpc.open(path, LWW()) as other:
        assert live(other) == 2
        assert held(other) == 1
        assert bytes(other.view(pid).raw) == b"x" * 1000
        del view, array
        gc.collect()
        assert live(other) == 1
        assert held(other) == 0


def test_what_was_written_since_is_flushed_when_the_last_view_goes(path: str) -> None:
    """Who left before thought that the process with the view would flush."""
    pc = mmpc.open(path, LWW(), create=True)
    pid, key = pc.allocate(b"x")
    view = pc.view(pid)
    pc.close()
    with mmpc.open(path, LWW()) as other:
        other.replace(pid, key, b"y")
    assert _store._unflushed(path)
    del view
    gc.collect()
    assert not _store._unflushed(path)


def test_a_temporary_store_goes_although_it_is_viewed(tmp_path: Path) -> None:
    pc = mmpc.open(tmp_path / "t", LWW(), create=True, temporary=True)
    view = pc.view(pc.allocate(b"x" * 1000)[0])
    pc.close()
    assert not (tmp_path / "t").exists()
    assert bytes(view.raw) == b"x" * 1000


def test_a_temporary_store_that_others_have_goes_with_the_last_view(tmp_path: Path) -> None:
    pc = mmpc.open(tmp_path / "t", LWW(), create=True, temporary=True)
    other = mmpc.open(tmp_path / "t", LWW(), temporary=True)
    view = pc.view(pc.allocate(b"x")[0])
    pc.close()
    other.close()
    assert (tmp_path / "t").exists()
    del view
    gc.collect()
    assert not (tmp_path / "t").exists()


# ---- cleaning

RETIRED = 5  # enum mm_segment_state


def state_of(pc: Store, key: mmpc.PagePtr) -> tuple[int, int]:
    """State and generation of the segment that the record lies in."""
    number = (key.head & ((1 << 42) - 1)) << 3 >> 16
    with open(os.path.join(pc.path, "control"), "rb") as f:
        f.seek(12288 + 1024 * 1024 + 64 * number)
        word = int.from_bytes(f.read(8), "little")
    return word & 15, word >> 4 & 0xFFFFFF


def overwrite(pc: Store, pids: list[int], rounds: int) -> None:
    """Replaces the pages again and again, so that segments become empty, are retired, and used again."""
    for i in range(rounds):
        pc.replace(pids[i % len(pids)], pc.get(pids[i % len(pids)]).key, bytes([i % 251]) * 30_000)
        if i % 8 == 7:
            pc.flush()


def test_a_segment_under_view_is_not_used_again_before_the_view_goes(open_store: Open) -> None:
    pc = open_store(LWW(), segment_size=SMALL)
    pids = segments(pc, 6)
    view, other = pc.view(pids[2]), pc.view(pids[3])  # the first segment holds more than one page
    before, generation = state_of(pc, view.key)
    overwrite(pc, pids, 200)
    assert pc.stats().log_bytes < 60 * SMALL  # of 150 that were written
    assert before != RETIRED
    assert state_of(pc, view.key) == (RETIRED, generation)
    assert state_of(pc, other.key)[0] == RETIRED
    assert bytes(view.raw) == bytes([2]) * (SMALL * 7 // 16)
    key = view.key
    view.release()
    overwrite(pc, pids, 100)
    assert bytes(other.raw) == bytes([3]) * (SMALL * 7 // 16)
    waiting = state_of(pc, other.key)
    assert waiting[0] == RETIRED
    other.release()
    overwrite(pc, pids, 100)
    assert state_of(pc, key) != (RETIRED, generation)
    assert state_of(pc, other.key) != waiting
    with pc.view(pids[0]) as now:
        assert bytes(now.raw) == pc.get(pids[0]).unwrap()


def test_views_beside_processes_that_overwrite_and_clean(open_store: Open, children: Children, seed: int) -> None:
    pc = open_store(LWW(), segment_size=SMALL)
    pids = segments(pc, 12)

    def work(number: int) -> int:
        mine = pids[number::2]
        overwrite(pc, mine, 150)
        return number

    workers = [children.start(work, i) for i in range(2)]
    rng = random.Random(seed)
    kept: list[tuple[bytes, memoryview]] = []
    while any(w.running() for w in workers) or len(kept) < 50:
        raw = pc.view(rng.choice(pids)).raw
        kept.append((bytes(raw), raw))
        assert len(set(kept[-1][0])) == 1
        if len(kept) > 90:
            first, raw = kept.pop(rng.randrange(len(kept)))
            assert bytes(raw) == first
    assert all(bytes(raw) == first for first, raw in kept)
    assert sorted(w.result() for w in workers) == [0, 1]
    raw.release()
    kept.clear()
    assert held(pc) == 0


# ---- many


def test_more_segments_than_words_are_viewed_all_the_same(open_store: Open) -> None:
    pc = open_store(LWW(), segment_size=SMALL)
    pids = segments(pc, WORDS + 10)
    views = [pc.view(pid) for pid in pids]
    assert held(pc) == WORDS
    pinned = pc.stats().oldest_pin
    for pid in pids:
        pc.free(pid, pc.get(pid).key)
    pc.flush()
    pc.allocate(b"x")
    pc.flush()
    assert pc.stats().oldest_pin == pinned  # those beyond the words hold as a Tx does
    assert [bytes(v.raw[:2]) for v in views] == [bytes([i % 251]) * 2 for i in range(len(pids))]
    del views[WORDS:]
    gc.collect()
    assert pc.stats().oldest_pin > pinned
    views.clear()
    gc.collect()
    assert held(pc) == 0


def test_threads_open_and_drop_views_of_the_same_segments(open_store: Open, seed: int) -> None:
    pc = open_store(LWW(), segment_size=SMALL)
    pids = segments(pc, WORDS + 6)
    wrong: list[object] = []

    def work(number: int) -> None:
        rng, kept = random.Random(seed * 100 + number), []
        try:
            for _ in range(600):
                i = rng.randrange(len(pids))
                kept.append((i, pc.view(pids[i]).raw if rng.random() < 0.5 else pc.view(pids[i])))
                if len(kept) > 30:
                    k, view = kept.pop(rng.randrange(len(kept)))
                    raw = view if isinstance(view, memoryview) else view.raw
                    if bytes(raw[:3]) != bytes([k % 251]) * 3:
                        wrong.append((k, bytes(raw[:3])))
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    gc.collect()
    assert wrong == []
    assert held(pc) == 0
    assert pc.stats().oldest_pin >= pc.stats().epoch - 1


def test_close_in_one_thread_while_another_views(path: str) -> None:
    for _ in range(20):
        pc = mmpc.open(path, LWW(), create=True)
        pid, _ = pc.allocate(b"x" * 10_000)
        seen: list[bytes] = []
        started = threading.Event()

        def view(pc: Store = pc, pid: int = pid, seen: list[bytes] = seen, started: threading.Event = started) -> None:
            try:
                while True:
                    with pc.view(pid) as v:
                        started.set()
                        seen.append(bytes(v.raw[:1]))
            except mmpc.Closed:
                return

        thread = threading.Thread(target=view)
        thread.start()
        started.wait()
        pc.close()
        thread.join()
        assert set(seen) == {b"x"}
    with mmpc.open(path, LWW()) as pc:
        assert live(pc) == 1


# ---- processes


def test_the_views_of_a_dead_process_are_reaped(pc: Store, children: Children) -> None:
    pid, _ = pc.allocate(b"x")
    ready, go_on = os.pipe(), Gate()

    def child() -> None:
        view = pc.view(pid)
        os.write(ready[1], b".")
        go_on.wait()
        view.release()

    process = children.start(child)
    os.read(ready[0], 1)
    assert held(pc) == 1
    process.kill()
    assert held(pc) == 0
    for fd in ready:
        os.close(fd)
    go_on.open()


def test_a_forked_child_holds_what_it_inherited(pc: Store, children: Children) -> None:
    pid, _ = pc.allocate(np.arange(1000))
    view = pc.view(pid)
    array = np.asarray(view)
    dropped, done = Gate(), os.pipe()

    def child() -> Any:
        nonlocal view, array
        first = (live(pc), held(pc))
        os.write(done[1], b".")
        dropped.wait()
        before = held(pc)
        answer = [int(array.sum()), int(np.asarray(view).sum()), bytes(view.raw[8:9])]
        del array
        view.release()
        gc.collect()
        return first, before, held(pc), answer

    process = children.start(child)
    os.read(done[0], 1)
    view.release()
    del array, view
    gc.collect()
    assert _views._guards == []  # the child has taken over
    assert held(pc) == 1
    dropped.open()
    assert process.result() == ((2, 2), 1, 0, [499500, 499500, b"\x01"])
    assert held(pc) == 0
    for fd in done:
        os.close(fd)


def test_a_parent_holds_for_a_child_until_that_has_ended(
    pc: Store, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that cannot attach reads what it inherited all the same; its view opens nothing new."""
    pid, _ = pc.allocate(np.arange(10))
    view = pc.view(pid)
    arrays = [np.asarray(view)]
    gate, real = Gate(), _store.open_store
    parent = os.getpid()

    def refused(*args: Any, **options: Any) -> Any:
        if os.getpid() != parent:
            raise mmpc.StoreBusy("all slots are taken")
        return real(*args, **options)

    monkeypatch.setattr(_store, "open_store", refused)

    def child() -> Any:
        try:
            np.asarray(view)
        except mmpc.Closed as e:
            text = str(e)
        gate.wait()
        return text, arrays[0].tolist()

    process = children.start(child)
    arrays.clear()
    view.release()
    gc.collect()
    _views.sweep()
    assert len(_views._guards) == 1
    assert held(pc) == 1
    gate.open()
    text, values = process.result()
    assert "before a fork" in text
    assert values == list(range(10))
    _views.sweep()
    assert _views._guards == []
    assert held(pc) == 0


def test_a_parent_that_is_killed_before_its_child_has_adopted_keeps_its_slot(
    pc: Store, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child has the descriptor that locks it, until it ends."""
    pid, _ = pc.allocate(np.arange(10))
    said, gate, test = os.pipe(), Gate(), os.getpid()
    real = _store.open_store

    def once(*args: Any, **options: Any) -> Any:
        if os.getppid() != test:
            raise mmpc.StoreBusy("all slots are taken")
        return real(*args, **options)

    monkeypatch.setattr(_store, "open_store", once)

    def parent() -> None:
        array = np.asarray(pc.view(pid))
        if os.fork() == 0:
            gate.wait()
            os.write(said[1], b"ok" if array.sum() == 45 else b"no")
            os._exit(0)
        os.write(said[1], b"up")
        gate.wait()

    process = children.start(parent)
    assert os.read(said[0], 2) == b"up"
    process.kill()
    assert (live(pc), held(pc)) == (2, 1)
    gate.open()
    assert os.read(said[0], 2) == b"ok"
    for _ in range(1000):
        if live(pc) == 1:
            break
        time.sleep(0.01)
    assert held(pc) == 0
    for fd in said:
        os.close(fd)


def test_what_is_handed_over_is_not_used_again_meanwhile(open_store: Open, children: Children, seed: int) -> None:
    """Parents drop at once what they had open at a fork, while others overwrite and clean."""
    pc = open_store(LWW(), segment_size=SMALL)
    pids, rng = segments(pc, 8), random.Random(seed)
    writers = [children.start(overwrite, pc, pids[i::2], 120) for i in range(2)]
    heirs = []
    while any(w.running() for w in writers) or len(heirs) < 10:
        kept = [pc.view(pid) for pid in rng.sample(pids, 3)]
        kept += [np.asarray(view) for view in kept]

        def child(kept: list[Any] = kept) -> bool:
            first = [bytes(view.raw) for view in kept[:3]]
            time.sleep(0.05)
            whole = all(len(set(value)) == 1 for value in first)
            return whole and first == [array.tobytes() for array in kept[3:]]

        heirs.append(children.start(child))
        kept.clear()
        if len(heirs) % 10 == 0:
            assert all(heir.result() for heir in heirs[-10:])
    assert all(heir.result() for heir in heirs[len(heirs) // 10 * 10 :])
    for w in writers:
        w.result()
    _views.sweep()
    assert held(pc) == 0


def test_a_child_takes_over_the_views_of_a_closed_handle(path: str, children: Children) -> None:
    pc = mmpc.open(path, LWW(), create=True)
    view = pc.view(pc.allocate(b"x" * 100)[0])
    pc.close()

    def child() -> Any:
        with mmpc.open(path, LWW()) as other:
            counts = live(other), held(other)
            text = bytes(view.raw[:1])
            view.release()
            gc.collect()
            return counts, text, (live(other), held(other))

    assert children.run(child) == ((3, 2), b"x", (2, 1))
    view.release()
    with mmpc.open(path, LWW()) as other:
        assert (live(other), held(other)) == (1, 0)


def test_a_grandchild_takes_over_from_the_child(pc: Store, children: Children) -> None:
    array = np.asarray(pc.view(pc.allocate(np.arange(100))[0]))

    def grandchild() -> Any:
        return live(pc), held(pc), int(array.sum())

    def child() -> Any:
        with Children() as mine:
            return mine.run(grandchild), mine.run(grandchild), held(pc)

    assert children.run(child) == ((3, 3, 4950), (3, 3, 4950), 2)
    assert held(pc) == 1


def test_views_beyond_the_words_survive_a_fork(open_store: Open, children: Children) -> None:
    pc = open_store(LWW(), segment_size=SMALL)
    views = [pc.view(pid) for pid in segments(pc, WORDS + 3)]
    arrays = [np.asarray(v) for v in views]

    def child() -> Any:
        usable = 0
        for view in views:
            try:
                usable += view.nbytes > 0
            except mmpc.Closed:
                continue
        return usable, [int(a[0]) for a in arrays], len(views)

    assert children.run(child) == (WORDS, [i % 251 for i in range(WORDS + 3)], WORDS + 3)
    views.clear()
    arrays.clear()
    gc.collect()
    _views.sweep()
    assert held(pc) == 0
    assert pc.stats().oldest_pin == pc.stats().epoch


def test_a_fork_that_python_does_not_see(pc: Store) -> None:
    view = pc.view(pc.allocate(b"x")[0])
    child = ctypes.PyDLL(None).fork()
    if not child:
        status = 1
        try:
            view.raw  # noqa: B018
        except mmpc.Closed:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes(view.raw) == b"x"


def test_forks_with_views_open_leave_no_descriptors(pc: Store, children: Children) -> None:
    view = pc.view(pc.allocate(b"x")[0])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert children.run(lambda: bytes(view.raw)) == b"x"
    children.__exit__(None, None, None)
    _views.sweep()
    assert len(os.listdir("/proc/self/fd")) == before
    assert lib.mm_view_count(pc._attachment.mm) == 1


@contextmanager
def everybody(count: int) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """(arrive, let go): children wait until `count` have arrived."""
    arrived, gate = os.pipe(), Gate()

    def arrive() -> None:
        os.write(arrived[1], b".")
        gate.wait()

    def go() -> None:
        for _ in range(count):
            os.read(arrived[0], 1)
        gate.open()

    try:
        yield arrive, go
    finally:
        for fd in arrived:
            os.close(fd)


def private_bytes() -> int:
    with open("/proc/self/smaps_rollup") as f:
        return sum(int(line.split()[1]) << 10 for line in f if line.startswith(("Private_", "Anonymous")))


def test_readers_share_the_memory_of_a_large_array(open_store: Open, children: Children) -> None:
    count, size = 8, 24 << 20
    pc = open_store(LWW(), segment_size=1 << 25, cache_capacity=0)
    pid, _ = pc.allocate(np.ones(size, "u1"))
    with everybody(count) as (arrive, go):

        def child() -> Any:
            before = private_bytes()
            total = int(np.asarray(view := pc.view(pid)).sum(dtype="u8"))
            arrive()
            grown = private_bytes() - before
            view.release()
            return total, grown

        started = [children.start(child) for _ in range(count)]
        go()
        answers = [c.result() for c in started]
    assert {total for total, _ in answers} == {size}
    assert max(grown for _, grown in answers) < 10 << 20


# ---- the other face


@pytest.mark.skipif(PORTABLE, reason="this is it")
def test_the_portable_face_passes_the_same_tests() -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"MMPC_FACE": "cffi"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert result.returncode == 0, result.stdout[-5000:]
