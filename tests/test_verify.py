"""verify: its numbers are the format's; it says "sound" of what is, under load too; the command line says the same."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import _layout, _log
from support.children import Children, Gate
from support.ruins import Image, build, make, run, scanned

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "format.md").read_text()


# ---- the second path reads by the page


def rows(title: str) -> list[list[str]]:
    section = TEXT.split(f"# {title}\n", 1)[1]
    table = re.search(r"^\|.*(?:\n\|.*)*", section, re.MULTILINE)
    assert table, title
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.group().splitlines()[2:]]


@pytest.mark.parametrize(
    ("title", "layout", "fields"),
    [
        ("mm_segment_header", _layout.SEGMENT_HEADER, 8),
        ("mm_segment_retired", _layout.SEGMENT_RETIRED, 5),
        ("mm_lease_header", _layout.LEASE_HEADER, 11),
        ("mm_record", _layout.RECORD, 5),
        ("mm_mark_sector", _layout.MARK_SECTOR, 8),
        ("mm_snapshot_header", _layout.SNAPSHOT_HEADER, 13),
        ("mm_snapshot_entry", _layout.SNAPSHOT_ENTRY, 2),
        ("mm_identity", _layout.IDENTITY, 12),
        ("mm_words_header", _layout.WORDS_HEADER, 4),
        ("mm_segment", _layout.SEGMENT_ENTRY, 8),
        ("config", _layout.CONFIG, 10),
    ],
)
def test_structs_are_those_of_the_page(title: str, layout: struct.Struct, fields: int) -> None:
    codes = re.findall(r"(\d*)([a-zA-Z])", layout.format[1:])
    sizes: list[int] = []
    for n, code in codes:
        if code in "sx":
            sizes.append(int(n))
        else:
            sizes += [struct.calcsize("<" + code)] * int(n or 1)
    wanted = [(int(offset), int(size)) for offset, size, *_ in rows(title)[:fields]]
    at = 0
    for offset, size in wanted:
        assert offset == at
        taken = 0
        while taken < size:  # a file's identity is three numbers here, one field there
            taken += sizes.pop(0)
        assert taken == size
        at += size


def test_numbers_are_those_of_the_page() -> None:
    numbers = {name.strip("`"): int(value) for name, value, *_ in rows("Numbers")}
    shared = [name for name in numbers if hasattr(_layout, name.removeprefix("MM_"))]
    assert len(shared) >= 12
    for name in shared:
        assert getattr(_layout, name.removeprefix("MM_")) == numbers[name], name
    offsets = {field: int(offset) for offset, _size, field, *_ in rows("mm_globals")}
    assert {name: offsets[name] for name in _layout.GLOBALS} == _layout.GLOBALS
    slots = {field: int(offset) for offset, _size, field, *_ in rows("mm_slot")}
    assert [slots[n] for n in ("announce", "lease", "lease_shape", "lease_fill")] == [
        _layout.SLOT_LEASES_AT + 8 * i for i in range(4)
    ]


def test_it_calls_nothing_of_the_core_but_the_checksum() -> None:
    modules = ("verify", "_layout", "_log", "_lasting", "_volatile", "_findings")
    for name in modules:
        text = (ROOT / "mmpc" / f"{name}.py").read_text()
        assert set(re.findall(r"\blib\.(\w+)", text)) <= {"mm_crc32c"}, name


# ---- sound stores


Open = Callable[..., "mmpc.PageCache[Any]"]


def test_a_fresh_store(open_store: Open, path: str) -> None:
    with open_store():
        report = mmpc.verify(path)
    assert report.ok
    assert (report.pages, report.problems, report.same_boot) == (2, [], True)
    assert mmpc.verify(path).ok


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("boot", ["same", "other"])
def test_counts(path: str, killed: bool, boot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(path, killed)
    if boot == "other":
        monkeypatch.setenv("MMPC_BOOT_ID", "another boot")
    report = mmpc.verify(path)
    assert report.problems == []
    assert (report.pages, report.segments, report.same_boot) == (10, 2, boot == "same")
    assert report.snapshots == (not killed)
    assert report.records > report.committed > report.pages  # some are inside groups
    assert report.durable >= 2
    assert report.discarded == 0
    assert "sound" in str(report)


def test_nothing_is_changed_and_nothing_written(path: str, children: Children) -> None:
    """As a user who may only read, if this process can become one."""
    make(path, False)
    before = {name: os.stat(os.path.join(path, name)).st_mtime_ns for name in os.listdir(path)}

    def read_only() -> bool:
        if os.getuid() == 0:
            for name in os.listdir(path):
                os.chmod(os.path.join(path, name), 0o444)
            os.chmod(path, 0o555)
            for parent in Path(path).parents:
                if str(parent).startswith("/tmp/") and parent != Path("/tmp"):
                    os.chmod(parent, 0o755)
            os.setgid(65534)
            os.setuid(65534)
            if not os.access(path, os.R_OK | os.X_OK):
                return True  # some folder above is private
            assert not os.access(os.path.join(path, "log"), os.W_OK)
        return mmpc.verify(path).ok

    assert children.run(read_only)
    os.chmod(path, 0o700)
    assert before == {name: os.stat(os.path.join(path, name)).st_mtime_ns for name in os.listdir(path)}


def test_discarded_records_are_counted_and_do_not_count(path: str, children: Children) -> None:
    def first() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True)
        pid, _ = pc.allocate([1])
        pc.flush()
        pc.append(pid, [2])
        os._exit(0)

    def second() -> int:
        os.environ["MMPC_BOOT_ID"] = "another boot"
        with mmpc.open(path, mmpc.Append()) as pc:
            assert pc.get(2).unwrap() == [1]
            pc.append(2, [3])
        report = mmpc.verify(path)
        assert report.problems == []
        return report.discarded

    children.start(first).wait()
    assert children.run(second) == 1


@pytest.mark.processes
def test_a_live_store_under_load_is_sound(path: str, children: Children) -> None:
    """Four writers append, replace, free, consolidate and flush; verify reads meanwhile, again and again."""
    mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16, page_consolidation_threshold=4).close()

    def write(number: int) -> int:
        pc = mmpc.open(path, mmpc.Append(), page_consolidation_threshold=4)
        gate.wait()
        pid, _ = pc.allocate([number])
        end, n = time.monotonic() + 3, 0
        while time.monotonic() < end:
            n += 1
            pc.append(pid, [n])
            if n % 7 == 0:
                pc.get(pid)
            if n % 50 == 0:
                pc.replace(pid, pc.get(pid).key, [n])
            if n % 200 == 0:
                pc.flush()
            if n % 300 == 0:
                pc.free(*((made := pc.allocate([0]))[0], made[1]))
        return n

    gate = Gate()
    writers = [children.start(write, i) for i in range(4)]
    gate.open()
    reports = [mmpc.verify(path) for _ in range(12)]
    assert [str(r) for r in reports if not r.ok] == []
    assert all(child.result() for child in writers)
    assert mmpc.verify(path).problems == []


def test_progress_counts_to_the_end(path: str) -> None:
    make(path, False)
    seen: list[tuple[int, int]] = []
    mmpc.verify(path, progress=lambda done, total: seen.append((done, total)))
    size = os.path.getsize(os.path.join(path, "log"))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (size, size)


# ---- what is no store


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mmpc.verify(tmp_path / "nothing")
    with pytest.raises(mmpc.IncompatibleStore):
        mmpc.verify(tmp_path)
    (tmp_path / "config").write_bytes(b"[section]\n" * 20)
    with pytest.raises(mmpc.IncompatibleStore):
        mmpc.verify(tmp_path)


def test_problems_name_their_page(path: str) -> None:
    image = make(path, False)
    at = image.files["log"].find(bytes([37]) * 1500)
    with open(os.path.join(path, "log"), "r+b") as f:
        f.seek(at + 700)
        f.write(b"!")
    report = mmpc.verify(path)
    problems = [p for p in report.damage if p.page == 9]
    assert problems
    assert problems[0].file == "log"
    assert 0 < at - problems[0].offset < 60
    assert problems[0].as_dict()["page"] == 9
    assert "page 9" in str(report)
    assert "DAMAGED" in str(report)


def test_a_foreign_file_is_a_warning(path: str) -> None:
    make(path, False)
    Path(path, "notes.txt").write_text("mine")
    report = mmpc.verify(path)
    assert report.ok
    assert [(p.file, p.severity) for p in report.problems] == [("notes.txt", "warning")]


# ---- the command line


def test_check_says_what_verify_says(path: str) -> None:
    make(path, False)
    sound = run("check", path)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "sound" in sound.stdout
    with open(os.path.join(path, "log"), "r+b") as f:
        f.seek(16)
        f.write(b"!")
    damaged = run("check", path, "--json")
    assert (damaged.returncode, damaged.stderr) == (1, "")
    found = json.loads(damaged.stdout)
    assert not found["ok"]
    assert found["problems"][0]["file"] == "log"
    assert found["problems"][0]["severity"] == "damage"
    assert len(damaged.stdout.splitlines()) == 1
    assert run("check", path).returncode == 1


def test_check_of_what_is_no_store(path: str) -> None:
    result = run("check", path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"mmpc: {path}: no store here\n"


def test_check_has_help_with_an_example() -> None:
    result = run("check", "--help")
    assert result.returncode == 0
    assert "example: python -m mmpc check " in result.stdout
    assert "exit status: 0" in result.stdout


def test_the_bar_is_drawn_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from mmpc.cli import show

    with show.Bar("checking") as bar:
        bar(1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with show.Bar("checking") as bar:
        bar(1, 2)  # too early
        monkeypatch.setattr(bar, "_begun", -10.0)
        bar(1, 2)
    text = capsys.readouterr().err
    assert text.count("[") == 1
    assert " 50%" in text


def test_leases_and_records_of_the_page(path: str, children: Children) -> None:
    """`whole` and the scan agree on every record, and a record of another place is none."""
    children.run(build, path, False)
    image = Image(path)
    log = scanned(image)
    data = image.files["log"]
    for address in log.addresses:
        seed = log.segments[address >> 16].seed
        assert _log.whole(data, address, address, seed) is not None
        assert _log.whole(data, address, address + 8, seed) is None
