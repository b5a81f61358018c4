"""The native materializers: C on encoded fragments against their twins on decoded ones, and damage."""

from __future__ import annotations

import math
import os
import random
import struct
import sys
from typing import Any

import msgpack
import numpy as np
import pytest

from mmpc import codec
from mmpc._native import ffi, lib
from mmpc.errors import CorruptionError, FragmentTypeError
from mmpc.materializer import NATIVE, Add, Append, LastWriteWins, Materializer, Max, Union

OK, SPACE, TYPE, BAD = range(4)
SEED = int(os.environ.get("MMPC_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
EDGES = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536]
BIG = 1 << 64


@pytest.fixture
def rng() -> random.Random:
    print(f"MMPC_SEED={SEED}")
    return random.Random(SEED)


# ---- the C functions in Python's words


def spans(fragments: list[bytes]) -> tuple[Any, Any]:
    kept = [ffi.from_buffer("uint8_t[]", fragment) for fragment in fragments]
    return ffi.new("mm_span[]", [(p, len(p)) for p in kept]), kept


def c_merge(kind: int, fragments: list[bytes], cap: int | None = None) -> tuple[int, bytes]:
    """(status, output), with a canary behind the room that C was given."""
    array, kept = spans(fragments)
    room = lib.mm_merge_bound(kind, array, len(fragments)) if cap is None else cap
    out = ffi.new("uint8_t[]", room + 16)
    ffi.buffer(out)[room:] = b"\xa5" * 16
    length = ffi.new("uint64_t *")
    status = lib.mm_merge(kind, array, len(kept), out, room, length)
    assert bytes(ffi.buffer(out)[room:]) == b"\xa5" * 16
    assert length[0] <= room
    return status, bytes(ffi.buffer(out, length[0]))


def c_class(kind: int, fragment: bytes) -> int:
    return lib.mm_merge_class(kind, ffi.from_buffer("uint8_t[]", fragment), len(fragment))


def c_cost(fragment: bytes) -> int:
    return lib.mm_merge_cost(ffi.from_buffer("uint8_t[]", fragment), len(fragment))


def valid(fragment: bytes) -> bool:
    return bool(lib.mm_msgpack_valid(ffi.from_buffer("uint8_t[]", fragment), len(fragment)))


def encode(value: Any) -> bytes:
    """codec.encode, and the native Add's form of integers beyond 64 bits."""
    if type(value) is int and not -(1 << 63) <= value < BIG:
        return b"\xd8I" + value.to_bytes(16, "little", signed=True)
    return codec.encode(value)


def same(a: Any, b: Any) -> bool:
    """Equal with equal types; NaN equals NaN; dicts in the same order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return (
            a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
        )
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict):
        return (
            [*a] == [*b] and [type(k) for k in a] == [type(k) for k in b] and all(same(a[k], b[k]) for k in a)
        )
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def check(m: Materializer[Any], values: list[Any]) -> Any:
    """C and the twin agree on `values`, in one step and in two, at the exact size, and on refusing."""
    encoded = [encode(value) for value in values]
    status, merged = c_merge(m.kind, encoded)
    try:
        expected = m.merge(values)
    except FragmentTypeError:
        assert status == TYPE, values
        return None
    assert status == OK, values
    assert valid(merged)
    assert same(codec.decode(merged), expected), values
    if not (isinstance(expected, float) and math.isnan(expected)) and not has_nan(expected):
        assert merged == encode(expected), values
    assert c_merge(m.kind, encoded, len(merged)) == (OK, merged)
    assert c_merge(m.kind, encoded, len(merged) - 1)[0] == SPACE
    for cut in range(1, len(values)):
        prefix = c_merge(m.kind, encoded[:cut])
        assert prefix[0] == OK
        assert same(codec.decode(c_merge(m.kind, [prefix[1], *encoded[cut:]])[1]), expected)
    return expected


def has_nan(value: Any) -> bool:
    """Whether bytes may differ for reasons of numpy: the bits of a NaN, the sign of a zero."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fc"


# ---- values


def number(rng: random.Random) -> int | float:
    pick = rng.randrange(6)
    if pick == 0:
        return rng.choice(
            [0, -1, -32, -33, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, BIG - 1]
        )
    if pick == 1:
        return rng.choice([-128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)])
    if pick == 2:
        return rng.choice([0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**53, 2.0**64, 1e308, 5e-324, -1.5])
    if pick == 3:
        return rng.choice([2**53, 2**53 + 1, -(2**53) - 1, 2**127 - 1, -(2**127), 2**100 + 1, 2**63 - 1])
    return rng.uniform(-1e6, 1e6) if pick == 4 else rng.randrange(-(1 << 40), 1 << 40)


def anything(rng: random.Random, depth: int = 3) -> Any:
    pick = rng.randrange(11 if depth else 8)
    if pick < 8:
        return rng.choice([None, True, 3, -7, 1 << 40, 1.25, "héllo", b"\0\xff" * rng.randrange(40)])
    if pick == 8:
        return {rng.choice("abcdef"): anything(rng, depth - 1) for _ in range(rng.randrange(5))}
    return [anything(rng, depth - 1) for _ in range(rng.randrange(6))]


def key(rng: random.Random) -> Any:
    n = rng.randrange(12)
    return rng.choice([n, -n, 1 << (n * 5), f"k{n}", b"k%d" % n, "long key " * n, f"k{n}", f"k{n}"])


def mapping(rng: random.Random) -> dict[Any, Any]:
    return {key(rng): rng.choice([None, anything(rng, 1)]) for _ in range(rng.randrange(8))}


def array(rng: random.Random, dtypes: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    dtype = np.dtype(rng.choice(dtypes.split()))
    raw = rng.randbytes(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(shape)


# ---- agreement


def test_append_agrees_with_its_twin(rng: random.Random) -> None:
    for _ in range(400):
        kind = rng.randrange(4)
        values: list[Any] = []
        for _ in range(rng.randrange(1, 8)):
            if kind == 0:
                values.append([anything(rng) for _ in range(rng.randrange(9))])
            elif kind == 1:
                values.append("añ€😀x"[rng.randrange(5) :] * rng.randrange(20))
            elif kind == 2:
                values.append(rng.randbytes(rng.randrange(120)))
            else:
                values.append(rng.choice([[], "", b"", [1]]))
        check(Append(), values)


def test_numbers_agree_with_their_twins(rng: random.Random) -> None:
    for _ in range(3000):
        values: list[Any] = [number(rng) for _ in range(rng.randrange(1, 7))]
        check(Add(), values)
        check(Max(), values)


def test_max_of_text_and_bytes_agrees_with_its_twin(rng: random.Random) -> None:
    for _ in range(500):
        words = ["".join(rng.choices("aé€😀\0", k=rng.randrange(5))) for _ in range(rng.randrange(1, 6))]
        check(Max(), words)
        check(Max(), [word.encode() for word in words])


def test_union_agrees_with_its_twin(rng: random.Random) -> None:
    for _ in range(2000):
        check(Union(), [mapping(rng) for _ in range(rng.randrange(1, 12))])


def test_last_write_wins_takes_anything(rng: random.Random) -> None:
    for _ in range(100):
        check(LastWriteWins(), [anything(rng) for _ in range(rng.randrange(1, 4))])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_arrays_agree_with_numpy(rng: random.Random) -> None:
    lanes = " ".join("|" + x if x in ("i1", "u1") else "<" + x for x in Max.lanes.split())
    for _ in range(300):
        shape = tuple(rng.randrange(5) for _ in range(rng.randrange(4)))
        seed = rng.random()
        alike = [array(random.Random(seed), lanes, shape) for _ in range(rng.randrange(1, 5))]
        values: list[Any] = [array(rng, alike[0].dtype.str, shape) for _ in alike]
        check(Add(), values)
        check(Max(), values)
        mixed: list[Any] = [array(rng, lanes, shape) for _ in range(2)]
        check(Add(), mixed)
        check(Max(), mixed)
    for dtype in ("<c8", "<c16"):
        check(Add(), [np.arange(6, dtype=dtype).reshape(2, 3) * 1j, np.ones((2, 3), dtype)])


def test_arrays_append_along_the_first_axis(rng: random.Random) -> None:
    for dtype in ("|b1", "<i4", ">f8", "<f2", "<c16", "|S3", "<U2", "<M8[ns]", "<m8[25s]", "|u1"):
        for tail in ((), (2,), (3, 0), (2, 2)):
            parts: list[Any] = [
                np.zeros((rng.randrange(4), *tail), dtype) for _ in range(rng.randrange(1, 5))
            ]
            check(Append(), parts)
    assert check(Append(), [np.zeros((1, 2)), np.zeros((1, 3))]) is None
    assert check(Append(), [np.zeros(1, "f4"), np.zeros(1, "f8")]) is None
    assert check(Append(), [np.float64(1) * np.ones(())]) is None


# ---- edges


@pytest.mark.parametrize("n", EDGES)
def test_headers_have_the_shortest_form(n: int) -> None:
    for left in {0, n // 2, n}:
        parts: list[list[Any]] = [
            [[7] * left, [None] * (n - left)],
            [b"x" * left, b"y" * (n - left)],
            ["x" * left, "y" * (n - left)],
        ]
        for values in parts:
            check(Append(), values)
        check(Append(), [np.ones(left, "u1"), np.zeros(n - left, "u1")])
        check(Union(), [dict.fromkeys(range(left), 1), {str(i): 1 for i in range(n - left)}])
    check(Max(), [b"x" * n, b"w" * n])
    check(Max(), ["x" * n])


@pytest.mark.parametrize("data", range(200, 300))
def test_the_data_of_an_array_is_aligned_in_its_fragment(data: int) -> None:
    merged = c_merge(1, [encode(np.ones(data - 10, "u1")), encode(np.ones(10, "u1"))])[1]
    found = codec.array_payload(memoryview(merged))
    assert found is not None
    assert found[:2] == ("|u1", (data,))
    assert found[2] % 8 == 0


def test_sums_are_exact_up_to_128_bits() -> None:
    assert check(Add(), [BIG - 1, 1]) == BIG
    assert check(Add(), [-(1 << 63), -1]) == -(1 << 63) - 1
    assert check(Add(), [BIG, -1]) == BIG - 1
    assert check(Add(), [(1 << 127) - 2, 1]) == (1 << 127) - 1
    assert check(Add(), [(1 << 127) - 1, 1]) is None
    assert check(Add(), [-(1 << 127), -1]) is None
    assert check(Add(), [(1 << 127) - 1, 1.5]) == 2.0**127
    assert c_merge(2, [encode(BIG - 1)] * 1000)[1] == encode((BIG - 1) * 1000)


def test_a_float_makes_the_sum_a_float_from_there_on() -> None:
    assert same(check(Add(), [1, 2, 0.5]), 3.5)
    assert same(check(Add(), [2**53, 1, 0.0]), float(2**53 + 1))
    assert same(check(Add(), [0.0, 2**53, 1]), 2.0**53)
    assert same(check(Add(), [-0.0]), -0.0)
    assert same(check(Add(), [-0.0, 0]), 0.0)
    assert math.isnan(check(Add(), [math.inf, -math.inf]))


def test_comparisons_are_exact() -> None:
    assert check(Max(), [2.0**53, 2**53 + 1]) == 2**53 + 1
    assert same(check(Max(), [2**53, 2.0**53]), 2**53)
    assert same(check(Max(), [1.0, 1]), 1.0)
    assert same(check(Max(), [-0.0, 0, 0.0]), -0.0)
    assert check(Max(), [2.0**127, (1 << 127) - 1]) == 2.0**127
    assert check(Max(), [-math.inf, -(1 << 127)]) == -(1 << 127)
    assert check(Max(), [-0.5, -1]) == -0.5
    assert check(Max(), [0, 0.5, -0.5]) == 0.5
    assert math.isnan(check(Max(), [1, math.nan, math.inf]))


def test_union_keeps_a_dicts_order() -> None:
    assert [*check(Union(), [{"a": 1, "b": 2}, {"a": 3}])] == ["a", "b"]
    assert [*check(Union(), [{"a": 1, "b": 2}, {"a": None}, {"a": 3}])] == ["b", "a"]
    assert check(Union(), [{"a": None}]) == {}
    assert check(Union(), [{}]) == {}
    assert check(Union(), [{"a": {"b": None}}]) == {"a": {"b": None}}
    assert check(Union(), [{1: 1, "1": 2, b"1": 3}, {b"1": None}]) == {1: 1, "1": 2}


def test_union_finds_a_key_in_whatever_form_it_was_written() -> None:
    short, long = b"\x81\x05\x01", b"\x81\xd3" + struct.pack(">q", 5) + b"\x02"
    assert c_merge(5, [short, long]) == (OK, b"\x81\x05\x02")
    assert c_merge(5, [b"\x81\xd9\x01a\x01", b"\x81\xa1a\x02"])[1] == b"\x81\xd9\x01a\x02"
    assert c_merge(5, [b"\x82\x05\x01\x05\xc0"]) == (OK, b"\x80")


def test_union_of_many_keys(rng: random.Random) -> None:
    keys = [rng.choice([rng.randrange(1 << 30), str(rng.random()), rng.randbytes(12)]) for _ in range(30000)]
    base = dict.fromkeys(keys, 1)
    check_values = [base, dict.fromkeys(keys[::3], None), dict.fromkeys(keys[::5], "new")]
    status, merged = c_merge(5, [encode(value) for value in check_values])
    assert (status, merged) == (OK, encode(Union().merge(check_values)))


# ---- classes


def test_classes_tell_apart_what_does_not_mix() -> None:
    samples: dict[int, list[Any]] = {
        1: [b"a", "a", [1], np.ones(3), np.ones((3, 2)), np.ones(3, "f4")],
        2: [1, np.ones(3), np.ones(4), np.ones(3, "i4")],
        3: [1, "a", b"a", np.ones(3), np.ones(4)],
    }
    for kind, values in samples.items():
        classes = [c_class(kind, encode(value)) for value in values]
        assert 0 not in classes
        assert len(set(classes)) == len(classes)
    for number_like in (0, -5, 1.5, BIG):
        assert c_class(2, encode(number_like)) == c_class(3, encode(number_like)) == c_class(2, b"\0")
    names = [
        "b1",
        "i1",
        "i2",
        "i4",
        "i8",
        "u1",
        "u2",
        "u4",
        "u8",
        "f2",
        "f4",
        "f8",
        "c8",
        "c16",
        "M8[ns]",
        "M8[s]",
        "m8[ns]",
        "M8[D]",
    ]
    assert len({c_class(1, encode(np.zeros(2, name))) for name in names}) == len(names)
    assert c_class(1, encode(np.ones((1, 2)))) == c_class(1, encode(np.ones((9, 2))))
    assert c_class(5, encode({})) == c_class(5, encode({"a": 1, 2: 3, b"x": None})) != 0


@pytest.mark.parametrize("materializer", NATIVE, ids=lambda m: type(m).__name__)
def test_class_0_and_check_refuse_the_same(materializer: Materializer[Any], rng: random.Random) -> None:
    arrays = [np.ones(2, dtype) for dtype in ["b1", "i1", ">i4", "f2", "f4", "c8", "S2", "U2", "M8[s]"]]
    values = [
        None,
        True,
        1,
        1.5,
        BIG - 1,
        "a",
        b"a",
        [],
        (1, 2),
        {},
        {1: 2},
        {True: 1},
        {1.5: 2},
        {None: 1},
        {(1,): 1},
    ]
    values += [{"a": None}, np.int8(3), np.float32(1), np.bool_(True), np.ones(()), *arrays]
    values += [anything(rng) for _ in range(200)]
    for value in values:
        fragment = codec.encode(value)
        status = c_merge(materializer.kind, [fragment])[0]
        try:
            materializer.check(value)
        except FragmentTypeError:
            assert c_class(materializer.kind, fragment) == 0
            assert status == TYPE
        else:
            assert c_class(materializer.kind, fragment) > 0
            assert status == OK


def test_classes_are_equal_where_merges_work(rng: random.Random) -> None:
    pool: list[Any] = [
        *range(-2, 3),
        1.5,
        "a",
        b"b",
        [1],
        {},
        {"a": 1},
        np.ones(2),
        np.ones(3),
        np.ones(2, "i2"),
    ]
    for _ in range(500):
        a, b = rng.choice(pool), rng.choice(pool)
        for kind in range(1, 6):
            classes = [c_class(kind, encode(a)), c_class(kind, encode(b))]
            status = c_merge(kind, [encode(a), encode(b)])[0]
            assert (status == OK) == (classes[0] == classes[1] != 0)


# ---- damage


SAMPLES: list[Any] = [
    [1, "two", b"three", 4.0, None, [5, {"six": 7}], -8, 300, 70000, 1 << 40, -300],
    {"a": 1, b"b": [2, 3], 5: None, -6: "x" * 40, 1 << 40: {"y": 1.5}},
    "text" * 20,
    b"bytes" * 60,
    -1,
    1 << 50,
    2.5,
    BIG + 1,
    np.arange(12, dtype="<i4").reshape(3, 4),
    np.ones((2, 2), "<f8"),
    np.zeros(3, "<M8[ns]"),
]


def damaged() -> list[bytes]:
    """Every truncation of every sample, every byte changed in a few ways, and one byte too many."""
    found: list[bytes] = []
    for sample in map(encode, SAMPLES):
        found += [sample[:n] for n in range(len(sample))] + [sample + b"\0"]
        for at in range(len(sample)):
            found += [
                sample[:at] + bytes([sample[at] ^ flip]) + sample[at + 1 :]
                for flip in (1, 2, 16, 64, 128, 255)
            ]
    return found


def test_damage_is_refused_or_is_another_value() -> None:
    """What C accepts, the codec decodes, but for text that is no UTF-8 and for arrays inside containers."""
    good = {m.kind: [encode(sample) for sample in SAMPLES if c_class(m.kind, encode(sample))] for m in NATIVE}
    for fragment in damaged():
        whole = valid(fragment)
        try:
            value = codec.decode(fragment)
        except CorruptionError:
            value = None
        else:
            assert whole or isinstance(value, msgpack.Timestamp), fragment
        assert c_cost(fragment) <= 112 + 160 * len(fragment)
        for kind in (1, 2, 3, 5):
            tag = c_class(kind, fragment)
            status, merged = c_merge(kind, [fragment])
            assert (status == OK) == (tag != 0), fragment
            assert whole or status in (BAD, TYPE)
            assert status != OK or valid(merged)
            for other in good[kind]:
                for pair in ([other, fragment], [fragment, other]):
                    status, merged = c_merge(kind, pair)
                    assert status in (OK, TYPE, BAD)
                    assert status != OK or (tag == c_class(kind, other) and valid(merged))


def test_noise_never_reads_or_writes_outside(rng: random.Random) -> None:
    for _ in range(5000):
        noise = [rng.randbytes(rng.randrange(1, 40)) for _ in range(3)]
        for kind in range(7):
            c_merge(kind, noise)
            c_merge(kind, noise, rng.randrange(8))
            c_class(kind, noise[0])
        c_cost(noise[0])
        valid(noise[0])


def test_nesting_ends_at_64() -> None:
    for depth, fits in ((64, True), (65, False)):
        fragment = b"\x91" * (depth - 1) + b"\x90"
        assert valid(fragment) is fits
        assert (c_class(1, fragment) != 0) is fits
        assert c_merge(1, [fragment, fragment])[0] == (OK if fits else BAD)
        inside = b"\x81\x01" + fragment[1:]
        assert (c_class(5, inside) != 0) is fits
        assert c_merge(5, [inside])[0] == (OK if fits else BAD)
    assert not valid(b"\x91" * 100000)
    assert c_cost(b"\x91" * 100000) >= 6_400_000


@pytest.mark.parametrize("head", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])
def test_headers_that_promise_too_much_are_refused_at_once(head: bytes) -> None:
    fragment = head + b"\xff\xff\xff\xff" + b"\0" * 100
    assert not valid(fragment)
    for kind in (1, 2, 3, 5):
        assert c_class(kind, fragment) == 0
        assert c_merge(kind, [fragment])[0] == BAD


def test_shapes_that_overflow_are_refused() -> None:
    def body(shape: tuple[int, ...], data: bytes = b"", dtype: bytes = b"<i8") -> bytes:
        head = bytes([1, len(dtype), len(shape), 0]) + dtype + b"".join(struct.pack("<Q", n) for n in shape)
        return msgpack.packb(msgpack.ExtType(78, head + data))

    assert c_class(1, body((2, 1), b"\0" * 16)) != 0
    for wrong in [
        body((1 << 61, 8)),
        body((1 << 63, 2), b"\0" * 8),
        body((0, 1 << 62)),
        body(((1 << 64) - 1,)),
        body((1,)),
        body((1,), b"\0" * 9),
        body((1,), b"\0" * 8, b"|O8"),
        body((1,), b"\0" * 8, b"|V8"),
        body((1,), b"\0" * 8, b"<i08"),
        body((1,) * 33, b"\0" * 8),
    ]:
        assert c_class(1, wrong) == 0
        assert c_merge(1, [wrong])[0] == BAD
        with pytest.raises(CorruptionError):
            codec.decode(wrong)
    half = body((1 << 59, 0))
    assert c_class(1, half) != 0
    assert c_merge(1, [half])[0] == OK
    assert c_merge(1, [half, half])[0] == TYPE


# ---- the rest


def test_the_bound_is_enough_and_not_much_more(rng: random.Random) -> None:
    for _ in range(300):
        values = [mapping(rng) for _ in range(3)]
        encoded = [encode(value) for value in values]
        array_of_spans, _kept = spans(encoded)
        assert lib.mm_merge_bound(5, array_of_spans, 3) == sum(map(len, encoded)) + 64
        assert c_merge(5, encoded)[0] == OK


def taken(value: Any) -> int:
    """Bytes of a value with what is in it, each with its collector's head and rounded as the allocator does."""
    size = sys.getsizeof(value) + 15 & ~15
    if isinstance(value, (list, dict)):
        size += 16 + sum(map(taken, value))
    return size + (sum(map(taken, value.values())) if isinstance(value, dict) else 0)


def test_the_cost_follows_cpython() -> None:
    """Never less than it takes, and seldom much more: what is charged bounds the memory of the object cache."""
    texts = ["x" * 100, "é" * 9, "ü" * 1000, "привет", "я" * 500, "🙂", "🙂" + "x" * 1000, "x" * 31, "日" * 77]
    values: list[Any] = [1 << 40, 1.5, b"", b"x" * 100, [], [1.5] * 1000, [[]] * 20, [{"a": 1.5}] * 9, {}, *texts]
    values += [{f"{i} {text}": text for i in range(n)} for n in (1, 5, 6, 11, 100) for text in ("v", "é", "🙂")]
    for value in values:
        assert taken(value) <= c_cost(encode(value)) <= 3 * taken(value), value
    assert c_cost(encode(5)) == 0
    assert 8000 <= c_cost(encode(np.ones(1000))) <= 8300


def test_nothing_to_merge_and_unknown_kinds_are_refused() -> None:
    assert c_merge(0, [b"\x01"])[0] == TYPE
    assert c_merge(6, [b"\x01"])[0] == TYPE
    assert lib.mm_merge(1, ffi.NULL, 0, ffi.NULL, 0, ffi.new("uint64_t *")) == TYPE
    assert c_class(0, b"") == c_class(4, b"junk") == 1
    assert c_class(9, b"\x01") == 0
