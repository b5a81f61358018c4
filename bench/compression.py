"""What compression saves and what it costs: records as programs keep them, with `use_compression` and without.

Three kinds of values: records of a few fields (a JSON-like map), lists of a hundred of those, and numpy arrays of 1,000
readings of a sensor. A factor of space is of the bytes that records take in the log (what is stored in them and their
headers), computed from the counters of both stores; random bytes show what is lost where nothing can be gained. The
sizes below are those of maps of one text field: from which on a frame is the smaller says where
`mmpc._compression.LEAST` belongs.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgpack
import numpy as np

import mmpc

from .harness import Env, Figure, Question, Row, Run, calls, per_item

PAGES = 200
SIZES = (48, 64, 80, 96, 112, 128, 192, 256, 512, 1024)
WORDS = "the page of a record lies in segment and log while its cache holds what was read by some process".split()  # noqa: SIM905


def text(rng: random.Random, n: int) -> str:
    """So many characters of words."""
    return " ".join(rng.choice(WORDS) for _ in range(n // 3))[:n]


def record(rng: random.Random, number: int) -> dict[str, Any]:
    """About 300 bytes."""
    return {
        "id": number,
        "name": text(rng, 20),
        "mail": f"user{rng.randrange(10**6)}@example.org",
        "created": f"2026-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}T10:00:00Z",
        "active": rng.random() < 0.9,
        "score": rng.random(),
        "tags": [rng.choice(WORDS) for _ in range(5)],
        "note": text(rng, 120),
    }


KINDS: dict[str, Callable[[random.Random, int], Any]] = {
    "record, 300 bytes": record,
    "list of records, 30 KB": lambda rng, number: [record(rng, number + i) for i in range(100)],
    "array of readings, 8 KB": lambda rng, number: np.round(np.cumsum([rng.gauss(0, 1) for _ in range(1000)]), 2),
    "random bytes, 4 KB": lambda rng, number: rng.randbytes(4096),
}


def writes(pages: Any, values: list[Any]) -> Run:
    """A loop of replaces, each of another page."""
    keys = {pid: pages.get(pid).key for pid in (pages.allocate(value)[0] for value in values)}

    def run(items: list[tuple[int, Any]]) -> None:
        replace = pages.replace
        for pid, value in items:
            keys[pid] = replace(pid, keys[pid], value)

    run.pids = list(keys)  # type: ignore[attr-defined]
    return run


def misses(pages: Any) -> Run:
    """A loop of gets of which none is answered by the cache."""
    get, drop = pages.get, pages._drop

    def read(pid: int) -> None:
        drop(pid)
        get(pid)

    return calls(read)


def taken(pages: Any) -> Callable[[], float]:
    """Bytes that the records of a round of writes take: the log grows by leases, so what is counted are payloads."""

    def measure() -> float:
        counters = pages.metrics().as_dict()["counters"]
        return float(counters["payload_bytes"]) + 40 * (counters["replaces"] + counters["allocates"])

    return measure


def rows_of(env: Env, stack: ExitStack, kind: str, how: str, **options: Any) -> list[Row]:
    """One kind of values in one store."""
    rng = random.Random(env.seed)
    values = [KINDS[kind](rng, number) for number in range(PAGES // (10 if kind.startswith("list") else 1))]
    pages = stack.enter_context(mmpc.open(env.fresh("store"), mmpc.LastWriteWins(), create=True, **options))
    run = writes(pages, values)
    size = taken(pages)
    fixed = size()
    pids = run.pids  # type: ignore[attr-defined]
    return [
        per_item(f"{kind}: write, {how}", run, list(zip(pids, values, strict=True))),
        per_item(f"{kind}: get from the log, {how}", misses(pages), pids),
        Row(f"{kind}: bytes a record, {how}", "bytes", lambda: fixed / len(pids)),
    ]


def gained(size: int) -> Row:
    """How many bytes of the record of a map with a text of such an encoded size a frame saves, on the average."""
    from zstandard import ZstdCompressor

    rng, tool = random.Random(size), ZstdCompressor(level=5)
    packed = [msgpack.packb({"text": text(rng, size - 8)}) for _ in range(200)]

    def measure() -> float:
        return sum((len(p) + 47 & -8) - (min(len(tool.compress(p)), len(p)) + 47 & -8) for p in packed) / len(packed)

    return Row(f"a text of {size} bytes: bytes saved", "bytes", measure)


@contextmanager
def setup(env: Env) -> Iterator[Question]:
    """Two stores for each kind of values."""
    if os.environ.get("MMPC_FACE") == "cffi":
        raise RuntimeError("the portable face is another question")
    with ExitStack() as stack:
        rows, figures = [], []
        for kind in KINDS:
            plain = rows_of(env, stack, kind, "plain")
            small = rows_of(env, stack, kind, "compressed", use_compression=True)
            rows += plain + small
            what = ("time of a write", "time of a get from the log", "space")
            figures += [
                Figure(f"{kind}: {name}, compressed / plain", b.name, over=a.name)
                for name, a, b in zip(what, plain, small, strict=True)
            ]
        rows += [gained(size) for size in SIZES]
        figures += [Figure(f"bytes saved of a text of {n}", f"a text of {n} bytes: bytes saved") for n in SIZES]
        yield Question("compression: what it saves, and what it costs", rows, figures, env.rounds(31))
