"""Any one thing wrong with a store at rest: what opens it gets exactly what was flushed, or a CorruptionError that
names file and offset; never a wrong value, a loss, a crash or a hang. And verify says so.

What cannot be noticed is listed here: UNNOTICED. MMPC_LONG=1 turns every bit of every header and field.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmpc
from mmpc._findings import Findings
from mmpc._lasting import Config, parse_config, read_marks
from mmpc._layout import (
    BLOCK,
    CONTROL_GLOBALS,
    CONTROL_SEGMENTS,
    CONTROL_SLOTS,
    GLOBALS,
    LEASE_HEADER,
    LEASE_SUMMED,
    MARK_SECTOR,
    WORDS_OFFSET,
    crc,
)
from mmpc._native import ffi, lib
from support import ruins
from support.children import ChildFailed, Children
from support.ruins import Image, make, padding, parts, read_all, trial, word, write_sparse

LONG = os.environ.get("MMPC_LONG") == "1"
BOOTS = ("same", "other")
PATIENCE = 30

Case = tuple[str, dict[str, "bytes | None"]]


@pytest.fixture(scope="module")
def folder() -> Iterator[str]:
    """In memory, where syncs are cheap; else as usual."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name:
        yield name


@pytest.fixture(scope="module")
def images(folder: str) -> dict[str, Image]:
    return {how: make(os.path.join(folder, how), how == "killed") for how in ("closed", "killed")}


class Bench:
    """Lays down damaged stores and judges what happens to them."""

    def __init__(self, image: Image, folder: str, boot: str, children: Children) -> None:
        self.image, self.boot, self.children = image, boot, children
        self.path = os.path.join(folder, "victim")
        self.failures: list[str] = []
        self.counts = {"right": 0, "error": 0, "sound": 0, "warning": 0, "damage": 0}

    def judge(self, what: str, changed: dict[str, bytes | None], reported: bool = True) -> tuple[str, str]:
        """`reported`: verify must have said something. It must in any case when a reader gets an error."""
        self.image.lay(self.path, changed)
        try:
            outcome, found, details = self.children.run(
                trial, self.path, self.image.model, self.boot, patience=PATIENCE
            )
        except ChildFailed as failed:
            self.failures.append(f"{what}: {str(failed).strip().splitlines()[-1]}")
            return "failed", ""
        self.counts[outcome] += 1
        self.counts[found] += 1
        if outcome == "error" and found != "damage":
            self.failures.append(f"{what}: readers get an error, verify says {found}: {details}")
        if outcome == "error" and any(d.startswith("config: ") for d in details) and "config" not in changed:
            self.failures.append(f"{what}: IncompatibleStore though config is whole: {details}")
        if reported and found == "sound":
            self.failures.append(f"{what}: verify says nothing")
        return outcome, found

    def done(self) -> None:
        print(self.counts)
        shutil.rmtree(self.path, ignore_errors=True)
        assert not self.failures, f"{len(self.failures)} cases:\n" + "\n".join(self.failures[:15])


@pytest.fixture(params=[(how, boot) for how in ("closed", "killed") for boot in BOOTS], ids="-".join)
def bench(
    request: pytest.FixtureRequest, images: dict[str, Image], folder: str, children: Children
) -> Iterator[Bench]:
    how, boot = request.param
    bench = Bench(images[how], folder, boot, children)
    yield bench
    bench.done()


def some_bits(at: int, length: int, rng: random.Random, every: int) -> Iterator[tuple[int, int]]:
    """(offset, bit): all bits in the long form, else one bit of every `every`-th byte."""
    for i in range(0, length, 1 if LONG else every):
        for bit in range(8) if LONG else (rng.randrange(8),):
            yield at + (i if LONG else min(i + rng.randrange(every), length - 1)), bit


def slow_if_long() -> pytest.MarkDecorator:
    return pytest.mark.slow if LONG else pytest.mark.filterwarnings("error")


pytestmark = slow_if_long()

# ---- nothing wrong


def test_what_is_whole_is_right_and_sound(bench: Bench) -> None:
    assert bench.judge("nothing", {}, reported=False) == ("right", "sound")


# ---- single bits


def test_every_bit_of_config(bench: Bench, children: Children) -> None:
    """No bit of config opens anything; all in one child, since a config that does not open changes nothing."""
    image = bench.image
    image.lay(bench.path)

    def all_bits() -> list[str]:
        if bench.boot == "other":
            os.environ["MMPC_BOOT_ID"] = "another boot"
        wrong, name = [], os.path.join(bench.path, "config")
        for at in range(len(image.files["config"])):
            for bit in range(8):
                with open(name, "r+b") as f:
                    f.write(image.flip("config", at, bit)["config"] or b"")
                try:
                    mmpc.open(bench.path, mmpc.Append())
                    wrong.append(f"bit {bit} of {at}: opens")
                except mmpc.CorruptionError as e:
                    if e.file != "config" or e.offset is None:
                        wrong.append(f"bit {bit} of {at}: {e}")
                except mmpc.IncompatibleStore:
                    pass
                try:
                    if mmpc.verify(bench.path).ok:
                        wrong.append(f"bit {bit} of {at}: verify says that it is sound")
                except mmpc.IncompatibleStore:
                    pass
        return wrong

    assert children.run(all_bits, patience=90) == []


def test_every_bit_of_the_marks(images: dict[str, Image], folder: str) -> None:
    """The core's reader and verify's agree, D never sinks, and every turned bit is told of."""
    for how, image in images.items():
        config = parse_config(image.files["config"])
        assert isinstance(config, Config)
        name = os.path.join(folder, "marks")
        write_sparse(name, image.files["marks"])
        with open(name, "r+b") as f:
            c, newest, r = ffi.new("mm_config *"), ffi.new("uint64_t *"), ffi.new("mm_result *")
            c.marks = f.fileno()
            ffi.memmove(c.uuid, config.uuid, 16)
            assert lib.mm_marks_newest(c, newest, r) == 0
            durable, step = int(newest[0]), 1 if LONG else 61
            for _what, at, length in parts(image)["marks"]:
                for i in range(8 * at + at // 512 % step, 8 * (at + length), step):
                    byte = image.files["marks"][i // 8]
                    os.pwrite(f.fileno(), bytes([byte ^ 1 << i % 8]), i // 8)
                    findings = Findings()
                    assert read_marks(f.fileno(), config.uuid, findings).durable == durable, (how, i)
                    assert lib.mm_marks_newest(c, newest, r) == 0, (how, i)
                    assert newest[0] == durable, (how, i)
                    assert findings.problems, (how, i)
                    os.pwrite(f.fileno(), bytes([byte]), i // 8)
        os.unlink(name)


def test_bits_of_a_mark(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    places = [at for _what, at, _n in parts(bench.image)["marks"]]
    for at in rng.sample(places, min(len(places), 6)):
        for offset in (0, 8, 12, 16, 24, 28, 32, 40, 400):
            bench.judge(f"mark at {at}+{offset}", bench.image.flip("marks", at + offset, rng.randrange(8)))


def test_bits_of_headers_in_the_log(bench: Bench, seed: int) -> None:
    """Of two segments, two leases, and two records of each kind, in groups and alone. The epoch of an end that is not
    there yet says nothing.
    """
    rng, seen = random.Random(seed), dict[str, int]()
    open_ends = [at for at, lease in ruins.scanned(bench.image).leases.items() if not lease.ended]
    unused = {at + LEASE_SUMMED + 8 + i for at in open_ends for i in range(8)}
    for what, at, length in parts(bench.image)["log"]:
        seen[what] = seen.get(what, 0) + 1
        if seen[what] <= 2:
            for offset, bit in some_bits(at, length, rng, 4 if "header" in what else 8):
                change = bench.image.flip("log", offset, bit)
                bench.judge(f"{what} at {at}: bit {bit} of {offset}", change, reported=offset not in unused)
    assert len(seen) == 9, seen


def test_bits_of_payloads(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    for what, at, length in rng.sample(parts(bench.image)["log payload"], 500 if LONG else 25):
        offset, bit = at + rng.randrange(length), rng.randrange(8)
        bench.judge(f"{what} at {at}: bit {bit} of {offset}", bench.image.flip("log", offset, bit))


def test_bits_that_nobody_uses(bench: Bench, seed: int) -> None:
    """Behind payloads and behind the last record of a lease: everything is right, and verify has nothing to say."""
    rng = random.Random(seed)
    for at, length in rng.sample(padding(bench.image), 12):
        change = bench.image.flip("log", at + rng.randrange(length), rng.randrange(8))
        assert bench.judge(f"unused at {at}", change, reported=False)[0] in ("right", "failed")
    change = bench.image.flip("log", 64 + rng.randrange(BLOCK - 64), rng.randrange(8))
    assert bench.judge("behind a segment header", change) == ("right", "warning")


def test_bits_of_a_snapshot(bench: Bench, seed: int) -> None:
    """It only makes a recovery shorter: every bit is told of, none changes what is read."""
    rng = random.Random(seed)
    for name, places in parts(bench.image).items():
        if name.startswith("snapshot-"):
            size = places[0][2]
            for offset in [*range(0, 88, 4), *(rng.randrange(size) for _ in range(10)), size - 1]:
                change = bench.image.flip(name, offset, rng.randrange(8))
                assert bench.judge(f"{name} {offset}", change)[0] in ("right", "failed")


def test_bits_of_control(bench: Bench, seed: int) -> None:
    """Most words only steer; what the others say is compared with the marks, the table and the slots. The test is what
    a reader gets: a bit that verify says nothing about changes nothing.
    """
    rng = random.Random(seed)
    image, control = bench.image, bench.image.files["control"]
    for offset in range(0, 240, 8):
        bench.judge(f"identity {offset}", image.flip("control", offset, rng.randrange(8)), reported=False)
    for name, offset in GLOBALS.items():
        for bit in range(0, 64, 1 if LONG else 3):
            change = image.flip("control", CONTROL_GLOBALS + offset + bit // 8, bit % 8)
            bench.judge(f"{name} bit {bit}", change, reported=False)
    for slot in range(2):
        for offset in (0, 24, 64, 72, 80, 88, 112, 120, 128):
            at = CONTROL_SLOTS + 1024 * slot + offset + rng.randrange(3)
            bench.judge(f"slot {slot}+{offset}", image.flip("control", at, rng.randrange(8)), reported=False)
    for segment in range(2):
        for offset in (0, 1, 3, 8, 12, 16, 24, 31, 32, 40):
            at = CONTROL_SEGMENTS + 64 * segment + offset
            bench.judge(f"segment {segment}+{offset}", image.flip("control", at, rng.randrange(8)), reported=False)
    assert len(control) > CONTROL_SEGMENTS


@pytest.mark.parametrize("word", ["epoch", "stable", "dirty", "table_pages", "max_pid", "segments", "log_size", "fill"])
def test_a_flush_after_damage_to_control(
    images: dict[str, Image], folder: str, children: Children, word: str, seed: int
) -> None:
    """The clock and the sizes decide what a flush covers, and where the next bytes go: after damage to them what was
    flushed before, and what is flushed then, survives a power loss; or the writer gets a CorruptionError.
    """
    rng, path, failures = random.Random(seed), os.path.join(folder, "victim"), []

    def write() -> int:
        try:
            ruins.kept.append(pc := mmpc.open(path, mmpc.Append()))
            pc.append(8, ["new"])
            made = pc.allocate(["made"])[0]
            assert image.model.get(made) is None, f"page {made} has two owners"
            before = Path(path, "marks").read_bytes()
            pc.flush()
            assert Path(path, "marks").read_bytes() != before, "nothing was flushed"
        except mmpc.CorruptionError:
            return 0
        return made

    def look(made: int) -> None:
        os.environ["MMPC_BOOT_ID"] = "another boot"
        found = read_all(path, image.model | {8: [*image.model[8], "new"], made: ["made"]})
        assert found == ("right", [])

    for image in images.values():
        at = CONTROL_GLOBALS + GLOBALS[word] if word in GLOBALS else CONTROL_SEGMENTS + 64 + 8
        for bit in range(64) if LONG else [*range(6), *rng.sample(range(6, 64), 6)]:
            image.lay(path, image.flip("control", at + bit // 8, bit % 8))
            try:
                if made := children.run(write, patience=PATIENCE):
                    children.run(look, made, patience=PATIENCE)
            except ChildFailed as failed:
                failures.append(f"bit {bit}: {str(failed).strip().splitlines()[-1]}")
    assert failures == []


def test_a_table_that_is_said_to_be_smaller(folder: str, children: Children) -> None:
    """Pages beyond would read as never allocated; ids would be handed out twice."""
    path = os.path.join(folder, "many")

    def write() -> None:
        with mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16) as pc:
            ruins.write_model(path, {pc.allocate([i])[0]: [i] for i in range(1100)})

    children.run(write)
    image = Image(path)
    bench = Bench(image, folder, "same", children)
    pages = word(image.files["control"], CONTROL_GLOBALS + GLOBALS["table_pages"])
    assert pages == 1024 + 8192
    change = image.flip("control", CONTROL_GLOBALS + GLOBALS["table_pages"] + 1, 13 - 8)  # 1024 are left
    assert bench.judge("table_pages", change) == ("right", "damage")
    bench.done()


def test_bits_of_the_other_volatile_files(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    for page in range(12):
        for _ in range(8 if LONG else 3):
            change = bench.image.flip("table", WORDS_OFFSET + 8 * page + rng.randrange(8), rng.randrange(8))
            bench.judge(f"head of page {page}", change, reported=bench.boot == "same")
    for name in ("table", "ids", "rts"):
        for offset in range(0, 32, 4):
            change = bench.image.flip(name, offset, rng.randrange(8))
            bench.judge(f"header of {name} {offset}", change, reported=bench.boot == "same")
    for _ in range(5):
        change = bench.image.flip("ids", WORDS_OFFSET + rng.randrange(8), rng.randrange(8))
        bench.judge("a hint", change, reported=False)


# ---- whole files


def names(image: Image) -> list[str]:
    return sorted(name for name in image.files if name not in ("lock", "open.lock"))


def test_files_cut_short(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    for name in names(bench.image):
        size = len(bench.image.files[name])
        cuts = {0, 1, 64, 511, 512, BLOCK, BLOCK + 1, size // 2, size - BLOCK, size - 512, size - 1}
        cuts |= {rng.randrange(size) for _ in range(40 if LONG else 4)}
        if name == "log":
            cuts |= {at + n for _w, at, _n in rng.sample(parts(bench.image)["log"], 8) for n in (0, 20)}
        for cut in sorted(c for c in cuts if 0 <= c < size):
            bench.judge(f"{name} cut to {cut} of {size}", {name: bench.image.files[name][:cut]}, reported=False)


def test_files_that_are_missing(bench: Bench) -> None:
    for name in bench.image.files:
        outcome, _found = bench.judge(f"{name} missing", {name: None}, reported=name in ("config", "log", "marks"))
        if name in ("config", "log", "marks", "lock"):
            assert outcome in ("error", "failed") or (name in ("marks",) and bench.boot == "same"), name


def test_files_of_another_store(bench: Bench, images: dict[str, Image]) -> None:
    others = [image for image in images.values() if image is not bench.image]
    for name in names(bench.image):
        theirs = [other.files[name] for other in others if name in other.files]
        for data in theirs:
            bench.judge(f"{name} of another store", {name: data}, reported=name in ("config", "log", "marks"))


# ---- a file put back as it was


@pytest.fixture(scope="module")
def lives(folder: str) -> tuple[Image, Image]:
    """One store at two moments of one life, and each time flushed: between them pages were changed, freed and made."""
    path = os.path.join(folder, "lives")

    def first() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16)
        model = {}
        for i in range(6):
            pid, _ = pc.allocate([i])
            model[pid] = [i]
        pc.flush()
        ruins.write_model(path, model)
        shutil.copytree(path, path + ".1")
        shutil.copy(path + ".model", path + ".1.model")
        for pid in (2, 3):
            pc.append(pid, ["more"])
            model[pid].append("more")
        pc.flush()
        ruins.write_model(path, model)
        os._exit(0)

    with Children() as children:
        assert children.start(first).wait() == 0
    return Image(path + ".1"), Image(path)


# (file, boot): what is older than the rest, and reads well. Whoever puts one of these back is believed.
UNNOTICED = {("table", "same")}


@pytest.mark.parametrize("boot", BOOTS)
def test_a_file_as_it_was_before(lives: tuple[Image, Image], boot: str, folder: str, children: Children) -> None:
    before, after = lives
    bench = Bench(after, folder, boot, children)
    assert bench.judge("nothing", {}, reported=False) == ("right", "sound")
    for name in names(after):
        changed = before.files[name] != after.files[name]
        outcome, found = bench.judge(f"{name} of before", {name: before.files[name]}, reported=False)
        if (name, boot) in UNNOTICED:
            assert outcome == "failed", "it is noticed now: take it off the list"
            assert "WRONG" in bench.failures.pop()
        if changed and name in ("log", "marks"):
            told = name == "marks" and outcome == "right"  # what flushed said in the log is as good as the newer mark
            assert found in ("damage", "warning") or told, name
    bench.done()


def test_verify_notices_an_older_table(lives: tuple[Image, Image], folder: str) -> None:
    """Readers believe it; verify, which reads the log, does not."""
    before, after = lives
    path = os.path.join(folder, "older")
    after.lay(path, {"table": before.files["table"]})
    report = mmpc.verify(path)
    assert {p.page for p in report.damage if p.file == "table"} == {2, 3}


# ---- leases that hold nothing


def test_a_lease_without_records_does_not_hide_damage_before_it(folder: str, children: Children) -> None:
    """Whoever took a lease and published nothing in it, since it died or lost, still names the one before: a bad record
    there is damage, though no record that counts follows.
    """
    path = os.path.join(folder, "hidden")

    def write() -> None:
        pc = mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 16, page_consolidation_threshold=200)
        pid, _ = pc.allocate([0])
        for i in range(100):  # the first lease has 4 KiB
            pc.append(pid, [i])
        pc.flush()
        ruins.write_model(path, {pid: list(range(100))})
        os._exit(0)

    children.start(write).wait()
    image = Image(path)
    log, sectors = ruins.scanned(image), parts(image)["marks"]
    first, second = sorted(log.leases)[:2]
    assert log.leases[second].previous == first
    model = [0, *range(sum(first < a < second for a in log.addresses) - 3)]  # but for pages 0, 1 and its base
    data, marks = bytearray(image.files["log"]), bytearray(image.files["marks"])
    data[second + LEASE_SUMMED : second + 4096] = bytes(4096 - LEASE_SUMMED)  # it has not ended
    config = parse_config(image.files["config"])
    assert isinstance(config, Config)
    for _what, at, _n in sectors:
        if word(marks, at + MARK_SECTOR.size) == second:
            marks[at + 56 : at + 60] = LEASE_HEADER.size.to_bytes(4, "little")
            marks[at + 8 : at + 12] = crc(marks[at + 12 : at + 512], crc(config.uuid)).to_bytes(4, "little")
    changed: dict[str, bytes | None] = {"log": bytes(data), "marks": bytes(marks)}
    image.model = {2: model}
    bench = Bench(image, folder, "other", children)
    assert bench.judge("nothing", changed, reported=False) == ("right", "sound")
    data[log.leases[first].end - 8] ^= 1
    assert bench.judge("the last record before", changed | {"log": bytes(data)}) == ("error", "damage")
    bench.done()
