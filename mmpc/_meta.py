"""Page 0: named collections and the page that each begins with."""

from __future__ import annotations

from . import errors
from ._checks import check_int
from ._native import ffi, lib
from ._reserved import are_roots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._face import Meta, PagePtr
    from .tx import Tx

_PAGES = 2**40


class Collections:
    """The verbs of page 0, for a handle: it inherits them.

    The page is one map, so a change rewrites all of it; it is meant for hundreds of names, not for data.
    """

    __slots__ = ()

    def meta(self, tx: Tx | None = None) -> dict[str, int]:
        """Names of collections and the page ids of their roots, as they stand: a dict of the caller's own.

        Errors: CorruptionError, and those of `get`.
        """
        roots: dict[str, int] = self._roots(tx).value
        return roots

    def meta_pid_for_name(self, name: str, tx: Tx | None = None) -> int:
        """The page id of the root of a collection. Errors: CollectionNotFound, and those of `meta`."""
        _check_name(name)
        roots = self.meta(tx)
        if name not in roots:
            raise errors.CollectionNotFound(f"no collection {name!r}: cas_root_in_meta(name, None, pid) adds one")
        return roots[name]

    def cas_root_in_meta(self, name: str, old: int | None, new: int | None, tx: Tx | None = None) -> None:
        """Makes page `new` the root of a collection, if `old` is now; None stands for no collection: as `old` it adds
        one, as `new` it removes it.

        Changes of other names meanwhile are no conflict: it tries again.  Whether there are such pages is the caller's
        to know.  Visible to every process on return, durable with the next flush.

        Errors: Conflict (`current`: the root as it is, or None; `rejected`: `new`), FragmentTooLarge (all names and
        roots together are one fragment), and those of `replace`.
        """
        _check_name(name)
        for what, root in (("old", old), ("new", new)):
            if root is not None:
                check_int(what, root, 0, _PAGES - 1)
        while True:
            page = self._roots(tx)
            found = page.value.pop(name, None)
            if found != old:
                raise errors.Conflict(f"the root of collection {name!r} is {found}, not {old}", found, new)
            if new == old:
                return
            if new is not None:
                page.value[name] = new
            if self._replace_roots(page.key, page.value):
                return

    def _roots(self, tx: Tx | None) -> Meta:
        handle: Any = self
        page: Any = handle.get(0, tx)
        if getattr(page, "key", None) is None or not are_roots(getattr(page, "value", None)):
            raise errors.CorruptionError("page 0 does not hold the roots of collections", file="log", offset=0)
        return page  # type: ignore[no-any-return]

    def _replace_roots(self, key: PagePtr, roots: dict[str, int]) -> bool:
        """False: somebody else changed the page since it was read."""
        from . import codec

        handle: Any = self
        payload, r = codec.encode(roots), ffi.new("mm_result *")
        compress = handle._compression.compress
        frame = compress(payload) if compress is not None else None
        k = ffi.new("mm_key *", {"pid": 0, "head": key.head, "wts": key.wts, "lsn": key.last_lsn})
        while True:
            handle._here()
            mm = handle._attachment.mm
            if frame is not None:
                status = lib.mm_write_compressed(mm, lib.MM_WRITE_META, k, 0, frame, len(frame), r)
            else:
                status = lib.mm_replace_reserved(mm, k, payload, len(payload), 0, r)
            if status == errors.OK:
                if r.due:
                    handle._due()
                return True
            if status == errors.CONFLICT:
                return False
            handle._mend(status, (0, 0, 0, 0, r.length, r.offset, r.file, r.os_error), 0, None)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a collection is a str, not {type(name).__name__}")
