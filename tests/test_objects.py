"""The hot verbs and the object cache: the C face, and the same tests again under the portable one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

import mmpc
from mmpc import _face
from mmpc._native import ffi, lib

PORTABLE = _face.Verbs.__module__ == "mmpc._portable"
OVERHEAD = 512 if PORTABLE else 256  # what an entry is charged beside its value


class Lists(mmpc.Materializer):
    """Lists concatenate, in Python; the value can be referenced weakly."""

    name = "test.lists-1"

    class Value(list):
        pass

    def merge(self, fragments):
        return self.Value(item for fragment in fragments for item in fragment)


class Sized(Lists):
    """Says 1000 bytes for each item."""

    name = "test.sized-1"

    def size_in_bytes(self, fragment):
        return 1000 * len(fragment)


class Hooked(Lists):
    """Calls `hook` in the middle of each merge."""

    name = "test.hooked-1"

    def __init__(self):
        self.hook = lambda: None

    def merge(self, fragments):
        self.hook()
        return super().merge(fragments)


@pytest.fixture
def store(tmp_path):
    """store(materializer, **options): a new handle to the test's store; all pages are verified at the end."""
    handles = []

    def open_handle(materializer=None, **options):
        handle = mmpc.open(tmp_path / "store", materializer or mmpc.Append(), create=True, **options)
        handles.append(handle)
        return handle

    yield open_handle
    if handles:
        with mmpc.open(tmp_path / "store", handles[0]._materializer) as checker:
            checker._check()
    for handle in handles:
        handle.close()


def cached(pc) -> int:
    return pc._cache_info()[0]


def used(pc) -> int:
    return pc._cache_info()[1]


def chain_of(pc, *fragments) -> int:
    pid, _ = pc.allocate(fragments[0])
    for fragment in fragments[1:]:
        pc.append(pid, fragment)
    return pid


def rebind(pc) -> None:
    """Takes up what was changed in the materializer; the cache is empty then."""
    pc._unbind()
    pc._bind_face()


# ---- hits and validity


def test_a_hit_returns_the_identical_object(store):
    pc = store()
    pid = chain_of(pc, b"a", b"b")
    page = pc.get(pid)
    assert page == mmpc.Materialized(b"ab", page.key)
    assert pc.get(pid) is page
    assert pc.get_many([pid, pid]) == [page, page]
    with pc.begin() as tx:
        assert pc.get(pid, tx) is page
        assert pc.get(pid, tx=tx) is page


def test_a_write_by_another_handle_is_seen(store):
    ours, theirs = store(), store()
    pid = chain_of(ours, b"a")
    before = ours.get(pid)
    key = theirs.append(pid, b"b")
    after = ours.get(pid)
    assert (before.value, after.value, after.key) == (b"a", b"ab", key)
    assert ours.get(pid) is after
    theirs.replace(pid, key, b"new")
    assert ours.get(pid).value == b"new"


def test_a_move_by_another_handle_keeps_the_object(store):
    ours, theirs = store(), store()
    pid = chain_of(ours, b"a", b"b")
    page = ours.get(pid)
    assert theirs._consolidate(pid)
    assert ours.get(pid) is page
    assert ours.link(pid, page.key, b"c").wts == page.key.wts + 1
    assert ours.get(pid).value == b"abc"


def test_a_single_base_is_the_value_without_a_merge(store):
    hooked = Hooked()
    pc = store(hooked)
    hooked.hook = lambda: pytest.fail("merged")
    assert pc.get(chain_of(pc, ["only"])).value == ["only"]


def test_writes_do_not_cache_the_callers_object(store):
    pc = store(Lists())
    mine = [1]
    pid, key = pc.allocate(mine)
    mine.append(2)
    assert pc.get(pid).value == [1]
    pc.replace(pid, key, mine)
    mine.append(3)
    assert pc.get(pid).value == [1, 2]


# ---- the bound, and who stays


def test_the_hot_stay_while_a_scan_passes(store):
    pc = store(cache_capacity=100 * (OVERHEAD + 200))
    hot = [chain_of(pc, b"h" * 100) for _ in range(10)]
    cold = [chain_of(pc, b"c" * 100) for _ in range(2000)]
    pages = [pc.get(pid) for pid in hot]
    for i, pid in enumerate(cold):
        pc.get(pid)
        if i % 20 == 0:
            assert all(pc.get(pid) is page for pid, page in zip(hot, pages, strict=True))
    assert used(pc) <= pc._cache_info()[2]


CAPACITY = 40_000


def replaces(pc, pids, i):
    pid = pids[i * 7 % len(pids)]
    pc.replace(pid, pc.get(pid).key, b"r" * (i % 500))


def appends(pc, pids, i):
    pc.append(pids[i * 7 % len(pids)], b"a" * 20)
    pc.get(pids[i * 7 % len(pids)])


def allocates(pc, pids, i):
    pid, key = pc.allocate(b"n" * (i % 300))
    pc.get(pid)
    pc.free(pid, pc.get(pid).key if i % 2 else key)


MIXES = {
    "get": lambda pc, pids, i: pc.get(pids[i % len(pids)]),
    "get_many": lambda pc, pids, i: pc.get_many(pids),
    "append_many": lambda pc, pids, i: pc.append_many([(pid, b"w") for pid in pids[:5]]),
    "replace": replaces,
    "append": appends,
    "allocate": allocates,
}


@pytest.mark.parametrize("mix", MIXES)
def test_memory_is_bounded_for_every_mix_of_verbs(store, mix):
    pc = store(cache_capacity=CAPACITY)
    pids = [chain_of(pc, b"x" * 100) for _ in range(200)]
    for i in range(300):
        MIXES[mix](pc, pids, i)
        entries, size, capacity, *_ = pc._cache_info()
        assert size <= capacity == CAPACITY
        assert entries * OVERHEAD <= size


def test_random_reads_and_changes_agree_with_a_dict(store):
    import random

    rng = random.Random(20190420)
    pc = store(cache_capacity=CAPACITY // 2)
    other = store(cache_capacity=0)
    model = {pc.allocate(b"")[0]: b"" for _ in range(100)}
    for _ in range(5000):
        pid = rng.choice(list(model))
        if rng.random() < 0.3:
            fragment = bytes(rng.randrange(60))
            model[pid] = model[pid] + fragment
            rng.choice((pc, other)).append(pid, fragment)
        elif rng.random() < 0.1:
            model[pid] = b"new"
            pc.replace(pid, pc.get(pid).key, b"new")
        assert pc.get(pid).value == model[pid]
    assert pc._cache_info()[4] > 0


def test_an_object_larger_than_the_cache_is_returned_but_not_kept(store):
    pc = store(cache_capacity=10_000)
    small, large = chain_of(pc, b"s"), chain_of(pc, b"l" * 20_000)
    page = pc.get(small)
    assert pc.get(large).value == b"l" * 20_000
    assert pc.get(small) is page
    assert cached(pc) == 1


def test_size_in_bytes_is_what_counts(store):
    pc = store(Sized(), cache_capacity=4000)
    pid = chain_of(pc, [1], [2])
    pc.get(pid)
    assert used(pc) == 2000 + OVERHEAD
    pc.append(pid, [3])
    pc.get(pid)
    assert used(pc) == 3000 + OVERHEAD
    pc.append(pid, [4])
    pc.get(pid)
    assert pc._cache_info()[:2] == (0, 0)
    assert pc.get(pid).value == [1, 2, 3, 4]


def test_a_last_write_wins_page_does_not_grow_in_the_books(store):
    pc = store(mmpc.LastWriteWins())
    pid = chain_of(pc, b"x" * 1000)
    pc.get(pid)
    before = used(pc)
    for _ in range(200):
        pc.append(pid, b"y" * 1000)
        pc.get(pid)
    assert used(pc) < before + 1000


def test_drop_forgets_one_or_all(store):
    pc = store()
    first, second = chain_of(pc, b"1"), chain_of(pc, b"2")
    pc.get_many([first, second])
    pc._drop(first)
    assert cached(pc) == 1
    pc._drop(2**50)
    pc._drop()
    assert cached(pc) == used(pc) == 0


# ---- callbacks into the same handle


def test_a_merge_may_read_and_write_the_same_handle(store):
    hooked = Hooked()
    pc = store(hooked, cache_capacity=3000)
    others = [chain_of(pc, [i], [i]) for i in range(50)]
    pid = chain_of(pc, [1], [2])
    depth = 0

    def hook():
        nonlocal depth
        if depth == 0:
            depth += 1
            pc.get_many(others)
            pc._drop()
            pc.append(others[0], [9])
            depth -= 1

    hooked.hook = hook
    for _ in range(5):
        pc.append(pid, [3])
        assert pc.get(pid).value[:3] == [1, 2, 3]
    assert used(pc) <= 3000


def test_a_merge_may_read_its_own_page(store):
    hooked = Hooked()
    pc = store(hooked)
    pid = chain_of(pc, [1], [2])
    inner = []

    def hook():
        if not inner:
            inner.append(None)
            inner[0] = pc.get(pid)

    hooked.hook = hook
    assert pc.get(pid).value == inner[0].value == [1, 2]


def test_a_merge_may_close_the_handle(store):
    hooked = Hooked()
    pc = store(hooked)
    pid = chain_of(pc, [1], [2])
    hooked.hook = pc.close
    assert pc.get(pid).value == [1, 2]
    assert cached(pc) == 0
    with pytest.raises(mmpc.Closed):
        pc.get(pid)


def test_size_in_bytes_may_drop_the_cache(store):
    sized = Sized()
    pc = store(sized)
    pids = [chain_of(pc, [i], [i]) for i in range(10)]
    sized.size_in_bytes = lambda fragment: pc._drop() or 10
    rebind(pc)
    for pid in pids:
        assert pc.get(pid).value[0] == pids.index(pid)
    assert cached(pc) == 1


@pytest.mark.parametrize("where", ["merge", "size_in_bytes"])
def test_errors_of_callbacks_go_up_and_cache_nothing(store, where):
    sized = Sized()
    pc = store(sized)
    pid = chain_of(pc, [1], [2])

    def fail(_):
        raise LookupError("no")

    setattr(sized, where, fail)
    rebind(pc)
    with pytest.raises(LookupError):
        pc.get(pid)
    assert cached(pc) == 0
    delattr(sized, where)
    rebind(pc)
    assert pc.get(pid).value == [1, 2]


def test_destructors_of_victims_may_use_the_handle(store):
    died = []

    class Dying(Lists):
        name = "test.dying-1"

        class Value(list):
            def __del__(self):
                if not pc._closed:
                    died.append(pc.get_many(pids[:2]))
                    pc._drop(pids[0])

    pc = store(Dying(), cache_capacity=2000)
    pids = [chain_of(pc, [i], [i]) for i in range(30)]
    for _ in range(3):
        for i, pid in enumerate(pids):
            assert pc.get(pid).value == [i, i]
        assert used(pc) <= 2000
    assert died
    pc.close()


# ---- garbage


def test_values_die_when_the_handle_is_closed(store):
    pc = store(Lists())
    pid = chain_of(pc, [1], [2])
    alive = weakref.ref(pc.get(pid).value)
    gc.collect()
    assert alive() is not None
    pc.close()
    gc.collect()
    assert alive() is None


def test_a_cycle_through_a_cached_value_is_collected(tmp_path):
    pc = mmpc.open(tmp_path / "store", Lists(), create=True)
    page = pc.get(chain_of(pc, [1], [2]))
    page.value.append(pc)
    alive = weakref.ref(page.value), weakref.ref(pc)
    del pc, page
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


# ---- arguments


def test_arguments_have_names(store):
    pc = store()
    pid, key = pc.allocate(fragment=b"x", tx=None)
    assert pc.get(tx=None, pid=pid).key == key
    assert pc.link(pid, key=key, fragment=b"y").wts == 2
    for arguments, names in (((), {}), ((1, 2, 3), {}), ((pid,), {"who": 1}), ((pid,), {"pid": pid})):
        with pytest.raises(TypeError):
            pc.get(*arguments, **names)


def every_verb(pid, key) -> list[tuple[str, tuple[Any, ...]]]:
    return [
        ("get", (pid,)),
        ("get_many", ([pid],)),
        ("get_page_frags", (pid,)),
        ("append", (pid, b"y")),
        ("append_many", ([(pid, b"y")],)),
        ("allocate", (b"y",)),
        ("link", (pid, key, b"y")),
        ("replace", (pid, key, b"y")),
        ("free", (pid, key)),
    ]


def test_a_tx_is_checked_by_every_verb(store):
    pc = store()
    pid, key = pc.allocate(b"x")
    ended = pc.begin()
    ended.close()
    for tx, error in ((ended, mmpc.Closed), (object(), TypeError), (7, TypeError)):
        for verb, arguments in every_verb(pid, key):
            with pytest.raises(error):
                getattr(pc, verb)(*arguments, tx=tx)
    assert pc.get(pid).value == b"x"


def test_after_close_every_verb_raises(store):
    pc = store()
    pid, key = pc.allocate(b"x")
    pc.get(pid)
    pc.close()
    for verb, arguments in [*every_verb(pid, key), ("get", (2**50,)), ("_consolidate", (pid,))]:
        with pytest.raises(mmpc.Closed):
            getattr(pc, verb)(*arguments)


# ---- bulk


def test_a_large_batch_is_appended_in_order(store):
    pc = store()
    pid = chain_of(pc, b"")
    keys = pc.append_many((pid, bytes([i]) * 50_000) for i in range(10))
    assert [key.wts for key in keys] == list(range(2, 12))
    assert pc.get(pid).value[::50_000] == bytes(range(10))
    assert pc.append_many([]) == []


# ---- encoding


def stored(pc, pid) -> bytes:
    """The newest fragment of a page as it lies in the log."""
    r, buffer = ffi.new("mm_result *"), ffi.new("uint8_t[]", 1 << 20)
    assert lib.mm_read(pc._attachment.mm, pid, 0, 0, buffer, 1 << 20, r) == 0
    return ffi.buffer(buffer, r.length)[:]


SIZES = (0, 1, 31, 32, 255, 256, 1014, 1015, 1016, 1024, 65535, 65536, 200_000)
BITS = (0, 5, 7, 8, 15, 16, 31, 32, 62, 63)
INTS = tuple(sign * (1 << bits) + d for bits in BITS for d in (-1, 0, 1) for sign in (1, -1))
PLAIN = [
    None,
    True,
    False,
    *(0.0, -1.5, float("inf"), 1e308),
    *(i for i in INTS if -(1 << 63) <= i < 1 << 64),
    *(b"b" * n for n in SIZES),
    *("s" * n for n in SIZES),
    "späße",
    [1, [b"x", "y", None], {"k": 1.5}],
    {"a": [1, 2], 3: b"z"},
    [],
]


def test_what_is_stored_is_what_msgpack_writes(store):
    pc = store(mmpc.LastWriteWins())
    pack = msgpack.Packer().pack
    for value in PLAIN:
        pid, _ = pc.allocate(value)
        assert stored(pc, pid) == b"\x91" + pack(value)
        got = pc.get(pid).value
        assert got == value
        assert type(got) is type(value)
        assert pc.get_page_frags(pid)[1] == [value]


def test_a_verb_in_the_middle_of_an_encoding(store):
    class Curious:
        @property
        def __class__(self):
            inner.append(pc.get(pc.allocate([1, {"k": b"x"}])[0]).value)
            return list

    pc, inner = store(mmpc.LastWriteWins()), []
    with pytest.raises(mmpc.FragmentTypeError):
        pc.allocate(["before", Curious()])
    assert inner
    assert all(value == [1, {"k": b"x"}] for value in inner)
    assert pc.get(pc.allocate(["after"])[0]).value == ["after"]


def test_arrays(store):
    pc = store()
    pid = chain_of(pc, np.arange(3.0), np.arange(2.0))
    assert pc.get(pid).value.tolist() == [0, 1, 2, 0, 1]
    single = pc.get(chain_of(pc, np.arange(100_000)))
    assert single.value.sum() == 100_000 * 99_999 // 2
    assert not single.value.flags.writeable
    pc.append(pid, np.arange(1.0))
    assert pc.get(pid).value.tolist() == [0, 1, 2, 0, 1, 0]


# ---- consolidation


def test_a_read_tidies_and_the_next_one_hits(store):
    pc = store(Lists(), page_consolidation_threshold=4)
    pid = chain_of(pc, *([i] for i in range(20)))
    page = pc.get(pid)
    assert len(pc.get_page_frags(pid)[1]) == 1
    assert pc.get(pid) is page
    assert page.value == list(range(20))


def test_consolidate_says_whether_it_did(store):
    pc = store()
    pid = chain_of(pc, b"a", b"b")
    assert pc._consolidate(pid)
    assert not pc._consolidate(pid)
    pc.free(pid, pc.get(pid).key)
    assert not pc._consolidate(pid)
    with pytest.raises(mmpc.Unsupported):
        pc._consolidate(1)


# ---- threads and processes


def test_close_while_others_are_inside(store):
    pc = store()
    pids = [chain_of(pc, b"x" * 200_000) for _ in range(4)]
    started, errors = threading.Barrier(4), []

    def work(pid):
        started.wait()
        try:
            while True:
                pc._drop()
                pc.get_many([pid, pid])
                pc.replace(pid, pc.get(pid).key, b"y" * 200_000)
        except mmpc.Closed:
            pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(pid,)) for pid in pids[:3]]
    for thread in threads:
        thread.start()
    started.wait()
    pc.close()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_forked_child_keeps_what_is_valid(store):
    pc = store(Lists())
    kept, changed = chain_of(pc, [1], [2]), chain_of(pc, [3])
    page, _ = pc.get(kept), pc.get(changed)
    child = os.fork()
    if child == 0:
        ok = pc.get(kept) is page and pc.append(changed, [4]).wts == 2 and pc.get(changed).value == [3, 4]
        ok = ok and pc.get(kept) is page
        pc.close()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pc.get(changed).value == [3, 4]
    assert pc.get(kept) is page


# ---- the results


KEY = mmpc.PagePtr(5, 77, 3, 9)
VALUED = [mmpc.Materialized([1], KEY), mmpc.Counter(7, KEY), mmpc.Meta({}, KEY)]
RESULTS = [*VALUED, mmpc.Free(KEY), mmpc.Unallocated()]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_results_say_what_they_are(result):
    is_value = isinstance(result, mmpc.Materialized)
    assert result.is_materialized() is is_value
    assert result.is_free() is isinstance(result, mmpc.Free)
    assert result.is_unallocated() is isinstance(result, mmpc.Unallocated)
    if is_value:
        assert result.unwrap() is result.expect("never") is result.value
        return
    with pytest.raises(ValueError, match=r"^unwrap called on non-Materialized: ") as error:
        result.unwrap()
    assert repr(result) in str(error.value)
    with pytest.raises(ValueError, match=r"^as I said$"):
        result.expect("as I said")


def test_results_match_and_compare():
    match RESULTS[0]:
        case mmpc.Materialized(value, key):
            assert (value, key) == ([1], KEY)
        case _:
            pytest.fail("no match")
    assert repr(RESULTS[0]) == f"Materialized(value=[1], key={KEY!r})"
    assert repr(RESULTS[4]) == "Unallocated()"
    assert mmpc.Materialized([1], KEY) == RESULTS[0]
    assert mmpc.Materialized([2], KEY) != RESULTS[0]
    assert mmpc.Counter(7, KEY) != mmpc.Meta(7, KEY)
    assert len({type(result) for result in RESULTS}) == 5


def test_the_types_are_generic():
    assert mmpc.Materialized[int].__origin__ is mmpc.Materialized
    assert mmpc.PageCache[int].__origin__ is mmpc.PageCache


def test_a_verb_that_a_base_overrides_stays_overridden():
    class Mixin:
        def get(self, pid):
            return "mine"

    class Mixed(Mixin, _face.Verbs):
        pass

    class Deep(Mixed):
        pass

    assert Deep().get(1) == Mixed().get(1) == "mine"


def test_a_handle_that_was_never_bound():
    class Bare(_face.Verbs):
        def _mend(self, status, result, pid, fragment):
            raise mmpc.Closed(f"{status} {result} {pid}")

    for verb, arguments in [*every_verb(5, mmpc.PagePtr(5, 0, 0, 0)), ("get", (2**50,))]:
        with pytest.raises(mmpc.Closed):
            getattr(Bare(), verb)(*arguments)
    with pytest.raises((mmpc.Closed, TypeError)):
        Bare().get(5, object())


if not PORTABLE:

    def test_references_do_not_leak(store):
        pc = store(cache_capacity=20_000)
        pids = [chain_of(pc, b"x" * i) for i in range(100)]

        def work():
            for pid in pids:
                key = pc.append(pid, b"y")
                key = pc.replace(pid, key, b"z")
                pc.link(pid, key, b"z")
                pc.get_page_frags(pid)
            pc.get_many(pids)
            pc.append_many((pid, b"m") for pid in pids)
            for pid in (pids[0], 2**50):
                with pytest.raises(mmpc.MmpcError):
                    pc.link(pid, mmpc.PagePtr(pid, 0, 0, 0), b"")
            pc._drop()
            gc.collect()

        for _ in range(3):
            work()
        before = sys.getallocatedblocks()
        for _ in range(20):
            work()
        assert sys.getallocatedblocks() - before < 200

    def test_the_portable_face_passes_the_same_tests():
        """This file again, in an interpreter that has chosen the portable face."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
        env = os.environ | {"MMPC_FACE": "cffi"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
