"""What views need beside the core: an owner that outlives the handle, and forks.

A forked child inherits the mapping, and arrays and memoryviews on it, which it may read at any time. So it must
hold what they show in a slot of its own. It attaches and takes over, in the fork handler, before anything else
runs in it. Until then the parent holds everything once more (a *guard*), even if it drops its views meanwhile:
the child has the writing end of a pipe, and the parent lets go when it finds it closed, because the child has
taken over, or has ended. A child that could not attach keeps its end, and the parent's slot, as long as it has
such views. Nobody waits: guards are looked at when a view is dropped, at the next fork, and at close.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref

from . import _store, errors
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LAST, GUARDED = 1, 2  # enum mm_view_drop


class Pipe:
    """In a child, and in its own children: its end, open while somebody keeps this."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)


class Owner:
    """An attachment as its views keep it: the mapping lives as long as the last of them."""

    __slots__ = ("__weakref__", "attachment", "heir", "inherited", "options")

    def __init__(self, attachment: _store.Attachment, options: _store.Options) -> None:
        self.attachment = attachment
        self.options = options
        self.heir: Owner | None = None  # in a forked child: who holds what was open at the fork
        self.inherited: Pipe | None = None  # in a forked child: what the parent holds is not all taken over
        _owners.add(self)

    def in_use(self) -> bool:
        """Whether views are out."""
        return bool(lib.mm_view_count(self.attachment.mm))

    def bequeath(self, heir: Owner) -> None:
        """In a forked child: `heir`, attached by this process, holds what the views of this one hold."""
        if self.inherited is not None and self.heir is None:
            self.heir = heir
            if lib.mm_views_adopt(heir.attachment.mm, self.attachment.mm):
                self.inherited = None

    def _dropped(self, said: int, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """A view of this owner has gone; at the end of the interpreter nothing of all this is there any more."""
        if finalizing():
            return
        if said & GUARDED:
            sweep()
        if said & LAST:
            _store.left(self.options)


class Guard:
    """What the parent holds for a child that has not taken over yet."""

    __slots__ = ("held", "read", "write")

    def __init__(self, held: list[tuple[Owner, Any]]) -> None:
        self.held = held
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)

    def over(self) -> bool:
        """Whether the child has closed its end."""
        try:
            return not os.read(self.read, 1)
        except BlockingIOError:
            return False

    def lift(self) -> None:
        """Lets go; in a child, of what its copy says that the parent holds."""
        os.close(self.read)
        for owner, bits in self.held:
            said = lib.mm_views_unguard(owner.attachment.mm, bits)
            if said & LAST:
                _store.left(owner.options)


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_forking: dict[int, Guard] = {}  # by thread
_guards: list[Guard] = []


def sweep() -> None:
    """Lifts the guards of children that have taken over or ended."""
    for guard in list(_guards):
        if guard.over():
            try:
                _guards.remove(guard)
            except ValueError:
                continue  # another thread did
            guard.lift()


def before_fork() -> None:
    """In the parent; without a pipe it holds its views' bytes for good, since it cannot know when to let go."""
    sweep()
    held = []
    for owner in list(_owners):
        bits = ffi.new("uint64_t[2]")
        if owner.in_use() and lib.mm_views_guard(owner.attachment.mm, bits):
            held.append((owner, bits))
    if held:
        _forking[threading.get_ident()] = Guard(held)


def after_fork_in_parent() -> None:
    """The child has its end now, or there is none."""
    guard = _forking.pop(threading.get_ident(), None)
    if guard is not None:
        os.close(guard.write)
        _guards.append(guard)


def after_fork_in_child() -> None:
    """Before the handles look after themselves: marks the owners whose views were open at the fork."""
    mine = _forking.pop(threading.get_ident(), None)
    for other in [*_guards, *_forking.values()]:
        other.lift()
    for other in _forking.values():
        os.close(other.write)
    _guards.clear()
    _forking.clear()
    if mine is not None:
        pipe = Pipe(mine.write)
        mine.lift()
        for owner, _bits in mine.held:
            owner.inherited = pipe


def after_handles_in_child() -> None:
    """The views of handles that were closed before the fork; the handles have taken over those of their own."""
    for owner in list(_owners):
        if owner.inherited is None or owner.heir is not None:
            continue
        try:
            attachment, _ = _store.open_store(owner.options, create=False)
        except (errors.MmpcError, OSError):
            continue
        owner.bequeath(Owner(attachment, owner.options))
        lib.mm_close(attachment.mm)
        lib.mm_orphan(owner.attachment.mm)
