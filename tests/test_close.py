"""close(): with others inside, before an open Tx ends, at interpreter exit; temporary stores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import mmpc
from support.children import Children, Gate
from support.looks import live
from support.mergers import Tally

Open = Callable[..., mmpc.PageCache[Any]]
Store = mmpc.PageCache[Any]


def every_verb(pc: Store, pid: int, key: mmpc.PagePtr) -> dict[str, Callable[[], Any]]:
    return {
        "allocate": lambda: pc.allocate([1]),
        "link": lambda: pc.link(pid, key, [1]),
        "replace": lambda: pc.replace(pid, key, [1]),
        "free": lambda: pc.free(pid, key),
        "get": lambda: pc.get(pid),
        "get of Meta": lambda: pc.get(0),
        "get of no page": lambda: pc.get(1 << 50),
        "get_page_frags": lambda: pc.get_page_frags(pid),
        "view": lambda: pc.view(pid),
        "append": lambda: pc.append(pid, [1]),
        "append to no page": lambda: pc.append(-1, [1]),
        "update": lambda: pc.update(pid, lambda v: v),
        "get_many": lambda: pc.get_many([pid]),
        "append_many": lambda: pc.append_many([(pid, [1])]),
        "begin": pc.begin,
        "bump_page_rts": lambda: pc.bump_page_rts(pid, 1),
        "get_page_rts": lambda: pc.get_page_rts(pid),
        "flush": pc.flush,
        "make_stable": lambda: pc.make_stable(1),
        "stable_lsn": lambda: pc.stable_lsn,
        "stats": pc.stats,
        "with": pc.__enter__,
    }


def test_every_verb_of_a_closed_handle_raises_closed(open_store: Open) -> None:
    pc = open_store()
    pid, key = pc.allocate([0])
    pc.get(pid)
    pc.close()
    for name, verb in every_verb(pc, pid, key).items():
        with pytest.raises(mmpc.Closed, match="open the store again"):
            pytest.fail(f"{name}: {verb()}")


def test_empty_batches_of_a_closed_handle_raise_closed(store: Store) -> None:
    store.close()
    for verb in (lambda: store.get_many([]), lambda: store.append_many([])):
        with pytest.raises(mmpc.Closed):
            verb()


def test_close_is_idempotent_and_leaves_other_handles_alone(open_store: Open) -> None:
    mine, other = open_store(), open_store()
    pid, _ = mine.allocate([0])
    mine.close()
    mine.close()
    other.append(pid, [1])
    assert other.get(pid).unwrap() == [0, 1]
    assert "closed" in repr(mine)


def test_with_closes_also_after_an_exception(path: str) -> None:
    with pytest.raises(ZeroDivisionError), mmpc.open(path, mmpc.Append(), create=True) as pc:
        raise ZeroDivisionError
    with pytest.raises(mmpc.Closed):
        pc.get(2)


def test_values_and_keys_outlive_the_handle(open_store: Open) -> None:
    np = pytest.importorskip("numpy")
    pc = open_store(mmpc.LastWriteWins())
    pid, key = pc.allocate(np.arange(1000.0))
    page = pc.get(pid)
    pc.close()
    assert page.unwrap().sum() == 499500.0
    assert page.key == key
    assert repr(page.key)


@pytest.mark.parametrize("verb", ["get", "append", "mixed", "flush"])
def test_close_while_other_threads_are_inside(path: str, verb: str) -> None:
    """They finish or raise Closed; nothing else, nothing is lost, and nothing crashes."""
    wrong: list[BaseException] = []
    mmpc.open(path, mmpc.Append(), create=True).close()
    with mmpc.open(path, mmpc.Append()) as watcher:
        pid, _ = watcher.allocate([])
        done = [0]
        for _ in range(150):
            pc = mmpc.open(path, mmpc.Append())
            inside = threading.Barrier(4)

            def work(pc: Store = pc, inside: threading.Barrier = inside) -> None:
                inside.wait()
                try:
                    while True:
                        if verb in ("get", "mixed"):
                            pc._drop()
                            pc.get(pid)
                        if verb in ("append", "mixed"):
                            pc.append(pid, [1])
                            done.append(1)
                        if verb == "flush":
                            pc.flush()
                        with pc.begin() as tx:
                            pc.get(pid, tx=tx)
                except mmpc.Closed:
                    pass
                except BaseException as error:
                    wrong.append(error)

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            inside.wait()
            pc.close()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()
            if len(watcher.get(pid).unwrap()) > 20_000:
                watcher.replace(pid, watcher.get(pid).key, [])
                done.clear()
                done.append(0)
        assert wrong == []
        assert len(watcher.get(pid).unwrap()) == sum(done)
        assert live(watcher) == 1


def test_many_threads_closing_the_same_handle(path: str) -> None:
    for _ in range(50):
        pc = mmpc.open(path, mmpc.Append(), create=True)
        threads = [threading.Thread(target=pc.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(mmpc.Closed):
            pc.get(2)


def test_a_tx_outlives_close_and_then_ends_quietly(open_store: Open) -> None:
    pc, other = open_store(), open_store()
    pid, key = pc.allocate([0])
    tx = pc.begin()
    pc.close()
    with pytest.raises(mmpc.Closed):
        pc.get(pid, tx=tx)
    other.free(pid, key)
    tx.close()
    tx.close()
    assert other.get(pid).is_free()


def test_a_tx_may_be_forgotten_after_close(open_store: Open, path: str) -> None:
    pc = open_store()
    tx = pc.begin()
    pc.close()
    del tx, pc
    with open("/proc/self/maps") as f:
        assert path not in f.read()


def test_the_last_close_makes_everything_durable(path: str, children: Children) -> None:
    pc = mmpc.open(path, mmpc.Append(), create=True)
    other = mmpc.open(path, mmpc.Append())
    pid, _ = pc.allocate([0])
    pc.close()
    for i in range(1, 100):
        other.append(pid, [i])
    other.close()

    def look() -> list[int]:
        os.environ["MMPC_BOOT_ID"] = "another boot"
        with mmpc.open(path, mmpc.Append()) as again:
            return again.get(pid).unwrap()  # type: ignore[no-any-return]

    assert children.run(look) == list(range(100))


# ---- interpreter exit

ENDINGS = {
    "open handle": "",
    "open tx": "tx = pc.begin()",
    "cycle": "class C: pass\nc = C(); c.c = c; c.pc = pc; del pc",
    "daemon threads": """
import threading
def work():
    try:
        while True:
            pc.append(pid, [1]); pc._drop(); pc.get(pid)
            with pc.begin() as tx: pc.get(pid, tx=tx)
    except mmpc.Closed:
        pass
for _ in range(3): threading.Thread(target=work, daemon=True).start()
import time; time.sleep(0.2)""",
    "thread that is not a daemon": """
import threading, time
def work():
    time.sleep(0.2)
    for _ in range(100):
        try: pc.append(pid, [1])
        except mmpc.Closed: break
threading.Thread(target=work).start()""",
    "user's exit handler": "import atexit; atexit.register(lambda: print(len(pc.get(pid).unwrap()), flush=True))",
    "kept in builtins": "import builtins; builtins.pc = pc; builtins.key = key; builtins.page = pc.get(pid)",
    "deleted modules": "import sys; sys.modules['keep'] = pc; del sys.modules['mmpc']",
    "use in a destructor": """
class Late:
    def __del__(self):
        try: pc.append(pid, [1])
        except Exception: pass
import sys; sys.late = Late()""",
    "fork and leave by sys.exit": "import os\nif not os.fork():\n    import sys; sys.exit(0)\nos.wait()",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("merger", ["mmpc.Append()", "Mine()"])
def test_an_interpreter_ends_cleanly_with(path: str, ending: str, merger: str) -> None:
    """Exit status 0, nothing on stderr, and the store is whole."""
    code = f"""
import mmpc
class Mine(mmpc.Materializer):
    name = "mine-1"
    def merge(self, fragments): return [x for f in fragments for x in f]
pc = mmpc.open({path!r}, {merger}, create=True)
pid, key = pc.allocate([0])
for i in range(30): pc.append(pid, [i])
pc.get(pid)
{ending}
"""
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stderr) == (0, "")
    name = "mine-1" if merger == "Mine()" else "mmpc.append-1"

    class Mine(Tally):
        pass

    Mine.name = name
    with mmpc.open(path, mmpc.Append() if name.startswith("mmpc") else Mine()) as pc:
        assert live(pc) == 1
        assert len(pc.get(2).unwrap()) >= 31
        pc._check()


# ---- temporary stores


def test_a_temporary_store_goes_with_its_last_handle(path: str) -> None:
    first = mmpc.open(path, mmpc.Append(), create=True, temporary=True)
    second = mmpc.open(path, mmpc.Append(), temporary=True)
    pid, _ = first.allocate([1])
    first.close()
    assert second.get(pid).unwrap() == [1]
    second.close()
    assert not os.path.exists(path)


def test_a_temporary_store_needs_no_path(children: Children) -> None:
    pc = mmpc.open(None, mmpc.Append(), temporary=True)
    where = pc.path
    pid, _ = pc.allocate([1])
    assert os.path.isdir(where)
    copy_of = mmpc.open(where, mmpc.Append(), temporary=True)

    def look() -> Any:
        return pc.get(pid).unwrap()

    assert children.run(look) == [1]
    pc.close()
    copy_of.close()
    assert not os.path.exists(where)


def test_a_temporary_store_goes_with_its_last_process(path: str, children: Children) -> None:
    opened, end = Gate(), Gate()

    def hold() -> bool:
        pc = mmpc.open(path, mmpc.Append(), temporary=True)
        opened.open()
        end.wait()
        there = pc.get(2).is_materialized()
        pc.close()
        return there

    pc = mmpc.open(path, mmpc.Append(), create=True, temporary=True)
    pc.allocate([1])
    child = children.start(hold)
    opened.wait()
    pc.close()
    assert os.path.isdir(path)
    end.open()
    assert child.result() is True
    assert not os.path.exists(path)


def test_a_temporary_store_goes_at_interpreter_exit(path: str) -> None:
    code = (
        f"import mmpc; pc = mmpc.open({path!r}, mmpc.Append(), create=True, temporary=True); pc.allocate([1])"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=30)
    assert not os.path.exists(path)


def test_temporary_stores_opened_and_closed_by_many_at_once(path: str, children: Children) -> None:
    """Everyone gets a store that works while it is open; at the end none is left."""

    def turn() -> int:
        done = 0
        for i in range(40):
            with mmpc.open(path, mmpc.Append(), create=True, temporary=True) as pc:
                pid, _ = pc.allocate([i])
                assert pc.get(pid).unwrap() == [i]
                done += 1
        return done

    assert children.map(turn, [()] * 4) == [40] * 4
    assert not os.path.exists(path)


def test_without_a_path_a_store_has_to_be_temporary() -> None:
    with pytest.raises(TypeError, match="temporary"):
        mmpc.open(None, mmpc.Append(), create=True)
