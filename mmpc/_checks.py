"""Arguments that are checked alike everywhere: the error names argument, value and bounds."""

from __future__ import annotations

import os


def check_int(name: str, value: object, low: int, high: int) -> None:
    """TypeError: no int; ValueError: out of bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int from {low} to {high}, not {value!r} ({type(value).__name__})")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")


def check_bool(name: str, value: object) -> bool:
    """The value. TypeError: neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r} ({type(value).__name__})")
    return value


def check_path(name: str, value: object) -> str:
    """The path, absolute. TypeError: none; ValueError: it is empty, or no path can be so."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be a str, bytes or os.PathLike, not {value!r} ({type(value).__name__})")
    path = os.fsdecode(value)
    if not path or "\0" in path:
        raise ValueError(f"{name} must be a path, not {path!r}; '.' is the current directory")
    return os.path.abspath(path)


def check_power(name: str, value: object, low: int, high: int) -> int:
    """The exponent of a power of two. TypeError: no int; ValueError: out of bounds, or no power of two."""
    check_int(name, value, low, high)
    assert isinstance(value, int)
    if value & (value - 1):
        raise ValueError(f"{name} must be a power of two from {low} to {high}, not {value}")
    return value.bit_length() - 1


def check_cleanup(threshold: object, skew: object) -> tuple[int, int]:
    """Both in percent."""
    if not isinstance(threshold, (float, int)) or isinstance(threshold, bool):
        what = f"{threshold!r} ({type(threshold).__name__})"
        raise TypeError(f"segment_cleanup_threshold must be a float from 0.01 to 0.99, not {what}")
    if not 0.01 <= threshold <= 0.99:
        raise ValueError(f"segment_cleanup_threshold must be from 0.01 to 0.99, not {threshold}")
    check_int("segment_cleanup_skew", skew, 0, 98)
    return round(threshold * 100), int(skew)  # type: ignore[call-overload]
