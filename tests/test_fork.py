"""Fork: with a Tx open, with threads inside, behind Python's back; closed handles and what a child inherits of them."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from support.children import Children
from support.looks import live

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]


def closed_among(descriptors: list[int]) -> list[int]:
    found = []
    for fd in descriptors:
        try:
            os.fstat(fd)
        except OSError:
            found.append(fd)
    return found


def test_a_forked_child_uses_the_inherited_handle(store: Store, children: Children) -> None:
    pid, key = store.allocate([0])
    store.get(pid)

    def child() -> Any:
        store.append(pid, [1])
        store.link(pid, store.get(pid).key, [2])
        with store.begin() as tx:
            return store.get(pid, tx=tx).unwrap(), live(store)

    assert children.run(child) == ([0, 1, 2], 2)
    assert live(store) == 1
    assert store.get(pid).unwrap() == [0, 1, 2]
    with pytest.raises(mmpc.Conflict):
        store.link(pid, key, [3])


FIRST: dict[str, Callable[[Store, int, mmpc.PagePtr], Any]] = {
    "get": lambda pc, pid, key: pc.get(pid),
    "get of no page": lambda pc, pid, key: pc.get(1 << 60),
    "get_many": lambda pc, pid, key: pc.get_many([pid]),
    "get_page_frags": lambda pc, pid, key: pc.get_page_frags(pid),
    "append": lambda pc, pid, key: pc.append(pid, [1]),
    "append_many": lambda pc, pid, key: pc.append_many([(pid, [1])]),
    "link": lambda pc, pid, key: pc.link(pid, key, [1]),
    "replace": lambda pc, pid, key: pc.replace(pid, key, [1]),
    "free": lambda pc, pid, key: pc.free(pid, key),
    "allocate": lambda pc, pid, key: pc.allocate([1]),
    "update": lambda pc, pid, key: pc.update(pid, lambda v: v),
    "begin": lambda pc, pid, key: pc.begin().close(),
    "rts": lambda pc, pid, key: (pc.bump_page_rts(pid, 3), pc.get_page_rts(pid)),
    "flush": lambda pc, pid, key: pc.flush(),
    "make_stable": lambda pc, pid, key: pc.make_stable(key.last_lsn),
    "stable_lsn": lambda pc, pid, key: pc.stable_lsn,
    "stats": lambda pc, pid, key: pc.stats(),
    "check": lambda pc, pid, key: pc._check(),
    "consolidate": lambda pc, pid, key: pc._consolidate(pid),
    "close": lambda pc, pid, key: pc.close(),
    "with": lambda pc, pid, key: pc.__enter__(),
}


@pytest.mark.parametrize("verb", FIRST.values(), ids=FIRST)
def test_any_verb_may_be_the_first_in_a_child(store: Store, children: Children, verb: Any) -> None:
    pid, key = store.allocate([0])
    children.run(verb_of(verb, store, pid, key))
    store.append(2 if store.get(pid).is_free() is False else store.allocate([0])[0], [5])


def verb_of(verb: Any, pc: Store, pid: int, key: mmpc.PagePtr) -> Callable[[], None]:
    def run() -> None:
        verb(pc, pid, key)

    return run


@pytest.mark.parametrize("verb", FIRST.values(), ids=FIRST)
def test_a_raw_c_fork_is_noticed_by_any_verb(store: Store, verb: Any) -> None:
    """Without Python's fork hooks: the child attaches by itself, and the parent is unaffected."""
    pid, key = store.allocate([0])
    store.get(pid)
    fork = ctypes.PyDLL(None).fork
    child = fork()
    if not child:
        status = 1
        try:
            verb(store, pid, key)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    if store.get(pid).is_materialized():
        store.append(pid, [7])
        assert store.get(pid).unwrap()[-1] == 7


def test_a_fork_by_a_system_call_is_noticed(store: Store) -> None:
    """Not even the C library's fork handlers run; the child's writes and the parent's do not mix."""
    pid, _ = store.allocate([])
    libc = ctypes.PyDLL(None)
    for _ in range(5):
        child = libc.syscall(56 if os.uname().machine == "x86_64" else 220, signal.SIGCHLD, 0, 0, 0, 0)
        if not child:
            status = 1
            try:
                for _ in range(300):
                    store.append(pid, [1])
                status = 0
            finally:
                os._exit(status)
        for _ in range(300):
            store.append(pid, [2])
        assert os.waitpid(child, 0)[1] == 0
    value = store.get(pid).unwrap()
    assert (value.count(1), value.count(2)) == (1500, 1500)


def test_a_tx_open_at_the_fork_is_closed_in_the_child_and_open_in_the_parent(
    store: Store, children: Children
) -> None:
    pid, key = store.allocate([0])
    with store.begin() as tx:

        def child() -> Any:
            for verb in (lambda: store.get(pid, tx=tx), lambda: store.append(pid, [1], tx=tx), tx.__enter__):
                with pytest.raises(mmpc.Closed):
                    verb()
            store.get(pid)
            with pytest.raises(mmpc.Closed):
                store.get(pid, tx=tx)
            tx.close()
            with store.begin() as mine:
                return store.get(pid, tx=mine).unwrap()

        assert children.run(child) == [0]
        store.free(pid, key, tx=tx)
        store.flush()
        assert pid not in {store.allocate([1])[0] for _ in range(200)}
        assert store.get(pid, tx=tx).is_free()
    assert pid in {store.allocate([1])[0] for _ in range(500)}


def test_fork_while_other_threads_are_inside_operations(store: Store, children: Children) -> None:
    pid, _ = store.allocate([])
    stop = threading.Event()
    counts = [0, 0, 0]

    def work(number: int) -> None:
        while not stop.is_set():
            store.append(pid, [number])
            counts[number] += 1
            store._drop(pid)
            store.get(pid)
            if counts[number] % 40 == 0:
                store.flush()
            if counts[number] > 1500:
                break

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()

    def child() -> int:
        for _ in range(3):
            store.append(pid, [9])
            store.get(pid)
        with store.begin():
            store.flush()
        return 3

    nines = sum(children.run(child, patience=20) for _ in range(40))
    stop.set()
    for thread in threads:
        thread.join()
    value = store.get(pid).unwrap()
    assert [value.count(i) for i in (0, 1, 2, 9)] == [*counts, nines]
    assert live(store) == 1


def test_a_child_of_a_child_of_a_child(store: Store, children: Children) -> None:
    pid, _ = store.allocate([])

    def descend(levels: int) -> int:
        store.append(pid, [levels])
        if levels:
            with Children() as below:
                below.run(descend, levels - 1)
        store.append(pid, [-levels])
        return levels

    children.run(descend, 5)
    assert store.get(pid).unwrap() == [5, 4, 3, 2, 1, 0, 0, -1, -2, -3, -4, -5]


def test_a_child_that_closes_the_handle_leaves_the_parents_alone(store: Store, children: Children) -> None:
    pid, _ = store.allocate([0])

    def child() -> None:
        store.close()
        with pytest.raises(mmpc.Closed):
            store.get(pid)

    children.run(child)
    store.append(pid, [1])
    assert store.get(pid).unwrap() == [0, 1]


@pytest.mark.parametrize("used", [False, True])
def test_the_death_of_a_parent_is_seen_although_its_child_lives(
    path: str, children: Children, used: bool
) -> None:
    """The child holds no lock in its parent's name: a Tx of a killed parent keeps nothing."""
    r, w = os.pipe()

    def parent() -> None:
        pc = mmpc.open(path, mmpc.Append())
        kept = pc.begin()
        ids = [pc.allocate([0]) for _ in range(300)]
        for pid, key in ids:
            pc.free(pid, key)
        if not os.fork():
            if used:
                pc.get(2)
            os.write(w, b"x")
            time.sleep(5)
            os._exit(0)
        signal.pause()
        kept.close()

    with mmpc.open(path, mmpc.Append(), create=True) as watcher:
        middle = children.start(parent)
        os.close(w)
        assert os.read(r, 1) == b"x", middle.result()
        middle.kill()
        assert {watcher.allocate([1])[0] for _ in range(1000)} & set(range(2, 302))
        watcher._check()
    os.close(r)


def test_a_closed_handle_closes_no_descriptor_of_a_child(path: str, children: Children) -> None:
    """The numbers of the descriptors that it gave up belong to others by the time the child forgets the handle."""
    pc: Any = mmpc.open(path, mmpc.Append(), create=True)
    pc.close()
    descriptors = [fd for _ in range(12) for fd in os.pipe()]
    holder = [pc]
    del pc

    def child() -> list[int]:
        holder.clear()
        gc.collect()
        return closed_among(descriptors)

    assert children.run(child) == []
    holder.clear()
    gc.collect()
    assert closed_among(descriptors) == []
    for fd in descriptors:
        os.close(fd)


def test_an_open_handle_forgotten_in_a_child_closes_only_its_own(path: str, children: Children) -> None:
    pc: Any = mmpc.open(path, mmpc.Append(), create=True)
    holder = [pc]
    del pc

    def child() -> list[int]:
        descriptors = [fd for _ in range(12) for fd in os.pipe()]
        holder.clear()
        gc.collect()
        return closed_among(descriptors)

    assert children.run(child) == []
    assert holder.pop().get(0).value == {}


GARBAGE = """
import gc, mmpc, os
gc.disable()
class Node: pass
for first in (0, 1):
    for shut in (0, 1):
        for fork in (0, 1):
            pc = mmpc.open({path!r}, mmpc.Append(), create=True)
            pid, key = pc.allocate([0])
            node = Node()
            node.node = node
            if first: node.pc = pc
            node.tx = pc.begin()
            node.page = pc.get(pid)
            if not first: node.pc = pc
            if shut: pc.close()
            if fork and not os.fork():
                del pc, node, key
                gc.collect()
                os._exit(0)
            del pc, node, key
            gc.collect()
            if fork: assert os.wait()[1] == 0
print("done")
"""


def test_a_handle_and_its_tx_may_be_garbage_together(path: str) -> None:
    """The collector finalizes them in any order."""
    result = subprocess.run(
        [sys.executable, "-P", "-c", GARBAGE.format(path=path)], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_forking_in_a_merge(path: str, children: Children) -> None:
    """A child born inside a merge finishes the read for itself."""

    class Forking(mmpc.Materializer[Any]):
        name = "forking-1"
        statuses: list[int] = []

        def merge(self, fragments: Any) -> Any:
            if len(self.statuses) < 3:
                self.statuses.append(-1)
                child = os.fork()
                if child:
                    self.statuses[-1] = os.waitpid(child, 0)[1]
                else:
                    self.statuses += [0, 0, 0]
                    inside.append(True)
            return [x for f in fragments for x in f]

    inside: list[bool] = []
    with mmpc.open(path, Forking(), create=True) as pc:
        pid, _ = pc.allocate([0])
        for i in range(1, 14):
            pc.append(pid, [i])
        try:
            value = pc.get(pid).unwrap()
            good = value == list(range(14))
            if inside:
                pc.append(pid, [99])
                good = good and pc.get(pid).unwrap()[-1] == 99
        finally:
            if inside:
                os._exit(not good)
        assert good
        assert set(Forking.statuses) == {0}
        pc._check()
