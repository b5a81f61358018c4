"""Options: docs/options.md is what `open` takes; each is checked, and kept to, as it says there."""

from __future__ import annotations

import ast
import inspect
import os
import pickle
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import _files
from support.children import Children, Gate
from support.looks import depth
from support.mergers import Named

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
Open = Callable[..., mmpc.PageCache[Any]]

# Section 16 of the seed's features.
SEED = """path io_buf_size io_bufs page_consolidation_threshold cache_capacity cache_bits flush_every_ms
snapshot_after_ops snapshot_path segment_cleanup_threshold segment_cleanup_skew segment_mode use_compression
compression_factor merge_operator blink_node_split_size idgen_persist_interval temporary read_only
print_profile_on_drop async_io async_io_threads""".split()  # noqa: SIM905


def table(first: str) -> list[dict[str, str]]:
    """The rows of the table whose first column has that name."""
    lines = PAGE.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    heads = [cell.strip() or "remark" for cell in lines[at].strip("|").split("|")]
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        assert len(cells) == len(heads), line
        rows.append(dict(zip(heads, cells, strict=True)))
    return rows


OPTIONS = {row["option"].strip("`"): row for row in table("option")}
BOUNDED = {name: row for name, row in OPTIONS.items() if row["least"]}


def value(cell: str) -> Any:
    return ast.literal_eval(cell.strip("`"))


# ---- the page


def test_the_page_lists_what_open_takes_with_its_defaults() -> None:
    parameters = inspect.signature(mmpc.open).parameters
    assert list(OPTIONS) == list(parameters)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            assert OPTIONS[name]["default"] == "required", name
        else:
            assert value(OPTIONS[name]["default"]) == parameter.default, name
        assert OPTIONS[name]["next open"] in {"refused", "adopted", "own", "ignored"}, name


def test_every_option_of_the_seed_has_its_counterpart_or_a_reason() -> None:
    rows = {row["seed"].strip("`"): row for row in table("seed")}
    assert list(rows) == SEED
    for name, row in rows.items():
        assert row["here"] == "gone" or row["here"].strip("`") in OPTIONS, name
        assert row["remark"], name


# ---- bounds


@pytest.mark.parametrize("name", BOUNDED)
def test_an_option_is_taken_at_its_bounds_and_refused_beyond_them(path: str, name: str) -> None:
    least, most = value(BOUNDED[name]["least"]), value(BOUNDED[name]["most"])
    step = 0.0001 if isinstance(least, float) else 1
    for wrong in (least - step, most + step):
        with pytest.raises(ValueError, match=name) as e:
            mmpc.open(path, mmpc.Append(), create=True, **{name: wrong})
        assert all(str(number) in str(e.value) for number in (least, most, wrong)), str(e.value)
    for wrong in ("5", True, [], 1j):
        with pytest.raises(TypeError, match=name) as e:
            mmpc.open(path, mmpc.Append(), create=True, **{name: wrong})
        assert all(str(number) in str(e.value) for number in (least, most, repr(wrong))), str(e.value)
    assert not os.path.exists(path)
    for i, right in enumerate((least, most)):
        with mmpc.open(f"{path}-{i}", mmpc.Append(), create=True, **{name: right}) as pc:
            pid, _ = pc.allocate([1])
            pc.append(pid, [2])
            assert pc.get(pid).unwrap() == [1, 2]


FLAGS = ["create", "read_only", "temporary", "metrics", "print_profile_on_close", "use_compression"]


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_a_bool(path: str, name: str) -> None:
    for wrong in (1, None, "yes"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, not {wrong!r}"):
            mmpc.open(path, mmpc.Append(), **{name: wrong})
    assert not os.path.exists(path)


@pytest.mark.parametrize("name", ["path", "event_log", "dest"])
def test_a_path_is_named_when_it_is_none(path: str, name: str) -> None:
    """The error said what is a path, and not which option is not."""
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        for wrong, error in ((5, TypeError), ("", ValueError), (b"", ValueError), ("a\0b", ValueError)):
            with pytest.raises(error, match=f"^{name} must be .*, not {re.escape(repr(wrong).lstrip('b'))}"):
                if name == "dest":
                    pc.backup(wrong)  # type: ignore[arg-type]
                else:
                    mmpc.open(**{"path": path, "materializer": mmpc.Append(), name: wrong})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_share_is_a_number(path: str, wrong: float) -> None:
    with pytest.raises(ValueError, match="segment_cleanup_threshold"):
        mmpc.open(path, mmpc.Append(), create=True, segment_cleanup_threshold=wrong)


# ---- what becomes of an option that is changed


OTHER = {
    "read_only": True,
    "cache_capacity": 0,
    "mapped_capacity": 8 << 20,
    "page_consolidation_threshold": 3,
    "flush_every_ms": 50,
    "segment_cleanup_threshold": 0.8,
    "segment_cleanup_skew": 40,
    "idgen_persist_interval": 7,
    "metrics": False,
    "print_profile_on_close": True,
    "use_compression": True,
    "compression_factor": 19,
}


def test_every_option_that_is_its_handles_own_is_tried() -> None:
    own = {name for name, row in OPTIONS.items() if row["next open"] == "own"}
    assert own == {*OTHER, "path", "event_log"}  # event_log has tests of its own


@pytest.mark.parametrize("name", OTHER)
def test_a_handles_own_option_may_differ_at_the_next_open_and_beside_others(path: str, name: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([1])
        with mmpc.open(path, mmpc.Append(), **{name: OTHER[name]}) as other:
            assert other.get(pid).unwrap() == [1]
    with mmpc.open(path, mmpc.Append(), **{name: OTHER[name]}) as pc:
        assert pc.get(pid).unwrap() == [1]
    with mmpc.open(path, mmpc.Append()) as pc:
        assert pc.get(pid).unwrap() == [1]


def test_each_handle_consolidates_by_its_own_threshold(open_store: Open) -> None:
    patient, hasty = open_store(page_consolidation_threshold=100), open_store(page_consolidation_threshold=2)
    pid, _ = patient.allocate([0])
    for i in range(30):
        patient.append(pid, [i])
    assert patient.get(pid).unwrap() == [0, *range(30)]
    assert depth(patient, pid) == 31
    hasty.get(pid)
    assert depth(patient, pid) < 10


def test_segment_size_of_the_store_is_taken_where_none_is_asked_for(path: str) -> None:
    mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 17).close()
    with mmpc.open(path, mmpc.Append()) as pc:
        assert pc._segment_shift() == 17
    with pytest.raises(mmpc.IncompatibleStore, match="131072.*8388608"):
        mmpc.open(path, mmpc.Append(), segment_size=8 << 20)
    mmpc.open(path + "-new", mmpc.Append(), create=True).close()
    mmpc.open(path + "-new", mmpc.Append(), segment_size=8 << 20).close()


def test_another_materializer_is_refused_also_beside_others(path: str) -> None:
    with mmpc.open(path, Named("one"), create=True), pytest.raises(mmpc.IncompatibleStore, match="one.*two"):
        mmpc.open(path, Named("two"))


def test_create_changes_nothing_where_a_store_is(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([1])
        uuid = config(path).uuid
        with mmpc.open(path, mmpc.Append(), create=True) as other:
            assert other.get(pid).unwrap() == [1]
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        assert (pc.get(pid).unwrap(), config(path).uuid) == ([1], uuid)


def config(path: str) -> _files.Config:
    found = _files.read_config(path)
    assert found is not None
    return found


# ---- temporary


def test_a_store_made_to_stay_is_not_taken_for_a_temporary_one(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([1])
        for create in (False, True):
            with pytest.raises(mmpc.IncompatibleStore, match=r"temporary=False.*temporary=True"):
                mmpc.open(path, mmpc.Append(), create=create, temporary=True)
    with pytest.raises(mmpc.IncompatibleStore, match="temporary"):
        mmpc.open(path, mmpc.Append(), temporary=True)
    with mmpc.open(path, mmpc.Append()) as pc:
        assert pc.get(pid).unwrap() == [1]


def test_who_leaves_a_temporary_store_last_removes_it_without_having_asked(path: str) -> None:
    made = mmpc.open(path, mmpc.Append(), create=True, temporary=True)
    pid, _ = made.allocate([1])
    guest = mmpc.open(path, mmpc.Append())
    made.close()
    copy = pickle.loads(pickle.dumps(guest))
    guest.close()
    assert copy.get(pid).unwrap() == [1]
    copy.close()
    assert not os.path.exists(path)


@pytest.mark.parametrize("asked", [True, False])
def test_a_temporary_store_goes_with_the_last_process_when_the_others_were_killed(
    path: str, children: Children, asked: bool
) -> None:
    """Also those who were inside a verb; and who leaves last may not be who made it."""
    reads, crowd = [], []

    def work(ready: int) -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True, temporary=True)
        pid, _ = pc.allocate([0])
        os.write(ready, b"+")
        while True:
            pc.append(pid, [1])

    for _ in range(4):
        read, write = os.pipe()
        crowd.append(children.start(work, write))
        os.close(write)
        reads.append(read)
    for read in reads:
        assert os.read(read, 1) == b"+"
        os.close(read)
    last = mmpc.open(path, mmpc.Append(), temporary=asked)
    for child in crowd:
        child.kill()
    assert last.get(2).unwrap()[0] == 0
    last.close()
    assert not os.path.exists(path)


def test_a_temporary_store_of_killed_processes_goes_with_the_next_one(path: str, children: Children) -> None:
    def die() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True, temporary=True)
        pc.allocate([1])
        os.kill(os.getpid(), signal.SIGKILL)

    assert children.start(die).wait() == -signal.SIGKILL
    assert os.path.isdir(path)
    os.unlink(os.path.join(path, "table"))  # also after a recovery, which writes `config` anew
    with mmpc.open(path, mmpc.Append()) as pc:
        assert pc.get(2).unwrap() == [1]
    assert not os.path.exists(path)


def test_a_recovery_that_discards_keeps_a_store_temporary(
    path: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True, temporary=True)
        for _ in range(100):
            pc.allocate([1])
        os.kill(os.getpid(), signal.SIGKILL)

    assert children.start(die).wait() == -signal.SIGKILL
    monkeypatch.setenv("MMPC_BOOT_ID", "another boot")
    with mmpc.open(path, mmpc.Append()):
        assert config(path).discards
        assert config(path).temporary
    assert not os.path.exists(path)


def test_a_backup_of_a_temporary_store_stays(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, temporary=True) as pc:
        pid, _ = pc.allocate([1])
        pc.backup(path + "-copy")
        mmpc.verify(path)  # it may hold a pin, and leave last
    assert not os.path.exists(path)
    for _ in range(2):
        with mmpc.open(path + "-copy", mmpc.Append()) as copy:
            assert copy.get(pid).unwrap() == [1]


def test_who_makes_a_store_while_a_temporary_one_goes_gets_what_he_asked_for(path: str, children: Children) -> None:
    """A store made to stay stays, whoever was there before it under that name."""
    gate = Gate()

    def come_and_go() -> None:
        gate.wait()
        for _ in range(60):
            try:
                mmpc.open(path, mmpc.Append(), create=True, temporary=True).close()
            except mmpc.IncompatibleStore:
                return

    def settle() -> bool:
        gate.wait()
        for _ in range(200):
            with mmpc.open(path, mmpc.Append(), create=True) as pc:
                if not config(path).temporary:
                    pc.allocate([1])
                    return True
        return False

    crowd = [children.start(come_and_go) for _ in range(2)]
    settler = children.start(settle)
    gate.open()
    settled = settler.result()
    for child in crowd:
        child.result()
    assert os.path.exists(path) == settled
    if settled:
        assert not config(path).temporary
