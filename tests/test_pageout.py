"""Pages that the object cache let go come back right, whatever happened to them meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmpc
from support.children import Children

PAGES = 200
FEW = 8 << 10  # bytes of cache: a few pages


class Joined(mmpc.Materializer[Any]):
    """Lists one behind the other, merged in Python."""

    name = "test.joined-1"

    def merge(self, fragments: Any) -> Any:
        return [item for fragment in fragments for item in fragment]


@pytest.fixture(params=[mmpc.Append, Joined], ids=["native", "python"])
def pages(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[mmpc.PageCache[Any]]:
    """A store whose cache holds a few of its pages: 2 to PAGES + 1, each [its id]."""
    with mmpc.open(tmp_path / "store", request.param(), create=True, cache_capacity=FEW) as handle:
        for pid in range(2, PAGES + 2):
            assert handle.allocate([pid])[0] == pid
        yield handle


def another(pages: mmpc.PageCache[Any], **options: Any) -> mmpc.PageCache[Any]:
    return mmpc.open(pages.path, pages._materializer, **options)


def evict(pages: mmpc.PageCache[Any], pid: int) -> None:
    """Uses other pages until this one is not cached any more. Twice each: a scan alone leaves what was hit in place."""
    evicted = pages._cache_info()[4]
    for other in range(2, PAGES + 2):
        if other != pid:
            assert pages.get(other) is pages.get(other)
    assert pages._cache_info()[4] > evicted + PAGES / 2


def appended(other: mmpc.PageCache[Any], pid: int) -> list[int] | None:
    other.append(pid, [-1])
    return [pid, -1]


def replaced(other: mmpc.PageCache[Any], pid: int) -> list[int] | None:
    other.replace(pid, other.get(pid).key, [-2])
    return [-2]


def freed(other: mmpc.PageCache[Any], pid: int) -> list[int] | None:
    other.free(pid, other.get(pid).key)
    return None


def born_again(other: mmpc.PageCache[Any], pid: int) -> list[int] | None:
    other.free(pid, other.get(pid).key)
    for _ in range(2000):  # the freed id comes back when no pin is older
        found, key = other.allocate([-3])
        if found == pid:
            return [-3]
        other.free(found, key)
    raise AssertionError("the id never came back")


def moved(other: mmpc.PageCache[Any], pid: int) -> list[int] | None:
    for _ in range(3):
        other.append(pid, [7])
    assert other._consolidate(pid)
    return [pid, 7, 7, 7]


def untouched(other: mmpc.PageCache[Any], pid: int) -> list[int] | None:
    return [pid]


Change = Callable[[Any, int], list[int] | None]


@pytest.mark.parametrize("change", [untouched, appended, replaced, freed, born_again, moved])
def test_an_evicted_page_comes_back_as_it_is_now(
    pages: mmpc.PageCache[Any], change: Change, children: Children
) -> None:
    """Changed by another process while it was not cached; and again while it was cached from before."""
    for pid in (50, 51):
        first = pages.get(pid)
        assert first.value == [pid]
        if pid == 50:
            evict(pages, pid)

        def run(pid: int = pid) -> list[int] | None:
            with another(pages) as other:
                return change(other, pid)

        expected, now = children.run(run), pages.get(pid)
        if expected is None:
            assert now.is_free()
        else:
            assert now.value == expected
            assert now.key.wts >= first.key.wts
            assert (now is first) == (pid == 51 and change is untouched)
        assert first.value == [pid]  # what was handed out does not change


def test_a_key_from_before_the_eviction_is_good(pages: mmpc.PageCache[Any]) -> None:
    page = pages.get(60)
    key = page.key
    evict(pages, 60)
    assert pages.get(60) is not page
    assert pages.get(60).key == key
    evict(pages, 60)
    key = pages.link(60, key, [1])
    evict(pages, 60)
    pages.append(60, [2])
    with pytest.raises(mmpc.Conflict):
        pages.link(60, key, [3])
    assert pages.get(60).value == [60, 1, 2]


def test_eviction_writes_nothing(pages: mmpc.PageCache[Any]) -> None:
    before = pages.stats()
    for _ in range(5):
        evict(pages, 2)
    after = pages.stats()
    assert (after.operations, after.log_bytes, after.epoch) == (before.operations, before.log_bytes, before.epoch)


def test_meta_and_counter_take_no_room_and_evict_nobody(pages: mmpc.PageCache[Any]) -> None:
    page = pages.get(70)
    before = pages._cache_info()
    for _ in range(100):
        assert pages.get(0).value == {}
        assert pages.get(1).value == 0
    after = pages._cache_info()
    assert (after[0], after[1], after[4]) == (before[0], before[1], before[4])
    assert pages.get(70) is page


def test_one_damaged_page_is_an_error_and_the_others_come_back(tmp_path: Path) -> None:
    with mmpc.open(tmp_path / "store", mmpc.Append(), create=True, cache_capacity=FEW) as pages:
        keys = [pages.allocate(b"%d" % i * 40)[1] for i in range(PAGES)]
        assert pages.get(80).value == b"78" * 40
        with open(tmp_path / "store" / "log", "r+b") as log:
            log.seek((keys[78].head & (1 << 42) - 1) * 8 + 60)
            log.write(b"#")
        assert pages.get(80).value == b"78" * 40  # cached, and nobody has written since
        evict(pages, 80)
        with pytest.raises(mmpc.CorruptionError):
            pages.get(80)
        assert all(pages.get(pid).value == b"%d" % (pid - 2) * 40 for pid in range(2, PAGES + 2) if pid != 80)


def _grow(pages: mmpc.PageCache[Any], seed: int, rounds: int) -> dict[int, list[int]]:
    """Appends numbers in order to its own pages, sometimes starts one anew; reads all the while."""
    rng, mine = random.Random(seed), dict[int, list[int]]()
    parity = seed % 2
    for number in range(rounds):
        pid = rng.randrange(2, PAGES + 2) // 2 * 2 + parity
        if pid > PAGES + 1:
            continue
        if rng.random() < 0.05:
            pages.replace(pid, pages.get(pid).key, [pid])
            mine[pid] = [pid]
        pages.append(pid, [number])
        mine.setdefault(pid, [pid]).append(number)
        if rng.random() < 0.7:
            own = rng.choice(list(mine))
            assert pages.get(own).value == mine[own]
            other = pages.get(rng.randrange(2, PAGES + 2)).value
            assert other[1:] == sorted(other[1:])
    return mine


def test_two_processes_change_what_the_other_has_evicted(
    pages: mmpc.PageCache[Any], children: Children, seed: int
) -> None:
    def run(seed: int) -> dict[int, list[int]]:
        with another(pages, cache_capacity=FEW) as handle:
            return _grow(handle, seed, 4000)

    started = [children.start(run, 2 * (seed // 2) + i) for i in range(2)]
    for child in started:
        for pid, value in child.result().items():
            assert pages.get(pid).value == value
