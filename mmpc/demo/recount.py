"""The judge: counts every word again, in one process and without the store, and compares.

*Lost* are postings that the sources have and the store lacks or holds too low; *duplicated* those that the
store alone has or holds too high, and words that share a page; *torn* are pages that cannot be read, or
hold what no writer wrote. Pages that no word leads to are counted beside that: their worker died between
allocating and linking them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import mmpc

from .index import ROOT, Layout, Pages
from .sources import Tree, count_words

Postings = dict[str, dict[int, int]]
BATCH = 512
EXAMPLES = 5
BEYOND = 4096  # page ids after the last one in use that are searched for orphans


@dataclass
class Verdict:
    """What is wrong with an index, in postings; and its size."""

    files: int = 0
    words: int = 0
    postings: int = 0
    lost: int = 0
    duplicated: int = 0
    torn: int = 0
    orphans: int = 0
    """Pages that no word leads to; they count nothing."""
    examples: list[str] = field(default_factory=list)
    """The first few things that are wrong, in words."""

    @property
    def good(self) -> bool:
        """Nothing lost, duplicated or torn."""
        return not (self.lost or self.duplicated or self.torn)

    def note(self, text: str) -> None:
        """Keep an example, if there are few so far."""
        if len(self.examples) < EXAMPLES:
            self.examples.append(text)


def recount(tree: Tree, progress: Callable[[int], None] = lambda files: None) -> Postings:
    """The postings of every word, from the sources alone."""
    postings: Postings = {}
    for file_id in range(len(tree)):
        for word, count in count_words(tree.read(file_id)).items():
            postings.setdefault(word, {})[file_id] = count
        progress(file_id + 1)
    return postings


def judge(pages: Pages, layout: Layout, tree: Tree, expected: Postings) -> Verdict:
    """Compare an index with what a recount found."""
    verdict = Verdict(len(tree), len(expected), sum(map(len, expected.values())))
    places = _dictionary(pages, layout, verdict)
    _compare_done(pages, layout, tree, expected, verdict)
    for word in expected.keys() - places.keys():
        verdict.lost += len(expected[word])
        verdict.note(f"lost: {word!r} is not in the index")
    words = {pid: word for word, pid in places.items()}
    for pid, held in _maps(pages, words, verdict):
        _compare(words[pid], expected.get(words[pid], {}), held, tree, verdict)
    verdict.orphans = _orphans(pages, {ROOT, layout.done, *layout.buckets, *layout.files, *words})
    return verdict


def _dictionary(pages: Pages, layout: Layout, verdict: Verdict) -> dict[str, int]:
    """The page of every word in the index; a page belongs to one word, a word to one bucket."""
    places: dict[str, int] = {}
    taken: dict[int, str] = {}
    for bucket, words in _maps(pages, layout.buckets, verdict):
        for word, pid in words.items():
            if not isinstance(word, str) or not isinstance(pid, int) or layout.bucket(word) != bucket:
                verdict.torn += 1
                verdict.note(f"torn: bucket page {bucket} says {word!r}: {pid!r}")
            elif pid in taken:
                verdict.duplicated += 1
                verdict.note(f"duplicated: {word!r} and {taken[pid]!r} share page {pid}")
            else:
                places[word] = pid
                taken[pid] = word
    return places


def _compare(
    word: str, want: Mapping[int, int], held: Mapping[Any, Any], tree: Tree, verdict: Verdict
) -> None:
    if held == want:
        return
    for file_id in want.keys() | held.keys():
        there, here = want.get(file_id, 0), held.get(file_id, 0)
        if there == here:
            continue
        if not isinstance(file_id, int) or not isinstance(here, int):
            kind = "torn"
            verdict.torn += 1
        elif here < there:
            kind = "lost"
            verdict.lost += 1
        else:
            kind = "duplicated"
            verdict.duplicated += 1
        path = tree.paths[file_id] if file_id in range(len(tree)) else f"file {file_id!r}"
        verdict.note(f"{kind}: {word!r} in {path}: {there} in the source, {here!r} in the store")


def _compare_done(pages: Pages, layout: Layout, tree: Tree, expected: Postings, verdict: Verdict) -> None:
    """The list of finished files must be complete and right."""
    sizes = dict.fromkeys(range(len(tree)), 0)
    for counts in expected.values():
        for file_id in counts:
            sizes[file_id] += 1
    for _, held in _maps(pages, [layout.done], verdict):
        _compare("(all words)", sizes, held, tree, verdict)


def _maps(pages: Pages, pids: Iterable[int], verdict: Verdict) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    """Each page that holds a map, and the map; all others are torn."""
    todo = list(pids)
    for start in range(0, len(todo), BATCH):
        batch = todo[start : start + BATCH]
        for pid, page in zip(batch, _read(pages, batch), strict=True):
            value = page.value if isinstance(page, mmpc.Materialized) else None
            if isinstance(value, dict):
                yield pid, value
            else:
                verdict.torn += 1
                verdict.note(f"torn: page {pid} holds no map: {page!r:.200}")


def _read(pages: Pages, pids: list[int]) -> list[Any]:
    """The pages with these ids; an unreadable one as the error that it raised."""
    try:
        return list(pages.get_many(pids))
    except mmpc.MmpcError:
        return [_read_one(pages, pid) for pid in pids]


def _read_one(pages: Pages, pid: int) -> Any:
    try:
        return pages.get(pid)
    except mmpc.MmpcError as error:
        return error


def _orphans(pages: Pages, known: set[int]) -> int:
    """How many allocated pages are not among the known ones."""
    others = [pid for pid in range(ROOT, max(known) + BEYOND) if pid not in known]
    orphans = 0
    for start in range(0, len(others), BATCH):
        found = _read(pages, others[start : start + BATCH])
        orphans += sum(not isinstance(page, mmpc.Unallocated | mmpc.Free) for page in found)
    return orphans
