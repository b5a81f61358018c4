"""A traced child, instruction by instruction: support/stepper.c compiled and loaded, the core's entries, the bytes watched.

It trusts no macro and no build option: it needs ptrace, the C compiler that the project needs anyway, and a core whose
symbols were not stripped.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import struct
import subprocess
import tempfile
from pathlib import Path

import mmpc._native
from mmpc._native import ffi, lib

LIMIT, RETURNED, CHANGED, ENDED, SIGNAL, LOST, HIT = range(7)
EXIT_KILL = 0x00100000
TRACE_ME, DETACH = 0, 17

# Functions of the core that neither look at nor change what other processes see.
PRIVATE = ("mm_crc32c", "mm_destroy", "mm_filesystem", "mm_is_closed", "mm_layout_fingerprint", "mm_limit", "mm_merge")
PRIVATE += ("mm_msgpack", "mm_orphan", "mm_points")


class Range(ctypes.Structure):
    _fields_ = [("now", ctypes.c_void_p), ("before", ctypes.c_void_p), ("size", ctypes.c_uint64)]


class Traced(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_int64),
        ("home", ctypes.c_uint64),
        ("frame", ctypes.c_uint64),
        ("changes_kernel", ctypes.c_uint64),
        ("detail", ctypes.c_int64),
    ]


# ---- the C part


@functools.cache
def load() -> ctypes.CDLL:
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as directory:
        target = os.path.join(directory, "stepper.so")
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", target, str(source)], check=True, timeout=60)
        return ctypes.CDLL(target, use_errno=True)


_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


def trace_me() -> None:
    """In a child: the parent traces it from here on, and it stops."""
    if _ptrace(TRACE_ME, 0, None, None):
        raise OSError(ctypes.get_errno(), "PTRACE_TRACEME")
    os.kill(os.getpid(), 19)


def why_not() -> str | None:
    """The reason why nothing can be stepped here; None: it can."""
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"no stepper for {platform.machine()}"
    if platform.machine() == "aarch64" and " atomics" not in Path("/proc/cpuinfo").read_text():
        return "exclusive loads and stores cannot be stepped, and this machine has no other atomics"
    if not Symbols.of_core().addresses:
        return "the core's symbols were stripped"
    pid = os.fork()
    if pid == 0:
        os._exit(_ptrace(TRACE_ME, 0, None, None) != 0)
    return "ptrace is not allowed here" if os.waitpid(pid, 0)[1] else None


# ---- where the core's functions are


class Symbols:
    """Addresses by name, from the symbol table of the shared object; where it lies in memory cffi tells."""

    def __init__(self, addresses: dict[str, int]) -> None:
        self.addresses = addresses

    @staticmethod
    @functools.cache
    def of_core() -> Symbols:
        found = _symbols(Path(mmpc._native.__file__).read_bytes())
        anchor = "_cffi_d_mm_append"  # cffi's own function around mm_append, which it gives the address of
        if anchor not in found:
            return Symbols({})
        base = int(ffi.cast("uintptr_t", ffi.addressof(lib, "mm_append"))) - found[anchor]
        names = [n for n in dir(lib) if n.startswith("mm_") and not n.startswith(PRIVATE) and n in found]
        return Symbols({name: base + found[name] for name in names})


def _symbols(elf: bytes) -> dict[str, int]:
    """Functions of a 64-bit little-endian ELF file, as `nm` lists them."""
    (sections,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, sections + i * size) for i in range(count)]
    found = {}
    for _name, kind, _flags, _address, offset, length, link, _info, _align, entry in headers:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = headers[link][4]
        for at in range(offset, offset + length, entry):
            name, info, _other, _section, value, _size = struct.unpack_from("<IBBHQQ", elf, at)
            if info & 15 == 2:  # STT_FUNC
                start = names + name
                found[elf[start : elf.index(b"\0", start)].decode()] = value
    return found


class Entries:
    """Where regions begin, and the code there, which breakpoints stand upon."""

    def __init__(self) -> None:
        symbols = Symbols.of_core().addresses
        self.names = sorted(symbols)
        self.count = len(self.names)
        self.addresses = (ctypes.c_uint64 * self.count)(*(symbols[n] for n in self.names))
        self.code = (ctypes.c_uint64 * self.count)(*(ctypes.c_uint64.from_address(a).value for a in self.addresses))


# ---- the bytes that others see

CONTROL_SLOTS, SLOT, SLOTS, BLOCK = 12288, 1024, 1024, 4096
SLOTS_WATCHED = 8  # more than the tests have processes
NAMES = ("control", "table", "log", "ids", "rts")


class Watch:
    """The shared mappings of a store, also of files that a recovery makes aside; compared after each instruction.

    What is written by system calls only (marks, config, snapshots, locks) needs no comparing: each call counts as a
    change.
    """

    def __init__(self, path: str, names: tuple[str, ...] = NAMES) -> None:
        self.path, self.names = path, names
        self.ranges: ctypes.Array[Range] | None = None
        self.count = 0
        self._of: list[tuple[str, int, int]] = []
        self._keep: list[object] = []

    def refresh(self) -> None:
        """Maps anew when files came, went or grew. True changes between regions are taken as seen."""
        files = []
        for name in self.names:
            for suffix in ("", ".new"):
                try:
                    s = os.stat(os.path.join(self.path, name + suffix))
                except FileNotFoundError:
                    continue
                files.append((name + suffix, s.st_ino, s.st_size))
        if files != self._of:
            self._of = files
            self._map()
        elif self.ranges is not None:
            load().step_compare(self.ranges, ctypes.c_uint64(self.count))

    def _map(self) -> None:
        parts, self._keep = [], []
        for name, _inode, size in self._of:
            if size == 0:
                continue
            fd = os.open(os.path.join(self.path, name), os.O_RDONLY)
            mapped = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
            os.close(fd)
            address = int(ffi.cast("uintptr_t", ffi.from_buffer(mapped)))
            self._keep.append(mapped)
            for start, end in _parts(name, size):
                copy = ctypes.create_string_buffer(mapped[start:end], end - start)
                self._keep.append(copy)
                parts.append(Range(address + start, ctypes.addressof(copy), end - start))
        self.count = len(parts)
        self.ranges = (Range * max(self.count, 1))(*parts)


def _parts(name: str, size: int) -> list[tuple[int, int]]:
    if not name.startswith("control"):
        return [(0, size)]
    segments = CONTROL_SLOTS + SLOTS * SLOT
    wanted = [(0, CONTROL_SLOTS + SLOTS_WATCHED * SLOT), (segments, segments + BLOCK)]
    return [(start, min(end, size)) for start, end in wanted if start < size]


# ---- the traced child


class Stepper:
    """A child that has called `trace_me`; `steps` instructions of regions have been made, and `changes` seen."""

    def __init__(self, pid: int, watch: Watch | None = None) -> None:
        self.c, self.watch = load(), watch
        self.child = Traced(pid, 0, 0, watch is not None and watch.names == NAMES, 0)
        self.steps = self.changes = 0
        self.ended = self.inside = False
        self.regions: list[str] = []
        self._check(self.c.step_begin(ctypes.byref(self.child)), 0)

    def _check(self, end: int, *expected: int) -> int:
        if end == ENDED and ENDED in expected:
            self.ended = True
        elif end not in expected:
            raise OSError(f"the stepped child: {end} is not one of {expected}, detail {self.child.detail}")
        return end

    def enter(self, entries: Entries) -> bool:
        """Goes to the next region; False: there is none, the child has ended."""
        end = self.c.step_to_entry(
            ctypes.byref(self.child), entries.addresses, entries.code, ctypes.c_uint64(entries.count)
        )
        if self._check(end, HIT, ENDED) == ENDED:
            return False
        self.inside = True
        self.regions.append(entries.names[self.child.detail])
        if self.watch is not None:
            self.watch.refresh()
        return True

    def forward(self, entries: Entries, limit: int) -> int:
        """At most `limit` instructions, across regions; stops early at a change (with a watch) and at the end."""
        left, done = limit, ctypes.c_uint64()
        while left > 0 and not self.ended:
            if not self.inside and not self.enter(entries):
                break
            ranges = self.watch.ranges if self.watch is not None else None
            n = self.watch.count if self.watch is not None else 0
            end = self.c.step_on(
                ctypes.byref(self.child), ctypes.c_uint64(left), ranges, ctypes.c_uint64(n), ctypes.byref(done)
            )
            self._check(end, LIMIT, RETURNED, CHANGED, ENDED)
            left -= done.value
            self.steps += done.value
            self.inside = end in (LIMIT, CHANGED)
            if end == CHANGED:
                self.changes += 1
                if self.watch is not None:
                    self.watch.refresh()
                break
        return limit - left

    def leave(self, signal: int = 0) -> None:
        self._check(self.c.step_leave(ctypes.byref(self.child), signal), 0)

    def to_call(self) -> int | None:
        """To the next entry into, or exit from, a system call: its number; None: the child has ended."""
        end = self._check(self.c.step_to_call(ctypes.byref(self.child)), HIT, ENDED)
        return None if end == ENDED else int(self.child.detail)

    def release(self) -> None:
        """Full speed, traced, without waiting."""
        self._check(self.c.step_release(ctypes.byref(self.child)), 0)
