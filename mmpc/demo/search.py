"""Answers from the index: the files that hold all of some words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import index


@dataclass(frozen=True)
class Answer:
    """The files with all the words, most occurrences first."""

    words: tuple[str, ...]
    files_with: Mapping[str, int]
    """For each word, in how many files it occurs."""
    found: int
    """Files with all of them."""
    best: tuple[tuple[str, tuple[int, ...]], ...]
    """The first of those: path, and how often each word occurs in it."""


def search(pages: index.Pages, layout: index.Layout, words: Sequence[str], top: int) -> Answer:
    """Look words up; ``top`` bounds how many files are named."""
    unique = tuple(dict.fromkeys(words))
    postings = index.find(pages, layout, unique)
    columns = [postings.get(word, {}) for word in unique]
    common = set(columns[0]).intersection(*columns[1:])
    ranked = sorted(common, key=lambda n: (-sum(column[n] for column in columns), n))[:top]
    paths = index.paths(pages, layout, ranked)
    return Answer(
        words=unique,
        files_with={word: len(column) for word, column in zip(unique, columns, strict=True)},
        found=len(common),
        best=tuple((paths[n], tuple(column[n] for column in columns)) for n in ranked),
    )
