"""dump and load: everything comes back, bit for bit, and a dump that is not whole is noticed."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

import mmpc
from mmpc import codec
from mmpc.cli import lines
from support.children import Children
from support.commands import object_of, on_terminal, refused, run, sound

Open = Callable[..., mmpc.PageCache[Any]]

ARRAYS = [
    np.arange(6, dtype="<i4").reshape(2, 3),
    np.array([1.5, -0.0, np.nan, np.inf]),
    np.array(["2026-01-01", "NaT"], "M8[D]"),
    np.array([b"ab", b""], "S3"),
    np.array(["é", "x"], "U2"),
    np.zeros((0, 4), "u1"),
    np.array([True, False]),
    np.array([1 + 2j], "c8"),
    np.array([1, 2], ">i2"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**53 - 1, 2**53, -(2**53), 2**63, 2**64 - 1, -(2**63)),
    *(0.0, -0.0, 1.0, 1e300, math.inf, -math.inf, math.nan, 5e-324),
    *("", "plain", "\u0000\u2028\U0001f40d", "$bytes", b"", b"text", b"\xff\x00", b"a\x00b", "é\n".encode()),
    *(
        [],
        [1, [2, [b"x"]]],
        {},
        {"a": 1, "b": [None]},
        {"$utf8": "not bytes"},
        {1: 2, b"k": "v", "s": {}},
        {"": {"$": 1}},
    ),
    *ARRAYS,
    [ARRAYS[0], {"deep": ARRAYS[1]}],
]
ODD = [
    b"\xd1\x00\x01",  # an integer in more bytes than it needs
    struct.pack(">Bf", 0xCA, 1.5),  # single precision
    struct.pack(">BQ", 0xCB, 0x7FF8000000000001),  # a nan with a payload
    b"\x82\xa1a\x01\xa1a\x02",  # a key twice
    msgpack.packb(msgpack.Timestamp(5, 6)),
    b"\xd8\x49" + (2**100).to_bytes(16, "little", signed=True),
    b"\xd8\x49" + (-(2**127)).to_bytes(16, "little", signed=True),
    b"\xd8\x49" + (5).to_bytes(16, "little", signed=True),
    b"\xd9\x01a",
    b"\xc7\x03\x05abc",  # an ext that nobody knows
]


# ---- fragments


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_a_value_comes_back(value: object) -> None:
    payload = codec.encode(value)
    text = json.dumps(lines.written(payload), allow_nan=False)
    assert lines.read(json.loads(text)) == payload
    assert "$msgpack" not in text


@pytest.mark.parametrize("payload", ODD, ids=lambda payload: payload.hex())
def test_what_has_no_form_of_its_own_comes_back(payload: bytes) -> None:
    assert lines.read(json.loads(json.dumps(lines.written(payload), allow_nan=False))) == payload


def test_forms_that_people_meet() -> None:
    forms = [
        lines.written(codec.encode(v)) for v in (b"hi", b"\xff", 2**60, {1: b"x"}, np.array([1, 2], "<i8"), math.inf)
    ]
    assert forms[:4] == [{"$utf8": "hi"}, {"$bytes": "/w=="}, {"$int": str(2**60)}, {"$map": [[1, {"$utf8": "x"}]]}]
    assert forms[4] == {"$array": {"dtype": "<i8", "shape": [2], "data": "AQAAAAAAAAACAAAAAAAAAA=="}}
    assert forms[5] == {"$float": "7ff0000000000000"}
    assert lines.written(ODD[5]) == {"$int": str(2**100)}


def test_a_line_of_very_many_levels_is_damage(path: str, tmp_path: Path) -> None:
    build(path, *CASES["append"])
    head = sound("dump", path).splitlines(keepends=True)[0]
    bad = head + '{"page":0,"fragments":' + "[" * 100_000 + "]" * 100_000 + "}\n"
    status, said = refused("load", str(tmp_path / "again"), "-", data=bad.encode())
    assert (status, "damaged in line 2: JSON of far more than 100 levels" in said) == (1, True)


@pytest.mark.parametrize("levels", [99, 100, 101, 1000])
def test_what_is_nested_deeply_comes_back(levels: int, path: str, tmp_path: Path) -> None:
    """Programs that read JSON have limits; dump was one, from 500 levels on."""
    value: Any = 7
    mapped: Any = 7
    for _ in range(levels):
        value, mapped = [value], {"$": mapped}
    with mmpc.open(path, mmpc.LastWriteWins(), create=True) as pc:
        pids = [pc.allocate(each)[0] for each in (value, mapped)]
    text = sound("dump", path)
    assert ("$msgpack" in text) == (levels > 100)
    sound("load", str(tmp_path / "again"), "-", data=text.encode())
    assert sound("page", path, str(pids[0]), "--value")
    with mmpc.open(tmp_path / "again", mmpc.LastWriteWins()) as pc:
        assert [codec.encode(pc.get(pid).unwrap()) for pid in pids] == [codec.encode(value), codec.encode(mapped)]


def test_random_values_come_back(seed: int) -> None:
    rng = random.Random(seed)

    def value(depth: int) -> Any:
        if depth and rng.random() < 0.5:
            items = [value(depth - 1) for _ in range(rng.randrange(4))]
            if rng.random() < 0.5:
                return items
            return {rng.choice(["a", "$int", 7, b"k", "", "zz"]): item for item in items}
        return rng.choice([*VALUES, rng.randbytes(rng.randrange(40)), rng.getrandbits(63), rng.random()])

    for _ in range(500):
        payload = codec.encode(value(3))
        assert lines.read(json.loads(json.dumps(lines.written(payload), allow_nan=False))) == payload


@pytest.mark.parametrize(
    "form",
    [
        {"$utf8": 1},
        {"$bytes": "?"},
        {"$int": 5},
        {"$int": str(2**127)},
        {"$int": "x"},
        {"$float": "7f"},
        {"$map": [[1]]},
        {"$map": [[[], 1]]},
        {"$array": {"dtype": "O", "shape": [1], "data": ""}},
        {"$array": {"dtype": "<i8", "shape": [3], "data": "AQAAAAAAAAA="}},
        {"$array": {"dtype": "<i8", "shape": "x", "data": "AQAAAAAAAAA="}},
        {"$array": {"dtype": "<i8", "shape": [10**15], "data": ""}},
        {"$array": {"dtype": "<i8", "shape": "x", "data": ""}},
        {"$array": {"shape": [1]}},
        {"$new": 1},
        {"$utf8": "a", "b": 1},
        2**70,
    ],
    ids=str,
)
def test_what_was_not_written_by_a_dump_is_refused(form: object) -> None:
    with pytest.raises(ValueError, match="."):
        lines.read(form)


# ---- whole stores


class Pairs(mmpc.Materializer[Any]):
    """A user's own, which `dump` and `load` never see."""

    name = "pairs-7"

    def merge(self, fragments: Sequence[Any]) -> Any:
        merged: dict[str, Any] = {}
        for fragment in fragments:
            merged |= fragment
        return merged


CASES: dict[str, tuple[mmpc.Materializer[Any], list[list[Any]]]] = {
    "append": (
        mmpc.Append(),
        [[b"a", b"b\xff", b""], ["text", "more"], [[1, None], [b"x"]], [ARRAYS[0], ARRAYS[0]], [b"z" * 30_000]],
    ),
    "add": (mmpc.Add(), [[1, 2], [2**64 - 1, 2**64 - 1], [1.5, 2], [np.arange(3), np.arange(3)]]),
    "max": (mmpc.Max(), [[3, 9], ["a", "b"], [b"a"], [np.arange(4.0)], [math.inf, math.nan]]),
    "last": (mmpc.LastWriteWins(), [[value] for value in VALUES]),
    "union": (mmpc.Union(), [[{"a": 1}, {b"b": [ARRAYS[1]]}, {"a": None}], [{5: {}}]]),
    "own": (Pairs(), [[{"a": 1}, {"b": b"\xff"}], [{}]]),
}


def content(path: str, materializer: mmpc.Materializer[Any]) -> dict[int, Any]:
    """Each page's stored form, by page id, and whether it is free; as bytes, so that nan is equal."""
    with mmpc.open(path, materializer) as pc:
        found = {}
        for pid in range(2, pc.stats().pages):
            page = pc.get(pid)
            found[pid] = page.is_free() or [codec.encode(f) for f in pc.get_page_frags(pid)[1]]
        return found


def build(path: str, materializer: mmpc.Materializer[Any], pages: list[list[Any]]) -> None:
    with mmpc.open(path, materializer, create=True, segment_size=1 << 16) as pc:
        unused = [pc.allocate(pages[0][0]) for _ in range(3)]
        for first, *others in pages:
            pid, _key = pc.allocate(first)
            for fragment in others:
                pc.append(pid, fragment)
        pc.free(*unused[1])


@pytest.mark.parametrize("case", CASES)
def test_a_store_comes_back(case: str, path: str, tmp_path: Path) -> None:
    materializer, pages = CASES[case]
    build(path, materializer, pages)
    dump, again = str(tmp_path / "dump"), str(tmp_path / "again")
    assert sound("dump", path, "-o", dump) == ""
    found = object_of("load", again, dump)
    before = content(path, materializer)
    assert content(again, materializer) == before
    assert found["pages"] == len(before) + 2
    assert found["free"] == 1
    assert mmpc.verify(again).ok
    first, second = (sound("dump", where).splitlines() for where in (path, again))
    assert first[1:-1] == second[1:-1]
    head = json.loads(first[0])
    assert (head["materializer"], head["segment_size"]) == (materializer.name, 1 << 16)
    with mmpc.open(again, materializer) as pc:  # its ids and free pages are in use as in any store
        ids = set()
        for _ in range(20):
            ids.add(pc.allocate(pages[0][0])[0])
            pc.flush()  # a free id is used again in a later epoch
        assert ids == {3, *range(max(before) + 1, max(before) + 20)}


def test_what_the_core_merged_comes_back(path: str, tmp_path: Path) -> None:
    """Sums beyond 64 bits, which Python's encoder refuses."""
    with mmpc.open(path, mmpc.Add(), create=True, page_consolidation_threshold=2) as pc:
        pid, _key = pc.allocate(2**64 - 1)
        for _ in range(20):
            pc.append(pid, 2**64 - 1)
        total = pc.get(pid).unwrap()
    again = str(tmp_path / "again")
    sound("load", again, data=sound("dump", path).encode())
    with mmpc.open(again, mmpc.Add()) as pc:
        assert pc.get(pid).unwrap() == total == 21 * (2**64 - 1)


def test_a_dump_without_its_end_leaves_no_store(path: str, tmp_path: Path) -> None:
    build(path, *CASES["append"])
    whole = sound("dump", path).encode()
    again = str(tmp_path / "again")
    *most, last = whole.splitlines(keepends=True)
    lost = b"".join(most[:3] + most[4:]) + last
    changed = whole.replace(b'"text"', b'"tixt"')
    assert changed != whole
    for bad, why in [
        (b"".join(most), "cut short"),
        (whole[:-1], "cut short"),
        (whole[: len(whole) // 2], "cut short"),
        (lost, "its last line says"),
        (changed, "the checksum of its lines is wrong"),
        (whole + b"\n", "something follows"),
        (whole.replace(b'"page":5', b'"page":4'), "damaged in line"),
        (b"".join(most[:3]) + b"{]\n" + last, "damaged in line 4: no JSON"),
    ]:
        status, said = refused("load", again, data=bad)
        assert (status, why in said) == (1, True), said
        assert os.listdir(tmp_path) == ["store"]


def test_what_is_no_dump(path: str, tmp_path: Path) -> None:
    for bad, why in [
        (b"", "this is no dump"),
        (b"hello\n", "this is no dump"),
        (b'{"mmpc":1}\n', "this is no dump"),
        (b'{"mmpc":"dump","version":9}\n', "version 9, this mmpc reads version 1"),
        (b'{"mmpc":"dump","version":1,"codec":"other"}\n', "'other'"),
    ]:
        status, said = refused("load", path, data=bad)
        assert (status, why in said) == (2, True), said
    assert refused("load", str(tmp_path), str(tmp_path / "none")) == (
        2,
        f"{tmp_path / 'none'}: No such file or directory",
    )
    Path(path).mkdir()
    Path(path, "x").touch()
    assert refused("load", path)[0] == 2
    assert os.listdir(path) == ["x"]


def test_load_into_a_directory_that_is_there(path: str, tmp_path: Path) -> None:
    build(path, *CASES["append"])
    again = tmp_path / "again"
    again.mkdir()
    sound("load", str(again), data=sound("dump", path).encode())
    assert content(str(again), mmpc.Append()) == content(path, mmpc.Append())


def test_a_damaged_page_ends_the_dump(path: str, tmp_path: Path) -> None:
    build(path, *CASES["append"])
    base = object_of("page", path, "6")["records"][-1]
    with open(os.path.join(path, "log"), "r+b") as f:
        f.seek(base["address"] + 41)
        f.write(b"???")
    output = str(tmp_path / "dump")
    status, said = refused("dump", path, "-o", output)
    assert status == 1
    assert said.startswith("page 6 is damaged: ")
    assert "--salvage" in said
    assert os.listdir(tmp_path) == ["store"]
    done = run("dump", path)
    assert (done.returncode, '"end"' in done.stdout) == (1, False)


def test_a_dump_is_not_for_a_terminal(path: str) -> None:
    build(path, *CASES["append"])
    status, said = on_terminal("dump", path)
    assert (status, "give -o FILE" in said) == (2, True)


def test_each_page_is_of_one_moment(path: str, tmp_path: Path, children: Children) -> None:
    """A writer keeps two fragments of a page equal, and lets page b never be newer than a by more than one; with
    --closed all pages are of one moment.
    """
    with mmpc.open(path, mmpc.LastWriteWins(), create=True) as pc:
        a, key_a = pc.allocate([0, 0])
        b, key_b = pc.allocate([0, 0])

        def write() -> None:
            with mmpc.open(path, mmpc.LastWriteWins()) as mine:
                first, second, n = key_a, key_b, 0
                while True:
                    n += 1
                    first = mine.replace(a, first, [n, n])
                    second = mine.replace(b, second, [n, n])

        writer = children.start(write)
        for options in ([], ["--closed", "--temporary", str(tmp_path)]):
            for _ in range(3):
                found = [json.loads(line) for line in sound("dump", path, *options).splitlines()]
                pages = {line["page"]: line["fragments"] for line in found if "page" in line}
                (x, y), (v, w) = pages[a][-1], pages[b][-1]
                assert (x, v) == (y, w)
                if options:
                    assert 0 <= x - v <= 1
        writer.kill()


def test_numbers_and_names_come_along(path: str, tmp_path: Path) -> None:
    """What generate_id gave is not given again by the loaded store, and names lead to the same pages."""
    again = str(tmp_path / "again")
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _key = pc.allocate(b"root")
        pc.cas_root_in_meta("things", None, pid)
        last = max(pc.generate_id() for _ in range(100))
        sound("load", again, data=sound("dump", path).encode())
    with mmpc.open(again, mmpc.Append()) as pc:
        assert pc.meta_pid_for_name("things") == pid
        assert pc.generate_id() > last
