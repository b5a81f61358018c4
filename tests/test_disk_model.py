"""The model of the disk in the crash laboratory: what is guaranteed, what is not (tests/crash/test_disk.py uses it)."""

import random
import re
from pathlib import Path

import pytest

import mmpc
from support.disk_model import BIASES, SECTOR, Disk, Files, draw
from support.disk_trace import CREATE, CUT, NAMES, RENAME, STORE, SYNC_BEGIN, SYNC_END, UNLINK, Event

DIRECTORY, LOG, NEW = 1, 2, 3


def store(offset: int, data: bytes, file: int = LOG) -> Event:
    return Event(STORE, file, offset, data, 0)


def sync(begin: int, file: int = LOG) -> tuple[Event, Event]:
    """`begin`: the index at which its first half stands."""
    return Event(SYNC_BEGIN, file, 0, b"", 0), Event(SYNC_END, file, begin, b"", 0)


def disk(*events: Event, size: int = 4 * SECTOR) -> Disk:
    """One file, `log`, of zeros, and what happens."""
    start = Files()
    start.names, start.sizes, start.sectors = {"log": LOG}, {LOG: size}, {LOG: {}}
    return Disk(start, list(events), DIRECTORY)


def contents(image: Files, name: str = "log") -> bytes:
    file = image.names[name]
    sectors = image.sectors[file]
    whole = b"".join(sectors.get(n, bytes(SECTOR)) for n in range(image.sizes[file] // SECTOR + 1))
    return whole[: image.sizes[file]]


def all_images(d: Disk, crash: int) -> set[bytes]:
    """What can be found in `log`, by drawing often."""
    rng, found = random.Random(1), set()
    for _ in range(60):
        for bias in BIASES.values():
            found.add(contents(d.image(crash, bias(d, rng, crash))).rstrip(b"\0"))
    return found


def test_what_was_not_synced_may_be_there_or_not():
    d = disk(store(0, b"a"), store(1, b"b"))
    assert all_images(d, 2) == {b"", b"a", b"ab"}
    assert all_images(d, 1) == {b"", b"a"}
    assert all_images(d, 0) == {b""}


def test_a_sync_that_has_ended_guarantees_what_was_there_when_it_began():
    begin, end = sync(1)
    d = disk(store(0, b"a"), begin, store(1, b"b"), end, store(2, b"c"))
    assert all_images(d, 3) == {b"", b"a", b"ab"}  # it has not ended
    assert all_images(d, 4) == {b"a", b"ab"}
    assert all_images(d, 5) == {b"a", b"ab", b"abc"}


def test_a_sync_that_ends_late_takes_nothing_back():
    slow, fast = sync(0), sync(2)
    d = disk(slow[0], store(0, b"a"), fast[0], fast[1], slow[1])
    assert all_images(d, 5) == {b"a"}


def test_sectors_are_independent_and_files_too():
    begin, end = sync(2, file=NEW)
    d = disk(store(0, b"a"), store(SECTOR, b"b"), begin, end)
    second = bytes(SECTOR) + b"b"
    assert all_images(d, 4) == {b"", b"a", second, b"a" + second[1:]}


def test_a_size_may_be_older_than_what_lies_in_it():
    grown = [Event(CUT, LOG, 2 * SECTOR, b"", 0), store(SECTOR, b"b")]
    d = disk(*grown, size=SECTOR)
    oldest = d.image(2, lambda file, low, high, versions: low if versions is d.sizes[LOG] else high)
    assert contents(oldest) == bytes(SECTOR)
    assert contents(d.newest()) == bytes(SECTOR) + b"b" + bytes(SECTOR - 1)


def test_a_file_that_is_cut_forgets_what_was_behind():
    d = disk(store(0, b"ab"), Event(CUT, LOG, 1, b"", 0), Event(CUT, LOG, 2, b"", 0))
    assert contents(d.newest()) == b"a\0"


@pytest.mark.parametrize("synced", [False, True])
def test_operations_in_the_directory_come_in_their_order(synced):
    events = [
        Event(CREATE, NEW, 0, b"config.new", 0),
        Event(RENAME, 0, 0, b"config.new\0config\0", 0),
        *(sync(2, file=DIRECTORY) if synced else ()),
        Event(UNLINK, 0, 0, b"log", 0),
    ]
    d = disk(*events)
    low, high = d.moves_range(len(events))
    names = [sorted(d.names(n)) for n in range(low, high + 1)]
    first = [] if synced else [["log"], ["config.new", "log"]]
    assert names == [*first, ["config", "log"], ["config"]]


def test_images_are_drawn_from_the_points_asked_for():
    d = disk(*[store(i, b"x") for i in range(50)])
    drawn = [draw(d, random.Random(i), range(10, 20)) for i in range(200)]
    assert {crash for crash, _bias, _image in drawn} == set(range(10, 20))
    assert {bias for _crash, bias, _image in drawn} == set(BIASES)


def test_files_come_back_as_they_were_written(tmp_path):
    d = disk(store(5, b"abc"), store(3 * SECTOR - 1, b"xyz"), size=1 << 20)
    d.newest().write(str(tmp_path / "image"))
    assert Files.read(str(tmp_path / "image")).difference(d.newest()) == ""
    assert Files.read(str(tmp_path / "image")).difference(d.image(1, lambda _f, _o, new, _v: new)) != ""


def test_all_that_changes_files_of_a_store_is_in_the_trace() -> None:
    """Else images lack it, and a recording of it does not fit what is on the disk."""
    calls = r"\bos\.(p?write|f?truncate|rename|replace|unlink|remove|f(data)?sync|posix_fallocate)\("
    names = [p.stem for p in Path(mmpc.__file__).parent.glob("*.py") if re.search(calls, p.read_text())]
    assert set(names) - {"event_log"} <= set(NAMES)  # that writes elsewhere
