"""Mixes of verbs, and what a process takes that runs one.

`python bench/mixes.py MIX MATERIALIZER STORE` prints it as JSON. Memory is private if it is no page of a file of the
store: those are shared with every other process, and the kernel takes them back as it likes. Nothing but mmpc is
imported here, so that tests can run it with whatever mmpc is installed.
"""

import argparse
import faulthandler
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mmpc

CONSTANT = 48 << 20  # bytes, beside the capacity: the interpreter's growth, buffers of running calls, fragmentation
CAPACITY = 16 << 20
PATIENCE = 300  # seconds for one process
MIB = 1 << 20


class Joined(mmpc.Materializer[Any]):
    """Lists one behind the other, merged in Python; sizes are estimated from the bytes."""

    name = "bench-joined-1"

    def merge(self, fragments: Sequence[Any]) -> Any:
        """One list."""
        return [item for fragment in fragments for item in fragment]


class Measured(Joined):
    """The same, with a size of its own."""

    name = "bench-measured-1"

    def size_in_bytes(self, fragment: Any) -> int:
        """Objects of CPython, about."""
        return 88 + sum(sys.getsizeof(item) + 24 for item in fragment)


# ---- fragments


def _text(rng: random.Random, n: int) -> str:
    return "".join(rng.choice(("abcdefgh ", "grüße ", "привет ", "🙂 ")) for _ in range(n // 8 + 1))


def _items(rng: random.Random) -> list[Any]:
    n = rng.choice((0, 1, 3, 20, 400))
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: _text(rng, rng.choice((8, 80, 2000))),
        lambda: rng.randbytes(rng.choice((1, 30, 700))),
        lambda: rng.random(),
        lambda: rng.randrange(1 << 40),
        lambda: {_text(rng, 1): rng.random()},
        lambda: [[]] * 4,
    )
    return [rng.choice(kinds)() for _ in range(n)]


def _map(rng: random.Random) -> dict[str, Any]:
    return {f"{rng.randrange(200)}": item for item in _items(rng)}


def _bytes(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((10, 100, 1000, 10_000, 200_000)))


def _large(rng: random.Random) -> bytes:
    return bytes(rng.choice((500_000, 1_000_000, 3_000_000)))


def _tiny(rng: random.Random) -> int:
    return rng.randrange(1 << 20)


def _array(rng: random.Random) -> Any:
    import numpy

    return numpy.full(rng.choice((10, 1000, 50_000)), rng.random())


Fragment = Callable[[random.Random], Any]
MATERIALIZERS: dict[str, tuple[Callable[[], mmpc.Materializer[Any]], Fragment]] = {
    "Append": (mmpc.Append, _bytes),
    "Append of large values": (mmpc.Append, _large),
    "LastWriteWins": (mmpc.LastWriteWins, _items),
    "Add": (mmpc.Add, _tiny),
    "Union": (mmpc.Union, _map),
    "arrays": (mmpc.LastWriteWins, _array),
    "merge in Python": (Joined, _items),
    "size in Python": (Measured, _items),
}


# ---- verbs: each does one operation


def _get(pages: Any, pid: int, _fragment: Any) -> None:
    pages.get(pid)


def _replace(pages: Any, pid: int, fragment: Any) -> None:
    pages.replace(pid, pages.get(pid).key, fragment)


def _append(pages: Any, pid: int, fragment: Any) -> None:
    try:
        pages.append(pid, fragment)
    except mmpc.FragmentTooLarge:
        _replace(pages, pid, fragment)


def _many(pages: Any, pid: int, fragment: Any) -> None:
    del fragment
    pages.get_many(range(max(2, pid - 5), pid + 1))


def _frags(pages: Any, pid: int, _fragment: Any) -> None:
    pages.get_page_frags(pid)


MIXES: dict[str, tuple[Callable[[Any, int, Any], None], ...]] = {
    "get": (_get,),
    "replace": (_replace,),
    "append": (_append,),
    "mixed": (_get, _get, _get, _replace, _append, _many, _frags),
}


# ---- in a process of its own


def mappings() -> Iterator[tuple[str, dict[str, int]]]:
    """(file or other name, {field: bytes}) of each mapping of this process."""
    name, fields = "", dict[str, int]()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split(None, 5)
        if not first.endswith(":"):
            if fields:
                yield name, fields
            name, fields = rest[4] if len(rest) == 5 else "", {}
        elif rest[-1] == "kB":
            fields[first[:-1]] = int(rest[0]) << 10
    yield name, fields


def private(store: Path) -> int:
    """Bytes of this process that are no pages of the store's files."""
    ours = os.fspath(store.resolve()) + "/"
    kinds = ("Private_Clean", "Private_Dirty", "Swap")
    return sum(fields.get(kind, 0) for name, fields in mappings() if not name.startswith(ours) for kind in kinds)


def mapped_of(file: Path) -> int:
    """Bytes of a file that are mapped into this process."""
    own = os.fspath(file.resolve())
    return sum(fields["Rss"] for name, fields in mappings() if name == own)


def fill(path: Path, materializer: str, volume: int, seed: int, segment: int = 8 << 20) -> int:
    """A store of about `volume` bytes; how many pages it has."""
    make, fragment = MATERIALIZERS[materializer]
    rng, count = random.Random(seed), 0
    with mmpc.open(path, make(), create=True, segment_size=segment) as pages:
        while pages.stats().log_bytes < volume:
            for _ in range(4 if "large" in materializer else 100):
                pages.allocate(fragment(rng))
                count += 1
    return count


def run(
    path: Path, mix: str, materializer: str, capacity: int, passes: float, seed: int, mapped: int | None = None
) -> dict[str, float]:
    """Memory while a mix runs over all pages, `passes` times as often as there are some."""
    make, fragment = MATERIALIZERS[materializer]
    rng = random.Random(seed)
    fragments = [fragment(rng) for _ in range(20)]
    with mmpc.open(path, make(), cache_capacity=capacity, mapped_capacity=mapped) as pages:
        count, resident = pages.stats().pages - 2, 0
        start = peak = private(path)
        for step in range(1, int(passes * count) + 1):
            verb = rng.choice(MIXES[mix])
            verb(pages, rng.randrange(2, 2 + count), rng.choice(fragments))
            if step % max(1, int(passes * count / 50)) == 0:
                peak, resident = max(peak, private(path)), max(resident, mapped_of(path / "log"))
        evictions = pages._cache_info()[4]
        return {"growth": peak - start, "mapped": resident, "evictions": evictions, "steps": step}


def main() -> None:
    """One run: fills, and measures in a child."""
    parser = argparse.ArgumentParser("python bench/mixes.py")
    parser.add_argument("mix", choices=MIXES)
    parser.add_argument("materializer", choices=MATERIALIZERS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--capacity", type=int, default=CAPACITY)
    parser.add_argument("--passes", type=float, default=4)
    parser.add_argument("--mapped", type=int)
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    print(json.dumps(run(o.path, o.mix, o.materializer, o.capacity, o.passes, o.seed, o.mapped)))


def measured(path: Path, mix: str, materializer: str, *options: str) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, "-P", __file__, mix, materializer, os.fspath(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
