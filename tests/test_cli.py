"""The command line: what each command shows of a store, alive, closed, copied and damaged; how errors are told."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import _layout
from mmpc.cli import COMMANDS, gather, show, strip
from support.children import Children
from support.commands import COMMAND, object_of, on_terminal, refused, run, sound

Open = Callable[..., mmpc.PageCache[Any]]
SMALL = 1 << 16
ESCAPE = "\x1b"
NAMES = [
    "stat",
    "top",
    "segments",
    "readers",
    "page",
    "check",
    "dump",
    "load",
    "backup",
    "gc",
    "bench",
    "viz",
    "doctor",
    "demo",
]
ROOT = Path(__file__).resolve().parent.parent


def filled(open_store: Open, pages: int = 300) -> tuple[mmpc.PageCache[Any], list[int]]:
    """A store of several segments, some of it garbage, flushed."""
    pc = open_store(segment_size=SMALL)
    ids = [pc.allocate(b"x" * 1000)[0] for _ in range(pages)]
    for pid in ids[::2]:
        pc.replace(pid, pc.get(pid).key, b"y" * 500)
    pc.flush()
    return pc, ids


# ---- the frame


def test_every_command_has_help_with_an_example_and_its_exit_status() -> None:
    helped = sound("--help")
    for name in NAMES:
        assert f"\n    {name} " in helped
        text = sound(name, "--help")
        assert f"example: python -m mmpc {name}" in text
        assert "exit status: " in text
        assert ESCAPE not in text


def test_the_script_is_the_module() -> None:
    script = Path(sys.executable).with_name("mmpc")
    if not script.exists():
        pytest.skip("mmpc is not installed here as a script")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"mmpc {mmpc.__version__}\n")


def test_no_command_imports_what_may_be_missing_or_is_slow() -> None:
    code = "import sys, mmpc.cli; [__import__('mmpc.cli.' + name) for name in mmpc.cli.COMMANDS.values()]\n"
    code += "print({'rich', 'matplotlib', 'numpy', 'msgpack', 'filelock'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "arguments", [[], ["no-such"], ["stat"], ["page", "x", "-1"], ["segments", "x", "--below", "200"]]
)
def test_a_wrong_call_is_status_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: mmpc" in done.stderr


LOOKING = ["stat", "segments", "readers", "page", "top", "viz"]


def arguments_of(name: str, path: str, tmp_path: Path) -> list[str]:
    more = {
        "page": ["2"],
        "top": ["--once"],
        "viz": ["--out", str(tmp_path / "out")],
        "backup": [str(tmp_path / "copy")],
    }
    return [name, path, *more.get(name, [])]


@pytest.mark.parametrize("name", [*LOOKING, "dump", "gc", "backup", "check"])
def test_no_store(name: str, path: str, tmp_path: Path) -> None:
    status, said = refused(*arguments_of(name, path, tmp_path))
    assert (status, said) == (2, f"{path}: no store here")
    os.mkdir(path)
    Path(path, "letter.txt").write_text("dear")
    status, said = refused(*arguments_of(name, path, tmp_path))
    assert (status, said) == (2, f"{path!r} is not an mmpc store: it holds no 'config'")


@pytest.mark.parametrize("name", [*LOOKING, "dump"])
def test_a_damaged_config_is_status_1(open_store: Open, name: str, path: str, tmp_path: Path) -> None:
    open_store().close()
    with open(os.path.join(path, "config"), "r+b") as f:
        f.seek(50)
        f.write(b"!!")
    status, said = refused(*arguments_of(name, path, tmp_path))
    assert status == 1
    assert said.startswith("damaged: 'config'")
    assert said.endswith(f"python -m mmpc check {path} says more")


@pytest.mark.parametrize("name", [*LOOKING, "dump", "check"])
def test_another_format(open_store: Open, name: str, path: str, tmp_path: Path) -> None:
    open_store().close()
    with open(os.path.join(path, "config"), "r+b") as f:
        f.seek(8)
        f.write(struct.pack("<I", 99))
    status, said = refused(*arguments_of(name, path, tmp_path))
    assert (status, said) == (2, f"the store has format 99, this mmpc reads format {_layout.FORMAT}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", [*LOOKING])
def test_no_permission(open_store: Open, name: str, path: str, tmp_path: Path) -> None:
    open_store().close()
    os.chmod(path, 0)
    try:
        status, said = refused(*arguments_of(name, path, tmp_path))
        assert status == 2
        assert "Permission denied" in said
        assert "allowed to read it" in said
    finally:
        os.chmod(path, 0o700)


def test_permission_to_read_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, open_store: Open, path: str
) -> None:
    """The same where tests run as root: the system's answer is stood in for."""
    from mmpc import cli

    open_store().close()

    def no(*_: object, **_more: object) -> int:
        raise PermissionError(13, "Permission denied", os.path.join(path, "config"))

    monkeypatch.setattr(os, "open", no)
    assert cli.main(["stat", path]) == 2
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert said == f"mmpc: {path}/config: Permission denied: user {os.geteuid()} needs to be allowed to read it\n"


def test_who_reads_no_more_is_left_in_peace(open_store: Open, path: str) -> None:
    filled(open_store, 3000)[0].close()
    process = subprocess.Popen([*COMMAND, "dump", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, b"")
    process.stderr.close()


# ---- stat


def test_stat_of_a_live_store(open_store: Open, path: str) -> None:
    pc, _ids = filled(open_store)
    found, stats = object_of("stat", path), pc.stats()
    assert (found["state"], found["path"]) == ("open", path)
    assert found["options"] == {"materializer": "mmpc.append-1", "codec": "msgpack-1", "segment_size": SMALL}
    assert found["epoch"] == {"now": stats.epoch, "durable": stats.stable, "lag": 0, "dirty": found["epoch"]["dirty"]}
    assert found["pages"]["ids"] == stats.pages
    assert sum(found["log"]["segments"].values()) == stats.segments
    assert found["log"]["written"] == stats.written
    assert 0.3 < found["log"]["share"] < 1
    assert found["processes"]["alive"] == 1
    assert found["processes"]["operations"] == stats.operations >= 450
    assert found["flushes"]["syncs"] >= 1
    assert found["bytes"]["files"]["log"]["apparent"] == os.stat(os.path.join(path, "log")).st_size
    pc.append(2, b"!")
    assert object_of("stat", path)["epoch"]["dirty"] > found["epoch"]["durable"]
    text = sound("stat", path)
    assert "open in 1 process\n" in text
    assert "not what was written since epoch" in text
    assert ESCAPE not in text


def test_stat_of_a_store_that_nobody_has_open(open_store: Open, path: str) -> None:
    filled(open_store)[0].close()
    found = object_of("stat", path)
    assert (found["state"], found["processes"]["alive"]) == ("closed", 0)
    assert found["snapshot"]["log_since"] == 0
    assert "closed: nobody has it open" in sound("stat", path)


def test_stat_of_a_copy_and_after_a_reboot(open_store: Open, path: str, tmp_path: Path) -> None:
    """`control` is not believed: what is shown comes from what lasts."""
    filled(open_store)[0].close()
    closed = object_of("stat", path)
    copy = str(tmp_path / "copy")
    shutil.copytree(path, copy)
    for found in (
        object_of("stat", copy),
        json.loads(run("stat", path, "--json", env={"MMPC_BOOT_ID": "other"}).stdout),
    ):
        assert found["state"] == "to be recovered"
        assert found["uuid"] == closed["uuid"]
        assert found["epoch"]["durable"] == closed["epoch"]["durable"]
        states = closed["log"]["segments"]
        assert found["log"]["segments"]["sealed"] == states["sealed"] + states["open"]
        assert found["log"]["live"] == pytest.approx(closed["log"]["live"], rel=0.5)
        assert found["pages"]["ids"] == closed["pages"]["ids"]
    assert "the next open recovers it" in sound("stat", copy)
    assert refused("top", copy, "--once") == (
        2,
        f"{copy}: nobody has opened the store since the machine started: nothing to watch",
    )


def test_stat_knows_what_flushes_said_in_the_log(path: str, children: Children) -> None:
    """After a loss of power: a small flush makes no mark."""

    def work() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True)
        pid, _key = pc.allocate(b"x")
        for _ in range(3):
            pc.append(pid, b"y")
            pc.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        pc.close()

    assert children.start(work).wait() == -signal.SIGKILL
    stable = object_of("stat", path)["epoch"]["durable"]
    lost = run("stat", path, "--json", env={"MMPC_BOOT_ID": "after the power came back"})
    assert json.loads(lost.stdout)["epoch"]["durable"] == stable > 2
    record = json.loads(run("page", path, "2", "--json", env={"MMPC_BOOT_ID": "the same"}).stdout)["records"][0]
    assert record["durable"]


def test_a_store_that_another_version_has_open(open_store: Open, path: str) -> None:
    pc, _ids = filled(open_store)
    control = Path(path, "control")
    whole = control.read_bytes()[: _layout.IDENTITY_SIZE]
    other = bytearray(whole)
    struct.pack_into("<I", other, 12, 99)
    struct.pack_into("<I", other, 8, _layout.crc(bytes(other[12:])))
    with open(control, "r+b") as f:
        f.write(other)
    try:
        found = object_of("stat", path)
        assert (found["state"], found["epoch"]["durable"]) == ("open in another version", pc.stats().stable)
        assert gather.FOREIGN in sound("stat", path)
        assert refused("top", path, "--once") == (2, f"{path}: {gather.FOREIGN}")
        done = run("doctor", path)
        assert (done.returncode, f"{gather.FOREIGN}; close it there first" in done.stdout) == (1, True)
        assert refused("readers", path) == (2, f"{path!r}: {gather.FOREIGN}")
        with pytest.raises(mmpc.IncompatibleStore, match="another version of mmpc has the store open"):
            mmpc.readers(path)
        status, said = refused("dump", path)
        assert (status, "other processes still have it open" in said) == (2, True)
    finally:
        with open(control, "r+b") as f:
            f.write(whole)


@pytest.mark.parametrize("name", ["stat", "segments", "page", "top", "viz", "readers"])
def test_a_damaged_control_of_a_store_in_use(open_store: Open, name: str, path: str, tmp_path: Path) -> None:
    open_store()
    with open(os.path.join(path, "control"), "r+b") as f:
        whole = f.read(512)
        f.seek(100)
        f.write(b"damage")
    try:
        status, said = refused(*arguments_of(name, path, tmp_path))
        assert status == 1
        assert "'control' does not say by whom: it is damaged" in said
    finally:
        with open(os.path.join(path, "control"), "r+b") as f:
            f.write(whole)


def test_stat_counts_the_dead(open_store: Open, path: str, children: Children) -> None:
    open_store()

    def die() -> None:
        held = mmpc.open(path, mmpc.Append())
        os.kill(os.getpid(), signal.SIGKILL)
        held.close()

    child = children.start(die)
    assert child.wait() == -signal.SIGKILL
    assert object_of("stat", path)["processes"]["dead"] == 1


# ---- segments


def test_segments(open_store: Open, path: str) -> None:
    pc, _ids = filled(open_store)
    found = object_of("segments", path)
    assert len(found["segments"]) == found["of"] == pc.stats().segments > 4
    for number, s in enumerate(found["segments"]):
        assert s["number"] == number
        assert s["state"] in _layout.STATES
        assert s["disk"] <= SMALL == s["size"]
        assert s["share"] is None or 0 <= s["share"] <= 1
    assert sum(s["state"] == "open" for s in found["segments"]) == 1
    sealed = object_of("segments", path, "--state", "sealed", "--sort", "share", "--limit", "3")["segments"]
    assert [s["state"] for s in sealed] == ["sealed"] * 3
    assert [s["share"] for s in sealed] == sorted(s["share"] for s in sealed)
    below = object_of("segments", path, "--below", "60")["segments"]
    assert below == [s for s in found["segments"] if s["share"] is not None and s["share"] < 0.6]
    text = sound("segments", path)
    assert len(text.splitlines()) == found["of"] + 2
    assert ESCAPE not in text


def test_large_fragments_are_live(open_store: Open, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of a run mean other things: its live bytes were read as the id of its page, so all was garbage."""
    pc = open_store(segment_size=SMALL)
    fragment = os.urandom(3 * SMALL + 1000)
    (pid, _key), (other, other_key) = pc.allocate(fragment), pc.allocate(fragment)
    pc.flush()
    with pc.begin():
        pc.free(other, other_key)
        pc.attempt_gc()
        found = object_of("segments", path)["segments"]
        (run,) = (page["run"] for page in object_of("page", path, str(pid))["records"])
        of_run = found[run : run + 4]
        assert {s["state"] for s in of_run} == {"extent"}
        assert sum(s["live"] for s in of_run) == sum(s["taken"] for s in of_run) in range(len(fragment), 4 * SMALL)
        waiting = [s for s in found if s["state"] == "retired"]
        log = object_of("stat", path)["log"]
        assert (len(waiting), log["waiting"]) == (4, 4 * SMALL)
        assert mmpc.readers(path)[0].delays == 4 * SMALL
        assert pc.stats().log_live - 1000 <= log["live"] <= pc.stats().log_live
        assert log["share"] > 0.8
    (record,) = object_of("page", path, str(pid), "--value", "--hex", "--bytes", "8")["records"]
    assert (record["length"], record["decoded"], record["flags"]) == (32, len(fragment) + 5, ["extent"])
    assert record["value"] == {"$bytes": base64.b64encode(fragment).decode()}
    assert record["bytes"] == (b"\xc6" + len(fragment).to_bytes(4, "big") + fragment[:3]).hex()
    assert f"\n  {record['begin']:#010x}  c6" in sound("page", path, str(pid), "--hex")
    pc.close()
    monkeypatch.setenv("MMPC_BOOT_ID", "another boot")
    found = object_of("segments", path)["segments"]
    assert [s["state"] for s in found[run : run + 4]] == ["extent"] * 4
    assert object_of("stat", path)["log"]["live"] >= len(fragment)
    assert object_of("page", path, str(pid), "--hex")["records"][0]["decoded"] == len(fragment) + 5


def test_holes_take_nothing(open_store: Open, path: str) -> None:
    pc, ids = filled(open_store)
    for pid in ids:
        pc.free(pid, pc.get(pid).key)
    while pc.attempt_gc():
        continue
    pc.flush()
    holes = object_of("segments", path, "--state", "hole")["segments"]
    for s in holes:
        assert s["disk"] <= 3 * 4096
        assert s["share"] is None
    disk = sum(s["disk"] for s in object_of("segments", path)["segments"])
    assert disk <= os.stat(os.path.join(path, "log")).st_blocks * 512


def test_colours_only_on_a_terminal_that_wants_them(open_store: Open, path: str) -> None:
    filled(open_store)
    status, text = on_terminal("segments", path)
    assert status == 0
    assert f"{ESCAPE}[" in text
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        status, text = on_terminal("segments", path, env=env)
        assert (status, ESCAPE in text) == (0, False)


# ---- the strip


def segment(number: int, state: str, live: int = 0, taken: int = 1000) -> gather.Segment:
    s = gather.Segment(number, state, 1, 1000)
    s.live, s.taken = live, taken
    return s


def test_a_cell_shows_the_live_share() -> None:
    shown = [strip.cell([segment(0, "sealed", live)], True) for live in (0, 130, 500, 1000, 2000)]
    assert shown == [("▁", "red"), ("▁", "red"), ("▄", "yellow"), ("█", "green"), ("█", "green")]
    assert strip.cell([segment(0, "sealed", 370)], False) == ("3", "red")
    assert strip.cell([segment(0, "hole"), segment(1, "free")], True)[0] == "."
    assert strip.cell([segment(0, "hole")], True)[0] == "_"
    assert strip.cell([segment(0, "open", 9)], True)[0] == "o"
    assert strip.cell([segment(0, "retired"), segment(1, "claimed", 9)], True)[0] == "x"
    assert strip.cell([segment(0, "open", 1000), segment(1, "sealed", 0)], True) == ("▄", "yellow")


def test_a_strip_has_room_for_every_segment() -> None:
    many = [segment(i, "sealed", 1000) for i in range(1001)]
    lines, each = strip.strip(many, 10, 4, True)
    assert each == 26
    assert [len(line) for line in lines] == [10, 10, 10, 9]
    assert strip.strip(many[:7], 10, 4, True)[1] == 1


# ---- page


def test_the_chain_of_a_page(open_store: Open, path: str) -> None:
    pc = open_store(segment_size=SMALL)
    pid, _key = pc.allocate(b"one")
    pc.append(pid, b"two")
    pc.flush()
    pc.append(pid, b"\xff\x00")
    found = object_of("page", path, str(pid), "--value", "--hex")
    assert (found["state"], found["damage"]) == ("materialized", None)
    newest, middle, base = found["records"]
    assert [r["kind"] for r in found["records"]] == ["delta", "delta", "base"]
    assert [r["wts"] for r in found["records"]] == [3, 2, 1]
    assert [r["durable"] for r in found["records"]] == [False, True, True]
    assert [r["committed"] for r in found["records"]] == [True] * 3
    assert found["head"]["address"] == newest["address"]
    assert [r["value"] for r in (base, middle, newest)] == [{"$utf8": "one"}, {"$utf8": "two"}, {"$bytes": "/wA="}]
    assert base["bytes"] == b"\xc4\x03one".hex()
    assert {r["segment_state"] for r in found["records"]} == {"open"}
    text = sound("page", path, str(pid), "--hex")
    assert "c4 03 6f 6e 65" in text
    assert "..one" in text


def test_pages_of_other_kinds(open_store: Open, path: str) -> None:
    pc = open_store()
    pid, key = pc.allocate(b"gone")
    pc.free(pid, key)
    assert object_of("page", path, str(pid))["state"] == "free"
    assert object_of("page", path, "0")["state"] == "meta"
    assert object_of("page", path, "1")["state"] == "counter"
    assert object_of("page", path, "999999999")["state"] == "unallocated"
    assert sound("page", path, "12345") == "page 12345: unallocated\n"


def test_a_page_of_a_store_that_must_be_recovered(open_store: Open, path: str, tmp_path: Path) -> None:
    pc, ids = filled(open_store)
    pc.append(ids[1], b"more")
    expected = object_of("page", path, str(ids[1]), "--value")["records"]
    pc.close()
    copy = str(tmp_path / "copy")
    shutil.copytree(path, copy)
    found = object_of("page", copy, str(ids[1]), "--value")
    assert found["head"] is None
    assert [r["value"] for r in found["records"]] == [r["value"] for r in expected]
    assert object_of("page", copy, "100000")["state"] == "unallocated"


def test_a_damaged_chain_is_status_1(open_store: Open, path: str) -> None:
    pc, ids = filled(open_store)
    pc.append(ids[0], b"newest")
    newest, base = object_of("page", path, str(ids[0]))["records"]
    pc.close()
    with open(os.path.join(path, "log"), "r+b") as f:
        f.seek(base["address"] + 50)
        f.write(b"damage")
    done = run("page", path, str(ids[0]), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert found["damage"].startswith(f"damage: log at {base['address']}: page {ids[0]}: ")
    assert [r["address"] for r in found["records"]] == [newest["address"]]


def test_a_page_while_it_is_written_to(open_store: Open, path: str, children: Children) -> None:
    """Its segments are used again all the time; what is shown is a chain that was, never damage."""
    pc = open_store(segment_size=SMALL)
    pid, _key = pc.allocate(b"begin")

    def write() -> None:
        with mmpc.open(path, mmpc.Append()) as mine:
            while True:
                mine.replace(pid, mine.get(pid).key, b"z" * 900)
                mine.append(pid, b"z")

    writer = children.start(write)
    seen = set()
    for _ in range(6):
        found = object_of("page", path, str(pid))
        assert found["damage"] is None
        assert found["records"][-1]["kind"] == "base"
        seen.add(found["records"][0]["wts"])
    writer.kill()
    assert len(seen) == 6


def test_what_a_stream_cannot_show_is_written_otherwise(open_store: Open, path: str) -> None:
    pid, _key = open_store(mmpc.LastWriteWins()).allocate("é \u2603")
    shown = run("page", path, str(pid), "--value", env={"PYTHONIOENCODING": "ascii"})
    assert (shown.returncode, shown.stderr) == (0, "")
    assert '"\\xe9 \\u2603"' in shown.stdout
    assert '"é \u2603"' in sound("page", path, str(pid), "--value")
    assert run("segments", path, env={"PYTHONIOENCODING": "ascii"}).stdout.isascii()


# ---- formats and rules


def test_the_figures_are_where_the_format_says() -> None:
    text = (ROOT / "docs" / "format.md").read_text()
    for name, offset in _layout.FIGURES.items():
        assert f"| {offset} | 64 | {name} |" in text
    assert f"| {_layout.SLOT_COUNTS_AT} | 8 | operations |" in text
    assert f"| {_layout.SLOT_COUNTS_AT + 8} | 8 | conflicts |" in text
    states = ", ".join(f"{i} {name.upper()}" for i, name in enumerate(_layout.STATES))
    assert f"States: {states}." in text


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert sorted(COMMANDS) == sorted(NAMES)
    for name in NAMES:
        assert f"`{name}`" in text
    found = {
        "path",
        "state",
        "format",
        "layout",
        "uuid",
        "created",
        "options",
        "recoveries_that_discarded",
        "bytes",
        "log",
    }
    for key in found | {"pages", "epoch", "flushes", "snapshot", "processes", "failed"}:
        assert f"`{key}`" in text


def test_sizes_and_times_for_people() -> None:
    assert [show.size(n) for n in (0, 999, 1000, 1_500_000, 999_960, 2e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 MB",
        "1.0 MB",
        "2.00 TB",
    ]
    assert [show.brief(s) for s in (2.5e-7, 1.25e-5, 0.004, 2)] == ["250 ns", "12.5 us", "4 ms", "2 s"]
    assert [show.span(s) for s in (-1, 3, 300, 1e5, 1e6)] == ["0.0 s", "3.0 s", "5.0 min", "27.8 h", "11.6 days"]
    assert show.table(("a", "name"), [(1, "x"), (22, "yy")]).splitlines() == [" a  name", " 1  x", "22  yy"]


def test_stat_is_quick_to_notice_a_slot_that_was_used_again(open_store: Open, path: str) -> None:
    """Rates never go below 0 when a process leaves and another begins to count in its slot."""
    pc = open_store()
    for _ in range(50):
        pc.allocate(b"x")
    before = gather.moment(path)
    time.sleep(0.01)
    after = gather.moment(path)
    after.counts = [(3, 0)]
    assert after.operations(before) == pytest.approx(3 / (after.time - before.time))
