"""flush, make_stable, stable_lsn, last_lsn, flush_every_ms: what they return, what they cover, whom they wait for."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from mmpc.cli import gather
from support import loss, work
from support.children import Child, Children, Gate
from support.looks import live
from support.sealed import numbers, seal

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]

SOON = 20.0  # seconds: a watchdog, not a promise
_GLOBALS, _SLOTS, _SLOT_SIZE = 4096, 12288, 1024  # docs/format.md
_DIRTY, _FAILED, _LEADER = 1152, 128, 1216
_ANNOUNCE = 64


def until(condition: Callable[[], Any], what: str) -> None:
    """Returns when the condition holds. AssertionError: it never did."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {SOON} s"
        time.sleep(0.002)


def forge(path: str, offset: int, value: int) -> None:
    """Stores a word of `control`, as a process that died or stopped there would have left it."""
    fd = os.open(os.path.join(path, "control"), os.O_RDWR)
    os.pwrite(fd, struct.pack("<Q", value), offset)
    os.close(fd)


def after_loss(children: Children, path: str, into: str, look: Callable[[Store], Any]) -> Any:
    """What `look` finds in a copy of the files, which counts as another boot."""
    loss.copy(path, into)

    def opened() -> Any:
        with mmpc.open(into, mmpc.Append()) as pc:
            assert pc._check() > 0
            return look(pc)

    return children.run(opened)


# ---- what they return


def test_flush_returns_how_far_it_moved_and_nothing_dirty_makes_no_sync(store: Store) -> None:
    pid, key = store.allocate([0])
    for _ in range(5):
        before, made = store.stable_lsn, loss.syncs(store.path)
        assert before < key.last_lsn
        moved = store.flush()
        assert moved == store.stable_lsn - before > 0
        assert store.stable_lsn >= key.last_lsn
        assert loss.syncs(store.path) == made + 1
        assert loss.stable(store.path) == store.stable_lsn
        for _ in range(3):
            assert store.flush() == 0
        assert loss.syncs(store.path) == made + 1
        key = store.append(pid, [1])


def test_looking_makes_nothing_dirty(store: Store) -> None:
    pid, _ = store.allocate([0])
    store.begin().close()  # a Tx draws a number, and the first of a life is made durable
    store.flush()
    made, stable = loss.syncs(store.path), store.stable_lsn
    store.get(pid)
    store.get(10**6)
    store.get_page_frags(pid)
    store.stats()
    store.bump_page_rts(pid, 9)
    with store.begin() as tx:
        store.get_page_rts(pid, tx)
    assert (store.flush(), loss.syncs(store.path), store.stable_lsn) == (0, made, stable)


def test_every_verb_that_writes_is_covered_by_the_next_flush(store: Store) -> None:
    pid, _ = store.allocate([0])
    freed, free_key = store.allocate([0])
    verbs: list[Callable[[], Any]] = [
        lambda: store.append(pid, [1]),
        lambda: store.link(pid, store.get(pid).key, [1]),
        lambda: store.replace(pid, store.get(pid).key, [2]),
        lambda: store.update(pid, lambda value: [*value, 3]),
        lambda: store.append_many([(pid, [4]), (pid, [5])]),
        lambda: store.free(freed, free_key),
        lambda: store.allocate([6]),
    ]
    for verb in verbs:
        store.flush()
        answer = verb()
        written = answer[-1] if isinstance(answer, list | tuple) and not isinstance(answer, mmpc.PagePtr) else answer
        assert store.stable_lsn < written.last_lsn
        assert store.flush() > 0
        assert store.stable_lsn >= written.last_lsn


def test_make_stable_covers_its_write_and_an_old_one_is_done_at_once(store: Store) -> None:
    pid, first = store.allocate([0])
    keys = [first]
    for i in range(5):
        key = store.append(pid, [i])
        before = store.stable_lsn
        assert store.make_stable(key.last_lsn) == store.stable_lsn - before > 0
        assert store.stable_lsn >= key.last_lsn
        keys.append(key)
    made = loss.syncs(store.path)
    store.append(pid, [9])  # dirty: but nobody asked for this one
    for key in keys:
        assert store.make_stable(key.last_lsn) == 0
    assert store.make_stable(0) == 0
    assert loss.syncs(store.path) == made
    seen = store.get(pid).key.last_lsn
    store.make_stable(seen)
    assert store.stable_lsn >= seen


@pytest.mark.parametrize("ahead", [1, 2, 1000, 2**40, 2**63])
def test_an_lsn_never_given_is_an_error_and_not_a_wait(store: Store, children: Children, ahead: int) -> None:
    store.allocate([0])
    lsn = store.stats().epoch + ahead

    def ask() -> str:
        try:
            store.make_stable(lsn)
        except ValueError as error:
            return str(error)
        return "returned"

    assert str(lsn) in children.run(ask, patience=SOON)
    assert store.flush() > 0


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(-1, ValueError), (2**64, ValueError), (None, TypeError), (1.5, TypeError), ("3", TypeError), (True, TypeError)],
    ids=repr,
)
def test_an_lsn_is_a_number(store: Store, wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="lsn"):
        store.make_stable(wrong)


def test_stable_lsn_only_rises_and_is_one_for_all_processes(store: Store, children: Children) -> None:
    pid, _ = store.allocate([0])
    gate = Gate()

    def watch() -> int:
        gate.wait()
        seen, last, end = 0, 0, time.monotonic() + SOON
        while seen < 25 and time.monotonic() < end:
            now = store.stable_lsn
            assert now >= last
            seen, last = seen + (now > last), now
        return last

    def write() -> int:
        gate.wait()
        for i in range(60):
            store.append(pid, [i])
            store.flush()
        return store.stable_lsn

    watchers = [children.start(watch) for _ in range(2)]
    writers = [children.start(write) for _ in range(2)]
    gate.open()
    ends = [c.result() for c in writers]
    assert all(0 < c.result() <= max(ends) for c in watchers)
    assert store.stable_lsn == max(ends)


# ---- what they cover


def test_what_a_reader_saw_and_flushed_is_durable_though_its_author_was_killed(
    path: str, children: Children, seed: int
) -> None:
    rng = random.Random(seed)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([])

        def write(seconds: float) -> None:
            pc.append(pid, [])  # attached
            loss.die_after(seconds)
            number = 0
            while True:
                pc.replace(pid, pc.get(pid).key, [seal(pid, number)])
                pc.append(pid, [seal(pid, number)])
                number += 1

        for turn in range(12):
            author = children.start(write, rng.random() * 0.01)
            if turn % 2:
                author.wait()
            seen = numbers(pid, pc.get(pid).unwrap())
            if turn % 3 == 0:
                pc.make_stable(pc.get(pid).key.last_lsn)
            else:
                pc.flush()
            author.wait()
            found = after_loss(children, path, f"{path}-{turn}", lambda c: numbers(pid, c.get(pid).unwrap()))
            assert found == seen if turn % 2 else found[-1:] >= seen[-1:]


@pytest.mark.parametrize("reaped", [False, True])
def test_a_publish_that_was_cut_before_it_said_dirty_is_flushed(
    path: str, children: Children, reaped: bool
) -> None:
    """Its author was killed between the CAS and the word `dirty`. A reader saw it: flush must not say that nothing is
    dirty, neither while the dead slot announces nor after it was reaped.
    """
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([0])
        pc.flush()
        dirty = loss.stable(path)

        def write() -> None:
            pc.append(pid, [1])
            os.write(out, bytes([pc._attachment.slot]))
            os.kill(os.getpid(), signal.SIGKILL)

        read, out = os.pipe()
        children.start(write).wait()
        slot = os.read(read, 1)[0]
        os.close(read)
        os.close(out)
        forge(path, _GLOBALS + _DIRTY, dirty)
        forge(path, _SLOTS + _SLOT_SIZE * slot + _ANNOUNCE, dirty)
        assert pc.get(pid).unwrap() == [0, 1]
        if reaped:
            assert live(pc) == 1
        assert pc.flush() > 0
        assert after_loss(children, path, path + "-lost", lambda c: c.get(pid).unwrap()) == [0, 1]


def hammer(pc: Store, gate: Gate | threading.Barrier, out: int, rounds: int) -> int:
    """Appends and flushes; tells through the pipe what was covered when it returned. Returns the flushes made."""
    gate.wait()
    pid, key = pc.allocate([])
    for n in range(rounds):
        key = pc.append(pid, [seal(pid, n)])
        if n % 3:
            pc.flush()
        else:
            pc.make_stable(key.last_lsn)
        assert pc.stable_lsn >= key.last_lsn
        os.write(out, struct.pack("<QQ", pid, n))
    return rounds


def told(read: int) -> dict[int, int]:
    """What the writers of a pipe said: the last number of each page. They have all ended."""
    data, last = b"", {}
    while part := os.read(read, 1 << 16):
        data += part
    for at in range(0, len(data) - 15, 16):
        pid, number = struct.unpack_from("<QQ", data, at)
        last[pid] = max(number, last.get(pid, -1))
    return last


def test_threads_that_flush_at_once_share_syncs(store: Store, children: Children) -> None:
    read, out = os.pipe()
    gate, counts = threading.Barrier(8), []
    writers = [threading.Thread(target=lambda: counts.append(hammer(store, gate, out, 25))) for _ in range(8)]
    made = loss.syncs(store.path)
    for t in writers:
        t.start()
    for t in writers:
        t.join()
    os.close(out)
    assert len(counts) == 8
    covered = told(read)
    os.close(read)
    assert len(covered) == 8
    assert 0 < loss.syncs(store.path) - made < sum(counts)

    def look(pc: Store) -> bool:
        return all(numbers(pid, pc.get(pid).unwrap()) == list(range(25)) for pid in covered)

    assert after_loss(children, store.path, store.path + "-lost", look)


def test_processes_that_flush_at_once_share_syncs_and_lose_nothing_flushed(
    path: str, children: Children, seed: int
) -> None:
    """Each flush covered its own write: all are killed somewhere, and power fails."""
    rng = random.Random(seed)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        for turn in range(4):
            read, out = os.pipe()
            gate, made = Gate(), loss.syncs(path)
            started = [children.start(hammer, pc, gate, out, 100_000) for _ in range(4)]
            os.close(out)
            gate.open()
            until(lambda: loss.syncs(path) > made + 10, "ten flushes")
            time.sleep(rng.random() * 0.1)
            for child in started:
                child.kill()
            made = loss.syncs(path) - made
            lost = loss.copy(path, f"{path}-{turn}")
            covered = told(read)
            os.close(read)
            assert len(covered) == 4

            def look() -> None:
                with mmpc.open(lost, mmpc.Append()) as found:
                    for pid, last in covered.items():
                        have = numbers(pid, found.get(pid).unwrap())
                        assert have == list(range(len(have)))
                        assert len(have) > last, f"page {pid}: flushed {last}, found {have[-3:]}"

            children.run(look)
            assert made < sum(last + 1 for last in covered.values()), "no two flushes shared a sync"


def test_flushes_that_another_ones_sync_answered_are_counted(path: str, children: Children) -> None:
    """The word was there, stat and top showed it, and nobody raised it."""

    def figures() -> dict[str, Any]:
        found: dict[str, Any] = gather.figures(path)["flushes"]
        return found

    def flush(pc: Store, gate: Gate) -> None:
        gate.wait()
        pid, _ = pc.allocate(b"")
        while figures()["shared"] < 10:
            pc.append(pid, b"x")
            pc.flush()

    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        of_creation = figures()["syncs"]
        for _ in range(20):
            pc.append(pc.allocate(b"")[0], b"x")
            pc.flush()
        assert (figures()["syncs"], figures()["shared"]) == (of_creation + 20, 0)
        gate = Gate()
        crowd = [children.start(flush, pc, gate) for _ in range(3)]
        gate.open()
        for child in crowd:
            child.result()
        calls = pc.metrics().counters["flushes"]
        assert 0 < calls - figures()["syncs"] <= figures()["shared"]


# ---- whom they wait for


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_flusher_that_is_stopped_or_killed_holds_up_nobody(
    path: str, children: Children, seed: int, how: signal.Signals
) -> None:
    rng = random.Random(seed)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([])
        leading = 0

        def victim(out: int) -> None:
            while True:
                pc.append(pid, [])
                pc.flush()
                os.write(out, b".")

        def other() -> bool:
            key = pc.append(pid, [])
            pc.flush()
            return pc.stable_lsn >= key.last_lsn

        def start() -> tuple[Child, int]:
            read, out = os.pipe()
            child = children.start(victim, out)
            os.close(out)
            assert os.read(read, 1)
            return child, read

        child, read = start()
        for _ in range(10):
            os.read(read, 1 << 16)
            time.sleep(rng.random() * 0.01)
            child.signal(how)
            leading += _leader(path) > 1
            assert children.run(other, patience=SOON), "flush returned before its write was durable"
            assert children.map(other, [(), ()], patience=SOON) == [True, True]
            if how == signal.SIGKILL:
                child.wait()
                os.close(read)
                child, read = start()
                continue
            os.set_blocking(read, False)
            while _drained(read):
                pass
            os.set_blocking(read, True)
            child.signal(signal.SIGCONT)
            assert os.read(read, 1), "it goes on"
        os.close(read)
        child.kill()
        print(f"{leading} of 10 were struck while they led")


def _leader(path: str) -> int:
    """The slot that leads a flush, plus one."""
    with open(os.path.join(path, "control"), "rb") as f:
        f.seek(_GLOBALS + _LEADER)
        return int(struct.unpack("<Q", f.read(8))[0]) & 0xFFFF


def _drained(read: int) -> bytes:
    try:
        return os.read(read, 1 << 16)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("attached", [True, False])
def test_a_leader_that_never_comes_back_delays_once(store: Store, children: Children, attached: bool) -> None:
    """The word names a slot whose owner stopped, or one that nobody has."""
    slot = store._attachment.slot + 1 if attached else 900
    pid, _ = store.allocate([0])

    def lead_after() -> bool:
        key = store.append(pid, [1])
        store.flush()
        return store.stable_lsn >= key.last_lsn

    for turn in range(3):
        forge(store.path, _GLOBALS + _LEADER, 7 << 16 | slot)
        if turn == 2:
            assert children.map(lead_after, [()] * 3, patience=SOON) == [True] * 3
        else:
            assert children.run(lead_after, patience=SOON)


def test_a_handle_closed_under_flushing_threads_raises_closed(memory: str, children: Children) -> None:
    """In a child: a call that looks at memory which the close has unmapped is the death of the process."""

    def race() -> bool:
        sys.setswitchinterval(1e-6)
        for _ in range(8):
            pc = mmpc.open(os.path.join(memory, "store"), mmpc.Append(), create=True)
            pid, _ = pc.allocate([1])

            def again(call: Callable[[], Any]) -> None:
                with pytest.raises(mmpc.Closed):
                    while True:
                        call()

            calls: list[Callable[[], Any]] = [
                pc.flush, pc.stats, pc.snapshot, lambda: pc.stable_lsn, lambda: pc.make_stable(1),
                lambda: pc.get_page_rts(pid), lambda: pc.begin().close(),
            ]  # fmt: skip
            callers = [threading.Thread(target=again, args=(call,)) for call in calls]
            for t in callers:
                t.start()
            time.sleep(0.001)
            pc.close()
            for t in callers:
                t.join()
        return True

    assert children.run(race)


# ---- flush_every_ms


@pytest.mark.parametrize("value", [0, -1, 3_600_001, 10**30], ids=str)
def test_a_period_out_of_bounds_is_refused_with_the_bounds(path: str, value: int) -> None:
    for read_only in (False, True):
        with pytest.raises(ValueError, match=f"flush_every_ms.*1.*3600000.*{value}"):
            mmpc.open(path, mmpc.Append(), create=True, flush_every_ms=value, read_only=read_only)
    assert not os.path.exists(path)


@pytest.mark.parametrize("value", [1.0, "20", True, False, b"1", [1]], ids=repr)
def test_a_period_is_an_int(path: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"flush_every_ms.*int.*{type(value).__name__}"):
        mmpc.open(path, mmpc.Append(), create=True, flush_every_ms=value)
    assert not os.path.exists(path)


def threads() -> list[str]:
    """Threads of mmpc in this process."""
    return [t.name for t in threading.enumerate() if "mmpc" in t.name]


@pytest.mark.parametrize("period", [1, 30, 3_600_000])
def test_a_periodic_flush_covers_writes_and_ends_with_close(open_store: Open, period: int) -> None:
    pc = open_store(flush_every_ms=period)
    pid, key = pc.allocate([0])
    assert threads()
    for i in range(3):
        if period < 1000:
            until(lambda: pc.stable_lsn >= key.last_lsn, "the periodic flush")
        key = pc.append(pid, [i])
    pc.close()
    assert threads() == []
    with open_store(flush_every_ms=period) as again:
        assert threads()
        assert again.get(pid).unwrap() == [0, 0, 1, 2]
    assert threads() == []


def test_an_idle_store_is_not_synced(open_store: Open) -> None:
    pc, other = open_store(flush_every_ms=5), open_store(flush_every_ms=5)
    _, key = pc.allocate([0])
    until(lambda: other.stable_lsn >= key.last_lsn, "the periodic flush")

    def quiet() -> bool:
        made = loss.syncs(pc.path)
        for _ in range(30):
            other.get(2)
            time.sleep(0.005)
        return loss.syncs(pc.path) == made

    until(quiet, "a quiet store")  # a flush that takes longer than a period is followed by one more
    assert quiet()


@pytest.mark.parametrize("processes", [1, 4])
def test_there_is_one_flush_a_period_however_many_ask(path: str, children: Children, processes: int) -> None:
    """Every process writes all the time, and all ask: flushes begin a period apart, so their number is bounded."""
    period = 100
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([])
        pc.flush()
        gate = Gate()

        def write() -> None:
            with mmpc.open(path, mmpc.Append(), flush_every_ms=period) as mine:
                gate.wait()
                while True:
                    mine.replace(pid, mine.get(pid).key, []) if processes == 1 else mine.append(pid, [])
                    time.sleep(0.002)

        started = [children.start(write) for _ in range(processes)]
        until(lambda: live(pc) == processes + 1, "all attached")
        begun, made = time.monotonic(), loss.syncs(path)
        gate.open()
        until(lambda: loss.syncs(path) >= made + 8, "eight flushes")
        made = loss.syncs(path) - made
        passed = (time.monotonic() - begun) * 1000 / period
        assert made <= passed + 2, f"{made} flushes in {passed:.1f} periods"
        for child in started:
            child.kill()


def test_what_others_wrote_is_flushed_too(path: str, children: Children) -> None:
    """The writer asked for nothing, or is dead."""
    with mmpc.open(path, mmpc.Append(), create=True, flush_every_ms=20) as pc:
        pid, _ = pc.allocate([0])
        for _ in range(3):

            def write() -> None:
                with mmpc.open(path, mmpc.Append()) as mine:
                    key = mine.append(pid, [1])
                    os.write(out, struct.pack("<Q", key.last_lsn))
                    os.kill(os.getpid(), signal.SIGKILL)

            read, out = os.pipe()
            children.start(write).wait()
            (lsn,) = struct.unpack("<Q", os.read(read, 8))
            os.close(read)
            os.close(out)
            until(lambda: loss.stable(path) >= lsn, "the flush of another's write")


def test_a_forked_child_flushes_for_itself_when_its_parent_is_gone(path: str, children: Children) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as keeper:
        pid, _ = keeper.allocate([0])

        def parent() -> None:
            pc = mmpc.open(path, mmpc.Append(), flush_every_ms=20)
            pc.append(pid, [1])
            dying = os.getpid()
            if os.fork() == 0:
                try:
                    end = time.monotonic() + SOON
                    while os.getppid() == dying and time.monotonic() < end:
                        time.sleep(0.002)
                    key = pc.append(pid, [2])
                    while pc.stable_lsn < key.last_lsn and time.monotonic() < end:
                        time.sleep(0.002)
                    os.write(out, b"y" if pc.stable_lsn >= key.last_lsn else b"n")
                finally:
                    os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

        read, out = os.pipe()
        children.start(parent).wait()
        os.close(out)
        assert os.read(read, 1) == b"y"
        os.close(read)
        assert keeper.get(pid).unwrap() == [0, 1, 2]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pool_workers_flush_every_period(open_store: Open, method: str) -> None:
    keeper = open_store()
    pc = open_store(flush_every_ms=25)
    pid, _ = keeper.allocate([0])
    assert len(pickle.dumps(pc)) < 300
    assert pickle.loads(pickle.dumps(pc))._options.flush_every_ms == 25
    pc.close()
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(work.durable_by_itself, [(pc, pid, SOON)] * 4) == [True] * 4
        pool.close()
        pool.join()


def test_threads_of_a_handle_are_served_by_one_periodic_flush(open_store: Open) -> None:
    pc = open_store(flush_every_ms=15)
    pid, _ = pc.allocate([])
    keys: list[Any] = []
    writers = [threading.Thread(target=lambda: keys.append(pc.append(pid, [1]))) for _ in range(8)]
    for t in writers:
        t.start()
    for t in writers:
        t.join()
    assert len(threads()) == 1
    until(lambda: pc.stable_lsn >= max(k.last_lsn for k in keys), "the periodic flush")


def test_a_read_only_handle_may_have_a_period_and_leaves_no_thread(open_store: Open) -> None:
    pc = open_store()
    pc.allocate([0])
    with open_store(read_only=True, flush_every_ms=5) as reader:
        assert len(pickle.dumps(reader)) < 300
        assert reader.get(2).unwrap() == [0]
        for verb in (reader.flush, lambda: reader.make_stable(1), reader.snapshot):
            with pytest.raises(mmpc.Unsupported, match="read_only"):
                verb()
        assert reader.stable_lsn == pc.stable_lsn
    assert threads() == []


def test_a_handle_that_is_forgotten_ends_its_thread(path: str, children: Children) -> None:
    for i in range(20):
        pc = mmpc.open(path, mmpc.Append(), create=True, flush_every_ms=1)
        pid, _ = pc.allocate([i])
        time.sleep(0.0005 * (i % 5))
        del pc
    gc.collect()
    until(lambda: threads() == [], "the end of the threads")
    assert after_loss(children, path, path + "-lost", lambda c: c.get(pid).unwrap()) == [19]


def test_a_handle_collected_in_its_own_flush_thread_is_closed(path: str, children: Children) -> None:
    """The garbage collector may run in that thread while it waits, and holds the lock of what it waits for."""

    def forget() -> bool:
        pc = mmpc.open(path, mmpc.Append(), create=True, flush_every_ms=1)
        pc.allocate([7])
        condition = pc._flusher._stop._cond
        wait = condition.wait

        def collect(timeout: float) -> bool:
            gc.collect()
            return bool(wait(timeout))

        cycle: list[Any] = [pc]
        cycle.append(cycle)
        gc.disable()
        del pc, cycle
        condition.wait = collect
        until(lambda: threads() == [], "the end of the thread")
        with mmpc.open(path, mmpc.Append()) as again:
            return live(again) == 1

    assert children.run(forget)


def test_in_a_store_that_failed_the_thread_ends(path: str, caplog: pytest.LogCaptureFixture) -> None:
    pc = mmpc.open(path, mmpc.Append(), create=True, flush_every_ms=5)
    pid, _ = pc.allocate([0])
    forge(path, _GLOBALS + _FAILED, 5)
    until(lambda: threads() == [], "the end of the thread")
    for verb in (pc.flush, lambda: pc.get(pid), lambda: pc.append(pid, [1]), pc.snapshot):
        with pytest.raises(mmpc.StoreFailed):
            verb()
    with pytest.raises(mmpc.StoreFailed):
        pc.close()
    pc.close()
    assert threads() == []
    assert [r.name for r in caplog.records] == ["mmpc"] * len(caplog.records)


EXIT = """
import sys, mmpc
pages = [mmpc.open(p, mmpc.Append(), create=True, flush_every_ms={period}) for p in sys.argv[1:]]
for i, pc in enumerate(pages):
    pc.allocate([i])
"""


@pytest.mark.parametrize("period", [1, 3_600_000])
def test_at_exit_nothing_hangs_and_nothing_is_said(path: str, children: Children, period: int) -> None:
    for turn in range(2):
        ran = subprocess.run(
            [sys.executable, "-X", "dev", "-c", EXIT.format(period=period), f"{path}-{turn}", f"{path}-{turn}b"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
        found = after_loss(children, f"{path}-{turn}b", f"{path}-{turn}-lost", lambda c: c.get(2).unwrap())
        assert found == [1], "the last to leave flushes"


def test_at_exit_a_store_that_failed_keeps_no_other_from_being_flushed(path: str, children: Children) -> None:
    code = EXIT.format(period=3_600_000) + (
        "import ctypes, os, struct\n"
        "for pc in pages:\n"
        "    ctypes.pythonapi.Py_IncRef(ctypes.py_object(pc))  # somebody holds it to the very end: no __del__\n"
        "for p in sys.argv[1::2]:\n"
        f"    os.pwrite(os.open(p + '/control', os.O_RDWR), struct.pack('<Q', 5), {_GLOBALS + _FAILED})\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *(f"{path}-{i}" for i in range(8))], capture_output=True, text=True, timeout=60
    )
    assert "StoreFailed" in ran.stderr
    for i in range(1, 8, 2):
        found = after_loss(children, f"{path}-{i}", f"{path}-{i}-lost", lambda c: c.get(2).unwrap())
        assert found == [i], f"store {i} was not closed"


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_others_take_over_from_who_flushes_every_period(
    path: str, children: Children, seed: int, how: signal.Signals
) -> None:
    rng = random.Random(seed)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([])

        def wait() -> None:
            with mmpc.open(path, mmpc.Append(), flush_every_ms=20):
                while True:
                    time.sleep(1)

        started = [children.start(wait) for _ in range(4)]
        until(lambda: live(pc) == 5, "all attached")
        for child in started[1:]:
            for _ in range(2):
                key = pc.append(pid, [])
                until(lambda: pc.stable_lsn >= key.last_lsn, "the periodic flush")
            pc.append(pid, [])
            time.sleep(rng.random() * 0.045)
            child.signal(how)
        key = pc.append(pid, [])
        until(lambda: pc.stable_lsn >= key.last_lsn, "the periodic flush of the last one")
        for child in started:
            child.signal(signal.SIGCONT)
            child.kill()
        key = pc.append(pid, [])
        time.sleep(0.1)
        assert pc.stable_lsn < key.last_lsn, "and of nobody when all are gone"
