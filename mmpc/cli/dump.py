"""dump: every page of a store as lines of JSON.

Each page is read in one piece, as it stands in that moment: its fragments belong together, and what one page says may
be newer than what another does. `--closed` dumps a copy that was made at one moment for all pages (a backup), which
needs room for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

import mmpc

from .. import _files, errors
from .._native import ffi, lib
from .._visit import visit
from . import lines
from .frame import DONE, Broken, Refused, command
from .show import Bar

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from ..pagecache import PageCache

_FREE = 3  # kind of a record
_ROOM = 1 << 16


def add(commands: Any) -> None:
    """Describes the command."""
    parser = command(
        commands,
        "dump",
        _dump,
        "write every page as a line of JSON",
        "Writes the whole store as lines of JSON: a header, a line for each page with its fragments as they are\n"
        "stored, and a last line with counts and a checksum, so that a dump that was cut short is noticed. The\n"
        "store's materializer is not needed. Others may write meanwhile: each page is as it was at one moment,\n"
        "different pages at different ones; with --closed all pages are of one moment. The format: docs/cli.md.",
        "python -m mmpc dump /var/lib/things --closed | zstd > things.jsonl.zst",
        "0 done, 1 a page is damaged, and the dump has no last line, 2 it could not be done",
        json=False,
        reads_only=False,
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write to FILE, which appears when it is whole (default: the standard output)",
    )
    parser.add_argument(
        "--closed", action="store_true", help="dump a copy of one moment, which is made in --temporary first"
    )
    parser.add_argument(
        "--temporary",
        metavar="DIR",
        help="where the copy of --closed is made and removed again (default: the usual place)",
    )


def _dump(options: argparse.Namespace) -> int:
    if options.output is None and sys.stdout.isatty():
        raise Refused("a dump is for a file or a pipe: give -o FILE, or pipe it")
    if not options.closed:
        return _from(options.path, options.output)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mmpc-dump-", dir=options.temporary) as folder:
        copy = os.path.join(folder, "copy")
        with Bar("copying") as bar:
            mmpc.backup(options.path, copy, progress=bar)
        return _from(copy, options.output, of=options.path)


def _from(path: str, output: str | None, of: str | None = None) -> int:
    with visit(path, decodes=True) as pc, Bar("dumping", "pages") as bar:
        if output is None:
            Dump(pc, sys.stdout.buffer.write, of or path).run(bar)
            sys.stdout.buffer.flush()
            return DONE
        part = f"{output}.{os.getpid()}.part"
        try:
            with open(part, "xb") as f:
                Dump(pc, f.write, of or path).run(bar)
                f.flush()
                os.fsync(f.fileno())
            os.rename(part, output)
        except BaseException:
            if os.path.exists(part):
                os.unlink(part)
            raise
    return DONE


class Dump:
    """One dump of the store of a handle; `write` takes bytes."""

    def __init__(self, pc: PageCache[Any], write: Callable[[bytes], object], path: str) -> None:
        self._pc, self._write, self._path = pc, write, path
        self._sum = hashlib.sha256()
        self._room = _ROOM
        self._buffer = ffi.new("uint8_t[]", self._room)
        self._result = ffi.new("mm_result *")
        self.pages = self.free = self.fragments = self.bytes = 0

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Writes all of it. Broken: a page is damaged."""
        pc, config = self._pc, _files.read_config(self._pc.path)
        assert config is not None
        self._line(
            {
                "mmpc": "dump",
                "version": lines.VERSION,
                "materializer": config.materializer,
                "codec": config.codec,
                "segment_size": 1 << config.segment_shift,
                "uuid": config.uuid.hex(),
                "path": os.path.abspath(self._path),
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
        )
        end = _end(pc)
        for pid in range(end):
            self._page(pid)
            if not pid & 255:
                progress(pid, end)
        found = {"end": True, "pages": self.pages, "free": self.free, "fragments": self.fragments, "bytes": self.bytes}
        self._write(_encoded(found | {"sha256": self._sum.hexdigest()}))

    def _line(self, found: dict[str, Any]) -> None:
        data = _encoded(found)
        self._sum.update(data)
        self._write(data)

    def _page(self, pid: int) -> None:
        status = self._read(pid)
        if status == errors.NOPAGE:
            return
        r = self._result
        if status not in (errors.OK, errors.COMPRESSED):
            error = errors.from_status(
                status, pid=pid, length=r.length, offset=r.offset, file=r.file, os_error=r.os_error, path=self._pc.path
            )
            if isinstance(error, errors.CorruptionError):
                raise self._damaged(pid, error) from error
            raise error
        self.pages += 1
        if r.kind == _FREE:
            self.free += 1
            self._line({"page": pid, "free": True})
            return
        body = ffi.buffer(self._buffer, r.length)[:]
        if status == errors.COMPRESSED:
            body = self._decompressed(pid, body)
        fragments = split(body, r.count)
        self.fragments += len(fragments)
        self.bytes += sum(map(len, fragments))
        self._line({"page": pid, "fragments": [lines.written(f) for f in fragments]})

    def _damaged(self, pid: int, error: errors.CorruptionError) -> Broken:
        remedy = f"python -m mmpc check {self._path} --salvage DIR saves the others"
        return Broken(f"page {pid} is damaged: {error}; {remedy}")

    def _decompressed(self, pid: int, stored: bytes) -> bytes:
        try:
            return self._pc._compression.decompress(pid, stored, 0)
        except errors.CorruptionError as e:
            raise self._damaged(pid, e) from e

    def _read(self, pid: int) -> int:
        """All fragments of the page, as it stands now, into the buffer."""
        while True:
            status = int(lib.mm_read(self._pc._attachment.mm, pid, 0, 0, self._buffer, self._room, self._result))
            if status != errors.SPACE:
                return status
            self._room = max(2 * self._room, int(self._result.length))
            self._buffer = ffi.new("uint8_t[]", self._room)


def _end(pc: PageCache[Any]) -> int:
    """Above all page ids that were ever used."""
    stats = ffi.new("mm_stats *")
    status = lib.mm_get_stats(pc._attachment.mm, stats)
    if status != errors.OK:
        raise errors.from_status(status, pid=0, length=0, offset=0, file=0, os_error=0, path=pc.path)
    return int(stats.pages)


def split(body: bytes, count: int) -> list[bytes]:
    """The fragments in what the core gives for a page: one msgpack array of them. Broken: it is none."""
    if count == 1 and body[:1] == b"\x91":
        return [body[1:]]
    import msgpack

    unpacker = msgpack.Unpacker(max_buffer_size=0, strict_map_key=False)
    unpacker.feed(body)
    try:
        found, n = [], unpacker.read_array_header()
        at = unpacker.tell()
        for _ in range(n):
            unpacker.skip()
            found.append(body[at : unpacker.tell()])
            at = unpacker.tell()
    except (ValueError, msgpack.exceptions.UnpackException) as e:
        raise Broken(f"a fragment cannot be read: {e}") from e
    return found


def _encoded(found: dict[str, Any]) -> bytes:
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
