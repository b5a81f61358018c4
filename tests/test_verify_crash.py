"""verify after a crash: what a death or a loss of power leaves is no damage, before a recovery and after it; the same
bytes are, once something that must be there needs them.

The disk laboratory (tests/crash/test_disk.py) asks verify of every image that it computes. Here each case stands alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import mmpc
from mmpc import _layout
from mmpc._layout import BLOCK, CONTROL_GLOBALS, GLOBALS, INNER, MARK_SECTOR, RECORD, SECTOR, crc
from mmpc._log import Log
from support import ruins
from support.children import Children
from support.ruins import Image, read_all, scanned, word

BEFORE, AFTER = [0], [0, "a", "b"]  # what page 2 holds, durably and in the end
SEGMENT = 1 << ruins.SHIFT


def work(path: str, flushed: bool) -> None:
    """In a child, which dies. Page 2 is durable as BEFORE; then one handle changes it, another builds on that, and a
    page grows until a second segment is opened; all of that durable only if `flushed`.
    """
    a, b = (mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT) for _ in range(2))
    pid, _ = a.allocate(list(BEFORE))
    large, key = b.allocate([b""])
    a.flush()
    a.append(pid, ["a"])
    b.append(pid, ["b"])
    for n in range(50):
        key = b.replace(large, key, [bytes([n]) * 1500])
    if flushed:
        b.flush()
    ruins.write_model(path, {pid: AFTER if flushed else BEFORE, large: [bytes([49]) * 1500] if flushed else [b""]})
    os._exit(0)


def make(path: str, children: Children, flushed: bool) -> Image:
    assert children.start(work, path, flushed).wait() == 0
    return Image(path)


def places(image: Image) -> dict[str, int]:
    """Where something of the second half of `work` stands."""
    log = scanned(image)
    newest = log.record(log.newest[2])
    leases = [a for a in sorted(log.leases) if a > SEGMENT]
    return {"record": newest.prev, "lease header": leases[0], "segment header": SEGMENT}


def torn(data: bytes, at: int) -> bytes:
    """As if only the first words there had reached the disk."""
    return data[: at + 16] + bytes(16) + data[at + 32 :]


# What verify says where it is damage: of this boot it knows of a lease by its slot alone, if nothing came after it.
SAID = {
    "record": "continues is damaged",
    "lease header": "names a lease",
    "segment header": "the header of segment 1 is damaged",
}


def problems(path: str, boot: str | None = None) -> tuple[bool, list[str]]:
    """In a child, since a boot is of the environment: whether the store is sound, and what verify says."""
    if boot is not None:
        os.environ["MMPC_BOOT_ID"] = boot
    report = mmpc.verify(path)
    return report.ok, [str(p) for p in report.problems]


def recovered(path: str, model: ruins.Model) -> tuple[bool, list[str]]:
    """In a child: what the next boot gets is right; and what verify says of it while it is open."""
    os.environ["MMPC_BOOT_ID"] = "the next"
    assert read_all(path, model) == ("right", [])
    return problems(path)


@pytest.mark.parametrize("what", ["record", "lease header", "segment header"])
def test_what_is_torn_above_the_newest_mark(path: str, children: Children, tmp_path: Path, what: str) -> None:
    """It is damage while the machine runs; after a loss of power it is what may be left, and so it stays."""
    image, victim = make(path, children, flushed=False), str(tmp_path / "victim")
    image.lay(victim, {"log": torn(image.files["log"], places(image)[what])})
    ok, found = children.run(problems, victim)
    assert not ok
    assert any(SAID[what] in line for line in found), found
    assert children.run(problems, victim, "another") == (True, [])
    assert children.run(recovered, victim, image.model) == (True, [])
    assert children.run(problems, victim, "a third") == (True, [])


@pytest.mark.parametrize("what", ["record", "lease header", "segment header"])
@pytest.mark.parametrize("boot", [None, "another"])
def test_what_is_torn_below_it_is_damage(
    path: str, children: Children, tmp_path: Path, what: str, boot: str | None
) -> None:
    image, victim = make(path, children, flushed=True), str(tmp_path / "victim")
    at = places(image)[what]
    image.lay(victim, {"log": torn(image.files["log"], at)})
    ok, found = children.run(problems, victim, boot)
    assert not ok
    assert any(f"log at {at}: " in line for line in found), found
    if what == "segment header":
        assert f"damage: log at {SEGMENT}: the header of segment 1 is damaged: all in it is lost" in found


def test_a_header_that_its_writer_did_not_finish(path: str, children: Children, tmp_path: Path) -> None:
    """Killed while it prepared a segment: of this boot, too, that segment is nobody's."""
    image, victim = make(path, children, flushed=True), str(tmp_path / "victim")
    header = image.files["log"][SEGMENT : SEGMENT + 40]
    image.lay(victim, {"log": image.files["log"][: 2 * SEGMENT] + header + bytes(SEGMENT - 40)})
    assert children.run(problems, victim) == (True, [])
    assert children.run(problems, victim, "another") == (True, [])


def test_after_a_failed_sync_only_the_durable_is_judged(path: str, children: Children, tmp_path: Path) -> None:
    image, victim = make(path, children, flushed=False), str(tmp_path / "victim")
    image.lay(victim, {"log": torn(image.files["log"], places(image)["record"])})
    with open(os.path.join(victim, "control"), "r+b") as f:
        f.seek(CONTROL_GLOBALS + GLOBALS["failed"])
        f.write(b"\5")
    ok, found = children.run(problems, victim)
    assert ok
    assert ["a sync has failed" in line for line in found] == [True]


# ---- groups


def without_inner(image: Image, log: Log) -> bytes:
    """The log with a record in the place of the first inner one of a group: whole, of the same page, committed by
    nobody; what stood there before the group did.
    """
    index = next(i for i, shape in enumerate(log.shapes) if shape & INNER)
    at, data = log.addresses[index], bytearray(image.files["log"])
    words = [*RECORD.unpack_from(data, at)]
    words[1] &= ~INNER
    payload = bytes(data[at + RECORD.size : at + RECORD.size + (words[1] & 0xFFFFFFFF)])
    seed = crc(payload, _layout.crc_word(at, log.segments[at >> ruins.SHIFT].seed))
    words[0] = crc(RECORD.pack(*words)[8:], seed)
    RECORD.pack_into(data, at, *words)
    return bytes(data)


@pytest.mark.parametrize("flushed", [False, True])
def test_a_group_without_all_of_it(path: str, children: Children, tmp_path: Path, flushed: bool) -> None:
    def write() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT, page_consolidation_threshold=60)
        model: ruins.Model = {pc.allocate([0])[0]: [0]}
        pc.flush()
        ruins.write_model(path, model)
        ruins.group(pc, 2, model)
        if flushed:
            pc.flush()
        os._exit(0)

    victim = str(tmp_path / "victim")
    assert children.start(write).wait() == 0
    image = Image(path)
    image.lay(victim, {"log": without_inner(image, scanned(image))})
    ok, found = children.run(problems, victim)
    assert not ok
    assert any("a group lacks some of its 2 records" in line for line in found), found
    ok, found = children.run(problems, victim, "another")
    assert ok is not flushed
    if not flushed:
        assert found == []
        (ok, found), value = children.run(recovered_page, victim)
        assert (ok, found) == (True, [])
        assert value[0] == 0


def recovered_page(path: str) -> tuple[tuple[bool, list[str]], list[object]]:
    """In a child: page 2 in the next boot, whatever of what was not flushed came back."""
    os.environ["MMPC_BOOT_ID"] = "the next"
    ruins.kept.append(pc := mmpc.open(path, mmpc.Append()))
    return problems(path), pc.get(2).unwrap()


# ---- control


@pytest.mark.parametrize("what", ["nothing", "a part", "zeros", "no magic", "checksum", "boot", "uuid"])
def test_a_torn_control(path: str, children: Children, tmp_path: Path, what: str) -> None:
    """Nobody syncs it. Of this boot it is damage, as far as it still says of which boot it is."""
    image, victim = make(path, children, flushed=True), str(tmp_path / "victim")
    image.lay(victim)
    with open(os.path.join(victim, "control"), "r+b") as f:
        data = bytearray(f.read(SECTOR))
        if what in ("nothing", "a part"):
            f.truncate(0 if what == "nothing" else 300)
        elif what == "zeros":
            data[:] = bytes(SECTOR)
        elif what == "no magic":
            data[:8] = bytes(8)
        else:
            data[{"checksum": 8, "boot": 50, "uuid": 30}[what]] ^= 1
        if what not in ("nothing", "a part"):
            f.seek(0)
            f.write(data)
    damaged = what in ("no magic", "checksum", "boot", "uuid")
    ok, found = children.run(problems, victim)
    assert ok is not damaged
    assert len(found) == 1
    assert "control" in found[0]
    ok, found = children.run(problems, victim, "another")
    assert ok
    assert all(line.startswith("warning: control") for line in found)
    assert children.run(recovered, victim, image.model) == (True, [])


# ---- marks


def without_marks(path: str) -> None:
    with open(os.path.join(path, "marks"), "r+b") as f:
        f.truncate(0)
        f.truncate(_layout.MARKS_SIZE)


def test_a_creation_that_was_cut_off_twice_before_its_first_mark(path: str, children: Children) -> None:
    """Pages 0 and 1 stand in the log twice, and nothing else does."""

    def create(boot: str) -> None:
        os.environ["MMPC_BOOT_ID"] = boot
        ruins.kept.append(mmpc.open(path, mmpc.Append(), create=True, segment_size=SEGMENT))

    for boot in ("first", "second"):
        children.run(create, boot)
        without_marks(path)
        os.unlink(os.path.join(path, "control"))  # of which nothing had reached the disk
        with open(os.path.join(path, "log"), "r+b") as f:  # no header may know of one, either
            assert word(f.read(BLOCK), 40) == 0
        ok, found = children.run(problems, path, "another " + boot)
        assert ok, found
        assert [line.startswith("warning: control at 0: is missing") for line in found] == [True]


def test_a_store_without_a_mark_is_damaged(path: str, children: Children) -> None:
    make(path, children, flushed=True)
    without_marks(path)
    ok, found = children.run(problems, path, "another")
    assert not ok
    assert any(line.startswith("damage: marks") for line in found)


def test_a_torn_mark_is_whole_again_after_a_recovery(path: str, children: Children, tmp_path: Path) -> None:
    """Also where no process takes its slot again."""
    image, victim = make(path, children, flushed=True), str(tmp_path / "victim")
    marks = bytearray(image.files["marks"])
    block = 2 * BLOCK  # slot 1, which flushed last
    assert any(marks[block : block + BLOCK])
    sectors = [MARK_SECTOR.unpack_from(marks, block + i * SECTOR) for i in range(8)]
    assert {s[3] for s in sectors} == {sectors[0][3]}
    for torn_at in (0, 5):
        marks[block + torn_at * SECTOR + 16] ^= 0xFF
    unfinished = 6 * BLOCK + SECTOR  # of slot 3, which has none: the first words of its first mark
    marks[unfinished : unfinished + 16] = marks[block : block + 16]
    image.lay(victim, {"marks": bytes(marks)})
    ok, found = children.run(problems, victim, "another")
    assert ok
    assert [line.startswith("warning: marks at") for line in found] == [True] * 3
    assert children.run(recovered, victim, image.model) == (True, [])
    after = Path(victim, "marks").read_bytes()
    assert [MARK_SECTOR.unpack_from(after, block + i * SECTOR)[3] for i in range(8)] == [s[3] for s in sectors]
    assert not any(after[unfinished : unfinished + SECTOR])
    whole = [i for i in range(8) if i not in (0, 5)]
    assert all(after[block + i * SECTOR :][:SECTOR] == marks[block + i * SECTOR :][:SECTOR] for i in whole)


# ---- snapshots


def test_zeros_at_the_end_of_the_log_are_missed_by_nobody(path: str, children: Children, tmp_path: Path) -> None:
    """A recovery cuts them off; the snapshot was made when they were there."""
    image, victim = ruins.make(path, False), str(tmp_path / "victim")
    assert any(name.startswith("snapshot-") for name in image.files)
    log = image.files["log"].rstrip(b"\0")
    log += bytes(-len(log) % BLOCK)
    assert len(log) < len(image.files["log"])
    image.lay(victim, {"log": log})
    assert children.run(problems, victim, "another") == (True, [])
    image.lay(victim, {"log": log[: len(log) // 2]})  # what lies at the very end may be free
    assert not children.run(problems, victim, "another")[0]


