"""Materializers of a program's own, as tests need them. They pickle, so workers of every start method can have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmpc


class Tally(mmpc.Materializer[Any]):
    """Concatenates lists, and notes the number of fragments of each call of merge."""

    name = "test-tally-1"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def merge(self, fragments: Sequence[Any]) -> Any:
        self.calls.append(len(fragments))
        return [item for fragment in fragments for item in fragment]


class Sized(Tally):
    """Tally with a size of its own: 1,000 bytes for each item."""

    name = "test-sized-1"

    def size_in_bytes(self, fragment: Any) -> int:
        return 1000 * len(fragment)


class Moody(mmpc.Materializer[Any]):
    """Concatenates lists, and raises `error` while that is set."""

    name = "test-moody-1"
    error: BaseException | None = None

    def merge(self, fragments: Sequence[Any]) -> Any:
        if self.error is not None:
            raise self.error
        return [item for fragment in fragments for item in fragment]


class Named(mmpc.Materializer[Any]):
    """Concatenates lists under any name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def merge(self, fragments: Sequence[Any]) -> Any:
        return [item for fragment in fragments for item in fragment]


MAKE: dict[str, Any] = {
    "Append": mmpc.Append,
    "Add": mmpc.Add,
    "Max": mmpc.Max,
    "LastWriteWins": mmpc.LastWriteWins,
    "Union": mmpc.Union,
    "Tally": Tally,
    "Sized": Sized,
    "Moody": Moody,
}
