"""One file into the index: new words by compare-and-swap, all other postings by one ``append_many``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import mmpc

from .index import Layout, Pages, read

Posting = dict[int, int]


class Writer:
    """Adds files to an index that other processes write at the same time.

    It keeps the pages of the words it has met, for they never change once they are linked, and the buckets it
    has read, each with its key: a word that is in neither can be linked at that key without another look; if
    somebody else wrote in between, the link says so.
    """

    def __init__(self, pages: Pages, layout: Layout) -> None:
        self._pages = pages
        self._layout = layout
        self._known: dict[str, int] = {}
        self._buckets: dict[int, dict[str, int]] = {}
        self._keys: dict[int, mmpc.PagePtr] = {}

    def add(self, file_id: int, counts: Mapping[str, int]) -> None:
        """Write the postings of a file, then that it is done. May be cut off anywhere and repeated."""
        posting = {count: {file_id: count} for count in set(counts.values())}
        places = [*map(self._known.get, counts)]
        known, strange = [], {}
        for (word, count), pid in zip(counts.items(), places, strict=True):
            if pid is not None:
                known.append((pid, posting[count]))
            else:
                strange[word] = posting[count]
        if strange:
            known += self._introduce(strange)
        self._pages.append_many(known)
        self._pages.append(self._layout.done, {file_id: len(counts)})

    def close(self) -> None:
        """Detach from the store."""
        self._pages.close()

    def _introduce(self, postings: Mapping[str, Posting]) -> list[tuple[int, Posting]]:
        """Learn the pages of words; write the postings of new ones. Returns the others', with their pages.

        Dying between allocate and link leaves a page that no word leads to, and nothing else.
        """
        mine: dict[str, tuple[int, mmpc.PagePtr]] = {}
        others: list[tuple[int, Posting]] = []
        todo = {word: self._layout.bucket(word) for word in postings}
        while todo:
            self._look(todo.values())
            lost: dict[str, int] = {}
            for word, bucket in todo.items():
                if pid := self._buckets[bucket].get(word):
                    self._known[word] = pid
                    others.append((pid, postings[word]))
                    if word in mine:  # another process linked a page for it first
                        self._pages.free(*mine[word])
                    continue
                if word not in mine:
                    mine[word] = self._pages.allocate(postings[word])
                if not self._link(bucket, word, mine[word][0]):
                    lost[word] = bucket
            todo = lost
        return others

    def _look(self, buckets: Iterable[int]) -> None:
        """Read those buckets whose key is not known, or is known to be old."""
        unread = [*set(buckets).difference(self._keys)]
        for bucket, page in zip(unread, read(self._pages, unread), strict=True):
            self._buckets[bucket] = page.value
            self._keys[bucket] = page.key

    def _link(self, bucket: int, word: str, pid: int) -> bool:
        """Make ``pid`` the page of a word that its bucket lacks, if nobody wrote there since it was read."""
        key = self._keys.get(bucket)
        if key is None:  # lost a moment ago, for another word
            return False
        try:
            self._keys[bucket] = self._pages.link(bucket, key, {word: pid})
        except mmpc.Conflict:
            del self._keys[bucket]
            return False
        self._known[word] = pid
        return True
