"""Compression: per record, readable beside what is plain, said by the store before it is there, and never trusted."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import mmpc
from mmpc import _compression, _files, codec, failpoints
from mmpc._layout import COMPRESSED, EXTENT, INNER
from mmpc._native import ffi, lib
from support import forging, loss
from support.children import Children
from support.commands import object_of, refused, run, sound
from support.looks import depth
from support.mergers import MAKE, Tally

Store = mmpc.PageCache[Any]
Open = Callable[..., Store]
SMALL = 1 << 16
WORDS = "page cache log record segment lease epoch pin fragment merge".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.clear()


def text(rng: random.Random, n: int) -> str:
    """About n bytes that compress to a third or so."""
    return " ".join(rng.choice(WORDS) for _ in range(n // 6))


def shapes(pc: Store, pid: int) -> list[int]:
    """Of the records of a page, newest first."""
    triples, r = ffi.new("uint64_t[]", 3 * 4096), ffi.new("mm_result *")
    assert lib.mm_chain(pc._attachment.mm, pid, triples, 4096, r) == 0
    return [triples[3 * i + 2] for i in range(r.count)]


def compressed(pc: Store, pid: int) -> list[bool]:
    """Whether each record of a page is, newest first."""
    return [bool(shape & COMPRESSED) for shape in shapes(pc, pid)]


def says_so(path: str) -> bool:
    config = _files.read_config(path)
    assert config is not None
    return config.compressed


def holds_some(path: str) -> bool:
    """Whether any whole record of the log is compressed."""
    return bool(forging.scanned(path).flags & COMPRESSED)


# ---- one handle


FRAGMENTS: dict[str, Callable[[random.Random], Any]] = {
    "Append": lambda rng: text(rng, rng.choice((10, 300, 5000))).encode(),
    "LastWriteWins": lambda rng: {"id": rng.random(), "words": text(rng, rng.choice((20, 500, 3000))).split()},
    "Union": lambda rng: {f"{rng.choice(WORDS)}{rng.randrange(30)}": rng.choice((None, 1, text(rng, 300)))},
    "Add": lambda rng: np.full(2000, rng.randrange(5)),
    "Max": lambda rng: text(rng, rng.choice((10, 400))),
    "Tally": lambda rng: [text(rng, rng.choice((10, 200, 4000)))],
}


def same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a, b)) if isinstance(b, np.ndarray) else bool(a == b)


@pytest.mark.parametrize("name", FRAGMENTS)
def test_mixed_handles_against_a_model(path: str, name: str, seed: int) -> None:
    """Three handles, one of which compresses, one at another level, do all verbs in turn, to chains of both kinds."""
    rng, make = random.Random(seed), MAKE[name]
    merger, fragment = make(), FRAGMENTS[name]
    plans: list[dict[str, Any]] = [{}, {"use_compression": True}, {"use_compression": True, "compression_factor": 1}]
    handles = [
        mmpc.open(path, make(), create=True, segment_size=SMALL, page_consolidation_threshold=3, **plan)
        for plan in plans
    ]
    model: dict[int, Any] = {}
    for _ in range(400):
        pc, value = rng.choice(handles), fragment(rng)
        pid = rng.choice([*model, 0])
        match rng.randrange(8) if pid else 0:
            case 0:
                pid, _key = pc.allocate(value)
                model[pid] = merger.merge([value]) if name == "Union" else value
            case 1:
                pc.replace(pid, pc.get(pid).key, value)
                model[pid] = merger.merge([value]) if name == "Union" else value
            case 2:
                pc.link(pid, pc.get(pid).key, value)
                model[pid] = merger.merge([model[pid], value])
            case 3:
                pc.append_many([(pid, value), (pid, value)])
                model[pid] = merger.merge([model[pid], value, value])
            case 4:
                pc.rewrite(pid)
            case 5 if len(model) > 30:
                pc.free(pid, pc.get(pid).key)
                del model[pid]
                continue
            case _:
                pc.append(pid, value)
                model[pid] = merger.merge([model[pid], value])
        reader = rng.choice(handles)
        got = reader.get(pid).unwrap()
        assert same(merger.merge([got]) if name == "Union" else got, model[pid])
        if not rng.randrange(4):
            reader._drop()
    for pc in handles:
        pc._drop()
        for pid, value in model.items():
            got = pc.get(pid).unwrap()
            assert same(merger.merge([got]) if name == "Union" else got, value)
            fragments = pc.get_page_frags(pid)[1]
            assert same(merger.merge(fragments), merger.merge([value]))
    kinds = {flag for pid in model for flag in compressed(handles[0], pid)}
    assert kinds == {True, False}
    for pc in handles:
        pc.close()
    assert mmpc.verify(path).ok
    with mmpc.open(path, make()) as pc:
        for pid, value in model.items():
            got = pc.get(pid).unwrap()
            assert same(merger.merge([got]) if name == "Union" else got, value)


def test_what_would_not_be_smaller_is_stored_as_it_is(open_store: Open, seed: int) -> None:
    pc, rng = open_store(mmpc.LastWriteWins(), use_compression=True), random.Random(seed)
    plain = [b"a" * (_compression.LEAST - 3), rng.randbytes(100), rng.randbytes(5000), 7, None, ""]
    small = [b"a" * _compression.LEAST, text(rng, 1000), [1] * 1000]
    assert [compressed(pc, pc.allocate(v)[0]) for v in plain] == [[False]] * len(plain)
    assert [compressed(pc, pc.allocate(v)[0]) for v in small] == [[True]] * len(small)


def test_a_frame_is_one_of_zstandard_that_says_its_length(open_store: Open, path: str) -> None:
    """docs/format.md: any tool that reads them reads the payload; the checksum covers what is stored."""
    pc = open_store(use_compression=True)
    pid, _ = pc.allocate(b"hello " * 100)
    pc.flush()
    log = forging.scanned(path)
    (record,) = [log.record(i) for i, shape in enumerate(log.shapes) if shape & COMPRESSED]
    with open(os.path.join(path, "log"), "rb") as f:
        f.seek(record.address + 40)
        frame = f.read(record.length)
    payload = codec.encode(b"hello " * 100)
    assert record.page == pid
    assert zstandard.frame_content_size(frame) == len(payload)
    assert zstandard.ZstdDecompressor().decompress(frame) == payload
    assert len(frame) < len(payload) / 5


@pytest.mark.parametrize("factor", [1, 22])
def test_the_factor_is_the_level(open_store: Open, seed: int, factor: int) -> None:
    value = text(random.Random(seed), 20_000)
    pc = open_store(mmpc.LastWriteWins(), use_compression=True, compression_factor=factor)
    pc.allocate(value)
    wanted = zstandard.ZstdCompressor(level=factor).compress(codec.encode(value))
    assert pc.metrics().as_dict()["counters"]["compress_out"] == len(wanted)


def test_what_is_merged_for_a_chain_is_compressed(open_store: Open) -> None:
    """By writers, by readers and on demand; native and in Python; what is too small becomes one that is not."""
    for merger in (mmpc.Append(), Tally()):
        pc = mmpc.open(open_store(mmpc.Append()).path + merger.name, merger, create=True, use_compression=True)
        with pc:
            pid, _ = pc.allocate(["base"])
            for i in range(200):
                pc.append(pid, [f"value {i % 3}"])
            assert depth(pc, pid) <= 80
            pc._drop()
            assert len(pc.get(pid).unwrap()) == 201
            pc._consolidate(pid)
            assert compressed(pc, pid) == [True]
            assert pc.get(pid).unwrap()[-1] == "value 1"


def test_small_numbers_are_merged_by_the_core(open_store: Open) -> None:
    """Nothing that is too small to be compressed takes the longer way."""
    pc = open_store(mmpc.Add(), use_compression=True)
    pid, _ = pc.allocate(1)
    for _ in range(300):
        pc.append(pid, 1)
    assert pc.get(pid).unwrap() == 301
    counters = pc.metrics().as_dict()["counters"]
    assert counters["consolidations"] > 0
    assert counters["compress_in"] == counters["compress_kept"] == counters["decompress_in"] == 0


def test_the_roots_of_collections(open_store: Open, path: str) -> None:
    """Page 0 grows with names; page 1 is never compressed: the core reads it."""
    pc = open_store(use_compression=True)
    for i in range(60):
        pc.cas_root_in_meta(f"collection {i}", None, i)
    for _ in range(3):
        pc.generate_id()
    assert (compressed(pc, 0), compressed(pc, 1)) == ([True], [False])
    assert pc.meta_pid_for_name("collection 59") == 59
    pc.close()
    with mmpc.open(path, mmpc.Append()) as plain:
        assert len(plain.meta()) == 60
        plain.cas_root_in_meta("collection 7", 7, None)
        assert compressed(plain, 0) == [False]


# ---- large fragments


def test_a_large_fragment_is_compressed_before_it_is_one(open_store: Open, path: str, seed: int) -> None:
    """What fits a record when it is compressed lies in one; what does not lies in a run, as a frame."""
    pc, rng = open_store(mmpc.LastWriteWins(), use_compression=True, segment_size=SMALL), random.Random(seed)
    fits, large = b"0123456789" * 100_000, rng.randbytes(200_000) + bytes(2_000_000)
    pids = [pc.allocate(value)[0] for value in (fits, large)]
    assert [[bool(s & EXTENT) for s in shapes(pc, pid)] for pid in pids] == [[False], [True]]
    assert [compressed(pc, pid) for pid in pids] == [[True], [True]]
    key = pc.append(pids[0], large)
    pc.link(pids[0], key, fits)
    pc._drop()
    assert [pc.get(pid).unwrap() for pid in pids] == [fits, large]
    assert bytes(pc.view(pids[1]).raw) == large
    pc.rewrite(pids[1])
    pc.flush()
    assert mmpc.verify(path).ok
    copy = loss.copy(path, path + "-lost")
    with mmpc.open(copy, mmpc.LastWriteWins()) as after:
        assert [after.get(pid).unwrap() for pid in pids] == [fits, large]


def test_large_chains_are_merged(open_store: Open, seed: int) -> None:
    rng = random.Random(seed)
    pc = open_store(mmpc.Append(), use_compression=True, segment_size=SMALL)
    parts = [rng.randbytes(30_000) + bytes(30_000) for _ in range(6)]
    pid, _ = pc.allocate(parts[0])
    for part in parts[1:]:
        pc.append(pid, part)
    pc._consolidate(pid)
    pc._drop()
    assert pc.get(pid).unwrap() == b"".join(parts)
    assert depth(pc, pid) == 1


def test_a_fragment_beyond_the_limit_is_refused_however_small_its_frame(open_store: Open, monkeypatch: Any) -> None:
    """The limit is one of the fragment: who reads it has to hold it."""
    pc = open_store(mmpc.LastWriteWins(), use_compression=True)
    monkeypatch.setattr(_compression, "MOST", 1 << 20)
    assert pc._compression.frame(bytes((1 << 20) + 1)) is None
    frame = zstandard.ZstdCompressor().compress(bytes((1 << 20) + 1))
    assert _compression.decompressed(frame) is None


# ---- views


def test_a_view_of_what_is_compressed_is_a_copy_that_stays(path: str, seed: int) -> None:
    value = np.arange(5000) // 100
    with mmpc.open(path, mmpc.LastWriteWins(), create=True, use_compression=True) as pc:
        pid, key = pc.allocate(value)
        other, _ = pc.allocate(np.random.default_rng(seed).random(100))
        view, plain = pc.view(pid), pc.view(other)
        assert (view.zero_copy, plain.zero_copy) == (False, True)
        array = np.asarray(view)
        assert not array.flags.writeable
        assert (view.dtype, view.shape, view.key.wts) == (value.dtype.str, value.shape, key.wts)
        pc.replace(pid, key, np.zeros(3))
        assert np.array_equal(array, value)
    assert np.array_equal(array, value)
    view.release()
    with pytest.raises(mmpc.Closed):
        view.nbytes  # noqa: B018
    assert np.array_equal(array, value)


def test_a_view_of_a_compressed_chain_and_of_other_values(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True) as pc:
        pid, _ = pc.allocate(b"ab" * 500)
        pc.append(pid, b"cd" * 500)
        listed, _ = pc.allocate(["word"] * 500)
        assert bytes(pc.view(pid).raw) == b"ab" * 500 + b"cd" * 500
        with pytest.raises(mmpc.Unsupported, match="list"):
            pc.view(listed)
        with mmpc.open(path, mmpc.Append(), read_only=True) as reader:
            pc.append(pid, b"e" * 500)
            assert bytes(reader.view(pid).raw) == b"ab" * 500 + b"cd" * 500 + b"e" * 500
    with mmpc.open(path + "-tally", Tally(), create=True, use_compression=True) as pc:
        pid, _ = pc.allocate(b"ab" * 500)
        assert bytes(pc.view(pid).raw) == b"ab" * 500


# ---- the store says so


def test_a_store_says_so_from_the_first_handle_on_that_may_write_it(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as plain:
        pid, _ = plain.allocate(b"plain" * 100)
        assert not says_so(path)
        with mmpc.open(path, mmpc.Append(), read_only=True, use_compression=True):
            assert not says_so(path)  # it writes nothing
        with mmpc.open(path, mmpc.Append(), use_compression=True) as pc:
            assert says_so(path)  # also while others are attached, and before anything is written
            assert not holds_some(path)
            pc.append(pid, b"compressed" * 100)
            assert plain.get(pid).unwrap() == b"plain" * 100 + b"compressed" * 100
            plain.append(pid, b"again" * 100)
            assert compressed(pc, pid) == [False, True, False]
    with mmpc.open(path, mmpc.Append()) as plain:
        plain.replace(pid, plain.get(pid).key, b"plain")
    assert says_so(path)  # it may lie in the log still
    with mmpc.open(path + "-new", mmpc.Append(), create=True, use_compression=True):
        assert says_so(path + "-new")


def test_who_cuts_the_log_keeps_what_the_store_says(open_store: Open, path: str, monkeypatch: Any) -> None:
    """The last one to leave rewrites `config`, and somebody may have come, may compress, and left just before."""
    from filelock import FileLock

    from mmpc import _store

    monkeypatch.setenv("MMPC_BOOT_ID", "first")
    with open_store(segment_size=SMALL) as pc:
        keys = [pc.allocate(["x" * 3000]) for _ in range(25)]
        page, _ = pc.allocate([0])
        for pid, key in keys:
            pc.free(pid, key)
        pc._clean(2, 1 << 30)
    monkeypatch.setenv("MMPC_BOOT_ID", "second")
    pc = open_store()
    for pid in range(page + 1):
        pc.rewrite(pid)
    for _ in range(4):
        pc.flush()
        pc._clean(2, 1 << 30)
    pc.snapshot()
    acquire, came = FileLock.acquire, []

    def slow(lock: Any, *args: Any, **options: Any) -> Any:
        if not came and sys._getframe(2).f_code.co_name == "truncate_after_last":
            came.append(True)
            monkeypatch.setattr(_store, "truncate_after_last", lambda _options: None)  # that one leaves it to us
            with mmpc.open(path, mmpc.Append(), use_compression=True):
                assert says_so(path)
        return acquire(lock, *args, **options)

    monkeypatch.setattr(FileLock, "acquire", slow)
    size = os.path.getsize(os.path.join(path, "log"))
    pc.close()
    assert came
    assert os.path.getsize(os.path.join(path, "log")) < size
    assert says_so(path)
    assert mmpc.verify(path).ok


def test_an_older_mmpc_refuses_such_a_store(path: str) -> None:
    """The bit is one that had to be unknown to every earlier version: format.md, config."""
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True):
        pass
    assert int.from_bytes(loss.get(path, "config")[24:32], "little") == 1
    data = bytearray(loss.get(path, "config"))
    data[24] = 3
    data[12:16] = _files.crc32c(bytes(data[16:])).to_bytes(4, "little")
    loss.put(path, "config", bytes(data))
    with pytest.raises(mmpc.IncompatibleStore, match=r"0x3.*known: 0x1"):
        mmpc.open(path, mmpc.Append())


@pytest.mark.parametrize("name", [n for n in failpoints.NAMES if n.startswith("write_config")] + ["directory sync"])
@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
def test_killed_while_it_makes_the_store_say_so(path: str, children: Children, name: str, others: bool) -> None:
    """Whatever was reached: a store that says so, or one that holds none; and the next one goes on."""
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate(b"before" * 50)

    def first() -> None:
        failpoints.set(name, "kill")
        mmpc.open(path, mmpc.Append(), use_compression=True).append(pid, b"first" * 50)

    held = mmpc.open(path, mmpc.Append()) if others else None
    assert children.start(first).wait() == -signal.SIGKILL
    assert says_so(path) or not holds_some(path)
    assert mmpc.verify(path).ok
    with mmpc.open(path, mmpc.Append(), use_compression=True) as pc:
        pc.append(pid, b"second" * 50)
        assert pc.get(pid).unwrap() == b"before" * 50 + b"second" * 50
        assert says_so(path)
    if held is not None:
        assert held.get(pid).unwrap() == b"before" * 50 + b"second" * 50
        held.close()


def test_killed_at_any_time_after(path: str, children: Children, seed: int) -> None:
    rng = random.Random(seed)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate(b"")

    def writer() -> None:
        with mmpc.open(path, mmpc.Append(), use_compression=True, page_consolidation_threshold=2) as pc:
            while True:
                pc.append(pid, b"0123456789" * 20)

    for _ in range(12):
        child = children.start(writer)
        time.sleep(rng.random() * 0.08)
        child.kill()
        assert says_so(path) or not holds_some(path)
        with mmpc.open(path, mmpc.Append()) as pc:
            value = pc.get(pid).unwrap()
            assert value == b"0123456789" * 20 * (len(value) // 200)
        copy = loss.copy(path, f"{path}-{_}")
        with mmpc.open(copy, mmpc.Append()) as pc:  # as after a loss of power
            assert says_so(copy) or not holds_some(copy)
            assert pc.get(pid).unwrap() == value[: len(pc.get(pid).unwrap())]
    assert mmpc.verify(path).ok


def test_a_store_that_does_not_say_so_and_holds_some_is_damaged(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True) as pc:
        pid, _ = pc.allocate(b"abc" * 100)
    data = bytearray(loss.get(path, "config"))
    data[24] = 0
    data[12:16] = _files.crc32c(bytes(data[16:])).to_bytes(4, "little")
    loss.put(path, "config", bytes(data))
    (problem,) = mmpc.verify(path).damage
    assert (problem.file, problem.offset) == ("config", 24)
    with mmpc.open(path, mmpc.Append()) as pc:  # each record tells for itself
        assert pc.get(pid).unwrap() == b"abc" * 100
    saved = mmpc.salvage(path, path + "-saved")
    assert saved.ok
    assert says_so(path + "-saved")


def test_a_recovery_that_discards_keeps_what_the_store_says(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True) as pc:
        pid, _ = pc.allocate(b"abc" * 100)
        pc.flush()
        pc.append(pid, b"lost" * 100)
        copy = loss.copy(path, path + "-lost")
    with mmpc.open(copy, mmpc.Append()) as pc:
        assert pc.get(pid).unwrap() == b"abc" * 100
    assert says_so(copy)
    assert forging.config_of(copy).discards


# ---- zstandard is missing


WITHOUT = """
import sys
sys.modules["zstandard"] = None
import mmpc
path = sys.argv[1]
def said(fn, *args, **options):
    try:
        fn(*args, **options)
    except mmpc.Unsupported as e:
        assert "mmpc[compression]" in str(e), e
        return
    raise AssertionError(f"{fn.__name__} went on")
"""


def without(path: str, code: str, **env: str) -> None:
    """Runs code in an interpreter that has no zstandard."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT + code, path], capture_output=True, timeout=90, env=os.environ | env
    )
    assert done.returncode == 0, done.stderr.decode()


def test_asking_for_it_names_the_extra_and_touches_nothing(path: str) -> None:
    without(path, "said(mmpc.open, path, mmpc.Append(), create=True, use_compression=True)")
    assert not os.path.exists(path)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pc.allocate(b"x" * 500)
    before = {name: loss.get(path, name) for name in ("config", "log", "marks")}
    without(path, "said(mmpc.open, path, mmpc.Append(), use_compression=True)")
    without(path, "mmpc.open(path, mmpc.Append(), read_only=True, use_compression=True).close()")  # it writes nothing
    assert {name: loss.get(path, name) for name in before} == before
    assert not says_so(path)


def test_a_store_that_needs_it_says_so_where_it_is_missing(path: str, tmp_path: Path) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True) as pc:
        pc.allocate(b"x" * 500)
    before = {name: loss.get(path, name) for name in ("config", "log", "marks", "control", "table")}
    without(
        path,
        """
said(mmpc.open, path, mmpc.Append())
said(mmpc.open, path, mmpc.Append(), read_only=True)
said(mmpc.verify, path)
said(mmpc.salvage, path, path + "-saved")
from mmpc import _files
may_write, _files.may_write = _files.may_write, lambda path: False
said(mmpc.open, path, mmpc.Append(), read_only=True)
""",
    )
    assert {name: loss.get(path, name) for name in before} == before
    assert not os.path.exists(path + "-saved") or not os.listdir(path + "-saved")


def test_what_moves_bytes_needs_it_not(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True, segment_size=SMALL) as pc:
        pids = [pc.allocate(os.urandom(50).hex().encode() * 3)[0] for _ in range(1500)]
        values = {pid: pc.get(pid).unwrap() for pid in pids[::3]}
        for pid in set(pids) - set(values):
            pc.free(pid, pc.get(pid).key)
    without(path, "assert mmpc.clean(path).emptied\nmmpc.backup(path, path + '-copy')")
    for where in (path, path + "-copy"):
        with mmpc.open(where, mmpc.Append()) as pc:
            assert all(pc.get(pid).unwrap() == value for pid, value in values.items())
        assert mmpc.verify(where).ok
        assert says_so(where)


def test_a_process_that_was_there_before_says_so_when_it_reads_one(path: str) -> None:
    code = """
pc = mmpc.open(path, mmpc.Append())
print("here", flush=True)
input()
said(pc.get, 2)
said(pc.view, 2)
said(pc.get_page_frags, 2)
assert pc.get(3).unwrap() == b"plain" * 100
pc.append(2, b"!")
pc.close()
"""
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate(b"plain" * 100)
        pc.allocate(b"plain" * 100)
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", WITHOUT + code, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        with mmpc.open(path, mmpc.Append(), use_compression=True) as pc:
            pc.append(pid, b"compressed" * 100)
            _out, err = child.communicate(b"\n", timeout=60)
            assert child.returncode == 0, err.decode()
            assert pc.get(pid).unwrap() == b"plain" * 100 + b"compressed" * 100 + b"!"
    finally:
        child.kill()
        child.wait()


# ---- damage


def test_a_flipped_bit_anywhere_in_a_compressed_record_is_said(path: str, seed: int) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True) as pc:
        pid, _ = pc.allocate(text(random.Random(seed), 600))
    log = forging.scanned(path)
    address = log.record(log.newest[pid]).address
    length = log.record(log.newest[pid]).length
    for at in [*range(address, address + 40), *range(address + 40, address + 40 + length, 7)]:
        bit = 1 << random.Random(seed + at).randrange(8)
        data = loss.get(path, "log")
        forging.write(path, "log", at, bytes([data[at] ^ bit]))
        assert not mmpc.verify(path).ok, at - address
        with pytest.raises(mmpc.CorruptionError) as e, mmpc.open(path, mmpc.Append(), read_only=True) as pc:
            pc.get(pid)
        assert (e.value.file, e.value.offset) == ("log", address) or at < address + 40
        forging.write(path, "log", at, data[at : at + 1])
    assert mmpc.verify(path).ok


def frames() -> dict[str, bytes]:
    """Frames under a checksum that holds: what only a hostile writer, or a wrong one, would store."""
    good = zstandard.ZstdCompressor().compress(codec.encode(b"x" * 1000))
    stream = zstandard.ZstdCompressor(write_content_size=False).compress(codec.encode(b"x" * 1000))
    head = bytes.fromhex("28b52ffd")
    return {
        "nothing": b"",
        "a byte": b"\x28",
        "the magic number": head,
        "no frame": b"\xff" * 50,
        "cut short": good[:-3],
        "something behind it": good + b"\0",
        "two of them": good + good,
        "no length": stream,
        "a terabyte": head + b"\xe0" + (1 << 40).to_bytes(8, "little") + good[6:],
        "2^64 - 1": head + b"\xe0" + b"\xff" * 8 + good[6:],
        "a gigabyte of one block": head + b"\xe0" + (1 << 30).to_bytes(8, "little") + good[6:],
        "more than it gives": head + b"\x60" + (60_000).to_bytes(2, "little") + good[7:],
        "a dictionary": head + b"\x21" + b"\x07" + good[5:],
        "a frame to be skipped": bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"abcd",
        "a flipped bit": good[:9] + bytes([good[9] ^ 4]) + good[10:],
    }


@pytest.mark.parametrize("name", frames())
def test_a_frame_that_lies_is_damage_and_takes_no_memory(path: str, name: str, children: Children) -> None:
    frame = frames()[name]
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True) as pc:
        good, _ = pc.allocate(b"good" * 100)
        pid, _ = pc.allocate(b"base" * 100)
        key, r = ffi.new("mm_key *", {"pid": pid}), ffi.new("mm_result *")
        tag = lib.mm_merge_class(1, codec.encode(b"x"), 3)
        assert lib.mm_write_compressed(pc._attachment.mm, 1, key, tag, frame, len(frame), r) == 0

    def reads() -> None:
        import resource

        with mmpc.open(path, mmpc.Append()) as pc:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
            for verb in (pc.get, pc.get_page_frags, pc.view):
                with pytest.raises(mmpc.CorruptionError) as e:
                    verb(pid)
                assert e.value.file == "log"
                assert e.value.offset in log.addresses
            with pytest.raises(mmpc.CorruptionError):
                pc._consolidate(pid)
            for _ in range(120):  # until the chain is full: an append that has to merge it says why it cannot
                try:
                    pc.append(pid, b"more")
                except mmpc.CorruptionError:
                    break
            else:
                raise AssertionError("a chain that cannot be merged took fragments for ever")
            assert pc.get(good).unwrap() == b"good" * 100
            pc.replace(pid, _key(pc, pid), b"anew")
            assert pc.get(pid).unwrap() == b"anew"

    log = forging.scanned(path)
    (problem,) = mmpc.verify(path).damage
    assert (problem.file, problem.page) == ("log", pid)
    assert "decompress" in problem.message
    saved = mmpc.salvage(path, path + "-saved")
    assert [p.page for p in saved.older] == [pid]
    with mmpc.open(path + "-saved", mmpc.Append()) as pc:
        assert pc.get(pid).unwrap() == b"base" * 100
    status, complaint = refused("dump", path, "-o", path + "-dump")
    assert status == 1
    assert f"page {pid}" in complaint
    children.run(reads)


def _key(pc: Store, pid: int) -> mmpc.PagePtr:
    """The key of a page that cannot be read."""
    try:
        pc.replace(pid, mmpc.PagePtr(pid, 0, 1 << 40, 0), b"")
    except mmpc.Conflict as e:
        return e.current  # type: ignore[no-any-return]
    raise AssertionError("no conflict")


def test_fragments_that_do_not_merge_are_said(path: str) -> None:
    """A frame of another class than its record says: a native merge finds it out."""
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True) as pc:
        pid, _ = pc.allocate(b"base" * 100)
        frame = zstandard.ZstdCompressor().compress(codec.encode("text" * 100))
        key, r = ffi.new("mm_key *", {"pid": pid}), ffi.new("mm_result *")
        tag = lib.mm_merge_class(1, codec.encode(b"x"), 3)
        assert lib.mm_write_compressed(pc._attachment.mm, 1, key, tag, frame, len(frame), r) == 0
        with pytest.raises(mmpc.CorruptionError, match="do not merge"):
            pc.get(pid)
        pc.replace(pid, _key(pc, pid), b"anew")


def test_the_core_refuses_what_no_verb_writes(open_store: Open) -> None:
    pc = open_store(use_compression=True)
    pid, _ = pc.allocate(b"x")
    mm, r = pc._attachment.mm, ffi.new("mm_result *")
    frame = zstandard.ZstdCompressor().compress(bytes(500))
    for verb, page, tag, status in (
        (1, 1, 1, "RESERVED"),
        (3, 0, 1, "RESERVED"),
        (4, 2, 0, "RESERVED"),
        (4, 0, 1, "TYPE"),
        (1, pid, 0, "TYPE"),
        (9, pid, 1, "TYPE"),
        (5, 1, 1, "RESERVED"),
        (1, pid, 9, "TYPE"),
    ):
        key = ffi.new("mm_key *", {"pid": page})
        got = lib.mm_write_compressed(mm, verb, key, tag, frame, len(frame), r)
        assert got == getattr(mmpc.errors, status), (verb, page, tag)
    assert pc.get(pid).unwrap() == b"x"


# ---- moved, copied, saved


def test_cleaning_moves_compressed_records_as_they_are(open_store: Open, path: str, seed: int) -> None:
    rng = random.Random(seed)
    pc = open_store(mmpc.Append(), use_compression=True, segment_size=SMALL)
    plain = open_store(mmpc.Append(), segment_size=SMALL)
    pids, model = [pc.allocate(text(rng, 800))[0] for _ in range(600)], {}
    for pid in pids:
        (pc if rng.randrange(2) else plain).append(pid, text(rng, 400))
    for i, pid in enumerate(pids):
        if i % 4:
            pc.free(pid, pc.get(pid).key)
        else:
            model[pid] = pc.get(pid).unwrap(), compressed(pc, pid)
    before = pc.metrics().as_dict()["counters"]
    while pc.attempt_gc() or plain.attempt_gc():
        pass
    after = pc.metrics().as_dict()["counters"]
    assert after["cleaned_segments"] > before["cleaned_segments"]
    assert after["decompress_in"] == before["decompress_in"]
    plain._drop()
    for pid, (value, kinds) in model.items():
        assert plain.get(pid).unwrap() == value
        assert compressed(pc, pid) in (kinds, [True], [False])
    moved = [s for pid in model for s in shapes(pc, pid)[1:]]
    assert any(s & INNER and s & COMPRESSED for s in moved)
    plain.flush()
    assert mmpc.verify(path).ok


def test_backup_salvage_and_a_dump_bring_everything_along(path: str, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with (
        mmpc.open(path, mmpc.Append(), create=True, use_compression=True, segment_size=SMALL) as pc,
        mmpc.open(path, mmpc.Append()) as plain,
    ):
        model = {}
        for _ in range(60):
            pid, _key = pc.allocate(text(rng, rng.choice((20, 900, 100_000))))
            for _ in range(rng.randrange(4)):
                (pc if rng.randrange(2) else plain).append(pid, text(rng, 500))
            model[pid] = pc.get(pid).unwrap()
        pc.cas_root_in_meta("a" * 200, None, 7)
        pc.backup(path + "-copy")
        assert mmpc.verify(path).ok
    assert mmpc.salvage(path, path + "-saved").ok
    sound("dump", path, "-o", str(tmp_path / "dump"))
    sound("load", path + "-plain", str(tmp_path / "dump"))
    sound("load", path + "-small", str(tmp_path / "dump"), "--compress", "9")
    for name, flag in (("copy", True), ("saved", True), ("plain", False), ("small", True)):
        where = f"{path}-{name}"
        assert (says_so(where), holds_some(where)) == (flag, flag)
        with mmpc.open(where, mmpc.Append()) as pc:
            assert {pid: pc.get(pid).unwrap() for pid in model} == model
            assert pc.meta_pid_for_name("a" * 200) == 7
        assert mmpc.verify(where).ok
    sound("dump", path + "-small", "-o", str(tmp_path / "again"))
    lines = [(tmp_path / name).read_text().splitlines()[1:-1] for name in ("dump", "again")]
    assert lines[0] == lines[1]
    said = run("load", path + "-no", str(tmp_path / "dump"), "--compress", "23")
    assert (said.returncode, "23 is not between 1 and 22" in said.stderr) == (2, True)
    assert not os.path.exists(path + "-no")


def test_a_backup_knows_what_its_log_may_hold(path: str, monkeypatch: Any) -> None:
    """The first handle that compresses comes after `config` was read, and writes before the log is."""
    from mmpc import _backup

    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate(b"plain")
        late: list[Store] = []
        newest = _backup._newest

        def slow(fd: int, config: Any, pinned: int) -> Any:
            if not late:
                late.append(mmpc.open(path, mmpc.Append(), use_compression=True))
                late[0].append(pid, b"late" * 100)
                late[0].flush()
            return newest(fd, config, pinned)

        monkeypatch.setattr(_backup, "_newest", slow)
        pc.backup(path + "-copy")
        late[0].close()
    assert holds_some(path + "-copy")
    assert says_so(path + "-copy")
    assert mmpc.verify(path + "-copy").ok


def test_an_observer_reads_it(path: str, monkeypatch: Any) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True) as pc:
        pid, _ = pc.allocate(b"abc" * 100)
        pc.append(pid, b"x")
        monkeypatch.setattr(_files, "may_write", lambda _path: False)
        with mmpc.open(path, mmpc.Append(), read_only=True) as observer:
            assert type(observer).__name__ == "Observer"
            assert observer.get(pid).unwrap() == b"abc" * 100 + b"x"
            assert observer.get_page_frags(pid)[1] == [b"abc" * 100, b"x"]
            pc.append(pid, b"def" * 100)
            assert observer.get(pid).unwrap() == b"abc" * 100 + b"x" + b"def" * 100
    with mmpc.open(path, mmpc.Append(), read_only=True) as observer:  # alone
        assert observer.get(pid).unwrap() == b"abc" * 100 + b"x" + b"def" * 100


def test_the_page_command_tells_both_sizes(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True, segment_size=SMALL) as pc:
        pid, _ = pc.allocate(b"abc" * 1000)
        pc.append(pid, b"x")
        large, _ = pc.allocate(os.urandom(100_000) + bytes(100_000))
        found = object_of("page", path, str(pid), "--value")["records"]
        assert [(r["decoded"], r["flags"]) for r in found] == [(3, []), (3003, ["compressed"])]
        assert found[1]["length"] < 100
        assert found[1]["value"] == {"$utf8": "abc" * 1000}
        (found,) = object_of("page", path, str(large))["records"]
        assert (found["decoded"], found["flags"]) == (200_005, ["extent", "compressed"])
        assert "decoded" in run("page", path, str(pid)).stdout


# ---- processes, forks, threads


def test_processes_with_other_settings(path: str, children: Children) -> None:
    def work(i: int) -> None:
        options: dict[str, Any] = {"use_compression": True, "compression_factor": 1 + 7 * i} if i else {}
        with mmpc.open(path, mmpc.Append(), page_consolidation_threshold=4, **options) as pc:
            for n in range(120):
                pc.append(2 + n % 3, [f"process {i}", n] * 10)
                assert isinstance(pc.get(2 + n % 3).unwrap(), list)

    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        for _ in range(3):
            pc.allocate([])
    children.map(work, [(i,) for i in range(4)])
    with mmpc.open(path, mmpc.Append()) as pc:
        values = [pc.get(2 + i).unwrap() for i in range(3)]
        assert sum(map(len, values)) == 4 * 120 * 20
        for i in range(4):
            own = [n for v in values for name, n in zip(v[::20], v[1::20], strict=True) if name == f"process {i}"]
            assert sorted(own) == list(range(120))
    assert mmpc.verify(path).ok


def test_a_forked_child_and_a_pickled_handle_compress_as_they_did(path: str, children: Children) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True, compression_factor=3) as pc:
        pid, _ = pc.allocate(b"abc" * 100)

        def child() -> list[bool]:
            pc.append(pid, b"child" * 100)
            return compressed(pc, pid)

        assert children.run(child) == [True, True]
        with pickle.loads(pickle.dumps(pc)) as again:
            again.append(pid, b"again" * 100)
            assert compressed(again, pid) == [True] * 3
            assert again._options.compression == 3
        assert pc.get(pid).unwrap() == b"abc" * 100 + b"child" * 100 + b"again" * 100


def test_a_fork_while_threads_compress(path: str, children: Children) -> None:
    """A child has none of the objects that were in use: they are in no list while they are."""
    with mmpc.open(path, mmpc.LastWriteWins(), create=True, use_compression=True, compression_factor=12) as pc:
        pid, _ = pc.allocate(b"")
        stop = threading.Event()

        def busy() -> None:
            own, _key = pc.allocate(b"")
            while not stop.is_set():
                pc.append(own, b"0123456789" * 20_000)
                pc._drop(own)
                assert len(pc.get(own).unwrap()) == 200_000

        threads = [threading.Thread(target=busy) for _ in range(3)]
        for thread in threads:
            thread.start()

        def child(i: int) -> bytes:
            pc.append(pid, bytes([i]) * 100_000)
            return bytes(pc.get(pid).unwrap())

        try:
            for i in range(8):
                assert children.run(child, i) == bytes([i]) * 100_000
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_threads_share_a_handle(path: str) -> None:
    """zstandard gives the GIL up: no two calls may have the same object."""
    failed: list[BaseException] = []
    with mmpc.open(path, mmpc.Append(), create=True, use_compression=True, segment_size=1 << 20) as pc:
        pids = [pc.allocate(b"")[0] for _ in range(4)]

        def work(i: int) -> None:
            rng = random.Random(i)
            try:
                for n in range(60):
                    part = bytes([i, n]) * rng.randrange(40, 40_000)
                    pc.append(pids[i], part)
                    pc.append(pids[3], bytes([i]) * 100)
                    pc._drop()
                    assert pc.get(pids[i]).unwrap().endswith(part)
            except BaseException as e:
                failed.append(e)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert len(pc.get(pids[3]).unwrap()) == 3 * 60 * 100
        assert len(pc._compression._compressors) <= _compression.IDLE
    assert mmpc.verify(path).ok


def test_no_object_serves_two_calls_at_once(open_store: Open, monkeypatch: Any) -> None:
    """As the one before, with a compressor that notices it."""

    class Tool:
        def __init__(self, **_options: Any) -> None:
            self.busy = False

        def compress(self, payload: bytes) -> bytes:
            assert not self.busy
            self.busy = True
            time.sleep(0.002)
            self.busy = False
            return b"short"

    class Module:
        ZstdCompressor = Tool

    pc = open_store(use_compression=True)
    monkeypatch.setattr(_compression, "needed", lambda _what: Module)
    answers: list[Any] = []

    def work() -> None:
        answers.extend(pc._compression.frame(bytes(500)) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"short"] * 120


def test_what_is_counted(open_store: Open) -> None:
    pc = open_store(mmpc.LastWriteWins(), use_compression=True)
    pid, _ = pc.allocate(b"abc" * 1000)
    pc.allocate(os.urandom(1000))
    pc.get(pid)
    pc.get(pid)
    found = pc.metrics().as_dict()
    counters = found["counters"]
    assert (counters["compress_in"], counters["compress_kept"]) == (3003, 1003)
    assert counters["compress_out"] == counters["decompress_in"] < 100
    assert counters["decompress_out"] == 3003
    assert [found["histograms"][name]["count"] for name in ("compress", "decompress")] == [2, 1]


def test_nothing_of_it_where_it_is_not_asked_for(path: str) -> None:
    """zstandard is not even imported."""
    code = """
del sys.modules["zstandard"]
with mmpc.open(path, mmpc.Append(), create=True) as pc:
    pid, _ = pc.allocate(b"x" * 5000)
    pc.append(pid, b"y" * 5000)
    pc.view(pid)
assert mmpc.verify(path).ok
assert "zstandard" not in sys.modules
"""
    without(path, code)
    assert mmpc.verify(path).ok
    assert not says_so(path)
