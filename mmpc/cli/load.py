"""load: makes a store of a dump."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

from .. import _files, _store
from .._lasting import Config
from .._layout import BASE, DELTA, FREE, PAGE_MASK
from ..salvage import _New
from . import lines, show
from .frame import DONE, Broken, Refused, at_least, command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any, BinaryIO


def add(commands: Any) -> None:
    """Describes the command."""
    parser = command(
        commands,
        "load",
        _load,
        "make a store of a dump",
        "Makes a new store in PATH, a directory that is empty or does not exist, of what `dump` wrote: the same\n"
        "page ids, free pages stay free, the same fragments, materializer and segment size. The name of the\n"
        "materializer is all that is needed of it. The new store has a uuid of its own, and versions and\n"
        "timestamps of pages begin anew. What was loaded is durable on return; a dump that is damaged or cut\n"
        "short leaves no store.",
        "python -m mmpc load /var/lib/things-again things.jsonl",
        "0 done, 1 the dump is damaged or cut short, 2 it could not be done",
        path="where the new store goes: an empty directory, or none yet",
        reads_only=False,
    )
    parser.add_argument(
        "--compress",
        type=at_least(1, 22),
        default=None,
        metavar="FACTOR",
        help="compress the fragments with zstandard at this level, 1 to 22 (default: they are stored as they are)",
    )
    parser.add_argument("dump", metavar="DUMP", nargs="?", default="-", help="the dump (default: the standard input)")


def _load(options: argparse.Namespace) -> int:
    where = os.path.abspath(options.path)
    if os.path.lexists(where) and (not os.path.isdir(where) or os.listdir(where)):
        raise Refused(f"{where}: a new store needs an empty directory, or none yet")
    begun = time.monotonic()
    source: BinaryIO = sys.stdin.buffer if options.dump == "-" else open(options.dump, "rb")  # noqa: SIM115 - below
    with source, show.Bar("loading") as bar:
        size = os.fstat(source.fileno()).st_size
        part = f"{where}.{os.getpid()}.part"  # whoever is killed here leaves no store at `where`
        loaded = Load(source, part, options.compress)
        try:
            loaded.run(lambda done: bar(done, max(size, done)))
            # Like a backup it is recovered by the first open, which then knows what the pages say: free ids, numbers.
            _files.remove_volatile(part, control=True)
            os.rename(part, where)
            _files.sync_directory(os.path.dirname(where))
        except BaseException:
            if os.path.isdir(part):
                _files.remove_store(part)
            raise
    found = {"path": where} | loaded.report() | {"seconds": time.monotonic() - begun}
    if options.json:
        print(json.dumps(found))
    else:
        pages = f"{show.number(found['pages'])} pages ({show.number(found['free'])} free)"
        fragments = f"{show.number(found['fragments'])} fragments, {show.size(found['bytes'])}"
        print(f"{where}: {pages}, {fragments}; {found['seconds']:.1f} s")
    return DONE


class Load:
    """One dump on its way into a new store."""

    def __init__(self, source: BinaryIO, path: str, factor: int | None = None) -> None:
        self._source, self.path, self._factor = source, path, factor
        self._sum = hashlib.sha256()
        self._line = self._last = self.pages = self.free = self.fragments = self.bytes = 0
        self._done = 0

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in ("pages", "free", "fragments", "bytes")}

    def run(self, progress: Callable[[int], None]) -> None:
        """Loads all of it. Broken: the dump is damaged, or cut short."""
        with _New(self.path, self._header(), self._factor) as new:
            self._last = -1
            while True:
                data, found = self._next()
                if "end" in found:
                    break
                self._sum.update(data)
                self._page(new, found)
                progress(self._done)
            self._judge(found)
            new.finish()

    def _next(self) -> tuple[bytes, dict[str, Any]]:
        data = self._source.readline()
        self._line += 1
        self._done += len(data)
        if not data.endswith(b"\n"):
            raise Broken("the dump is cut short: it has no last line with counts and checksum")
        try:
            found = json.loads(data)
        except ValueError as e:
            raise self._broken(f"no JSON: {e}") from None
        except RecursionError:
            raise self._broken(f"JSON of far more than {lines.DEEPEST} levels") from None
        if not isinstance(found, dict):
            raise self._broken("not a JSON object")
        return data, found

    def _broken(self, why: str) -> Broken:
        return Broken(f"the dump is damaged in line {self._line}: {why}")

    def _header(self) -> Config:
        try:
            data, head = self._next()
        except Broken:
            raise Refused("this is no dump of mmpc") from None
        if head.get("mmpc") != "dump":
            raise Refused("this is no dump of mmpc: the first line does not say so")
        if head.get("version") != lines.VERSION:
            raise Refused(f"the dump has version {head.get('version')!r}, this mmpc reads version {lines.VERSION}")
        if head.get("codec") != _store.CODEC:
            raise Refused(f"the dump's codec is {head.get('codec')!r}, this mmpc has {_store.CODEC!r}")
        name, size = head.get("materializer"), head.get("segment_size")
        if (
            not isinstance(name, str)
            or not name
            or not isinstance(size, int)
            or size not in [1 << s for s in range(16, 31)]
        ):
            raise self._broken("a header without materializer and segment size")
        self._sum.update(data)
        return Config(b"", size.bit_length() - 1, name, _store.CODEC, ())

    def _page(self, new: _New, found: dict[str, Any]) -> None:
        pid, fragments = found.get("page"), found.get("fragments")
        if not isinstance(pid, int) or not self._last < pid <= PAGE_MASK:
            raise self._broken(f"page id {pid!r} after {self._last}")
        self._last = pid
        self.pages += 1
        if found.get("free") is True:
            self.free += 1
            self._put(new, pid, FREE, b"")
            return
        if not isinstance(fragments, list) or not fragments:
            raise self._broken(f"page {pid} has no fragments")
        for i, form in enumerate(fragments):
            try:
                payload = lines.read(form)
            except ValueError as e:
                raise self._broken(f"fragment {i} of page {pid}: {e}") from None
            self._put(new, pid, DELTA if i else BASE, payload)
            self.fragments += 1
            self.bytes += len(payload)

    def _put(self, new: _New, pid: int, kind: int, payload: bytes) -> None:
        refused = new.put(pid, kind, payload)
        if refused is not None:
            raise self._broken(refused)

    def _judge(self, end: dict[str, Any]) -> None:
        counted = {name: getattr(self, name) for name in ("pages", "free", "fragments", "bytes")}
        said = {name: end.get(name) for name in counted}
        if counted != said:
            raise Broken(f"the dump is damaged: its last line says {said}, it holds {counted}")
        if end.get("sha256") != self._sum.hexdigest():
            raise Broken("the dump is damaged: the checksum of its lines is wrong")
        if self._source.read(1):
            raise Broken("the dump is damaged: something follows its last line")
