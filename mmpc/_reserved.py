"""What pages 0 and 1 may hold: roots of collections, and how far the numbers of `generate_id` may go."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

META, COUNTER = 0, 1
MAX_ID = 1 << 62  # MM_MAX_ID
MARGIN = 1 << 50  # more numbers than a life draws: what is added where the newest ceiling is lost


def are_roots(value: object) -> bool:
    """Whether a value of page 0 is a map from names to page ids."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and type(root) is int and 0 <= root < 1 << 40 for name, root in value.items()
    )


def ceiling(payload: bytes) -> int | None:
    """What a record of page 1 says; None: nothing that it may."""
    value = _unpacked(payload)
    return value if type(value) is int and 0 <= value <= MAX_ID else None


def encoded(number: int) -> bytes:
    """A number as a record of page 1 holds it."""
    import msgpack

    packed: bytes = msgpack.packb(number)
    return packed


def wrong_with(page: int, payload: bytes) -> str | None:
    """What is wrong with a value of page 0 or 1, if anything is."""
    if page == META:
        return None if are_roots(_unpacked(payload)) else "holds no roots of collections"
    return None if ceiling(payload) is not None else "holds no ceiling of numbers"


def _unpacked(payload: bytes) -> Any:
    import msgpack

    try:
        return msgpack.unpackb(payload)
    except (ValueError, TypeError):
        return None
