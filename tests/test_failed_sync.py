"""A sync that fails, on a device that fails: the store fails as a whole, and comes back as it was durable.

The kernel calls pages clean that it could not write, and tells of it once. So each test that ends well ends with a
look at the device alone: unmounted, mounted, opened after another boot.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest

import mmpc
from mmpc import _files, _store
from mmpc._extent import Run, run_at
from mmpc._native import lib
from support import forging
from support.children import Children, Gate
from support.failing import EPOCH, LARGE, SEGMENT, SLOT, SLOTS, STABLE, SYNCING, Failing, failing, forge, word

Store = mmpc.PageCache[Any]
pytestmark = pytest.mark.processes


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    monkeypatch.setenv("MMPC_BOOT_ID", "before")
    with failing() as made:
        yield made


def opened(device: Failing, **options: Any) -> Store:
    return mmpc.open(device.store, mmpc.Append(), **({"create": True, "segment_size": SEGMENT} | options))


def close(pc: Store) -> None:
    """The last one out is told that its flush failed."""
    try:
        pc.close()
    except mmpc.StoreFailed:
        pass


def look_at_the_device(device: Failing, monkeypatch: pytest.MonkeyPatch) -> Store:
    device.disk.again()
    monkeypatch.setenv("MMPC_BOOT_ID", "after")
    return opened(device, create=False)


def refused(pc: Store, pid: int) -> list[str]:
    """Names of the verbs that did not raise StoreFailed."""
    key = mmpc.PagePtr(pid, 1, 1, 1)
    verbs: dict[str, Callable[[], Any]] = {
        "get": lambda: pc.get(pid),
        "get_many": lambda: pc.get_many([pid]),
        "get_page_frags": lambda: pc.get_page_frags(pid),
        "view": lambda: pc.view(pid),
        "allocate": lambda: pc.allocate([1]),
        "append": lambda: pc.append(pid, [1]),
        "append_many": lambda: pc.append_many([(pid, [1])]),
        "link": lambda: pc.link(pid, key, [1]),
        "replace": lambda: pc.replace(pid, key, [1]),
        "update": lambda: pc.update(pid, list),
        "free": lambda: pc.free(pid, key),
        "flush": pc.flush,
        "make_stable": lambda: pc.make_stable(1),
        "stable_lsn": lambda: pc.stable_lsn,
        "snapshot": pc.snapshot,
        "begin": pc.begin,
        "bump_page_rts": lambda: pc.bump_page_rts(pid, 1),
        "get_page_rts": lambda: pc.get_page_rts(pid),
    }
    passed = []
    for name, verb in verbs.items():
        try:
            verb()
        except mmpc.StoreFailed as e:
            assert str(pc.path) in str(e), str(e)
            continue
        passed.append(name)
    return passed


def test_every_verb_of_every_process_says_so_and_only_the_durable_comes_back(
    device: Failing, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    pc = opened(device)
    pid, _ = pc.allocate([0])
    empty, _ = pc.allocate([])
    pc.flush()
    assert pc.get(pid).value == [0]  # in the object cache
    device.break_down(pc)
    fails, (read, write) = Gate(), os.pipe()

    def bystander() -> list[str]:
        with opened(device) as mine:
            assert mine.get(pid).unwrap() == [0]
            os.write(write, b"+")
            fails.wait()
            try:
                return refused(mine, pid)
            finally:
                close(mine)

    other = children.start(bystander)
    assert os.read(read, 1) == b"+"
    os.close(read)
    os.close(write)
    for _ in range(3):
        pc.append(pid, [LARGE])
        pc.append(empty, [LARGE])
    durable = pc.stable_lsn
    with pytest.raises(mmpc.StoreFailed):
        pc.flush()
    assert refused(pc, pid) == []
    fails.open()
    assert other.result() == []
    assert pc.stats().stable == durable == word(device.store, STABLE)
    close(pc)
    for _ in range(2):  # the kernel calls the pages clean; no sync of who comes later may be believed
        with pytest.raises((mmpc.MmpcError, OSError)):
            opened(device)
    device.mend()
    with opened(device) as pc:
        assert (pc.get(pid).value, pc.get(empty).value) == ([0], [])
        assert pc.stable_lsn >= durable
        pc.append(pid, [1])
        pc.append(empty, [LARGE])
        pc.flush()
    with look_at_the_device(device, monkeypatch) as pc:
        assert (pc.get(pid).value, pc.get(empty).value) == ([0, 1], [LARGE])


@pytest.mark.parametrize("rewrites", [True, False], ids=["rewritten", "page cache trusted"])
def test_what_a_recovery_counts_is_on_the_device(
    device: Failing, monkeypatch: pytest.MonkeyPatch, rewrites: bool
) -> None:
    """A record whose author loaded its colour before a flush and stored the commit word after it counts, but was not
    synced by that flush. A recovery that trusts the page cache calls it durable, and loses it.
    """
    if not rewrites:
        monkeypatch.setattr(_store, "_rewrite", lambda *_: None)
    pc = opened(device)
    pid, _ = pc.allocate([0])
    pc.flush()
    device.break_down(pc)
    now = word(device.store, EPOCH)
    forge(device.store, EPOCH, now - 1)  # the colour that the author loaded
    pc.append(pid, [LARGE])
    forge(device.store, EPOCH, now)
    pc.allocate([1])
    with pytest.raises(mmpc.StoreFailed):
        pc.flush()
    close(pc)
    device.mend()
    with opened(device) as pc:
        assert pc.get(pid).value == [0, LARGE]
        pc.flush()
    if rewrites:
        with look_at_the_device(device, monkeypatch) as pc:
            assert pc.get(pid).value == [0, LARGE]
        return
    with pytest.raises((mmpc.CorruptionError, AssertionError)), look_at_the_device(device, monkeypatch) as pc:
        assert pc.get(pid).value == [0, LARGE]


def die_in_a_failing_sync(device: Failing, pid: int, noted: bool) -> None:
    """In a child: the kernel tells this process of the failure, and nobody else will hear of it from the kernel."""
    pc = opened(device)
    pc.append(pid, [LARGE])
    hear_of_it_and_die(device, pc, noted)


def hear_of_it_and_die(device: Failing, pc: Store, noted: bool) -> None:
    if noted:
        at = SLOTS + pc._attachment.slot * SLOT + SYNCING
        forge(device.store, at, word(device.store, EPOCH))
        forge(device.store, EPOCH, word(device.store, EPOCH) + 1)
    log = os.path.realpath(device.store / "log")
    fd = next(int(n) for n in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{n}") == log)
    try:
        os.fdatasync(fd)
    except OSError as e:
        assert e.errno in (5, 28)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("table", [True, False], ids=["attached", "rebuilt"])
@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not noted"])
def test_a_process_killed_before_it_can_tell_of_its_failed_sync(
    device: Failing, monkeypatch: pytest.MonkeyPatch, children: Children, noted: bool, table: bool
) -> None:
    """Who comes later is not told by the kernel: it knows from the slot of the dead that it may not trust its own sync.
    Without that note ("not noted": what the kernel does by itself) its flush succeeds and proves nothing; that of a
    recovery fails, since it has stored the end of the dead one's lease to a page that the device does not take.
    """
    with opened(device) as pc:
        pid, _ = pc.allocate([0])
        device.break_down(pc)
    child = children.start(die_in_a_failing_sync, device, pid, noted)
    assert child.wait() == -signal.SIGKILL
    if not table:
        os.unlink(device.store / "table")
    if noted:
        with pytest.raises((mmpc.MmpcError, OSError)):
            pc = opened(device)
            try:
                assert pc.get(pid).value == [0, LARGE]
                pc.append(pid, [1])
                pc.flush()
            finally:
                close(pc)
        return
    if not table:
        with pytest.raises(mmpc.StoreFailed):
            opened(device)
        return
    with opened(device) as pc:
        assert pc.get(pid).value == [0, LARGE]
        pc.flush()
    device.mend()
    with pytest.raises((mmpc.CorruptionError, AssertionError)), look_at_the_device(device, monkeypatch) as pc:
        assert pc.get(pid).value == [0, LARGE]


@pytest.mark.parametrize("table", [True, False], ids=["attached", "rebuilt"])
def test_the_next_one_writes_again_what_a_dead_process_was_told_is_lost(
    device: Failing, monkeypatch: pytest.MonkeyPatch, children: Children, table: bool
) -> None:
    with opened(device) as pc:
        pid, _ = pc.allocate([0])
        device.break_down(pc)
    child = children.start(die_in_a_failing_sync, device, pid, True)
    assert child.wait() == -signal.SIGKILL
    device.mend()
    if not table:
        os.unlink(device.store / "table")
    with opened(device) as pc:
        assert pc.get(pid).value == [0, LARGE]
        assert pc.flush() > 0 or not table
    with look_at_the_device(device, monkeypatch) as pc:
        assert pc.get(pid).value == [0, LARGE]


def run_headers(device: Failing) -> dict[int, Run]:
    """The headers of runs in the log, by number."""
    config = _files.read_config(os.fspath(device.store))
    assert config is not None
    with open(device.store / "log", "rb") as log:
        blocks = [os.pread(log.fileno(), 4096, at) for at in range(0, os.fstat(log.fileno()).st_size, SEGMENT)]
    found = {n: run_at(block, n, config.uuid) for n, block in enumerate(blocks)}
    return {n: run for n, run in found.items() if run is not None}


def give_a_run_back_and_die(device: Failing, n: int, pid: int) -> None:
    """In a child: the headers that the segments of the run get, each its own, do not reach the device."""
    pc = opened(device)
    pc.free(pid, pc.get(pid).key)
    pc.flush()
    device.fail_between((n + 1) * SEGMENT, (n + 1) * SEGMENT + 4096)
    pc._clean(2, 1 << 30)
    assert run_headers(device)[n + 1].segments == 1
    hear_of_it_and_die(device, pc, True)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
def test_what_free_segments_say_of_themselves_is_written_again(
    device: Failing, monkeypatch: pytest.MonkeyPatch, children: Children, beside: bool
) -> None:
    """Of a run that was given back: its first segment is used again when the other headers are durable."""
    with opened(device) as pc:
        pid, _ = pc.allocate([LARGE * 22])
        ((n, run),) = run_headers(device).items()
        kept = [pc.allocate([LARGE * 22])[0], pc.allocate([1])[0]]
    assert run.segments > 2
    other = opened(device) if beside else None
    assert children.start(give_a_run_back_and_die, device, n, pid).wait() == -signal.SIGKILL
    device.mend()
    with pytest.raises(mmpc.StoreFailed) if beside else nullcontext(), opened(device) as pc:
        assert pc.get(pid).is_free()
        pc.append(kept[1], [2])
        pc.flush()
        lib.mm_close(pc._attachment.mm)  # and nothing more is done to the log
    if other is not None:
        close(other)
        opened(device).close()
    device.disk.again()
    assert n + 1 in run_headers(device)
    with look_at_the_device(device, monkeypatch) as pc:
        assert pc.get(kept[0]).value == [LARGE * 22]
        assert pc.get(kept[1]).value == ([1] if beside else [1, 2])


def raise_the_counter_and_die(device: Failing, pid: int) -> None:
    """In a child: the beginning of the log does not reach the device, which counts the retirements of segments."""
    pc = opened(device)
    device.fail_between(0, 4096)
    pc.free(pid, pc.get(pid).key)
    hear_of_it_and_die(device, pc, True)


def test_the_beginning_of_the_log_is_written_again(
    device: Failing, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    """A mark knows the number of retirements: a log with a smaller one is refused."""
    with opened(device) as pc:
        pid, _ = pc.allocate([LARGE * 22])
        pids = [pc.allocate([LARGE])[0] for _ in range(20)]  # the first segment is full
    assert children.start(raise_the_counter_and_die, device, pid).wait() == -signal.SIGKILL
    device.mend()
    opened(device).close()
    with look_at_the_device(device, monkeypatch) as pc:
        assert pc.get(pid).is_free()
        assert [pc.get(pid).value for pid in pids] == [[LARGE]] * 20


def test_what_a_recovery_clears_is_written_again(device: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A life that was discarded had retired a segment. The next one takes that back, and its first flush fails."""
    with opened(device) as pc:
        pids = [pc.allocate([LARGE])[0] for _ in range(20)]
    path = os.fspath(device.store)
    forging.retire(path, forging.scanned(path).segments[1], word(device.store, STABLE) + 5)
    monkeypatch.setenv("MMPC_BOOT_ID", "between")
    device.fail_between(SEGMENT, SEGMENT + 4096)
    with pytest.raises(mmpc.StoreFailed):
        opened(device)
    device.mend()
    assert not any(forging.retired(path, 1))
    opened(device).close()
    with look_at_the_device(device, monkeypatch) as pc:
        assert [pc.get(pid).value for pid in pids] == [[LARGE]] * 20
    assert not any(forging.retired(path, 1))


def test_a_newcomer_beside_others_asks_the_file_system(device: Failing, children: Children) -> None:
    """Others are attached, so nothing can be written again; the kernel told the dead one alone of this file."""
    pc = opened(device)
    pid, _ = pc.allocate([0])
    device.break_down(pc)
    child = children.start(die_in_a_failing_sync, device, pid, True)
    assert child.wait() == -signal.SIGKILL
    device.mend()

    def newcomer() -> str:
        mine = opened(device)
        assert mine.get(pid).value == [0, LARGE]
        mine.append(pid, [1])
        try:
            mine.flush()
        except mmpc.StoreFailed:
            return "failed"
        finally:
            close(mine)
        return "flushed"

    assert children.run(newcomer) == "failed"
    assert refused(pc, pid) == []
    close(pc)


def test_who_had_the_log_open_before_is_told_by_the_kernel(device: Failing, children: Children) -> None:
    """The error is told once to each open file: a process that was attached needs no note of the dead."""
    pc = opened(device)
    pid, _ = pc.allocate([0])
    pc.flush()
    device.break_down(pc)
    child = children.start(die_in_a_failing_sync, device, pid, False)
    assert child.wait() == -signal.SIGKILL
    pc.append(pid, [1])
    with pytest.raises(mmpc.StoreFailed):
        pc.flush()
    close(pc)


def test_helping_notes_that_the_segment_was_written(path: str) -> None:
    """A commit word may be stored for an author who died long ago, in a lease that no slot names any more."""
    from pathlib import Path

    from mmpc._native import ffi, lib

    with mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16) as pc:
        pid, _ = pc.allocate([0])
        other, _ = pc.allocate([0])
        for _ in range(40):
            pc.replace(other, pc.get(other).key, [LARGE])
        for _ in range(3):
            pc.append(other, [1])
            pc.flush()
        triple, r = ffi.new("uint64_t[3]"), ffi.new("mm_result *")
        assert lib.mm_chain(pc._attachment.mm, pid, triple, 1, r) == 0
        address, written = int(triple[0]), 12288 + 1024 * 1024 + (int(triple[0]) >> 16) * 64 + 40
        with open(os.path.join(path, "log"), "r+b", buffering=0) as f:
            os.pwrite(f.fileno(), bytes(4), address + 4)  # as its author would have left it, killed
        assert word(Path(path), written) < pc.stable_lsn
        helped = pc.stats().helped
        with mmpc.open(path, mmpc.Append()) as newcomer:
            assert newcomer.get(pid).value == [0]
        assert pc.stats().helped == helped + 1
        assert word(Path(path), written) >= pc.stable_lsn
