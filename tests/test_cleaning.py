"""Segments are emptied and used again: what is read stays what it was, and the log does not grow without need."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import _cut, _files, _layout, failpoints
from mmpc._extent import Run, run_at
from mmpc._layout import CONTROL_SEGMENTS, SEGMENT_ENTRY, SEGMENT_ENTRY_SIZE
from mmpc.cli import gather
from support.children import Children
from support.mergers import Tally

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
SMALL = 1 << 16  # the smallest segment
ALL = 2  # enum mm_effort: all that gains anything


def taken(pc: Store) -> int:
    """Bytes that the log has on the device."""
    return os.stat(os.path.join(pc.path, "log")).st_blocks * 512


def churn(pc: Store, pid: int, volume: int, size: int = 2000) -> None:
    """Overwrites a page with that many bytes in all."""
    key = pc.get(pid).key
    for i in range(volume // size):
        key = pc.replace(pid, key, [i, "x" * size])


def clean(pc: Store) -> int:
    """Cleans until there is nothing to do; how often there was."""
    times = 0
    while pc.attempt_gc():
        times += 1
        assert times < 10_000
    return times


# ---- bounds


def test_overwriting_keeps_the_log_small(open_store: Open) -> None:
    pc = open_store(segment_size=SMALL)
    pids = [pc.allocate([i])[0] for i in range(20)]
    for turn in range(200):
        for pid in pids:
            pc.replace(pid, pc.get(pid).key, [turn, pid, "x" * 500])
    assert pc.stats().written > 2_000_000
    assert taken(pc) < 1_500_000
    assert [pc.get(pid).unwrap()[:2] for pid in pids] == [[199, pid] for pid in pids]


def test_appends_to_a_few_pages_keep_the_log_small(open_store: Open) -> None:
    pc = open_store(mmpc.Add(), segment_size=SMALL)
    pids = [pc.allocate(0)[0] for _ in range(10)]
    for _ in range(6000):
        pc.append_many([(pid, 1) for pid in pids])
    assert pc.stats().written > 2_500_000
    assert taken(pc) < 1_500_000
    assert [pc.get(pid).unwrap() for pid in pids] == [6000] * 10


def test_a_segment_of_the_last_generation_is_not_used_again(open_store: Open, path: str) -> None:
    """Generations are compared by size, so none may begin anew; what is worn out is a hole, and costs no room."""
    last, control = 0xFFFFFF, Path(path, "control")
    pc = open_store(segment_size=SMALL)
    pid, entry = pc.allocate(["x" * 1000])[0], SEGMENT_ENTRY_SIZE
    for other, key in [pc.allocate(["x" * 4000]) for _ in range(300)]:
        pc.free(other, key)
    churn(pc, pid, 300_000)
    pc.flush()
    clean(pc)

    def words() -> list[int]:
        data = control.read_bytes()[CONTROL_SEGMENTS:]
        return [SEGMENT_ENTRY.unpack_from(data, n * entry)[0] for n in range(pc.stats().segments)]

    used = words()
    wearing = [n for n, word in enumerate(used) if _layout.STATES[word & 15] in ("free", "hole")]
    assert len(wearing) > 5
    with control.open("r+b") as f:
        for n in wearing:
            f.seek(CONTROL_SEGMENTS + n * entry)
            f.write((used[n] & ~(last << 4) | (last - 1) << 4).to_bytes(8, "little"))
    churn(pc, pid, 3_000_000)
    clean(pc)
    after = words()
    assert all(after[n] >> 4 & last == last for n in wearing)
    assert any(_layout.STATES[after[n] & 15] == "hole" for n in wearing)
    assert all(_layout.STATES[after[n] & 15] in ("hole", "free", "retired", "sealed", "open") for n in wearing)
    churn(pc, pid, 3_000_000)
    clean(pc)
    pc.flush()
    clean(pc)
    assert all(after[n] == words()[n] or _layout.STATES[words()[n] & 15] == "hole" for n in wearing)
    assert taken(pc) < 1_500_000
    value = pc.get(pid).unwrap()
    pc.close()
    for name in ("control", "table"):
        Path(path, name).unlink()
    again = open_store()
    assert again.get(pid).unwrap() == value
    churn(again, pid, 1_000_000)
    assert mmpc.verify(path).ok


def test_freed_pages_give_their_space_back(open_store: Open) -> None:
    pc = open_store(segment_size=SMALL)
    keys = [pc.allocate(["x" * 4000]) for _ in range(500)]
    before = taken(pc)
    assert before > 2_000_000
    for pid, key in keys[10:]:
        pc.free(pid, key)
    clean(pc)
    assert taken(pc) < before / 4 + SMALL  # two hold the reserve
    assert all(pc.get(pid).unwrap() == ["x" * 4000] for pid, _key in keys[:10])
    assert all(pc.get(pid).is_free() for pid, _key in keys[10:])


def test_ids_of_freed_pages_are_used_again_after_their_records_were_moved(open_store: Open) -> None:
    pc = open_store(segment_size=SMALL)
    keys = [pc.allocate(["x" * 1000]) for _ in range(300)]
    for pid, key in keys:
        pc.free(pid, key)
    clean(pc)
    pages = pc.stats().pages
    for _ in range(600):
        pc.allocate([1])
    assert pc.stats().pages < pages + 600


def test_the_last_close_makes_the_log_shorter(open_store: Open, path: str) -> None:
    pc = open_store(segment_size=SMALL)
    kept, _ = pc.allocate(["kept"])
    keys = [pc.allocate(["x" * 4000]) for _ in range(300)]
    before = os.stat(os.path.join(path, "log")).st_size
    for pid, key in keys:
        pc.free(pid, key)
    clean(pc)
    churn(pc, kept, 300_000)
    clean(pc)
    pc.close()
    assert os.stat(os.path.join(path, "log")).st_size <= before
    assert mmpc.verify(path).ok
    again = open_store()
    assert again.get(kept).unwrap()[1] == "x" * 2000
    assert all(again.get(pid).is_free() for pid, _key in keys)
    for _ in range(400):
        again.allocate(["y" * 4000])


def test_a_store_that_was_truncated_is_recovered_and_goes_on(
    open_store: Open, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generations of the segments that were cut off are forgotten: what names them must not be taken for damage."""
    for boot in range(6):
        monkeypatch.setenv("MMPC_BOOT_ID", f"boot {boot}")
        pc = open_store(segment_size=SMALL)
        if not boot:
            page, _ = pc.allocate([0])
        keys = [pc.allocate(["x" * 3000]) for _ in range(100)]
        for pid, key in keys:
            pc.free(pid, key)
        pc.append(page, [boot])
        clean(pc)
        pc.close()
        assert mmpc.verify(path).ok
    assert open_store().get(page).unwrap() == [0, *range(6)]


def cut_store(open_store: Open, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> tuple[str, int]:
    """A store whose log was cut to one segment, in which a lease names one behind it; and a page. `fails`: a place
    that fails while the log would be cut.
    """
    monkeypatch.setenv("MMPC_BOOT_ID", "first")
    with open_store(segment_size=SMALL) as pc:
        pages = [pc.allocate(["x" * 3000]) for _ in range(15)]
        page, _ = pc.allocate([0])
        for pid, key in pages + [pc.allocate(["x" * 3000]) for _ in range(10)]:
            pc.free(pid, key)
        pc._clean(ALL, 1 << 30)
    monkeypatch.setenv("MMPC_BOOT_ID", "second")
    pc = open_store()
    pc.append(page, [1])
    for pid in range(page + 11):
        pc.rewrite(pid)
    for _ in range(4):
        pc.flush()
        pc._clean(ALL, 1 << 30)
    pc.snapshot()
    with failpoints.active(fails) if fails else nullcontext():
        pc.close()
    assert (os.stat(os.path.join(pc.path, "log")).st_size == SMALL) == (not fails)
    return pc.path, page


def cuts(path: str) -> list[tuple[int, int]]:
    config = _files.read_config(path)
    assert config is not None
    return list(config.cuts)


def test_what_was_cut_off_is_not_missed_when_the_log_is_longer_again(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run lies behind a segment that nobody has used since: its place is inside the log, and has no header."""
    path, page = cut_store(open_store, monkeypatch)
    ((_, segments),) = cuts(path)
    assert segments == 1
    pc = open_store()
    large = [pc.allocate(["y" * 200_000])[0] for _ in range(2)]
    pc.append(page, [2])
    pc.flush()
    copy = str(tmp_path / "copy")
    shutil.copytree(path, copy)
    with open(os.path.join(copy, "log"), "rb") as log:
        log.seek(SMALL)
        assert not any(log.read(4096)), "a blank place, or this tests nothing"
    monkeypatch.setenv("MMPC_BOOT_ID", "third")
    config = _files.read_config(copy)
    assert config is not None
    assert mmpc.verify(copy).ok
    with mmpc.open(copy, mmpc.Append()) as again:
        assert again.get(page).unwrap() == [0, 1, 2]
        assert [again.get(pid).unwrap() for pid in large] == [["y" * 200_000]] * 2
    _files.write_config(copy, config.changed(cuts=()))
    monkeypatch.setenv("MMPC_BOOT_ID", "fourth")
    assert not mmpc.verify(copy).ok, "it is the cut that says so"
    with pytest.raises(mmpc.CorruptionError):
        mmpc.open(copy, mmpc.Append())


def test_a_cut_is_forgotten_when_all_behind_it_has_a_header_again(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, page = cut_store(open_store, monkeypatch)
    kept = cuts(path)
    with open_store() as pc:
        pages = [pc.allocate(["z" * 3000])[0] for _ in range(100)]
    for n in range(20):
        with open_store() as pc:
            pid = pages.pop()
            pc.free(pid, pc.get(pid).key)
            pc._clean(ALL, 1 << 30)
    assert cuts(path) != kept
    assert len(cuts(path)) == 1
    with open_store() as pc:
        assert pc.get(page).unwrap() == [0, 1]


def test_a_header_from_before_a_cut_says_nothing_new(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails while the log is cut: of a segment behind the cut only the sector of its header is there again.
    The cut must not be forgotten for it: it is of the generation that a lease names, and the lease is gone.
    """
    path, page = cut_store(open_store, monkeypatch, "log truncate")
    (before,) = cuts(path)
    name = Path(path, "log")
    name.write_bytes(name.read_bytes()[: SMALL + 512].ljust(2 * SMALL, b"\0"))
    monkeypatch.setenv("MMPC_BOOT_ID", "third")
    with open_store() as pc:
        assert pc.get(page).unwrap() == [0, 1]
        for _ in range(5):
            pc.allocate(["z" * 3000])
        pid, key = pc.allocate(["y" * 200_000])
        pc.flush()
        pc.free(pid, key)
    after = cuts(path)
    assert after[-1][1] > before[1], "cut again behind what came back"
    assert before in after
    monkeypatch.setenv("MMPC_BOOT_ID", "fourth")
    for snapshot in Path(path).glob("snapshot-*"):
        snapshot.unlink()  # all of the log is read
    assert mmpc.verify(path).damage == []
    with open_store() as pc:
        assert pc.get(page).unwrap() == [0, 1]


@pytest.mark.parametrize("again", [False, True], ids=["the log as cut", "the log longer again"])
def test_a_snapshot_from_before_a_cut_takes_nothing_for_lost(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """It was removed, and is there again: its pages have left what was cut off, and records that stayed say where."""
    with open_store(segment_size=SMALL) as pc:
        path, kept = pc.path, pc.allocate([0])[0]
        pages = [pc.allocate(["x" * 20_000])[0] for _ in range(24)]
        moves = pc.allocate(["y" * 20_000])[0]
        pc.snapshot()
        old = next(Path(path).glob("snapshot-*"))
        shutil.copy(old, tmp_path)
        for pid in pages:
            pc.free(pid, pc.get(pid).key)
    while not cuts(path):  # its lease moves to the beginning of the log
        with open_store() as pc:
            for size in (20_000, 1):
                pc.replace(moves, pc.get(moves).key, ["y" * size])
            pc._clean(ALL, 1 << 30)
    if again:
        with open_store() as pc:
            for _ in range(12):
                pc.allocate(["z" * 20_000])
    monkeypatch.setenv("MMPC_BOOT_ID", "second")
    for snapshot in Path(path).glob("snapshot-*"):
        snapshot.unlink()
    shutil.copy(tmp_path / old.name, old)
    config = _files.read_config(path)
    assert config is not None
    copy = str(tmp_path / "copy")
    shutil.copytree(path, copy)
    assert mmpc.verify(path).ok
    with open_store() as pc:
        assert pc.get(kept).unwrap() == [0]
        assert pc.get(moves).unwrap() == ["y"]
        assert all(pc.get(pid).is_free() for pid in pages)
    if not again:
        _files.write_config(copy, config.changed(cuts=()))
        assert not mmpc.verify(copy).ok, "it is the cut that says so"
        with pytest.raises(mmpc.CorruptionError):
            mmpc.open(copy, mmpc.Append())


@pytest.mark.parametrize("fails", ["write_config crc", "write_config mv", "log truncate"])
def test_a_cut_that_cannot_be_made_costs_nothing(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """It is said first, in whole or not at all, and one who leaves later makes it."""
    path, page = cut_store(open_store, monkeypatch, fails)
    assert len(cuts(path)) == (fails == "log truncate")
    assert mmpc.verify(path).ok
    with open_store() as pc:
        assert pc.get(page).unwrap() == [0, 1]
    if fails != "log truncate":  # else what is published has shrunk: the file is longer until it is cut again
        assert os.stat(os.path.join(path, "log")).st_size == SMALL
    assert len(cuts(path)) == 1


def spent_run(open_store: Open) -> tuple[str, int]:
    """A closed store with a run that was given back in the middle of it, behind which the log was cut, and its number.
    Its header is told to speak of nine segments, of the smallest generation.
    """
    with open_store(segment_size=SMALL) as pc:
        pid, key = pc.allocate(["y" * 200_000])
        for _ in range(50):
            pc.allocate(["x" * 3000])
        pc.free(pid, key)
        for _ in range(3):
            pc.flush()
            pc._clean(ALL, 1 << 30)
        gone = [pc.allocate(["z" * 300_000]) for _ in range(2)]
        ((n, run),) = [(n, run) for n, run in headers(pc.path) if run.segments == 4]
        forge(pc.path, Run(n, 1, run.page, 9))
        for pid, key in gone:
            pc.free(pid, key)
        for _ in range(3):
            pc.flush()
            pc._clean(ALL, 1 << 30)
        path = pc.path
    return path, n


def headers(path: str) -> list[tuple[int, Run]]:
    data, config = Path(path, "log").read_bytes(), _files.read_config(path)
    assert config is not None
    found = [(at // SMALL, run_at(data[at : at + 4096], at // SMALL, config.uuid)) for at in range(0, len(data), SMALL)]
    return [(n, run) for n, run in found if run is not None]


def forge(path: str, run: Run) -> None:
    config = _files.read_config(path)
    assert config is not None
    with open(os.path.join(path, "log"), "r+b") as log:
        log.seek(run.number * SMALL)
        log.write(run.packed(config.uuid))


def test_a_spent_run_does_not_speak_of_what_is_cut_off(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments that get these numbers again may begin with a smaller generation: its header would call them its own."""
    path, n = spent_run(open_store)
    ((_, kept),) = cuts(path)
    assert n < kept < n + 9
    assert dict(headers(path))[n].segments == kept - n
    forge(path, Run(n, 1, 2, 9))  # by a recovery as well, where the log ends before a run did
    monkeypatch.setenv("MMPC_BOOT_ID", "another")
    size = os.stat(os.path.join(path, "log")).st_size // SMALL
    with open_store() as pc:
        assert dict(headers(path))[n].segments == size - n
        assert pc.get(3).unwrap() == ["x" * 3000]
    assert mmpc.verify(path).ok


def test_a_header_whose_sync_failed_is_written_again_before_the_log_is_cut(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel calls its page clean, and the header says already what it should: a sync alone writes nothing."""
    written: list[int] = []
    synced: list[int] = []

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        written.append(offset // SMALL)
        return os.pwrite(fd, data, offset)

    def fdatasync(fd: int) -> None:
        synced.append(fd)
        if len(synced) == 1:
            raise OSError(5, "Input/output error")
        os.fdatasync(fd)

    calls = {"pread": os.pread, "pwrite": pwrite, "fdatasync": fdatasync}
    monkeypatch.setattr(_cut, "os", type("os", (), {name: staticmethod(call) for name, call in calls.items()}))
    path, n = spent_run(open_store)
    assert (cuts(path), written, len(synced)) == ([], [n], 1)
    with open_store():
        pass
    assert (len(cuts(path)), written, len(synced)) == (1, [n, n], 2)


# ---- what is read


def test_every_kind_of_page_is_moved_as_it_is(open_store: Open) -> None:
    pc = open_store(Tally(), segment_size=SMALL, page_consolidation_threshold=50)
    base, _ = pc.allocate(["base"])
    chain, _ = pc.allocate(["a"])
    for i in range(9):
        pc.append(chain, [i])
    freed, key = pc.allocate(["gone"])
    pc.free(freed, key)
    old = pc.get(chain).key
    frags = pc.get_page_frags(chain)[1]
    other, _ = pc.allocate([0])
    churn(pc, other, 600_000)
    pc._clean(ALL, 1 << 30)
    assert pc.stats().moved > 0
    assert pc.get(base).unwrap() == ["base"]
    assert pc.get_page_frags(chain)[1] == frags
    assert pc.get(freed).is_free()
    pc.link(chain, old, ["a key stays valid: nothing was changed"])
    assert pc.get(chain).unwrap() == ["a", *range(9), "a key stays valid: nothing was changed"]


def test_rewrite_moves_a_page_and_changes_nothing(open_store: Open) -> None:
    pc = open_store()
    pid, _ = pc.allocate([1])
    pc.append(pid, [2])
    page = pc.get(pid)
    pc.rewrite(pid)
    key, frags = pc.get_page_frags(pid)
    assert key.head != page.key.head
    assert frags == [[1], [2]]
    pc.link(pid, page.key, [3])
    with pytest.raises(mmpc.PageNotFound):
        pc.rewrite(10**6)
    with pytest.raises(TypeError):
        pc.rewrite("2")  # type: ignore[arg-type]
    freed, key = pc.allocate([1])
    pc.free(freed, key)
    pc.rewrite(freed)
    assert pc.get(freed).is_free()


def test_a_tx_keeps_what_it_may_see_from_being_used_again(open_store: Open) -> None:
    pc = open_store(segment_size=SMALL)
    pid, _ = pc.allocate([0])
    churn(pc, pid, 400_000)
    with pc.begin():
        clean(pc)
        held = pc.stats()
        assert held.segments_retired > 0
        churn(pc, pid, 400_000)
        assert pc.stats().segments_retired >= held.segments_retired
    clean(pc)
    assert pc.stats().segments_retired == 0


def test_nothing_to_do(open_store: Open) -> None:
    pc = open_store()
    pc.allocate([1])
    assert pc.attempt_gc() is False
    reader = open_store(read_only=True)
    for call in (reader.attempt_gc, lambda: reader.rewrite(2)):
        with pytest.raises(mmpc.Unsupported):
            call()
    pc.close()
    with pytest.raises(mmpc.Closed):
        pc.attempt_gc()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("segment_cleanup_threshold", 0.0, ValueError),
        ("segment_cleanup_threshold", float("nan"), ValueError),
        ("segment_cleanup_threshold", 1.0, ValueError),
        ("segment_cleanup_threshold", "0.4", TypeError),
        ("segment_cleanup_skew", 99, ValueError),
        ("segment_cleanup_skew", -1, ValueError),
        ("segment_cleanup_skew", 1.5, TypeError),
    ],
)
def test_options_that_cannot_be(open_store: Open, name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        open_store(**{name: value})


def three_quarters(open_store: Open) -> Store:
    """A store of forty segments and more, of each of which three quarters are live."""
    pc = open_store(segment_size=SMALL, segment_cleanup_threshold=0.5, segment_cleanup_skew=0)
    ids = []
    while pc.stats().segments < 40:
        ids += [pc.allocate(["x" * 960])[0] for _ in range(4)]
    for pid in ids[::4]:
        pc.free(pid, pc.get(pid).key)
    pc.flush()
    return pc


def emptied(pc: Store, before: dict[int, int]) -> list[int]:
    """Segments that had a life then which has ended."""
    found = {s.number: s.generation for s in gather.Store(pc.path).segments(disk=False) if s.used}
    return [number for number, generation in before.items() if found.get(number) != generation]


def test_segments_below_the_threshold_are_emptied(open_store: Open) -> None:
    pc = three_quarters(open_store)
    before = {s.number: s.generation for s in gather.Store(pc.path).segments(disk=False) if s.state == "sealed"}
    clean(pc)
    assert len(emptied(pc, before)) <= 2  # those with the records of what was freed
    clean(open_store(segment_cleanup_threshold=0.9, segment_cleanup_skew=0))
    assert len(emptied(pc, before)) > 0.7 * len(before)
    assert pc.stats().log_live > 0.85 * pc.stats().log_used


def test_the_skew_is_for_the_beginning_of_the_log(open_store: Open) -> None:
    """In the middle half of it is left, so three quarters are below the threshold in about the first half alone."""
    pc = three_quarters(open_store)
    before = {s.number: s.generation for s in gather.Store(pc.path).segments(disk=False) if s.state == "sealed"}
    clean(pc)
    clean(open_store(segment_cleanup_threshold=0.5, segment_cleanup_skew=50))
    there = pc.stats().segments
    gone = [number for number in emptied(pc, before) if number < 0.9 * there]
    assert len(gone) > 0.2 * len(before)
    assert max(gone) < 0.7 * there


# ---- many processes


def _work(path: str, pids: list[int], counter: int, seed: int, steps: int) -> dict[int, list[Any]]:
    """Verbs on pages that only this process writes, and a counter that all do; cleans now and then."""
    rng, model = random.Random(seed), {pid: [0] for pid in pids}
    with mmpc.open(path, mmpc.Append()) as pc:
        for step in range(steps):
            pid = rng.choice(pids)
            page = pc.get(pid)
            assert page.unwrap() == model[pid]
            draw = rng.random()
            if draw < 0.5:
                model[pid] = [step, "x" * rng.randrange(3000)]
                pc.replace(pid, page.key, model[pid])
            elif draw < 0.9:
                model[pid] = [*model[pid], step]
                pc.append(pid, [step])
            elif draw < 0.92:
                pc.attempt_gc()
            elif draw < 0.94:
                pc.rewrite(pid)
            else:
                pc.append(counter, ["c"])
    return model


@pytest.mark.processes
def test_several_processes_clean_while_all_write(open_store: Open, path: str, children: Children, seed: int) -> None:
    pc = open_store(segment_size=SMALL)
    counter, _ = pc.allocate([])
    pids = [[pc.allocate([0])[0] for _ in range(12)] for _ in range(4)]
    models = children.map(_work, [(path, pids[i], counter, seed + i, 1500) for i in range(4)])
    for model in models:
        assert {pid: pc.get(pid).unwrap() for pid in model} == model
    s = pc.stats()
    assert s.cleaned > 20
    assert s.log_used < s.log_live * 3 + 12 * SMALL
    assert mmpc.verify(path).ok


def _until_killed(path: str, pids: list[int], seed: int, told: int) -> None:
    """Counts up on each page; says so before and after."""
    rng = random.Random(seed)
    pc = mmpc.open(path, mmpc.LastWriteWins())
    while True:
        pid = rng.choice(pids)
        n = pc.get(pid).unwrap()[0] + 1
        pc.append(pid, [n, "x" * rng.randrange(2500)])
        os.write(told, pid.to_bytes(4, "little") + n.to_bytes(4, "little"))
        if not rng.randrange(30):
            pc.attempt_gc()


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_cleaners_that_die_or_stop_lose_nothing(
    open_store: Open, path: str, children: Children, seed: int, number: int
) -> None:
    pc = open_store(mmpc.LastWriteWins(), segment_size=SMALL)
    pids = [[pc.allocate([0, ""])[0] for _ in range(8)] for _ in range(3)]
    newest = {pid: 0 for own in pids for pid in own}
    read, told = os.pipe()
    os.set_blocking(read, False)
    rng = random.Random(seed)

    def note() -> None:
        while True:
            try:
                data = os.read(read, 8)
            except BlockingIOError:
                return
            newest[int.from_bytes(data[:4], "little")] = int.from_bytes(data[4:], "little")

    for _ in range(12):
        workers = [children.start(_until_killed, path, own, rng.getrandbits(30), told) for own in pids]
        for worker in workers:
            end = time.monotonic() + rng.random() * 0.2
            while time.monotonic() < end:
                note()
            worker.signal(number)
        note()
        pc.attempt_gc()
        for pid, n in newest.items():
            assert pc.get(pid).unwrap()[0] >= n
        for worker in workers:
            worker.kill()
        note()
        for pid, n in newest.items():
            newest[pid] = pc.get(pid).unwrap()[0]
            assert n <= newest[pid] <= n + 1  # one may have been killed before it could tell
    os.close(read)
    os.close(told)
    clean(pc)
    # While somebody stands still nothing is used again, so the log grows; a hole keeps its first and its last block.
    assert taken(pc) < 3_000_000 + pc.stats().segments_free * 8192
    assert pc.stats().cleaned > 10
    assert mmpc.verify(path).ok
