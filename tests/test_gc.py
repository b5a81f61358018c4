"""mmpc.clean and `python -m mmpc gc`: all that a store can do without is given back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import _space
from support.children import Children

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]
SMALL = 1 << 16


def wasteful(pc: Store, pages: int = 400) -> dict[int, Any]:
    """Pages of which a quarter is left, all over the log; what is left."""
    made = [pc.allocate([i, "x" * 3000]) for i in range(pages)]
    model = {}
    for i, (pid, key) in enumerate(made):
        if i % 4:
            pc.free(pid, key)
        else:
            model[pid] = [i, "x" * 3000]
    return model


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmpc", "gc", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("closed", [False, True])
def test_all_that_can_be_given_back_is(open_store: Open, path: str, closed: bool) -> None:
    pc = open_store(segment_size=SMALL)
    model = wasteful(pc)
    if closed:
        pc.close()
    calls: list[tuple[int, int]] = []
    report = mmpc.clean(path, progress=lambda done, total: calls.append((done, total)))
    assert report.damage == []
    assert not report.waiting
    assert report.emptied > 5
    assert report.moved > 0
    assert report.after < report.before * 0.7
    assert report.after == os.stat(os.path.join(path, "log")).st_blocks * 512
    assert all(done <= total for done, total in calls)
    pc = open_store()
    assert all(pc.get(pid).unwrap() == value for pid, value in model.items())
    again = mmpc.clean(path)
    assert again.emptied <= 1
    assert mmpc.verify(path).ok


def test_another_materializer(open_store: Open, path: str) -> None:
    """Values are not decoded: their materializer need not be there, and chains stay as they are."""
    pc = open_store(mmpc.Add(), segment_size=SMALL, page_consolidation_threshold=200)
    pid, _ = pc.allocate(1)
    for i in range(60):
        pc.append(pid, i)
    for other, key in [pc.allocate(10**15) for _ in range(3000)]:
        pc.free(other, key)
    assert mmpc.clean(path).emptied > 0
    assert pc.get_page_frags(pid)[1] == [1, *range(60)]
    pc.close()
    with pytest.raises(mmpc.Unsupported, match="add"), _space.visit(path) as visitor:
        visitor.get(pid)
    assert open_store(mmpc.Add()).get(pid).unwrap() == 1 + sum(range(60))


def test_readers_are_not_waited_for(open_store: Open, path: str) -> None:
    pc = open_store(segment_size=SMALL)
    wasteful(pc)
    with pc.begin():
        report = mmpc.clean(path)
        assert report.retired > 0
        assert "mmpc readers" in str(report)
    assert mmpc.clean(path).retired == 0


def _stopped_in_a_write(path: str, pid: int, told: int) -> None:
    pc = mmpc.open(path, mmpc.Append())
    os.write(told, b".")
    while True:
        pc.replace(pid, pc.get(pid).key, ["x" * 20000])


@pytest.mark.processes
def test_a_writer_that_is_stopped(
    open_store: Open, path: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for a while, if it was stopped in the middle; and if not, not."""
    monkeypatch.setattr(_space, "PATIENCE", 0.3)
    pc = open_store(segment_size=1 << 20)
    model, (pid, _) = wasteful(pc), pc.allocate([])
    pc.flush()
    read, told = os.pipe()
    writer = children.start(_stopped_in_a_write, path, pid, told)
    os.read(read, 1)
    for _ in range(10):
        time.sleep(0.003)
        writer.signal(signal.SIGSTOP)
        stopped = next(r for r in mmpc.readers(path) if r.process == writer.pid)
        report = mmpc.clean(path)
        assert stopped.writing or not report.waiting
        assert report.damage == []
        writer.signal(signal.SIGCONT)
    writer.kill()
    os.close(read)
    os.close(told)
    assert not mmpc.clean(path).waiting
    assert all(pc.get(p).unwrap() == value for p, value in model.items())


def test_damage_in_a_segment(open_store: Open, path: str) -> None:
    """It says where, leaves that one as it is, and goes on with the others."""
    pc = open_store(segment_size=SMALL)
    model = wasteful(pc)
    pc.close()
    log = Path(path) / "log"
    sound = log.read_bytes()
    at = sound.index(b"x" * 3000, 3 * SMALL) + 5
    with open(log, "r+b") as f:
        f.seek(at)
        f.write(b"y")
    done = command(path, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert not found["ok"]
    assert found["emptied"] > 5
    places = [d["offset"] // SMALL for d in found["damage"]]
    assert places == [at // SMALL]
    assert found["damage"][0]["file"] == "log"
    done = command(path)
    assert (done.returncode, "damage: " in done.stdout) in [(1, True), (0, False)]  # it counts as full for a while
    pc = mmpc.open(path, mmpc.Append())
    whole = {pid: value for pid, value in model.items() if not damaged(pc, pid)}
    assert len(model) - 1 <= len(whole)
    assert all(pc.get(pid).unwrap() == value for pid, value in whole.items())
    pc.close()


def damaged(pc: Store, pid: int) -> bool:
    try:
        pc.get(pid)
    except mmpc.CorruptionError:
        return True
    return False


def test_the_command(open_store: Open, path: str) -> None:
    pc = open_store(segment_size=SMALL)
    model = wasteful(pc)
    done = command(path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["after"] < found["before"]
    done = command(path)
    assert done.returncode == 0
    assert "MB before" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert all(pc.get(pid).unwrap() == value for pid, value in model.items())
    assert command(path + ".none").returncode == 2
    for said in ("example", "exit status"):
        assert said in command("--help").stdout
