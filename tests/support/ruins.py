"""Stores to be damaged: built once, laid down again and again, with exactly one thing wrong each time."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
from typing import Any

import filelock
import msgpack

import mmpc
from mmpc import _files, codec
from mmpc._layout import (
    BLOCK,
    INDEX,
    INNER,
    LEASE_HEADER,
    MARK_SECTOR,
    RECORD,
    SECTOR,
    SEGMENT_HEADER,
    body_of,
    inner_of,
    span_of,
)
from mmpc._log import Log
from mmpc._native import ffi, lib
from support.children import Children

IMPORTED = filelock, logging, msgpack  # once here, not in each of thousands of children
SHIFT = 16
_ZERO = bytes(BLOCK)
Model = dict[int, Any]  # page: value, or None for a free one


def build(path: str, killed: bool) -> Model:
    """A store of two segments, two slots, chains, groups, free pages and replaced ones; flushed. Leaves by close, or
    by SIGKILL: call it in a child.
    """
    options: dict[str, Any] = {"create": True, "segment_size": 1 << SHIFT, "page_consolidation_threshold": 60}
    a, b = mmpc.open(path, mmpc.Append(), **options), mmpc.open(path, mmpc.Append(), **options)
    model: Model = {}
    for i in range(8):
        pid, _key = a.allocate([i])
        model[pid] = [i]
        for n in range(i):
            (a, b)[n % 2].append(pid, [n * i])
            model[pid].append(n * i)
    for pid in (3, 5):
        b.free(pid, b.get(pid).key)
        model[pid] = None
    group(a, 6, model)
    for n in range(38):  # fills the first segment
        a.replace(9, a.get(9).key, [bytes([n]) * 1500])
        model[9] = [bytes([n]) * 1500]
    for pid in (2, 4, 7):
        b.replace(pid, b.get(pid).key, [pid] * 3)
        b.append(pid, ["last"])
        model[pid] = [pid, pid, pid, "last"]
    for n in range(20):  # so that the epochs have some bits
        b.append(8, [n])
        model[8].append(n)
        a.flush()
    group(b, 8, model)
    a.flush()
    a.flush()
    if killed:
        write_model(path, model)
        os.kill(os.getpid(), signal.SIGKILL)
    a.close()
    b.close()
    write_model(path, model)
    return model


def group(pc: mmpc.PageCache[Any], pid: int, model: Model) -> None:
    """A consolidation that finds two newer fragments: a base and a delta inside a group, and the delta that ends it."""
    pc.append(pid, ["g"])
    base = pc.get(pid)
    payload = codec.encode(base.value)
    pc.append(pid, ["h"])
    pc.append(pid, ["i"])
    r = ffi.new("mm_result *")
    assert lib.mm_consolidate(pc._attachment.mm, pid, base.key.wts, payload, len(payload), r) == 0
    model[pid] += ["g", "h", "i"]


def write_model(path: str, model: Model) -> None:
    """What a store at `path` must hold, for `read_model` and `Image`."""
    with open(path + ".model", "wb") as f:
        f.write(codec.encode(model))


def read_model(path: str) -> Model:
    """What `build` left in a store at `path`."""
    with open(path + ".model", "rb") as f:
        model: Model = codec.decode(f.read())
    return model


class Image:
    """The bytes of a closed store."""

    def __init__(self, path: str) -> None:
        self.model = read_model(path)
        self.files: dict[str, bytes] = {}
        for name in os.listdir(path):
            with open(os.path.join(path, name), "rb") as f:
                self.files[name] = f.read()

    def lay(self, path: str, changed: dict[str, bytes | None] | None = None) -> None:
        """Writes the store to `path`, with some files changed (None: missing), and makes `control` name these files, so
        that it is believed as it was where it came from.
        """
        shutil.rmtree(path, ignore_errors=True)
        os.mkdir(path, 0o700)
        for name, data in self.files.items():
            write_sparse(os.path.join(path, name), data)
        own(path)
        for name, new in (changed or {}).items():
            if new is None:
                os.unlink(os.path.join(path, name))
            elif name == "control":
                self._rewrite_control(path, new)
            else:
                write_sparse(os.path.join(path, name), new)

    def _rewrite_control(self, path: str, new: bytes) -> None:
        """Only the bytes that differ: the identity has just been made to fit."""
        old, name = self.files["control"], os.path.join(path, "control")
        with open(name, "r+b") as f:
            if len(new) != len(old):
                f.truncate(len(new))
            for at in range(0, min(len(old), len(new)), BLOCK):
                if old[at : at + BLOCK] != new[at : at + BLOCK]:
                    for i, (x, y) in enumerate(zip(old[at : at + BLOCK], new[at : at + BLOCK], strict=False)):
                        if x != y:
                            f.seek(at + i)
                            now = f.read(1)
                            f.seek(at + i)
                            f.write(bytes([now[0] ^ x ^ y]))

    def flip(self, name: str, at: int, bit: int) -> dict[str, bytes | None]:
        """The change that turns one bit."""
        data = self.files[name]
        return {name: data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]}


def write_sparse(name: str, data: bytes) -> None:
    """Replaces a file's bytes, not its inode; what is zero becomes a hole."""
    with open(name, "r+b" if os.path.exists(name) else "wb") as f:
        f.truncate(0)
        f.truncate(len(data))
        for at in range(0, len(data), BLOCK):
            block = data[at : at + BLOCK]
            if block != _ZERO[: len(block)]:
                f.seek(at)
                f.write(block)


def own(path: str) -> None:
    """Writes the identity of a copied store anew, for the files of the copy."""
    config = _files.read_config(path)
    assert config is not None
    with _files.Descriptors() as files:
        files.open(path, ("control", "table", "log", "ids", "rts"))
        c = ffi.new("mm_config *")
        for name in ("control", "table", "log", "ids", "rts", "marks", "lock"):
            setattr(c, name, files.get(name))
        ffi.memmove(c.uuid, config.uuid, 16)
        ffi.memmove(c.boot_id, _files.boot_id(), 64)
        assert lib.mm_identity_write(c, 1, ffi.new("mm_result *")) == 0


# ---- what a reader gets

kept: list[Any] = []  # handles of this process: it leaves without a close, which would write


def read_all(path: str, model: Model) -> tuple[str, list[str]]:
    """Opens the store and reads every page: ("right" | "error", what went wrong). Whatever is neither right nor a clear
    error is raised. Call it in a child.
    """
    errors: list[str] = []
    try:
        pc = mmpc.open(path, mmpc.Append())
    except mmpc.CorruptionError as e:
        assert e.file in str(e)
        assert e.offset is not None
        return "error", [f"open: {e}"]
    except mmpc.IncompatibleStore as e:
        return "error", [f"config: {e}"]
    for pid, expected in model.items():
        try:
            page = pc.get(pid)
        except mmpc.CorruptionError as e:
            assert e.file in str(e)
            assert e.offset is not None
            errors.append(f"page {pid}: {e}")
            continue
        if expected is None:
            assert page.is_free(), f"WRONG: page {pid} should be free, is {page!r:.200}"
        else:
            assert page.is_materialized(), f"WRONG: page {pid} is lost: {page!r:.200}"
            assert page.value == expected, f"WRONG: page {pid} is {page.value!r:.200}, not {expected!r:.200}"
    for pid in (0, 1, max(model) + 1):
        try:
            page = pc.get(pid)
            assert isinstance(page, (mmpc.Meta, mmpc.Counter, mmpc.Unallocated)[min(pid, 2)]), f"WRONG: {page!r:.200}"
        except mmpc.CorruptionError as e:
            errors.append(f"page {pid}: {e}")
    kept.append(pc)
    return ("error" if errors else "right"), errors


def check(path: str) -> tuple[str, list[str]]:
    """What verify says: "sound", "warning" or "damage", and the problems."""
    try:
        report = mmpc.verify(path)
    except (mmpc.CorruptionError, mmpc.IncompatibleStore) as e:
        return "damage", [str(e)]
    problems = [str(p) for p in report.problems]
    return ("damage" if not report.ok else "warning" if problems else "sound"), problems


def trial(path: str, model: Model, boot: str) -> tuple[str, str, list[str]]:
    """In a child: verify, then read. ("right" | "error", "sound" | "warning" | "damage", details)."""
    if boot == "other":
        os.environ["MMPC_BOOT_ID"] = "another boot"
    found, problems = check(path)
    outcome, errors = read_all(path, model)
    return outcome, found, [*problems, *errors]


# ---- where things are


def parts(image: Image) -> dict[str, list[tuple[str, int, int]]]:
    """For each lasting file what is used of it: (what it is, offset, length)."""
    found: dict[str, list[tuple[str, int, int]]] = {"config": [("config", 0, len(image.files["config"]))]}
    marks = image.files["marks"]
    used = [at for at in range(0, len(marks), SECTOR) if any(marks[at : at + SECTOR])]
    found["marks"] = [("sector", at, SECTOR) for at in used]
    found["marks head"] = [("sector head", at, MARK_SECTOR.size + 32) for at in used]
    for name, data in image.files.items():
        if name.startswith("snapshot-"):
            found[name] = [("snapshot", 0, len(data))]
    found["log"], found["log payload"] = _parts_of_log(image)
    return found


def _parts_of_log(image: Image) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    log = scanned(image)
    heads = [("segment header", n << SHIFT, SEGMENT_HEADER.size) for n in log.segments]
    heads += [("lease header", at, LEASE_HEADER.size) for at in log.leases]
    payloads = []
    for i, address in enumerate(log.addresses):
        shape = log.shapes[i]
        kind = {1: "base", 2: "delta", 3: "free"}[shape >> 40 & 7]
        kind += " inside a group" if shape & INNER else " that ends a group" if inner_of(shape) else ""
        kind += " with an index" if shape & INDEX else ""
        heads.append((kind, address, RECORD.size))
        if n := body_of(shape):
            payloads.append((f"payload of {kind}", address + RECORD.size, n))
    return heads, payloads


def scanned(image: Image) -> Log:
    """The log of an image, read."""
    from mmpc._findings import Findings
    from mmpc._lasting import Config, parse_config

    fd = os.memfd_create("log")
    try:
        os.write(fd, image.files["log"])
        config = parse_config(image.files["config"])
        assert isinstance(config, Config)
        log = Log(fd, config, 2**64 - 1, 2**64 - 1, Findings())
        log.scan(lambda done: None)
        return log
    finally:
        os.close(fd)


def padding(image: Image) -> list[tuple[int, int]]:
    """(offset, length) of what nobody uses in the log: behind payloads, and behind the last record of a lease."""
    log = scanned(image)
    gaps = []
    for i, address in enumerate(log.addresses):
        n = body_of(log.shapes[i])
        if pad := span_of(n) - RECORD.size - n:
            gaps.append((address + RECORD.size + n, pad))
    gaps += [(lease.end, lease.address + lease.size - lease.end) for lease in log.leases.values() if lease.end % BLOCK]
    return gaps


def word(data: bytes, at: int) -> int:
    """A little-endian word."""
    return int(struct.unpack_from("<Q", data, at)[0])


def make(path: str, killed: bool) -> Image:
    """Builds a store at `path` and takes its image."""
    with Children() as children:
        child = children.start(build, path, killed)
        if killed:
            assert child.wait() == -signal.SIGKILL
        else:
            child.result()
    return Image(path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m mmpc` with these arguments."""
    command = [sys.executable, "-P", "-W", "error", "-m", "mmpc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)
