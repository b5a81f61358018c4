"""doctor: the limits of this machine, and of one store on it, in sentences. Each is a finding: what it is about, how
bad it is, what to do.

It never reads the data of a store: `check` does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.util import find_spec

from .. import _files, errors
from . import gather, show
from .frame import DONE, FOUND, command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any

GOOD, NOTE, WARNING, PROBLEM = "good", "note", "warning", "problem"
_STYLES = {GOOD: "green", NOTE: "dim", WARNING: "yellow", PROBLEM: "bold red"}
ADDRESS_SPACE = 2.4e12  # bytes that an open store maps, mostly without memory behind it
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs", "afs", "lustre"}
_EXTRAS = (("rich", "cli", "the live screen of top"), ("matplotlib", "viz", "the pictures of viz"))


class Finding:
    """One sentence about one thing; `level` is one of GOOD, NOTE, WARNING, PROBLEM."""

    __slots__ = ("about", "level", "said")

    def __init__(self, level: str, about: str, said: str) -> None:
        self.level, self.about, self.said = level, about, said

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {name: getattr(self, name) for name in ("level", "about", "said")}


def add(commands: Any) -> None:
    """Describes the command."""
    parser = command(
        commands,
        "doctor",
        _doctor,
        "explain the limits of this machine and of a store, in sentences",
        "Looks at what mmpc needs from the machine (memory and file limits, the kernel, optional packages), at\n"
        "the file system below PATH, and, if a store lies there, at what limits or endangers it: room,\n"
        "durability, snapshots, who holds space for long, signs of damage. It never reads the data; `check` does.",
        "python -m mmpc doctor /var/lib/things",
        "0 nothing keeps mmpc from working (there may be warnings), 1 something does, 2 it could not be told",
        path=None,
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="a store, or a directory where one might be (default: the machine alone)",
    )


def _doctor(options: argparse.Namespace) -> int:
    found = list(diagnose(options.path))
    if options.json:
        print(json.dumps({"path": options.path, "findings": [f.as_dict() for f in found]}))
    else:
        coloured = show.colours(sys.stdout)
        width = max(len(f.about) for f in found)
        for f in found:
            print(
                show.line(
                    [(f"{f.level:<8}", _STYLES[f.level]), (f"{f.about:<{width}}  ", "bold"), (f.said, "")], coloured
                )
            )
    return FOUND if any(f.level == PROBLEM for f in found) else DONE


def diagnose(path: str | None) -> Iterator[Finding]:
    """All findings. Errors: FileNotFoundError (no such directory), PermissionError."""
    yield from _machine()
    if path is None:
        return
    where = os.path.abspath(path)
    if not os.path.isdir(where):
        raise FileNotFoundError(2, "no such directory", where)
    os.listdir(where)  # whoever may not look at it is told so
    yield from _place(where)
    yield from _store(where)


# ---- the machine


def _machine() -> Iterator[Finding]:
    yield Finding(
        NOTE, "system", f"Linux {os.uname().release} on {os.uname().machine}, Python {sys.version.split()[0]}"
    )
    if sys.maxsize < 2**47 or not sys.platform.startswith("linux"):
        yield Finding(PROBLEM, "system", "mmpc needs 64-bit Linux")
    yield from _limits()
    yield from _memory()
    yield from _shared_memory()
    for name, extra, use in _EXTRAS:
        version = _version(name)
        if version is None:
            yield Finding(NOTE, name, f"is not installed; {use} would need it: pip install 'mmpc[{extra}]'")
        else:
            yield Finding(GOOD, name, f"{version} is installed, for {use}")
    for name in ("numpy", "msgpack", "cffi", "filelock"):
        if _version(name) is None:
            yield Finding(PROBLEM, name, "is not installed, and mmpc needs it: pip install --force-reinstall mmpc")


def _version(name: str) -> str | None:
    """Of an installed distribution, by the name of its folder: importlib.metadata takes longer than all the rest."""
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in names:
            if entry.lower().startswith(f"{name}-") and entry.endswith((".dist-info", ".egg-info")):
                return entry[len(name) + 1 : -len(".dist-info")].partition("-")[0]
    return "some version" if find_spec(name) is not None else None


def _limits() -> Iterator[Finding]:
    import resource

    space, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY and space < ADDRESS_SPACE:
        said = f"is limited to {show.size(space)} (ulimit -v); an open store maps {show.size(ADDRESS_SPACE)} of it"
        yield Finding(PROBLEM, "address space", f"{said}, and only what is used takes memory: raise it to unlimited")
    else:
        yield Finding(
            GOOD,
            "address space",
            f"is not limited; each open store takes {show.size(ADDRESS_SPACE)} of it, about 50 fit one process",
        )
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < 64:
        yield Finding(
            WARNING,
            "open files",
            f"at most {files} in a process (ulimit -n): an open store takes 7, its commands some more",
        )
    else:
        yield Finding(
            GOOD,
            "open files",
            f"at most {files} in a process (ulimit -n), at most {most} may be asked for; an open store takes 7",
        )
    size, _hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        yield Finding(WARNING, "file size", f"is limited to {show.size(size)} (ulimit -f): no log grows beyond that")


def _memory() -> Iterator[Finding]:
    overcommit = _number("/proc/sys/vm/overcommit_memory")
    if overcommit == 2:
        said = "vm.overcommit_memory is 2: shared mappings of files do not count, private memory of each process does"
        yield Finding(NOTE, "overcommit", f"{said} (cache_capacity and 48 MiB, at most)")
    maps = _number("/proc/sys/vm/max_map_count")
    if maps is not None and maps < 4096:
        yield Finding(WARNING, "mappings", f"vm.max_map_count is {maps}: many views of a store may need more")
    of = _meminfo()
    dirty, total, available = of.get("Dirty", 0), of.get("MemTotal", 0), of.get("MemAvailable", 0)
    if total:
        cache = f"{show.size(of.get('Cached', 0))} is page cache, {show.size(dirty)} of that not written yet"
        said = f"{show.size(available)} of {show.size(total)} can be used; {cache}"
        yield Finding(WARNING if available < total / 20 else GOOD, "memory", said)


def _number(name: str) -> int | None:
    try:
        with open(name) as f:
            return int(f.read())
    except (OSError, ValueError):
        return None


def _meminfo() -> dict[str, int]:
    try:
        with open("/proc/meminfo") as f:
            rows = [line.split() for line in f]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def _shared_memory() -> Iterator[Finding]:
    if not os.access("/dev/shm", os.W_OK | os.X_OK):
        yield Finding(
            NOTE,
            "/dev/shm",
            "cannot be written to: temporary stores without a path go to the directory for temporary files",
        )
        return
    room = os.statvfs("/dev/shm")
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    said = f"{show.size(free)} of {show.size(total)} is free, for temporary stores without a path"
    if free < 64 << 20:
        yield Finding(WARNING, "/dev/shm", f"{said}: in a container, give it more (--shm-size)")
    else:
        yield Finding(GOOD, "/dev/shm", said)


# ---- the file system


def _place(path: str) -> Iterator[Finding]:
    point, kind, options = _mount(path)
    if kind in _NETWORK or kind.startswith("fuse"):
        said = f"{kind}, mounted on {point}: mappings shared between machines are not coherent there"
        yield Finding(
            PROBLEM, "file system", f"{said}; mmpc needs a local one: {', '.join(_files.FILE_SYSTEMS.values())}"
        )
        return
    if kind not in _files.FILE_SYSTEMS.values():
        yield Finding(
            PROBLEM,
            "file system",
            f"{kind} is none that mmpc is known to work on: {', '.join(_files.FILE_SYSTEMS.values())}",
        )
        return
    lost = "; what lies there is lost when the machine stops" if kind == "tmpfs" else ""
    yield Finding(GOOD, "file system", f"{kind}, mounted on {point}{lost}")
    if "ro" in options:
        yield Finding(PROBLEM, "file system", f"{point} is mounted for reading only: every process needs to write")
    if os.access(path, os.W_OK):
        yield from _probe(path)
    else:
        yield Finding(
            PROBLEM,
            "permission",
            f"user {os.geteuid()} may not write to {path}: every process that opens the store needs to",
        )
    yield from _room(path)


def _mount(path: str) -> tuple[str, str, list[str]]:
    """Mount point, kind and options of the file system that holds a path."""
    real, best = os.path.realpath(path), ("", "unknown", [""])
    with open("/proc/self/mounts") as f:
        for line in f:
            _device, point, kind, options, *_ = line.split()
            point = point.encode().decode("unicode_escape")
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):
                best = point, kind, options.split(",")
    return best


def _probe(path: str) -> Iterator[Finding]:
    """Tries allocation, holes and locks on a file without a name."""
    try:
        fd = os.open(path, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as e:
        yield Finding(NOTE, "abilities", f"cannot be tried here ({e.strerror})")
        return
    try:
        lacks = [
            what
            for what, works in (("fallocate", _allocates), ("locks of open files", _locks), ("holes", _punches))
            if not works(fd)
        ]
    finally:
        os.close(fd)
    if "holes" in lacks:
        yield Finding(
            WARNING,
            "abilities",
            "holes cannot be punched: space that is given back stays in the file until the log is cut at its end",
        )
        lacks.remove("holes")
    if lacks:
        yield Finding(PROBLEM, "abilities", f"{' and '.join(lacks)} do not work here, and mmpc needs them")
    else:
        yield Finding(GOOD, "abilities", "space can be reserved and given back, and locks of open files work")


def _tries(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def _allocates(fd: int) -> bool:
    return _tries(lambda: os.posix_fallocate(fd, 0, 65536))


def _locks(fd: int) -> bool:
    import fcntl
    import struct

    return _tries(
        lambda: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    )


def _punches(fd: int) -> bool:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    keep_size, punch = 1, 2
    return bool(libc.fallocate(fd, keep_size | punch, ctypes.c_int64(0), ctypes.c_int64(4096)) == 0)


def _room(path: str) -> Iterator[Finding]:
    room = os.statvfs(path)
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    need = _need(path)
    said = f"{show.size(free)} of {show.size(total)} is free ({show.share(free, total)})"
    if free < need:
        yield Finding(
            PROBLEM, "room", f"{said}; {show.size(need)} should be, so that writers and the next snapshot find room"
        )
    else:
        yield Finding(WARNING if total and free < total / 20 else GOOD, "room", said)
    if room.f_files and room.f_favail < 64:
        yield Finding(PROBLEM, "inodes", f"{room.f_favail} are left: a recovery makes files aside")


def _need(path: str) -> int:
    """Two segments for writers and cleaning, a snapshot, and what a new store takes."""
    try:
        with gather.Store(path) as store:
            table = os.fstat(store.fds["table"]).st_size if "table" in store.fds else 0
            return (2 << store.shift) + table + (1 << 20)
    except (errors.MmpcError, OSError):
        return 16 << 20


# ---- a store


def _store(path: str) -> Iterator[Finding]:
    try:
        with gather.Store(path) as store:
            yield from _whole(store)
            if store.current:
                yield from _running(store)
    except FileNotFoundError:
        yield Finding(NOTE, "store", "there is none here; create=True makes one")
    except errors.IncompatibleStore as e:
        yield Finding(PROBLEM, "store", str(e))
    except errors.CorruptionError as e:
        yield Finding(PROBLEM, "store", f"damaged: {e}; python -m mmpc check {path} --salvage DIR saves what is intact")


def _whole(store: gather.Store) -> Iterator[Finding]:
    """What can be said of any store, from its small files and sizes."""
    strange = sorted(n for n in os.listdir(store.path) if not _files.belongs(n))
    if strange:
        yield Finding(WARNING, "directory", f"holds what is not of a store: {', '.join(strange[:5])}")
    missing = [name for name in ("log", "marks", "lock") if name not in store.fds]
    if missing:
        yield Finding(
            PROBLEM, "damage", f"{', '.join(missing)} is missing; python -m mmpc check {store.path} says more"
        )
        return
    durable = store.mark()
    problems = [p for p in store.findings.problems if p.severity == "damage"]
    for problem in problems[:5]:
        yield Finding(PROBLEM, "damage", f"{problem.file} at {problem.offset}: {problem.message}")
    if store.current and os.fstat(store.fds["log"]).st_size < store.word("log_size"):
        yield Finding(PROBLEM, "damage", "'log' was cut short while the store was in use")
    elif not problems:
        yield Finding(
            GOOD, "damage", "no sign of it in config, marks and headers; python -m mmpc check reads everything"
        )
    if store.foreign:
        yield Finding(PROBLEM, "version", f"{gather.FOREIGN}; close it there first")
    elif not store.current:
        said = "the next open recovers it, since nobody has opened it since the machine started, or it is a copy"
        yield Finding(NOTE, "recovery", f"{said}; durable up to epoch {durable}")
    yield from _snapshot(store)


def _snapshot(store: gather.Store) -> Iterator[Finding]:
    snapshot = store.snapshot()
    if snapshot is None:
        yield Finding(NOTE, "snapshot", "there is none yet: a recovery after a loss of power reads the whole log")
        return
    age = show.span(time.time() - snapshot.created / 1e9)
    since = max(0, store.word("log_taken") - snapshot.log_taken) if store.current else 0
    said = (
        f"the newest is {age} old; a recovery would read {show.size(since)} written since"
        if store.current
        else f"the newest is {age} old"
    )
    level = WARNING if since > 8 << 30 else GOOD
    yield Finding(level, "snapshot", said + ("; pc.snapshot() writes one" if level == WARNING else ""))


def _running(store: gather.Store) -> Iterator[Finding]:
    failed = store.word("failed")
    if failed:
        yield Finding(
            PROBLEM, "sync", f"one failed ({os.strerror(failed)}): close the store in every process and open it again"
        )
    yield from _dirty(store)
    segments = store.segments(disk=False)
    taken, live = gather.filled(segments)
    if taken > 64 << 20 and live < taken / 3:
        yield Finding(
            WARNING,
            "garbage",
            f"only {show.share(live, taken)} of {show.size(taken)} is live; python -m mmpc gc gives back the rest",
        )
    readers = store.readers()
    dead = sum(not r.alive for r in readers)
    if dead:
        yield Finding(
            NOTE, "processes", f"{dead} died and left their slots; the next that needs one, or a write, reaps them"
        )
    for r in readers:
        if r.held > 60:
            waits = f", and {show.size(r.delays)} of the log wait for it" if r.delays else ""
            yield Finding(
                WARNING,
                "long pin",
                f"process {r.process} holds epoch {r.oldest}, for {show.span(r.held)} or longer{waits}: end its Tx",
            )
    if len([r for r in readers if r.alive]) > _files.SLOTS * 9 // 10:
        yield Finding(WARNING, "processes", f"{len(readers)} of {_files.SLOTS} slots are taken")
    held = {n for r in readers for n in r.views}
    if held:
        yield Finding(NOTE, "views", f"hold {len(held)} segments ({show.size(len(held) << store.shift)})")
    ahead = _ahead(store, segments)
    said = "of the log is allocated ahead: for writers, and, on a full disk, for frees and cleaning"
    yield Finding(NOTE, "reserve", f"{show.size(ahead)} {said}")
    mapped = sum(
        size for name, (size, _disk) in store.files().items() if name in ("log", "table", "ids", "rts", "control")
    )
    yield Finding(
        NOTE,
        "mapped",
        f"a handle may have up to {show.size(mapped)} of the files mapped: page cache, shared by all processes",
    )


def _ahead(store: gather.Store, segments: list[gather.Segment]) -> int:
    """Bytes of the log that are allocated, and that a lease can be taken from."""
    end, ahead = store.word("log_size"), 0
    for s in segments:
        if s.state in ("open", "free"):
            begin = (s.number << store.shift) + (s.taken or 0)
            ahead += max(0, min(end, (s.number + 1) << store.shift) - begin)
    return ahead


def _dirty(store: gather.Store) -> Iterator[Finding]:
    dirty, stable = store.word("dirty"), store.word("stable")
    if dirty <= stable:
        yield Finding(GOOD, "durability", "all that was written is durable")
        return
    said = f"what was written since epoch {stable} is not durable yet, and a loss of power would undo it"
    try:
        age = time.time() - os.fstat(store.fds["marks"]).st_mtime
    except OSError:
        age = 0.0
    if age > 60:
        yield Finding(
            WARNING,
            "durability",
            f"{said}; the last flush was {show.span(age)} ago: flush(), or open with flush_every_ms",
        )
    else:
        yield Finding(NOTE, "durability", said)
