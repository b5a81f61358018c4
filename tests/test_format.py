"""docs/format.md says what csrc/layout.h says, and both say what is in a store."""

import random
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmpc
from mmpc._native import ffi, lib

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "format.md").read_text()
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
STRUCTS = [
    "mm_segment_header",
    "mm_segment_retired",
    "mm_lease_header",
    "mm_record",
    "mm_extent",
    "mm_run_header",
    "mm_mark_sector",
    "mm_snapshot_header",
    "mm_snapshot_entry",
    "mm_identity",
    "mm_globals",
    "mm_slot",
    "mm_segment",
    "mm_epoch_sample",
    "mm_segment_stamp",
    "mm_words_header",
    "mm_metrics_header",
    "mm_metrics_row",
    "mm_histogram_row",
]


SIZES = ("BUCKETS", "COUNTERS", "HISTOGRAMS", "SLOTS", "METRICS_FORM")  # that the fingerprint of metrics begins with

# ---- the checksum


def test_the_checksum_is_crc32c_at_every_length_and_place(seed: int) -> None:
    """Short tails, and long ones, which are summed three stripes at a time."""
    rng = random.Random(seed)
    data = rng.randbytes(10_000)
    lengths = [*range(34), *(3072 * k + d for k in (1, 2, 3) for d in (-1, 0, 1, 13)), rng.randrange(9000)]
    for length in lengths:
        at, start = rng.randrange(700), rng.getrandbits(32)
        found = lib.mm_crc32c(start, ffi.from_buffer(data)[at : at + length], length)
        assert found == crc(data[at : at + length], start), (length, at)


# ---- the page, as data


def rows(title: str) -> Iterator[list[str]]:
    """The cells of the first table under a heading, without its two head lines."""
    section = TEXT.split(f"# {title}\n", 1)[1]
    table = re.search(r"^\|.*(?:\n\|.*)*", section, re.MULTILINE)
    assert table, title
    for line in table.group().splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def fields(name: str) -> dict[str, tuple[int, int]]:
    """{field: (offset, size)} of a struct."""
    return {field: (int(offset), int(size)) for offset, size, field, *_ in rows(name)}


def part(name: str, data: bytes, at: int, field: str) -> bytes:
    """The bytes of a field."""
    offset, size = fields(name)[field]
    return data[at + offset : at + offset + size]


def number(name: str, data: bytes, at: int, field: str) -> int:
    return int.from_bytes(part(name, data, at, field), "little")


def record(data: bytes, at: int) -> dict[str, int]:
    """All bit fields of the record at an offset."""
    found = {}
    for word, bits, field, *_ in rows("bits of a record"):
        low, high = (int(bit) for bit in bits.split("-"))
        found[field] = number("mm_record", data, at, word) >> low & (1 << high - low + 1) - 1
    return found


# ---- checksums, by the page


def crc(data: bytes, seed: int = 0) -> int:
    register = seed
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


def seed(uuid: bytes, salt: bytes) -> int:
    return crc(salt, crc(uuid))


def body(found: dict[str, int]) -> int:
    """Bytes of payload and index."""
    return found["length"] + (found["inner"] if found["flags"] & 4 else 0)


def record_crc(data: bytes, at: int, address: int, start: int) -> int:
    payload = crc(data[at + 40 : at + 40 + body(record(data, at))], crc(struct.pack("<Q", address), start))
    return crc(data[at + 8 : at + 40], payload)


def commit(checksum: int) -> int:
    return (checksum ^ 0x9E3779B9) or 0xFFFFFFFF


# ---- the page and the header


def test_structs_have_no_gaps() -> None:
    for name in [*STRUCTS, "config"]:
        end = 0
        for field, (offset, size) in fields(name).items():
            assert offset == end, f"{name}.{field}"
            end = offset + size


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_page_is_the_header(tmp_path: Path) -> None:
    checks = []
    for name in STRUCTS:
        for field, (offset, size) in fields(name).items():
            member = f"{field}_line" if name == "mm_globals" else field  # a word and the rest of its line
            checks.append(f"offsetof({name}, {member}) == {offset}")
            checks.append(f"sizeof((({name} *)0)->{member}) == {size}")
        checks.append(f"sizeof({name}) == {sum(size for _, size in fields(name).values())}")
    checks += [f"{constant.strip('`')} == {value}" for constant, value, *_ in rows("Numbers")]
    program = '#include "layout.h"\n' + "".join(f'_Static_assert({check}, "{check}");\n' for check in checks)
    (tmp_path / "check.c").write_text(program)
    command = [str(COMPILER), "-std=gnu11", "-fsyntax-only", f"-I{ROOT / 'csrc'}", str(tmp_path / "check.c")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_bits_of_a_record_fill_their_words() -> None:
    used: dict[str, int] = {}
    for word, bits, *_ in rows("bits of a record"):
        low, high = (int(bit) for bit in bits.split("-"))
        assert low == used.get(word, 0)
        used[word] = high + 1
    assert used == dict.fromkeys(fields("mm_record"), 64)


# ---- the worked example


def example() -> Iterator[tuple[int, bytes, dict[str, int]]]:
    """(address, bytes, fields as the page gives them) of both records."""
    section = TEXT.split("### Worked example\n", 1)[1].split("\n## ", 1)[0]
    columns = list(rows("Worked example"))
    dumps = [bytes.fromhex(found) for found in re.findall(r"(?:^    [0-9a-f ]+\n)+", section, re.MULTILINE)]
    addresses = [int(address) for address in re.findall(r"at address (\d+)", section)]
    for i, (address, data) in enumerate(zip(addresses, dumps, strict=True)):
        yield address, data, {column[0]: int(column[1 + i], 0) for column in columns}


def test_the_worked_example() -> None:
    uuid, salt = (bytes.fromhex(found) for found in re.findall(r"`([0-9a-f]{32}|[0-9a-f]{16})`", TEXT))
    found = list(example())
    assert len(found) == 2
    for address, data, expected in found:
        assert record(data, 0) == expected
        checksum = record_crc(data, 0, address, seed(uuid, salt))
        assert (expected["crc"], expected["commit"]) == (checksum, commit(checksum))
    assert found[1][2]["prev"] * 8 == found[0][0]
    assert [data[42:47] for _, data, _ in found] == [b"hello", b", you"]


# ---- a store made now


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store whose page 2 is base, delta; flushed and closed."""
    path = tmp_path / "store"
    with mmpc.open(path, mmpc.Append(), create=True, segment_size=1 << 17) as pages:
        pid, _ = pages.allocate(b"hello")
        pages.append(pid, b" world")
        pages.free(*pages.allocate(b"gone"))
    return path


def test_files(store: Path) -> None:
    names = {cells[0].strip("`") for cells in rows("The files of a store")}
    there = {"snapshot-B" if path.name.startswith("snapshot-") else path.name for path in store.iterdir()}
    assert there <= names
    assert names - there <= {"open.lock"}
    assert store.stat().st_mode & 0o777 == 0o700


def test_config(store: Path) -> None:
    data = (store / "config").read_bytes()
    assert part("config", data, 0, "magic") == b"MMPCconf"
    assert number("config", data, 0, "format") == 5
    assert number("config", data, 0, "length") == len(data)
    assert number("config", data, 0, "crc") == crc(data[16:])
    assert number("config", data, 0, "segment_shift") == 17
    assert [number("config", data, 0, name) for name in ("incompat", "ro_compat", "compat")] == [0, 0, 0]
    names = b"".join(struct.pack("<I", len(name)) + name for name in (b"mmpc.append-1", b"msgpack-1"))
    assert data[72:] == names + struct.pack("<II", 0, 0)


def walk(log: bytes, uuid: bytes, size: int) -> Iterator[tuple[int, dict[str, int], bytes]]:
    """(address, fields, payload) of every record of the log, found as the page says."""
    for base in range(0, len(log), size):
        if part("mm_segment_header", log, base, "magic") != b"\0MMPCseg":
            continue
        assert number("mm_segment_header", log, base, "crc") == crc(log[base + 12 : base + 64])
        assert number("mm_segment_header", log, base, "number") * size == base
        assert part("mm_segment_header", log, base, "uuid") == uuid
        start = seed(uuid, part("mm_segment_header", log, base, "salt"))
        at, end = base + 4096, min(base + size, len(log))
        while at < end:
            if not lease_holds(log, at, start):
                at += 4096
                continue
            stop = at + number("mm_lease_header", log, at, "blocks") * 4096
            yield from records(log, at + 64, min(stop, end), start)
            at = stop


def lease_holds(log: bytes, at: int, start: int) -> bool:
    own = number("mm_lease_header", log, at, "address") == at
    return own and number("mm_lease_header", log, at, "crc") == crc(log[at + 4 : at + 48], start)


def records(log: bytes, at: int, stop: int, start: int) -> Iterator[tuple[int, dict[str, int], bytes]]:
    while at + 40 <= stop:
        found = record(log, at)
        if at + 40 + body(found) > stop or found["crc"] != record_crc(log, at, at, start):
            return
        yield at, found, log[at + 40 : at + 40 + found["length"]]
        at += (40 + body(found) + 7) // 8 * 8


NOBODY = (1 << 40) - 1  # the page of what a flush intended


def test_log_and_table(store: Path) -> None:
    config, log, table = ((store / name).read_bytes() for name in ("config", "log", "table"))
    uuid = part("config", config, 0, "uuid")
    newest: dict[int, tuple[int, dict[str, int], bytes]] = {}
    everything = {}
    for address, found, payload in walk(log, uuid, 1 << 17):
        assert found["commit"] == commit(found["crc"])
        everything[address] = found, payload
        before = newest.get(found["page"])
        if before is None or (found["wts"], found["place"]) > (before[1]["wts"], before[1]["place"]):
            newest[found["page"]] = address, found, payload
    assert {page: found["kind"] for page, (_, found, _) in newest.items()} == {0: 1, 1: 1, 2: 2, 3: 3, NOBODY: 4}
    assert newest.pop(NOBODY)[1]["prev"] == 0
    for page, (address, _, _) in newest.items():
        (head,) = struct.unpack_from("<Q", table, 4096 + 8 * page)
        assert (head & (1 << 42) - 1) * 8 == address
    delta = newest[2]
    assert delta[2] == b"\xc4\x06 world"
    assert everything[delta[1]["prev"] * 8][1] == b"\xc4\x05hello"
    assert newest[3][1]["length"] == 0
    with mmpc.open(store, mmpc.Append()) as pages:
        page = pages.get(2)
        assert (page.key.head & (1 << 42) - 1, page.key.wts) == (delta[0] // 8, delta[1]["wts"])
        assert page.value == b"hello world"
        assert pages.get(3).is_free()


def indexed(log: bytes, address: int) -> set[int]:
    """The blocks that the index of a record names."""
    found = record(log, address)
    start = address + 40 + found["length"]
    block, value, shift, blocks = found["prev"] * 8 // 4096, 0, 0, set()
    for byte in log[start : address + 40 + body(found)]:
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte & 128:
            continue
        blocks |= {block, block + (value & 1)}
        block += (value >> 2) if not value & 2 else -(value >> 2) - 1
        value = shift = 0
    assert not shift
    return blocks | {block}


def test_an_index_names_every_block_of_the_older_records(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with mmpc.open(tmp_path / "store", mmpc.Append(), create=True, page_consolidation_threshold=200) as pages:
        pids = [pages.allocate(b"base")[0] for _ in range(40)]
        for _ in range(300):
            pages.append(rng.choice(pids), bytes(rng.choice((30, 30, 3000, 5000))))
        log = (tmp_path / "store" / "log").read_bytes()
        complete = 0
        for pid in pids:
            address, blocks, found = (pages.get(pid).key.head & (1 << 42) - 1) * 8, set(), {"kind": 2}
            named = indexed(log, address) if record(log, address)["kind"] == 2 else set()
            while record(log, address)["kind"] == 2:
                address = record(log, address)["prev"] * 8
                found = record(log, address)
                blocks |= {address // 4096, min((address + 39 + found["length"]) // 4096, address // 4096 + 1)}
            assert named <= blocks
            complete += named == blocks
        assert complete > 20  # the longest ones end at 32 bytes
    assert mmpc.verify(tmp_path / "store").ok


def test_marks(store: Path) -> None:
    config, marks = ((store / name).read_bytes() for name in ("config", "marks"))
    uuid = part("config", config, 0, "uuid")
    epochs = []
    assert len(marks) == 8 << 20
    for at in range(0, len(marks), 512):
        if not any(marks[at : at + 512]):
            continue
        assert part("mm_mark_sector", marks, at, "magic") == b"MMPCmark"
        assert number("mm_mark_sector", marks, at, "crc") == crc(marks[at + 12 : at + 512], crc(uuid))
        slot, place = (number("mm_mark_sector", marks, at, field) for field in ("slot", "place"))
        assert 16 * slot + place == at // 512
        epochs.append(number("mm_mark_sector", marks, at, "epoch"))
    assert len(epochs) % 8 == 0
    with mmpc.open(store, mmpc.Append()) as pages:
        assert max(epochs) == pages.stable_lsn


def test_identity_and_words(store: Path) -> None:
    config, control = ((store / name).read_bytes() for name in ("config", "control"))
    assert part("mm_identity", control, 0, "magic") == b"MMPCctrl"
    assert number("mm_identity", control, 0, "crc") == crc(control[12:512])
    assert part("mm_identity", control, 0, "uuid") == part("config", config, 0, "uuid")
    for role, name in enumerate(("table", "ids", "rts"), 1):
        words = (store / name).read_bytes()
        assert part("mm_words_header", words, 0, "magic") == b"MMPCords"
        assert number("mm_words_header", words, 0, "role") == role
        assert part("mm_words_header", words, 0, "open_id") == part("mm_identity", control, 0, "open_id")
        assert part("mm_identity", control, 0, name)[8:16] == struct.pack("<Q", (store / name).stat().st_ino)


def test_metrics(store: Path) -> None:
    """What the page says is enough to find what was counted, and when."""
    control, metrics = ((store / name).read_bytes() for name in ("control", "metrics"))
    assert part("mm_metrics_header", metrics, 0, "magic") == b"MMPCmetr"
    assert part("mm_metrics_header", metrics, 0, "open_id") == part("mm_identity", control, 0, "open_id")
    names = re.findall(r"^    X\((\w+), (?:\"(\w+)\", )?", (ROOT / "csrc" / "metrics.h").read_text(), re.MULTILINE)
    counters, histograms = [n for n, unit in names if not unit], [n for n, unit in names if unit]
    folded = number("mm_metrics_header", metrics, 0, "fingerprint")
    constants = {constant.strip("`"): int(value) for constant, value, *_ in rows("Numbers")}
    sizes = struct.pack("<5Q", *(constants[f"MM_{name}"] for name in SIZES))
    assert folded & 0xFFFFFFFF == crc(b"".join(n.encode() + b"\0" for n in counters), crc(sizes))
    assert folded >> 32 == crc(b"".join(n.encode() + b"\0" for n in histograms), crc(sizes) ^ 1)
    row = struct.unpack_from("<62Q", metrics, 4096)
    assert (row[counters.index("allocates")], row[counters.index("appends")], row[counters.index("frees")]) == (2, 1, 1)
    at = 4096 + fields("mm_metrics_row")["histograms"][0] + 2688 * histograms.index("payload")
    buckets = struct.unpack_from("<332Q", metrics, at + fields("mm_histogram_row")["buckets"][0])
    assert {b if b < 16 else (8 + b % 8) << (b // 8 - 1): n for b, n in enumerate(buckets) if n} == {6: 1, 7: 1, 8: 1}
    assert number("mm_histogram_row", metrics, at, "sum") == 6 + 7 + 8
    assert 2**64 - 1 - number("mm_histogram_row", metrics, at, "least") == 6


def test_globals(store: Path) -> None:
    with mmpc.open(store, mmpc.Append()) as pages:
        stats = pages.stats()
        control = (store / "control").read_bytes()
        for name, value in [("epoch", stats.epoch), ("stable", stats.stable), ("max_pid", stats.pages)]:
            offset, _ = fields("mm_globals")[name]
            assert struct.unpack_from("<Q", control, 4096 + offset) == (value,)
        slots = [number("mm_slot", control, 12288 + 1024 * i, "state") & 255 for i in range(1024)]
        assert sum(slots) == 1
