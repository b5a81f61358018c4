"""The input: the ``.py`` files beside the running interpreter, and the words in them."""

from __future__ import annotations

import hashlib
import os
import string
import sysconfig
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
DIGITS = string.digits
IN_WORDS = (string.ascii_letters + DIGITS + "_").encode()
SPACED = bytes(byte if byte in IN_WORDS else ord(" ") for byte in range(256))


@dataclass(frozen=True)
class Tree:
    """Source files below one directory. A file's id is its place in ``paths``."""

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, file_id: int) -> bytes:
        """The bytes of a file."""
        return (self.root / self.paths[file_id]).read_bytes()

    @cached_property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum((self.root / path).stat().st_size for path in self.paths)

    @cached_property
    def digest(self) -> str:
        """A name for exactly these files: it changes when a file comes, goes, grows or is written."""
        names = hashlib.sha256(str(self.root).encode())
        for path in self.paths:
            status = (self.root / path).stat()
            names.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return names.hexdigest()


def standard_library(limit: int | None = None) -> Tree:
    """The standard library of the running interpreter; with ``limit``, so many files, spread evenly."""
    root = Path(sysconfig.get_path("stdlib"))
    paths: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_THE_LIBRARY]
        here = Path(folder)
        paths += [str((here / name).relative_to(root)) for name in names if name.endswith(".py")]
    paths.sort()
    if limit is not None and limit < len(paths):
        paths = [paths[n * len(paths) // limit] for n in range(limit)]
    return Tree(root, tuple(paths))


def count_words(source: bytes) -> Counter[str]:
    """How often each word, ``[A-Za-z_][A-Za-z0-9_]*``, occurs in a source text.

    All that can be in no word becomes a space; so the encoding of the text, a superset of ASCII, does not matter.
    """
    counts = Counter(source.translate(SPACED).decode("ascii").split())
    for run in [run for run in counts if run[0] in DIGITS]:  # in 0x1f the word is x1f
        count = counts.pop(run)
        if word := run.lstrip(DIGITS):
            counts[word] += count
    return counts
