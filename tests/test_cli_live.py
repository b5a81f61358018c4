"""top, doctor, viz, bench and demo: what they say of stores that are at work, and of those that are not well."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc.cli import bench, doctor, gather, top, viz
from support.children import Children
from support.commands import COMMAND, object_of, on_terminal, refused, run, sound

Open = Callable[..., mmpc.PageCache[Any]]
SMALL = 1 << 16
ESCAPE = "\x1b"
HAS_RICH = bool(__import__("importlib.util").util.find_spec("rich"))
WITHOUT = "import sys; sys.modules[{0!r}] = None; from mmpc.cli import main; sys.exit(main(sys.argv[1:]))"


def write(path: str) -> None:
    """Works on ten pages for ever."""
    with mmpc.open(path, mmpc.Append()) as pc:
        ids = [pc.allocate(b"x" * 500)[0] for _ in range(10)]
        while True:
            for pid in ids:
                pc.append(pid, b"y" * 100)
            pc.replace(ids[0], pc.get(ids[0]).key, b"z")
            pc.flush()


# ---- top


def test_top_of_a_store_at_work(open_store: Open, path: str, children: Children) -> None:
    pc = open_store(segment_size=SMALL)
    writers = [children.start(write, path) for _ in range(2)]
    while pc.stats().slots < 3:  # the test has a watchdog
        time.sleep(0.01)
    with pc.begin():
        epoch = pc.stats().epoch
        found = object_of("top", path, "--interval", "0.7")
        assert found["operations"] > 0
        assert found["flushes"] > 0
        assert found["written"] > 0
        assert 0.7 <= found["seconds"] < 60
        assert found["epoch"] > epoch
        by_process = {p["process"]: p for p in found["processes"]}
        assert sum(by_process[w.pid]["operations"] for w in writers) > 0
        assert found["epoch"] - epoch <= by_process[os.getpid()]["lag"] <= found["epoch"]
        assert by_process[os.getpid()]["pins"] == 1
    assert len(found["segments"]) >= 1
    for w in writers:
        w.signal(signal.SIGSTOP)  # else the one that dies last may reap the other
    for w in writers:
        w.kill()
    assert sum(not p["alive"] for p in object_of("top", path, "--interval", "0.1")["processes"]) >= 2


def test_top_into_a_pipe_is_plain(open_store: Open, path: str) -> None:
    open_store().allocate(b"x")
    text = sound("top", path, "--count", "3", "--interval", "0.05")
    assert ESCAPE not in text
    assert text.count("mmpc top  ") == 3
    assert text.count("1 process; ") == 3
    done = run("top", path, "--once", "--interval", "0.05", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


@pytest.mark.skipif(not HAS_RICH, reason="rich is not installed")
def test_top_on_a_terminal_is_drawn_by_rich_and_ends_with_ctrl_c(open_store: Open, path: str) -> None:
    open_store().allocate(b"x")
    status, text = on_terminal("top", path, "--interval", "0.1", seconds=3, interrupt=True)
    assert status == 0
    assert "╭─ activity" in re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "Ctrl-C ends" in text
    assert f"{ESCAPE}[?1049l" in text  # the screen as it was is shown again


def test_top_without_rich(open_store: Open, path: str) -> None:
    open_store().allocate(b"x")
    code = WITHOUT.format("rich")
    command = [sys.executable, "-c", code, "top", path, "--count", "2", "--interval", "0.05"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "activity" in done.stdout
    status, text = on_terminal("top", path, "--count", "2", "--interval", "0.05", env={"TERM": "dumb"})
    assert (status, ESCAPE in text) == (0, False)


def test_top_of_a_store_that_failed(open_store: Open, path: str) -> None:
    pc = open_store()
    pc.allocate(b"x")
    found = object_of("top", path, "--interval", "0.05") | {"failed": 5}
    (line, *_others) = top.blocks(found, [], 80, True)[0][1]
    assert line[0][0].startswith("a sync FAILED (Input/output error)")


def busy(processes: int, times: int) -> dict[str, Any]:
    """A look at a store where much is going on, with numbers as wide as they get."""
    process = {"process": 4194303, "alive": True, "attached": 9e6, "operations": 1e7, "lag": 1, "held": 3e5, "pins": 1}
    timed = {"count": 9e6, "every": 1, "p50": 1.23e-6, "p90": 1.23e-4, "p99": 0.123, "p999": 1.0}
    rates = dict.fromkeys(("operations", "conflicts", "gets", "gets_cached"), 12_345_678)
    others = dict.fromkeys(("written", "moved"), 999.4e6) | dict.fromkeys(("epoch", "durable", "pages"), 12_345_678)
    counts = dict.fromkeys(("flushes", "flushes_shared", "reaped", "helped", "snapshots"), 123_456)
    return {
        **(rates | others | counts),
        "seconds": 1.0,
        "flush_seconds": 0.0123,
        "cleaned": 123.4,
        "failed": 0,
        "log": {"taken": 2e9, "live": 1e9, "share": 0.5, "waiting": 16e6},
        "latencies": [{"name": f"verb_{n}", **timed, "count": n} for n in range(times)],
        "processes": [{"slot": n, **process, "views": 64, "delays": 9e8} for n in range(processes)],
    }


@pytest.mark.parametrize("times", [0, 3, 11])
@pytest.mark.parametrize("processes", [0, 1, 12, 13, 1024])
@pytest.mark.parametrize("lines", [24, 30, 43, 60])
def test_a_look_fits_a_terminal(lines: int, processes: int, times: int) -> None:
    """It took 98 columns and any number of lines: on a terminal of 80 x 24 the last ones could not be seen."""
    found = top.blocks(busy(processes, times), [], 76, True, lines - 2)
    assert sum(2 + len(block) for _name, block in found) <= lines - 2
    assert all(len("".join(text for text, _style in line).rstrip()) <= 76 for _name, block in found for line in block)
    *_others, (_title, rows) = found
    shown = len(rows) - 1
    assert shown >= min(processes, 4 if lines < 43 else 12)
    if shown > 12 or shown < processes:
        assert rows[-1][0][0] == f"and {processes - shown + 1} more"
    if lines == 60:
        assert sum(len(block) - 1 for name, block in found if name.startswith("latencies")) == times


def test_of_latencies_the_frequent_ones_are_kept() -> None:
    found = dict(top.blocks(busy(1, 11), [], 76, True, 28))
    names = [line[0][0].split()[0] for line in found["latencies in this interval"][1:]]
    assert names == [f"verb_{n}" for n in range(11 - len(names), 11)]
    assert 0 < len(names) < 11


def test_latencies_are_of_the_interval(open_store: Open, path: str) -> None:
    pc = open_store()
    pid, _key = pc.allocate(b"x")
    for _ in range(2000):
        pc.append(pid, b"y")
    before = gather.moment(path)
    for _ in range(3):
        pc.append(pid, b"z")
        pc.flush()
    for _ in range(5000):
        pc.get(pid)
    after = gather.moment(path)
    found = {t.name: t for t in after.latencies(before)}
    assert found["flush"].count == 3
    assert "allocate" not in found
    assert 0 < found["flush"].percentile(50) <= found["flush"].percentile(99) < 60
    assert found["flush"].percentile(0) <= found["flush"].percentile(50)
    gets = after.counted(before, "cache_hits", "cache_misses")
    assert gets is not None
    assert 5000 - 256 < round(gets * (after.time - before.time)) <= 5000  # the handle tells of hits late
    shown = top.figures(path, before, after)
    assert [t["name"] for t in shown["latencies"]] == list(found)
    titles = [name for name, _lines in top.blocks(shown, after.segments, 80, True)]
    assert titles[1] == "latencies in this interval"
    assert "calls" not in sound("top", path, "--once", "--interval", "0.05")  # nothing was done in it


def test_a_store_without_metrics(open_store: Open, path: str) -> None:
    """They are an extra: all else is shown as ever."""
    open_store().allocate(b"x")
    os.unlink(os.path.join(path, "metrics"))
    found = object_of("top", path, "--interval", "0.05")
    assert (found["gets"], found["latencies"]) == (None, [])
    assert "activity" in sound("top", path, "--once", "--interval", "0.05")


# ---- doctor


def levels(path: str) -> dict[str, str]:
    return {f["about"]: f["level"] for f in object_of("doctor", path)["findings"]}


def test_doctor_of_a_machine(tmp_path: Path) -> None:
    found = object_of("doctor")
    assert {"system", "address space", "open files", "memory", "rich", "matplotlib"} <= {
        f["about"] for f in found["findings"]
    }
    for f in found["findings"]:
        assert f["level"] in ("good", "note", "warning", "problem")
    empty = object_of("doctor", str(tmp_path))["findings"]
    assert [f["said"] for f in empty if f["about"] == "store"] == ["there is none here; create=True makes one"]
    assert os.listdir(tmp_path) == []
    assert refused("doctor", str(tmp_path / "none")) == (2, f"{tmp_path / 'none'}: no such directory")


def test_doctor_of_a_sound_store(open_store: Open, path: str) -> None:
    pc = open_store()
    pc.allocate(b"x")
    assert levels(path)["durability"] == "note"
    pc.flush()
    found = levels(path)
    assert found["durability"] == found["damage"] == found["abilities"] == found["file system"] == "good"
    assert "problem" not in found.values()
    text = sound("doctor", path)
    assert ESCAPE not in text
    assert "all that was written is durable" in text


def test_doctor_says_what_is_wrong(open_store: Open, path: str) -> None:
    open_store().close()
    Path(path, "letter.txt").write_text("dear")
    assert levels(path)["directory"] == "warning"
    os.rename(os.path.join(path, "marks"), os.path.join(path, "log.new"))
    done = run("doctor", path, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    said = [f["said"] for f in json.loads(done.stdout)["findings"] if f["level"] == "problem"]
    assert [s.partition(" in ")[0] for s in said] == ["damaged: 'marks' is missing"]
    os.rename(os.path.join(path, "log.new"), os.path.join(path, "marks"))
    with open(os.path.join(path, "config"), "r+b") as f:
        f.truncate(60)
    done = run("doctor", path)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^problem +store +damaged: 'config'", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("limit", "status", "said"),
    [
        ("-n 40", 0, r"^warning +open files +at most 40 in a process"),
        ("-v 20000000", 1, r"^problem +address space +is limited to 20.5 GB \(ulimit -v\); an open store maps 2.40 TB"),
        ("-f 1000", 0, r"^warning +file size +is limited to 1.0 MB"),
    ],
)
def test_doctor_knows_small_limits(limit: str, status: int, said: str) -> None:
    command = " ".join([f"ulimit {limit}; exec", *COMMAND, "doctor"])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert re.search(said, done.stdout, re.MULTILINE), done.stdout
    assert done.returncode == status


def test_doctor_names_who_holds_for_long(open_store: Open, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pc = open_store()
    pid, _key = pc.allocate(b"x")
    with pc.begin():
        from mmpc import _readers

        def long(reader: _readers.Reader, _samples: object) -> None:
            reader.held = reader.held_most = 500.0

        monkeypatch.setattr(_readers, "_date", long)
        pc.append(pid, b"y")
        said = [f.said for f in doctor.diagnose(path) if f.about == "long pin"]
    assert len(said) == 1
    assert said[0].startswith(f"process {os.getpid()} holds epoch ")
    assert "8.3 min" in said[0]


@pytest.mark.parametrize(
    ("kind", "level"), [("nfs4", "problem"), ("fuse.sshfs", "problem"), ("ext3", "problem"), ("xfs", "good")]
)
def test_doctor_judges_the_file_system(
    path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, level: str
) -> None:
    monkeypatch.setattr(doctor, "_mount", lambda _path: ("/mnt", kind, ["rw"]))
    found = [f for f in doctor.diagnose(str(tmp_path)) if f.about == "file system"]
    assert [f.level for f in found] == [level]


def test_doctor_of_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_need", lambda _path: 1 << 60)
    found = {f.about: f.level for f in doctor.diagnose(str(tmp_path))}
    assert found["room"] == "problem"


# ---- viz


def pictures(out: Path) -> dict[str, str]:
    """The texts of each picture, after it was parsed."""
    found = {}
    for file in sorted(out.glob("*.svg")):
        texts = [t.text or "" for t in ElementTree.parse(file).iter() if t.tag.endswith("}text")]
        found[file.stem.removeprefix("mmpc-")] = "\n".join(texts)
    return found


def test_pictures(open_store: Open, path: str, tmp_path: Path, children: Children) -> None:
    pytest.importorskip("matplotlib")
    pc = open_store(segment_size=SMALL)
    ids = [pc.allocate(b"x" * 900)[0] for _ in range(300)]
    pc.append(ids[0], b"y")
    writer = children.start(write, path)
    out = tmp_path / "deep" / "out"
    found = object_of("viz", path, "--out", str(out), "--seconds", "0.5")
    writer.kill()
    assert sorted(found["pictures"]) == ["age", "chains", "latencies", "segments", "time"]
    texts = pictures(out)
    assert "Segments of the log, by live share" in texts["segments"]
    assert "live share" in texts["segments"]
    assert "garbage" in texts["age"]
    assert "seconds since the first sample" in texts["time"]
    assert re.search(r"store: all \d+ page ids; \d+ pages in use", texts["chains"].replace("\u202f", ""))
    for text in texts.values():
        assert "store: " in text


def test_pictures_of_a_small_store(open_store: Open, path: str, tmp_path: Path) -> None:
    """The axis of pages said 1, 1, 2, 2: halves of pages, rounded."""
    pytest.importorskip("matplotlib")
    open_store().close()
    sound("viz", path, "--out", str(tmp_path / "out"))
    texts = pictures(tmp_path / "out")
    assert [text for text in texts["chains"].splitlines() if text.strip().isdigit()] == ["1", "1", "2"]
    assert "store: 1 segment in use, opened in epoch 1 (now" in texts["age"]
    assert "store: 1 segment of 8.4 MB" in texts["segments"]


def test_pictures_that_are_asked_for(open_store: Open, path: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    open_store().close()
    found = object_of("viz", path, "--out", str(tmp_path / "out"), "--only", "chains")
    assert list(found["pictures"]) == ["chains"]
    status, said = refused("viz", path, "--only", "time")
    assert (status, said) == (2, "the picture 'time' needs --seconds N: what was in the past is not recorded")
    assert os.listdir(tmp_path / "out") == ["mmpc-chains.svg"]


def test_what_is_not_known_has_no_picture(open_store: Open, path: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    open_store().close()
    done = run("viz", path, "--out", str(tmp_path / "out"), "--json", env={"MMPC_BOOT_ID": "another"})
    found = json.loads(done.stdout)
    assert (done.returncode, list(found["pictures"])) == (0, ["segments", "latencies"])  # of the life that ended
    assert set(found["left_out"]) == {"age", "chains"}


def test_depths_are_counted(open_store: Open, path: str) -> None:
    pc = open_store(page_consolidation_threshold=50)
    ids = [pc.allocate(b"x")[0] for _ in range(10)]
    for pid in ids[:3]:
        pc.append(pid, b"y")
    pc.free(ids[9], pc.get(ids[9]).key)
    assert viz._depths(path, 1000) == ({1: 2 + 6, 2: 3}, 12, 12)
    depths, looked, there = viz._depths(path, 5)
    assert (looked, there) == (4, 12)
    assert depths is not None
    assert sum(depths.values()) <= 4


def test_latencies_are_drawn_as_they_were(open_store: Open, path: str) -> None:
    """What lies between two times that were seen was drawn as if it had been seen, too."""
    pc = open_store()
    pc.allocate(b"x")
    pc.flush()
    flush = gather.Latency(gather.metrics(path).histograms["flush"])  # type: ignore[union-attr]
    flush.buckets, flush.count = [(1000, 1100, 3), (1100, 1200, 1), (5_000_000, 5_500_000, 4)], 8
    edges, shares = viz._steps(flush)
    assert edges == [1000 / 1e9, 1100 / 1e9, 1200 / 1e9, 5_000_000 / 1e9, 5_500_000 / 1e9]
    assert shares == [37.5, 12.5, 0.0, 50.0]


def test_a_map_of_very_many_segments_is_a_small_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    viz._matplotlib()
    figure, axes = viz._figure("title", "below")
    viz._cells(axes, [viz.FREE, viz.OPEN, viz.LIVE] * 40_000, 500)
    figure.savefig(tmp_path / "map.svg")
    assert (tmp_path / "map.svg").stat().st_size < 500_000


def test_viz_without_matplotlib(open_store: Open, path: str, tmp_path: Path) -> None:
    open_store().close()
    command = [sys.executable, "-c", WITHOUT.format("matplotlib"), "viz", path, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mmpc: pictures need matplotlib: pip install 'mmpc[viz]'\n"
    assert not (tmp_path / "out").exists()


# ---- bench and demo


def test_bench(tmp_path: Path) -> None:
    found = object_of("bench", str(tmp_path), "--seconds", "0.02", "--processes", "2")
    assert [row["what"] for row in found["rows"]][-1] == "append, 2 processes, 1000 pages"
    assert len(found["rows"]) == 6
    for row in found["rows"]:
        assert 0 < row["median"] <= row["p99"]
        assert row["per_second"] > 0
    assert os.listdir(tmp_path) == []
    assert len(bench._line(found["rows"][0])) < 100
    assert refused("bench", str(tmp_path / "none"))[0] == 2


def test_demo_hands_on(tmp_path: Path) -> None:
    store = str(tmp_path / "index")
    text = sound("demo", "index", "--store", store, "--limit", "5", "--workers", "1", "--json")
    assert json.loads(text)
    assert run("demo", "search", "--store", store, "zzzzzzzz").returncode == 1
    assert "python -m mmpc.demo" in sound("demo", "index", "--help")
