"""Failpoints: every place is reached, and fails, kills and stops as docs/failpoints.md says; no store suffers."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import failpoints
from mmpc._native import lib
from support.children import Children
from support.sealed import numbers, seal

Store = mmpc.PageCache[Any]
PAGE = (Path(__file__).resolve().parent.parent / "docs" / "failpoints.md").read_text()
# Section 17 of the seed's features.
SEED = [
    *("initial allocation", "initial allocation post", "zero garbage segment", "zero garbage segment post"),
    *("buffer write", "buffer write post", "trailer write", "trailer write post", "blob blob write"),
    *("write_config bytes", "write_config crc", "write_config post"),
    *("snap write", "snap write len", "snap write crc", "snap write post", "snap write mv", "snap write mv post"),
    "snap write rm old",
]
SEGMENT = 1 << 16


@pytest.fixture(autouse=True)
def _disarmed() -> Any:
    yield
    failpoints.clear()


# ---- names


def test_the_page_lists_every_place_with_its_errno_and_which_are_fatal() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| (E[A-Z]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(failpoints.NAMES)
    assert {name: getattr(errno, number) for name, number, _ in rows} == failpoints._PLACES
    assert {name for name, _, what in rows if "`StoreFailed`" in what} == set(failpoints.FATAL)


def test_every_name_of_the_seed_has_a_place_or_a_reason() -> None:
    assert len(SEED) == 19
    section = PAGE[PAGE.index("## The seed's") : PAGE.index("## The global error")]
    assert set(re.findall(r"`([^`]+)`", re.sub(r"\|[^|`]*[^|]*\|$", "", section, flags=re.MULTILINE))) >= set(SEED)
    assert set(SEED) - set(failpoints.NAMES) == {"blob blob write"}


def test_the_cores_places_come_first_in_its_order() -> None:
    of_core = [name for name in failpoints.NAMES if hasattr(lib, "MM_FAIL_" + name.upper().replace(" ", "_"))]
    assert [getattr(lib, "MM_FAIL_" + name.upper().replace(" ", "_")) for name in of_core] == list(range(len(of_core)))
    assert of_core == list(failpoints.NAMES[: len(of_core)])
    header = (Path(__file__).resolve().parent.parent / "csrc" / "failpoint.h").read_text()
    places = header[header.index("enum mm_failpoint_place") : header.index("enum mm_failpoint_action")]
    assert places.count("MM_FAIL_") == len(of_core)


def test_a_wrong_name_or_action_is_refused() -> None:
    with pytest.raises(ValueError, match="no failpoint 'buffer'.*buffer write"):
        failpoints.set("buffer")
    with pytest.raises(ValueError, match="action must be one of error, kill, stop, exit"):
        failpoints.set("buffer write", "explode")
    for wrong, error in (({"after": -1}, ValueError), ({"times": 0}, ValueError), ({"error": "EIO"}, TypeError)):
        with pytest.raises(error, match=next(iter(wrong))):
            failpoints.set("buffer write", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="before=1"):
        failpoints.from_text("buffer write=error,before=1")
    assert failpoints._block.armed == 0


# ---- a life of a store, in which every place is passed


class Life:
    """A store and what it must hold: `returned`, what each page was given; `durable`, how much a flush covered."""

    def __init__(self, path: str) -> None:
        self.path, self.pc, self.boot = path, None, 0
        self.returned: dict[int, int] = {}
        self.durable: dict[int, int] = {}
        self.tell: Callable[[], object] = lambda: None

    def open(self) -> None:
        self.pc = mmpc.open(self.path, mmpc.Append(), create=True, segment_size=SEGMENT)

    @property
    def store(self) -> Store:
        assert self.pc is not None
        return self.pc

    def allocate(self) -> None:
        pid, _ = self.store.allocate([seal(0, 0)])
        self.store.replace(pid, self.store.get(pid).key, [seal(pid, 0)])
        self.returned[pid] = 1
        self.tell()

    def append(self, pid: int) -> None:
        self.store.append(pid, [seal(pid, self.returned[pid])])
        self.returned[pid] += 1
        self.tell()

    def flush(self) -> None:
        before = dict(self.returned)
        self.store.flush()
        self.durable = before
        self.tell()

    def churn(self) -> None:
        """Fills segments with what dies at once."""
        pid, _ = self.store.allocate([b""])
        for _ in range(30):
            self.store.replace(pid, self.store.get(pid).key, [bytes(20_000)])
        self.store.free(pid, self.store.get(pid).key)

    def grow(self) -> None:
        """Fills the table."""
        self.store.append_many([(self.store.allocate([])[0], []) for _ in range(1100)])

    def backup(self) -> None:
        shutil.rmtree(self.path + "-copy", ignore_errors=True)
        self.store.backup(self.path + "-copy")

    def clean(self) -> None:
        while self.store.attempt_gc():
            pass
        self.flush()

    def close(self) -> None:
        if self.pc is not None:
            pc, self.pc = self.pc, None
            pc.close()

    def abandon(self) -> bool:
        """After an error: closed. True: the store has failed, which the error need not tell (a write that finds no room
        cleans, and so flushes).
        """
        failpoints.clear()
        try:
            self.close()
        except mmpc.StoreFailed:
            return True
        return False

    def lose_power(self) -> None:
        self.boot += 1
        os.environ["MMPC_BOOT_ID"] = f"boot {self.boot}"

    def check(self, exactly: bool) -> None:
        """Opens, and compares. Not `exactly`: what no flush covered may be missing, from the end."""
        self.open()
        for pid, count in sorted(self.returned.items()):
            page = self.store.get(pid)
            found = numbers(pid, page.unwrap()) if page.is_materialized() and page.unwrap() != [seal(0, 0)] else []
            assert found == list(range(len(found))), (pid, found)
            least = count if exactly else self.durable.get(pid, 0)
            assert least <= len(found) <= count, (pid, least, len(found), count)
            if found:
                self.returned[pid] = len(found)
            else:
                del self.returned[pid]
        self.store._check()
        report = mmpc.verify(self.path)
        assert report.ok, report.damage

    def all_of_it(self) -> None:
        """From nothing to the end, past every place."""
        self.open()
        for _ in range(5):
            self.allocate()
        for turn in range(3):
            for pid in list(self.returned):
                self.append(pid)
            self.churn()
            self.flush()
            self.churn()
            self.store.snapshot()
        self.grow()
        self.backup()
        for _ in range(4):
            self.churn()
        self.flush()
        self.close()
        mmpc.clean(self.path)
        self.open()
        self.append(min(self.returned))
        self.close()
        self.open()
        self.die_dirty()
        self.lose_power()
        self.open()
        self.close()

    def die_dirty(self) -> None:
        """As if all processes were killed after a write."""
        pid = os.fork()
        if not pid:
            failpoints.clear()
            try:
                mine = mmpc.open(self.path, mmpc.Append())
                mine.allocate([seal(0, 0)])
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        store, self.pc = self.store, None
        lib.mm_orphan(store._attachment.mm)  # without the flush of a close
        store._closed = True


@pytest.fixture
def life(memory: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MMPC_BOOT_ID", "boot 0")
    made = Life(os.path.join(memory, "store"))
    yield made
    made.abandon()


def test_a_life_passes_every_place(life: Life) -> None:
    failpoints.set("buffer write", after=1 << 40)  # one that is armed and lets pass: visits are counted
    life.all_of_it()
    assert [name for name in failpoints.NAMES if not failpoints.visits(name)] == []
    life.check(exactly=False)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("name", failpoints.NAMES)
def test_a_place_that_fails_costs_nothing_that_returned(life: Life, name: str, after: int) -> None:
    """And what follows is an error of the documented kind, or none."""
    error: BaseException | None = None
    failpoints.set(name, times=1, after=after)
    try:
        life.all_of_it()
    except (mmpc.MmpcError, OSError) as e:
        error = e
    hit = failpoints.hits(name)
    assert hit or after, name
    row = re.search(rf"^\| `{name}` \| [^|]+ \| \w+ \| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert row
    if error is not None:
        assert isinstance(error, mmpc.StoreFailed) == (name in failpoints.FATAL), repr(error)
        assert isinstance(error, OSError | mmpc.StoreFailed), repr(error)
        assert failpoints._PLACES[name] != errno.ENOSPC or isinstance(error, mmpc.DiskFullError), repr(error)
    life.abandon()
    life.check(exactly=name not in failpoints.FATAL and life.boot == 0)
    for pid in list(life.returned):
        life.append(pid)
    life.flush()
    life.close()
    life.lose_power()
    life.check(exactly=True)


@pytest.mark.parametrize("action", ["kill", "exit"])
@pytest.mark.parametrize("name", failpoints.NAMES)
def test_a_process_that_dies_at_a_place_costs_nothing_that_returned(
    life: Life, children: Children, name: str, action: str
) -> None:
    read, write = os.pipe()

    def live() -> None:
        os.close(read)
        life.tell = lambda: os.write(write, json.dumps([life.returned, life.durable, life.boot]).encode() + b"\n")
        failpoints.set(name, action)
        life.all_of_it()

    child = children.start(live)
    os.close(write)
    said = b""
    while part := os.read(read, 1 << 16):
        said += part
    os.close(read)
    assert child.wait() == (-signal.SIGKILL if action == "kill" else failpoints.EXIT_STATUS)
    whole = said.splitlines()
    if whole:
        returned, durable, life.boot = json.loads(whole[-1])
        life.returned, life.durable = ({int(k): n for k, n in m.items()} for m in (returned, durable))
    if "zero garbage" in name:
        life.lose_power()
    for pid in life.returned:
        life.returned[pid] += 1  # the one that did not return may be there
    for pid, count in list(life.returned.items()):
        life.durable[pid] = max(life.durable.get(pid, 0), count - 1 if not life.boot else 0)
    life.check(exactly=False)
    life.close()


def test_a_stopped_process_goes_on_and_holds_up_nobody(path: str, children: Children) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([0])

        def flush() -> bool:
            failpoints.set("buffer write", "stop", times=1)
            with mmpc.open(path, mmpc.Append()) as mine:
                mine.append(pid, [1])
                return mine.flush() >= 0

        child = children.start(flush)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        pc.append(pid, [2])
        assert pc.flush() > 0
        assert pc.get(pid).unwrap() == [0, 1, 2]
        child.signal(signal.SIGCONT)
        assert child.result() is True


def test_a_snapshot_that_got_no_name_lets_the_last_close_cut_nothing_off(life: Life) -> None:
    """The core took a snapshot for made when its bytes were durable; recoveries then missed the segments (and the next
    close did not write another one).
    """
    life.open()
    for _ in range(3):
        life.allocate()
    for _ in range(4):
        life.churn()
    life.flush()
    life.close()
    mmpc.clean(life.path)
    for name in ("snap write mv", "snap write mv post"):
        life.open()
        life.churn()
        life.flush()
        life.clean()
        with failpoints.active(name):
            before = failpoints.visits("log truncate")
            life.close()
            assert failpoints.hits(name)
            assert failpoints.visits("log truncate") == before
        life.lose_power()
        life.check(exactly=True)
        failpoints.set("log truncate", after=1 << 40)
        life.clean()
        life.close()
        assert failpoints.visits("log truncate") == 1
        failpoints.clear()


# ---- whose it is


def test_a_fatal_place_in_one_process_fails_the_store_for_all(path: str, children: Children) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([0])
        pc.flush()
        before = failpoints.hits("buffer write")

        def fail() -> None:
            with mmpc.open(path, mmpc.Append()) as mine:
                mine.append(pid, [1])
                failpoints.set("buffer write", error=errno.EDQUOT)
                with pytest.raises(mmpc.StoreFailed, match="quota"):
                    mine.flush()
                with pytest.raises(mmpc.StoreFailed):
                    mine.get(pid)

        children.run(fail)
        assert failpoints.hits("buffer write") == before
        with pytest.raises(mmpc.StoreFailed):
            pc.get(pid)
        with pytest.raises(mmpc.StoreFailed):  # the last one out
            pc.close()
    with mmpc.open(path, mmpc.Append()) as pc:
        assert pc.get(pid).unwrap() == [0]


def test_places_are_each_processes_own_and_children_begin_with_a_copy(path: str, children: Children) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc, failpoints.active("snap write"):

        def inherited() -> tuple[bool, bool]:
            with pytest.raises(OSError, match="Input/output"):
                pc.snapshot()
            failpoints.clear()
            pc.snapshot()
            return failpoints.hits("snap write") == 1, failpoints._block.armed == 0

        assert children.run(inherited) == (True, True)
        assert failpoints.hits("snap write") == 0
        with pytest.raises(OSError, match="Input/output"):
            pc.snapshot()


def test_another_program_takes_them_from_its_environment(path: str) -> None:
    code = (
        f"import mmpc; pc = mmpc.open({path!r}, mmpc.Append(), create=True); pc.snapshot(); print('one', flush=True)\n"
        "pc.allocate([1]); pc.snapshot(); print('two', flush=True)"
    )
    armed = os.environ | {failpoints.ENVIRONMENT: "snap write mv=kill,after=1; log punch"}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=armed, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "one\n")
    wrong, code = os.environ | {failpoints.ENVIRONMENT: "snap=kill"}, "import mmpc"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=wrong, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no failpoint 'snap'" in done.stderr


def test_after_and_times_choose_the_visits(path: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        failpoints.set("snap write mv", after=1, times=2, error=errno.EMFILE)
        outcomes = []
        for _ in range(5):
            pc.allocate([1])
            try:
                pc.snapshot()
                outcomes.append(0)
            except OSError as e:
                outcomes.append(e.errno or -1)
        assert outcomes == [0, errno.EMFILE, errno.EMFILE, 0, 0]
        assert (failpoints.visits("snap write mv"), failpoints.hits("snap write mv")) == (5, 2)


# ---- at random, as the seed's own property test


@pytest.mark.parametrize("case", range(12))
def test_random_operations_with_random_failures(life: Life, seed: int, case: int) -> None:
    """Each page holds what returned; after a failed flush, or a loss of power, what a flush covered at least."""
    rng = random.Random(seed * 1000 + case)
    end = time.monotonic() + 8
    life.open()
    life.allocate()
    ops: dict[str, Callable[[], object]] = {
        "append": lambda: life.append(rng.choice(list(life.returned) or [0])),
        "allocate": life.allocate,
        "flush": life.flush,
        "churn": life.churn,
        "snapshot": lambda: life.store.snapshot(),
        "gc": lambda: life.store.attempt_gc(),
        "restart": lambda: (life.close(), life.open()),
        "power": lambda: (life.flush(), life.close(), life.lose_power(), life.open()),
    }
    for step in range(80):
        if time.monotonic() > end:
            break
        if rng.random() < 0.2:
            failpoints.set(rng.choice(failpoints.NAMES), after=rng.randrange(3))
        op = rng.choices(list(ops), [12, 2, 3, 1, 1, 1, 1, 1])[0]
        if op == "append" and not life.returned:
            op = "allocate"
        power = life.boot
        print(step, op, [n for n in failpoints.NAMES if failpoints._block.at[failpoints._INDEX[n]].action])
        try:
            ops[op]()
        except (mmpc.MmpcError, OSError) as e:
            print(step, op, e)
            failed = life.abandon() or isinstance(e, mmpc.StoreFailed)
            if rng.random() < 0.3:
                life.lose_power()
            life.check(exactly=not failed and life.boot == power)
            life.flush()
    life.abandon()
