"""Metrics: exact counts over processes that live, leave and die, histograms, the profile and the format of Prometheus.

The whole file runs again under the portable face.
"""

from __future__ import annotations

import io
import itertools
import json
import mmap
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmpc
from mmpc import _face, _metrics
from mmpc._layout import COUNTERS, HISTOGRAM_WORDS, METRICS_ROWS, ROW_WORDS, WORDS_OF_COUNTERS
from mmpc._native import ffi, lib
from support.children import Children, Gate

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
PORTABLE = _face.Verbs.__module__ == "mmpc._portable"
SMALL = 1 << 16


def row_of(path: str, slot: int) -> memoryview:
    """The words of a slot's row, from the file."""
    data = Path(path, "metrics").read_bytes()[METRICS_ROWS + slot * ROW_WORDS * 8 :][: ROW_WORDS * 8]
    return memoryview(data).cast("Q")


# ---- counts


def test_each_verb_is_counted_once(open_store: Open) -> None:
    pc = open_store(cache_capacity=1 << 20)
    pid, key = pc.allocate(b"x")
    for _ in range(9):
        key = pc.append(pid, b"y" * 10)
    key = pc.link(pid, key, b"z")
    key = pc.replace(pid, key, b"whole")
    with pytest.raises(mmpc.Conflict):
        pc.replace(pid, pc.link(pid, key, b"1") and key, b"2")
    other, its = pc.allocate(b"")
    pc.free(other, its)
    for _ in range(5):
        pc.get(pid)
    pc.get_page_frags(pid)
    pc.append_many([(pid, b"a"), (pid, b"b")])
    pc.view(pid).release()
    pc.flush()
    pc.flush()  # nothing is dirty
    pc.snapshot()
    pc.rewrite(pid)
    found = pc.metrics().counters
    assert {n: found[n] for n in ("allocates", "appends", "links", "replaces", "frees", "conflicts")} == {
        "allocates": 2,
        "appends": 11,
        "links": 2,
        "replaces": 1,
        "frees": 1,
        "conflicts": 1,
    }
    assert (found["cache_hits"], found["cache_misses"], found["fragment_reads"]) == (4, 1, 1)
    assert found["cache_hits_asked"] == (4 if PORTABLE else 0)
    assert found["views"] == 1
    assert found["consolidations"] == 1  # for the view
    assert found["rewrites"] == 1
    assert found["attaches"] == 1
    assert found["snapshots"] == 1
    assert found["flushes"] >= found["syncs"] >= 2
    assert 0 < found["leases"] * 4096 <= found["leased_bytes"] + 64 * found["leases"]
    sizes = [1, *[10] * 9, 1, 5, 1, 0, 0, 1, 1]
    assert found["payload_bytes"] == sum(sizes) + 2 * (len(sizes) - 1)  # each with its header; a free page has none


def test_evictions_are_those_of_the_cache(open_store: Open) -> None:
    pc = open_store(cache_capacity=20_000)
    pids = [pc.allocate(b"v" * 1000)[0] for _ in range(100)]
    for pid in pids:
        pc.get(pid)
    found = pc.metrics().counters
    assert found["cache_evictions"] == pc._cache_info()[4] > 50
    assert found["cache_misses"] == 100


def test_get_many_counts_each(open_store: Open) -> None:
    pc = open_store()
    pids = [pc.allocate(b"%d" % i)[0] for i in range(10)]
    pc.get_many(pids * 3)
    m = pc.metrics()
    assert (m.counters["cache_hits"], m.counters["cache_misses"]) == (20, 10)
    assert m.hit_rate == 2 / 3


def worker(path: str, seed: int, gate: Gate, told: mmap.mmap, index: int, end: bool) -> None:
    """Writes and reads at random, and tells before and behind each operation; for ever, or 400 times."""
    rng = random.Random(seed)
    pc = mmpc.open(path, mmpc.Append())
    pids = [2, 3, 4]
    gate.wait()
    done = memoryview(told).cast("Q")
    for _ in range(400) if end else iter(int, 1):
        pid = rng.choice(pids)
        if rng.random() < 0.5:
            pc.append(pid, b"12345")
            done[2 * index] += 1
        else:
            pc.get(pid)
            done[2 * index + 1] += 1
    pc.close()


def test_all_processes_that_ever_were_are_counted(open_store: Open, path: str, children: Children, seed: int) -> None:
    """A kill takes at most the operation under way, and fewer than 256 hits; the rest is in the sum for good."""
    rng = random.Random(seed)
    pc = open_store()
    for _ in range(3):
        pc.allocate(b"begin")
    before, told, killed = pc.metrics(), mmap.mmap(-1, 4096), 0
    for turn in range(3):
        gate = Gate()
        started = [
            children.start(worker, path, rng.randrange(1 << 30), gate, told, 8 * turn + i, i < 2) for i in range(4)
        ]
        ending, dying = started[:2], started[2:]
        gate.open()
        for child in ending:
            child.result()
        for i, child in enumerate(dying):
            while sum(memoryview(told).cast("Q")[2 * (8 * turn + 2 + i) :][:2]) < 50:
                time.sleep(0.001)
            child.kill()
            killed += 1
    counted = memoryview(told).cast("Q")
    appends, gets = sum(counted[0:96:2]), sum(counted[1:96:2])
    now = pc.metrics()
    found = now.counters
    assert appends <= found["appends"] - before.counters["appends"] <= appends + killed
    seen = sum(found[n] - before.counters[n] for n in ("cache_hits", "cache_misses"))
    assert gets - 255 * killed <= seen <= gets + killed
    assert found["attaches"] == 1 + 12
    written = sum(len(pc.get(pid).unwrap()) - 5 for pid in (2, 3, 4)) // 5
    assert found["appends"] <= written <= found["appends"] + killed
    lib.mm_reap_all(pc._attachment.mm, ffi.new("uint64_t *"))
    after = pc.metrics()
    assert after.counters["reaps"] == killed
    assert after.counters["appends"] == found["appends"]  # reaping moves nothing
    assert [p.slot for p in after.processes] == [pc._attachment.slot]


def test_hits_are_told_late_and_whole(open_store: Open, path: str) -> None:
    """Each 256th, at a miss, at a close, and to who asks through the handle; another one lacks fewer than 256."""
    pc, other = open_store(), mmpc.open(path, mmpc.Append())
    pids = [pc.allocate(b"x")[0] for _ in range(2)]
    for pid in pids:
        other.get(pid)
    done = 0
    for turn in range(3000):
        other.get(pids[turn % 2])
        done += 1
        if turn == 2000:
            other._drop(pids[0])
            assert done - 256 < _metrics.read(path).counters["cache_hits"] <= done
            other.get(pids[0])
            assert PORTABLE or _metrics.read(path).counters["cache_hits"] == done
        if turn % 500 == 499:
            seen = _metrics.read(path).counters["cache_hits"]
            assert done - 256 < seen <= done
            m = other.metrics()
            assert m.counters["cache_hits"] == done
            assert done - 256 < m.histograms["get_hit"].count <= done
    other.get_many(pids * 50)
    other.close()
    assert pc.metrics().counters["cache_hits"] == done + 100


def test_untold_hits_are_counted_once_though_the_process_forks(open_store: Open, children: Children) -> None:
    pc = open_store()
    pid, _ = pc.allocate(b"x")
    for _ in range(400):  # the first is a miss
        pc.get(pid)

    def child() -> None:
        pc.get(pid)
        pc.close()

    children.run(child)
    found = pc.metrics().counters
    assert (found["cache_hits"], found["cache_misses"]) == (400, 1)


def test_several_threads(open_store: Open) -> None:
    pc = open_store()
    pids = [pc.allocate(b"")[0] for _ in range(4)]
    before = pc.metrics().counters

    def work(pid: int) -> None:
        for _ in range(500):
            pc.append(pid, b"1")
            pc.get(pid)
            pc.get(pid)

    threads = [threading.Thread(target=work, args=(pid,)) for pid in pids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = pc.metrics().counters
    assert found["appends"] == 2000
    gets = sum(found[n] - before[n] for n in ("cache_hits", "cache_misses"))
    assert gets == 4000


def test_a_slot_goes_on_with_its_row(path: str, children: Children) -> None:
    """Closing and opening again loses nothing; what one process did is the difference."""
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate(b"x")
        for _ in range(70):
            pc.append(pid, b"y")
        keeper = mmpc.open(path, mmpc.Append())
    with keeper, mmpc.open(path, mmpc.Append()) as again:
        assert again._attachment.slot == 0
        again.append(pid, b"y")
        m = again.metrics()
        assert m.counters["appends"] == 71
        assert {p.slot: p.counters["appends"] for p in m.processes} == {0: 1, 1: 0}
        assert {p.process for p in m.processes} == {os.getpid()}
        assert all(p.alive for p in m.processes)


def test_a_fork_counts_in_a_row_of_its_own(open_store: Open, path: str, children: Children) -> None:
    pc = open_store()
    pid, _ = pc.allocate(b"x")
    pc.get(pid)

    def child() -> dict[str, int]:
        for _ in range(30):
            pc.append(pid, b"y")
            pc.get(pid)
        mine = {p.process: p.counters for p in pc.metrics().processes}[os.getpid()]
        pc.close()
        return mine

    mine = children.run(child)
    assert (mine["appends"], mine["cache_hits"] + mine["cache_misses"], mine["allocates"]) == (30, 30, 0)
    m = pc.metrics()
    assert m.counters["appends"] == 30
    assert m.counters["cache_hits"] + m.counters["cache_misses"] == 31
    assert [p.counters["allocates"] for p in m.processes] == [1]


def test_a_pickled_handle_counts_or_does_not_as_it_did(open_store: Open) -> None:
    pc = open_store(metrics=False)
    pc.allocate(b"x")
    with pickle.loads(pickle.dumps(pc)) as other:
        other.allocate(b"y")
    assert pc.metrics().counters["allocates"] == 0
    with pytest.raises(TypeError, match="metrics must be True or False"):
        open_store(metrics=1)
    with pytest.raises(TypeError, match="print_profile_on_close"):
        open_store(print_profile_on_close=None)


def test_cleaning_and_helping_show(open_store: Open) -> None:
    pc = open_store(segment_size=SMALL)
    pid, key = pc.allocate(b"0" * 2000)
    stay = [pc.allocate(b"1" * 500)[0] for _ in range(20)]
    for i in range(600):
        key = pc.replace(pid, key, b"%d" % i * 700)
    while pc.attempt_gc():
        continue
    m, s = pc.metrics(), pc.stats()
    assert m.counters["cleaned_segments"] == s.cleaned > 0
    assert m.counters["moved_bytes"] == s.moved
    assert m.counters["cleanings"] == m.histograms["clean"].count > 0
    assert m.histograms["lease"].count == m.counters["leases"]
    assert m.histograms["sync"].count == m.counters["syncs"]
    assert m.histograms["flush_batch"].count >= m.counters["syncs"]
    assert pc.get(stay[0]).unwrap() == b"1" * 500


def test_a_recovery_begins_anew_and_is_counted(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate(b"x")
    assert _metrics.read(path).counters["allocates"] == 1  # closed, and readable
    monkeypatch.setenv("MMPC_BOOT_ID", "another boot")
    begun = time.time()
    with mmpc.open(path, mmpc.Append()) as pc:
        m = pc.metrics()
        assert (m.counters["recoveries"], m.histograms["recover"].count, m.counters["allocates"]) == (1, 1, 0)
        assert begun - 1 <= m.since <= time.time()
        assert pc.get(pid).unwrap() == b"x"


# ---- nothing depends on the file


@pytest.mark.parametrize("how", ["missing", "empty", "other", "directory", "hole"])
def test_a_store_without_usable_metrics_works(path: str, how: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as keeper:
        pid, _ = keeper.allocate(b"x")
        file = Path(path, "metrics")
        old = file.read_bytes()
        file.unlink()
        if how == "directory":
            file.mkdir()
        elif how != "missing":
            file.write_bytes({"empty": b"", "other": old[:8] + bytes(8) + old[16:], "hole": old[:4096]}[how])
        with mmpc.open(path, mmpc.Append()) as pc:
            pc.append(pid, b"y")
            assert pc.get(pid).unwrap() == b"xy"
            if how == "hole":
                assert pc.metrics().counters["appends"] == 1
            else:
                with pytest.raises((mmpc.Unsupported, mmpc.CorruptionError)):
                    pc.metrics()
        assert mmpc.verify(path).ok
        if how == "directory":
            file.rmdir()


def test_a_file_that_is_cut_while_it_is_counted_in(path: str, children: Children) -> None:
    """No verb fails: what comes after is counted where nobody sees it."""

    def cut() -> int:
        pc = mmpc.open(path, mmpc.Append(), create=True)
        pid, key = pc.allocate(b"x")
        pc.get(pid)
        os.truncate(os.path.join(path, "metrics"), 0)
        for _ in range(1000):
            assert pc.get(pid).unwrap() == b"x"
        for _ in range(300):
            key = pc.append(pid, b"y")
            pc.get(pid)
        pc.replace(pid, key, b"z")
        pc.flush()
        assert pc.get(pid).unwrap() == b"z"
        pc.close()
        return pid

    pid = children.run(cut)
    with mmpc.open(path, mmpc.Append()) as pc:
        assert pc.get(pid).unwrap() == b"z"


def test_bytes_of_others_are_numbers_and_no_more(path: str, seed: int) -> None:
    rng = random.Random(seed)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate(b"x")
        for _ in range(20):
            with open(os.path.join(path, "metrics"), "r+b") as f:
                f.seek(METRICS_ROWS + rng.randrange(0, 60_000))
                f.write(rng.randbytes(rng.choice([1, 8, 4000])))
            pc.append(pid, b"y")
            m = pc.metrics()
            pc.print_profile(io.StringIO())
            json.dumps(m.as_dict())
            strictly_parsed(mmpc.prometheus(pc))
        assert len(pc.get(pid).unwrap()) == 21


def test_reading_needs_no_slot_and_writes_nothing(open_store: Open, path: str) -> None:
    pc = open_store()
    pc.allocate(b"x")
    before = {name: Path(path, name).read_bytes() for name in ("control", "metrics", "lock")}
    assert _metrics.read(path).counters["allocates"] == 1
    assert {name: Path(path, name).read_bytes() for name in before} == before
    with pytest.raises(FileNotFoundError):
        _metrics.read(path + ".none")
    shutil.copytree(path, path + ".copy")
    os.unlink(os.path.join(path + ".copy", "metrics"))
    with pytest.raises(mmpc.Unsupported, match="keeps no metrics"):
        _metrics.read(path + ".copy")


# ---- histograms


def recorded(pc: Store, name: str, values: list[int]) -> mmpc.Histogram:
    number = lib.mm_metric_named(1, name.encode())
    for value in values:
        lib.mm_metrics_record(pc._attachment.mm, number, value, 1)
    return pc.metrics().histograms[name]


def test_percentiles_are_those_of_numpy(open_store: Open, seed: int) -> None:
    """To within a sixteenth, and the numbers that are kept are exact."""
    rng = np.random.default_rng(seed)
    pc = open_store()
    data = {
        "snapshot": rng.lognormal(10, 3, 5000),
        "clean": rng.exponential(1000, 5000),
        "rewrite": rng.integers(0, 40, 3000),
        "recover": rng.integers(0, 1 << 42, 3000),
        "consolidate": np.array([7.0]),
    }
    for name, drawn in data.items():
        values = [int(v) for v in drawn]
        h = recorded(pc, name, values)
        assert (h.count, h.sum, h.least, h.greatest) == (len(values), sum(values), min(values), max(values))
        assert h.mean == sum(values) / len(values)
        for q in (0, 1, 25, 50, 90, 99, 99.9, 100):
            exact = float(np.percentile(values, q, method="inverted_cdf"))
            assert abs(h.percentile(q) - exact) <= max(exact / 16, 0.5), (name, q)
        assert (h.p50, h.p90, h.p99, h.p999) == tuple(h.percentile(q) for q in (50, 90, 99, 99.9))
    with pytest.raises(ValueError, match="between 0 and 100"):
        h.percentile(101)


def test_buckets_tell_values_apart(open_store: Open, seed: int) -> None:
    """Each value is in the bucket that says so; the bounds join, an eighth of a doubling apart."""
    lows = [lib.mm_bucket_least(i) for i in range(329)]
    assert lows[:17] == list(range(17))
    assert lows[328] == 1 << 43
    assert all(b - a <= max(1, a / 8) for a, b in itertools.pairwise(lows))
    rng = random.Random(seed)
    pc = open_store()
    values = [0, 1, 15, 16, 17, (1 << 43) - 1, *(rng.randrange(1 << rng.randrange(1, 43)) for _ in range(300))]
    h = recorded(pc, "snapshot", values)
    for low, high, n in h.buckets():
        assert n == sum(low <= v < high for v in values)
    top = recorded(pc, "clean", [1 << 43, 1 << 50, 2**64 - 1])
    assert (top.count, top.greatest, top.least) == (3, 2**64 - 1, 1 << 43)
    assert top.p50 == 2**64 - 1 or top.p50 >= 1 << 43


def test_an_empty_histogram(open_store: Open) -> None:
    h = open_store().metrics().histograms["rewrite"]
    assert (h.count, h.sum, h.least, h.greatest, h.mean, h.p50, h.p999) == (0, 0, 0, 0, 0.0, 0.0, 0.0)
    assert list(h.buckets()) == []


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_samples_stand_for_all(open_store: Open, count: int) -> None:
    """Never more than there were, and fewer than `every` are missing."""
    pc = open_store(mmpc.LastWriteWins())
    pid, key = pc.allocate(0)
    for i in range(count):
        key = pc.replace(pid, key, i)
    for _ in range(count + 1):
        pc.get(pid)
    m = pc.metrics()
    for name, exact in (("replace", count), ("get_hit", count), ("payload", count + 1), ("serialize", count + 1)):
        h = m.histograms[name]
        lacks = h.every if name != "payload" else h.every + 1
        assert exact - lacks < h.count <= exact, name
    assert m.histograms["payload"].least >= 1
    assert m.histograms["replace"].sum > 0
    assert m.histograms["allocate"].count == 1


def test_a_time_is_in_nanoseconds(open_store: Open) -> None:
    """What was waited for a tenth of a second took no less, as far as buckets go."""
    pc = open_store()
    mm, number = pc._attachment.mm, lib.mm_metric_named(1, b"snapshot")
    begun = lib.mm_ticks(mm)
    start = time.monotonic_ns()
    time.sleep(0.1)
    lib.mm_metrics_time(mm, number, begun, 1)
    most = time.monotonic_ns() - start
    h = pc.metrics().histograms["snapshot"]
    assert 0.099e9 <= h.greatest <= most + 5e6


def test_nothing_is_kept_for_a_number_that_is_none(open_store: Open) -> None:
    pc = open_store()
    before = pc.metrics().as_dict()
    lib.mm_metrics_record(pc._attachment.mm, 24, 1, 1)
    lib.mm_metrics_add(pc._attachment.mm, 62, 1)
    lib.mm_metrics_add(pc._attachment.mm, 1 << 31, 1)
    assert pc.metrics().as_dict() == before
    assert (lib.mm_metric_named(0, b"none"), lib.mm_metric_named(1, b"appends")) == (-1, -1)
    assert len(row_of(pc.path, 0)) == ROW_WORDS == WORDS_OF_COUNTERS + 24 * HISTOGRAM_WORDS
    assert COUNTERS + 2 == WORDS_OF_COUNTERS // 2


# ---- as text


def test_the_profile_has_the_form_of_the_seed(open_store: Open, capsys: pytest.CaptureFixture[str]) -> None:
    pc = open_store()
    pid, _ = pc.allocate(b"x")
    for _ in range(200):
        pc.append(pid, b"y")
        pc.get(pid)
    pc.flush()
    pc.print_profile()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["pagecache profile:", ""]
    head = [cell.strip() for cell in lines[2].split("|")]
    assert ",".join(head) == "op,min (us),med (us),90 (us),99 (us),99.9 (us),99.99 (us),max (us),count,sum (s)"
    assert lines[3] == "-" * 134
    assert len(lines[2]) == 134
    sections = [line for line in lines if line.endswith(":") and "|" not in line][1:]
    assert sections == ["pagecache:", "serialization:", "log:", "segment accountant:"]
    rows: dict[str, list[tuple[str, list[float]]]] = {}
    for line in lines[4:]:
        if line in sections:
            rows[line] = []
        elif line.count("|") == 9:
            name, *cells = (cell.strip() for cell in line.split("|"))
            assert len(line) == 134
            rows[list(rows)[-1]].append((name, [float(cell) for cell in cells]))
    names = {name for table in rows.values() for name, _ in table}
    assert {"snapshot", "page_in", "rewrite", "replace", "link", "merge", "pull", "serialize", "deserialize"} <= names
    assert {"make_stable", "write", "written bytes", "reserve lat", "start", "append", "get hit"} <= names
    for table in rows.values():
        sums = [cells[-1] for _, cells in table]
        assert sums == sorted(sums, reverse=True)
        for _, cells in table:
            assert cells[:7] == sorted(cells[:7])
    assert "log reservations: 201" in lines
    assert "log res attempts: 201" in lines


def test_the_profile_at_the_end(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, print_profile_on_close=True) as pc:
        pc.allocate(b"x")
        pickled = pickle.dumps(pc)
    assert capsys.readouterr().out.startswith("pagecache profile:\n")
    pickle.loads(pickled).close()
    assert capsys.readouterr().out.startswith("pagecache profile:\n")
    with mmpc.open(path, mmpc.Append(), print_profile_on_close=True):
        os.unlink(os.path.join(path, "metrics"))
    assert capsys.readouterr().out == ""
    with mmpc.open(None, mmpc.Append(), temporary=True, print_profile_on_close=True):
        pass
    assert "pagecache:" in capsys.readouterr().out
    with pytest.raises(mmpc.Closed):
        pc.metrics()


SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\"n])*)"')


def strictly_parsed(text: str) -> dict[str, tuple[str, dict[tuple[str, ...], float]]]:
    """{family: (type, {(name, labels...): value})} of the text format 0.0.4; AssertionError where it is not kept."""
    assert text.endswith("\n")
    assert "\r" not in text
    families: dict[str, tuple[str, dict[tuple[str, ...], float]]] = {}
    family, helped = "", ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
            assert len(line.split(" ", 3)) == 4
            assert helped not in families
        elif line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family == helped
            assert kind in ("counter", "gauge", "histogram")
            families[family] = kind, {}
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            name, labels, value = found.group(1), LABEL.findall(found.group(2) or ""), float(found.group(3))
            kind, samples = families[family]
            assert name in ({f"{family}_{s}" for s in ("bucket", "sum", "count")} if kind == "histogram" else {family})
            key = (name, *(f"{k}={v}" for k, v in labels))
            assert key not in samples
            samples[key] = value
    for family, (kind, samples) in families.items():
        assert samples, family
        if kind == "counter":
            assert family.endswith("_total")
            assert min(samples.values()) >= 0
        if kind == "histogram":
            check_histogram(family, samples)
    return families


def check_histogram(family: str, samples: dict[tuple[str, ...], float]) -> None:
    """Buckets rise, in order of their bounds, to the count."""
    for store in {key[1] for key in samples}:
        buckets = [(key[2], n) for key, n in samples.items() if key[0] == f"{family}_bucket" and key[1] == store]
        bounds = [float(le.removeprefix("le=")) for le, _ in buckets]
        assert bounds == sorted(set(bounds))
        assert bounds[-1] == float("inf")
        counts = [n for _, n in buckets]
        assert counts == sorted(counts)
        assert counts[-1] == samples[f"{family}_count", store]
        assert (f"{family}_sum", store) in samples


def test_prometheus_is_text_whatever_the_path_is(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pc.allocate(b"x")
        text = mmpc.prometheus(pc)
    assert f'mmpc_allocates_total{{store="{tmp_path}/\\\\udcff"}} 1\n' in text
    text.encode()
    bounds = re.findall(r'mmpc_allocate_seconds_bucket.*le="([^+"]+)"', text)
    assert [round(float(b) * 1e9) for b in bounds] == [2**k - 1 for k in range(5, 37)]
    assert bounds[1] == "6.3e-08"


def test_prometheus(open_store: Open, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    pc = open_store()
    values = [rng.randrange(1 << rng.randrange(1, 36)) for _ in range(500)] + [63, 64, 1023, 1024]
    recorded(pc, "clean", values)
    odd = tmp_path / 'a "quoted\\" name\nof two lines'
    with mmpc.open(odd, mmpc.Append(), create=True) as other:
        other.allocate(b"x")
        families = strictly_parsed(mmpc.prometheus(pc, odd))
        escaped = str(odd).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        kind, samples = families["mmpc_allocates_total"]
        assert kind == "counter"
        assert samples == {
            ("mmpc_allocates_total", f"store={pc.path}"): 0,
            ("mmpc_allocates_total", f"store={escaped}"): 1,
        }
        assert set(families["mmpc_processes"][1].values()) == {1}
    m = pc.metrics()
    assert {f"mmpc_{name}_total" for name in m.counters} <= set(families)
    samples = families["mmpc_clean_seconds"][1]
    for key, n in samples.items():
        if key[0].endswith("_bucket") and key[1] == f"store={pc.path}" and key[2] != "le=+Inf":
            bound = float(key[2].removeprefix("le="))
            assert n == sum(v * 1e-9 <= bound * (1 + 1e-12) for v in values)
    assert samples["mmpc_clean_seconds_sum", f"store={pc.path}"] == pytest.approx(sum(values) * 1e-9)
    assert mmpc.prometheus() == ""


def test_every_metric_is_described(open_store: Open) -> None:
    m = open_store().metrics()
    assert set(m.counters) == {name for name, what in _metrics.described("counters") if what}
    assert all(h.what and h.unit in ("ns", "bytes", "calls") and h.every >= 1 for h in m.histograms.values())
    data = json.loads(json.dumps(m.as_dict()))
    assert set(data) == {"path", "since", "counters", "histograms", "gauges", "processes"}
    assert "processes" in repr(m)
    assert "p99" in repr(m.histograms["append"])
    assert "slot" in repr(m.processes[0])


def test_stats_are_typed_and_named_as_before(open_store: Open) -> None:
    s = open_store().stats()
    for name in mmpc.Stats.__slots__:
        assert isinstance(getattr(s, name), str if name == "path" else int)
        assert name in mmpc.Stats.__annotations__


if not PORTABLE:

    def test_the_portable_face_passes_the_same_tests() -> None:
        """This file again, in an interpreter that has chosen the portable face."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
        env = os.environ | {"MMPC_FACE": "cffi"}
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            said, _ = child.communicate(timeout=90)
        finally:
            if child.poll() is None:
                os.kill(child.pid, signal.SIGKILL)
        assert child.returncode == 0, said[-3000:]
