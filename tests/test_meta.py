"""Page 0: named collections; pages 0 and 1 belong to the store; read timestamps."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

import mmpc
from mmpc._native import ffi, lib
from support.children import Children
from support.looks import depth
from support.mergers import MAKE
from support.ruins import kept

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]


def wts(pc: Store) -> int:
    page = pc.get(0)
    assert isinstance(page, mmpc.Meta)
    return page.key.wts


def put(pc: Store, pid: int, value: Any) -> None:
    """What only a program in error would write."""
    page, r, payload = pc.get(pid), ffi.new("mm_result *"), msgpack.packb(value)
    assert isinstance(page, (mmpc.Meta, mmpc.Counter))
    k = ffi.new("mm_key *", {"pid": pid, "wts": page.key.wts})
    assert lib.mm_replace_reserved(pc._attachment.mm, k, payload, len(payload), 0, r) == 0


# ---- collections


def test_a_new_store_has_no_collections(store: Store) -> None:
    assert store.meta() == {}
    assert store.get(0).value == {}
    assert store.get(1).value == 0


def test_a_root_is_added_changed_and_removed(store: Store) -> None:
    a, _ = store.allocate([0])
    b, _ = store.allocate([1])
    assert store.cas_root_in_meta("things", None, a) is None
    assert store.meta_pid_for_name("things") == a
    store.cas_root_in_meta("things", a, b)
    assert store.meta() == {"things": b}
    store.cas_root_in_meta("things", b, None)
    assert store.meta() == {}


def test_another_root_than_expected_is_a_conflict_that_tells_it(store: Store) -> None:
    store.cas_root_in_meta("a", None, 7)
    for old, new in ((None, 8), (6, 8), (6, None)):
        with pytest.raises(mmpc.Conflict) as caught:
            store.cas_root_in_meta("a", old, new)
        assert (caught.value.current, caught.value.rejected) == (7, new)
    with pytest.raises(mmpc.Conflict) as caught:
        store.cas_root_in_meta("b", 7, 8)
    assert caught.value.current is None
    assert "'b'" in str(caught.value)
    assert store.meta() == {"a": 7}


def test_a_root_that_stays_as_it_is_writes_nothing(store: Store) -> None:
    store.cas_root_in_meta("a", None, 7)
    before = wts(store)
    store.cas_root_in_meta("a", 7, 7)
    store.cas_root_in_meta("none", None, None)
    assert wts(store) == before
    assert store.meta() == {"a": 7}


def test_an_unknown_name_is_not_found(store: Store) -> None:
    with pytest.raises(mmpc.CollectionNotFound, match="'nobody'"):
        store.meta_pid_for_name("nobody")


def test_meta_is_the_callers_own(store: Store) -> None:
    store.cas_root_in_meta("a", None, 7)
    store.meta()["b"] = 8
    assert store.meta() == {"a": 7}


@pytest.mark.parametrize("name", ["", "ü\0", "x" * 10000])
def test_any_string_is_a_name(store: Store, name: str) -> None:
    store.cas_root_in_meta(name, None, 7)
    assert store.meta_pid_for_name(name) == 7
    assert mmpc.verify(store.path).ok


@pytest.mark.parametrize("name", [b"a", None, 1])
def test_nothing_else_is(store: Store, name: Any) -> None:
    for use in (store.meta_pid_for_name, lambda n: store.cas_root_in_meta(n, None, 7)):
        with pytest.raises(TypeError, match="name of a collection"):
            use(name)


@pytest.mark.parametrize(
    ("wrong", "error"), [(-1, ValueError), (2**40, ValueError), ("2", TypeError), (True, TypeError)]
)
def test_a_root_is_a_page_id(store: Store, wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        store.cas_root_in_meta("a", None, wrong)
    with pytest.raises(error):
        store.cas_root_in_meta("a", wrong, 5)
    assert store.meta() == {}


def test_more_names_than_fit_a_segment_are_kept_as_any_large_page(open_store: Open, path: str) -> None:
    store = open_store(segment_size=1 << 16)
    names = {f"{i}" + "x" * 1500: i for i in range(60)}
    for name, root in names.items():
        store.cas_root_in_meta(name, None, root)
    assert store.meta() == names
    assert store.meta_pid_for_name("7" + "x" * 1500) == 7
    assert mmpc.verify(path).damage == []
    store.backup(path + ".copy")
    assert mmpc.verify(path + ".copy").damage == []
    assert mmpc.salvage(path + ".copy", path + ".saved").ok
    with mmpc.open(path + ".saved", mmpc.Append()) as saved:
        assert saved.meta() == names


def test_page_0_is_one_record(store: Store) -> None:
    for i in range(40):
        store.cas_root_in_meta(f"n{i}", None, i)
    assert depth(store, 0) == 1
    assert len(store.meta()) == 40


@pytest.mark.parametrize("merger", sorted(MAKE))
def test_page_0_is_nothing_to_the_materializer(open_store: Open, merger: str) -> None:
    store = open_store(MAKE[merger]())
    store.cas_root_in_meta("a", None, 7)
    store.cas_root_in_meta("b", None, 8)
    assert store.meta() == {"a": 7, "b": 8}
    assert store.generate_id() == 2_000_000


def test_in_a_tx(store: Store) -> None:
    with store.begin() as tx:
        store.cas_root_in_meta("a", None, 7, tx=tx)
        assert store.meta(tx) == {"a": 7}
        assert store.meta_pid_for_name("a", tx) == 7
    for use in (lambda: store.meta(tx), lambda: store.meta_pid_for_name("a", tx)):
        with pytest.raises(mmpc.Closed):
            use()
    with pytest.raises(mmpc.Closed):
        store.cas_root_in_meta("b", None, 7, tx=tx)


def test_read_only_reads(open_store: Open) -> None:
    open_store().cas_root_in_meta("a", None, 7)
    reader = open_store(read_only=True)
    assert reader.meta() == {"a": 7}
    assert reader.meta_pid_for_name("a") == 7
    with pytest.raises(mmpc.Unsupported, match="read_only"):
        reader.cas_root_in_meta("a", 7, 8)


def test_processes_contend_for_one_name(store: Store, children: Children) -> None:
    """A counter made of compare-and-swaps: none is lost, none counts twice."""

    def count() -> list[int]:
        won = []
        while len(won) < 150:
            seen = store.meta().get("n")
            try:
                store.cas_root_in_meta("n", seen, (seen or 0) + 1)
            except mmpc.Conflict as e:
                assert e.current != seen
            else:
                won.append((seen or 0) + 1)
        return won

    found = children.map(count, [()] * 4)
    assert sorted(n for won in found for n in won) == list(range(1, 601))
    assert store.meta() == {"n": 600}


def test_names_of_others_are_no_conflict(store: Store, children: Children, seed: int) -> None:
    """Each process has names of its own on the one page; nobody loses any, nobody sees a Conflict."""

    def own(mine: int) -> dict[str, int]:
        rng, model = random.Random(seed + mine), dict[str, int]()
        for _ in range(150):
            name = f"{mine}-{rng.randrange(8)}"
            new = rng.choice((None, rng.randrange(2**40)))
            store.cas_root_in_meta(name, model.get(name), new)
            if new is None:
                model.pop(name, None)
            else:
                model[name] = new
            assert {k: v for k, v in store.meta().items() if k.startswith(f"{mine}-")} == model
        return model

    found = children.map(own, [(i,) for i in range(4)])
    assert store.meta() == {k: v for model in found for k, v in model.items()}
    assert mmpc.verify(store.path).ok


def test_collections_come_back_as_flushed(path: str, children: Children) -> None:
    def work() -> None:
        os.environ["MMPC_BOOT_ID"] = "a"
        kept.append(pc := mmpc.open(path, mmpc.Append(), create=True))
        pc.cas_root_in_meta("a", None, 7)
        pc.cas_root_in_meta("b", None, 8)
        pc.flush()
        pc.cas_root_in_meta("a", 7, 9)

    def look() -> dict[str, int]:
        os.environ["MMPC_BOOT_ID"] = "b"
        kept.append(pc := mmpc.open(path, mmpc.Append()))
        return pc.meta()

    children.run(work)
    assert children.run(look) == {"a": 7, "b": 8}


def test_collections_come_along_in_backup_and_salvage(path: str, tmp_path: Any) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pc.cas_root_in_meta("a", None, 7)
        pc.backup(tmp_path / "copy")
    mmpc.salvage(path, tmp_path / "saved")
    for name in ("copy", "saved"):
        with mmpc.open(tmp_path / name, mmpc.Append()) as pc:
            assert pc.meta() == {"a": 7}


@pytest.mark.parametrize("value", [[1], {"a": -1}, {1: 2}, {"a": "b"}, None, {"a": 2**40}])
def test_page_0_that_holds_something_else_is_damage(path: str, value: Any) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        put(pc, 0, value)
        with pytest.raises(mmpc.CorruptionError, match="page 0"):
            pc.meta()
        assert [p.page for p in mmpc.verify(path).damage] == [0]


@pytest.mark.parametrize("value", [[1], -1, "x", 2**62 + 1, 1.0, None])
def test_page_1_that_holds_something_else_is_damage(path: str, value: Any) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        put(pc, 1, value)
        with pytest.raises(mmpc.CorruptionError, match="page 1"):
            pc.generate_id()
        assert [p.page for p in mmpc.verify(path).damage] == [1]


# ---- pages 0 and 1

VERBS: dict[str, Callable[[Store, int, mmpc.PagePtr], Any]] = {
    "append": lambda pc, pid, _key: pc.append(pid, [1]),
    "append_many": lambda pc, pid, _key: pc.append_many([(pid, [1])]),
    "link": lambda pc, pid, key: pc.link(pid, key, [1]),
    "replace": lambda pc, pid, key: pc.replace(pid, key, [1]),
    "free": lambda pc, pid, key: pc.free(pid, key),
    "update": lambda pc, pid, _key: pc.update(pid, lambda value: value),
    "get_page_frags": lambda pc, pid, _key: pc.get_page_frags(pid),
    "view": lambda pc, pid, _key: pc.view(pid),
    "_consolidate": lambda pc, pid, _key: pc._consolidate(pid),
}


@pytest.mark.parametrize("pid", [0, 1])
@pytest.mark.parametrize("verb", VERBS)
def test_pages_0_and_1_are_the_stores(store: Store, verb: str, pid: int) -> None:
    store.generate_id()
    store.cas_root_in_meta("a", None, 7)
    before = store.get(pid)
    with pytest.raises(mmpc.Unsupported, match=f"page {pid} belongs to the store"):
        VERBS[verb](store, pid, before.key)
    assert store.get(pid) == before


@pytest.mark.parametrize("pid", [0, 1])
def test_pages_0_and_1_can_be_read_moved_and_stamped(store: Store, pid: int) -> None:
    before = store.get(pid)
    store.rewrite(pid)
    assert store.get(pid) == before
    assert store.get_many([pid]) == [before]
    store.bump_page_rts(pid, 5)
    assert store.get_page_rts(pid) == 5


def test_the_first_page_of_a_user_is_2(store: Store) -> None:
    assert store.allocate([0])[0] == 2


# ---- read timestamps


def test_a_read_timestamp_only_rises(store: Store) -> None:
    pid, key = store.allocate([0])
    assert store.get_page_rts(pid) == 0
    with store.begin() as old, store.begin() as new:
        store.bump_page_rts(pid, new.ts, tx=new)
        store.bump_page_rts(pid, old.ts, tx=old)
        assert store.get_page_rts(pid) == new.ts
    store.free(pid, key)
    assert store.get_page_rts(pid) == new.ts  # it is the id's, and stays with it


def test_read_timestamps_of_a_page_that_never_was(store: Store) -> None:
    assert store.bump_page_rts(10**6, 5) is None
    assert store.get_page_rts(10**6) is None


def test_read_timestamps_are_those_of_all_processes(store: Store, children: Children) -> None:
    pid, _ = store.allocate([0])

    def bump() -> int:
        for _ in range(300):
            with store.begin() as tx:
                store.bump_page_rts(pid, tx.ts, tx=tx)
        return tx.ts

    assert max(children.map(bump, [()] * 3)) == store.get_page_rts(pid)


def test_a_read_timestamp_is_0_after_a_recovery_and_later_ones_are_above_all_that_were(
    path: str, children: Children
) -> None:
    """So the timestamps that a program has put into its pages stay in the past."""

    def bumped(boot: str) -> tuple[int | None, int]:
        os.environ["MMPC_BOOT_ID"] = boot
        kept.append(pc := mmpc.open(path, mmpc.Append(), create=True))
        pid = pc.meta().get("p") or pc.allocate([0])[0]
        pc.cas_root_in_meta("p", pc.meta().get("p"), pid)
        pc.flush()
        with pc.begin() as tx:
            found = pc.get_page_rts(pid)
            pc.bump_page_rts(pid, tx.ts)
            return found, tx.ts

    first, second = children.run(bumped, "a"), children.run(bumped, "b")
    assert (first[0], second[0]) == (0, 0)
    assert second[1] > first[1]
