"""The files of a store: the one module that creates, opens, writes and removes them.

A store is a directory.  `config` is written last at creation, by rename: a directory without it is no store
yet.  `control`, `table`, `ids` and `rts` are volatile: made aside and renamed, and trusted only while the
identity block in `control` names exactly these files and this boot.  `metrics` is volatile and never trusted.
`open.lock` is held for creation and recovery, never by running operations.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys

from . import errors, failpoints
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LASTING = ("config", "log", "marks", "lock", "open.lock")
VOLATILE = ("control", "table", "ids", "rts")
METRICS = "metrics"  # volatile too, but nothing depends on it: made when it can be, used where it fits
FORMAT = 5
MARKS_SIZE = 8 << 20  # of `marks`, from its creation on
SLOTS = 1024
SLOTS_READY = 16  # their blocks of `marks` are allocated at creation
MAX_CONFIG = 64 << 20
TEMPORARY = 1  # a bit of compat: who leaves last removes the store
COMPRESSED = 1  # a bit of incompat: there may be compressed records
_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a store is data: no link is followed, no pipe waited for

# Local file systems whose shared mappings are coherent and whose allocation can be reserved (statfs magic
# numbers).
FILE_SYSTEMS = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x01021994: "tmpfs",
    0x794C7630: "overlay",
}
_BTRFS = 0x9123683E
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_NOCOW_FL = 0x80086601, 0x40086602, 0x00800000

# magic, format, crc of what is behind it, length, segment shift, incompat, ro_compat, compat, uuid, created
# (ns)
_CONFIG = struct.Struct("<8sIIIIQQQ16sQ")
_MAGIC = b"MMPCconf"


class Config:
    """What `config` says.  Immutable facts of the store, and the colours that recoveries discarded (pairs lo
    < colour <= hi).  `compat`: feature bits, also those that this mmpc does not know; `incompat`: those that it must
    know.
    """

    __slots__ = ("codec", "compat", "created", "cuts", "discards", "incompat", "materializer", "segment_shift", "uuid")

    def __init__(
        self,
        uuid: bytes,
        segment_shift: int,
        materializer: str,
        codec: str,
        created: int,
        discards: tuple[tuple[int, int], ...] = (),
        compat: int = 0,
        cuts: tuple[tuple[int, int], ...] = (),
        incompat: int = 0,
    ) -> None:
        self.uuid = uuid
        self.compat = compat
        self.incompat = incompat
        self.segment_shift = segment_shift
        self.materializer = materializer
        self.codec = codec
        self.created = created
        self.discards = discards
        self.cuts = cuts

    def changed(
        self,
        discards: tuple[tuple[int, int], ...] | None = None,
        cuts: tuple[tuple[int, int], ...] | None = None,
        incompat: int | None = None,
    ) -> Config:
        """The same store, of which more is gone, or may be there."""
        return Config(
            self.uuid,
            self.segment_shift,
            self.materializer,
            self.codec,
            self.created,
            self.discards if discards is None else discards,
            self.compat,
            self.cuts if cuts is None else cuts,
            self.incompat if incompat is None else incompat,
        )

    @property
    def temporary(self) -> bool:
        """Whether the store was made to be removed by who leaves it last."""
        return bool(self.compat & TEMPORARY)

    @property
    def compressed(self) -> bool:
        """Whether there may be compressed records, now or later: a fact that stays."""
        return bool(self.incompat & COMPRESSED)

    def encode(self) -> bytes:
        names = b"".join(struct.pack("<I", len(n)) + n for n in (self.materializer.encode(), self.codec.encode()))
        pairs = _encode_pairs(self.discards) + _encode_pairs(self.cuts)
        length = _CONFIG.size + len(names) + len(pairs)
        facts = (self.segment_shift, self.incompat, 0, self.compat, self.uuid, self.created)
        head = _CONFIG.pack(_MAGIC, FORMAT, 0, length, *facts)
        data = head + names + pairs
        return data[:12] + struct.pack("<I", crc32c(data[16:])) + data[16:]


def _encode_pairs(pairs: tuple[tuple[int, int], ...]) -> bytes:
    return struct.pack("<I", len(pairs)) + b"".join(struct.pack("<QQ", *p) for p in pairs)


def _decode_pairs(data: bytes, at: int) -> tuple[tuple[tuple[int, int], ...], int]:
    (count,) = struct.unpack("<I", _slice(data, at, 4))
    numbers = struct.unpack(f"<{2 * count}Q", _slice(data, at + 4, 16 * count))
    return tuple(zip(numbers[::2], numbers[1::2], strict=True)), at + 4 + 16 * count


def crc32c(data: bytes, start: int = 0) -> int:
    """CRC-32C of `data`, as the core computes it."""
    return int(lib.mm_crc32c(start, data, len(data)))


def _damaged(offset: int, what: str) -> errors.CorruptionError:
    return errors.CorruptionError(f"'config': {what} (offset {offset})", file="config", offset=offset)


def decode_config(data: bytes) -> Config:
    """Parses the bytes of `config`: CorruptionError for damage, IncompatibleStore for another format or
    unknown features.
    """
    if len(data) < _CONFIG.size:
        raise _damaged(len(data), f"{len(data)} bytes are too short")
    magic, fmt, crc, length, shift, incompat, ro_compat, compat, uuid, created = _CONFIG.unpack_from(data)
    if magic != _MAGIC:
        raise errors.IncompatibleStore("'config' was not written by mmpc: this is another program's directory")
    if fmt != FORMAT:
        raise errors.IncompatibleStore(f"the store has format {fmt}, this mmpc reads format {FORMAT}")
    if length != len(data) or crc != crc32c(data[16:]):
        raise _damaged(12, "checksum or length is wrong")
    if incompat & ~COMPRESSED or ro_compat:
        raise errors.IncompatibleStore(
            f"the store uses features unknown to this mmpc (bits {incompat:#x}, {ro_compat:#x}; known: {COMPRESSED:#x})"
        )
    at, names = _CONFIG.size, []
    for _ in range(2):
        names.append(_sized(data, at))
        at += 4 + len(names[-1])
    discards, at = _decode_pairs(data, at)
    cuts, at = _decode_pairs(data, at)
    if at != length or not 16 <= shift <= 30:
        raise _damaged(at, "fields do not fit")
    materializer, codec = (name.decode(errors="replace") for name in names)
    return Config(uuid, shift, materializer, codec, created, discards, compat, cuts, incompat)


def lasting_config(data: bytes) -> bytes:
    """The bytes of `config` for a copy of the store, which is nobody's temporary one."""
    config = decode_config(data)
    config.compat &= ~TEMPORARY
    return config.encode()


def _slice(data: bytes, at: int, n: int) -> bytes:
    if at + n > len(data):
        raise _damaged(at, "ends early")
    return data[at : at + n]


def _sized(data: bytes, at: int) -> bytes:
    (n,) = struct.unpack("<I", _slice(data, at, 4))
    return _slice(data, at + 4, n)


def read_config(path: str) -> Config | None:
    """The store's config, or None when the directory, or the file in it, is not there."""
    try:
        fd = os.open(os.path.join(path, "config"), os.O_RDONLY | _SAFELY)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise explained(e, path, "config") from e
    with open(fd, "rb") as f:
        _check_regular(fd, path, "config")
        data = f.read(MAX_CONFIG)
    return decode_config(data)


def _check_regular(fd: int, path: str, name: str) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise errors.CorruptionError(f"{name!r} in {path!r} is not a regular file", file=name, offset=0)


def write_config(path: str, config: Config) -> None:
    """Replaces `config`: temporary file, sync, rename, sync of the directory.  Durable on return."""
    name = os.path.join(path, "config.new")
    fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        share_as_log(fd, path)
        data = config.encode()
        failpoints.reach("write_config bytes")
        half = os.write(fd, data[: len(data) // 2])
        failpoints.reach("write_config crc")
        data = data[half:]
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    failpoints.reach("write_config mv")
    os.rename(name, os.path.join(path, "config"))
    sync_directory(path)
    failpoints.reach("write_config post")


def share_as_log(fd: int, path: str) -> None:
    """Gives a file that was just made the permissions of the log of the store in `path`, if they are other ones."""
    mode = stat.S_IMODE(os.stat(os.path.join(path, "log")).st_mode) & 0o666
    if mode != stat.S_IMODE(os.fstat(fd).st_mode):
        os.fchmod(fd, mode)


def may_write(path: str) -> bool:
    """Whether this process may write to all that is in the store, and to its directory; True where no store is."""
    names = [os.path.join(path, n) for n in ("", *LASTING, *VOLATILE)]
    return all(os.access(n, os.W_OK, effective_ids=True) for n in names if os.path.lexists(n))


def is_snapshot(name: str) -> bool:
    """Whether it is the name of a snapshot: `snapshot-` and sixteen hexadecimal digits."""
    digits = name.removeprefix("snapshot-")
    return len(name) == 25 and len(digits) == 16 and all(c in "0123456789abcdef" for c in digits)


def is_temporary_snapshot(name: str) -> bool:
    """Whether it is the name of a snapshot that is being written: `snapshot.new-` and a slot."""
    return name.startswith("snapshot.new-") and name.removeprefix("snapshot.new-").isdecimal()


def belongs(name: str) -> bool:
    """Whether a file of that name may be in a store."""
    known = (*LASTING, *VOLATILE, *(n + ".new" for n in (*VOLATILE, METRICS)), "config.new", METRICS)
    return name in known or is_snapshot(name) or is_temporary_snapshot(name)


def create_file(name: str) -> int:
    """A descriptor of an empty file of that name, whatever was there."""
    return os.open(name, os.O_CREAT | os.O_TRUNC | os.O_RDWR | _SAFELY, 0o600)


def open_file(name: str) -> int:
    """A descriptor for reading. CorruptionError: it is no regular file."""
    try:
        fd = os.open(name, os.O_RDONLY | _SAFELY)
    except OSError as e:
        raise explained(e, os.path.dirname(name), os.path.basename(name)) from e
    try:
        _check_regular(fd, os.path.dirname(name), os.path.basename(name))
    except BaseException:
        os.close(fd)
        raise
    return fd


def remove_file(name: str) -> None:
    """Removes a file, unless somebody else did. A directory of that name is not ours: it stays."""
    try:
        os.unlink(name)
    except (FileNotFoundError, IsADirectoryError):
        return


def sync_directory(path: str) -> None:
    """Makes creations and renames in `path` durable."""
    failpoints.reach("directory sync")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def boot_id() -> bytes:
    """64 bytes that change at each boot of the machine; MMPC_BOOT_ID stands in for tests."""
    text = os.environ.get("MMPC_BOOT_ID")
    if text is None:
        with open("/proc/sys/kernel/random/boot_id") as f:
            text = f.read().strip()
    data = text.encode()
    if len(data) > 64:
        import hashlib

        data = hashlib.sha512(data).digest()
    return data.ljust(64, b"\0")


def make_directory(path: str) -> bool:
    """Creates the directory (mode 0700, parents as usual), or takes an existing one that is a store's, or empty.
    True: it was not there.

    The names of the directory, and of the parents that were missing, are durable on return.
    """
    missing, made = [path], False
    while not os.path.isdir(parent := os.path.dirname(missing[-1])) and parent != missing[-1]:
        missing.append(parent)
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o700 if directory == path else 0o777)
            made = directory == path
        except FileExistsError:
            if _something_else(directory):
                raise errors.IncompatibleStore(f"{directory!r} exists and is not a directory") from None
        if not os.path.exists(os.path.join(path, "config")):  # also when somebody else made it, and died before this
            sync_directory(os.path.dirname(directory))
    others = foreign(path)
    if others:
        raise errors.IncompatibleStore(
            f"{path!r} is not an mmpc store: it holds {', '.join(others[:5])}; choose an empty directory"
        )
    return made


def _something_else(path: str) -> bool:
    """It is there, and no directory. One that is gone by now was that of a temporary store."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return os.path.islink(path)


def foreign(path: str) -> list[str]:
    """What is in the directory that is no file of a store; nothing, if the last process of a temporary store has just
    removed it.
    """
    try:
        return sorted(n for n in os.listdir(path) if not belongs(n))
    except FileNotFoundError:
        return []


def check_file_system(fd: int, path: str) -> None:
    """Unsupported, unless the file lies on a local file system of the allowlist."""
    kind = ffi.new("uint64_t *")
    if lib.mm_filesystem(fd, kind) == 0 and kind[0] not in FILE_SYSTEMS:
        names = ", ".join(FILE_SYSTEMS.values())
        raise errors.Unsupported(
            f"{path!r} lies on a file system of type {kind[0]:#x}; mmpc needs a local one: {names}"
        )


def check_platform() -> None:
    """Unsupported on systems whose address space or locks do not do."""
    if sys.maxsize < 2**47 or not sys.platform.startswith("linux"):
        raise errors.Unsupported("mmpc needs 64-bit Linux")


def check_unborn(path: str) -> None:
    """CorruptionError where a store has lost its `config`: nothing of it may be touched."""
    try:
        size = os.stat(os.path.join(path, "log")).st_size
    except FileNotFoundError:
        return
    if size:
        raise errors.CorruptionError("'config' is missing beside a log that is not empty", file="config", offset=0)


def create_lasting(path: str) -> None:
    """Empty log, marks and lock; never touches those that are there."""
    os.chmod(path, 0o700)
    failpoints.reach("create files")
    for name in ("log", "marks", "lock"):
        fd = os.open(os.path.join(path, name), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            if name != "lock":
                _no_copy_on_write(fd)
            if name == "marks":
                os.ftruncate(fd, MARKS_SIZE)
                os.posix_fallocate(fd, 0, SLOTS_READY * 2 * 4096)  # with one of these slots a flush needs no room
                os.fsync(fd)  # `config` must not be on the disk before this size is: a shorter file was cut
            if name == "log":
                check_file_system(fd, path)
        finally:
            os.close(fd)


def _no_copy_on_write(fd: int) -> None:
    """Overwriting a copy-on-write file needs new blocks, and finds none on a full disk: as a SIGBUS."""
    kind = ffi.new("uint64_t *")
    if lib.mm_filesystem(fd, kind) or kind[0] != _BTRFS:
        return
    flags = bytearray(8)
    fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
    value = int.from_bytes(flags[:4], sys.byteorder) | _FS_NOCOW_FL
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, value.to_bytes(8, sys.byteorder))


class Descriptors:
    """Open descriptors of a store's files, until the core takes them over. `reading`: they are not for writing."""

    __slots__ = ("fds", "reading")

    def __init__(self, reading: bool = False) -> None:
        self.fds: dict[str, int] = {}
        self.reading = reading

    def open(self, path: str, names: tuple[str, ...], *, suffix: str = "", create: bool = False) -> None:
        """Raises what the system refuses, explained. A file that is made has the permissions of the log: who may look
        at the one may look at the other.
        """
        flags = (os.O_RDONLY if self.reading else os.O_RDWR) | _SAFELY | (os.O_CREAT | os.O_TRUNC if create else 0)
        for name in names:
            try:
                self.fds[name] = os.open(os.path.join(path, name + suffix), flags, 0o600)
            except OSError as e:
                raise explained(e, path, name + suffix) from e
            _check_regular(self.fds[name], path, name)
            if create:
                share_as_log(self.fds[name], path)

    def get(self, name: str) -> int:
        return self.fds.get(name, -1)

    def taken(self) -> None:
        """The core owns them now."""
        self.fds = {}

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def full(path: str, why: str) -> errors.DiskFullError:
    """No room for what opening the store needs."""
    if path in why:
        return errors.DiskFullError(why)
    return errors.DiskFullError(f"{path!r} cannot be opened: {why}")


def explained(e: OSError, path: str, name: str = "") -> Exception:
    """What the system refused, with the path, the cause and a remedy.  `name`: the file of the store, if it is one."""
    why, where = os.strerror(e.errno or 0), os.path.join(path, name) if name else path
    if e.errno == errno.ENOENT and name in ("log", "marks", "lock"):
        return errors.CorruptionError(f"{name!r} is missing in {path!r}", file=name, offset=0)
    if e.errno == errno.ELOOP and name:
        return errors.CorruptionError(f"{name!r} in {path!r} is a symbolic link", file=name, offset=0)
    if e.errno == errno.ENOTDIR:
        return errors.IncompatibleStore(f"{_not_a_directory(path)!r} is not a directory; choose another path")
    if e.errno == errno.EROFS:
        return errors.Unsupported(
            f"{where!r}: {why}: who does more than look (read_only=True) needs to write; mount it for writing, or copy "
            f"the store"
        )
    if e.errno in (errno.EACCES, errno.EPERM):
        who = f"user {os.geteuid()}"
        return errors.Unsupported(
            f"{where!r} cannot be opened ({why}): who does more than look (read_only=True) needs to write, who looks "
            f"needs to read; give {who} the directory and its files (chown, chmod)"
        )
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.DiskFullError(f"{where!r}: no room on the device ({why}); free some space, or inodes")
    if e.errno in (errno.EMFILE, errno.ENFILE):
        remedy = f"close some, or raise the limit (ulimit -n); an open store takes {len(VOLATILE) + 3}"
        return OSError(e.errno, f"{why}: {remedy}", where)
    return e if e.filename is not None else OSError(e.errno, why, where)


def _not_a_directory(path: str) -> str:
    """The first part of the path that is there and is no directory."""
    parts = path.split(os.sep)
    for i in range(2, len(parts) + 1):
        part = os.sep.join(parts[:i])
        if os.path.lexists(part) and not os.path.isdir(part):
            return part
    return path


def create_metrics(path: str, control: int) -> None:
    """Makes `metrics` anew, for the `control` of that descriptor; without room for it nothing is counted."""
    name = os.path.join(path, METRICS)
    try:
        fd = create_file(name + ".new")
        try:
            made = lib.mm_metrics_format(fd, control) == 0
        finally:
            os.close(fd)
        if made:
            os.rename(name + ".new", name)
        else:
            remove_file(name + ".new")
    except OSError:
        return


def count(path: str, mm: Any) -> None:
    """Lets an attachment count what it does, in the store's `metrics`, if that is there."""
    try:
        fd = os.open(os.path.join(path, METRICS), os.O_RDWR | _SAFELY)
    except OSError:
        return
    if stat.S_ISREG(os.fstat(fd).st_mode):
        lib.mm_metrics_attach(mm, fd)  # which closes it
    else:
        os.close(fd)


def remove_volatile(path: str, control: bool) -> None:
    """Before a recovery makes them again, so that it needs no more room than they had: `table`, `ids`, `rts` and
    `metrics`, and `control` if it says nothing that a recovery that is cut off would have to know.
    """
    for name in (*VOLATILE, METRICS):
        if control or name != "control":
            remove_file(os.path.join(path, name))


def remove_new(path: str) -> None:
    """What a recovery that was refused had made aside."""
    for name in (*VOLATILE, METRICS, "config"):
        remove_file(os.path.join(path, name + ".new"))


def remove_unborn(path: str) -> None:
    """What a creation that was refused had made; `open.lock` stays, others may wait for it."""
    remove_new(path)
    for name in ("config", *VOLATILE, METRICS, "log", "marks", "lock"):
        remove_file(os.path.join(path, name))


def remove_directory(path: str) -> None:
    """Removes a directory that is empty."""
    try:
        os.rmdir(path)
    except OSError:
        return


def remove_store(path: str) -> None:
    """Removes a store's files and its directory (temporary stores, at the last close)."""
    for name in (
        *(n for n in os.listdir(path) if is_snapshot(n) or is_temporary_snapshot(n)),
        *VOLATILE,
        METRICS,
        *(n + ".new" for n in (*VOLATILE, METRICS)),
        "config.new",
        "config",
        "log",
        "marks",
        "lock",
        "open.lock",
    ):
        try:
            os.unlink(os.path.join(path, name))
        except FileNotFoundError:
            pass
    try:
        os.rmdir(path)
    except OSError:
        pass


def temporary_path() -> str:
    """A fresh name in the memory file system, or in the directory for temporary files."""
    base = "/dev/shm"
    if not os.access(base, os.W_OK | os.X_OK):
        import tempfile

        base = tempfile.gettempdir()
    return os.path.join(base, f"mmpc-{os.getuid()}-{os.urandom(8).hex()}")
