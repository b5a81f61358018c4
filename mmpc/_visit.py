"""A handle to a store whose materializer the caller does not have: for commands that move bytes and decode none."""

from __future__ import annotations

import os

from . import _files, _store, errors
from ._open import NEVER
from .materializer import Materializer
from .pagecache import PageCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ._backup import Backup


class _Opaque(Materializer["Any"]):
    """Has the name that the store asks for, and merges nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def merge(self, fragments: Sequence[Any]) -> Any:
        raise errors.Unsupported(f"the materializer {self.name!r} is not here: values cannot be read")


def visit(path: str | os.PathLike[str], decodes: bool = False) -> PageCache[Any]:
    """Opens a store that is there, whatever its materializer; it recovers it if need be, as any open does.

    Chains are never consolidated by this handle, since nothing can be merged. `decodes`: fragments are read, so what
    they were compressed with must be here. Errors: those of `open`.
    """
    where = os.path.abspath(os.fsdecode(path))
    config = _files.read_config(where)
    if config is None:
        raise _store.absent(where)
    options = _store.Options(where, config.materializer, 0, NEVER, None, False, decodes=decodes)
    return PageCache(_Opaque(config.materializer), options, False, 0)


def backup(
    path: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Backup:
    """Copies the store in `path` into the directory `dest` while others write to it: `PageCache.backup`, for who has no
    handle. Errors: those of it, and of `open`.
    """
    with visit(path) as pc:
        return pc.backup(dest, progress=progress)
