"""The event log: what is written, read, compared; and a checker that believes no store."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import event_log
from mmpc.event_log import History, Operation, encoded
from support.children import Children
from support.histories import Wrong, check_numbers, check_pages, check_roots

ROOT = Path(__file__).resolve().parent.parent
Open = Callable[..., mmpc.PageCache[Any]]
merge = mmpc.Append().merge


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where every handle of the test, and of its children, writes down what it does."""
    monkeypatch.setenv("MMPC_EVENT_LOG", str(tmp_path / "events"))
    return str(tmp_path / "events")


def verbs(log: str) -> list[str]:
    return [op.verb for op in event_log.read(log).operations]


# ---- writing


def test_without_a_log_nothing_is_recorded_and_the_verbs_are_those_of_the_face(path: str, tmp_path: Path) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        assert type(pc) is mmpc.PageCache
        assert "_recorder" not in dir(pc)
    assert sorted(os.listdir(tmp_path)) == ["store"]


def test_the_option_and_the_variable_do_the_same(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmpc.open(path, mmpc.Append(), create=True, event_log=tmp_path / "a") as pc:
        pc.allocate([1])
    monkeypatch.setenv("MMPC_EVENT_LOG", str(tmp_path / "b"))
    with mmpc.open(path, mmpc.Append()) as pc:
        pc.get(2)
    assert (verbs(str(tmp_path / "a")), verbs(str(tmp_path / "b"))) == (["allocate"], ["get"])


def everything(pc: mmpc.PageCache[Any]) -> None:
    """Each verb that is recorded, with success and without."""
    pid, key = pc.allocate([1])
    pc.append(pid, [2])
    with pytest.raises(mmpc.Conflict):
        pc.link(pid, key, [3])
    key = pc.link(pid, pc.get(pid).key, [3])
    key = pc.replace(pid, key, [4])
    pc.append_many([(pid, [5]), (pid, [6])])
    with pytest.raises(mmpc.PageNotFound):
        pc.append_many([(pid, [7]), (10**6, [8])])
    pc.get_many([pid, 10**6])
    pc.get_page_frags(pid)
    pc.update(pid, lambda value: value[:1])
    pc.cas_root_in_meta("a", None, pid)
    with pytest.raises(mmpc.Conflict):
        pc.cas_root_in_meta("a", None, 9)
    pc.meta()
    pc.generate_id()
    pc.begin().close()
    pc.make_stable(pc.append(pid, [9]).last_lsn)
    pc.flush()
    pc.free(pid, pc.get(pid).key)
    pc.get(pid)


def test_each_verb_is_recorded_with_what_it_was_given_and_what_came_of_it(path: str, log: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        everything(pc)
    history = event_log.read(log)
    by_verb: dict[str, list[Operation]] = {}
    for op in history.operations:
        assert op.returned is not None
        assert op.called <= op.returned
        assert op.process == os.getpid()
        by_verb.setdefault(op.verb, []).append(op)
    assert by_verb["allocate"][0].arguments == {"fragment": encoded([1])}
    assert by_verb["allocate"][0].result is not None
    assert by_verb["allocate"][0].result["page"] == 2
    lost, won = by_verb["link"]
    assert (lost.result, lost.arguments["wts"]) == ({"error": "Conflict", "current": 2}, 1)
    assert won.result is not None
    assert won.result["wts"] == 3
    half = by_verb["append_many"][1].result
    assert half is not None
    assert (half["error"], len(half["keys"])) == ("PageNotFound", 1)
    assert by_verb["cas_root_in_meta"][1].result == {"error": "Conflict", "current": 2}
    assert by_verb["meta"][0].result == {"roots": {"a": 2}}
    assert by_verb["get"][-1].result is not None
    assert by_verb["get"][-1].result["kind"] == "Free"
    assert len(by_verb["replace"]) == 2  # one is of update
    assert check_pages(history, merge) > 15
    assert (check_numbers(history), check_roots(history)) == (2, 3)


def test_the_lines_are_those_that_are_documented(path: str, log: str) -> None:
    """docs/event-log.md names each field of each event and verb, and no other."""
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        everything(pc)
    text = (ROOT / "docs" / "event-log.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|", text, re.MULTILINE)
    documented = {name: (set(re.findall(r"`(\w+)`", a)), set(re.findall(r"`(\w+)`", b))) for name, a, b in rows}
    lines = [json.loads(line) for name in os.listdir(log) for line in Path(log, name).read_text().splitlines()]
    calls = {line["n"]: line["verb"] for line in lines if line["event"] == "call"}
    found: dict[str, tuple[set[str], set[str]]] = {}
    for line in lines:
        fields = set(line) - {"event", "time"}
        if line["event"] not in ("call", "return"):
            found.setdefault(line["event"], (set(), set()))[0].update(fields)
            continue
        verb = calls[line["n"]]
        given, result = found.setdefault(verb, (set(), set()))
        (given if line["event"] == "call" else result).update(fields - {"n", "thread", "verb", "error"})
    assert {name: documented.get(name) for name in found} == found


def test_a_long_value_is_written_as_a_digest(path: str, log: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate(b"x" * 10000)
        pc.get(pid)
    made, got = event_log.read(log).operations
    assert got.result is not None
    assert made.arguments["fragment"] == got.result["value"]
    assert re.fullmatch(r"blake2b:[0-9a-f]{32}:10003", got.result["value"])


def test_a_forked_child_and_a_pickled_handle_have_files_of_their_own(path: str, log: str, children: Children) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([0])
        child = children.run(lambda: (os.getpid(), pc.append(pid, [1]))[0])
        with pickle.loads(pickle.dumps(pc)) as other:
            other.append(pid, [2])
    assert len(os.listdir(log)) == 3
    assert {op.process for op in event_log.read(log).operations} == {os.getpid(), child}


def test_a_read_only_handle_is_recorded_too(path: str, log: str) -> None:
    mmpc.open(path, mmpc.Append(), create=True).close()
    with mmpc.open(path, mmpc.Append(), read_only=True) as pc:
        with pytest.raises(mmpc.Unsupported):
            pc.allocate([0])
        pc.get(2)
    assert verbs(log) == ["allocate", "get"]


def test_a_closed_handle_writes_nothing_more(path: str, log: str) -> None:
    pc = mmpc.open(path, mmpc.Append(), create=True)
    pc.close()
    before = {name: Path(log, name).read_bytes() for name in os.listdir(log)}
    with pytest.raises(mmpc.Closed):
        pc.get(2)
    pc.close()
    assert {name: Path(log, name).read_bytes() for name in os.listdir(log)} == before


def test_what_a_killed_process_did_is_there(path: str, log: str, children: Children) -> None:
    """Its last line may be cut short, its last operation has no end."""

    def work() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True)
        pid, _ = pc.allocate([0])
        pc.update(pid, lambda value: os.kill(os.getpid(), signal.SIGKILL))

    assert children.start(work).wait() == -signal.SIGKILL
    (name,) = os.listdir(log)
    with open(os.path.join(log, name), "ab") as f:
        f.write(b'{"event":"call","n":9')
    assert verbs(log) == ["allocate", "get"]


def test_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events-1-a.jsonl").write_text('{"event":"open","time":1,"version":99,"process":1}\n')
    with pytest.raises(ValueError, match="version 99"):
        event_log.read(tmp_path)


def test_threads_are_told_apart(path: str, log: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([0])
        threads = [threading.Thread(target=lambda: [pc.append(pid, [1]) for _ in range(20)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    history = event_log.read(log)
    assert len({op.thread for op in history.operations if op.verb == "append"}) == 3
    check_pages(history, merge)


# ---- states


def busy(pc: mmpc.PageCache[Any], rng: random.Random) -> None:
    for _ in range(rng.randrange(20, 120)):
        pages = [pid for pid in range(2, pc.stats().pages) if pc.get(pid).is_materialized()]
        draw = rng.random()
        if draw < 0.3 or not pages:
            pc.allocate([rng.random()])
        elif draw < 0.7:
            pc.append(rng.choice(pages), [b"x" * rng.randrange(2000)])
        elif draw < 0.9:
            pid = rng.choice(pages)
            pc.replace(pid, pc.get(pid).key, [b"y" * rng.randrange(9000)])
        else:
            pid = rng.choice(pages)
            pc.free(pid, pc.get(pid).key)
    pc.cas_root_in_meta("now", pc.meta().get("now"), rng.randrange(1000))
    pc.generate_id()
    pc._clean(2, 1 << 17)


def test_what_the_last_one_leaves_is_what_the_next_one_finds(
    path: str, log: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attached again, rebuilt in the same boot, recovered in another one with a snapshot and without: pages and
    segments are the same.
    """
    rng, turns = random.Random(seed), 8
    for turn in range(turns):
        with mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16) as pc:
            busy(pc, rng)
        if turn % 4 == 1:
            os.unlink(os.path.join(path, "table"))
        if turn % 4 >= 2:
            monkeypatch.setenv("MMPC_BOOT_ID", f"boot {turn}")
        if turn % 4 == 3:
            for name in os.listdir(path):
                if name.startswith("snapshot-"):
                    os.unlink(os.path.join(path, name))
    pairs = event_log.read(log).restarts()
    assert len(pairs) == turns - 1
    for before, after in pairs:
        assert event_log.differences(before.state, after.state) == []
    assert max(len(after.state["segments"]) for _before, after in pairs) > 1
    assert max(len(after.state["pages"]) for _before, after in pairs) > 10


def test_what_is_not_the_same_is_said(path: str, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pc.allocate([0])
    monkeypatch.delenv("MMPC_EVENT_LOG")
    with mmpc.open(path, mmpc.Append()) as pc:  # nobody writes it down
        pc.append(2, [1])
        pc.cas_root_in_meta("a", None, 2)
    monkeypatch.setenv("MMPC_EVENT_LOG", log)
    mmpc.open(path, mmpc.Append()).close()
    ((before, after),) = event_log.read(log).restarts()
    said = event_log.differences(before.state, after.state)
    assert [s.split(" was")[0].split(": were")[0] for s in said] == ["page 0", "page 2", "segment 0", "roots"]


def test_who_is_not_alone_writes_no_state(path: str, log: str) -> None:
    with mmpc.open(path, mmpc.Append(), create=True), mmpc.open(path, mmpc.Append()):
        pass
    states = event_log.read(log).states
    assert [(s.when, s.alone) for s in states] == [("open", True), ("open", False), ("close", False), ("close", True)]


def test_who_is_left_by_the_dead_alone_writes_a_state(
    path: str, log: str, seed: int, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process has its slot until somebody needs it; no state was written beside one."""
    rng, turns = random.Random(seed), 4
    for turn in range(turns):
        monkeypatch.setenv("MMPC_BOOT_ID", f"boot {turn // 2}")
        with mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16) as pc:
            busy(pc, rng)
            dying = children.start(worker, path, turn, 1_000_000)
            while pc.stats().slots < 2:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.02)
            dying.kill()
            busy(pc, rng)
    pairs = event_log.read(log).restarts()
    assert len(pairs) == turns - 1
    for before, after in pairs:
        assert event_log.differences(before.state, after.state) == []


# ---- a run of several processes


def worker(path: str, seed: int, count: int) -> None:
    rng = random.Random(seed)
    pc = mmpc.open(path, mmpc.Append(), page_consolidation_threshold=4, idgen_persist_interval=10)
    for i in range(count):
        pid, draw = rng.randrange(2, 6), rng.random()
        try:
            if draw < 0.25:
                pc.append(pid, [f"{seed}.{i}"])
            elif draw < 0.5:
                page = pc.get(pid)
                if page.is_materialized():
                    verb = rng.choice((pc.link, pc.replace))
                    verb(pid, page.key, [f"{seed}.{i}"])
            elif draw < 0.6:
                pc.append_many([(pid, [i]), (rng.randrange(2, 6), [i])])
            elif draw < 0.65:
                page = pc.get(pid)
                if page.is_materialized():
                    pc.free(pid, page.key)
            elif draw < 0.7:
                pc.allocate([f"{seed}.{i}"])
            elif draw < 0.8:
                pc.generate_id()
            elif draw < 0.9:
                name = rng.choice("ab")
                pc.cas_root_in_meta(name, pc.meta().get(name), rng.randrange(9))
            elif draw < 0.93:
                pc.flush()
            else:
                pc.get_many([2, 3, 4, 5])
        except (mmpc.Conflict, mmpc.PageFreed, mmpc.PageNotFound):
            continue
    pc.close()


@pytest.mark.processes
@pytest.mark.parametrize("killed", [False, True])
def test_several_processes_do_what_one_could_have_done(
    path: str, log: str, children: Children, seed: int, killed: bool
) -> None:
    rng = random.Random(seed)
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        for i in range(4):
            pc.allocate([i])
        workers = [children.start(worker, path, rng.getrandbits(30), 150) for _ in range(4)]
        if killed:
            time.sleep(rng.uniform(0.02, 0.15))
            for one in workers[:2]:
                one.kill()
        for one in workers[2 * killed :]:
            one.result()
        pc.get_many(range(2, pc.stats().pages))
        pc.meta()
    history = event_log.read(log)
    assert len({op.process for op in history.operations}) >= 3
    assert check_pages(history, merge) > 150
    assert check_numbers(history) > 5
    assert check_roots(history) > 5


# ---- the checker notices


def op(verb: str, called: int, returned: int | None, given: dict[str, Any], result: dict[str, Any] | None) -> Operation:
    return Operation("events-1-a.jsonl", 1, 1, verb, called, returned, given, result)


def wrote(verb: str, called: int, returned: int, wts: int, fragment: Any, base: int | None = None) -> Operation:
    given = {"page": 2, "fragment": encoded(fragment)} | ({} if base is None else {"wts": base})
    return op(verb, called, returned, given, {"wts": wts, "lsn": 1})


def got(called: int, returned: int, wts: int, value: Any) -> Operation:
    result = {"kind": "Materialized", "wts": wts, "lsn": 1, "value": encoded(value)}
    return op("get", called, returned, {"page": 2}, result)


MADE = op("allocate", 0, 1, {"fragment": encoded([0])}, {"page": 2, "wts": 1, "lsn": 1})
KILLED = op("append", 2, None, {"page": 2, "fragment": encoded([1])}, None)


@pytest.mark.parametrize(
    "operations",
    [
        [MADE, wrote("append", 2, 9, 3, [2]), wrote("append", 3, 8, 2, [1]), got(4, 10, 3, [0, 1, 2])],
        [MADE, KILLED, wrote("append", 3, 4, 3, [2]), got(5, 6, 3, [0, 1, 2])],
        [MADE, KILLED, got(5, 6, 1, [0])],
    ],
)
def test_what_can_be_is_right(operations: list[Operation]) -> None:
    check_pages(History(operations, []), merge)


@pytest.mark.parametrize(
    ("operations", "why"),
    [
        ([MADE, wrote("append", 2, 3, 2, [1]), got(4, 5, 1, [0])], "had been answered before"),
        ([MADE, wrote("append", 2, 3, 2, [1]), wrote("append", 2, 3, 2, [2])], "made twice"),
        ([MADE, wrote("append", 2, 3, 2, [1]), got(4, 5, 2, [0])], "read as something else"),
        ([MADE, wrote("link", 2, 3, 3, [1], base=1), got(2, 3, 2, [0])], "no order"),
        ([MADE, wrote("append", 2, 3, 2, [1]), wrote("link", 2, 3, 3, [2], base=1)], "was made from 1"),
        ([MADE, wrote("append", 2, 3, 3, [1])], "no order"),
        ([MADE, KILLED, wrote("append", 3, 4, 3, [2]), got(5, 6, 3, [0, 2, 1])], "no order"),
        ([MADE, wrote("append", 5, 6, 2, [1]), wrote("append", 2, 3, 3, [1])], "had been answered before"),
    ],
)
def test_what_cannot_be_is_noticed(operations: list[Operation], why: str) -> None:
    with pytest.raises(Wrong, match=why):
        check_pages(History(operations, []), merge)


def test_numbers_that_cannot_be_are_noticed() -> None:
    def drew(called: int, returned: int, number: int) -> Operation:
        return op("generate_id", called, returned, {}, {"number": number})

    assert check_numbers(History([drew(1, 5, 8), drew(2, 4, 7), drew(6, 7, 9)], [])) == 3
    with pytest.raises(Wrong, match="twice"):
        check_numbers(History([drew(1, 2, 7), drew(3, 4, 7)], []))
    with pytest.raises(Wrong, match="had been answered before"):
        check_numbers(History([drew(1, 2, 8), drew(3, 4, 7)], []))


def test_roots_that_cannot_be_are_noticed() -> None:
    def swapped(called: int, returned: int, old: Any, new: Any, current: Any = ...) -> Operation:
        lost = {} if current is ... else {"error": "Conflict", "current": current}
        return op("cas_root_in_meta", called, returned, {"name": "a", "old": old, "new": new}, lost)

    good = [swapped(1, 4, None, 5), swapped(2, 5, None, 6, 5), swapped(6, 7, 5, None)]
    assert check_roots(History(good, [])) == 3
    for bad in (
        [swapped(1, 2, None, 5), swapped(3, 4, None, 6)],
        [swapped(1, 2, None, 5), swapped(3, 4, None, 6, 7)],
        [swapped(1, 2, None, 5), op("meta", 3, 4, {}, {"roots": {}})],
    ):
        with pytest.raises(Wrong, match="no order"):
            check_roots(History(bad, []))
