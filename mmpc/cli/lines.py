"""The lines of a dump: JSON objects that carry every fragment without loss. docs/cli.md describes the format.

A fragment is written as the JSON of its value as long as that, read back and encoded, gives the very bytes that are
stored; else as these bytes. What JSON has not is an object with one key that begins with `$`:

    {"$utf8": "text"}       bytes that are this text in UTF-8
    {"$bytes": "base64"}    other bytes
    {"$int": "digits"}      an integer from 2^53 on
    {"$float": "hex"}       nan and infinities: 8 bytes, big-endian
    {"$map": [[k, v]]}      a map with keys that are no plain text
    {"$array": {"dtype": "<f8", "shape": [2], "data": "base64"}}
    {"$msgpack": "base64"}  a fragment as it is stored
"""

from __future__ import annotations

import base64
import binascii
import math
import struct

from .. import codec, errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
DEEPEST = 100  # containers in each other; programs that read JSON have limits
EXACT = 1 << 53  # below it every JSON reader keeps an integer
_INT128 = bytes((0xD8, codec.EXT_INT128))
_DOUBLE = struct.Struct(">d")


class Unwritable(Exception):
    """A value has no form in JSON here: it is written as the bytes that are stored."""


def written(payload: bytes) -> Any:
    """What is written for a fragment, from the bytes that are stored."""
    if payload[:2] == _INT128 and len(payload) == 18:
        value = int.from_bytes(payload[2:], "little", signed=True)
        if not -(1 << 63) <= value < 1 << 64:
            return {"$int": str(value)}
    try:
        value = codec.decode(payload)
        if codec.encode(value) == payload:
            return _form(value, DEEPEST)
    except (errors.CorruptionError, errors.FragmentTypeError, Unwritable):
        pass
    return {"$msgpack": _text(payload)}


def read(form: Any) -> bytes:
    """The bytes to be stored for what `written` gave. ValueError: it cannot have been written by it."""
    if isinstance(form, dict) and len(form) == 1:
        if "$msgpack" in form:
            return _data(form["$msgpack"])
        if "$int" in form and not -(1 << 63) <= (value := _integer(form["$int"])) < 1 << 64:
            try:
                return _INT128 + value.to_bytes(16, "little", signed=True)
            except OverflowError:
                raise ValueError("an integer of more than 128 bits") from None
    try:
        return codec.encode(_value(form))
    except errors.FragmentTypeError as e:
        raise ValueError(str(e)) from e


# ---- from values to JSON


def _form(value: Any, levels: int) -> Any:
    """`levels`: so many containers may lie in each other."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if -EXACT < value < EXACT else {"$int": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": _DOUBLE.pack(value).hex()}
    if isinstance(value, bytes):
        return _bytes_form(value)
    if isinstance(value, (list, dict)) and not levels:
        raise Unwritable(f"more than {DEEPEST} levels")
    if isinstance(value, list):
        return [_form(item, levels - 1) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _form(item, levels - 1) for key, item in value.items()}
        return {"$map": [[_form(key, levels - 1), _form(item, levels - 1)] for key, item in value.items()]}
    if type(value).__name__ == "ndarray":
        return {"$array": {"dtype": value.dtype.str, "shape": list(value.shape), "data": _text(value.tobytes())}}
    raise Unwritable(type(value).__name__)


def _bytes_form(value: bytes) -> dict[str, str]:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return {"$bytes": _text(value)}
    return {"$utf8": text} if all(c.isprintable() or c in "\n\t" for c in text) else {"$bytes": _text(value)}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ---- and back


def _value(form: Any) -> Any:
    if isinstance(form, list):
        return [_value(item) for item in form]
    if not isinstance(form, dict):
        return form
    name = next(iter(form), "")
    if not name.startswith("$"):
        return {key: _value(item) for key, item in form.items()}
    if len(form) != 1:
        raise ValueError(f"an object with {name!r} and other keys")
    return _special(name, form[name])


def _special(name: str, held: Any) -> Any:
    if name == "$utf8" and isinstance(held, str):
        return held.encode()
    if name == "$bytes":
        return _data(held)
    if name == "$int":
        return _integer(held)
    if name == "$float" and isinstance(held, str) and len(held) == 16:
        return _DOUBLE.unpack(bytes.fromhex(held))[0]
    if name == "$map" and isinstance(held, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in held):
        try:
            return {_value(key): _value(item) for key, item in held}
        except TypeError as e:
            raise ValueError(f"a key of a map: {e}") from None
    if name == "$array" and isinstance(held, dict) and held.keys() == {"dtype", "shape", "data"}:
        return _array(held["dtype"], held["shape"], _data(held["data"]))
    raise ValueError(f"an object with the key {name!r} that is not understood")


def _array(dtype: Any, shape: Any, data: bytes) -> Any:
    import numpy as np

    try:
        return np.frombuffer(data, np.dtype(dtype)).reshape(shape) if data else _nothing(dtype, shape)
    except (TypeError, OverflowError) as e:
        raise ValueError(f"an array of dtype {dtype!r} and shape {shape!r}: {e}") from None


def _nothing(dtype: Any, shape: Any) -> Any:
    """An array of no bytes: one of its lengths is 0, or it is of a type that has none."""
    import numpy as np

    if math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"an array of shape {shape!r} has data")
    return np.empty(shape, np.dtype(dtype))


def _data(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error) as e:
        raise ValueError(f"no base64: {e}") from None


def _integer(text: Any) -> int:
    if not isinstance(text, str) or len(text) > 41:
        raise ValueError(f"an integer is written as a text of digits, not {text!r:.60}")
    return int(text)
