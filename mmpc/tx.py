"""Tx: an epoch pin with a timestamp."""

from __future__ import annotations

import os

from . import errors
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from ._store import Attachment

_NONE = 0xFFFFFFFF
_ANY = 2**64 - 1  # MM_ID_NONE


def _refused(status: int, r: Any, attachment: Attachment, path: str) -> Exception:
    if status == errors.FORKED:
        return errors.Closed("the store's handle belongs to the parent process")
    if status == errors.CORRUPT and not r.file:
        return attachment.damage()
    return errors.from_status(
        status, pid=1, length=0, offset=r.offset, file=r.file, os_error=r.os_error, path=path
    )


class Tx:
    """While a Tx is open, no page id and no log space that it may have seen is used again.

    Made by `PageCache.begin()`; a context manager.  `ts` is its timestamp, a number of `generate_id`, drawn when the
    pin is held: unique and rising over all processes, restarts and crashes, among timestamps and ids alike.
    It isolates nothing: verbs called with it see and make the same changes as without.  A Tx that was open at a
    fork belongs to the parent; in the child it raises `Closed`.  One that outlives `close` of its handle goes on
    holding what it holds until it ends, and no verb takes it any more.  An open Tx delays reuse of space by others,
    never their operations.
    """

    __slots__ = ("_attachment", "_owner", "_pin", "ts")

    def __init__(self, attachment: Attachment, path: str) -> None:
        self._attachment = attachment
        self._owner = os.getpid()
        # The pin's index is written into memory that this object owns already: an exception in between loses
        # nothing.
        self._pin: Any = ffi.new("uint32_t *", _NONE)
        ts = ffi.new("uint64_t *")
        status = lib.mm_pin(attachment.mm, self._pin, ffi.NULL)
        if status:
            raise _refused(status, ffi.new("mm_result *"), attachment, path)
        if lib.mm_id_quick(attachment.mm, ts):  # the pin keeps the mapping
            self._draw(attachment, ts, path)
        self.ts: int = ts[0]

    def _draw(self, attachment: Attachment, ts: Any, path: str) -> None:
        """Once in an interval of numbers: something has to be written first."""
        r = ffi.new("mm_result *")
        ts[0] = _ANY
        status = lib.mm_generate_id(attachment.mm, ts, 1, r)
        if status:
            self.close()
            raise _refused(status, r, attachment, path)

    def _check(self, handle: Any) -> None:
        self._check_open()
        if handle._attachment is not self._attachment:
            raise errors.Closed("this Tx was opened by another handle; begin one here")

    def close(self) -> None:
        """Unpins.  Idempotent; allowed from any thread."""
        pin, self._pin[0] = self._pin[0], _NONE
        if pin != _NONE:
            lib.mm_unpin(self._attachment.mm, pin)

    def __enter__(self) -> Tx:
        self._check_open()
        return self

    def _check_open(self) -> None:
        if self._pin[0] == _NONE:
            raise errors.Closed("this Tx has ended")
        if self._owner != os.getpid():
            raise errors.Closed("this Tx was opened before a fork; begin one here")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Tx is not copied or pickled: it is a pin of one process; begin() another one")

    def __del__(self) -> None:
        if hasattr(self, "_pin"):
            self.close()

    def __repr__(self) -> str:
        return f"<Tx ts={getattr(self, 'ts', '?')}{'' if self._pin[0] != _NONE else ' ended'}>"
