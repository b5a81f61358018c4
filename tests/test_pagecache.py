"""The verbs of PageCache: their results, their errors, the version rules, and none of the seed's defects."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmpc
from support.children import Children
from support.looks import THRESHOLD, depth
from support.mergers import Moody, Tally

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]

# Verbs that take a page id, and what else they need; `key` stands for a key of that page.
BY_PID: dict[str, Callable[[Any, Any, Any], Any]] = {
    "append": lambda pc, pid, key: pc.append(pid, [1]),
    "append_many": lambda pc, pid, key: pc.append_many([(pid, [1])]),
    "link": lambda pc, pid, key: pc.link(pid, key, [1]),
    "replace": lambda pc, pid, key: pc.replace(pid, key, [1]),
    "free": lambda pc, pid, key: pc.free(pid, key),
    "update": lambda pc, pid, key: pc.update(pid, lambda value: value),
    "get_page_frags": lambda pc, pid, key: pc.get_page_frags(pid),
}
KEYED = ("link", "replace", "free")
by_pid = pytest.mark.parametrize("verb", BY_PID.values(), ids=BY_PID)
by_key = pytest.mark.parametrize("verb", [BY_PID[name] for name in KEYED], ids=KEYED)


def value(pc: Store, pid: int) -> Any:
    return pc.get(pid).unwrap()


def unchanged(pc: Store, pid: int, expected: Any) -> None:
    """The page holds `expected`, for this handle and from the log."""
    pc._drop(pid)
    assert value(pc, pid) == expected


# ---- results


def test_first_page_id_is_2_and_ids_are_dense(store: Store) -> None:
    assert [store.allocate([i])[0] for i in range(5)] == [2, 3, 4, 5, 6]


def test_allocate_returns_a_key_for_the_next_cas(store: Store) -> None:
    pid, key = store.allocate([1])
    assert isinstance(key, mmpc.PagePtr)
    assert key.pid == pid
    key = store.link(pid, key, [2])
    key = store.replace(pid, key, [3])
    key = store.link(pid, key, [4])
    assert store.get(pid) == mmpc.Materialized([3, 4], key)


def test_get_answers_the_value_and_its_key(store: Store) -> None:
    pid, key = store.allocate([1])
    page = store.get(pid)
    assert isinstance(page, mmpc.Materialized)
    assert page.is_materialized()
    assert not page.is_free()
    assert not page.is_unallocated()
    assert (page.value, page.key) == ([1], key)


def test_pages_0_and_1_read_as_meta_and_counter(store: Store) -> None:
    assert isinstance(store.get(0), mmpc.Meta)
    assert isinstance(store.get(1), mmpc.Counter)
    assert store.get(0).value == {}


@pytest.mark.parametrize(
    "pid", [2, 3, 4095, 1 << 39, (1 << 40) - 1, 1 << 40, 1 << 63, 1 << 64, 1 << 200, -1, -(1 << 70)]
)
def test_an_id_never_allocated_reads_as_unallocated(store: Store, pid: int) -> None:
    assert isinstance(store.get(pid), mmpc.Unallocated)
    assert store.get_many([pid])[0].is_unallocated()
    assert store.get_page_rts(pid) is None
    store.bump_page_rts(pid, 7)
    assert store.get_page_rts(pid) is None


def test_fragments_come_oldest_first_with_the_key(store: Store) -> None:
    pid, _ = store.allocate([1])
    store.append(pid, [2])
    key = store.append(pid, [3])
    assert store.get_page_frags(pid) == (key, [[1], [2], [3]])
    assert store.link(pid, store.get_page_frags(pid)[0], [4]).wts == key.wts + 1


def test_get_many_answers_in_order_also_for_ids_asked_twice(store: Store) -> None:
    a, _ = store.allocate([1])
    b, key = store.allocate([2])
    store.free(b, key)
    pages = store.get_many([a, 99, b, 0, a, 1])
    assert [type(p).__name__ for p in pages] == [
        "Materialized",
        "Unallocated",
        "Free",
        "Meta",
        "Materialized",
        "Counter",
    ]
    assert store.get_many([]) == []
    assert [p.value for p in store.get_many(iter([a, a]))] == [[1], [1]]


def test_append_many_applies_in_order_and_answers_the_keys(store: Store) -> None:
    a, _ = store.allocate([0])
    b, _ = store.allocate([10])
    keys = store.append_many([(a, [1]), (b, [11]), (a, [2])])
    assert [k.pid for k in keys] == [a, b, a]
    assert (value(store, a), value(store, b)) == ([0, 1, 2], [10, 11])
    assert store.get(a).key == keys[2]
    assert store.append_many([]) == []


def test_append_many_checks_every_fragment_before_it_applies_one(store: Store) -> None:
    pid, _ = store.allocate([0])
    with pytest.raises(TypeError):
        store.append_many([(pid, [1]), (pid, object())])
    with pytest.raises(TypeError):
        store.append_many([(pid, [1]), (True, [1])])
    with pytest.raises(TypeError):
        store.append_many([(pid, [1]), (pid,)])  # type: ignore[list-item]
    unchanged(store, pid, [0])


def test_append_many_says_what_was_applied_before_it_failed(store: Store) -> None:
    pid, _ = store.allocate([0])
    with pytest.raises(mmpc.PageNotFound) as caught:
        store.append_many([(pid, [1]), (pid, [2]), (77, [3]), (pid, [4])])
    assert [k.pid for k in caught.value.applied] == [pid, pid]  # type: ignore[attr-defined]
    unchanged(store, pid, [0, 1, 2])


def test_update_returns_the_key_of_the_new_value(store: Store) -> None:
    pid, _ = store.allocate([1])
    key = store.update(pid, lambda v: [*v, 2])
    assert store.get(pid) == mmpc.Materialized([1, 2], key)


def test_update_retries_until_nobody_wrote_in_between(open_store: Open) -> None:
    mine, other = open_store(), open_store()
    pid, _ = mine.allocate([0])
    seen = []

    def add(value: list[int]) -> list[int]:
        seen.append(list(value))
        if len(seen) < 4:
            other.append(pid, [len(seen)])
        return [*value, 9]

    mine.update(pid, add)
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert value(other, pid) == [0, 1, 2, 3, 9]


def test_update_passes_on_what_its_function_raises(store: Store) -> None:
    pid, _ = store.allocate([0])
    with pytest.raises(ZeroDivisionError):
        store.update(pid, lambda v: v[0] // 0)
    unchanged(store, pid, [0])


def test_rts_only_rises_and_survives_writes_and_free(store: Store) -> None:
    pid, key = store.allocate([0])
    assert store.get_page_rts(pid) == 0
    for ts, expected in [(5, 5), (3, 5), (9, 9), (0, 9)]:
        store.bump_page_rts(pid, ts)
        assert store.get_page_rts(pid) == expected
    key = store.link(pid, key, [1])
    assert store.get_page_rts(pid) == 9
    store.free(pid, key)
    assert store.get_page_rts(pid) == 9
    store.bump_page_rts(pid, (1 << 64) - 1)
    assert store.get_page_rts(pid) == (1 << 64) - 1


def test_flush_returns_how_far_stable_rose(store: Store) -> None:
    pid, key = store.allocate([0])
    before = store.stable_lsn
    assert store.flush() == store.stable_lsn - before > 0
    assert store.stable_lsn >= key.last_lsn
    key = store.append(pid, [1])
    assert store.stable_lsn < key.last_lsn
    before = store.stable_lsn
    assert store.make_stable(key.last_lsn) == store.stable_lsn - before
    assert store.stable_lsn >= key.last_lsn
    assert store.make_stable(key.last_lsn) == 0


def test_flush_of_nothing_dirty_returns_0(store: Store) -> None:
    store.allocate([0])
    store.flush()
    assert store.flush() == 0


def test_make_stable_of_an_lsn_never_given_is_an_error(store: Store) -> None:
    with pytest.raises(ValueError, match="never given"):
        store.make_stable(1 << 50)
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError, match="lsn"):
            store.make_stable(wrong)
    for odd in (True, 1.0, "1", None):
        with pytest.raises(TypeError):
            store.make_stable(odd)  # type: ignore[arg-type]


# ---- keys


def test_keys_are_equal_when_page_and_version_are(store: Store) -> None:
    pid, key = store.allocate([0])
    again = store.get(pid).key
    assert key == again
    assert hash(key) == hash(again)
    assert store.append(pid, [1]) != key
    assert key != (key.pid, key.head, key.wts, key.last_lsn)


def test_results_and_keys_pickle(store: Store) -> None:
    pid, key = store.allocate([0])
    for thing in (key, store.get(pid), store.get(0), store.get(1), store.get(99)):
        assert pickle.loads(pickle.dumps(thing)) == thing
    copy = pickle.loads(pickle.dumps(key))
    assert store.link(pid, copy, [1]).wts == key.wts + 1


def test_results_and_keys_cannot_be_changed(store: Store) -> None:
    pid, key = store.allocate([0])
    for thing, name in [(key, "wts"), (key, "pid"), (store.get(pid), "value"), (store.get(pid), "key")]:
        with pytest.raises((AttributeError, TypeError)):
            setattr(thing, name, 1)


# ---- errors


@by_pid
def test_a_page_never_allocated_is_page_not_found(store: Store, verb: Any) -> None:
    """Seed defect 3: replace on a missing page panicked although it promised an answer."""
    for pid in (99, (1 << 40) - 1, 1 << 40, 1 << 64, -1):
        if verb in (BY_PID["link"], BY_PID["replace"], BY_PID["free"]) and not 0 <= pid < 1 << 63:
            continue  # no key has such a page
        key = mmpc.PagePtr(pid, 1 << 22, 1, 1) if pid >= 0 and pid < 1 << 64 else None
        with pytest.raises(mmpc.PageNotFound, match=str(pid)):
            verb(store, pid, key)


@by_pid
def test_a_freed_page_is_page_freed(store: Store, verb: Any) -> None:
    """Seed section 6: link and replace on a freed page seemed to succeed, with the key of the free."""
    pid, key = store.allocate([0])
    free = store.free(pid, key)
    with pytest.raises(mmpc.PageFreed, match=str(pid)):
        verb(store, pid, free)
    with pytest.raises(mmpc.PageFreed):
        verb(store, pid, store.get(pid).key)
    assert store.get(pid) == mmpc.Free(free)


@by_pid
@pytest.mark.parametrize("pid", [0, 1])
def test_pages_0_and_1_are_refused(store: Store, verb: Any, pid: int) -> None:
    """Seed defect 21: link and replace on pages 0 and 1 were not guarded."""
    before = store.get(pid)
    with pytest.raises(mmpc.Unsupported, match=str(pid)):
        verb(store, pid, before.key)
    assert store.get(pid) == before


@by_key
def test_a_stale_key_is_a_conflict_that_says_how_to_go_on(open_store: Open, verb: Any) -> None:
    mine, other = open_store(), open_store()
    pid, key = mine.allocate([0])
    newest = other.append(pid, [1])
    with pytest.raises(mmpc.Conflict) as caught:
        verb(mine, pid, key)
    assert caught.value.current == newest
    assert str(newest.wts) in str(caught.value)
    assert value(mine, pid) == [0, 1]
    verb(mine, pid, caught.value.current)


def test_a_conflict_carries_the_very_fragment_that_was_rejected(store: Store) -> None:
    pid, key = store.allocate([0])
    store.append(pid, [1])
    fragment = [7]
    for verb in (store.link, store.replace):
        with pytest.raises(mmpc.Conflict) as caught:
            verb(pid, key, fragment)
        assert caught.value.rejected is fragment
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (copy.current, copy.rejected, str(copy)) == (caught.value.current, [7], str(caught.value))
    with pytest.raises(mmpc.Conflict) as caught:
        store.free(pid, key)
    assert caught.value.rejected is None


@by_key
def test_a_stale_key_of_a_freed_page_is_an_error_and_frees_nothing_twice(store: Store, verb: Any) -> None:
    pid, key = store.allocate([0])
    free = store.free(pid, key)
    with pytest.raises((mmpc.Conflict, mmpc.PageFreed)):
        verb(store, pid, key)
    assert store.get(pid) == mmpc.Free(free)


@by_key
def test_the_key_of_another_page_is_refused(store: Store, verb: Any) -> None:
    a, _ = store.allocate([1])
    b, key = store.allocate([2])
    with pytest.raises(ValueError, match=f"{b}.*{a}"):
        verb(store, a, key)
    unchanged(store, a, [1])
    unchanged(store, b, [2])


@by_key
def test_a_key_of_another_life_of_the_page_is_a_conflict(store: Store, verb: Any) -> None:
    """Versions go on rising over free and reuse, so a key from before the free fits nothing that comes after it."""
    pid, old = store.allocate([1])
    free = store.free(pid, old)
    again = pid
    while store.allocate([2])[0] != pid and again < pid + 50:
        again += 1
    assert value(store, pid) == [2]
    for stale in (old, free):
        with pytest.raises(mmpc.Conflict):
            verb(store, pid, stale)
    unchanged(store, pid, [2])


@by_key
@pytest.mark.parametrize("field", ["head", "wts", "both"])
def test_a_made_up_key_changes_nothing(store: Store, verb: Any, field: str) -> None:
    """A key with the right version is good whatever head it names; any other version is a conflict, never a crash."""
    pid, key = store.allocate([0])
    rng = random.Random(field)
    for _ in range(100):
        head = rng.getrandbits(rng.choice([1, 22, 42, 64])) if field != "wts" else key.head
        wts = rng.getrandbits(rng.choice([48, 64])) | 2 if field != "head" else key.wts + 5
        with pytest.raises((mmpc.Conflict, mmpc.CorruptionError, ValueError)):
            verb(store, pid, mmpc.PagePtr(pid, head, wts, 0))
    unchanged(store, pid, [0])


WRONG_IDS = [True, False, None, "2", b"2", 2.0, [2], object()]


@pytest.mark.parametrize("wrong", WRONG_IDS, ids=repr)
def test_a_page_id_is_an_int_and_no_bool(store: Store, wrong: Any) -> None:
    pid, key = store.allocate([0])
    for verb in (*BY_PID.values(), lambda pc, pid, key: pc.get(pid), lambda pc, pid, key: pc.get_many([pid])):
        with pytest.raises((TypeError, ValueError)):
            verb(store, wrong, key)
    for rts in (lambda: store.bump_page_rts(wrong, 1), lambda: store.get_page_rts(wrong)):
        with pytest.raises(TypeError):
            rts()
    unchanged(store, pid, [0])


class Two(int):
    """An int in its own right."""


def test_a_subclass_of_int_is_a_page_id(store: Store) -> None:
    pid, _key = store.allocate([0])
    assert pid == 2
    store.append(Two(2), [1])
    assert store.get(Two(2)).unwrap() == [0, 1]
    assert store.get_many([Two(2)])[0].unwrap() == [0, 1]
    assert store.get_page_frags(Two(2))[1] == [[0], [1]]


@by_key
@pytest.mark.parametrize("wrong", [None, 1, "key", (2, 1, 1, 1), [1]], ids=repr)
def test_a_key_is_a_page_ptr(store: Store, verb: Any, wrong: Any) -> None:
    pid, _ = store.allocate([0])
    with pytest.raises(TypeError, match="PagePtr"):
        verb(store, pid, wrong)


@pytest.mark.parametrize("wrong", [3, "tx", object()], ids=repr)
def test_a_tx_is_a_tx(store: Store, wrong: Any) -> None:
    pid, key = store.allocate([0])
    verbs: list[Callable[[], Any]] = [
        lambda: store.get(pid, tx=wrong),
        lambda: store.get_many([pid], tx=wrong),
        lambda: store.get_page_frags(pid, tx=wrong),
        lambda: store.append(pid, [1], tx=wrong),
        lambda: store.append_many([(pid, [1])], tx=wrong),
        lambda: store.link(pid, key, [1], tx=wrong),
        lambda: store.replace(pid, key, [1], tx=wrong),
        lambda: store.free(pid, key, tx=wrong),
        lambda: store.allocate([1], tx=wrong),
        lambda: store.update(pid, lambda v: v, tx=wrong),
        lambda: store.get_page_rts(pid, tx=wrong),
        lambda: store.bump_page_rts(pid, 1, tx=wrong),
    ]
    for verb in verbs:
        with pytest.raises(TypeError):
            verb()
    unchanged(store, pid, [0])


UNFIT = {
    "Append": [1, 1.5, None, {"a": 1}, True, object(), {1, 2}],
    "Add": [True, "1", b"1", None, [1], {"a": 1}, 1 << 64, -(1 << 63) - 1, object()],
    "Max": [True, None, [1], {"a": 1}, 1 << 64, object()],
    "Union": [1, "a", [1], None, {True: 1}, {1.5: 1}, {None: 1}, object()],
    "LastWriteWins": [object(), {1, 2}, 1 << 64, 1j, lambda: None],
}


@pytest.mark.parametrize(
    ("store", "wrong"), [(m, w) for m in UNFIT for w in UNFIT[m]], ids=repr, indirect=["store"]
)
def test_a_fragment_that_does_not_fit_is_refused_by_every_verb(store: Store, wrong: Any) -> None:
    good: dict[str, Any] = {"mmpc.append-1": [1], "mmpc.union-1": {"a": 1}}
    first = good.get(store._options.materializer, 5)
    pid, key = store.allocate(first)
    for verb in (
        lambda: store.allocate(wrong),
        lambda: store.append(pid, wrong),
        lambda: store.append_many([(pid, wrong)]),
        lambda: store.link(pid, key, wrong),
        lambda: store.replace(pid, key, wrong),
    ):
        with pytest.raises(mmpc.FragmentTypeError):
            verb()
    unchanged(store, pid, first)
    assert store.get(pid).key == key
    assert store.allocate(first)[0] == pid + 1


MIXED = [
    ("Append", [1], "a"),
    ("Append", b"a", "a"),
    ("Add", 1, ...),
    ("Max", 1, "a"),
    ("Max", b"1", "a"),
]


@pytest.mark.parametrize(("store", "first", "second"), MIXED, ids=repr, indirect=["store"])
def test_a_page_holds_fragments_of_one_type(store: Store, first: Any, second: Any) -> None:
    if second is ...:
        second = pytest.importorskip("numpy").arange(3)
    pid, key = store.allocate(first)
    for verb in (lambda: store.append(pid, second), lambda: store.link(pid, key, second)):
        with pytest.raises(mmpc.FragmentTypeError):
            verb()
    unchanged(store, pid, first)
    store.replace(pid, key, second)
    store._drop()
    assert type(value(store, pid)) is type(second)


def test_a_page_that_outgrows_a_segment_goes_on(open_store: Open) -> None:
    pc = open_store(segment_size=1 << 16)
    pid, _ = pc.allocate(b"")
    expected = b""
    for i in range(3000):
        pc.append(pid, b"%05d" % i * 20)
        expected += b"%05d" % i * 20
    unchanged(pc, pid, expected)
    pc.replace(pid, pc.get(pid).key, b"small")
    pc.append(pid, b"!")
    unchanged(pc, pid, b"small!")


# ---- versions


def test_wts_rises_by_one_with_each_change_of_content(store: Store) -> None:
    pid, key = store.allocate([0])
    start = key.wts
    versions = [
        (key := store.link(pid, key, [1])).wts,
        store.append(pid, [2]).wts,
        (key := store.replace(pid, store.get(pid).key, [3])).wts,
        store.append_many([(pid, [4])])[0].wts,
        (key := store.update(pid, lambda v: v)).wts,
        store.free(pid, key).wts,
    ]
    assert versions == [start + 1 + i for i in range(6)]


@pytest.mark.parametrize("store", ["Append", "Tally"], indirect=True)
def test_consolidation_changes_no_version_and_conflicts_with_no_key(store: Store) -> None:
    """Seed section 4: a token goes stale exactly when somebody wrote."""
    pid, _ = store.allocate([0])
    for i in range(1, 9):
        store.append(pid, [i])
    key = store.get(pid).key
    assert depth(store, pid) > 1
    store._consolidate(pid)
    assert depth(store, pid) == 1
    assert store.get(pid).key.wts == key.wts
    assert store.link(pid, key, [9]).wts == key.wts + 1
    unchanged(store, pid, list(range(10)))


@pytest.mark.parametrize("verb", KEYED)
def test_a_key_from_before_many_moves_is_good(open_store: Open, verb: str) -> None:
    mine, other = open_store(page_consolidation_threshold=2), open_store(page_consolidation_threshold=2)
    pid, _ = mine.allocate([0])
    key = mine.append(pid, [1])
    for _ in range(50):
        other._drop()
        other._consolidate(pid)
        other.get(pid)
    assert BY_PID[verb](mine, pid, key).wts == key.wts + 1


def test_a_write_during_consolidation_is_kept(open_store: Open) -> None:
    """Consolidation publishes the merge of what it saw; what came in between is copied on top."""
    pid_seen: list[int] = []

    class Meddling(Tally):
        def merge(self, fragments: Any) -> Any:
            if pid_seen and len(pid_seen) < 20:
                pid_seen.append(0)
                pc2.append(pid_seen[0], [-len(pid_seen)])
            return super().merge(fragments)

    pc, pc2 = open_store(Meddling()), open_store(Meddling())
    pid, _ = pc.allocate([0])
    for i in range(1, 12):
        pc.append(pid, [i])
    pid_seen.append(pid)
    first = pc.get(pid)
    assert first.unwrap()[:12] == list(range(12))
    pid_seen.clear()
    final = value(pc, pid)
    assert final == value(pc2, pid)
    assert final[:12] == list(range(12))
    unchanged(pc, pid, final)
    assert pc.get_page_frags(pid)[0] == pc.get(pid).key


def test_get_of_an_older_key_in_a_conflict_loop_ends(open_store: Open) -> None:
    """Each Conflict is caused by a write of somebody else: going on with .current wins when nobody writes."""
    mine, other = open_store(), open_store()
    pid, key = mine.allocate([0])
    conflicts = 0
    for i in range(200):
        if i % 3 == 0:
            other.append(pid, [1])
        try:
            key = mine.link(pid, key, [0])
        except mmpc.Conflict as lost:
            conflicts += 1
            key = mine.link(pid, lost.current, lost.rejected)
    assert conflicts == len(range(0, 200, 3))
    assert len(value(mine, pid)) == 1 + 200 + conflicts


# ---- free and reuse


def test_a_freed_page_reads_as_free_with_a_key(store: Store) -> None:
    pid, key = store.allocate([0])
    free = store.free(pid, key)
    assert store.get(pid) == mmpc.Free(free)
    assert store.get(pid).is_free()
    with pytest.raises(ValueError, match="boo"):
        store.get(pid).expect("boo")


def test_a_freed_id_is_used_again_and_starts_empty(store: Store) -> None:
    pids = [store.allocate([i])[0] for i in range(8)]
    for pid in pids:
        store.append(pid, [99])
        store.free(pid, store.get(pid).key)
    again = [store.allocate([100 + i])[0] for i in range(8)]
    assert len(set(again)) == 8
    assert set(again) & set(pids)
    for i, pid in enumerate(again):
        unchanged(store, pid, [100 + i])


def test_free_and_allocate_for_ever_use_few_ids(store: Store) -> None:
    highest = 0
    for i in range(20_000):
        pid, key = store.allocate([i])
        highest = max(highest, pid)
        assert value(store, pid) == [i]
        store.free(pid, key)
    assert highest < 1000


def test_double_free_is_an_error_in_the_caller_that_made_it(open_store: Open) -> None:
    """Seed defect 2: a double free panicked later, in an unrelated thread."""
    mine, other = open_store(), open_store()
    pid, key = mine.allocate([0])
    free = mine.free(pid, key)
    for handle in (mine, other):
        with pytest.raises((mmpc.Conflict, mmpc.PageFreed)):
            handle.free(pid, key)
        with pytest.raises(mmpc.PageFreed):
            handle.free(pid, free)
    ids = [other.allocate([i])[0] for i in range(50)]
    assert len(set(ids)) == 50


def test_a_free_that_lost_gives_the_id_to_nobody(store: Store) -> None:
    """Seed defect 1: the id went to the free list although the CAS failed, and had two owners later."""
    pid, key = store.allocate([0])
    store.append(pid, [1])
    with pytest.raises(mmpc.Conflict):
        store.free(pid, key)
    ids = [store.allocate([9])[0] for _ in range(200)]
    assert pid not in ids
    unchanged(store, pid, [0, 1])


def test_replace_does_not_bring_a_freed_page_back(store: Store) -> None:
    """Seed section 6: replace un-freed a page whose id was already on the free list."""
    pid, key = store.allocate([0])
    free = store.free(pid, key)
    with pytest.raises(mmpc.PageFreed):
        store.replace(pid, free, [1])
    owners = [store.allocate([i])[0] for i in range(5)]
    assert len(set(owners)) == 5


# ---- the rest of section 22


def test_fragments_after_get_and_link_are_not_doubled(store: Store) -> None:
    """Seed defect 4: a merged entry in mid-chain gave the page's data twice, and consolidation wrote that down."""
    pid, _key = store.allocate([0])
    for i in range(1, 6):
        store.link(pid, store.get(pid).key, [i])
        flat = [x for fragment in store.get_page_frags(pid)[1] for x in fragment]
        assert flat == list(range(i + 1))
    store._consolidate(pid)
    assert store.get_page_frags(pid)[1] == [[0, 1, 2, 3, 4, 5]]
    unchanged(store, pid, [0, 1, 2, 3, 4, 5])


def test_a_writer_that_chains_its_keys_keeps_the_chain_bounded(store: Store) -> None:
    """Seed defect 6: consolidation happened on reads only."""
    pid, key = store.allocate([0])
    deepest = 0
    for i in range(1, 1500):
        key = store.link(pid, key, [i])
        deepest = max(deepest, depth(store, pid))
    assert deepest <= 8 * THRESHOLD
    unchanged(store, pid, list(range(1500)))


def test_a_write_that_won_is_never_reported_as_failed(open_store: Open) -> None:
    """Seed defect 7: an error after a successful CAS (of a consolidation, say) was reported by the writer's verb."""
    moody = Moody()
    pc = open_store(moody)
    pid, _key = pc.allocate([0])
    moody.error = ArithmeticError("merge is out of order")
    applied = 1
    for i in range(1, 300):
        before = pc.get_page_rts(pid)  # touches nothing
        assert before == 0
        try:
            pc.append(pid, [i])
        except ArithmeticError:
            break
        applied += 1
    moody.error = None
    unchanged(pc, pid, list(range(applied)))


# ---- many handles, one model


@pytest.mark.parametrize("store", ["Append", "Tally"], indirect=True)
def test_random_verbs_agree_with_a_dict(open_store: Open, store: Store, seed: int) -> None:
    """Three handles, reopened now and then, against a plain dict of lists."""
    rng = random.Random(seed)
    make = type(store._materializer)
    handles = [store, open_store(make()), open_store(make(), cache_capacity=2000)]
    model: dict[int, list[int]] = {}
    keys: dict[int, mmpc.PagePtr] = {}
    freed: dict[int, mmpc.PagePtr] = {}
    for step in range(1500):
        at = rng.randrange(3)
        pc = handles[at]
        action = rng.choices(
            [
                "allocate",
                "append",
                "link",
                "replace",
                "free",
                "get",
                "frags",
                "update",
                "many",
                "stale",
                "reopen",
            ],
            [6, 12, 12, 5, 4, 12, 6, 5, 4, 5, 1],
        )[0]
        pid = rng.choice(list(model)) if model else 0
        if action == "allocate" or not model:
            pid, keys[pid] = pc.allocate([step])
            assert pid not in model
            model[pid] = [step]
            freed.pop(pid, None)
        elif action == "append":
            keys[pid] = pc.append(pid, [step])
            model[pid].append(step)
        elif action == "link":
            keys[pid] = pc.link(pid, keys[pid], [step])
            model[pid].append(step)
        elif action == "replace":
            keys[pid] = pc.replace(pid, keys[pid], [step])
            model[pid] = [step]
        elif action == "free":
            freed[pid] = pc.free(pid, keys.pop(pid))
            del model[pid]
        elif action == "get":
            assert pc.get(pid) == mmpc.Materialized(model[pid], keys[pid])
            for other in freed:
                assert pc.get(other).is_free()
        elif action == "frags":
            key, fragments = pc.get_page_frags(pid)
            assert (key, [x for f in fragments for x in f]) == (keys[pid], model[pid])
        elif action == "update":
            keys[pid] = pc.update(pid, lambda v, s=step: [*v[-2:], s])  # type: ignore[misc]
            model[pid] = [*model[pid][-2:], step]
        elif action == "many":
            chosen = rng.choices(list(model), k=5)
            for key in pc.append_many([(p, [step]) for p in chosen]):
                keys[key.pid] = key
                model[key.pid].append(step)
            assert [p.unwrap() for p in pc.get_many(chosen)] == [model[p] for p in chosen]
        elif action == "stale":
            old = keys[pid]
            keys[pid] = handles[at - 1].append(pid, [step])
            model[pid].append(step)
            with pytest.raises(mmpc.Conflict) as caught:
                rng.choice([pc.link, pc.replace])(pid, old, [0])
            assert caught.value.current == keys[pid]
        else:
            pc.close()
            handles[at] = open_store(make(), cache_capacity=rng.choice([0, 2000, 1 << 20]))
    for pc in handles:
        pc._drop()
        assert {pid: value(pc, pid) for pid in model} == model


@pytest.mark.parametrize("other", ["cffi" if os.environ.get("MMPC_FACE") != "cffi" else ""])
@pytest.mark.skipif(bool(os.environ.get("MMPC_OTHER_FACE")), reason="is the run under the other face")
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="one face only")
def test_the_other_face_passes_the_same_tests(children: Children, other: str) -> None:
    """This file, and those on Tx and reading, in an interpreter that uses the other face."""
    here = Path(__file__).parent
    files = [str(here / name) for name in ("test_pagecache.py", "test_tx.py", "test_reading.py")]
    environment = {**os.environ, "MMPC_FACE": other, "MMPC_OTHER_FACE": "1"}
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        cwd=here.parent,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
