"""Judges a recorded history (mmpc.event_log) of several processes: was it as if all operations had come one by one?

Pages: the versions of a page say in which order its writes came. So it is enough that no version was made twice, that
each follows from the one before by the verb and the fragment that made it, that what was read at a version is what the
writes up to it make, and that nobody who began later than another had returned saw or made an older version. An
operation without an end, of a process that was killed, may have happened: it may stand for a version that nobody else
made.

Numbers: none twice, and who asked after another had been answered got more. Roots: for each name there is an order that
explains every answer (Wing and Gong's search).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mmpc import codec
from mmpc.event_log import History, Operation, encoded

NEVER = 1 << 62
FREE = None  # the value of a free page


class Wrong(AssertionError):
    """The history cannot be."""


@dataclass(frozen=True)
class Step:
    """What an operation did to one page, or saw of it."""

    op: Operation
    page: int
    verb: str  # append, link, replace, free, allocate; read, free-read, version
    wts: int | None  # made, or seen; None: not known, the process was killed
    base: int | None = None  # of the key
    data: str = ""  # the fragment, or the value that was read

    @property
    def writes(self) -> bool:
        return self.verb in ("append", "link", "replace", "free", "allocate")

    @property
    def end(self) -> int:
        return NEVER if self.op.returned is None else self.op.returned


def steps(history: History) -> Iterator[Step]:
    for op in history.operations:
        yield from _steps(op)


def _steps(op: Operation) -> Iterator[Step]:
    given, result = op.arguments, op.result
    if op.verb in ("append", "link", "replace", "free"):
        made = None if result is None else result.get("wts")
        if result is None or made is not None:
            yield Step(op, given["page"], op.verb, made, given.get("wts"), given.get("fragment", ""))
        elif "current" in result:
            yield Step(op, given["page"], "version", result["current"])
            if result["current"] == given["wts"]:
                raise Wrong(f"a Conflict at the version of the key: {op}")
    elif op.verb == "allocate" and result is not None and "page" in result:
        yield Step(op, result["page"], "allocate", result["wts"], None, given["fragment"])
    elif op.verb == "append_many":
        keys = [] if result is None else result.get("keys", [])
        for i, item in enumerate(given["items"]):
            if result is None or i < len(keys):
                yield Step(op, item["page"], "append", keys[i]["wts"] if keys else None, None, item["fragment"])
    elif op.verb == "get" and result is not None:
        yield from _reads(op, given["page"], result)
    elif op.verb == "get_many" and result is not None:
        for page, found in zip(given["pages"], result.get("pages", []), strict=False):
            yield from _reads(op, page, found)
    elif op.verb == "get_page_frags" and result is not None and "wts" in result:
        yield Step(op, given["page"], "version", result["wts"])


def _reads(op: Operation, page: int, found: dict[str, Any]) -> Iterator[Step]:
    kind = found.get("kind")
    if kind == "Materialized":
        yield Step(op, page, "read", found["wts"], None, found["value"])
    elif kind == "Free":
        yield Step(op, page, "free-read", found["wts"])
    elif kind == "Unallocated":
        yield Step(op, page, "version", 0)


# ---- pages


def check_pages(history: History, merge: Callable[[list[Any]], Any]) -> int:
    """How many steps there were. Wrong: no order of them explains what was answered."""
    pages: dict[int, list[Step]] = {}
    for step in steps(history):
        pages.setdefault(step.page, []).append(step)
    for page, those in pages.items():
        if page > 1:
            _Page(page, those, merge).check()
    return sum(map(len, pages.values()))


class _Page:
    def __init__(self, page: int, those: list[Step], merge: Callable[[list[Any]], Any]) -> None:
        self.page, self.merge = page, merge
        self.known = [s for s in those if s.wts is not None]
        self.lost = [s for s in those if s.wts is None]  # may have happened
        self.made: dict[int, Step] = {}
        for step in self.known:
            if step.writes and step.wts is not None:
                if step.wts in self.made:
                    raise Wrong(f"page {page}: version {step.wts} was made twice: {self.made[step.wts]}, {step}")
                self.made[step.wts] = step
        self.seen: dict[int, list[Step]] = {}
        for step in self.known:
            if step.verb in ("read", "free-read") and step.wts is not None:
                self.seen.setdefault(step.wts, []).append(step)

    def check(self) -> None:
        self._order()
        newest = max([s.wts or 0 for s in self.known], default=0)
        if not self._follow(1, newest, None, frozenset()):
            raise Wrong(f"page {self.page}: no order of its writes explains what was read up to version {newest}")

    def _order(self) -> None:
        """Who begins after another has returned sees no older version, and makes a newer one."""
        ends = sorted((s.end, s.wts or 0) for s in self.known)
        oldest, i = 0, 0
        for step in sorted(self.known, key=lambda s: s.op.called):
            while i < len(ends) and ends[i][0] < step.op.called:
                oldest = max(oldest, ends[i][1])
                i += 1
            if (step.wts or 0) < oldest + step.writes:
                raise Wrong(f"page {self.page}: version {oldest} had been answered before {step}")

    def _follow(self, wts: int, newest: int, value: Any, used: frozenset[int]) -> bool:
        """Versions from `wts` on follow from `value`, with the lost steps that are not used yet for those that nobody
        has claimed.
        """
        while wts <= newest:
            step = self.made.get(wts)
            if step is None:
                return any(self._try(i, wts, newest, value, used) for i in range(len(self.lost)) if i not in used)
            value = self._apply(step, wts, value)
            self._look(wts, value)
            wts += 1
        return True

    def _try(self, i: int, wts: int, newest: int, value: Any, used: frozenset[int]) -> bool:
        step = self.lost[i]
        if step.base is not None and step.base != wts - 1:
            return False
        try:
            after = self._apply(step, wts, value)
            self._look(wts, after)
            return self._follow(wts + 1, newest, after, used | {i})
        except Wrong:
            return False

    def _apply(self, step: Step, wts: int, value: Any) -> Any:
        if step.base is not None and step.base != wts - 1:
            raise Wrong(f"page {self.page}: version {wts} was made from {step.base}: {step}")
        fragment = codec.decode(bytes.fromhex(step.data)) if step.data else None
        if step.verb == "allocate":
            if value is not FREE:
                raise Wrong(f"page {self.page}: allocated while it was somebody's: {step}")
            return fragment
        if value is FREE:
            raise Wrong(f"page {self.page}: version {wts} was made on a free page: {step}")
        if step.verb == "free":
            return FREE
        return fragment if step.verb == "replace" else self.merge([value, fragment])

    def _look(self, wts: int, value: Any) -> None:
        for step in self.seen.get(wts, []):
            good = value is FREE if step.verb == "free-read" else value is not FREE and step.data == encoded(value)
            if not good:
                said = f"at version {wts} it was {value}, and was read as something else"
                raise Wrong(f"page {self.page}: {said}: {step}")


# ---- numbers


def check_numbers(history: History) -> int:
    """How many there were."""
    drawn = [(o, o.result["number"]) for o in history.operations if o.result is not None and "number" in o.result]
    if len({number for _op, number in drawn}) != len(drawn):
        raise Wrong("a number was handed out twice")
    ends = sorted((op.returned or NEVER, number) for op, number in drawn)
    largest, i = -1, 0
    for op, number in sorted(drawn, key=lambda d: d[0].called):
        while i < len(ends) and ends[i][0] < op.called:
            largest = max(largest, ends[i][1])
            i += 1
        if number < largest:
            raise Wrong(f"{largest} had been answered before {number} was asked for: {op}")
    return len(drawn)


# ---- roots


def check_roots(history: History) -> int:
    """How many operations there were."""
    those = [o for o in history.operations if o.verb in ("cas_root_in_meta", "meta")]
    names = {o.arguments["name"] for o in those if o.verb == "cas_root_in_meta"}
    for name in names:
        mine = [o for o in those if o.verb == "meta" or o.arguments["name"] == name]
        if not _explained(mine, name):
            raise Wrong(f"no order of them explains what was answered of root {name!r}")
    return len(those)


def _explained(those: list[Operation], name: str) -> bool:
    """Whether some order that keeps to the times gives each operation the answer that it got."""
    seen: set[tuple[int, Any]] = set()
    stack: list[tuple[int, Any]] = [(0, None)]
    must = sum(1 << i for i, op in enumerate(those) if op.returned is not None)
    while stack:
        done, root = stack.pop()
        if done & must == must:
            return True
        if (done, root) in seen:
            continue
        seen.add((done, root))
        first = min(o.returned or NEVER for i, o in enumerate(those) if not done >> i & 1)
        for i, op in enumerate(those):
            if op.called > first:
                break
            if not done >> i & 1:
                stack += [(done | 1 << i, after) for after in _after(op, name, root)]
    return False


def _after(op: Operation, name: str, root: Any) -> list[Any]:
    """What the root is after an operation that gave its answer when it was `root`; nothing: it gave another one."""
    given, result = op.arguments, op.result
    if op.verb == "meta":
        return [root] if result is None or "error" in result or result["roots"].get(name) == root else []
    swapped = [given["new"]] if given["old"] == root else []
    if result is None:
        return [root, *swapped]  # it may not have come so far
    if result.get("error") == "Conflict":
        return [root] if result["current"] == root and root != given["old"] else []
    return swapped
