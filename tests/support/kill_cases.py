"""What a child does when it is killed, stopped or refused at the n-th access to shared memory, and what that means.

A case is a list of operations on two pages, `p` and `q`. Each names its effects, in the order in which they may
become visible; one operation has several only where the verb promises no more (`append_many`). The child runs the
operations before `armed` in peace and reports each one that returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mmpc

THRESHOLD = 2  # chains of more than 2 are consolidated, those of 16 must be
LARGE = 24 * 1024  # more than a third of a segment of 64 KiB
HUGE = 29 * 1024  # two of them do not fit one beside anything else
WIDE = 100 * 1024  # more than one: it lies in a run of its own
ALL = 2  # enum mm_effort: whatever gains anything


class Lists(mmpc.Materializer):
    """Concatenates lists, in Python."""

    name = "test.lists-1"

    def merge(self, fragments):
        return [item for fragment in fragments for item in fragment]


class Model:
    """Contents of the pages: `named` by page id (None: free), `extra` for those whose id is not known yet."""

    def __init__(self, named: dict[int, list | None]) -> None:
        self.named = named
        self.extra: list[list] = []

    def copy(self) -> Model:
        other = Model({pid: None if v is None else list(v) for pid, v in self.named.items()})
        other.extra = [list(v) for v in self.extra]
        return other

    def live(self) -> dict[int, list]:
        return {pid: v for pid, v in self.named.items() if v is not None}

    def equals(self, seen: dict[int, list]) -> bool:
        live = self.live()
        rest = sorted(value for pid, value in seen.items() if pid not in live)
        return all(seen.get(pid) == value for pid, value in live.items()) and rest == sorted(self.extra)

    def __repr__(self) -> str:
        return f"{self.live()} + {self.extra}"


class Child:
    """What an operation works with: the handle, the two pages, one of bytes, and room for keys."""

    def __init__(self, pc: Any, p: int, q: int, path: str, v: int = 0) -> None:
        self.pc, self.p, self.q, self.path, self.v = pc, p, q, path, v
        self.key: Any = None
        self.tx: Any = None
        self.view: Any = None
        self.other: Any = None


Effect = Callable[[Model, Any], None]  # (model, world with p and q)


@dataclass(frozen=True)
class Op:
    run: Callable[[Child], Any]
    effects: tuple[Effect, ...] = ()
    keyed: bool = False  # takes a key, so it must fail when somebody wrote meanwhile


@dataclass(frozen=True)
class Case:
    name: str
    ops: tuple[Op, ...]
    armed: int = 1  # operations that run before arming; 0: attaching is interrupted as well
    depth: int = 1  # fragments of p beforehand
    native: bool = True
    python: bool = False
    help_needed: bool = False  # p's newest record was left without its commit word by a dead process
    new_store: str = ""  # how each n gets a store of its own: "", "create", "recover" or "full-table"
    stoppable: bool = True
    views: bool = False  # a third page, of bytes, is viewed
    beside: int = 0  # handles of the child besides the first one
    draws: bool = False  # what its operations return, behind those before `armed`, are numbers of generate_id

    @property
    def effects_before(self) -> list[int]:
        """For each operation, how many effects come before it."""
        counts = [0]
        for op in self.ops:
            counts.append(counts[-1] + len(op.effects))
        return counts


# ---- effects


def on_p(token: str) -> Effect:
    def effect(model: Model, world: Any) -> None:
        value = model.named[world.p]
        if value is None:
            raise AssertionError("an append returned, but the page was free")
        value.append(token)

    return effect


def on_q(token: str) -> Effect:
    def effect(model: Model, world: Any) -> None:
        model.named[world.q].append(token)

    return effect


def p_becomes(tokens: list[str]) -> Effect:
    return lambda model, world: model.named.__setitem__(world.p, list(tokens))


def p_is_free(model: Model, world: Any) -> None:
    model.named[world.p] = None


def new_page(tokens: list[str]) -> Effect:
    return lambda model, world: model.extra.append(list(tokens))


# ---- operations


def append(token: str) -> Op:
    return Op(lambda c: c.pc.append(c.p, [token]), (on_p(token),))


def append_q(token: str) -> Op:
    return Op(lambda c: c.pc.append(c.q, [token]), (on_q(token),))


def churn(letters: str) -> Op:
    """Fills segments with what is soon replaced: p's record lies in the first of them."""

    def run(c: Child) -> None:
        key = c.pc.get(c.q).key
        for letter in letters:
            key = c.pc.replace(c.q, key, [letter * LARGE])

    return Op(run, tuple(q_becomes([letter * LARGE]) for letter in letters))


def q_becomes(tokens: list[str]) -> Effect:
    return lambda model, world: model.named.__setitem__(world.q, list(tokens))


def allocate(*tokens: str) -> Op:
    return Op(lambda c: c.pc.allocate(list(tokens))[0], (new_page(list(tokens)),))


def take_key(c: Child) -> None:
    c.key = c.pc.get(c.p).key


def end_tx(c: Child) -> None:
    c.tx.close()


def begin_tx(c: Child) -> None:
    c.tx = c.pc.begin()


def open_store(c: Child) -> None:
    c.pc = mmpc.open(
        c.path,
        mmpc.Append(),
        create=True,
        page_consolidation_threshold=THRESHOLD,
        segment_size=1 << 16,
    )


def beside(c: Child) -> None:
    """A second writer in the same process, and marks that list the leases of both."""
    c.other = mmpc.open(c.path, mmpc.Append(), page_consolidation_threshold=THRESHOLD)
    for pc, token in ((c.other, "a"), (c.pc, "b")):
        pc.append(c.q, [token])
        pc.flush()
    c.other.append(c.q, ["c"])


def other_appends(token: str) -> Op:
    return Op(lambda c: c.other.append(c.q, [token]), (on_q(token),))


def open_view(c: Child) -> None:
    c.view = c.pc.view(c.v).raw


def look(c: Child) -> int:
    """What is viewed is one of the values of the page, whole."""
    shown = bytes(c.view)
    if shown not in VIEWED:
        raise AssertionError(f"a view shows {shown[:20]!r}")
    return len(shown)


def end_view(c: Child) -> None:
    c.view = None


VIEWED = b"old" * 500, b"new" * 500
ATTACH = Op(lambda c: c.pc._here())
KEY = Op(take_key)
WARM = append_q("warm")  # takes a lease
GET = Op(lambda c: c.pc.get(c.p).is_free())
FREE = Op(lambda c: c.pc.free(c.p, c.key), (p_is_free,), keyed=True)
LINK = Op(lambda c: c.pc.link(c.p, c.key, ["t"]), (on_p("t"),), keyed=True)
REPLACE = Op(lambda c: c.pc.replace(c.p, c.key, ["t"]), (p_becomes(["t"]),), keyed=True)
UPDATE = Op(lambda c: c.pc.update(c.p, lambda value: [*value, "t"]), (on_p("t"),))
MANY = Op(
    lambda c: c.pc.append_many([(c.p, ["t"]), (c.q, ["u"]), (c.p, ["v"])]), (on_p("t"), on_q("u"), on_p("v"))
)
LARGE_APPEND = Op(lambda c: c.pc.append(c.p, ["t" * LARGE]), (on_p("t" * LARGE),))
WIDE_APPEND = Op(lambda c: c.pc.append(c.p, ["t" * WIDE]), (on_p("t" * WIDE),))
WIDE_LINK = Op(lambda c: c.pc.link(c.p, c.key, ["t" * WIDE]), (on_p("t" * WIDE),), keyed=True)


def widen(letters: str, flush: bool) -> Op:
    """Replaces q by large values: each run but the last is free again, and, after a flush, used again."""

    def run(c: Child) -> None:
        key = c.pc.get(c.q).key
        for letter in letters:
            key = c.pc.replace(c.q, key, [letter * WIDE])
            if flush:
                c.pc.flush()

    return Op(run, tuple(q_becomes([letter * WIDE]) for letter in letters))


CHURN, CHURN_AGAIN = churn("abcdefghi"), churn("ABCDEFGHI")
CLEAN = Op(lambda c: c.pc._clean(ALL, 1 << 16).retired)
FLUSH = Op(lambda c: c.pc.flush())
BESIDE = Op(beside, (on_q("a"), on_q("b"), on_q("c")))
CLEAN_ALL = Op(lambda c: c.pc._clean(ALL, 1 << 30).retired)
REWRITE = Op(lambda c: c.pc.rewrite(c.p))
IN_TX = Op(lambda c: c.pc.append(c.p, ["t"], c.tx), (on_p("t"),))
DRAW = Op(lambda c: c.pc.generate_id())
GET_IN_TX = Op(lambda c: c.pc.get(c.p, c.tx).is_free())

CASES = [
    Case("attach", (ATTACH, append("t")), armed=0),
    Case("allocate", (ATTACH, allocate("t"), allocate("u"))),
    Case("allocate-warm", (WARM, allocate("t"))),
    Case("allocate-reuse", (KEY, FREE, allocate("t"), allocate("u")), armed=2),
    Case("allocate-growth", (ATTACH, allocate("t"), allocate("u")), new_store="full-table"),
    Case("append", (ATTACH, append("t"), append("u"))),
    Case("append-warm", (WARM, append("t"))),
    Case("append-full-chain", (WARM, append("t")), depth=16, python=True),
    Case("append-large", (WARM, LARGE_APPEND), depth=3),
    Case("new-segment", (WARM, allocate("t" * HUGE), allocate("u" * HUGE))),
    Case("extent", (WARM, WIDE_APPEND, append("u")), depth=3),
    Case("extent-allocate", (WARM, allocate("t" * WIDE), allocate("u"))),
    Case("extent-link", (KEY, WIDE_LINK)),
    Case("extent-consolidates", (WARM, WIDE_APPEND, append("u")), depth=15, python=True),
    Case("extent-reuse", (WARM, widen("ab", False), widen("cd", True)), armed=2),
    Case("extent-clean", (WIDE_APPEND, REWRITE, FLUSH, CLEAN_ALL, GET), depth=3),
    Case("link", (KEY, LINK)),
    Case("link-warm", (WARM, KEY, LINK), armed=2),
    Case("replace", (KEY, REPLACE)),
    Case("replace-warm", (WARM, KEY, REPLACE), armed=2, depth=3),
    Case("free", (KEY, FREE)),
    Case("free-warm", (WARM, KEY, FREE), armed=2, depth=3),
    Case("get", (ATTACH, GET), depth=2),
    Case("get-cached", (GET, append("t"), GET), armed=2),
    Case("get-helps", (ATTACH, GET), help_needed=True),
    Case("append-helps", (WARM, append("t")), help_needed=True),
    Case("get-consolidates", (WARM, GET), depth=8, python=True),
    Case("get-many", (ATTACH, Op(lambda c: len(c.pc.get_many([c.p, c.q, 10**6])))), depth=8),
    Case("get-page-frags", (ATTACH, Op(lambda c: len(c.pc.get_page_frags(c.p)[1]))), depth=2),
    Case("update", (WARM, UPDATE)),
    Case("append-many", (WARM, MANY)),
    Case("tx", (WARM, Op(begin_tx), IN_TX, GET_IN_TX, Op(end_tx))),
    Case("view", (ATTACH, Op(open_view), GET, Op(look), Op(end_view)), views=True),
    Case("generate-id", (WARM, DRAW, DRAW, DRAW, DRAW, DRAW), draws=True),
    Case("bump-rts", (ATTACH, Op(lambda c: c.pc.bump_page_rts(c.p, 7)), Op(lambda c: c.pc.get_page_rts(c.p)))),
    Case("flush", (WARM, Op(lambda c: c.pc.flush()))),
    Case("flush-carries", (WARM, BESIDE, FLUSH, other_appends("d"), FLUSH), armed=2, beside=1),
    Case("snapshot", (WARM, Op(lambda c: c.pc.snapshot()))),
    Case("rewrite", (WARM, REWRITE), depth=3),
    Case("clean", (WARM, CHURN, CLEAN), depth=3, python=True),  # writing cleans as well
    Case("clean-free", (KEY, FREE, CHURN, CLEAN), armed=2),
    Case("clean-reuse", (CHURN, CLEAN_ALL, CHURN_AGAIN), armed=1),
    Case("stats", (WARM, Op(lambda c: c.pc.stats().epoch))),
    Case("close", (WARM, Op(lambda c: c.pc.close()))),
    Case("create", (Op(open_store), Op(lambda c: c.pc.close())), armed=0, new_store="create", stoppable=False),
    Case("recover", (Op(open_store), Op(lambda c: c.pc.close())), armed=0, new_store="recover", stoppable=False),
]


def all_runs() -> list[tuple[Case, bool]]:
    """Every case with the native materializer, and with the Python one where that takes other steps."""
    return [(c, False) for c in CASES if c.native] + [(c, True) for c in CASES if c.python]


def find(name: str) -> tuple[Case, bool]:
    """The run with this identifier: a case's name, with `-python` behind it for the Python materializer."""
    for case, python in all_runs():
        if identifier(case, python) == name:
            return case, python
    raise KeyError(name)


def identifier(case: Case, python: bool) -> str:
    return case.name + ("-python" if python else "")
