"""Looks below the surface: the length of a page's chain, the bytes of a store's files."""

from __future__ import annotations

import os
from typing import Any

from mmpc._native import ffi, lib

THRESHOLD = 10
DEEPEST = 8  # times the threshold: where a writer has to consolidate first


def depth(pc: Any, pid: int) -> int:
    """The number of records of the page's chain, without reading the page."""
    triples, r = ffi.new("uint64_t[]", 3 * 4096), ffi.new("mm_result *")
    status = lib.mm_chain(pc._attachment.mm, pid, triples, 4096, r)
    assert status == 0, status
    return int(r.count)


def live(pc: Any) -> int:
    """The number of attached living processes (handles), the dead ones reaped."""
    assert lib.mm_reap_all(pc._attachment.mm, ffi.new("uint64_t *")) == 0
    return int(pc.stats().slots)


def contents(path: str) -> dict[str, bytes]:
    """Name and bytes of every file of a store."""
    found = {}
    for name in os.listdir(path):
        with open(os.path.join(path, name), "rb") as f:
            found[name] = f.read()
    return found
