"""salvage: what is intact is in the new store, under the same ids; what is not is listed; the old one is left alone."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc._layout import LEASE_HEADER
from support.children import Children
from support.ruins import Image, Model, make, run, scanned


@pytest.fixture
def image(path: str) -> Image:
    return make(path, False)


@pytest.fixture
def dest(tmp_path: Path) -> str:
    return str(tmp_path / "saved")


def damage(path: str, name: str, at: int, mask: int = 1) -> None:
    with open(os.path.join(path, name), "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ mask]))


def compare(dest: str, model: Model, but: tuple[int, ...] = ()) -> None:
    """The new store holds the model, and takes writes."""
    with mmpc.open(dest, mmpc.Append()) as pc:
        for pid, expected in model.items():
            if pid in but:
                continue
            page = pc.get(pid)
            if expected is None:
                assert page.is_free(), pid
            else:
                assert page.unwrap() == expected, pid
                pc.append(pid, ["on"])
                assert pc.get(pid).unwrap() == [*expected, "on"]
        assert isinstance(pc.get(0), mmpc.Meta)
        assert isinstance(pc.get(1), mmpc.Counter)
        taken = {pid for pid, value in model.items() if value is not None} - set(but)
        assert pc.allocate([1])[0] not in taken
        pc._check()
    assert mmpc.verify(dest).ok


def files(path: str) -> dict[str, bytes]:
    return {name: Path(path, name).read_bytes() for name in os.listdir(path)}


def test_a_sound_store_is_saved_whole(path: str, dest: str, image: Image) -> None:
    before = files(path)
    saved = mmpc.salvage(path, dest)
    assert saved.ok
    assert (saved.older, saved.lost, saved.pages, saved.free) == ([], [], 10, 2)
    assert files(path) == before
    compare(dest, image.model)


def test_chains_are_as_long_as_they_were(path: str, dest: str, image: Image) -> None:
    mmpc.salvage(path, dest)
    with mmpc.open(path, mmpc.Append()) as old, mmpc.open(dest, mmpc.Append()) as new:
        for pid, value in image.model.items():
            if value is not None:
                assert new.get_page_frags(pid)[1] == old.get_page_frags(pid)[1]


def newest(image: Image, pid: int) -> int:
    log = scanned(image)
    return log.addresses[log.newest[pid]]


@pytest.mark.parametrize("where", ["payload", "header", "page", "checksum", "commit word"])
def test_a_damaged_newest_record(path: str, dest: str, image: Image, where: str) -> None:
    """The page is saved as it was before, and listed; a damaged commit word or checksum alone costs nothing."""
    at = newest(image, 7)
    damage(path, "log", at + {"payload": 42, "header": 25, "page": 16, "checksum": 1, "commit word": 5}[where])
    saved = mmpc.salvage(path, dest)
    assert not saved.before.ok
    assert saved.after.ok
    assert saved.lost == []
    if where in ("checksum", "commit word"):
        assert saved.ok
        compare(dest, image.model)
        return
    assert [(p.file, p.offset, p.page) for p in saved.older] == [("log", at, 7)]
    assert "page 7" in str(saved)
    compare(dest, image.model, but=(7,))
    with mmpc.open(dest, mmpc.Append()) as pc:
        assert pc.get(7).unwrap() == [7, 7, 7]


def test_a_damaged_base_loses_what_is_built_on_it(path: str, dest: str, image: Image) -> None:
    """An older whole version is taken instead: before it was replaced, the page held something else."""
    log = scanned(image)
    chain = log.chain(log.record(log.newest[7]))
    assert isinstance(chain, list)
    damage(path, "log", chain[-1].address + 41)
    saved = mmpc.salvage(path, dest)
    assert [(p.offset, p.page) for p in saved.older] == [(chain[-1].address, 7)]
    with mmpc.open(dest, mmpc.Append()) as pc:
        assert pc.get(7).unwrap() == [5, *(n * 5 for n in range(5))]


def test_a_page_with_nothing_intact_is_lost(path: str, dest: str, image: Image) -> None:
    log = scanned(image)
    bad = [a for i, a in enumerate(log.addresses) if log.page_colours[i] & (1 << 40) - 1 == 9]
    for address in bad:
        damage(path, "log", address + 41)
    saved = mmpc.salvage(path, dest)
    assert [p.page for p in saved.lost] == [9]
    assert saved.lost[0].offset in bad
    compare(dest, image.model, but=(9,))
    with mmpc.open(dest, mmpc.Append()) as pc:
        assert pc.get(9).is_unallocated() or pc.get(9).unwrap() == [1]  # its id may have been given again


@pytest.mark.parametrize("field", [0, 8, 12, 16, 24, 31, 32, 48])
@pytest.mark.parametrize("segment", [0, 1])
def test_a_damaged_segment_header(path: str, dest: str, image: Image, field: int, segment: int) -> None:
    """Of any field, the salt too: it stands in `control`, and one turned bit can be turned back."""
    damage(path, "log", (segment << 16) + field, 16)
    saved = mmpc.salvage(path, dest)
    assert not saved.before.ok
    assert saved.ok
    compare(dest, image.model)


def test_a_segment_header_that_is_gone(path: str, dest: str, image: Image) -> None:
    """Zeros, and `control` knows the salt. Without it the segment is lost, and its pages are listed."""
    with open(os.path.join(path, "log"), "r+b") as f:
        f.write(bytes(64))
    assert mmpc.salvage(path, dest).ok
    os.unlink(os.path.join(path, "control"))
    saved = mmpc.salvage(path, dest + "2")
    assert saved.lost
    assert {p.page for p in [*saved.lost, *saved.older]} <= set(image.model) | {0, 1}
    assert saved.after.ok


def test_damaged_lease_headers(path: str, dest: str, image: Image) -> None:
    for address in scanned(image).leases:
        damage(path, "log", address + 9, 2)
    saved = mmpc.salvage(path, dest)
    assert not saved.before.ok
    assert saved.ok
    compare(dest, image.model)


def test_a_lease_whose_first_sector_is_gone(path: str, dest: str, image: Image) -> None:
    address = sorted(scanned(image).leases)[2]
    with open(os.path.join(path, "log"), "r+b") as f:
        f.seek(address)
        f.write(os.urandom(512))
    saved = mmpc.salvage(path, dest)
    listed = {p.page for p in [*saved.older, *saved.lost]}
    compare(dest, image.model, but=tuple(p for p in listed if p is not None))


def test_a_config_with_a_turned_bit(path: str, dest: str, image: Image) -> None:
    for at in range(0, len(image.files["config"]), 7):
        damage(path, "config", at, 4)
        saved = mmpc.salvage(path, f"{dest}{at}")
        assert saved.ok
        damage(path, "config", at, 4)
    compare(dest + "7", image.model)


def test_a_config_that_is_gone(path: str, dest: str, image: Image) -> None:
    os.unlink(os.path.join(path, "config"))
    with pytest.raises(mmpc.CorruptionError):
        mmpc.salvage(path, dest)
    assert not os.path.exists(dest)
    saved = mmpc.salvage(path, dest, materializer="mmpc.append-1")
    assert saved.ok
    compare(dest, image.model)


@pytest.mark.parametrize("name", ["control", "table", "ids", "rts", "marks", "snapshot"])
def test_other_files_are_not_needed(path: str, dest: str, image: Image, name: str) -> None:
    for found in os.listdir(path):
        if found.startswith(name):
            os.unlink(os.path.join(path, found))
    saved = mmpc.salvage(path, dest)
    assert saved.ok
    compare(dest, image.model)


def test_pages_that_were_not_durable_do_not_come_along(path: str, dest: str, children: Children) -> None:
    def write() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True)
        pid, _ = pc.allocate([1])
        pc.flush()
        pc.append(pid, [2])
        os._exit(0)

    def elsewhere() -> Any:
        os.environ["MMPC_BOOT_ID"] = "another boot"
        saved = mmpc.salvage(path, dest + "2")
        assert saved.ok
        with mmpc.open(dest + "2", mmpc.Append()) as pc:
            return saved.state, pc.get(2).unwrap()

    children.start(write).wait()
    saved = mmpc.salvage(path, dest)
    with mmpc.open(dest, mmpc.Append()) as pc:
        assert (saved.ok, saved.state, pc.get(2).unwrap()) == (True, "all committed", [1, 2])
    assert children.run(elsewhere) == ("durable", [1])


class Mine(mmpc.Materializer[Any]):
    name = "test.mine-1"

    def merge(self, fragments: Any) -> Any:
        return [x for fragment in fragments for x in fragment]


@pytest.mark.parametrize("materializer", [Mine(), mmpc.Add(), mmpc.Union()], ids=lambda m: m.name)
def test_any_materializer(path: str, dest: str, materializer: Any) -> None:
    one = {"test.mine-1": [1], "mmpc.add-1": 1, "mmpc.union-1": {"a": 1}}[materializer.name]
    with mmpc.open(path, materializer, create=True, segment_size=1 << 17) as pc:
        pid, _ = pc.allocate(one)
        for _ in range(5):
            pc.append(pid, one)
        expected = pc.get(pid).unwrap()
    assert mmpc.salvage(path, dest).ok
    with mmpc.open(dest, materializer, segment_size=1 << 17) as pc:
        assert pc.get(pid).unwrap() == expected


def test_random_damage(path: str, dest: str, image: Image, seed: int) -> None:
    """Whatever was hit: what is not listed is right, and the new store is sound."""
    rng = random.Random(seed)
    log = scanned(image)
    used = [(a, (log.shapes[i] & 0xFFFFFFFF) + 40) for i, a in enumerate(log.addresses)]
    used += [(a, LEASE_HEADER.size) for a in log.leases]
    for round_ in range(6):
        Path(path, "log").write_bytes(image.files["log"])
        for at, n in rng.sample(used, rng.choice((1, 2, 5, 12))):
            damage(path, "log", at + rng.randrange(n), 1 << rng.randrange(8))
        saved = mmpc.salvage(path, f"{dest}{round_}")
        listed = tuple(p.page for p in [*saved.older, *saved.lost] if p.page is not None)
        compare(f"{dest}{round_}", image.model, but=listed)


def test_the_new_place_must_be_empty(path: str, dest: str, image: Image) -> None:
    os.mkdir(dest)
    Path(dest, "mine").write_text("keep")
    with pytest.raises(FileExistsError):
        mmpc.salvage(path, dest)
    assert os.listdir(dest) == ["mine"]
    with pytest.raises(FileExistsError):
        mmpc.salvage(path, path)


def test_from_the_command_line(path: str, dest: str, image: Image) -> None:
    damage(path, "log", newest(image, 7) + 42)
    result = run("check", path, "--salvage", dest, "--json")
    assert (result.returncode, result.stderr) == (1, "")
    found = json.loads(result.stdout)
    assert [p["page"] for p in found["salvage"]["older"]] == [7]
    compare(dest, image.model, but=(7,))
    again = run("check", path, "--salvage", dest)
    assert (again.returncode, again.stdout) == (2, "")
