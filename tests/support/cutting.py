"""A store whose files are cut under an open handle, and each verb of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import mmpc
from mmpc._native import lib

Store = mmpc.PageCache[Any]
FILES = ("log", "table", "control", "ids", "rts")
CUTS = {"nothing": lambda size: 0, "a block": lambda size: 4096, "half": lambda size: size // 2}


class World:
    """Some pages, one of them cached; read timestamps; ids that can be used again; everything flushed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.store: Store = mmpc.open(path, mmpc.Append(), create=True)
        self.pid, _ = self.store.allocate([0])
        self.store.append(self.pid, [1])
        self.cold, self.cold_key = self.store.allocate([7])
        self.doomed, self.doomed_key = self.store.allocate([8])
        self.store.bump_page_rts(self.pid, 5)
        with mmpc.open(path, mmpc.Append()) as other:  # gives its free ids back as hints when it closes
            for _ in range(3):
                other.free(*other.allocate([9]))
            self.store.flush()
        self.key = self.store.get(self.pid).key
        self.lsn = self.store.append(self.cold, [7]).last_lsn
        self.cold_key = self.store.get_page_frags(self.cold)[0]

    def cut(self, name: str, to: Callable[[int], int]) -> None:
        """As another program would: through a descriptor of its own."""
        file = os.path.join(self.path, name)
        os.truncate(file, to(os.path.getsize(file)))


def _same(got: Any, wanted: Any) -> None:
    if got != wanted:
        raise AssertionError(f"a wrong answer: {got!r}, not {wanted!r}")


def _get_cached(w: World) -> None:
    _same(w.store.get(w.pid).unwrap(), [0, 1])


def _get_cold(w: World) -> None:
    _same(w.store.get(w.cold).unwrap(), [7, 7])


def _get_many(w: World) -> None:
    _same([p.unwrap() for p in w.store.get_many([w.pid, w.cold])], [[0, 1], [7, 7]])


def _frags(w: World) -> None:
    _same(w.store.get_page_frags(w.cold)[1], [[7], [7]])


def _append(w: World) -> None:
    w.store.append(w.cold, [2])


def _append_many(w: World) -> None:
    w.store.append_many([(w.cold, [2]), (w.pid, [3])])


def _allocate(w: World) -> None:
    w.store.allocate([4])


def _link(w: World) -> None:
    w.cold_key = w.store.link(w.cold, w.cold_key, [5])


def _replace(w: World) -> None:
    w.cold_key = w.store.replace(w.cold, w.cold_key, [6])


def _update(w: World) -> None:
    w.store.update(w.cold, lambda value: [*value, 7])


def _free(w: World) -> None:
    try:
        w.store.free(w.doomed, w.doomed_key)
    except mmpc.PageFreed:
        return  # the first time it worked


def _consolidate(w: World) -> None:
    w.store._consolidate(w.pid)


def _bump(w: World) -> None:
    w.store.bump_page_rts(w.pid, 4)


def _rts(w: World) -> None:
    _same(w.store.get_page_rts(w.pid), 5)


def _flush(w: World) -> None:
    w.store.flush()


def _make_stable(w: World) -> None:
    w.store.make_stable(w.lsn)


def _snapshot(w: World) -> None:
    w.store.snapshot()


def _stats(w: World) -> None:
    _same(w.store.stats().slots, 1)


def _stable(w: World) -> None:
    w.store.stable_lsn  # noqa: B018 - a property that asks the core


def _begin(w: World) -> None:
    with w.store.begin() as tx:
        tx.ts  # noqa: B018


def _generate_id(w: World) -> None:
    w.store.generate_id()


def _check(w: World) -> None:
    w.store._check()


VERBS: dict[str, Callable[[World], None]] = {
    "get, cached": _get_cached,
    "get": _get_cold,
    "get_many": _get_many,
    "get_page_frags": _frags,
    "append": _append,
    "append_many": _append_many,
    "allocate": _allocate,
    "link": _link,
    "replace": _replace,
    "update": _update,
    "free": _free,
    "consolidate": _consolidate,
    "bump_page_rts": _bump,
    "get_page_rts": _rts,
    "flush": _flush,
    "make_stable": _make_stable,
    "snapshot": _snapshot,
    "stats": _stats,
    "stable_lsn": _stable,
    "begin": _begin,
    "generate_id": _generate_id,
    "_check": _check,
}
# What cannot work without the bytes that a cut to nothing, or to the first block, takes away.
_PAGES = set(VERBS) - {"flush", "make_stable", "snapshot", "stats", "stable_lsn"}
NEEDED = {
    "control": set(VERBS),
    "table": _PAGES | {"snapshot"},
    "log": _PAGES - {"get, cached", "get_many", "bump_page_rts", "get_page_rts"} | {"flush", "make_stable", "snapshot"},
    "ids": {"allocate"},
    "rts": {"bump_page_rts", "get_page_rts"},
}


def outcome(name: str, act: Callable[[], Any]) -> str:
    """`worked`, or `damaged` when the error names the file; anything else goes up."""
    try:
        act()
    except mmpc.CorruptionError as e:
        if e.file != name or e.offset is None or e.offset < 0:
            raise AssertionError(f"names {e.file!r} at {e.offset}, not {name!r}") from e
        return "damaged"
    return "worked"


def in_thread(act: Callable[[], str]) -> str:
    """The same in another thread, which finds every mutex free."""
    answer: list[str] = []
    thread = threading.Thread(target=lambda: answer.append(act()), daemon=True)
    thread.start()
    thread.join(30)
    return answer[0] if answer else "hung, or raised"


def trial(path: str, name: str, cut: str, verb: str) -> list[str]:
    """Outcomes of a verb, of the same verb in another thread, and of close."""
    w = World(path)
    w.cut(name, CUTS[cut])

    def act() -> str:
        return outcome(name, lambda: VERBS[verb](w))

    answers = [act(), in_thread(act), outcome(name, w.store.close)]
    if not lib.mm_is_closed(w.store._attachment.mm):
        raise AssertionError("the mapping is still there: somebody's pin was lost")
    w.store.close()
    return answers


def trials(path: str, name: str, cut: str) -> dict[str, list[str]]:
    """All verbs, each with a store of its own; the file `verb` says which one runs."""
    seen = {}
    for i, verb in enumerate(VERBS):
        with open(os.path.join(path, "verb"), "w") as f:
            f.write(verb)
        seen[verb] = trial(os.path.join(path, str(i)), name, cut, verb)
    return seen
