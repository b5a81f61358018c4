"""Tx: timestamps, ends, and the pin that keeps freed ids from their next owner."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from support.children import Children, Gate

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]


def use_of(pc: Store, pid: int, tx: mmpc.Tx) -> list[Callable[[], Any]]:
    """Every verb, given this tx."""
    key = pc.get(pid).key
    return [
        lambda: pc.get(pid, tx=tx),
        lambda: pc.get(pid, tx),
        lambda: pc.get_many([pid], tx=tx),
        lambda: pc.get_page_frags(pid, tx=tx),
        lambda: pc.append(pid, [1], tx=tx),
        lambda: pc.append_many([(pid, [1])], tx=tx),
        lambda: pc.update(pid, lambda v: v, tx=tx),
        lambda: pc.link(pid, pc.get(pid).key, [1], tx=tx),
        lambda: pc.replace(pid, pc.get(pid).key, [1], tx=tx),
        lambda: pc.get_page_rts(pid, tx=tx),
        lambda: pc.bump_page_rts(pid, 1, tx=tx),
        lambda: pc.allocate([1], tx=tx),
        lambda: pc.free(pid, key if pc.get(pid).key == key else pc.get(pid).key, tx=tx),
    ]


def allocated(pc: Store, count: int) -> set[int]:
    return {pc.allocate([0])[0] for _ in range(count)}


def test_every_verb_takes_a_tx(store: Store) -> None:
    pid, _ = store.allocate([0])
    with store.begin() as tx:
        for verb in use_of(store, pid, tx):
            verb()
    assert store.get(pid).is_free()


def test_timestamps_rise_and_are_unique_over_handles(open_store: Open) -> None:
    handles = [open_store(), open_store()]
    stamps = []
    for i in range(100):
        with handles[i % 2].begin() as tx:
            stamps.append(tx.ts)
    assert stamps == sorted(set(stamps))


def test_timestamps_are_unique_over_processes(store: Store, children: Children) -> None:
    def take() -> list[int]:
        found = []
        for _ in range(500):
            with store.begin() as tx:
                found.append(tx.ts)
        return found

    found = children.map(take, [()] * 4)
    assert all(stamps == sorted(stamps) for stamps in found)
    assert len(set().union(*found)) == 2000


def test_an_ended_tx_is_closed_for_every_verb(store: Store) -> None:
    pid, _ = store.allocate([0])
    with store.begin() as tx:
        pass
    for verb in use_of(store, pid, tx):
        with pytest.raises(mmpc.Closed):
            verb()
    with pytest.raises(mmpc.Closed), tx:
        pass
    assert store.get(pid).unwrap() == [0]


def test_a_tx_of_another_handle_is_refused_by_every_verb(open_store: Open) -> None:
    mine, other = open_store(), open_store()
    pid, _ = mine.allocate([0])
    with other.begin() as tx:
        for verb in use_of(mine, pid, tx):
            with pytest.raises((mmpc.Closed, ValueError)):
                verb()
    assert mine.get(pid).unwrap() == [0]


def test_a_tx_that_outlives_its_handle_holds_and_is_refused(open_store: Open, path: str) -> None:
    pc = open_store()
    pid, _ = pc.allocate([0])
    tx = pc.begin()
    pc.close()
    another = open_store()
    for handle, said in ((pc, "this handle is closed"), (another, "another handle")):
        for verb in use_of(another, pid, tx) if handle is another else [lambda: pc.get(pid, tx), lambda: pc.begin()]:
            with pytest.raises(mmpc.Closed, match=said):
                verb()
    assert [reader.pins for reader in mmpc.readers(path)] == [1, 0]
    tx.close()
    tx.close()
    with pytest.raises(mmpc.Closed, match="this Tx has ended"), tx:
        pass
    assert [reader.pins for reader in mmpc.readers(path)] == [0]
    assert another.get(pid).unwrap() == [0]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_tx_is_not_copied(store: Store, copied: Callable[[mmpc.Tx], Any]) -> None:
    """A copy had the pin of its original, and took it away when it was forgotten."""
    with store.begin() as tx:
        with pytest.raises(TypeError, match="a Tx is not copied or pickled"):
            copied(tx)
        gc.collect()
        assert store.stats().readers[0].pins == 1


def test_ending_a_tx_twice_is_harmless_to_others(store: Store) -> None:
    a = store.begin()
    a.close()
    b = store.begin()
    a.close()
    a.close()
    pid, key = store.allocate([0])
    store.free(pid, key)
    assert pid not in allocated(store, 200)
    b.close()


def test_a_tx_ends_when_an_exception_leaves_the_block(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.begin() as tx:
        raise ZeroDivisionError
    with pytest.raises(mmpc.Closed):
        store.get(2, tx=tx)


def test_a_tx_ends_when_it_is_forgotten(store: Store) -> None:
    pid, key = store.allocate([0])
    store.begin()
    gc.collect()
    store.free(pid, key)
    assert pid in allocated(store, 500)


def test_a_tx_may_be_ended_by_another_thread(store: Store) -> None:
    tx = store.begin()
    thread = threading.Thread(target=tx.close)
    thread.start()
    thread.join()
    with pytest.raises(mmpc.Closed):
        store.get(2, tx=tx)


def test_many_tx_at_once(store: Store) -> None:
    """As many as a program wants, or a clear error; all are gone afterwards and verbs go on."""
    pid, _ = store.allocate([0])
    open_tx = []
    try:
        for _ in range(300):
            open_tx.append(store.begin())
    except mmpc.MmpcError:
        pass
    assert len(open_tx) > 16
    store.append(pid, [1])
    assert store.get(pid).unwrap() == [0, 1]
    for tx in open_tx:
        tx.close()
    store.free(pid, store.get(pid).key)
    assert pid in allocated(store, 500)


def test_an_id_freed_under_a_tx_is_not_used_before_it_ends(store: Store) -> None:
    pid, key = store.allocate([0])
    with store.begin():
        store.free(pid, key)
        store.flush()
        assert pid not in allocated(store, 300)
        assert store.get(pid).is_free()
    assert pid in allocated(store, 500)


def test_an_id_freed_before_a_tx_may_be_used_under_it(store: Store) -> None:
    """A Tx holds back what was freed after it began; the rest goes round."""
    pid, key = store.allocate([0])
    store.free(pid, key)
    store.flush()
    with store.begin():
        assert pid in allocated(store, 500)


def test_a_tx_of_another_process_keeps_freed_ids(store: Store, children: Children) -> None:
    pid, key = store.allocate([0])
    begun, end = Gate(), Gate()

    def hold() -> bool:
        with store.begin():
            begun.open()
            end.wait()
            return store.get(pid).is_free()

    holder = children.start(hold)
    begun.wait()
    store.free(pid, key)
    store.flush()
    assert pid not in allocated(store, 300)
    end.open()
    assert holder.result() is True
    assert pid in allocated(store, 500)


def test_a_killed_process_with_a_tx_keeps_nothing(store: Store, children: Children) -> None:
    pid, key = store.allocate([0])
    begun = Gate()

    def hold() -> None:
        with store.begin():
            begun.open()
            threading.Event().wait()

    holder = children.start(hold)
    begun.wait()
    store.free(pid, key)
    holder.kill()
    assert pid in allocated(store, 2000)


def test_an_open_tx_delays_no_operation_of_others(store: Store, children: Children) -> None:
    pid, _ = store.allocate([0])

    def write() -> int:
        for i in range(500):
            store.append(pid, [i])
        store.flush()
        return len(store.get(pid).unwrap())

    with store.begin():
        assert children.run(write) == 501
        assert len(store.get(pid).unwrap()) == 501
