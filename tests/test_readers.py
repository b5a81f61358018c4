"""Who holds what, and for how long: mmpc.readers, stats().readers and the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from mmpc import _readers
from mmpc._layout import CONTROL_GLOBALS, CONTROL_SLOTS, CONTROL_TIMES, GLOBALS, TIME_SAMPLE, TIMES
from support.children import Children, Gate

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
SMALL = 1 << 16


def churn(pc: Store, pid: int, times: int = 200) -> None:
    key = pc.get(pid).key
    for i in range(times):
        key = pc.replace(pid, key, [i, "x" * 2000])


def test_nobody_holds_anything(open_store: Open, path: str) -> None:
    before = time.time()
    pc = open_store()
    (me,) = mmpc.readers(path)
    assert (me.process, me.alive, me.pins, me.oldest, me.views, me.delays) == (os.getpid(), True, 0, None, [], 0)
    assert before - 1 <= me.since <= time.time()
    assert pc.stats().readers[0].slot == me.slot == pc._attachment.slot
    pc.close()
    assert mmpc.readers(path) == []
    with pytest.raises(FileNotFoundError):
        mmpc.readers(path + ".none")


def test_what_a_tx_holds_and_delays(open_store: Open, path: str) -> None:
    pc = open_store(segment_size=SMALL)
    pid, _ = pc.allocate([0])
    churn(pc, pid)
    pc.generate_id()  # the first number of a life flushes, which steps the epoch; a Tx draws one under its pin
    with pc.begin():
        epoch = pc.stats().epoch
        churn(pc, pid)
        while pc.attempt_gc():
            continue
        me = pc.stats().readers[0]
        assert (me.pins, me.oldest) == (1, epoch)
        assert me.delays == pc.stats().segments_retired * SMALL > 0
        assert f"since epoch {epoch}" in str(me)
    while pc.attempt_gc():
        continue
    me = pc.stats().readers[0]
    assert (me.pins, me.oldest, me.delays, me.held) == (0, None, 0, 0.0)


def test_for_how_long(open_store: Open, path: str) -> None:
    """Bounded from both sides by the times of the epochs around it."""
    pc = open_store()
    pid, _ = pc.allocate([0])
    begun = time.time()
    with pc.begin():
        time.sleep(1.1)  # samples are a second apart
        pc.append(pid, [1])
        pc.flush()
        left = time.time()
        time.sleep(0.2)
        me = pc.stats().readers[0]
        now = time.time()
        assert now - left - 0.01 <= me.held <= now - begun <= me.held_most + 0.01
        assert me.held >= 0.15


def samples(*pairs: tuple[int, float]) -> list[tuple[int, int]]:
    return [(epoch, int(when * 1e9)) for epoch, when in pairs]


def test_the_age_of_an_epoch() -> None:
    now = time.time()
    words = (1, 7, int((now - 500) * 1e9), 0, *([50] + [0] * 31), *([0] * 64))
    for held, most, found in [
        (0, 500, samples()),
        (0, 500, samples((49, now - 600))),
        (0, 300, samples((40, now - 400), (50, now - 300))),
        (200, 300, samples((50, now - 300), (51, now - 200), (90, now - 10))),
        (10, 500, samples((51, now - 10))),
    ]:
        reader = _readers.Reader(3, words, True)
        _readers._date(reader, found)
        assert reader.held == pytest.approx(held, abs=2)
        assert reader.held_most == pytest.approx(most, abs=2)


def test_times_of_epochs_reach_far_back(open_store: Open, path: str) -> None:
    """A row for each power of two of seconds; one sample of each is written at the first flush."""
    pc = open_store()
    pid, _ = pc.allocate([0])
    for i in range(3):
        pc.append(pid, [i])
        pc.flush()
    with open(os.path.join(path, "control"), "rb") as f:
        f.seek(CONTROL_TIMES)
        data = f.read(16 * TIMES)
    found = [s for s in TIME_SAMPLE.iter_unpack(data) if s[1]]
    assert len(found) >= 16
    for number, (epoch, when) in enumerate(TIME_SAMPLE.iter_unpack(data)):
        if when:
            assert 0 < epoch <= pc.stats().epoch
            assert when // 10**9 >> number // 16 & 15 == number % 16


def _hold(path: str, gate: Gate, told: int) -> None:
    with mmpc.open(path, mmpc.Append()) as pc, pc.begin():
        os.write(told, b".")
        gate.wait()


@pytest.mark.processes
def test_other_processes_stopped_and_dead(open_store: Open, path: str, children: Children) -> None:
    pc = open_store()
    gate, (read, told) = Gate(), os.pipe()
    holders = [children.start(_hold, path, gate, told) for _ in range(2)]
    assert len(os.read(read, 1) + os.read(read, 1)) == 2
    holders[0].signal(signal.SIGSTOP)
    found = {r.process: r for r in mmpc.readers(path)}
    assert set(found) == {os.getpid(), holders[0].pid, holders[1].pid}
    assert all(r.alive for r in found.values())
    assert found[holders[0].pid].pins == found[holders[1].pid].pins == 1
    first = pc.stats().readers
    assert first[0].pins == first[1].pins == 1
    assert first[2].process == os.getpid()
    holders[0].kill()
    dead = next(r for r in mmpc.readers(path) if r.process == holders[0].pid)
    assert not dead.alive
    assert dead.pins == 1
    assert "(dead)" in str(dead)
    gate.open()
    holders[1].result()
    pid, _ = pc.allocate([0])
    pc.flush()
    assert pc.stats().oldest_pin == pc.stats().epoch  # who looks for the oldest pin reaps
    assert [r.process for r in mmpc.readers(path)] == [os.getpid()]
    os.close(read)
    os.close(told)
    assert pc.get(pid).unwrap() == [0]


def test_bytes_that_cannot_be(open_store: Open, path: str) -> None:
    pc = open_store()
    pc.close()
    name = os.path.join(path, "control")
    with open(name, "rb") as f:
        sound = f.read()
    for at, data in (
        (CONTROL_GLOBALS + GLOBALS["slots_used"], b"\xff" * 8),
        (CONTROL_GLOBALS + GLOBALS["segments"], b"\xff" * 8),
        (CONTROL_SLOTS, b"\xff" * 1024),
        (CONTROL_TIMES, b"\xff" * 4096),
    ):
        with open(name, "r+b") as f:
            f.seek(at)
            f.write(data)
        for reader in mmpc.readers(path):
            assert not reader.alive
            assert str(reader)
    with open(name, "r+b") as f:
        f.write(sound)
    with mmpc.open(path, mmpc.Append()):
        with open(name, "r+b") as f:
            sound = f.read(512)
            f.seek(0)
            f.write(b"\0" * 512)
        with pytest.raises(mmpc.CorruptionError, match="by whom"):
            mmpc.readers(path)
        with open(name, "r+b") as f:
            f.write(sound)
    with open(name, "r+b") as f:
        f.write(b"\0" * 512)
    assert mmpc.readers(path) == []
    os.unlink(name)
    assert mmpc.readers(path) == []


def test_the_command(open_store: Open, path: str) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mmpc", "readers", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    pc = open_store()
    with pc.begin():
        done = command(path, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        (me,) = json.loads(done.stdout)["readers"]
        assert (me["process"], me["alive"], me["pins"]) == (os.getpid(), True, 1)
        assert f"process {os.getpid()}" in command(path).stdout
    pc.close()
    done = command(path)
    assert (done.returncode, done.stdout) == (0, "nobody has the store open\n")
    assert command(path + ".none").returncode == 2
    assert "example" in command("--help").stdout
