"""A program as users write them. tests/test_typing.py has mypy and pyright judge it strictly, and runs it.

`assert_type` says what a checker must find out by itself. In `refused` each line is wrong, and each says how: a checker
that does not notice complains about a comment that is not needed.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, TypeAlias, assert_type

import mmpc

Words: TypeAlias = list[str]
Page: TypeAlias = mmpc.Materialized[Words] | mmpc.Free | mmpc.Unallocated | mmpc.Counter | mmpc.Meta


class Longest(mmpc.Materializer[Words]):
    """A materializer of a program's own decides what a fragment is."""

    name = "longest-1"

    def merge(self, fragments: Sequence[Words]) -> Words:
        return max(fragments, key=len)

    def size_in_bytes(self, fragment: Words) -> int:
        return sum(map(sys.getsizeof, fragment))


def verbs(path: str) -> None:
    with mmpc.open(path, Longest(), create=True) as pages:
        assert_type(pages, mmpc.PageCache[Words])
        pid, key = pages.allocate(["a"])
        assert_type((pid, key), tuple[int, mmpc.PagePtr])
        assert_type(pages.append(pid, ["b", "c"]), mmpc.PagePtr)
        assert_type(pages.append_many([(pid, ["d"]), (pid, ["e"])]), list[mmpc.PagePtr])
        key = pages.update(pid, lambda words: [*words, "f"])
        key = pages.link(pid, key, ["g"])
        key = pages.replace(pid, key, ["h", "i"])
        assert_type(pages.get_page_frags(pid), tuple[mmpc.PagePtr, list[Words]])
        assert_type(pages.get_many([pid]), list[Page])
        assert_type(pages.get(pid).unwrap(), Words)
        assert_type(pages.get(pid).expect("words"), Words)
        pages.rewrite(pid)
        pages.bump_page_rts(pid, 1)
        assert_type(pages.get_page_rts(pid), int | None)
        assert_type(pages.make_stable(key.last_lsn) + pages.flush() + pages.stable_lsn + pages.snapshot(), int)
        assert_type((pages.was_recovered, pages.attempt_gc(), pages.path), tuple[bool, bool, str])
        assert_type(pages.free(pid, pages.free_key if isinstance(pages, Owner) else key), mmpc.PagePtr)


class Owner(mmpc.PageCache[Words]):
    """A handle may be given more names; the checker keeps what a fragment is."""

    __slots__ = ("free_key",)
    free_key: mmpc.PagePtr


def narrow(page: Page) -> str:
    """isinstance tells the results apart."""
    if isinstance(page, mmpc.Materialized):
        assert_type(page.value, Words)
        return ",".join(page.value) + str(page.key.pid)
    if isinstance(page, mmpc.Counter):
        return str(assert_type(page.value, int))
    if isinstance(page, mmpc.Meta):
        return str(assert_type(page.value, dict[str, int]))
    if isinstance(page, mmpc.Free):
        return str(assert_type(page.key, mmpc.PagePtr))
    return str(assert_type(page, mmpc.Unallocated))


def match(page: Page) -> str:
    """So does match."""
    match page:
        case mmpc.Materialized(value, key):
            assert_type(value, Words)
            return f"{value} {assert_type(key, mmpc.PagePtr).wts}"
        case mmpc.Free(key):
            return f"free {key.last_lsn}"
        case mmpc.Counter(ceiling):
            return str(assert_type(ceiling, int))
        case mmpc.Meta(roots):
            return str(assert_type(roots, dict[str, int]))
        case mmpc.Unallocated():
            return "none"


def natives(path: str) -> None:
    """The native materializers take several types: a program says which it means, or leaves it open."""
    bound: mmpc.PageCache[bytes] = mmpc.open(path, mmpc.Append(), create=True)
    with bound as chunks:
        assert_type(chunks, mmpc.PageCache[bytes])
        pid, _ = chunks.allocate(b"ab")
        with chunks.view(pid) as view:
            assert_type(view, mmpc.View)
            assert_type((view.nbytes, view.dtype, view.shape), tuple[int, str | None, tuple[int, ...]])
            assert_type(view.raw, memoryview)
        assert_type(chunks.get(pid).unwrap(), bytes)
    with mmpc.open(None, mmpc.Union(), temporary=True) as anything:
        assert_type(anything, mmpc.PageCache[Any])
        anything.allocate({"a": [1, 2.5, None]})


def numbers(pages: mmpc.PageCache[Words]) -> int:
    with pages.begin() as tx:
        assert_type(tx, mmpc.Tx)
        later = assert_type(pages.generate_id(), int) - assert_type(tx.ts, int)
        pages.get(2, tx)
    pages.cas_root_in_meta("words", None, 2)
    assert_type(pages.meta(), dict[str, int])
    return later + assert_type(pages.meta_pid_for_name("words"), int)


def errors(pages: mmpc.PageCache[Words], pid: int, key: mmpc.PagePtr) -> mmpc.PagePtr:
    try:
        return pages.link(pid, key, ["late"])
    except mmpc.Conflict as conflict:
        current: mmpc.PagePtr = conflict.current
        return current
    except (mmpc.PageNotFound, mmpc.PageFreed):
        return pages.allocate(["new"])[1]
    except mmpc.CorruptionError as damage:
        assert_type((damage.file, damage.offset), tuple[str | None, int | None])
        raise
    except mmpc.DiskFullError as full:
        raise OSError(full.errno, str(full)) from full


def looking(pages: mmpc.PageCache[Words], path: str, dest: str) -> None:
    stats = assert_type(pages.stats(), mmpc.Stats)
    assert_type(stats.readers, list[mmpc.Reader])
    assert_type((stats.path, stats.pages, stats.stable, stats.log_used), tuple[str, int, int, int])
    metrics = assert_type(pages.metrics(), mmpc.Metrics)
    assert_type((metrics.counters["cache_hits"], metrics.hit_rate), tuple[int, float])
    assert_type(metrics.histograms["append"], mmpc.Histogram)
    assert_type(metrics.histograms["append"].p99, float)
    assert_type(metrics.processes, list[mmpc.ProcessMetrics])
    assert_type(mmpc.prometheus(pages, path), str)
    with mmpc.failpoints.active("log punch"):
        assert_type(mmpc.failpoints.hits("log punch"), int)
    assert_type(pages.backup(dest), mmpc.Backup)
    report = assert_type(mmpc.verify(path), mmpc.Report)
    for problem in report.problems:
        assert_type(problem, mmpc.Problem)
    assert_type(report.ok, bool)
    assert_type(mmpc.clean(path), mmpc.Cleaned)


def refused(pages: mmpc.PageCache[Words], pid: int, key: mmpc.PagePtr) -> None:
    """Never called."""
    pages.append(pid, "word")  # type: ignore[arg-type]
    pages.allocate([1])  # type: ignore[list-item]
    pages.link(pid, 3, ["a"])  # type: ignore[arg-type]
    pages.replace(pid, key, None)  # type: ignore[arg-type]
    pages.append_many([(pid, b"")])  # type: ignore[list-item]
    pages.update(pid, len)  # type: ignore[arg-type]
    print(pages.get(pid).value)  # type: ignore[union-attr]  # may be Free
    pages.get("two")  # type: ignore[arg-type]
    pages.cas_root_in_meta("words", "no page", 2)  # type: ignore[arg-type]
    key.wts = 7  # type: ignore[misc]
    mmpc.open("store", Longest)  # type: ignore[arg-type]
    mmpc.open("store", Longest(), creat=True)  # type: ignore[call-arg]
    wrong: mmpc.PageCache[bytes] = mmpc.open("store", Longest())  # type: ignore[arg-type]
    wrong.append(pid, ["a"])  # type: ignore[arg-type]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "store")
        verbs(path)
        natives(os.path.join(folder, "chunks"))
        with mmpc.open(path, Longest()) as pages:
            pid, key = pages.allocate(["a", "b"])
            numbers(pages)
            key = errors(pages, pid, key)
            print(narrow(pages.get(pid)), match(pages.get(0)), match(pages.get(99)))
            looking(pages, path, os.path.join(folder, "copy"))


if __name__ == "__main__":
    main()
