"""The verbs of a handle that writes down what it does (event_log.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors
from .results import PagePtr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .tx import Tx


class Recording:
    """Stands before PageCache: each verb says that it is called, does it, and says what came of it.

    `update` is a loop around `get` and `replace`, and they are recorded. What a recorded verb is made of is not.
    """

    __slots__ = ()
    _recorder: Any

    def record(self, recorder: Any, state: Callable[[Any], Any], encoded: Callable[[Any], str]) -> None:
        """From now on. The state is written if nobody else has the store open."""
        self._recorder = recorder, state, encoded
        self._state("open")

    def _state(self, when: str) -> None:
        recorder, state, _encoded = self._recorder
        handle: Any = self
        recorder.inside.verb = True
        try:
            alone = _alone(handle)
            recorder.write("state", when=when, alone=alone, state=state(self) if alone else {})
        finally:
            recorder.inside.verb = False

    def _do(self, verb: str, act: Callable[[], Any], said: Callable[[Any], dict[str, Any]], **given: Any) -> Any:
        recorder = self._recorder[0]
        if recorder.inside.verb:
            return act()
        number = recorder.call(verb, **given)
        recorder.inside.verb = True
        try:
            result = act()
            what = said(result)
        except BaseException as error:
            recorder.returned(number, error=type(error).__name__, **_of_conflict(error))
            raise
        finally:
            recorder.inside.verb = False
        recorder.returned(number, **what)
        return result

    def _page(self, page: Any) -> dict[str, Any]:
        """A result of `get`."""
        said: dict[str, Any] = {"kind": type(page).__name__}
        if hasattr(page, "key"):
            said |= _of_key(page.key)
        if hasattr(page, "value"):
            said["value"] = self._recorder[2](page.value)
        return said

    def get(self, pid: int, tx: Tx | None = None) -> Any:
        return self._do("get", lambda: _next(self).get(pid, tx), self._page, page=pid)

    def get_many(self, pids: Iterable[int], tx: Tx | None = None) -> Any:
        wanted = list(pids)
        return self._do(
            "get_many",
            lambda: _next(self).get_many(wanted, tx),
            lambda found: {"pages": [self._page(page) for page in found]},
            pages=wanted,
        )

    def get_page_frags(self, pid: int, tx: Tx | None = None) -> Any:
        return self._do(
            "get_page_frags",
            lambda: _next(self).get_page_frags(pid, tx),
            lambda found: _of_key(found[0]) | {"fragments": [self._recorder[2](f) for f in found[1]]},
            page=pid,
        )

    def append(self, pid: int, fragment: Any, tx: Tx | None = None) -> Any:
        return self._write("append", lambda: _next(self).append(pid, fragment, tx), pid, None, fragment)

    def link(self, pid: int, key: PagePtr, fragment: Any, tx: Tx | None = None) -> Any:
        return self._write("link", lambda: _next(self).link(pid, key, fragment, tx), pid, key, fragment)

    def replace(self, pid: int, key: PagePtr, fragment: Any, tx: Tx | None = None) -> Any:
        return self._write("replace", lambda: _next(self).replace(pid, key, fragment, tx), pid, key, fragment)

    def free(self, pid: int, key: PagePtr, tx: Tx | None = None) -> Any:
        return self._do("free", lambda: _next(self).free(pid, key, tx), _of_key, page=pid, wts=_wts(key))

    def _write(self, verb: str, act: Callable[[], Any], pid: int, key: Any, fragment: Any) -> Any:
        given = {} if key is None else {"wts": _wts(key)}
        return self._do(verb, act, _of_key, page=pid, fragment=self._recorder[2](fragment), **given)

    def append_many(self, items: Iterable[tuple[int, Any]], tx: Tx | None = None) -> Any:
        work = [tuple(item) for item in items]
        return self._do(
            "append_many",
            lambda: _next(self).append_many(work, tx),
            lambda keys: {"keys": [_of_key(key) for key in keys]},
            items=[{"page": item[0], "fragment": self._recorder[2](item[1])} for item in work],
        )

    def allocate(self, fragment: Any, tx: Tx | None = None) -> Any:
        return self._do(
            "allocate",
            lambda: _next(self).allocate(fragment, tx),
            lambda made: {"page": made[0]} | _of_key(made[1]),
            fragment=self._recorder[2](fragment),
        )

    def generate_id(self) -> Any:
        return self._do("generate_id", _next(self).generate_id, lambda number: {"number": number})

    def begin(self) -> Any:
        return self._do("begin", _next(self).begin, lambda tx: {"number": tx.ts})

    def meta(self, tx: Tx | None = None) -> Any:
        return self._do("meta", lambda: _next(self).meta(tx), lambda roots: {"roots": roots})

    def cas_root_in_meta(self, name: str, old: int | None, new: int | None, tx: Tx | None = None) -> Any:
        act = lambda: _next(self).cas_root_in_meta(name, old, new, tx)  # noqa: E731
        return self._do("cas_root_in_meta", act, lambda _none: {}, name=name, old=old, new=new)

    def flush(self) -> Any:
        handle: Any = self
        return self._do("flush", _next(self).flush, lambda _rose: {"stable": handle.stable_lsn})

    def make_stable(self, lsn: int) -> Any:
        handle: Any = self
        act = lambda: _next(self).make_stable(lsn)  # noqa: E731
        return self._do("make_stable", act, lambda _rose: {"stable": handle.stable_lsn}, lsn=lsn)

    def close(self) -> None:
        handle: Any = self
        if not handle._closed and hasattr(self, "_recorder"):
            try:
                self._state("close")
            except errors.MmpcError as error:
                self._recorder[0].write("failed", error=type(error).__name__)
            self._recorder[0].close()
        _next(self).close()

    def __reduce__(self) -> Any:
        make, arguments = _next(self).__reduce__()
        return make, (*arguments, self._recorder[0].directory)


def _next(handle: Recording) -> Any:
    """The verbs as they are without recording."""
    return super(Recording, handle)


def _wts(key: Any) -> Any:
    return getattr(key, "wts", None)


def _of_key(key: Any) -> dict[str, Any]:
    return {"wts": key.wts, "lsn": key.last_lsn}


def _of_conflict(error: BaseException) -> dict[str, Any]:
    """What the current state is, and what of a bulk call was done."""
    said: dict[str, Any] = {}
    if isinstance(error, errors.Conflict):
        current: Any = error.current
        said["current"] = _wts(current) if hasattr(current, "wts") else current
    if hasattr(error, "applied"):
        said["keys"] = [_of_key(key) for key in error.applied]
    return said


def _alone(handle: Any) -> bool:
    """Nobody else who lives has the store open. The dead keep their slots for a while, and do nothing more."""
    try:
        return len([reader for reader in handle.stats().readers if reader.alive]) == 1
    except (errors.MmpcError, OSError):
        return False  # damaged, or removed: there is no state to write
