"""A store is data: whatever its files hold, opening and reading it ends, soon, with right values or a clear error."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmpc
from support.children import ChildFailed, Children
from support.looks import contents
from support.sealed import numbers, seal

FILES = ["config", "log", "marks", "control", "table", "ids", "rts", "metrics", "lock", "open.lock"]
CLEAR = (mmpc.CorruptionError, mmpc.IncompatibleStore, mmpc.StoreBusy)
PATIENCE = 10

Model = dict[int, "list[int] | None"]


def build(path: str) -> Model:
    """A closed store of 30 pages of sealed fragments: short and long, consolidated, replaced, freed (None)."""
    shutil.rmtree(path, ignore_errors=True)
    model: Model = {}
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16) as pc:
        for i in range(30):
            pid, key = pc.allocate([])
            for n in range(i % 9 * 2):
                key = pc.append(pid, [seal(pid, n)])
            model[pid] = list(range(i % 9 * 2))
            if i % 5 == 4:
                pc.replace(pid, key, [seal(pid, 500)])
                model[pid] = [500]
            elif i % 7 == 6:
                pc.free(pid, key)
                model[pid] = None
    return model


class Victim:
    """A closed store whose files are damaged in place (the inodes stay: `control` goes on to be trusted) and mended."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fresh()

    def _fresh(self) -> None:
        self.model = build(self.path)
        self.bytes = contents(self.path)
        self._nodes = self._inodes()
        self._used: dict[str, list[int]] = {}

    def _inodes(self) -> dict[str, int]:
        return {name: os.lstat(os.path.join(self.path, name)).st_ino for name in os.listdir(self.path)}

    def mend(self) -> None:
        """Every file as it was; a new store if files were replaced."""
        if self._inodes() != self._nodes:
            self._fresh()
            return
        for name, data in self.bytes.items():
            self.write(name, data)

    def write(self, name: str, data: bytes) -> None:
        """Changes a file's bytes, not its inode."""
        with open(os.path.join(self.path, name), "r+b") as f:
            if f.read() != data:
                f.seek(0)
                f.truncate(len(data))
                f.write(data)

    def flipped(self, name: str, rng: random.Random, count: int) -> bytes:
        """The file's bytes with `count` bits flipped, mostly where something is."""
        data = bytearray(self.bytes[name])
        if name not in self._used:
            self._used[name] = [i for i, byte in enumerate(data) if byte] or list(range(len(data)))
        used = self._used[name]
        for _ in range(count):
            at = rng.choice(used) if rng.random() < 0.8 else rng.randrange(len(data))
            data[at] ^= 1 << rng.randrange(8)
        return bytes(data)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(str(tmp_path_factory.mktemp("hostile") / "store"))


@pytest.fixture
def mended(victim: Victim) -> Iterator[Victim]:
    victim.mend()
    yield victim
    victim.mend()


def look(path: str, model: Model, write: bool) -> str:
    """Opens, reads every page in every way, writes. Returns what happened; raises for a wrong value."""
    wrong: list[str] = []
    seen: set[str] = set()

    def attempt(verb: Callable[[], Any]) -> Any:
        try:
            return verb()
        except CLEAR as error:
            assert str(error)
            seen.add(type(error).__name__)
            return None

    pc = attempt(lambda: mmpc.open(path, mmpc.Append()))
    if pc is None:
        return "refused: " + " ".join(seen)
    for pid, expected in model.items():
        page = attempt(lambda: pc.get(pid))
        if page is None:
            continue
        if expected is None:
            if not page.is_free():
                wrong.append(f"freed page {pid} reads as {page}"[:200])
        elif not page.is_materialized():
            wrong.append(f"page {pid} reads as {page}")
        elif numbers(pid, page.value) != expected:
            wrong.append(f"page {pid} reads {numbers(pid, page.value)}, not {expected}")
        if expected is not None and (frags := attempt(lambda: pc.get_page_frags(pid))) is not None:
            if numbers(pid, [x for f in frags[1] for x in f]) != expected:
                wrong.append(f"page {pid} has other fragments")
        attempt(lambda: pc.get_page_rts(pid))
    attempt(lambda: pc.get(0))
    attempt(lambda: pc.get(1))
    attempt(lambda: pc.get(1 << 30))
    attempt(pc._check)
    attempt(pc.stats)
    assert not wrong, "; ".join(wrong[:5])
    if write:
        alter(pc, model, attempt)
    attempt(pc.close)
    return "read: " + " ".join(sorted(seen))


def alter(pc: mmpc.PageCache[Any], model: Model, attempt: Callable[[Callable[[], Any]], Any]) -> None:
    """Writes to a damaged store: what works is read back right."""
    for pid, expected in model.items():
        if expected is None:
            continue
        if attempt(lambda: pc.append(pid, [seal(pid, 1000)])) is not None:
            page = attempt(lambda: pc.get(pid))
            assert page is None or numbers(pid, page.unwrap()) == [*expected, 1000]
    for i in range(30):
        made = attempt(lambda: pc.allocate([b"mine"]))
        if made is not None:
            assert model.get(made[0]) is None, f"page {made[0]} has two owners"
            page = attempt(lambda: pc.get(made[0]))
            assert page is None or page.unwrap() == [b"mine"], i
    attempt(pc.flush)


def judge(victim: Victim, children: Children, what: str, failures: list[str], write: bool = True) -> None:
    try:
        children.run(look, victim.path, victim.model, write, patience=PATIENCE)
    except ChildFailed as failed:
        failures.append(
            f"{what}: {str(failed).strip().splitlines()[0]} {str(failed).strip().splitlines()[-1]}"
        )


def none(failures: list[str]) -> None:
    assert not failures, f"{len(failures)} cases:\n" + "\n".join(failures[:12])


def test_the_undamaged_store_reads_right(mended: Victim, children: Children) -> None:
    assert children.run(look, mended.path, mended.model, False) == "read: "
    mended.mend()
    assert children.run(look, mended.path, mended.model, True) == "read: "


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "zeros", "random", "ones", "longer"])
def test_a_whole_file_of_nonsense(
    mended: Victim, children: Children, seed: int, name: str, damage: str
) -> None:
    data = mended.bytes[name]
    rng = random.Random(seed)
    failures: list[str] = []
    if damage == "missing":
        os.unlink(os.path.join(mended.path, name))
    else:
        new = {
            "empty": b"",
            "zeros": bytes(len(data)),
            "random": rng.randbytes(len(data) or 4096),
            "ones": b"\xff" * len(data),
            "longer": data + rng.randbytes(70_000),
        }[damage]
        mended.write(name, new)
    judge(mended, children, f"{name} {damage}", failures)
    none(failures)


@pytest.mark.parametrize("name", [name for name in FILES if "lock" not in name])
def test_a_file_cut_short_anywhere(mended: Victim, children: Children, seed: int, name: str) -> None:
    rng = random.Random(seed)
    failures: list[str] = []
    size = len(mended.bytes[name])
    cuts = {
        1,
        7,
        16,
        40,
        4095,
        4096,
        4097,
        size // 2,
        size - 4096,
        size - 1,
        *(rng.randrange(size) for _ in range(6)),
    }
    for cut in sorted(c for c in cuts if 0 < c < size):
        mended.mend()
        mended.write(name, mended.bytes[name][:cut])
        judge(mended, children, f"{name} cut to {cut} of {size}", failures)
    none(failures)


def test_config_with_any_one_byte_changed_is_refused(mended: Victim, children: Children) -> None:
    def all_of_them() -> list[str]:
        wrong = []
        data = mended.bytes["config"]
        for at in range(len(data)):
            for change in (1, 0x80, 0xFF):
                mended.write("config", data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
                try:
                    mmpc.open(mended.path, mmpc.Append()).close()
                except (mmpc.CorruptionError, mmpc.IncompatibleStore):
                    continue
                wrong.append(f"byte {at} ^ {change:#x}")
        return wrong

    none(children.run(all_of_them))


@pytest.mark.parametrize(
    ("name", "cases"),
    [("log", 60), ("table", 60), ("control", 60), ("ids", 20), ("rts", 10), ("marks", 20), ("metrics", 10)],
)
def test_flipped_bits(mended: Victim, children: Children, seed: int, name: str, cases: int) -> None:
    rng = random.Random(seed)
    failures: list[str] = []
    for i in range(cases):
        mended.mend()
        count = rng.choice([1, 1, 2, 10])
        mended.write(name, mended.flipped(name, rng, count))
        judge(
            mended,
            children,
            f"{name} case {i}, {count} bits",
            failures,
            write=name in ("log", "table", "rts"),
        )
    none(failures)


@pytest.mark.parametrize("name", ["log", "control", "marks"])
def test_flipped_bits_under_another_boot(mended: Victim, children: Children, seed: int, name: str) -> None:
    """Recovery reads everything: what is damaged is an error, or provably newer than the last flush."""
    rng = random.Random(seed)
    failures: list[str] = []

    def elsewhere(path: str, model: Model) -> str:
        os.environ["MMPC_BOOT_ID"] = "another boot"
        return look(path, model, True)

    for i in range(25):
        mended.mend()
        mended.write(name, mended.flipped(name, rng, rng.choice([1, 1, 2, 10])))
        try:
            children.run(elsewhere, mended.path, mended.model, patience=PATIENCE)
        except ChildFailed as failed:
            lines = str(failed).strip().splitlines()
            failures.append(f"{name} case {i}: {lines[0]} {lines[-1]}")
    none(failures)


def test_two_pages_that_swap_their_head_words(mended: Victim, children: Children) -> None:
    """A head word that names a whole record of another page is damage, not that page's value."""
    table = bytearray(mended.bytes["table"])
    used = [at for at in range(0, len(table) - 7, 8) if any(table[at : at + 8])]
    failures: list[str] = []
    for a, b in zip(used[-20:-1:2], used[-19::2], strict=False):
        mended.mend()
        swapped = bytearray(table)
        swapped[a : a + 8], swapped[b : b + 8] = table[b : b + 8], table[a : a + 8]
        mended.write("table", bytes(swapped))
        judge(mended, children, f"words at {a} and {b}", failures)
    none(failures)


def test_files_of_two_stores_mixed(mended: Victim, children: Children, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    build(other)
    theirs = contents(other)
    failures: list[str] = []
    for name in ("config", "log", "marks", "control", "table", "ids", "rts"):
        mended.mend()
        mended.write(name, theirs[name])
        try:
            children.run(look, mended.path, mended.model, False, patience=PATIENCE)
        except ChildFailed as failed:
            failures.append(f"{name}: {str(failed).strip().splitlines()[-1]}")
    none(failures)


def test_damage_is_named_by_file_and_offset(mended: Victim, children: Children) -> None:
    """The error of a page whose newest record has a flipped bit names 'log' and a place in it."""

    def find() -> int:
        found = 0
        data = mended.bytes["log"]
        for pid, expected in mended.model.items():
            if not expected:
                continue
            at = data.find(seal(pid, expected[-1]))
            assert at > 0
            mended.write("log", data[: at + 8] + bytes([data[at + 8] ^ 4]) + data[at + 9 :])
            pc = mmpc.open(mended.path, mmpc.Append())
            with pytest.raises(mmpc.CorruptionError) as caught:
                pc.get(pid)
            assert caught.value.file == "log"
            assert caught.value.offset is not None
            assert abs(caught.value.offset - at) < 1 << 16
            assert str(caught.value.offset) in str(caught.value)
            with pytest.raises(mmpc.CorruptionError):
                pc._check()
            found += 1
            if found == 5:
                return found
            pc.close()
        return found

    assert children.run(find) == 5
