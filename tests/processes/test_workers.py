"""Several processes in one store: pools of every start method, kills with exact accounts, ids, immediate visibility."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from support import work
from support.children import Child, Children, Gate
from support.looks import live
from support.mergers import Tally

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
pytestmark = pytest.mark.processes


# ---- handles in pools


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_works_on_a_pickled_handle(open_store: Open, method: str) -> None:
    pc = open_store(mmpc.Add())
    assert len(pickle.dumps(pc)) < 300
    pid, _ = pc.allocate(0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        workers = pool.starmap(work.add, [(pc, pid, 50)] * 8)
        assert os.getpid() not in workers
        assert pool.starmap(work.read, [(pc, pid)] * 4) == [400] * 4
        pool.close()
        pool.join()
    assert pc.get(pid).unwrap() == 400


def test_a_pickled_handle_keeps_its_options_and_materializer(open_store: Open) -> None:
    pc = open_store(Tally(), cache_capacity=12345, page_consolidation_threshold=3)
    pid, _ = pc.allocate([0])
    copy = pickle.loads(pickle.dumps(pc))
    assert copy._cache_info()[2] == 12345
    assert copy._options.threshold == 3
    assert copy.get(pid).unwrap() == [0]
    copy.close()
    assert len(pickle.dumps(pc)) < 300


def test_the_pickle_of_a_closed_handle_opens_the_store(open_store: Open) -> None:
    keeper, pc = open_store(), open_store()
    pid, _ = keeper.allocate([0])
    pc.close()
    with pickle.loads(pickle.dumps(pc)) as copy:
        assert copy.get(pid).unwrap() == [0]


def test_the_pickle_of_a_handle_to_a_removed_store_is_an_error(path: str) -> None:
    pc = mmpc.open(path, mmpc.Append(), create=True, temporary=True)
    data = pickle.dumps(pc)
    pc.close()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)
    assert not os.path.exists(path)


# ---- together on the same pages


@pytest.mark.parametrize("threshold", [1, 10])
def test_four_processes_count_exactly_on_one_page(
    open_store: Open, children: Children, threshold: int
) -> None:
    pc = open_store(mmpc.Add(), page_consolidation_threshold=threshold)
    pid, _ = pc.allocate(0)
    children.map(work.add, [(pc, pid, 5000)] * 4)
    assert pc.get(pid).unwrap() == 20_000


def test_update_loses_no_update_between_processes(open_store: Open, children: Children) -> None:
    pc = open_store(mmpc.LastWriteWins())
    pid, _ = pc.allocate(0)

    def count() -> None:
        for _ in range(500):
            pc.update(pid, lambda v: v + 1)

    children.map(count, [()] * 4)
    assert pc.get(pid).unwrap() == 2000


def test_one_link_of_many_with_the_same_key_wins(store: Store, children: Children) -> None:
    pid, key = store.allocate([])

    def race(number: int) -> int:
        wins, mine = 0, key
        for _ in range(300):
            try:
                mine = store.link(pid, mine, [number])
                wins += 1
            except mmpc.Conflict as lost:
                mine = lost.current
        return wins

    wins = children.map(race, [(i,) for i in range(4)])
    value = store.get(pid).unwrap()
    assert [value.count(i) for i in range(4)] == wins
    assert store.get(pid).key.wts == key.wts + sum(wins)


def test_a_value_is_seen_by_the_others_as_soon_as_the_verb_has_returned(
    store: Store, children: Children
) -> None:
    ping, _ = store.allocate([])
    pong, _ = store.allocate([])

    def answer() -> int:
        for i in range(400):
            while len(store.get(ping).unwrap()) <= i:
                pass
            store.append(pong, [i])
        return 400

    other = children.start(answer)
    for i in range(400):
        store.append(ping, [i])
        while len(store.get(pong).unwrap()) <= i:
            pass
    assert other.result() == 400


def test_what_a_pipe_announces_is_readable(store: Store, children: Children) -> None:
    """The strict form: a message sent after the append returned; the receiver's first get has it."""
    pid, _ = store.allocate([])
    r, w = os.pipe()

    def tell() -> None:
        for i in range(2000):
            store.append(pid, [i])
            os.write(w, struct.pack("<I", i))

    teller = children.start(tell)
    os.close(w)
    while data := os.read(r, 4):
        assert len(store.get(pid).unwrap()) > struct.unpack("<I", data)[0]
    os.close(r)
    teller.result()


def test_ids_are_unique_over_processes_that_allocate_and_free(store: Store, children: Children) -> None:
    kept = children.map(work.allocate, [(store, 600)] * 4)
    everything = [pid for ids in kept for pid in ids]
    assert len(set(everything)) == len(everything) == 1600
    for pid in everything:
        assert store.get(pid).is_materialized()


def test_random_verbs_on_own_pages_agree_with_dicts(open_store: Open, children: Children, seed: int) -> None:
    pc = open_store(page_consolidation_threshold=3, segment_size=1 << 16)
    pages = [[pc.allocate([0])[0] for _ in range(6)] for _ in range(4)]
    models = children.map(work.own_pages, [(pc, pids, seed + i, 500) for i, pids in enumerate(pages)])
    for model in models:
        for pid, expected in model.items():
            assert pc.get(pid).unwrap() == expected


def test_processes_free_each_others_pages_once(store: Store, children: Children) -> None:
    """Of many that free the same page with the same key one succeeds; the others get an error."""
    pages = [store.allocate([i]) for i in range(200)]

    def free_all(seed: int) -> list[int]:
        mine = []
        order = list(pages)
        random.Random(seed).shuffle(order)
        for pid, key in order:
            try:
                store.free(pid, key)
                mine.append(pid)
            except (mmpc.Conflict, mmpc.PageFreed):
                pass
        return mine

    freed = [pid for mine in children.map(free_all, [(i,) for i in range(4)]) for pid in mine]
    assert sorted(freed) == sorted(pid for pid, _ in pages)


# ---- kills


class Counting:
    """A worker that counts on a page and tells by a pipe how many appends have returned."""

    def __init__(self, children: Children, pc: Store, pid: int) -> None:
        r, w = os.pipe()

        def count() -> None:
            while True:
                pc.append(pid, 1)
                os.write(w, b".")

        self.child: Child = children.start(count)
        os.close(w)
        self.read = r
        os.set_blocking(r, False)
        self.returned = 0

    def drain(self) -> None:
        try:
            while part := os.read(self.read, 1 << 16):
                self.returned += len(part)
        except BlockingIOError:
            pass

    def kill(self) -> int:
        """Kills it; returns how many appends it had told of."""
        self.child.kill()
        self.drain()
        os.close(self.read)
        return self.returned


def test_killed_counters_lose_nothing_that_returned_and_count_nothing_twice(
    open_store: Open, children: Children, seed: int
) -> None:
    """returned <= value <= returned + one operation under way for each kill."""
    rng = random.Random(seed)
    pc = open_store(mmpc.Add())
    pid, _ = pc.allocate(0)
    workers = [Counting(children, pc, pid) for _ in range(4)]
    returned, kills = 0, 0
    end = time.monotonic() + 4
    while time.monotonic() < end:
        time.sleep(rng.random() * 0.02)
        at = rng.randrange(4)
        for worker in workers:
            worker.drain()
        returned += workers[at].kill()
        kills += 1
        workers[at] = Counting(children, pc, pid)
        assert pc.get(pid).unwrap() >= returned
    returned += sum(worker.kill() for worker in workers)
    kills += 4
    value = pc.get(pid).unwrap()
    assert returned <= value <= returned + kills, (returned, value, kills)
    pc._drop()
    assert pc.get(pid).unwrap() == value
    pc._check()
    assert live(pc) == 1


def test_more_short_lives_than_slots(store: Store, path: str, children: Children) -> None:
    """Slots of the dead are taken over: 280 processes with 4 handles each are killed while attached."""
    pid, _ = store.allocate([])

    def live_and_wait(w: int) -> None:
        handles = [mmpc.open(path, mmpc.Append()) for _ in range(4)]
        for handle in handles:
            handle.append(pid, [])
        os.write(w, b"x")
        signal.pause()

    for _ in range(280):
        r, w = os.pipe()
        child = children.start(live_and_wait, w)
        os.close(w)
        assert os.read(r, 1) == b"x", child.result()
        child.end()
        os.close(r)
    store.append(pid, [1])
    assert store.get(pid).unwrap() == [1]
    assert live(store) == 1


def test_a_stopped_process_delays_nobodys_operations(open_store: Open, children: Children) -> None:
    pc = open_store(mmpc.Add())
    pid, _ = pc.allocate(0)
    worker = Counting(children, pc, pid)
    for i in range(30):
        time.sleep(0.005)
        worker.child.signal(signal.SIGSTOP)
        before = pc.get(pid).unwrap()
        for _ in range(50):
            pc.append(pid, 1)
        if i % 5 == 0:
            pc.flush()
        assert before + 50 <= pc.get(pid).unwrap() <= before + 51
        worker.drain()
        worker.child.signal(signal.SIGCONT)
    worker.kill()


def test_all_killed_at_once_and_the_store_opens_with_everything(path: str, children: Children) -> None:
    for _ in range(5):
        with mmpc.open(path, mmpc.Add(), create=True) as pc:
            pid, _ = pc.allocate(0)
        gate = Gate()
        handle = pickle.dumps(pc)

        def start(w: int, gate: Gate = gate, handle: bytes = handle, pid: int = pid) -> None:
            mine = pickle.loads(handle)
            gate.wait()
            while True:
                mine.append(pid, 1)
                os.write(w, b".")

        r, w = os.pipe()
        crowd = [children.start(start, w) for _ in range(4)]
        os.close(w)
        gate.open()
        got = len(os.read(r, 100))
        for child in crowd:
            child.signal(signal.SIGKILL)
        for child in crowd:
            child.kill()
        while part := os.read(r, 1 << 16):
            got += len(part)
        os.close(r)
        with mmpc.open(path, mmpc.Add()) as pc:
            assert got <= pc.get(pid).unwrap() <= got + 4
            pc._check()
            assert live(pc) == 1
