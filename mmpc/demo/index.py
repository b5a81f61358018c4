"""The inverted index: how words, postings and files lie in the pages of one store.

===================  ===================================================================================
page                 a map, merged by ``mmpc.Union``: later keys win
===================  ===================================================================================
the root, page 2     ``{"format", "tree", "root", "buckets": [page ids], "files": [...], "done": page id}``
a bucket             ``{word: page id}`` of the words whose hash falls into it
a word's page        ``{file id: count}``: its postings
a page of files      ``{file id: path}``
the done page        ``{file id: postings}``, written after the postings of that file
===================  ===================================================================================

Nothing here needs a lock, and dying anywhere is harmless: a posting that is written twice is one key
written twice; a page that was allocated and never linked belongs to no word; the root is filled last, so
that who finds it filled finds everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zlib import crc32

import mmpc

from .sources import Tree

FORMAT = "mmpc.demo 1"
ROOT = 2  # the first page id of a new store; 0 and 1 are Meta and Counter
BUCKETS = 8192
FILES_A_PAGE = 128


Pages: TypeAlias = mmpc.PageCache[dict[Any, Any]]
Page: TypeAlias = mmpc.Materialized[dict[Any, Any]]


class NotAnIndex(Exception):
    """The store holds no finished layout of this demo: another program's pages, or nothing yet."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the root page says: whose index this is, and where everything else lies."""

    tree: str
    """Digest of the indexed files (``Tree.digest``)."""
    root: str
    """The directory that their paths start from."""
    buckets: tuple[int, ...]
    files: tuple[int, ...]
    done: int

    def bucket(self, word: str) -> int:
        """Page id of the bucket that ``word`` falls into."""
        return self.buckets[crc32(word.encode()) % len(self.buckets)]


def create(pages: Pages, tree: Tree) -> Layout:
    """Lay out an empty index of ``tree`` in a new store. Raises NotAnIndex if the store is not new."""
    root, key = pages.allocate({})
    if root != ROOT:
        raise NotAnIndex(f"the first free page is {root}, not {ROOT}: the store is not new")
    chunks = [range(n, min(n + FILES_A_PAGE, len(tree))) for n in range(0, len(tree), FILES_A_PAGE)]
    fields: dict[str, Any] = {
        "format": FORMAT,
        "tree": tree.digest,
        "root": str(tree.root),
        "buckets": [pages.allocate({})[0] for _ in range(BUCKETS)],
        "files": [pages.allocate({n: tree.paths[n] for n in chunk})[0] for chunk in chunks],
        "done": pages.allocate({})[0],
    }
    pages.link(ROOT, key, fields)
    return load(pages)


def is_begun(pages: Pages) -> bool:
    """Is this a store in which ``create`` was cut off, or did not even begin?"""
    root = pages.get(ROOT)
    return isinstance(root, mmpc.Unallocated) or (isinstance(root, mmpc.Materialized) and root.value == {})


def load(pages: Pages) -> Layout:
    """The layout of the index in a store. Raises NotAnIndex if there is none."""
    root = pages.get(ROOT)
    fields = root.value if isinstance(root, mmpc.Materialized) else None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise NotAnIndex(f"page {ROOT} is no root of an index")
    return Layout(
        tree=fields["tree"],
        root=fields["root"],
        buckets=tuple(fields["buckets"]),
        files=tuple(fields["files"]),
        done=fields["done"],
    )


def read(pages: Pages, pids: Sequence[int]) -> list[Page]:
    """Pages that the layout or the dictionary names. Raises NotAnIndex if one holds no map."""
    found: list[Page] = []
    for pid, page in zip(pids, pages.get_many(pids), strict=True):
        if not isinstance(page, mmpc.Materialized) or not isinstance(page.value, dict):
            raise NotAnIndex(f"page {pid} should hold a map: {page!r:.100}")
        found.append(page)
    return found


def find(pages: Pages, layout: Layout, words: Iterable[str]) -> dict[str, Mapping[int, int]]:
    """The postings of each word that the index holds; one crossing for all buckets and one for all words."""
    wanted = list(dict.fromkeys(words))
    buckets = read(pages, [layout.bucket(word) for word in wanted])
    places = {
        word: page.value[word] for word, page in zip(wanted, buckets, strict=True) if word in page.value
    }
    found = read(pages, [*places.values()])
    return {word: page.value for word, page in zip(places, found, strict=True)}


def paths(pages: Pages, layout: Layout, file_ids: Iterable[int]) -> dict[int, str]:
    """The paths of some files."""
    wanted = list(file_ids)
    chunks = sorted({n // FILES_A_PAGE for n in wanted})
    names: dict[int, str] = {}
    for page in read(pages, [layout.files[chunk] for chunk in chunks]):
        names.update(page.value)
    return {n: names[n] for n in wanted}


def finished(pages: Pages, layout: Layout) -> Mapping[int, int]:
    """The files whose postings are all written, and how many each has."""
    return read(pages, [layout.done])[0].value


def tree(pages: Pages, layout: Layout) -> Tree:
    """The files that are indexed, as the store lists them."""
    names: dict[int, str] = {}
    for page in read(pages, layout.files):
        names.update(page.value)
    return Tree(Path(layout.root), tuple(names[n] for n in range(len(names))))
