"""Where the demo's store lies, and when it is begun anew."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mmpc

from . import index
from .sources import Tree

PATIENCE = 10.0  # seconds for the workers of a run that was killed to notice it


class Unusable(Exception):
    """The directory cannot be used for this; the message says why and what to do."""


def default_store() -> Path:
    """``mmpc-demo`` in the user's cache directory, or in the temporary one without a home to write to."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and os.access(cache, os.W_OK | os.X_OK):
        return Path(cache) / "mmpc-demo"
    home = Path("~").expanduser()
    if home.is_absolute() and os.access(home, os.W_OK | os.X_OK):
        return home / ".cache" / "mmpc-demo"
    return Path(tempfile.gettempdir()) / f"mmpc-demo-{os.getuid()}"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """The directory, made if need be, for one ``index`` run and its workers (who inherit the lock) alone.

    Raises Unusable if another run keeps it or it belongs to somebody else.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise Unusable(f"{folder} belongs to another user; choose one with --store")
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unusable(
                        f"another index run is at work in {folder}; wait, or choose a --store"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(lock)


def prepare(folder: Path, tree: Tree, *, again: bool) -> tuple[index.Pages, index.Layout, list[int]]:
    """Open the store for indexing ``tree``: the pages, the layout, and the files that are still to be done.

    What was cut off goes on. What is complete, or of other files, is begun anew; with ``again`` a complete
    index is written a second time, over the first. Raises Unusable if the directory holds anything else.
    """
    if any(folder.iterdir()):
        found = _existing(folder)
        if found is not None:
            pages, layout = found
            todo = sorted(set(range(len(tree))) - index.finished(pages, layout).keys())
            if layout.tree == tree.digest and (todo or again):
                return pages, layout, todo or list(range(len(tree)))
            pages.close()
        _empty(folder)
    pages = mmpc.open(folder, mmpc.Union(), create=True)
    return pages, index.create(pages, tree), list(range(len(tree)))


def attach(folder: Path) -> tuple[index.Pages, index.Layout]:
    """Open an index that exists, for reading. Raises Unusable if there is none."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise Unusable(f"no index in {folder}; build one: python -m mmpc.demo index")
    pages = mmpc.open(folder, mmpc.Union(), read_only=True)
    try:
        return pages, index.load(pages)
    except index.NotAnIndex as error:
        pages.close()
        raise Unusable(f"no index in {folder}: {error}; build one: python -m mmpc.demo index") from None


def bytes_on_disk(folder: Path) -> int:
    """What the files of a store take on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _existing(folder: Path) -> tuple[index.Pages, index.Layout] | None:
    """The index in a directory that is not empty; None if it is the beginning of one. Raises Unusable."""
    remedy = f"choose another --store, or remove it: rm -r {folder}"
    try:
        pages = mmpc.open(folder, mmpc.Union())
    except mmpc.MmpcError as error:
        if folder == default_store():  # written by another version of the demo, and by nobody else
            return None
        raise Unusable(f"{folder} cannot be opened ({error}); {remedy}") from error
    try:
        return pages, index.load(pages)
    except index.NotAnIndex as error:
        begun = index.is_begun(pages)
        pages.close()
        if begun or folder == default_store():
            return None
        raise Unusable(f"{folder} holds another program's pages ({error}); {remedy}") from None


def _empty(folder: Path) -> None:
    """Remove what is in a directory; itself stays, with the lock on it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
