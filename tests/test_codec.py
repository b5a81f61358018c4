"""Fragments to bytes and back."""

from __future__ import annotations

import datetime
import math
import struct
import threading
from typing import Any

import msgpack
import numpy as np
import pytest

from mmpc import codec
from mmpc.errors import CorruptionError, FragmentTypeError


def ext(body: bytes, code: int = 78) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, body))


def array_body(dtype: bytes, shape: tuple[int, ...], data: bytes, *, version: int = 1, pad: int = 0) -> bytes:
    head = bytes([version, len(dtype), len(shape), pad]) + dtype
    return head + b"".join(struct.pack("<Q", n) for n in shape) + bytes(pad) + data


PLAIN = [
    None,
    True,
    0,
    -1,
    (1 << 64) - 1,
    -(1 << 63),
    1.5,
    "é",
    "",
    b"",
    b"\0",
    [],
    [1, [2]],
    {},
    {1: "a", b"b": 2},
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_are_what_msgpack_writes(value: Any) -> None:
    encoded = codec.encode(value)
    assert encoded == msgpack.packb(value, use_bin_type=True)
    for buffer in (encoded, bytearray(encoded), memoryview(encoded)):
        decoded = codec.decode(buffer)
        assert (decoded, type(decoded)) == (value, type(value))


def test_tuples_become_lists_and_numpy_scalars_numbers() -> None:
    value = (
        np.int64(3),
        np.float32(1.5),
        np.bool_(True),
        np.uint64((1 << 64) - 1),
        np.float64(2),
        bytearray(b"x"),
    )
    decoded = codec.decode(codec.encode(value))
    assert decoded == [3, 1.5, True, (1 << 64) - 1, 2.0, b"x"]
    assert [type(item) for item in decoded] == [int, float, bool, int, float, bytes]


DTYPES = [
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
    ">i4",
    ">f8",
    "S5",
    "U3",
    "M8[ns]",
    "M8[25s]",
    "m8[D]",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3), (3, 0, 2), (300,)])
def test_arrays_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    value = np.frombuffer(bytes(range(240)) * 64, "u4" if dtype == "U3" else dtype)[: math.prod(shape)]
    if dtype == "U3":
        value = np.full(math.prod(shape), "añ€")
    value = value.reshape(shape)
    encoded = codec.encode(value)
    for decoded in (codec.decode(encoded), codec.decode(memoryview(encoded)), codec.unpacker()(encoded)):
        assert (decoded.dtype, decoded.shape) == (value.dtype, value.shape)
        assert decoded.tobytes() == value.tobytes()
        assert decoded.flags.aligned
        assert not decoded.flags.writeable
    inside = codec.decode(codec.encode({"a": [value]}))["a"][0]
    assert inside.tobytes() == value.tobytes()
    assert inside.flags.aligned
    assert not inside.flags.writeable


def test_arrays_of_any_layout() -> None:
    square = np.arange(12).reshape(3, 4)
    for value in (square.T, square[:, ::2], np.asfortranarray(square), square[::-1]):
        assert np.array_equal(codec.decode(codec.encode(value)), value)


def test_an_array_shares_the_memory_of_bytes_and_of_nothing_else() -> None:
    encoded = codec.encode(np.arange(100))
    assert np.shares_memory(codec.decode(encoded), np.frombuffer(encoded, "u1"))
    buffer = bytearray(encoded)
    decoded = codec.decode(buffer)
    buffer[-8:] = b"\xff" * 8
    assert decoded[-1] == 99


@pytest.mark.parametrize("n", [*range(40), *range(220, 270), *range(65490, 65545), 100000])
def test_the_data_is_aligned_in_the_fragment(n: int) -> None:
    encoded = codec.encode(np.full(n, 7, "u1"))
    found = codec.array_payload(memoryview(encoded))
    assert found is not None
    dtype, shape, offset = found
    assert (dtype, shape, offset % 8) == ("|u1", (n,), 0)
    assert encoded[offset:] == b"\7" * n


def test_payload_helpers() -> None:
    assert codec.array_payload(memoryview(codec.encode([1]))) is None
    assert codec.array_payload(memoryview(b"")) is None
    assert codec.bin_payload(memoryview(b"")) is None
    assert codec.bin_payload(memoryview(codec.encode("text"))) is None
    for n in (0, 1, 255, 256, 65535, 65536):
        encoded = codec.encode(b"x" * n)
        found = codec.bin_payload(memoryview(encoded))
        assert found is not None
        assert encoded[found[0] :] == b"x" * found[1] == b"x" * n
        with pytest.raises(CorruptionError):
            codec.bin_payload(memoryview(encoded + b"x"))
    with pytest.raises(CorruptionError):
        codec.array_payload(memoryview(codec.encode(np.ones(3))[:-1]))


def test_sums_beyond_64_bits_are_read() -> None:
    for value in (1 << 64, -(1 << 127), (1 << 127) - 1):
        assert codec.decode(ext(value.to_bytes(16, "little", signed=True), 73)) == value


UNSUPPORTED: list[tuple[Any, str]] = [
    (object(), "object cannot be stored"),
    ({1, 2}, "set cannot be stored"),
    (1j, "complex"),
    (datetime.date(2000, 1, 1), "datetime.date"),
    (1 << 64, "65 bits"),
    (-(1 << 63) - 1, "64 bits"),
    ("\ud800", "surrogates"),
    (np.array([object()]), "dtype object"),
    (np.zeros(2, [("a", "i4")]), "dtype"),
    (np.zeros(2, "V4"), "dtype"),
    (np.zeros(2, "longdouble"), "dtype"),
    (np.ma.masked_array([1], [True]), "MaskedArray"),
    (np.datetime64(1, "s"), "datetime64"),
    (np.complex128(1), "complex128"),
]


@pytest.mark.parametrize(("value", "words"), UNSUPPORTED, ids=[words for _, words in UNSUPPORTED])
def test_what_cannot_be_stored_is_named(value: Any, words: str) -> None:
    for fragment in (value, [1, {"a": value}]):
        with pytest.raises(FragmentTypeError) as error:
            codec.encode(fragment)
        assert words in str(error.value)
    assert codec.encode([1]) == b"\x91\x01"


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(FragmentTypeError):
        codec.encode(endless)


HOSTILE = {
    "empty": b"",
    "truncated": b"\x93\x01",
    "two values": b"\x01\x01",
    "unassigned": b"\xc1",
    "not utf-8": b"\xa1\xff",
    "a list as key": b"\x81\x90\x01",
    "a map as key": b"\x81\x80\x01",
    "too deep": b"\x91" * 3000 + b"\x01",
    "promises": b"\xdd\xff\xff\xff\xff",
    "unknown ext": ext(b"x", 5),
    "timestamp": b"\xc7\x03\xffxxx",
    "short int128": ext(b"x" * 15, 73),
    "no header": ext(b"\1\3"),
    "version": ext(array_body(b"<i4", (1,), b"xxxx", version=2)),
    "object": ext(array_body(b"|O", (1,), b"x" * 8)),
    "object 8": ext(array_body(b"|O8", (1,), b"x" * 8)),
    "structure": ext(array_body(b"i4,i4", (1,), b"x" * 8)),
    "no dtype": ext(array_body(b"", (1,), b"x")),
    "native order": ext(array_body(b"=i4", (1,), b"xxxx")),
    "not ascii": ext(array_body("<i\u0664".encode(), (1,), b"xxxx")),
    "time unit": ext(array_body(b"<M8[yy]", (1,), b"x" * 8)),
    "size 0": ext(array_body(b"|S0", (1,), b"")),
    "too much data": ext(array_body(b"<i4", (1,), b"xxxxx")),
    "too little data": ext(array_body(b"<i4", (1,), b"xxx")),
    "overflow": ext(array_body(b"<i4", (1 << 62, 4), b"")),
    "overflow and zero": ext(array_body(b"<i4", (1 << 62, 0), b"")),
    "33 dimensions": ext(array_body(b"<i4", (1,) * 33, b"xxxx")),
    "pad beyond the end": ext(array_body(b"<i4", (1,), b"xxxx")[:3] + b"\xff<i4"),
}


@pytest.mark.parametrize("encoded", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_corruption(encoded: bytes) -> None:
    for wrapped in (encoded, b"\x91" + encoded):
        if encoded == b"\x01\x01":
            wrapped = encoded
        with pytest.raises(CorruptionError) as error:
            codec.decode(wrapped)
        assert (error.value.file, error.value.offset) == ("log", 0)


def test_every_change_of_one_byte_is_a_value_or_corruption() -> None:
    for sample in (
        np.arange(6, dtype="<i2").reshape(2, 3),
        np.ones(1, "<M8[ns]"),
        [{"a": np.ones(2)}, "é", 1.5],
    ):
        encoded = codec.encode(sample)
        for at in range(len(encoded)):
            for byte in range(256):
                damaged = encoded[:at] + bytes([byte]) + encoded[at + 1 :]
                try:
                    codec.decode(damaged)
                except CorruptionError:
                    pass
            with pytest.raises(CorruptionError):
                codec.decode(encoded[:at])


def test_threads_share_encode() -> None:
    """The hook for arrays gives the interpreter up in the middle of a fragment; no two calls mix."""
    values = [{"a": [np.full(50, i), i, {"b": np.full(3, i, "u1")}]} for i in range(8)]
    expected = [codec.encode(value) for value in values]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(300):
            if codec.encode(values[i]) != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_packers_that_have_grown_are_not_kept() -> None:
    codec.encode(b"x" * (codec.KEPT_BUFFER + 1))
    assert len(codec.encode(1)) == 1
    pack, unpack = codec.packer(), codec.unpacker()
    assert unpack(pack([1, np.int8(2)])) == [1, 2]
