"""What the system refuses: an error with path, cause and remedy; nothing leaks, nothing stays behind."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock  # noqa: F401  before the user changes: it is imported when first needed
import pytest

import mmpc
from support.children import Children
from support.mounts import memory

NOBODY = 65534
pytestmark = pytest.mark.processes
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach, also where $TMPDIR is not."""
    public = next((d for d in ("/var/tmp", "/tmp", "/dev/shm") if os.access(d, os.W_OK | os.X_OK)), None)
    path = Path(tempfile.mkdtemp(prefix="mmpc-refusals-", dir=public))
    path.chmod(0o755)
    yield path
    for top, names, _ in os.walk(path):
        for name in names:
            os.chmod(os.path.join(top, name), 0o700)
    shutil.rmtree(path)


def descriptors() -> set[str]:
    """What this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd}:{os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue  # the one that lists
    return found


def refusal(call: Callable[[], Any], *words: str, leak: bool = False) -> str:
    """The error's class; its text names all `words`, and nothing was left open."""
    before = descriptors()
    try:
        call()
    except (mmpc.MmpcError, OSError) as e:
        text = str(e)
        missing = [w for w in words if w not in text]
        assert not missing, f"{type(e).__name__} does not say {missing}: {text}"
        error = e
    else:
        raise AssertionError("nothing was refused")
    name = type(error).__name__
    del error
    assert leak or descriptors() == before
    return name


def as_nobody(work: Callable[[], Any]) -> Callable[[], Any]:
    def become() -> Any:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return work()

    return become


def opener(path: Path, **options: Any) -> Callable[[], Any]:
    return lambda: mmpc.open(path, mmpc.Append(), **options)


def usable(path: Path) -> bool:
    """Whether the store opens, takes a page and closes."""
    with mmpc.open(path, mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([1])
        return bool(pc.get(pid).value == [1])


# ---- other users


@as_root
def test_a_directory_of_another_user(place: Path, children: Children) -> None:
    store = place / "store"
    assert usable(store)
    for mode in (0o700, 0o555, 0o500):
        store.chmod(mode)
        for create in (False, True):
            call = opener(store, create=create)
            work = as_nobody(lambda c=call: refusal(c, str(store), "Permission denied", "chmod"))
            assert children.run(work) == "Unsupported"
    store.chmod(0o700)
    assert usable(store)


@as_root
def test_a_parent_that_may_not_be_written_to(place: Path, children: Children) -> None:
    path = place / "new"
    work = as_nobody(lambda: refusal(opener(path, create=True), str(path), "Permission denied", "chmod"))
    assert children.run(work) == "Unsupported"
    assert not path.exists()


@as_root
@pytest.mark.parametrize("name", ["config", "control", "table", "log", "ids", "rts", "marks", "lock"])
def test_a_single_file_of_another_user(place: Path, children: Children, name: str) -> None:
    store = place / "store"
    assert usable(store)
    for path in (store, *store.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    assert children.run(as_nobody(lambda: usable(store)))
    os.chown(store / name, 0, 0)
    before = {n: os.stat(store / n).st_ino for n in os.listdir(store)}
    work = as_nobody(lambda: refusal(opener(store), str(store / name), "Permission denied", "chmod"))
    assert children.run(work) == "Unsupported"
    assert {n: os.stat(store / n).st_ino for n in os.listdir(store)} == before
    os.chown(store / name, NOBODY, NOBODY)
    assert children.run(as_nobody(lambda: usable(store)))


# ---- mounts


def test_a_mount_for_reading_only() -> None:
    with memory("4m") as disk:
        store = disk.path / "store"
        assert usable(store)
        disk.remount("ro")
        for path in (store, disk.path / "new"):
            for create in (False, True):
                if path is store or create:
                    name = refusal(opener(path, create=create), str(path), "Read-only file system", "mount it")
                    assert name == "Unsupported"
        disk.remount("rw")
        assert not (disk.path / "new").exists()
        assert usable(store)
        assert usable(disk.path / "new")


@pytest.mark.parametrize("left", [0, 4096, 16 << 10, 64 << 10, 150 << 10, 200 << 10, 300 << 10])
def test_no_room_to_create(left: int) -> None:
    with memory("2m") as disk:
        store = disk.path / "store"
        ballast = disk.fill(leave=left)
        room = disk.room()
        for _ in range(2):
            assert refusal(opener(store, create=True), str(store), "free some space") == "DiskFullError"
            assert not store.exists() or os.listdir(store) == ["open.lock"]
            assert disk.room() == room
        with pytest.raises(FileNotFoundError):
            mmpc.open(store, mmpc.Append())
        ballast.unlink()
        assert usable(store)


@pytest.mark.parametrize("inodes", range(2, 12))
def test_no_inodes_to_create(inodes: int) -> None:
    """The root has one, and the directory one; the store needs nine."""
    with memory("4m", f",nr_inodes={inodes}") as disk:
        store = disk.path / "store"
        if inodes >= 11:
            assert usable(store)
            return
        assert refusal(opener(store, create=True), str(store), "inodes") == "DiskFullError"
        assert not store.exists() or os.listdir(store) == ["open.lock"]
        disk.remount("nr_inodes=100")
        assert usable(store)


# ---- too many open files


def limited(free: int, work: Callable[[], Any]) -> Callable[[], Any]:
    """Runs `work` where about `free` more files can be opened."""

    def run() -> Any:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
        holes = [os.open("/", os.O_RDONLY)]
        while holes[-1] < used:
            holes.append(os.open("/", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1 + free, hard))
        try:
            return work()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return run


def attempts(call: Callable[[], Any], path: Path) -> tuple[int, set[str]]:
    """With more and more files until `call` works: how many it took, and the errors before."""
    names: set[str] = set()
    for free in range(1, 40):

        def once() -> str:
            try:
                call()
            except (mmpc.MmpcError, OSError) as e:
                text = str(e)
                assert all(word in text for word in (str(path), "Too many open files", "ulimit")), text
                return type(e).__name__
            return ""

        before = descriptors()
        name = limited(free, once)()
        after = {d for d in descriptors() if not d.endswith(":/")}
        assert after == {d for d in before if not d.endswith(":/")}
        if not name:
            return free, names
        names.add(name)
    raise AssertionError("never worked")


def test_too_many_open_files_at_creation_and_at_opening(place: Path, children: Children) -> None:
    def create() -> tuple[int, set[str]]:
        def call() -> None:
            mmpc.open(place / "store", mmpc.Append(), create=True).close()

        return attempts(call, place / "store")

    took, names = children.run(create)
    assert took > 7
    assert names == {"OSError"}

    def attach() -> tuple[int, set[str]]:
        keeper = mmpc.open(place / "store", mmpc.Append())
        try:
            return attempts(lambda: mmpc.open(place / "store", mmpc.Append()).close(), place / "store")
        finally:
            keeper.close()

    took, names = children.run(attach)
    assert took >= 7
    assert names == {"OSError"}
    assert usable(place / "store")


def test_too_many_open_files_in_a_forked_child_and_at_a_flush(place: Path, children: Children) -> None:
    with mmpc.open(place / "store", mmpc.Append(), create=True) as pc:
        pid, _ = pc.allocate([1])

        def child() -> str:
            def refused() -> str:
                return refusal(lambda: pc.append(pid, [2]), str(place), "Too many", "ulimit", leak=True)

            name = limited(2, refused)()
            pc.append(pid, [3])  # the handle attaches once it can
            return str(name)

        assert children.run(child) == "OSError"
        assert pc.get(pid).value == [1, 3]

        def flush() -> int:
            pc.append(pid, [4])
            return int(limited(0, pc.flush)())

        assert children.run(flush) > 0
    assert usable(place / "store")


# ---- paths


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("tail", ["", "store", "a/store"])
def test_a_file_where_a_directory_should_be(tmp_path: Path, create: bool, tail: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    name = refusal(opener(file / tail if tail else file, create=create), str(file), "is not a directory", "choose")
    assert name == "IncompatibleStore"
    assert file.read_bytes() == b"mine"
    assert stat.S_ISREG(file.stat().st_mode)
