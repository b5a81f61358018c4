"""Large fragments lie in runs of segments of their own: stored whole, freed whole, checked in pieces, never moved."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import errors
from mmpc._layout import CONTROL_GLOBALS, EXTENT_MOST
from mmpc._native import ffi, lib
from support import loss
from support.children import Children
from support.mounts import Mounted, ext4, memory
from support.runs import HOLE, consistent, entries, run_of, runs, taken

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
SMALL = 1 << 16  # the smallest segment
BLOCK = 4096
PIECE = 1 << 20


@pytest.fixture
def pc(open_store: Open) -> Store:
    return open_store(segment_size=SMALL)


def blob(n: int, seed: int = 0) -> bytes:
    return random.Random(seed << 32 | n).randbytes(n)


def settle(pc: Store) -> None:
    """Flushes, and gives back what nobody needs."""
    for _ in range(3):
        pc.flush()
        while pc.attempt_gc():
            pass


def uncached(pc: Store, pid: int) -> Any:
    pc._drop()
    return pc.get(pid).unwrap()


def flip(path: str, at: int, mask: int = 1) -> None:
    with open(os.path.join(path, "log"), "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ mask]))


def another_boot(monkeypatch: pytest.MonkeyPatch, name: str = "another") -> None:
    monkeypatch.setenv("MMPC_BOOT_ID", name)


def sizes() -> list[int]:
    """Around each border: of a record in a lease, of one segment of a run and of several, of a piece."""
    borders = [SMALL // 4, SMALL // 2, *(k * SMALL - BLOCK for k in (1, 2, 3)), PIECE - BLOCK, PIECE, 2 * PIECE]
    return sorted({b + d for b in borders for d in (-160, -88, -80, -77, -72, -64, -16, -8, -5, -1, 0, 1, 8, 700)})


# ---- sizes


def test_fragments_of_all_sizes_come_back(open_store: Open, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pc = open_store(segment_size=SMALL)
    pages = {pc.allocate(blob(n))[0]: n for n in sizes()}
    for pid, n in pages.items():
        assert uncached(pc, pid) == blob(n), n
    assert pc.get_page_frags(max(pages))[1] == [blob(max(sizes()))]
    consistent(pc)
    pc.close()
    assert mmpc.verify(path).problems == []
    for boot in ("same", "another"):
        if boot == "another":
            another_boot(monkeypatch)
        pc = open_store()
        assert all(pc.get(pid).unwrap() == blob(n) for pid, n in pages.items()), boot
        consistent(pc)
        pc.close()


@pytest.mark.parametrize("size", [SMALL // 8, SMALL // 4, SMALL, 20 * SMALL])
def test_every_verb_takes_them(pc: Store, size: int) -> None:
    a, b, c, d = (blob(size, i) for i in range(4))
    pid, key = pc.allocate(a)
    key = pc.link(pid, key, b)
    pc.append(pid, c)
    pc.append(pid, b"small")
    assert uncached(pc, pid) == a + b + c + b"small"
    assert pc.get_page_frags(pid)[1] == [a, b, c, b"small"]
    pc.append_many([(pid, d), (pid, b".")])
    assert uncached(pc, pid) == a + b + c + b"small" + d + b"."
    key = pc.replace(pid, pc.get(pid).key, d)
    pc.update(pid, lambda value: value + a)
    assert uncached(pc, pid) == d + a
    pc.free(pid, pc.get(pid).key)
    assert pc.get(pid).is_free()
    settle(pc)
    assert runs(pc) == []


def test_values_of_all_kinds(open_store: Open) -> None:
    np = pytest.importorskip("numpy")
    pc = open_store(mmpc.LastWriteWins(), segment_size=SMALL)
    values = [{"k": "x" * 200_000}, ["y" * 50_000] * 3, "z" * 100_000, np.arange(1 << 17).reshape(2, -1)]
    pids = [pc.allocate(value)[0] for value in values]
    for pid, value in zip(pids, values, strict=True):
        assert np.array_equal(uncached(pc, pid), value)
        pc.append(pid, value)
        assert np.array_equal(uncached(pc, pid), value)


def test_one_that_is_too_large_is_an_error(pc: Store) -> None:
    r = ffi.new("mm_result *")
    mm = pc._attachment.mm
    pid, key = pc.allocate(b"x")
    k = ffi.new("mm_key *", {"pid": pid, "head": key.head, "wts": key.wts})
    for refused in (
        lib.mm_allocate(mm, ffi.NULL, EXTENT_MOST + 1, r),
        lib.mm_append(mm, pid, ffi.NULL, EXTENT_MOST + 1, r),
        lib.mm_replace(mm, k, ffi.NULL, EXTENT_MOST + 1, r),
        lib.mm_consolidate(mm, pid, key.wts, ffi.NULL, EXTENT_MOST + 1, r),
    ):
        assert refused == errors.TOOBIG
        assert r.length == EXTENT_MOST > 1 << 30
    error = errors.from_status(errors.TOOBIG, pid=pid, length=EXTENT_MOST, offset=0, file=0, os_error=0)
    assert isinstance(error, mmpc.FragmentTooLarge)
    assert "1 GiB" in str(error)
    assert runs(pc) == []


def test_a_stale_key_is_refused_before_anything_is_written(pc: Store) -> None:
    pid, key = pc.allocate(b"x")
    pc.append(pid, b"y")
    segments = pc.stats().segments
    for verb in (pc.replace, pc.link):
        with pytest.raises(mmpc.Conflict):
            verb(pid, key, blob(10 * SMALL))
    with pytest.raises(mmpc.FragmentTypeError):
        pc.append(pid, ["x" * 10 * SMALL])
    assert (pc.stats().segments, runs(pc)) == (segments, [])


@pytest.mark.slow
def test_a_gibibyte(open_store: Open, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(1).randbytes(1 << 20) * 1024
    pc = open_store(cache_capacity=0)
    pid, _ = pc.allocate(data)
    assert pc.get(pid).unwrap() == data
    with pc.view(pid) as view:
        assert view.nbytes == 1 << 30
        assert view.raw[-5:] == data[-5:]
    with pytest.raises(mmpc.FragmentTooLarge):
        pc.append(pid, data)
        pc._consolidate(pid)
    with pytest.raises(mmpc.FragmentTooLarge):
        pc.allocate(data + bytes(BLOCK))
    pc.flush()
    assert mmpc.verify(path).ok
    pc.close()
    another_boot(monkeypatch)
    pc = open_store(cache_capacity=0)
    assert pc.get_page_frags(pid)[1][0] == data
    pc.free(pid, pc.get_page_frags(pid)[0])
    settle(pc)
    assert taken(pc) < 1 << 25


# ---- space


def test_a_run_is_freed_as_a_whole(pc: Store) -> None:
    before = taken(pc)
    pid, key = pc.allocate(blob(50 * SMALL))
    assert run_of(pc, pid).segments == 51
    assert taken(pc) > before + 50 * SMALL
    pc.free(pid, key)
    settle(pc)
    assert runs(pc) == []
    assert taken(pc) < before + 51 * 2 * BLOCK + 6 * SMALL  # headers, and segments that were opened
    assert mmpc.verify(pc.path).ok


def test_a_run_stays_until_a_mark_covers_what_replaced_it(
    pc: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the epoch has gone on without a flush, as it does where a cleaner claims a segment, or a dead one is
    reaped: after a loss of power the page is what it was.
    """
    pid, key = pc.allocate([blob(150_000)])
    pc.flush()
    pc.replace(pid, key, [0])
    epoch = pc.stats().epoch
    with open(os.path.join(pc.path, "control"), "r+b") as control:
        control.seek(CONTROL_GLOBALS)
        control.write((epoch + 5).to_bytes(8, "little"))
    assert pc.stats().epoch == epoch + 5
    first = pc.stats().segments
    while pc.stats().segments < first + 2:  # whoever opens a segment looks for what can be used again
        pc.allocate([b"x" * 5000])
    lost = loss.copy(pc.path, str(tmp_path / "lost"))
    another_boot(monkeypatch)
    with mmpc.open(lost, mmpc.Append()) as again:
        assert again.get(pid).unwrap() == [blob(150_000)]


def test_only_what_a_payload_needs_is_allocated(open_store: Open) -> None:
    pc = open_store(segment_size=1 << 23)
    pc.flush()
    pid, _ = pc.allocate(blob(5 << 20))
    first = taken(pc)
    pc.allocate(blob(5 << 20, 1))
    assert taken(pc) - first < (5 << 20) + 16 * BLOCK
    assert run_of(pc, pid).segments == 1


def test_replacing_one_page_keeps_the_log_small(pc: Store) -> None:
    pid, key = pc.allocate(blob(8 * SMALL))
    for i in range(100):
        key = pc.replace(pid, key, blob(8 * SMALL + i, i))
    assert uncached(pc, pid) == blob(8 * SMALL + 99, 99)
    assert pc.stats().log_bytes < 60 * SMALL  # of 900
    consistent(pc)


def test_sizes_change_and_segments_go_from_runs_to_leases_and_back(open_store: Open, seed: int, path: str) -> None:
    pc, rng = open_store(segment_size=SMALL, cache_capacity=0), random.Random(seed)
    pages = {pc.allocate(b"")[0]: b"" for _ in range(12)}
    for i in range(500):
        pid, n = rng.choice(list(pages)), rng.choice([0, 10, 2000, 14_000, 20_000, 40_000, 100_000, 400_000])
        data = blob(n, i)
        if rng.random() < 0.3 and len(pages[pid]) < 500_000:
            pc.append(pid, data)
            pages[pid] += data
        else:
            pc.replace(pid, pc.get(pid).key, data)
            pages[pid] = data
        if rng.random() < 0.1:
            pc.attempt_gc()
        if rng.random() < 0.1:
            assert pc.get(pid).unwrap() == pages[pid]
    consistent(pc)
    assert {pid: pc.get(pid).unwrap() for pid in pages} == pages
    settle(pc)
    live = sum(map(len, pages.values()))
    assert taken(pc) < 2 * live + (60 + pc.stats().segments // 8) * SMALL
    assert mmpc.verify(path).problems == []


def test_a_move_of_the_record_leaves_the_run_where_it_is(pc: Store) -> None:
    data = blob(5 * SMALL)
    pid, _ = pc.allocate(data)
    pc.append(pid, b"tail")
    before = run_of(pc, pid)
    for _ in range(3):
        pc.rewrite(pid)
    settle(pc)
    after = run_of(pc, pid)
    assert (after.number, after.generation) == (before.number, before.generation)
    assert uncached(pc, pid) == data + b"tail"


def test_a_consolidation_moves_the_bytes_and_frees_the_runs(pc: Store) -> None:
    parts = [blob(2 * SMALL, i) for i in range(5)]
    pid, _ = pc.allocate(parts[0])
    for part in parts[1:]:
        pc.append(pid, part)
    assert len(runs(pc)) == 5
    pc._consolidate(pid)
    assert uncached(pc, pid) == b"".join(parts)
    assert pc.get_page_frags(pid)[1] == [b"".join(parts)]
    settle(pc)
    assert [run.page for run in runs(pc)] == [pid]


class Lists(mmpc.Materializer[list[Any]]):
    """Concatenates lists, in Python."""

    name = "test.lists-1"

    def merge(self, fragments: list[list[Any]]) -> list[Any]:
        return [item for fragment in fragments for item in fragment]


def test_chains_of_a_python_materializer_become_large(open_store: Open) -> None:
    pc = open_store(Lists(), segment_size=SMALL, page_consolidation_threshold=2)
    pid, _ = pc.allocate([])
    expected: list[Any] = []
    for i in range(120):
        item = blob((i * 977) % 20_000, i)
        pc.append(pid, [item])
        expected.append(item)
        if i % 10 == 0:
            assert pc.get(pid).unwrap() == expected
    assert uncached(pc, pid) == expected
    consistent(pc)
    settle(pc)
    assert sum(run.segments for run in runs(pc)) < 60


def test_a_payload_that_looks_like_a_header_is_put_elsewhere(pc: Store) -> None:
    """What stands at the border of segments could be taken for a header when the run is free."""
    plain, _ = pc.allocate(blob(4 * SMALL))
    number = run_of(pc, plain).number + run_of(pc, plain).segments  # where the next one would go
    image = b"\0MMPCseg" + bytes(8) + (number + 1).to_bytes(8, "little")
    at = SMALL - BLOCK - 5  # five bytes are msgpack's
    data = blob(at) + image + blob(3 * SMALL)
    pid, _ = pc.allocate(data)
    assert run_of(pc, pid).number != number
    assert uncached(pc, pid) == data
    pc.free(pid, pc.get(pid).key)
    settle(pc)
    assert mmpc.verify(pc.path).ok


# ---- views


def test_a_view_holds_its_run(open_store: Open) -> None:
    pc = open_store(mmpc.LastWriteWins(), segment_size=SMALL)
    data = blob(9 * SMALL)
    pid, key = pc.allocate(data)
    other, _ = pc.allocate(blob(9 * SMALL, 1))
    view = pc.view(pid)
    assert view.zero_copy
    shown, run = view.raw, run_of(pc, pid)
    pc.free(pid, key)
    for i in range(40):
        pc.replace(other, pc.get(other).key, blob(9 * SMALL, i))
    settle(pc)
    assert [(r.number, r.page) for r in runs(pc) if r.number == run.number] == [(run.number, pid)]
    assert bytes(shown) == data
    del view, shown
    settle(pc)
    assert run.number not in [r.number for r in runs(pc)]


def test_a_tx_holds_the_runs_of_what_it_may_read(pc: Store) -> None:
    pid, key = pc.allocate(blob(3 * SMALL))
    with pc.begin():
        pc.free(pid, key)
        settle(pc)
        assert len(runs(pc)) == 1
    settle(pc)
    assert runs(pc) == []


def test_mapped_capacity_bounds_what_stays_mapped(open_store: Open) -> None:
    pc = open_store(mapped_capacity=8 << 20, cache_capacity=0)
    data = blob(1 << 20) * 48
    pid, _ = pc.allocate(data)
    assert pc.get(pid).unwrap() == data
    assert lib.mm_mapped(pc._attachment.mm) <= 10 << 20


# ---- processes


def test_several_processes_replace_large_pages(pc: Store, path: str, children: Children, seed: int) -> None:
    pids = [pc.allocate([0, 0, ""])[0] for _ in range(3)]

    def work(number: int) -> int:
        rng, done = random.Random(seed + number), 0
        with mmpc.open(path, mmpc.Append(), cache_capacity=0) as mine:
            for i in range(60):
                pid, page = rng.choice(pids), None
                page = mine.get(pid)
                who, n, text = page.unwrap()
                assert text == f"{who}.{n};" * n
                n = rng.choice([1, 4000, 20_000, 60_000])
                try:
                    mine.replace(pid, page.key, [number, n, f"{number}.{n};" * n])
                    done += 1
                except mmpc.Conflict:
                    pass
                if i % 7 == 0:
                    mine.attempt_gc()
        return done

    started = [children.start(work, k) for k in range(1, 5)]
    assert sum(child.result() for child in started) >= 60
    consistent(pc)
    settle(pc)
    assert {run.page for run in runs(pc)} <= set(pids)
    assert all(run.published for run in runs(pc))


def test_writers_that_are_killed_leave_no_run_behind(pc: Store, path: str, children: Children, seed: int) -> None:
    rng = random.Random(seed)
    pid, _ = pc.allocate(blob(6 * SMALL))

    def work() -> None:
        with mmpc.open(path, mmpc.Append(), cache_capacity=0) as mine:
            for i in range(10**6):
                mine.replace(pid, mine.get(pid).key, bytes([i % 251]) * (6 * SMALL))

    for _ in range(25):
        child = children.start(work)
        time.sleep(0.05 + rng.random() * 0.05)
        child.signal(signal.SIGKILL)
        child.wait()
        value = uncached(pc, pid)
        assert value == blob(6 * SMALL) or value == value[:1] * (6 * SMALL)
        lib.mm_reap_all(pc._attachment.mm, ffi.new("uint64_t *"))
        consistent(pc)
    settle(pc)
    assert [run.page for run in runs(pc)] == [pid]
    consistent(pc)
    assert mmpc.verify(path).ok


def test_a_run_whose_record_was_replaced_by_one_who_died_is_found(pc: Store) -> None:
    """He had no time to say that nobody names it any more: as if he had never begun to."""
    pid, key = pc.allocate(blob(3 * SMALL))
    run = run_of(pc, pid)
    word = 12288 + 1024 * 1024 + 64 * run.number
    with open(os.path.join(pc.path, "control"), "r+b") as f:
        f.seek(word)
        before = f.read(8)
        pc.free(pid, key)
        f.seek(word)
        f.write(before)
    assert [r.number for r in runs(pc)] == [run.number]
    settle(pc)
    assert runs(pc) == []


def test_a_fork_reads_and_writes_them(pc: Store, children: Children) -> None:
    pid, _ = pc.allocate(blob(4 * SMALL))

    def child() -> int:
        assert pc.get(pid).unwrap() == blob(4 * SMALL)
        return int(pc.allocate(blob(5 * SMALL))[0])

    assert pc.get(children.run(child)).unwrap() == blob(5 * SMALL)


# ---- restarts


def test_what_was_not_flushed_is_given_back(
    open_store: Open, path: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True, segment_size=SMALL)
        pids = [pc.allocate(blob(4 * SMALL, i))[0] for i in range(4)]
        pc.flush()
        pc.append(pids[2], blob(5 * SMALL, 8))
        pc.free(pids[1], pc.get(pids[1]).key)
        pc.replace(pids[0], pc.get(pids[0]).key, blob(7 * SMALL, 9))
        os.kill(os.getpid(), signal.SIGKILL)

    children.start(work).wait()
    another_boot(monkeypatch)
    pc = open_store()
    assert pc.was_recovered
    assert [pc.get(pid).unwrap() for pid in range(2, 6)] == [blob(4 * SMALL, i) for i in range(4)]
    assert sorted(run.page for run in runs(pc)) == [2, 3, 4, 5]
    consistent(pc)
    for i in range(30):
        pc.replace(2, pc.get(2).key, blob(7 * SMALL, i))
    pc.flush()
    assert [pc.get(pid).unwrap() for pid in range(3, 6)] == [blob(4 * SMALL, i) for i in range(1, 4)]
    pc.close()
    assert mmpc.verify(path).ok


@pytest.mark.parametrize("with_snapshot", [True, False])
def test_restarts_again_and_again(
    open_store: Open, path: str, seed: int, monkeypatch: pytest.MonkeyPatch, with_snapshot: bool
) -> None:
    """Runs that came and went before, in between, and after a snapshot."""
    rng, expected = random.Random(seed), dict[int, bytes]()
    for boot in range(6):
        another_boot(monkeypatch, f"boot-{boot}")
        pc = open_store(segment_size=SMALL, cache_capacity=0)
        assert {pid: pc.get(pid).unwrap() for pid in expected} == expected
        consistent(pc)
        assert {run.page for run in runs(pc)} <= set(expected)
        for i in range(30):
            data = blob(rng.choice([100, 5000, 40_000, 300_000]), boot << 8 | i)
            if len(expected) < 6 or rng.random() < 0.2:
                expected[pc.allocate(data)[0]] = data
            elif rng.random() < 0.3:
                pid = rng.choice(list(expected))
                pc.free(pid, pc.get(pid).key)
                del expected[pid]
            else:
                pid = rng.choice(list(expected))
                pc.replace(pid, pc.get(pid).key, data)
                expected[pid] = data
            if rng.random() < 0.2:
                pc.attempt_gc()
            if i == 15:
                pc.snapshot()
        pc.flush()
        pc.close()
        assert mmpc.verify(path).problems == []
        for name in os.listdir(path):
            if name.startswith("snapshot") and not with_snapshot:
                os.unlink(os.path.join(path, name))


def test_the_table_is_lost_in_the_same_boot(open_store: Open, path: str) -> None:
    pc = open_store(segment_size=SMALL)
    pids = [pc.allocate(blob(3 * SMALL, i))[0] for i in range(3)]
    pc.append(pids[0], blob(2 * SMALL))
    pc.close()
    os.unlink(os.path.join(path, "table"))
    pc = open_store()
    assert pc.get(pids[0]).unwrap() == blob(3 * SMALL, 0) + blob(2 * SMALL)
    assert len(runs(pc)) == 4
    consistent(pc)


def test_free_runs_at_the_end_are_cut_off(open_store: Open, path: str) -> None:
    pc = open_store(segment_size=SMALL)
    kept, _ = pc.allocate(blob(2 * SMALL))
    pid, key = pc.allocate(blob(60 * SMALL))
    pc.free(pid, key)
    settle(pc)
    pc.close()
    assert os.stat(os.path.join(path, "log")).st_size < 20 * SMALL
    pc = open_store()
    assert pc.get(kept).unwrap() == blob(2 * SMALL)
    again, _ = pc.allocate(blob(30 * SMALL))
    assert uncached(pc, again) == blob(30 * SMALL)


# ---- damage


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_is_found_in_its_piece(open_store: Open, path: str, where: str) -> None:
    pc = open_store(mmpc.LastWriteWins(), segment_size=SMALL)
    pid, _ = pc.allocate(blob(3 * PIECE + 77))
    start = run_of(pc, pid).number * SMALL + BLOCK
    at = {"first": start + 3, "middle": start + PIECE + PIECE // 2, "last": start + 3 * PIECE + 60}[where]
    piece = start + (at - start) // PIECE * PIECE
    flip(path, at)
    pc._drop()
    for read in (pc.get, pc.view, pc.get_page_frags):
        with pytest.raises(mmpc.CorruptionError) as caught:
            read(pid)
        assert (caught.value.file, caught.value.offset) == ("log", piece)
    damage = mmpc.verify(path).damage
    assert [(p.file, p.offset, p.page) for p in damage] == [("log", piece, pid)]
    with pytest.raises(mmpc.CorruptionError):
        pc._check()
    flip(path, at)
    assert uncached(pc, pid) == blob(3 * PIECE + 77)


def test_flipped_bytes_of_the_table_and_the_header(
    open_store: Open, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pc = open_store(segment_size=SMALL)
    n = 2 * PIECE
    pid, _ = pc.allocate(blob(n))
    start = run_of(pc, pid).number * SMALL
    table = start + BLOCK + (n + 5 + 7 & -8)
    flip(path, table + 5)
    pc._drop()
    with pytest.raises(mmpc.CorruptionError) as caught:
        pc.get(pid)
    assert caught.value.offset == table
    assert [p.offset for p in mmpc.verify(path).damage] == [table]
    flip(path, table + 5)
    for at in range(start, start + 80, 9):
        flip(path, at)
        assert mmpc.verify(path).damage, at
        flip(path, at)
    assert uncached(pc, pid) == blob(n)
    pc.snapshot()
    pc.close()
    flip(path, start + 70)  # of the page's id
    for name in ("one", "two"):
        another_boot(monkeypatch, name)
        with pytest.raises(mmpc.CorruptionError) as caught:
            mmpc.open(path, mmpc.Append())
        assert caught.value.offset == start
        for snapshot in Path(path).glob("snapshot-*"):  # the second time without
            snapshot.unlink()
    flip(path, start + 70)
    pc = open_store()
    assert pc.get(pid).unwrap() == blob(n)


def test_salvage_saves_the_others(open_store: Open, path: str, tmp_path: Path) -> None:
    pc = open_store(segment_size=SMALL)
    pids = [pc.allocate(blob(3 * SMALL, i))[0] for i in range(4)]
    pc.append(pids[1], blob(2 * SMALL, 7))
    starts = [run.number * SMALL for pid in pids for run in runs(pc) if run.page == pid]
    pc.close()
    flip(path, starts[0] + BLOCK + 100)  # bytes of a payload: lost
    flip(path, starts[-1] + 20)  # the header of a run: the record is enough
    saved = mmpc.salvage(path, tmp_path / "saved")
    assert [p.page for p in saved.lost] == [pids[0]]
    assert saved.older == []
    with mmpc.open(tmp_path / "saved", mmpc.Append()) as new:
        assert new.get(pids[1]).unwrap() == blob(3 * SMALL, 1) + blob(2 * SMALL, 7)
        assert [new.get(pid).unwrap() for pid in pids[2:]] == [blob(3 * SMALL, i) for i in (2, 3)]
        assert len(runs(new)) == 4


# ---- backup


def test_a_backup_under_load(pc: Store, path: str, tmp_path: Path, children: Children) -> None:
    pids = [pc.allocate([0, "0;"])[0] for _ in range(4)]

    def work(number: int) -> None:
        with mmpc.open(path, mmpc.Append(), cache_capacity=0) as mine:
            for i in range(1, 10**6):
                n = (i * 7919 + number) % 60_000
                mine.replace(pids[number], mine.get(pids[number]).key, [n, f"{n};" * n])
                if i % 5 == 0:
                    mine.flush()

    writers = [children.start(work, k) for k in range(4)]
    for k in range(6):
        dest = tmp_path / f"copy-{k}"
        pc.backup(dest)
        report = mmpc.verify(dest)
        assert report.ok, str(report)
        with mmpc.open(dest, mmpc.Append()) as copy:
            for pid in pids:
                n, text = copy.get(pid).unwrap()
                assert text == f"{n};" * n or n == 0
            consistent(copy)
            copy.allocate(blob(10 * SMALL))
            copy._check()
    for writer in writers:
        writer.kill()


# ---- a full disk


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("segment", [SMALL, 1 << 20])
def test_a_full_disk(kind: str, segment: int, tmp_path: Path) -> None:
    made = memory("16m") if kind == "tmpfs" else ext4(tmp_path / "image", 24)
    with made as disk:
        _fill_and_go_on(disk, segment)


def _fill_and_go_on(disk: Mounted, segment: int) -> None:
    with mmpc.open(disk.path / "store", mmpc.Append(), create=True, segment_size=segment) as pc:
        held: dict[int, bytes] = {}
        for size in (2 << 20, 700_000, 100_000, 30_000, 1000):
            with pytest.raises(mmpc.DiskFullError):
                for i in range(10_000):
                    data = blob(size, i)
                    held[pc.allocate(data)[0]] = data
        for pid, data in held.items():
            assert uncached(pc, pid) == data
        consistent(pc)
        assert all(run.published for run in runs(pc))
        pc.flush()
        for pid in list(held)[:-3]:
            pc.free(pid, pc.get(pid).key)
            del held[pid]
        settle(pc)
        for i in range(3):
            pid, _ = pc.allocate(blob(2 << 20, i))
            held[pid] = blob(2 << 20, i)
        for pid, data in held.items():
            assert uncached(pc, pid) == data
        pc.flush()
        assert mmpc.verify(pc.path).ok


def test_what_is_retired_is_the_room_that_is_missing() -> None:
    """On a disk that holds two of them one page is replaced for ever."""
    with memory("16m") as disk, mmpc.open(disk.path / "store", mmpc.Append(), create=True, segment_size=SMALL) as pc:
        pid, key = pc.allocate(blob(4 << 20))
        for i in range(12):
            key = pc.replace(pid, key, blob(4 << 20, i))
        assert uncached(pc, pid) == blob(4 << 20, 11)


def test_holes_keep_a_header(pc: Store) -> None:
    """It says which generations are gone, for those who come after a restart."""
    pid, key = pc.allocate(blob(4 * SMALL))
    run = run_of(pc, pid)
    pc.free(pid, key)
    settle(pc)
    table = entries(pc)
    for number in range(run.number, run.number + run.segments):
        assert table[number][0] & 15 == HOLE
        with open(os.path.join(pc.path, "log"), "rb") as f:
            f.seek(number * SMALL)
            head = f.read(16)
        assert head[:8] == b"MMPC-run"
        assert int.from_bytes(head[12:16], "little") == run.generation


@pytest.mark.skipif(bool(os.environ.get("MMPC_OTHER_FACE")), reason="this is the other face")
def test_the_other_face_passes_the_same_tests() -> None:
    import subprocess
    import sys

    other = "" if os.environ.get("MMPC_FACE") == "cffi" else "cffi"
    environment = {**os.environ, "MMPC_FACE": other, "MMPC_OTHER_FACE": "1"}
    some = "sizes or verb or flipped"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", some]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
