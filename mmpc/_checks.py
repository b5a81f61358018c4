"""Arguments that are checked alike everywhere: the error names argument, value and bounds."""

from __future__ import annotations


def check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")


def check_cleanup(threshold: object, skew: object) -> tuple[int, int]:
    if not isinstance(threshold, (float, int)) or isinstance(threshold, bool):
        raise TypeError(f"segment_cleanup_threshold must be a float, not {type(threshold).__name__}")
    if not 0.01 <= threshold <= 0.99:
        raise ValueError(f"segment_cleanup_threshold must be from 0.01 to 0.99, not {threshold}")
    check_int("segment_cleanup_skew", skew, 0, 98)
    return round(threshold * 100), int(skew)  # type: ignore[call-overload]


def check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value
