"""What it costs to begin: `import mmpc` over a bare interpreter, and attaching to a store that another
process has open."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmpc

from .harness import Env, Figure, Question, Row, once
from .peers import MAP_SIZE, lmdb, lmdb_env
from .workers import Pool, Step

WHERE = str(Path(mmpc.__file__).parent.parent)
FIRST_OPEN = """
import sys, time, mmpc
start = time.perf_counter()
pages = mmpc.open(sys.argv[1], mmpc.LastWriteWins(), create=False)
print((time.perf_counter() - start) * 1e3)
pages.close()
"""


def interpreter(code: str, *arguments: str) -> str:
    """Run code in a new interpreter that finds mmpc where this one did; its output."""
    code = f"import sys; sys.path.insert(0, {WHERE!r})\n{code}"
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def opens(_number: int, path: str) -> Step:
    """A worker's job: keep the store open."""
    pages = mmpc.open(path, mmpc.LastWriteWins(), create=True)
    pages.allocate(0)

    def step() -> int:
        time.sleep(0.001)
        return len(pages.get_many([0]))

    return step


def closed(opened: Any) -> None:
    """Close what was opened."""
    opened.close()


def first_open(path: str) -> float:
    """Milliseconds of the first open in a new process, what it imports included."""
    return float(interpreter(FIRST_OPEN, path))


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """A store that another process has open; an lmdb environment that exists."""
    path, peer_path = str(env.fresh("mmpc")), env.fresh("lmdb")
    with lmdb_env(peer_path):
        pass
    with Pool(1, {"opens": (opens, path)}) as pool:
        pool.run("opens", 1, 0.01)
        rows = [
            once("python", lambda: interpreter("pass")),
            once("python, import mmpc", lambda: interpreter("import mmpc")),
            once("python, import msgpack, sqlite3", lambda: interpreter("import msgpack, sqlite3")),
            once("mmpc attach", lambda: mmpc.open(path, mmpc.LastWriteWins(), create=False), closed),
            Row("mmpc first open of a process", "ms", lambda: first_open(path)),
            once(
                "lmdb open", (lambda: lmdb.open(str(peer_path), map_size=MAP_SIZE)) if lmdb else None, closed
            ),
        ]
        figures = [
            Figure("import mmpc over a bare interpreter, ms", rows[1].name, minus="python", at_most=40),
            Figure("attach to a live store, ms", "mmpc attach", at_most=1),
            Figure("first open of a process, late imports included, ms", rows[4].name),
        ]
        yield Question("startup: import and attach", rows, figures, env.rounds(31))
