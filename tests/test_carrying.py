"""Flushes that sync the pages of one process alone: what others wrote is carried in an intent, and found there where
the power was lost before it came to its place.

Two handles are two writers, with a lease each. A loss of power is a copy of the files in which none of the carried
bytes is in its place, and no mark is newer than the last that was synced.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
from collections.abc import Iterator
from typing import Any

import pytest

import mmpc
from mmpc import failpoints
from mmpc._layout import (
    BLOCK,
    RECORD,
    SECTOR,
    WITNESS_MAGIC,
    Intent,
    intent_of,
)
from support import loss
from support.children import Children, Gate

MARKED = 2240  # of mm_globals
SYNCING = 12288 + 24  # of the first slot
Pieces = list[tuple[int, bytes]]


def marked(path: str) -> int:
    return loss._word(path, MARKED)


def intents(log: bytes) -> Iterator[tuple[int, int, Intent]]:
    """Where each intent of the log lies, its epoch and its content."""
    for at, epoch, payload in loss.intents(log):
        said = intent_of(payload)
        if said is not None:
            yield at, epoch, said


def placed(said: Intent) -> Pieces:
    """What an intent carries, and where it belongs."""
    return [(said.fills[index][0] + start, data) for index, start, data in said.pieces]


def carried(log: bytes, since: int = 0) -> Pieces:
    """The same of all above an epoch."""
    return [piece for _at, epoch, said in intents(log) if epoch > since for piece in placed(said)]


def keep_marks(path: str, epoch: int, witnesses: bool = False) -> None:
    """Marks newer than `epoch` never reached the disk, nor did witnesses unless they are to stay."""
    data = bytearray(loss.get(path, "marks"))
    for at in range(0, 64 * BLOCK, SECTOR):
        newer = int.from_bytes(data[at + 16 : at + 24], "little") > epoch
        witness = data[at : at + 8] == WITNESS_MAGIC
        if newer and not (witness and witnesses):
            data[at : at + SECTOR] = bytes(SECTOR)
    loss.put(path, "marks", bytes(data))


def witnesses(path: str) -> list[int]:
    data = loss.get(path, "marks")[: 64 * BLOCK]
    found = [at for at in range(0, len(data), SECTOR) if data[at : at + 8] == WITNESS_MAGIC]
    return [int.from_bytes(data[at + 16 : at + 24], "little") for at in found]


class Pair:
    """Two writers, each with a page, and what was flushed of it. Begins where a flush of either needs one sync."""

    def __init__(self, path: str, **options: Any) -> None:
        self.path = path
        first = mmpc.open(path, mmpc.Append(), create=True, cache_capacity=0, **options)
        self.handles = [first, mmpc.open(path, mmpc.Append(), cache_capacity=0, **options)]
        self.pages = [pc.allocate(["-" * 2500])[0] for pc in self.handles]
        self.wrote: list[list[Any]] = [["-" * 2500], ["-" * 2500]]
        for _ in range(3):  # leases that last a while, and a base of each that lists both
            for who in (0, 1):
                self.append(who)
                self.append(1 - who)
                self.flush(who)
        self.append(0)
        self.append(1)
        assert self.flush(0), "nothing is carried: these tests say nothing"

    def append(self, who: int, value: Any = 7) -> None:
        self.handles[who].append(self.pages[who], [value])
        self.wrote[who].append(value)

    def flush(self, who: int) -> bool:
        """Whether one sync was enough, of the pages of one writer."""
        self.handles[who].flush()
        return max(witnesses(self.path), default=0) == self.handles[who].stable_lsn

    def work(self, rng: random.Random, turns: int) -> int:
        """How many of so many flushes carried."""
        count = 0
        for turn in range(turns):
            for _ in range(rng.randint(1, 3)):
                self.append(rng.randrange(2), turn)
            count += self.flush(rng.randrange(2))
        return count

    def lost(self, into: str, rng: random.Random | None = None, **kept: Any) -> str:
        """The store after a loss of power: what was carried is not in its place, or, with `rng`, some of it is."""
        epoch = marked(self.path)
        loss.copy(self.path, into)
        keep_marks(into, epoch, **kept)
        log = bytearray(loss.get(into, "log"))
        pieces = carried(bytes(log), epoch)
        assert pieces
        for at, data in pieces:
            if rng is None or rng.random() < 0.7:
                log[at : at + len(data)] = bytes(len(data))
        loss.put(into, "log", bytes(log))
        return into

    def found(self, path: str, **options: Any) -> list[list[Any]]:
        with mmpc.open(path, mmpc.Append(), **options) as pc:
            return [list(pc.get(page).unwrap()) for page in self.pages]

    def observed(self, path: str) -> list[list[Any]]:
        """By who may not write: nothing is put into its place."""
        before = loss.get(path, "log")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mmpc._files.may_write", lambda _path: False)
            found = self.found(path, read_only=True)
        assert loss.get(path, "log") == before
        return found

    def close(self) -> None:
        for pc in self.handles:
            with contextlib.suppress(mmpc.StoreFailed):
                pc.close()


@pytest.fixture
def pair(path: str) -> Iterator[Pair]:
    made = Pair(path)
    yield made
    made.close()


def test_most_flushes_of_several_sync_the_pages_of_one(pair: Pair, seed: int) -> None:
    assert pair.work(random.Random(seed), 60) > 20
    assert mmpc.verify(pair.path).durable == pair.handles[0].stable_lsn


def test_nothing_that_was_carried_is_lost(pair: Pair, tmp_path: Any, seed: int) -> None:
    rng = random.Random(seed)
    for turn in range(6):
        pair.work(rng, 15)
        pair.append(0)
        pair.append(1)
        if not pair.flush(turn % 2):
            continue
        into = pair.lost(str(tmp_path / f"lost-{turn}"), rng if turn % 2 else None)
        stable = pair.handles[0].stable_lsn
        report = mmpc.verify(into)
        assert report.ok, str(report)
        assert report.durable == stable
        assert pair.observed(into) == pair.wrote
        assert pair.found(into) == pair.wrote
        assert mmpc.verify(into).ok
        assert pair.found(into) == pair.wrote  # and it stays


def test_a_recovery_that_is_cut_off_is_done_again(pair: Pair, tmp_path: Any, children: Children, seed: int) -> None:
    """It dies in each of its calls in turn, also while it puts things into their places."""
    pair.work(random.Random(seed), 20)
    into = pair.lost(str(tmp_path / "lost"))

    def recover(event: int) -> None:
        loss.die_at_event(event)
        pair.found(into)

    for event in range(150, 1000, 50):
        children.start(recover, event).wait()
    assert mmpc.verify(into).ok
    assert pair.found(into) == pair.wrote


def test_it_is_saved_from_a_damaged_store(pair: Pair, tmp_path: Any, seed: int) -> None:
    pair.work(random.Random(seed), 20)
    into = pair.lost(str(tmp_path / "lost"))
    os.remove(os.path.join(into, "config"))
    saved = mmpc.salvage(into, str(tmp_path / "saved"), materializer=mmpc.Append().name)
    assert saved.ok
    assert pair.found(str(tmp_path / "saved")) == pair.wrote


def test_one_that_was_durable_and_is_damaged_is_damage(pair: Pair, tmp_path: Any, seed: int) -> None:
    """Whichever of a chain: what it carried is nowhere else; a later one, or a witness, knows that it was durable."""
    rng = random.Random(seed)
    chain: list[int] = []
    while len(chain) < 4:
        pair.append(0)
        pair.append(1)
        pair.flush(rng.randrange(2))
        log, since = loss.get(pair.path, "log"), marked(pair.path)
        chain = [at for at, epoch, intent in intents(log) if epoch > since and intent.pieces]
    for n, at in enumerate(chain):
        into = pair.lost(str(tmp_path / f"lost-{n}"), witnesses=True)
        with open(os.path.join(into, "log"), "r+b") as f:
            where = at + RECORD.size + rng.randrange(16)
            os.pwrite(f.fileno(), bytes([os.pread(f.fileno(), 1, where)[0] ^ 1 << rng.randrange(8)]), where)
        assert not mmpc.verify(into).ok
        with pytest.raises(mmpc.CorruptionError):
            pair.found(into)
        with pytest.raises(mmpc.CorruptionError):
            pair.observed(into)


def test_a_flush_that_fails_on_the_same_boot_takes_none_before_it_along(
    path: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory has the intent of the flush that failed; the last witness tells that it is none."""
    pair = Pair(path)
    pair.append(0)
    pair.append(1)
    assert pair.flush(0)
    durable, flushed = pair.handles[0].stable_lsn, [list(w) for w in pair.wrote]
    pair.append(0, "late")
    pair.append(1, "late")
    failpoints.set("buffer write post", "error")
    try:
        with pytest.raises(mmpc.StoreFailed):
            pair.handles[0].flush()
    finally:
        failpoints.clear()
    pair.close()
    log = loss.get(path, "log")
    assert max(epoch for _at, epoch, _intent in intents(log)) > durable  # it is there
    report = mmpc.verify(path)
    assert report.ok, str(report)
    assert report.durable == durable
    assert pair.observed(path) == flushed
    assert pair.found(path) == flushed
    assert pair.found(path) == flushed


def test_all_of_them_killed_and_the_table_lost(path: str, children: Children) -> None:
    """On the same boot; what was carried last is in memory, and a witness says that it was durable."""
    done = Gate()

    def work() -> None:
        pair = Pair(path)
        pair.work(random.Random(5), 10)
        pair.append(0)
        pair.append(1)
        assert pair.flush(1)
        done.open()
        signal.pause()

    child = children.start(work)
    done.wait()
    child.kill()
    os.remove(os.path.join(path, "table"))
    with mmpc.open(path, mmpc.Append()) as pc:
        assert [len(pc.get(page).unwrap()) > 8 for page in (2, 3)] == [True, True]
    assert mmpc.verify(path).ok


def test_many_bytes_are_synced_in_their_place(pair: Pair, tmp_path: Any) -> None:
    """More than an intent carries."""
    for _ in range(4):
        pair.append(1, "x" * 900)
    pair.append(0)
    assert not pair.flush(0)
    pair.append(1)
    assert pair.flush(0)
    assert pair.found(pair.lost(str(tmp_path / "lost"))) == pair.wrote


def test_a_new_lease_is_not_as_durable_as_the_one_before(path: str, tmp_path: Any, seed: int) -> None:
    """Leases that end all the time: what is known of one says nothing of the next."""
    pair, rng = Pair(path), random.Random(seed)
    for turn in range(40):
        if rng.random() < 0.5:
            pair.append(rng.randrange(2), "y" * rng.choice((1500, 6000)))
        pair.append(0, turn)
        pair.append(1, turn)
        if pair.flush(rng.randrange(2)) and rng.random() < 0.4:
            assert pair.found(pair.lost(str(tmp_path / f"lost-{turn}"), rng)) == pair.wrote
    pair.close()


def test_the_header_of_a_run_is_synced_in_its_place(path: str) -> None:
    """An intent carries what stands in leases. Before a run of segments that held something is used again its header
    must be durable, and a flush that carries would not see to it.
    """
    pair = Pair(path, segment_size=1 << 16)
    pc = pair.handles[0]
    page, key = pc.allocate(["large" * 30_000])
    small = [pc.allocate([str(n)])[0] for n in range(4)]
    for turn in range(12):
        for who in (0, 1, 0, 1):
            pair.append(who, turn)
            pair.flush(who)
        pair.append(1)
        pair.append(0)
        carries, before = pair.flush(0), marked(path)
        pair.append(1)
        reused = pc.stats().segments
        key = pc.replace(page, key, [str(turn) * 150_000])
        if carries and pc.stats().segments == reused:  # it lies where something lay before
            assert marked(path) > before
            break
    else:
        pytest.fail("no run was used again while flushes carried")
    assert [pc.get(pid).unwrap() for pid in small] == [[str(n)] for n in range(4)]
    pair.close()


def test_the_next_owner_of_a_slot_leaves_the_base(path: str, tmp_path: Any) -> None:
    """A witness stands over a sector of a note, which is newer than the base, and lists less. The first mark of whoever
    comes next must not go over the base: torn, it would take the way to the intent along.
    """
    pair = Pair(path)
    slot = pair.handles[1]._attachment.slot
    for _ in range(40):
        pair.append(1)
        pair.flush(1)  # a note, unless something else asks for a mark
        pair.append(0)
        pair.append(1)
        if not pair.flush(1):
            continue
        epochs = [
            max((int.from_bytes(b[at + 16 : at + 24], "little") for at in range(SECTOR, BLOCK, SECTOR)), default=0)
            for b in blocks(path, slot)
        ]
        base = next(i for i, b in enumerate(blocks(path, slot)) if b[:8] != WITNESS_MAGIC)
        if epochs[1 - base] > epochs[base]:
            break
    else:
        pytest.fail("no witness stands over a note")
    before = blocks(path, slot)
    pair.handles[1].close()
    pair.handles[1] = mmpc.open(path, mmpc.Append(), cache_capacity=0)
    assert pair.handles[1]._attachment.slot == slot
    assert blocks(path, slot) == before
    pair.append(1)
    pair.handles[1].flush()
    assert blocks(path, slot)[base] == before[base]
    assert blocks(path, slot)[1 - base] != before[1 - base]
    pair.close()


def blocks(path: str, slot: int) -> list[bytes]:
    """The two of a slot, in `marks`."""
    data = loss.get(path, "marks")[2 * slot * BLOCK : (2 * slot + 2) * BLOCK]
    return [data[:BLOCK], data[BLOCK:]]


def test_a_life_that_goes_on_after_a_death_in_a_sync_has_it(path: str, children: Children) -> None:
    """The kernel could not write a page, called it clean, and forgot it: what it held is in an intent alone."""
    done = Gate()

    def work() -> None:
        pair = Pair(path)
        pair.append(0)
        pair.append(1, "carried")
        assert pair.flush(0)
        pair.append(0, "not flushed")
        done.open()
        signal.pause()

    child = children.start(work)
    done.wait()
    child.kill()
    last = loss.stable(path)
    pieces = [p for _at, epoch, said in intents(loss.get(path, "log")) if epoch == last for p in placed(said)]
    assert any(b"carried" in data for _at, data in pieces)
    with open(os.path.join(path, "log"), "r+b") as log, open(os.path.join(path, "control"), "r+b") as control:
        for at, data in pieces:
            os.pwrite(log.fileno(), bytes(len(data)), at)
        os.pwrite(control.fileno(), struct.pack("<Q", last + 1), SYNCING)
    with mmpc.open(path, mmpc.Append()) as pc:
        assert pc.get(2).unwrap()[-1] == "not flushed"  # it goes on
        assert pc.get(3).unwrap()[-1] == "carried"
    assert mmpc.verify(path).ok


def test_a_backup_has_what_was_carried(pair: Pair, tmp_path: Any) -> None:
    """No mark in the file covers it, until the backup makes one; a witness may stand over the newest note."""
    for turn in range(6):
        pair.append(1, turn)
        pair.flush(1)
        pair.append(0, turn)
        pair.append(1, turn)
        pair.flush(turn % 2)
        pair.append(0, "last")
        pair.append(1, "last")  # the flush of the backup would carry it
        into = str(tmp_path / f"copy-{turn}")
        pair.handles[0].backup(into)
        assert pair.found(into) == pair.wrote
