"""What a handle does beside its verbs: the periodic flush, and snapshots when the log has grown enough.

Both are elected among all attached processes by a compare-and-swap in the core, so there is one flush a period and one
snapshot at a time, however many handles there are. A process that dies or stops in the middle costs one period.
"""

from __future__ import annotations

import os
import threading
import weakref

from . import _snapshot, errors
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._store import Attachment


def _warn(message: str, *args: object) -> None:
    import logging  # not at import: it takes longer than all of mmpc

    logging.getLogger("mmpc").warning(message, *args)


CLEANED_AT_ONCE = 8 << 20  # bytes that a turn of the flusher gains, at most


class Flusher:
    """A thread that asks every period whether a flush is due, and cleans a little.

    It holds no reference to the handle, and ends with it, with the attachment, or when a sync has failed.
    """

    def __init__(self, handle: Any, period_ms: int) -> None:
        self._handle = weakref.ref(handle)
        self._period = period_ms * 1_000_000
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mmpc flush", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait = self._period
        while not self._stop.wait(wait / 1e9):
            handle = self._handle()
            if handle is None:
                return
            asked = self._ask(handle._attachment, handle.path)
            del handle
            if asked is None:
                return
            wait = max(asked, 1_000_000)

    def _ask(self, attachment: Attachment, path: str) -> int | None:
        """Nanoseconds until it is worth asking again; None: never."""
        r, wait = ffi.new("mm_result *"), ffi.new("uint64_t *")
        status = lib.mm_flush_due(attachment.mm, self._period, wait, r)
        if status in (errors.CLOSED, errors.FORKED):
            return None
        if status:
            error = errors.from_status(
                status, pid=0, length=0, offset=r.offset, file=r.file, os_error=r.os_error
            )
            _warn("%s: the periodic flush failed: %s", path, error)
        else:
            lib.mm_clean(attachment.mm, errors.BACKGROUND, CLEANED_AT_ONCE, ffi.new("mm_clean_report *"), r)
        return None if status == errors.FAILED else int(wait[0])

    def stop(self) -> None:
        """Returns when the thread has ended, or at once in the thread itself, which finds that its handle is gone: the
        garbage collector may have run in the middle of its wait, where it holds the event's lock.
        """
        if threading.current_thread() is not self._thread:
            self._stop.set()
            self._thread.join()


class Snapshotter:
    """A thread that writes one snapshot and ends."""

    def __init__(self, attachment: Attachment, path: str) -> None:
        self.pid = os.getpid()
        self._thread = threading.Thread(
            target=self._run, args=(attachment, path), name="mmpc snapshot", daemon=True
        )
        self._thread.start()

    @staticmethod
    def _run(attachment: Attachment, path: str) -> None:
        try:
            _snapshot.write(attachment, path)
        except (errors.Closed, errors.StoreFailed):
            return  # whoever asks next is told
        except (errors.MmpcError, OSError) as e:
            _warn("%s: no snapshot was written: %s", path, e)

    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        """Returns when the snapshot is written, or at once in a forked child, where nobody writes it."""
        if self.pid == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join()
