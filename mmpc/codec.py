"""Fragments as bytes: msgpack, with numpy arrays and 128-bit sums as two ext types.

========  ======  ====================================================================================
ext type  letter  body
========  ======  ====================================================================================
78        N       an array: ``version=1 | dtype length | ndim | pad length`` (one byte each), dtype.str in
                  ASCII, ndim little-endian u64, pad of zero bytes, the data in C order
73        I       an integer beyond 64 bits, as only the native Add makes it: 16 bytes, two's
                  complement, little-endian
========  ======  ====================================================================================

The pad is the shortest one that puts the data on a multiple of 8 bytes when the array is the whole fragment.
csrc/merge_array.c reads and writes the same bytes. Nothing that is read can execute anything: the dtypes are
plain numbers, text and times, checked before numpy sees their name.

msgpack and numpy are imported when they are first needed.
"""

from __future__ import annotations

import sys

from .errors import CorruptionError, FragmentTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import numpy

    Buffer = bytes | bytearray | memoryview
    Pack = Callable[[object], bytes]
    Unpack = Callable[[Buffer], Any]

EXT_ARRAY = 78
EXT_INT128 = 73

ARRAY_VERSION = 1
ARRAY_HEAD = 4
MAX_NDIM = 32
MAX_ARRAY_BYTES = 1 << 62
ITEM_SIZES = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8),
    "c": (8, 16),
    "m": (8,),
    "M": (8,),
}

KEPT_BUFFER = 1 << 20  # a packer that has grown beyond this is not kept

_idle: list[Pack] = []
_unpack: Unpack | None = None


def packer() -> Pack:
    """A new `pack(fragment) -> bytes`, as fast as msgpack's own, for one caller at a time.

    Its hook for arrays runs Python code, so a second call may begin while one is under way; whoever shares it
    between threads must keep them apart (`encode` does). Errors are FragmentTypeError or what msgpack raises:
    call `encode` with the same fragment for the error that users should see.
    """
    import msgpack

    pack: Pack = msgpack.Packer(default=_pack_other, use_bin_type=True).pack
    return pack


def unpacker() -> Unpack:
    """`unpack(buffer) -> object`, msgpack's own with the hooks set, safe from any thread.

    On damaged bytes it raises CorruptionError or what msgpack raises: call `decode` with the same buffer for
    the error that users should see.
    """
    from functools import partial

    import msgpack

    return partial(msgpack.unpackb, ext_hook=_unpack_ext, raw=False, strict_map_key=False)


def encode(fragment: object) -> bytes:
    """One fragment as bytes; any thread.

    Tuples become lists, numpy scalars plain numbers. FragmentTypeError (a TypeError): something in it has no
    encoding, for example an object, a set, an integer beyond 64 bits, an array of objects.
    """
    try:
        pack = _idle.pop()
    except IndexError:
        pack = packer()
    try:
        encoded = pack(fragment)
    except FragmentTypeError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FragmentTypeError(f"a fragment of type {_type_name(fragment)} cannot be stored: {error}") from error
    if len(encoded) <= KEPT_BUFFER:
        _idle.append(pack)
    return encoded


def decode(buffer: Buffer) -> Any:
    """The object in a whole encoded fragment; any thread.

    Arrays are read-only. An array that is the whole of a `bytes` object shares its memory, any other owns a
    copy. CorruptionError: not one well-formed value that this version knows.
    """
    global _unpack
    if len(buffer) and 0xC7 <= buffer[0] <= 0xD8 and (found := array_payload(memoryview(buffer))) is not None:
        return _array(buffer, *found)
    if _unpack is None:
        _unpack = unpacker()
    try:
        return _unpack(buffer)
    except CorruptionError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _corrupt(f"a fragment of {len(buffer)} bytes does not decode: {error}") from error


def array_payload(payload: memoryview) -> tuple[str, tuple[int, ...], int] | None:
    """Where the data of an encoded array lies: (dtype.str, shape, offset); None: the payload is no array.

    The data reaches to the end of the payload. CorruptionError: an array, but its header is wrong.
    """
    if (extent := _ext_payload(payload)) is None:
        return None
    dtype, shape, offset = _array_header(payload[extent:])
    return dtype, shape, extent + offset


def bin_payload(payload: memoryview) -> tuple[int, int] | None:
    """(offset, length) of the bytes in an encoded `bytes` fragment; None: the payload is no `bytes`.

    CorruptionError: its length disagrees with the payload's.
    """
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(payload[0]) if len(payload) else None
    if width is None:
        return None
    offset = 1 + width
    length = int.from_bytes(payload[1:offset], "big")
    if len(payload) != offset + length:
        raise _corrupt(f"a bytes fragment of {len(payload)} bytes says that it holds {length}")
    return offset, length


def _corrupt(message: str) -> CorruptionError:
    return CorruptionError(message, file="log", offset=0)


def _type_name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


# ---- to bytes


def _pack_other(value: object) -> object:
    """msgpack's hook for what it does not know itself; integers out of its range come here too."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if type(value) is numpy.ndarray or type(value) is numpy.memmap:
            return _pack_array(value)
        if isinstance(value, numpy.bool_):
            return bool(value)
        if isinstance(value, numpy.integer):
            return int(value)
        if isinstance(value, numpy.floating):
            return float(value)
    if isinstance(value, int):
        raise FragmentTypeError(f"an integer of {value.bit_length()} bits cannot be stored: 64 are the most")
    raise FragmentTypeError(
        f"{_type_name(value)} cannot be stored: a fragment is made of None, bool, int, float, str, bytes, "
        "list, tuple, dict and numpy arrays; store the result of your own serialisation as bytes"
    )


def _pack_array(array: Any) -> object:
    import msgpack

    return msgpack.ExtType(EXT_ARRAY, b"".join((array_header(array), array.ravel().view("u1"))))


def array_header(array: Any) -> bytes:
    """The body of ext N up to the data. FragmentTypeError: a dtype or shape that is not stored."""
    dtype = array.dtype
    name: str = dtype.str
    if dtype.fields is not None or dtype.subdtype is not None or _item_size(name) != dtype.itemsize:
        raise FragmentTypeError(
            f"an array of dtype {dtype} cannot be stored: only bool, integers, floats, complex numbers, "
            "text, bytes and times of fixed size"
        )
    if array.ndim > MAX_NDIM:
        raise FragmentTypeError(f"an array of {array.ndim} dimensions cannot be stored: {MAX_NDIM} are the most")
    head = ARRAY_HEAD + len(name) + 8 * array.ndim
    pad = 0
    while (_ext_head(head + pad + array.nbytes) + head + pad) % 8:
        pad += 1
    shape = b"".join(n.to_bytes(8, "little") for n in array.shape)
    return bytes((ARRAY_VERSION, len(name), array.ndim, pad)) + name.encode("ascii") + shape + bytes(pad)


def _ext_head(length: int) -> int:
    """Bytes of msgpack's header of an ext with `length` bytes of body."""
    if length in (1, 2, 4, 8, 16):
        return 2
    return 3 if length < 1 << 8 else 4 if length < 1 << 16 else 6


# ---- from bytes


def _unpack_ext(code: int, body: bytes) -> object:
    if code == EXT_ARRAY:
        return _array(body, *_array_header(memoryview(body)))
    if code == EXT_INT128 and len(body) == 16:
        return int.from_bytes(body, "little", signed=True)
    raise _corrupt(f"a fragment holds an ext of type {code} with {len(body)} bytes, which this version does not know")


def _array(buffer: Buffer, dtype: str, shape: tuple[int, ...], offset: int) -> object:
    """The array of a checked header; on the memory of `buffer` if that is `bytes` and the data aligned."""
    import numpy as np

    array: np.ndarray[Any, Any] = np.ndarray(shape, _dtype(dtype), buffer, offset)
    if not (isinstance(buffer, bytes) and array.flags.aligned):
        array = array.copy()
        array.flags.writeable = False
    return array


def _dtype(name: str) -> numpy.dtype[Any]:
    import numpy as np

    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError) as error:
        raise _corrupt(f"an array of the unknown dtype {name!r}") from error
    if dtype.itemsize != _item_size(name):
        raise _corrupt(f"an array of the unknown dtype {name!r}")
    return dtype


def _ext_payload(payload: memoryview) -> int | None:
    """The offset of the body if the whole payload is an ext N."""
    if len(payload) < 3:
        return None
    lead = payload[0]
    if 0xD4 <= lead <= 0xD8:
        width, length = 0, 1 << (lead - 0xD4)
    elif 0xC7 <= lead <= 0xC9:
        width = 1 << (lead - 0xC7)
        length = int.from_bytes(payload[1 : 1 + width], "big")
    else:
        return None
    offset = 2 + width
    if len(payload) < offset or payload[offset - 1] != EXT_ARRAY:
        return None
    if len(payload) != offset + length:
        raise _corrupt(f"an array fragment of {len(payload)} bytes says that it holds {length}")
    return offset


def _array_header(body: memoryview) -> tuple[str, tuple[int, ...], int]:
    """(dtype.str, shape, offset of the data) of an ext N, with the data's length checked against both."""
    if len(body) < ARRAY_HEAD or body[0] != ARRAY_VERSION or body[2] > MAX_NDIM:
        raise _corrupt("an array with a damaged header")
    _, name_length, ndim, pad = body[:ARRAY_HEAD]
    shape_at = ARRAY_HEAD + name_length
    offset = shape_at + 8 * ndim + pad
    if len(body) < offset:
        raise _corrupt("an array with a truncated header")
    name = str(body[ARRAY_HEAD:shape_at], "latin-1")
    shape = tuple(int.from_bytes(body[at : at + 8], "little") for at in range(shape_at, offset - pad, 8))
    item = _item_size(name)
    if item == 0:
        raise _corrupt(f"an array of the unknown dtype {name!r}")
    most = size = item
    for n in shape:
        most *= n or 1
        size *= n
    if most > MAX_ARRAY_BYTES or size != len(body) - offset:
        raise _corrupt(f"an array of dtype {name} and shape {shape} with {len(body) - offset} bytes of data")
    return name, shape, offset


def _item_size(name: str) -> int:
    """The size of one item of a dtype.str; 0: it is not stored (objects, structures, platform floats)."""
    if len(name) < 3 or name[0] not in "<>|" or not name.isascii():
        return 0
    kind, digits, unit = name[1], name[2:], ""
    if kind in "mM":
        digits, bracket, unit = digits.partition("[")
        if bracket and not (unit[:-1].isalnum() and unit[-1:] == "]"):
            return 0
    if not digits.isdigit() or digits[0] == "0" or len(digits) > 9:
        return 0
    size = int(digits)
    if kind in "SU":
        return size * (4 if kind == "U" else 1)
    return size if size in ITEM_SIZES.get(kind, ()) else 0
