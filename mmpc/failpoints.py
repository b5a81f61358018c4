"""Named places at steps of I/O where a test makes this process fail, die or stop, as a device or a kill would.

    with mmpc.failpoints.active("buffer write"):
        pages.flush()                                  # StoreFailed: the sync of the log fails, for everybody
    mmpc.failpoints.set("snap write mv", "kill", after=1)   # dies at the second rename of a snapshot

A place fails as the system call beside it would, so what follows is what follows a real error: StoreFailed where a sync
of a flush is meant, DiskFullError where room is, else an OSError.  Each process has its own: a forked child begins with
a copy of its parent's.  Other children take the environment variable `MMPC_FAILPOINTS` when they import mmpc:

    MMPC_FAILPOINTS="buffer write=error,after=2; snap write mv=kill"

While nothing is armed a place costs one load, and no verb that needs no I/O passes one.  docs/failpoints.md says where
each place is, and which of the seed's it is.
"""

from __future__ import annotations

import errno
import os

from ._checks import check_int
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

ACTIONS = {"error": lib.MM_FAIL_ERROR, "kill": lib.MM_FAIL_KILL, "stop": lib.MM_FAIL_STOP, "exit": lib.MM_FAIL_EXIT}
ENVIRONMENT = "MMPC_FAILPOINTS"
EXIT_STATUS = 86  # of a process that a place ended by `exit`
_ALWAYS = (1 << 64) - 1
_FULL = errno.ENOSPC

# The core's places first, in its order (csrc/failpoint.h), with the errno that each fails with unless another is given.
_PLACES: dict[str, int] = {
    "initial allocation": _FULL,
    "initial allocation post": _FULL,
    "buffer write": errno.EIO,
    "buffer write post": errno.EIO,
    "trailer write": errno.EIO,
    "trailer write post": errno.EIO,
    "snap write": errno.EIO,
    "snap write len": errno.EIO,
    "snap write crc": errno.EIO,
    "snap write post": errno.EIO,
    "segment open": _FULL,
    "log growth": _FULL,
    "table growth": _FULL,
    "log punch": errno.EIO,
    "log truncate": errno.EIO,
    "slot claim": _FULL,
    "mark prepare": errno.EIO,
    "snap write mv": errno.EIO,
    "snap write mv post": errno.EIO,
    "snap write rm old": errno.EIO,
    "zero garbage segment": errno.EIO,
    "zero garbage segment post": errno.EIO,
    "write_config bytes": _FULL,
    "write_config crc": _FULL,
    "write_config mv": errno.EIO,
    "write_config post": errno.EIO,
    "create files": _FULL,
    "directory sync": errno.EIO,
    "recovery begin": errno.EIO,
    "recovery sync": errno.EIO,
    "recovery table": _FULL,
    "recovery mv": errno.EIO,
    "recovery post": errno.EIO,
    "backup write": _FULL,
}
NAMES = tuple(_PLACES)
FATAL = ("buffer write", "buffer write post", "trailer write", "trailer write post", "mark prepare")
_INDEX = {name: i for i, name in enumerate(NAMES)}
_block = ffi.new("mm_failpoints *")


def set(  # noqa: A001
    name: str, action: str = "error", *, after: int = 0, times: int | None = None, error: int | None = None
) -> None:
    """Arms the place `name` (one of NAMES) in this process.

    `action`: "error" (the step fails with the errno `error`), "kill" (SIGKILL), "stop" (SIGSTOP; SIGCONT goes on),
    "exit" (at once, with status EXIT_STATUS).  The first `after` visits pass; of those that follow `times` do not
    (None: none does), until `clear`.  Errors: ValueError, TypeError.
    """
    place = _block.at[_index(name)]
    if action not in ACTIONS:
        raise ValueError(f"action must be one of {', '.join(ACTIONS)}, not {action!r}")
    for what, value, least in (("after", after, 0), ("times", times, 1), ("error", error, 1)):
        if value is not None:
            check_int(what, value, least, _ALWAYS)
    clear(name)
    place.error = EXIT_STATUS if action == "exit" else _PLACES[name] if error is None else error
    place.skip, place.left = after, _ALWAYS if times is None else times
    place.visits = place.hits = 0
    place.action = ACTIONS[action]
    _block.armed += 1


def clear(name: str | None = None) -> None:
    """Disarms a place, or all. `visits` and `hits` stay as they are."""
    for i in range(len(NAMES)) if name is None else (_index(name),):
        if _block.at[i].action:
            _block.at[i].action = 0
            _block.armed -= 1


def visits(name: str) -> int:
    """How often this process came by since the place was armed, counted while any place was."""
    return int(_block.at[_index(name)].visits)


def hits(name: str) -> int:
    """How often it did not pass."""
    return int(_block.at[_index(name)].hits)


class active:  # noqa: N801
    """A context manager: `set` with the same arguments, `clear` at the end."""

    def __init__(
        self, name: str, action: str = "error", *, after: int = 0, times: int | None = None, error: int | None = None
    ) -> None:
        self._name, self._action, self._after, self._times, self._error = name, action, after, times, error

    def __enter__(self) -> active:
        set(self._name, self._action, after=self._after, times=self._times, error=self._error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clear(self._name)


def from_text(text: str) -> None:
    """Arms what `text` lists, in the form of the environment variable. Errors: ValueError."""
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, _, how = part.partition("=")
        action, *rest = (word.strip() for word in how.split(","))
        options = {}
        for word in rest:
            key, _, number = word.partition("=")
            if key not in ("after", "times", "error") or not number.isdecimal():
                raise ValueError(f"{part!r}: {word!r} is none of after=N, times=N, error=N")
            options[key] = int(number)
        set(name.strip(), action or "error", **options)


def _index(name: str) -> int:
    try:
        return _INDEX[name]
    except KeyError:
        raise ValueError(f"there is no failpoint {name!r}; the names are {', '.join(NAMES)}") from None


def reach(name: str) -> None:
    """Passes a place of the Python part. OSError: it is armed."""
    if _block.armed:
        e = lib.mm_fail_at(_block, _INDEX[name])
        if e:
            raise OSError(e, f"{os.strerror(e)} (failpoint {name!r})")


if ENVIRONMENT in os.environ:
    from_text(os.environ[ENVIRONMENT])
