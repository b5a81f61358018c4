"""A traced child, instruction by instruction: support/stepper.c loaded, the core's entries, the bytes watched.

It trusts no macro and no build option: it needs ptrace, the C compiler that the project needs anyway, and a core whose
symbols were not stripped.
"""

from __future__ import annotations

import bisect
import collections
import ctypes
import functools
import mmap
import os
import platform
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmpc._native
from mmpc._native import ffi, lib

LIMIT, RETURNED, CHANGED, ENDED, SIGNAL, LOST, HIT = range(7)  # enum step_end
CHANGED_BIT = 1 << 63  # of the address of an instruction
CHUNK = 1 << 16  # instructions at a time
TRACE_ME = 0

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
        library = ctypes.CDLL(target, use_errno=True)
    library.step_where.restype = ctypes.c_uint64
    return library


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

    def content(self) -> list[bytes]:
        """The bytes as last compared."""
        return [bytes(k) for k in self._keep if isinstance(k, ctypes.Array)]

    def refresh(self) -> None:
        """Maps anew when files came, went or grew; what changed between two regions is taken as seen."""
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


class Trace:
    """A survey of a case: the instructions of each region, in order, and which of all of them changed something."""

    def __init__(self) -> None:
        self.regions: list[str] = []
        self.instructions: list[list[int]] = []  # addresses, for each region
        self.changes: list[int] = []  # counted from 1 over all regions
        self._marked: dict[int, list[tuple[int, int, int]]] = {}

    @property
    def steps(self) -> int:
        return sum(map(len, self.instructions))

    def address(self, k: int) -> int:
        """Of the k-th instruction, counted from 1."""
        for within in self.instructions:
            if k <= len(within):
                return within[k - 1]
            k -= len(within)
        raise IndexError(k)

    def stands_at(self, k: int, address: int) -> bool:
        """Whether somebody who is at this address can be behind the k-th instruction, as the survey was."""
        for within in self.instructions:
            if k < len(within):
                return within[k] == address
            k -= len(within)
            if k == 0:
                return True  # behind the return of a region
        return False

    def place(self, k: int) -> Place:
        """How to get behind the k-th instruction at little cost: a breakpoint near to it, and steps from there."""
        region = 0
        while k > len(self.instructions[region]):
            k -= len(self.instructions[region])
            region += 1
        marks = self._marks(region)
        i = bisect.bisect_left(marks, (k, 0, 0)) - 1
        if i < 0:
            return Place(region, 0, 0, k)
        at, address, times = marks[i]
        return Place(region, address, times, k - at)

    def _marks(self, region: int) -> list[tuple[int, int, int]]:
        """Instructions of a region that are good for a breakpoint: how many come before, the address, which visit."""
        if region not in self._marked:
            first, last = core_text()
            within, visits = self.instructions[region], collections.Counter[int]()
            marks = self._marked[region] = []
            for at, address in enumerate(within):
                visits[address] += 1
                if first <= address < last and address != within[0] and visits[address] <= OFTEN:
                    marks.append((at, address, visits[address]))
        return self._marked[region]


OFTEN = 12  # visits of a breakpoint that are passed by


@dataclass(frozen=True)
class Place:
    region: int
    address: int  # 0: the region's entry
    times: int  # visits of the address
    steps: int


@functools.cache
def core_text() -> tuple[int, int]:
    """Where the code of the core lies. It is changed there, not in libraries that may be used between two regions."""
    name = os.path.realpath(mmpc._native.__file__)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(name) and "x" in line.split()[1]:
            first, last = line.split()[0].split("-")
            return int(first, 16), int(last, 16)
    raise RuntimeError(f"{name} is not mapped")


def _code(address: int) -> ctypes.c_uint64:
    """The code there, in this process: the child's is the same, since it was forked."""
    return ctypes.c_uint64(ctypes.c_uint64.from_address(address).value)


class Stepper:
    """A child that has called `trace_me`."""

    def __init__(self, pid: int, entries: Entries) -> None:
        self.c, self.entries = load(), entries
        self.child = Traced(pid, 0, 0, 0)
        self._child = ctypes.byref(self.child)
        self.ended = False
        self._check(self.c.step_begin(self._child), 0)

    def _check(self, end: int, *expected: int) -> int:
        if end == ENDED and ENDED in expected:
            self.ended = True
        elif end not in expected:
            raise OSError(f"the stepped child: {end} is not one of {expected}, detail {self.child.detail}")
        return end

    def enter(self) -> str | None:
        """Goes to the next region: its name; None: there is none, the child has ended."""
        e = self.entries
        end = self.c.step_to_entry(self._child, e.addresses, e.code, ctypes.c_uint64(e.count))
        return None if self._check(end, HIT, ENDED) == ENDED else e.names[self.child.detail]

    def step(self, limit: int, watch: Watch | None = None, pcs: Any = None) -> tuple[int, int]:
        """At most `limit` instructions of this region: how it ended, and how many there were."""
        done = ctypes.c_uint64()
        ranges, n = (watch.ranges, watch.count) if watch is not None else (None, 0)
        end = self.c.step_on(
            self._child, ctypes.c_uint64(limit), ranges, ctypes.c_uint64(n), pcs, ctypes.byref(done)
        )
        return self._check(end, LIMIT, RETURNED, CHANGED, ENDED), done.value

    def survey(self, watch: Watch) -> Trace:
        """Steps through everything, with an eye on what others see."""
        trace, pcs, steps = Trace(), (ctypes.c_uint64 * CHUNK)(), 0
        while (name := self.enter()) is not None:
            trace.regions.append(name)
            trace.instructions.append([])
            end = LIMIT
            watch.refresh()
            while end in (LIMIT, CHANGED):
                end, done = self.step(CHUNK, watch, pcs)
                trace.changes += [steps + i for i, pc in enumerate(pcs[:done], 1) if pc & CHANGED_BIT]
                trace.instructions[-1] += [pc & ~CHANGED_BIT for pc in pcs[:done]]
                steps += done
                if end == CHANGED:
                    watch.refresh()
        return trace

    def until_change(self, watch: Watch) -> None:
        """Steps until what is watched has changed."""
        while self.enter() is not None:
            watch.refresh()
            while True:
                before = watch.content()
                end, _done = self.step(CHUNK, watch)
                if end == CHANGED and watch.content() != before:
                    return
                if end in (RETURNED, ENDED):
                    break

    def go(self, place: Place) -> None:
        """To a place, or the end of the child if it takes another way this time."""
        for i in range(place.region + 1):
            if self.enter() is None:
                return
            if i < place.region:
                end = self.c.step_finish(self._child, _code(self.child.home))
                if self._check(end, RETURNED, ENDED) == ENDED:
                    return
        if place.address:
            end = self.c.step_to_pc(
                self._child, ctypes.c_uint64(place.address), _code(place.address), ctypes.c_uint64(place.times)
            )
            if self._check(end, HIT, ENDED) == ENDED:
                return
        if place.steps:
            self.step(place.steps)

    def where(self) -> int:
        return int(self.c.step_where(self._child))

    def leave(self) -> None:
        """Goes on untraced; with a SIGSTOP on its way it does not come far."""
        self._check(self.c.step_leave(self._child, 0), 0)

    def to_call(self) -> int | None:
        """To the next entry into, or exit from, a system call: its number; None: the child has ended."""
        end = self._check(self.c.step_to_call(self._child), HIT, ENDED)
        return None if end == ENDED else int(self.child.detail)

    def release(self) -> None:
        """Full speed, traced, without waiting."""
        self._check(self.c.step_release(self._child), 0)
