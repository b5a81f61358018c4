"""Everything mmpc raises, and the one table from the codes of the C core to classes.

    MmpcError
    ├── Conflict             a lost compare-and-swap: .current to go on with, .rejected the fragment
    ├── PageNotFound         the page id was never allocated
    ├── PageFreed            the page is free
    ├── CollectionNotFound   no collection of that name
    ├── Unsupported          not possible here: reserved pages, read-only handles, this file system, a missing extra
    ├── CorruptionError      damaged bytes: .file and .offset say where
    ├── StoreFailed          a sync failed; the store must be reopened
    ├── DiskFullError        no room; nothing was written          (also OSError, errno ENOSPC)
    ├── IncompatibleStore    another format, materializer, codec or option
    ├── StoreBusy            all slots taken, or others hold the store in a way that excludes us
    ├── Closed               the handle, or the Tx, is closed
    ├── FragmentTooLarge     more than 1 GiB                       (also ValueError)
    └── FragmentTypeError    not a fragment of this materializer or page   (also TypeError)

An error from a verb means *not applied*.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class MmpcError(Exception):
    """Root of all errors of mmpc."""


class Conflict(MmpcError):
    """Somebody wrote to the page since the key was taken.  `current` is the key to go on with, `rejected` the
    fragment.
    """

    def __init__(self, message: str, current: Any = None, rejected: Any = None) -> None:
        super().__init__(message)
        self.current = current
        self.rejected = rejected

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.current, self.rejected)


class PageNotFound(MmpcError):
    """The page id was never allocated."""


class PageFreed(MmpcError):
    """The page is free: its id belongs to nobody until `allocate` hands it out again."""


class CollectionNotFound(MmpcError):
    """No collection of that name is recorded in the Meta page."""


class Unsupported(MmpcError):
    """Not possible with this handle, these pages or this file system; the message says what would be."""


class CorruptionError(MmpcError):
    """Bytes of the store are damaged.  `file` names the file of the store, `offset` the byte in it."""

    def __init__(self, message: str, *, file: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.offset = offset

    def __reduce__(self) -> tuple[Any, ...]:
        return _corruption, (self.args[0], self.file, self.offset)


def _corruption(message: str, file: str | None, offset: int | None) -> CorruptionError:
    return CorruptionError(message, file=file, offset=offset)


class StoreFailed(MmpcError):
    """A sync failed in some process: nobody may go on before the store is closed by all and opened again."""


class DiskFullError(MmpcError, OSError):
    """There was no room for what the operation would have written; nothing was written."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)

    def __str__(self) -> str:
        return str(self.args[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[1],)


class IncompatibleStore(MmpcError):
    """The store was made with another format, feature, materializer, codec or option than asked for; both are
    named.
    """


class StoreBusy(MmpcError):
    """All slots are taken, or another process has the store for itself."""


class Closed(MmpcError):
    """The handle or the Tx was closed, or belongs to the parent process."""


class FragmentTooLarge(MmpcError, ValueError):
    """The fragment, or the page merged to one, has more than 1 GiB."""


class FragmentTypeError(MmpcError, TypeError):
    """The fragment does not fit the materializer, or the other fragments of its page."""


FILES = {1: "log", 2: "table", 3: "control", 4: "ids", 5: "rts", 6: "marks", 7: "snapshot", 8: "config"}

SNAPSHOT = 7

# Status codes of csrc/mmpc.h.
OK, CONFLICT, NOPAGE, FREED, CHAIN, CORRUPT, FULL, TOOBIG, FORKED = range(9)
BACKGROUND, ALL = 1, 2  # enum mm_effort
MISMATCH_FAILED = 7  # enum mm_mismatch: a sync has failed
CLOSED, FAILED, TYPE, OS, RESERVED, SPACE, BUSY, MISMATCH, LIMIT, UNUSABLE, COMPRESSED = range(9, 20)


def from_status(
    status: int, *, pid: int | None, length: int, offset: int, file: int, os_error: int, path: str | None = None
) -> MmpcError | OSError:
    """The exception for a status of the core; CONFLICT, CHAIN and FORKED are the caller's to handle."""
    import os

    page = "the new page" if pid is None else f"page {pid}"
    where = "" if path is None else f"{path!r}: "
    if status == NOPAGE:
        return PageNotFound(f"{page} was never allocated")
    if status == FREED:
        return PageFreed(f"{page} is free; allocate() hands its id out again")
    if status == RESERVED:
        return Unsupported(f"{page} belongs to the store (0 is Meta, 1 is Counter)")
    if status == CORRUPT:
        name = FILES.get(file, "store")
        return CorruptionError(f"{page}: damaged bytes in {name!r} at offset {offset}", file=name, offset=offset)
    if status == FULL:
        why = os.strerror(os_error)
        return DiskFullError(f"{where}no room on the device ({why}); nothing was written, free some space")
    if status == TOOBIG:
        remedy = "a fragment, and a page that is merged to one, has at most 1 GiB: use several pages"
        return FragmentTooLarge(f"{page}: more than {length} bytes do not fit; {remedy}")
    if status == CLOSED:
        return Closed("this handle is closed; open the store again")
    if status == FAILED:
        why = f" ({os.strerror(os_error)})" if os_error else ""
        return StoreFailed(f"{where}a sync failed{why}: close the store in every process and open it again")
    if status == TYPE:
        return FragmentTypeError(f"{page}: the fragment does not fit the materializer or the page's other fragments")
    if status == UNUSABLE:
        return CorruptionError(
            f"{page}: its fragments do not merge (newest at offset {offset} of 'log')",
            file="log",
            offset=offset,
        )
    if status == BUSY:
        return StoreBusy("all slots of the store are taken by living processes")
    if status == LIMIT:
        return Unsupported("page ids, numbers of generate_id or address space are used up")
    if status == OS:
        return OSError(os_error, os.strerror(os_error), path)
    return MmpcError(f"unexpected status {status} of the core")
