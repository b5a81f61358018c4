"""Files that are cut under an open store, and pages that the device cannot give: an error that names file and offset.

Never the death of the process, a hang, or a wrong value. Other people's SIGBUS stays theirs.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import _face
from support.children import ChildFailed, Children
from support.cutting import CUTS, FILES, NEEDED, VERBS, World, in_thread, outcome, trials

CSRC = Path(__file__).resolve().parent.parent / "csrc"
TESTS = Path(__file__).resolve().parent
PORTABLE = _face.Verbs.__module__ == "mmpc._portable"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty directory in memory: hundreds of stores are made here."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_an_error_of_every_verb(name: str, cut: str, children: Children, place: Path) -> None:
    try:
        seen = children.run(trials, str(place), name, cut)
    except ChildFailed as e:
        raise ChildFailed(f"{(place / 'verb').read_text()}: {e}") from None
    whole = cut != "half"  # half of a file may hold all that a verb needs
    surprises = {v: s for v, s in seen.items() if whole and v in NEEDED[name] and s[:2] != ["damaged", "damaged"]}
    assert surprises == {}
    may = NEEDED[name] | {"get, cached", "get_many"}
    assert {v: s for v, s in seen.items() if "damaged" in s[:2] and v not in may} == {}


@pytest.mark.parametrize("name", FILES)
def test_a_cut_store_opens_with_all_that_was_flushed_or_says_what_is_damaged(
    name: str, children: Children, place: Path
) -> None:
    """`log` is the only one of them that lasts: without it the next open cannot do."""
    path = str(place / "store")

    def cut_and_leave() -> int:
        w = World(path)
        w.store.flush()
        w.cut(name, CUTS["a block"])
        in_thread(lambda: outcome(name, lambda: w.store.append(w.cold, [1])))
        outcome(name, w.store.close)
        return w.pid

    pid = children.run(cut_and_leave)
    try:
        store = mmpc.open(path, mmpc.Append())
    except mmpc.CorruptionError as e:
        assert e.file == name
        return
    with store:
        assert name != "log"
        assert store.get(pid).unwrap() == [0, 1]
        assert store._check() > 0


def test_the_lost_part_of_the_last_page_is_no_page_that_was_never_allocated(children: Children, place: Path) -> None:
    """No fault tells of it: the end of a cut file reads as zeros, up to the end of the page."""

    def cut() -> list[str]:
        w = World(str(place / "store"))
        w.cut("table", lambda size: 4096 + 8 * w.pid)  # the head word of `pid` is the first that is lost
        lost = [lambda: w.store.get(w.pid + 1), lambda: w.store.append(w.pid, [1]), lambda: w.store.get_page_rts(w.pid)]
        return [outcome("table", act) for act in [*lost, w.store.snapshot, w.store._check]]

    assert children.run(cut) == ["damaged"] * 5


def test_a_read_timestamp_that_was_lost_is_not_0(children: Children, place: Path) -> None:
    def cut() -> str:
        w = World(str(place / "store"))
        w.cut("rts", lambda size: 4097)
        return outcome("rts", lambda: w.store.get_page_rts(w.pid))

    assert children.run(cut) == "damaged"


def test_a_cut_file_is_not_grown_again(children: Children, place: Path) -> None:
    """Growth would put zeros where the head words were: pages that were never allocated."""

    def cut() -> set[str]:
        w = World(str(place / "store"))
        w.cut("table", lambda size: size - 8)
        return {outcome("table", lambda: w.store.allocate([i])) for i in range(2000)}

    assert children.run(cut) == {"worked", "damaged"}


def test_a_fault_gives_the_lease_up(children: Children, place: Path) -> None:
    """What was written when it came may be a published record: nobody writes there again."""

    def cut() -> tuple[list[str], list[int], int]:
        path = str(place / "store")
        store, log = mmpc.open(path, mmpc.Append(), create=True), os.path.join(path, "log")
        before, _ = store.allocate([0])
        size = os.path.getsize(log)
        os.truncate(log, 4096)
        answers = [outcome("log", lambda: store.allocate([1]))]
        os.truncate(log, size)  # zeros, but bytes
        after, _ = store.allocate([2])
        answers.append(outcome("log", lambda: store.get_page_frags(before)))
        ffi, lib = mmpc._native.ffi, mmpc._native.lib
        triple = ffi.new("uint64_t[3]")
        assert lib.mm_chain(store._attachment.mm, after, triple, 1, ffi.new("mm_result *")) == 0
        return answers, store.get(after).unwrap(), int(triple[0])

    answers, value, address = children.run(cut)
    assert (answers, value) == (["damaged", "damaged"], [2])
    assert address >= 8192  # the first lease was the block before


def test_flush_does_not_call_durable_what_a_cut_took(children: Children, place: Path) -> None:
    def cut() -> str:
        w = World(str(place / "store"))
        w.cut("log", lambda size: size - 1)
        return outcome("log", w.store.flush)

    assert children.run(cut) == "damaged"


# ---- threads


def test_threads_that_fault_hold_up_nobody(children: Children, place: Path) -> None:
    """More of them than there are pin words, some with a Tx; another store of the process goes on."""

    def cut() -> tuple[set[str], int]:
        w = World(str(place / "cut"))
        with mmpc.open(str(place / "whole"), mmpc.Add(), create=True) as whole:
            counter, _ = whole.allocate(0)
            seen: set[str] = set()
            ready = threading.Barrier(41)

            def work() -> None:
                tx = w.store.begin()
                ready.wait()
                ready.wait()
                for verb in ("get", "append", "flush", "begin", "allocate", "stats"):
                    seen.add(outcome("control", lambda verb=verb: VERBS[verb](w)))
                    whole.append(counter, 1)
                tx.close()

            threads = [threading.Thread(target=work, daemon=True) for _ in range(40)]
            for t in threads:
                t.start()
            ready.wait()
            w.cut("control", CUTS["nothing"])
            ready.wait()
            for t in threads:
                t.join(30)
            seen.add(outcome("control", w.store.close))
            assert mmpc._native.lib.mm_is_closed(w.store._attachment.mm)
            return seen, whole.get(counter).unwrap()

    assert children.run(cut) == ({"damaged"}, 240)


def test_a_file_that_is_cut_in_the_middle_of_work(children: Children, place: Path, seed: int) -> None:
    """Whatever instruction it meets: the verbs raise, and nobody dies."""
    rng = random.Random(seed)

    def work(path: str, name: str, write: int, turn: int) -> str:
        store = mmpc.open(path, mmpc.Append())
        pids = [store.allocate([i])[0] for i in range(20)]
        os.write(write, b"r")
        rounds = 0
        while rounds < 2:  # after the cut; it may have taken nothing that is needed
            rounds += os.path.exists(os.path.join(path, "..", f"cut-{turn}"))
            for pid in pids:
                try:
                    store.append(pid, [turn])
                    store.get(pid)
                    pid2, key = store.allocate([turn])
                    store.free(pid2, key)
                except mmpc.CorruptionError as e:
                    outcome(str(e.file), store.close)
                    return str(e.file)
        return name if outcome(name, store.close) else ""

    for turn in range(8 if os.environ.get("MMPC_LONG") != "1" else 200):
        path, name = str(place / str(turn)), rng.choice(["log", "table", "control"])
        mmpc.open(path, mmpc.Append(), create=True).close()
        read, write = os.pipe()
        workers = [children.start(work, path, name, write, turn) for _ in range(2)]
        for _ in workers:
            assert os.read(read, 1) == b"r"
        threading.Event().wait(rng.random() * 0.02)
        size = os.path.getsize(os.path.join(path, name))
        to = rng.choice([0, 4096, rng.randrange(size)]) if name != "log" else rng.randrange(16384)
        os.truncate(os.path.join(path, name), to)
        (place / f"cut-{turn}").touch()
        assert [w.result() for w in workers] == [name, name]
        os.close(read)
        os.close(write)


# ---- other people's SIGBUS


def run(program: str, place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, with World, outcome and these functions at hand; tmp is an empty directory."""
    head = """
        import faulthandler, mmap, os, signal, sys
        sys.path.insert(0, sys.argv[1])
        from support.cutting import *
        tmp = sys.argv[2]
        def our_fault(n):
            w = World(os.path.join(tmp, "store" + str(n)))
            faulthandler.enable() if "after" in sys.argv else None
            if "again" in sys.argv: mmpc.open(w.path, mmpc.Append()).close()
            w.cut("table", CUTS["nothing"])
            verbs = ["get, cached", "get", "append", "get, cached"]
            if "call" in sys.argv: verbs = verbs[1:]  # the first to fault is no peek
            return {outcome("table", lambda v=v: VERBS[v](w)) for v in verbs}
        def foreign_fault():
            with open(os.path.join(tmp, "foreign"), "w+b") as f:
                f.truncate(8192)
                m = mmap.mmap(f.fileno(), 8192)
                f.truncate(0)
            return m[5000]
        if "before" in sys.argv: faulthandler.enable()
    """
    code = textwrap.dedent(head) + textwrap.dedent(program)
    arguments = [sys.executable, "-P", "-c", code, str(TESTS), str(place), *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60)


ORDERS = [(), ("before",), ("after",), ("after", "again"), ("before", "again")]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "+".join(order) or "none")
@pytest.mark.parametrize("first", ["peek", "call"])
def test_faulthandler_and_the_guard_share_the_signal(first: str, order: tuple[str, ...], place: Path) -> None:
    """Enabled after the open it prints its report first: it is on top. The verbs raise all the same."""
    done = run("print(our_fault(0))\nprint(our_fault(1))", place, first, *order)
    assert (done.returncode, done.stdout) == (0, (str({"damaged"}) + "\n") * 2), done.stderr
    assert ("Fatal Python error: Bus error" in done.stderr) == (order == ("after",))


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "+".join(order) or "none")
@pytest.mark.parametrize(
    "fault",
    ["foreign_fault()", "os.kill(os.getpid(), signal.SIGBUS)", "for _ in range(2): signal.raise_signal(signal.SIGBUS)"],
    ids=["mapping", "kill", "raise"],
)
def test_a_fault_that_is_not_ours_kills_as_ever(fault: str, order: tuple[str, ...], place: Path) -> None:
    done = run(f"our_fault(0)\n{fault}\nprint('still here')", place, *order)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")
    assert ("Fatal Python error: Bus error" in done.stderr) == bool(order)


@pytest.mark.parametrize("when", ["before", "after", "between"])
def test_a_handler_of_the_program_still_gets_its_signals(when: str, place: Path) -> None:
    listen = "signal.signal(signal.SIGBUS, lambda *_: print('theirs'))"
    first, second = "our_fault(0)", "our_fault(1)"
    steps = {"before": [listen, first], "after": [first, listen], "between": [first, listen, second]}
    program = "\n".join([*steps[when], "os.kill(os.getpid(), signal.SIGBUS)", "print('here')"])
    done = run(program, place)
    assert (done.returncode, done.stdout) == (0, "theirs\nhere\n"), done.stderr


# ---- a device that cannot read


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A directory on a file system of its own, and the file that stands for its disk: cut that, and reading is EIO."""
    image, mount = tmp_path / "disk", tmp_path / "mount"
    mount.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root mounts a loop device")
    for command in (["truncate", "-s", "64M", str(image)], ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(image)]):
        subprocess.run(command, check=True, capture_output=True)
    made = subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop mounts here: {made.stderr.strip()}")
    yield mount, image
    subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(path: str) -> list[int]:
    with mmpc.open(path, mmpc.Append(), create=True) as store:
        return [store.allocate([i, "x" * 50_000])[0] for i in range(200)]


def lose(path: str, image: Path) -> int:
    """The pages of `log` leave memory, and the disk its data blocks; a descriptor of `log`."""
    fd = os.open(os.path.join(path, "log"), os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.truncate(image, 1 << 20)
    return fd


def test_a_page_that_the_device_cannot_read_is_corruption(failing: tuple[Path, Path], children: Children) -> None:
    mount, image = failing
    path = str(mount / "store")

    def read(pids: list[int]) -> list[Any]:
        store = mmpc.open(path, mmpc.Append())
        lose(path, image)
        for pid in pids:
            try:
                store.get(pid)
            except mmpc.CorruptionError as e:
                met: Any = store._attachment.damage()
                return [e.file, e.offset, met.file, met.offset]
        return []

    file, offset, met, at = children.run(read, children.run(fill, path))
    assert (file, met) == ("log", "log")
    assert offset == at > 0


def test_a_recovery_that_meets_such_a_page_says_so(failing: tuple[Path, Path], place: Path, children: Children) -> None:
    mount, image = failing
    path = str(mount / "store")

    def rebuild() -> tuple[int, int]:
        ffi, lib = mmpc._native.ffi, mmpc._native.lib
        c, r, report = ffi.new("mm_config *"), ffi.new("mm_result *"), ffi.new("mm_scan_report *")
        for name in ("control", "table", "ids", "rts", "marks"):
            setattr(c, name, os.open(place / name, os.O_CREAT | os.O_RDWR))
        c.log, c.lock, c.segment_shift, c.threshold = lose(path, image), -1, 23, 10
        assert lib.mm_format(c, r) == 0
        status = lib.mm_rebuild(c, 2**64 - 1, ffi.new("mm_gone *"), -1, ffi.NULL, report, r)
        return status, r.file

    children.run(fill, path)
    assert children.run(rebuild) == (mmpc.errors.CORRUPT, 1)


# ---- rules


def test_every_entry_of_the_core_is_guarded() -> None:
    """A function that takes an attachment runs in mm_guarded, or touches no mapping."""
    private = {"mm_slot_number", "mm_limit", "mm_is_closed", "mm_orphan", "mm_last_fault", "mm_destroy", "mm_close"}
    private |= {"mm_view_count", "mm_view_usable", "mm_views_guard", "mm_mapped_bound", "mm_mapped", "mm_ticks"}
    built_of_guarded = {"mm_check", "mm_clean_help", "mm_view_drop", "mm_views_unguard"}
    built_of_guarded |= {"mm_consolidate", "mm_restore", "mm_restore_compressed"}
    header = re.sub(r"/\*.*?\*/", "", (CSRC / "mmpc.h").read_text(), flags=re.DOTALL)
    names = set(re.findall(r"\b(mm_\w+)\((?:const )?mm \*m\b", header))
    source = "\n".join(path.read_text() for path in CSRC.glob("*.c"))
    definition = r"^[\w ]+\*?\b{}\([^)]*\)\s*\{{(.*?)\}}\n(?:\n|\Z)"
    guarded = r"\bmm_guarded\(|\bperform\("  # the latter calls the former (page.c)
    bodies = {n: re.search(definition.format(n), source, re.DOTALL | re.MULTILINE) for n in names}
    assert [name for name, body in bodies.items() if body is None] == []
    bare = {name for name, body in bodies.items() if body is not None and not re.search(guarded, body[1])}
    assert bare - private - built_of_guarded == set()
    assert len(names) > 25


def test_who_maps_installs_the_handler() -> None:
    maps = {p.name for p in CSRC.glob("*.c") if re.search(r"= mm_os_map(_files)?\(", p.read_text())}
    installs = {p.name for p in CSRC.glob("*.c") if "mm_guard_install();" in p.read_text()}
    assert maps == installs


if os.environ.get("MMPC_OTHER_FACE") is None:

    def test_the_other_face_passes_the_same_tests() -> None:
        other = "" if PORTABLE else "cffi"
        environment = {**os.environ, "MMPC_FACE": other, "MMPC_OTHER_FACE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
