"""What a snapshot says of segments that somebody died preparing."""

from __future__ import annotations

import os
import struct

import mmpc
from support.kill_world import another_boot, copy_store

SIZE = 1 << 16  # of a segment
GLOBALS, SEGMENTS = 4096, 12288 + 1024 * 1024  # of control: where they begin
PUBLISHED = GLOBALS + 6 * 64  # entries of the segment table in use


def leave_prepared(path: str) -> None:
    """As if somebody had died while it prepared one more segment, before it wrote the header, and had been reaped."""
    with open(os.path.join(path, "control"), "r+b") as f:
        f.seek(PUBLISHED)
        (n,) = struct.unpack("<Q", f.read(8))
        f.seek(PUBLISHED)
        f.write(struct.pack("<Q", n + 1))
        f.seek(SEGMENTS + n * 64)
        f.write(struct.pack("<Q", 1 << 4))  # FREE, generation 1


def test_a_segment_without_a_header_is_read_once_it_has_one(path, tmp_path, open_store):
    pages = open_store(segment_size=SIZE)
    pages.allocate(b"a")
    leave_prepared(path)
    pages.snapshot()
    pages.close()
    os.unlink(os.path.join(path, "table"))
    pages = open_store(segment_size=SIZE)  # from the snapshot; the segment has no generation any more
    values = [bytes([n]) * (SIZE // 2) for n in range(4)]
    pids = [pages.allocate(value)[0] for value in values]
    pages.flush()
    copy = str(tmp_path / "copy")
    copy_store(path, copy)
    with another_boot(), mmpc.open(copy, mmpc.Append()) as again:
        assert [again.get(pid).value for pid in pids] == values
