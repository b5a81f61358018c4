"""What the commands take that need not read everything: whole processes, on a store of 1 GB (100 MB with --quick) that
another process has open, with --json.

`top` is one look, 10 ms long. `viz` imports matplotlib, which is most of what it takes, so it has no bar.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import mmpc

from .harness import Env, Figure, Question, Row

WHERE = str(Path(mmpc.__file__).parent.parent)
CODE = f"import sys; sys.path.insert(0, {WHERE!r}); from mmpc.cli import main; sys.exit(main(sys.argv[1:]))"
SIZE, QUICK_SIZE = 1_000_000_000, 100_000_000  # bytes
FRAGMENT = b"x" * 960
MOST = 0.3  # seconds


def seconds(*arguments: str) -> float:
    """Of a command, from its start to its end. CalledProcessError: it failed."""
    start = time.perf_counter()
    command = [sys.executable, "-P", "-c", CODE, *arguments, "--json"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return time.perf_counter() - start


def fill(pages: mmpc.PageCache[bytes], size: int) -> None:
    """Allocates pages until the log holds `size` bytes."""
    while pages.stats().log_bytes < size:
        for _ in range(1000):
            pages.allocate(FRAGMENT)
    pages.flush()


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """One store for all rows."""
    path, size = str(env.fresh("commands")), QUICK_SIZE if env.quick else SIZE
    with mmpc.open(path, mmpc.Append(), create=True) as pages:
        fill(pages, size)
        pid = str(pages.stats().pages - 1)
        look = {
            "stat": [path],
            "segments": [path],
            "readers": [path],
            "page": [path, pid, "--value"],
            "doctor": [path],
            "top": [path, "--interval", "0.01"],
        }
        rows = [Row(f"mmpc {name}", "s", lambda a=(name, *rest): seconds(*a)) for name, rest in look.items()]
        figures = [Figure(f"mmpc {name}: seconds", f"mmpc {name}", at_most=MOST) for name in look]
        drawn = ("viz", path, "--out", str(env.fresh("pictures")))
        there = find_spec("matplotlib") is not None
        rows.append(Row("mmpc viz", "s", (lambda: seconds(*drawn)) if there else None))
        yield Question(f"Commands on a store of {size / 1e6:.0f} MB", rows, figures, env.rounds(20))
