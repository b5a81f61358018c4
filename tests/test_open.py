"""Opening: creation by many at once, what is refused and how it is named, copies, other boots, read-only handles."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import struct
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from mmpc import _files
from support.children import Children, Gate
from support.looks import depth, live
from support.mergers import Named, Tally
from support.sealed import numbers, seal

Open = Callable[..., mmpc.PageCache[Any]]


def filled(path: str, pages: int = 20) -> dict[int, list[int]]:
    """A closed store of lists of sealed fragments; returns what each page holds."""
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16) as pc:
        model = {}
        for i in range(pages):
            pid, _ = pc.allocate([])
            for n in range(i * 3 % 40):
                pc.append(pid, [seal(pid, n)])
            model[pid] = list(range(i * 3 % 40))
    return model


def held(pc: mmpc.PageCache[Any], model: dict[int, list[int]]) -> bool:
    """Whether the store holds exactly what the model says."""
    return all(numbers(pid, pc.get(pid).unwrap()) == expected for pid, expected in model.items())


# ---- creation


@pytest.mark.parametrize("processes", [32])
def test_many_processes_opening_a_new_path_make_one_store(
    path: str, children: Children, processes: int
) -> None:
    gate = Gate()

    def join(number: int) -> tuple[int, bool]:
        gate.wait()
        with mmpc.open(path, mmpc.Append(), create=True) as pc:
            pid, _ = pc.allocate([number])
            assert pc.get(pid).unwrap() == [number]
            return pid, pc.was_recovered

    crowd = [children.start(join, i) for i in range(processes)]
    gate.open()
    answers = [child.result() for child in crowd]
    assert sorted(pid for pid, _ in answers) == list(range(2, 2 + processes))
    assert [recovered for _, recovered in answers].count(False) == 1
    with mmpc.open(path, mmpc.Append()) as pc:
        assert {pid: pc.get(pid).unwrap() for pid, _ in answers} == {
            pid: [i] for i, (pid, _) in enumerate(answers)
        }
        assert pc._check() == processes + 2
        assert live(pc) == 1


def test_processes_killed_while_they_create_leave_a_store_that_opens(
    path: str, children: Children, seed: int
) -> None:
    import random
    import time

    rng = random.Random(seed)

    def create() -> None:
        with mmpc.open(path, mmpc.Append(), create=True) as pc:
            pc.allocate([1])

    for _ in range(25):
        shutil.rmtree(path, ignore_errors=True)
        crowd = [children.start(create) for _ in range(2)]
        time.sleep(rng.random() * 0.03)
        for child in crowd:
            child.kill()
        with mmpc.open(path, mmpc.Append(), create=True) as pc:
            pid, _ = pc.allocate([5])
            assert pc.get(pid).unwrap() == [5]
            pc._check()


def test_a_store_is_a_directory_for_its_owner_alone(path: str) -> None:
    before = os.umask(0)
    try:
        mmpc.open(path, mmpc.Append(), create=True).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert {stat.S_IMODE(os.stat(os.path.join(path, name)).st_mode) & 0o077 for name in os.listdir(path)} == {
        0
    }


@pytest.mark.parametrize("nothing", ["", b""])
def test_an_empty_path_is_not_the_current_directory(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, nothing: Any
) -> None:
    """It was, so a program with a setting that nobody had set made a store wherever it happened to be."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="path must be a path, not ''"):
        mmpc.open(nothing, mmpc.Append(), create=True)
    assert os.listdir(tmp_path) == []


def test_an_existing_empty_directory_becomes_a_store_and_parents_are_made(tmp_path: Any) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    mmpc.open(empty, mmpc.Append(), create=True).close()
    assert stat.S_IMODE(empty.stat().st_mode) == 0o700
    mmpc.open(tmp_path / "a" / "b" / "c", mmpc.Append(), create=True).close()


def test_create_opens_what_is_there(path: str) -> None:
    model = filled(path)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        assert pc.was_recovered
        assert held(pc, model)


def test_a_path_may_be_str_bytes_or_pathlike_and_relative(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with mmpc.open("s", mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([1])
        monkeypatch.chdir("/")
        for same in (tmp_path / "s", str(tmp_path / "s"), os.fsencode(tmp_path / "s")):
            with mmpc.open(same, mmpc.Append()) as other:
                assert other.get(pid).unwrap() == [1]
        copy = pickle.loads(pickle.dumps(pc))
        assert copy.get(pid).unwrap() == [1]
        copy.close()


# ---- refusals


def test_no_store_and_no_create_is_file_not_found(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="create=True"):
        mmpc.open(path, mmpc.Append())
    assert not os.path.exists(path)
    os.mkdir(path)
    with pytest.raises(FileNotFoundError):
        mmpc.open(path, mmpc.Append())
    assert os.listdir(path) == []


def test_another_materializer_is_refused_and_both_are_named(path: str) -> None:
    mmpc.open(path, Named("ours-1"), create=True).close()
    for create in (False, True):
        with pytest.raises(mmpc.IncompatibleStore, match=r"ours-1.*theirs-2"):
            mmpc.open(path, Named("theirs-2"), create=create)
    with pytest.raises(mmpc.IncompatibleStore, match=r"ours-1.*mmpc\.append-1"):
        mmpc.open(path, mmpc.Append())
    mmpc.open(path, Named("ours-1")).close()


def test_another_segment_size_is_refused_and_both_are_named(path: str) -> None:
    mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16).close()
    with pytest.raises(mmpc.IncompatibleStore, match="65536.*131072"):
        mmpc.open(path, mmpc.Append(), segment_size=1 << 17)
    mmpc.open(path, mmpc.Append(), segment_size=1 << 16).close()
    mmpc.open(path, mmpc.Append()).close()


def forge(path: str, offset: int, field: bytes, *, seal_it: bool = True) -> None:
    """Changes bytes of `config` and makes its checksum right again."""
    name = os.path.join(path, "config")
    with open(name, "rb") as f:
        data = bytearray(f.read())
    data[offset : offset + len(field)] = field
    if seal_it:
        data[12:16] = struct.pack("<I", _files.crc32c(bytes(data[16:])))
    with open(name, "wb") as f:
        f.write(data)


def test_another_format_is_refused_and_both_are_named(path: str) -> None:
    filled(path, 2)
    forge(path, 8, struct.pack("<I", 77))
    with pytest.raises(mmpc.IncompatibleStore, match="77.*5"):
        mmpc.open(path, mmpc.Append())


@pytest.mark.parametrize("field", [24, 32], ids=["incompat", "ro_compat"])
def test_unknown_feature_bits_are_refused_and_named(path: str, field: int) -> None:
    filled(path, 2)
    forge(path, field, struct.pack("<Q", 1 << 33))
    with pytest.raises(mmpc.IncompatibleStore, match="0x200000000"):
        mmpc.open(path, mmpc.Append())


def test_unknown_compat_bits_are_accepted(path: str) -> None:
    model = filled(path, 5)
    forge(path, 40, struct.pack("<Q", 1 << 33))
    with mmpc.open(path, mmpc.Append()) as pc:
        assert held(pc, model)


def test_a_directory_of_others_is_refused_and_left_alone(path: str) -> None:
    os.mkdir(path)
    with open(os.path.join(path, "thesis.txt"), "w") as f:
        f.write("chapter 1")
    for create in (False, True):
        with pytest.raises(mmpc.IncompatibleStore, match=r"thesis\.txt|config"):
            mmpc.open(path, mmpc.Append(), create=create)
    assert os.listdir(path) == ["thesis.txt"]


def test_a_config_of_another_program_is_refused_and_left_alone(path: str) -> None:
    os.mkdir(path)
    text = b"[core]\n\trepositoryformatversion = 0\n" * 5
    with open(os.path.join(path, "config"), "wb") as f:
        f.write(text)
    for create in (False, True):
        with pytest.raises(mmpc.IncompatibleStore, match="another program"):
            mmpc.open(path, mmpc.Append(), create=create)
    assert os.listdir(path) == ["config"]
    with open(os.path.join(path, "config"), "rb") as f:
        assert f.read() == text


def test_a_file_in_place_of_the_directory_is_refused(path: str) -> None:
    with open(path, "w") as f:
        f.write("a file")
    with pytest.raises((mmpc.IncompatibleStore, NotADirectoryError, FileNotFoundError)):
        mmpc.open(path, mmpc.Append())
    with pytest.raises((mmpc.IncompatibleStore, NotADirectoryError)):
        mmpc.open(path, mmpc.Append(), create=True)
    with pytest.raises((mmpc.MmpcError, OSError)):
        mmpc.open(os.path.join(path, "below"), mmpc.Append(), create=True)


@pytest.mark.parametrize("name", ["log", "marks", "lock", "control", "table", "ids", "rts", "config"])
def test_a_symbolic_link_among_the_files_is_refused(path: str, tmp_path: Any, name: str) -> None:
    filled(path, 2)
    target = tmp_path / "elsewhere"
    os.rename(os.path.join(path, name), target)
    before = target.read_bytes()
    os.symlink(target, os.path.join(path, name))
    with pytest.raises((mmpc.CorruptionError, mmpc.IncompatibleStore), match="symbolic link"):
        mmpc.open(path, mmpc.Append())
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["log", "marks", "lock", "control", "table", "ids", "rts", "config", "open.lock"]
)
@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_a_file_that_is_no_file_is_refused_or_replaced(
    path: str, children: Children, name: str, kind: str
) -> None:
    """At once. What can be rebuilt may be replaced; a store that opens works: it also flushes."""
    model = filled(path, 5)
    os.unlink(os.path.join(path, name))
    if kind == "directory":
        os.mkdir(os.path.join(path, name))
    else:
        os.mkfifo(os.path.join(path, name))

    def look() -> bool:
        try:
            pc = mmpc.open(path, mmpc.Append())
        except (mmpc.MmpcError, OSError):
            return True
        pc.append(2, [])
        pc.flush()
        return held(pc, model)

    assert children.run(look, patience=5)


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"cache_capacity": -1}, ValueError),
    ({"cache_capacity": True}, TypeError),
    ({"cache_capacity": "64M"}, TypeError),
    ({"cache_capacity": 1.5}, TypeError),
    ({"page_consolidation_threshold": 0}, ValueError),
    ({"page_consolidation_threshold": 201}, ValueError),
    ({"page_consolidation_threshold": None}, TypeError),
    ({"segment_size": 100_000}, ValueError),
    ({"segment_size": 1 << 15}, ValueError),
    ({"segment_size": 1 << 31}, ValueError),
    ({"segment_size": 65536.0}, TypeError),
    ({"colour": 3}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), BAD_OPTIONS, ids=str)
def test_an_option_out_of_range_is_refused_before_anything_is_made(
    path: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        mmpc.open(path, mmpc.Append(), create=True, **options)
    assert not os.path.exists(path)


@pytest.mark.parametrize("wrong", [None, mmpc.Append, "Append", object()], ids=repr)
def test_a_materializer_is_a_materializer(path: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match="materializer"):
        mmpc.open(path, wrong, create=True)
    assert not os.path.exists(path)


@pytest.mark.parametrize("name", ["", "x" * 201, "ä" * 101, None, 5, "mmpc.mine-1"], ids=repr)
def test_a_materializers_name_is_a_short_string_of_its_own(path: str, name: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        mmpc.open(path, Named(name), create=True)
    assert not os.path.exists(path)


@pytest.mark.parametrize("wrong", [None, 5, object()], ids=repr)
def test_a_path_is_a_path(wrong: Any) -> None:
    with pytest.raises(TypeError):
        mmpc.open(wrong, mmpc.Append(), create=True)


# ---- permissions: these tests may run as root, which no permission stops


def unprivileged(look: Callable[[], Any]) -> Any:
    if not os.getuid():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        return look()
    except (mmpc.MmpcError, OSError) as error:
        return type(error).__name__, str(error)


@pytest.fixture
def reachable(tmp_path: Any) -> Any:
    """A directory that other users can go through."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield os.path.join(name, "store")


def test_a_store_of_another_user_is_refused(reachable: str, children: Children) -> None:
    filled(reachable, 2)
    if os.getuid():
        os.chmod(reachable, 0)
    kind, message = children.run(unprivileged, lambda: mmpc.open(reachable, mmpc.Append()))
    assert kind in {"PermissionError", "Unsupported"}
    assert reachable in message
    os.chmod(reachable, 0o700)


def test_files_that_cannot_be_written_are_refused_with_the_reason(reachable: str, children: Children) -> None:
    filled(reachable, 2)
    os.chmod(reachable, 0o555)
    for name in os.listdir(reachable):
        os.chmod(os.path.join(reachable, name), 0o444)
    for create in (False, True):
        answer = children.run(unprivileged, lambda: mmpc.open(reachable, mmpc.Append(), create=create))
        assert answer[0] == "Unsupported"
        assert "write" in answer[1]


def test_a_store_cannot_be_made_where_nothing_can_be_written(reachable: str, children: Children) -> None:
    os.mkdir(reachable, 0o555)
    inside = os.path.join(reachable, "store")
    for place in (inside, reachable):
        kind, message = children.run(unprivileged, lambda: mmpc.open(place, mmpc.Append(), create=True))
        assert kind in {"PermissionError", "Unsupported"}
        assert reachable in message


# ---- read_only


def test_a_read_only_handle_reads_and_refuses_every_write(open_store: Open, path: str) -> None:
    pc = open_store()
    pid, key = pc.allocate([0])
    pc.append(pid, [1])
    reader = open_store(read_only=True, create=False)
    assert reader.get(pid).unwrap() == [0, 1]
    writes: list[Callable[[], Any]] = [
        lambda: reader.allocate([1]),
        lambda: reader.append(pid, [1]),
        lambda: reader.append_many([(pid, [1])]),
        lambda: reader.link(pid, key, [1]),
        lambda: reader.replace(pid, key, [1]),
        lambda: reader.free(pid, key),
        lambda: reader.update(pid, lambda v: v),
        lambda: reader.bump_page_rts(pid, 4),
    ]
    for write in writes:
        with pytest.raises(mmpc.Unsupported, match="read_only"):
            write()
    for i in range(2, 60):
        pc.append(pid, [i])
        assert reader.get(pid).unwrap() == list(range(i + 1))
    with reader.begin() as tx:
        assert reader.get_page_frags(pid, tx)[0] == pc.get(pid).key
    copy = pickle.loads(pickle.dumps(reader))
    with pytest.raises(mmpc.Unsupported):
        copy.append(pid, [1])
    copy.close()


def test_a_read_only_handle_leaves_chains_as_they_are(open_store: Open) -> None:

    pc = open_store(Tally(), page_consolidation_threshold=50)
    pid, _ = pc.allocate([0])
    for i in range(30):
        pc.append(pid, [i])
    reader = open_store(Tally(), read_only=True, page_consolidation_threshold=3)
    before = depth(pc, pid)
    assert len(reader.get(pid).unwrap()) == 31
    assert depth(pc, pid) == before


# ---- lives of a store


def test_what_was_written_is_there_after_close_and_open(path: str) -> None:
    model = filled(path)
    for _ in range(3):
        with mmpc.open(path, mmpc.Append()) as pc:
            assert pc.was_recovered
            assert held(pc, model)
            assert pc._check() == len(model) + 2


def test_a_copied_store_opens_right(path: str) -> None:
    model = filled(path)
    copy = path + "-copy"
    shutil.copytree(path, copy)
    with mmpc.open(copy, mmpc.Append()) as pc, mmpc.open(path, mmpc.Append()) as original:
        assert held(pc, model)
        pid, _ = pc.allocate([])
        assert original.get(pid).is_unallocated()
        assert held(original, model)
    with mmpc.open(copy, mmpc.Append()) as pc:
        assert held(pc, model)
        assert pc.get(pid).unwrap() == []
        pc._check()


@pytest.mark.parametrize("with_volatile", [True, False])
def test_another_boot_brings_back_what_was_flushed(
    path: str, children: Children, with_volatile: bool
) -> None:
    """And of what came later either a closed part or nothing, never a mixture with what is written after."""
    model = filled(path)

    def die_dirty() -> tuple[int, int]:
        pc = mmpc.open(path, mmpc.Append())
        durable, _ = pc.allocate([])
        pc.append(durable, [seal(durable, 0)])
        pc.flush()
        for i in range(1, 200):
            pc.append(durable, [seal(durable, i)])
        later, _ = pc.allocate([b"later"])
        return durable, later

    durable, _later = children.run(die_dirty)
    if not with_volatile:
        for name in ("control", "table", "ids", "rts"):
            os.unlink(os.path.join(path, name))

    def look() -> list[int]:
        os.environ["MMPC_BOOT_ID"] = "another boot"
        with mmpc.open(path, mmpc.Append()) as pc:
            assert held(pc, model)
            found = numbers(durable, pc.get(durable).unwrap())
            assert found[:1] == [0]
            assert found == list(range(len(found)))
            pc._check()
            pc.append(durable, [seal(durable, 1000)])
            return found

    first = children.run(look)

    def again() -> list[int]:
        os.environ["MMPC_BOOT_ID"] = "a third boot"
        with mmpc.open(path, mmpc.Append()) as pc:
            assert held(pc, model)
            return numbers(durable, pc.get(durable).unwrap())

    assert children.run(again) == [*first, 1000]


@pytest.mark.parametrize("name", ["table", "ids", "rts"])
def test_a_lost_volatile_file_on_the_same_boot_loses_nothing(
    path: str, children: Children, name: str
) -> None:
    """Everything that had returned before all processes were killed is there, flushed or not."""
    model = filled(path)

    def write(out: Any) -> None:
        pc = mmpc.open(path, mmpc.Append())
        pid, _ = pc.allocate([])
        for i in range(10_000):
            pc.append(pid, [seal(pid, i)])
            os.write(out, struct.pack("<II", pid, i))

    reads = []
    for _ in range(3):
        r, w = os.pipe()
        reads.append((children.start(write, w), r))
        os.close(w)
    returned: dict[int, int] = {}
    for child, r in reads:
        os.read(r, 8 * 40)
        child.kill()
    for _, r in reads:
        data = b""
        while part := os.read(r, 1 << 16):
            data += part
        os.close(r)
        for at in range(0, len(data) - 7, 8):
            pid, number = struct.unpack_from("<II", data, at)
            returned[pid] = max(number, returned.get(pid, -1))
    os.unlink(os.path.join(path, name))
    with mmpc.open(path, mmpc.Append()) as pc:
        assert held(pc, model)
        for pid, last in returned.items():
            found = numbers(pid, pc.get(pid).unwrap())
            assert found == list(range(len(found)))
            assert last + 1 <= len(found) <= last + 2 + 40
        pc._check()


def test_recovery_waits_for_no_live_process_but_says_so(path: str, children: Children) -> None:
    """A store whose table is gone while others have it open is busy; they go on undisturbed."""
    model = filled(path, 5)
    with mmpc.open(path, mmpc.Append()) as pc:
        os.unlink(os.path.join(path, "table"))

        def look() -> str:
            try:
                mmpc.open(path, mmpc.Append())
            except mmpc.StoreBusy as error:
                return str(error)
            return "opened"

        assert path in children.run(look)
        assert held(pc, model)
        pc.allocate([])


def test_opening_and_closing_again_and_again_leaks_no_descriptor(path: str) -> None:
    filled(path, 3)
    mmpc.open(path, mmpc.Append()).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        mmpc.open(path, mmpc.Append()).close()
        with pytest.raises(mmpc.IncompatibleStore):
            mmpc.open(path, mmpc.Add())
        with pytest.raises(FileNotFoundError):
            mmpc.open(path + "x", mmpc.Append())
    with open("/proc/self/maps") as f:
        maps = f.read()
    assert path not in maps
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_config_of_another_store_is_no_empty_store(path: str) -> None:
    """A log whose records belong to another uuid is damage, not a store without pages."""
    filled(path + "-other", 5)
    filled(path, 5)
    shutil.copy(os.path.join(path + "-other", "config"), os.path.join(path, "config"))
    with pytest.raises((mmpc.CorruptionError, mmpc.IncompatibleStore)):
        mmpc.open(path, mmpc.Append())


def test_a_damaged_byte_below_the_last_flush_loses_nothing_silently(path: str, children: Children) -> None:
    """Recovery under another boot: what was flushed comes back whole, or the damage is named."""
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        for i in range(20):
            pid, _ = pc.allocate([])
            for n in range(5):
                pc.append(pid, [seal(pid, n)])
            assert pid == i + 2
        pc.flush()
    with open(os.path.join(path, "log"), "r+b") as f:
        at = f.read().find(seal(10, 3))
        f.seek(at + 8)
        f.write(b"!")

    def look() -> str:
        os.environ["MMPC_BOOT_ID"] = "another boot"
        try:
            pc = mmpc.open(path, mmpc.Append())
            for pid in range(2, 22):
                page = pc.get(pid)
                if not page.is_materialized() or numbers(pid, page.unwrap()) != [0, 1, 2, 3, 4]:
                    return f"page {pid} reads as {page}"[:300]
        except mmpc.CorruptionError:
            return "named"
        return "whole"

    assert children.run(look) in {"named", "whole"}


def test_a_process_may_have_many_stores_open(path: str) -> None:
    """Mappings are large, so the address space bounds the number; 40 is no problem."""
    handles = []
    try:
        for i in range(40):
            handles.append(mmpc.open(f"{path}-{i}", mmpc.Append(), create=True))
        for i, handle in enumerate(handles):
            assert handle.get(handle.allocate([i])[0]).unwrap() == [i]
    finally:
        for handle in handles:
            handle.close()
