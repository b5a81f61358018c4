"""Handles that may not write: beside writers, alone, on media for reading. Never a wrong value, no byte touched."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc import failpoints
from mmpc.observer import Observer
from support.children import Child, Children
from support.mounts import ext4, memory
from support.sealed import numbers, seal

pytestmark = pytest.mark.processes
SEGMENT = 1 << 16


@pytest.fixture
def shared() -> Iterator[str]:
    """A path that other users can go through; the package has to lie on one too, since they import it."""
    places = [place for place in (tempfile.gettempdir(), "/tmp", "/dev/shm") if open_to_all(place)]
    if not places or not open_to_all(os.path.dirname(mmpc.__file__)):
        pytest.skip("other users cannot go through the directories here")
    with tempfile.TemporaryDirectory(dir=places[0]) as name:
        os.chmod(name, 0o755)
        yield os.path.join(name, "store")


def open_to_all(place: str) -> bool:
    path = os.path.abspath(place)
    return os.path.isdir(path) and all(os.stat(p).st_mode & 1 for p in (path, *map(str, Path(path).parents)))


def opened(path: str, **options: Any) -> mmpc.PageCache[Any]:
    return mmpc.open(path, mmpc.Append(), **({"create": True, "segment_size": SEGMENT} | options))


def filled(path: str, pages: int = 20) -> dict[int, list[int]]:
    """A closed store that others may read; what each page holds."""
    with opened(path) as pc:
        model = {}
        for i in range(pages):
            pid, _ = pc.allocate([])
            for n in range(i * 3 % 40):
                pc.append(pid, [seal(pid, n)])
            model[pid] = list(range(i * 3 % 40))
        for name in os.listdir(path):
            os.chmod(os.path.join(path, name), 0o644)
        os.chmod(path, 0o755)
    return model


def holds(pc: mmpc.PageCache[Any], model: dict[int, list[int]]) -> bool:
    return all(numbers(pid, pc.get(pid).unwrap()) == expected for pid, expected in model.items())


def observer(path: str) -> Observer[Any]:
    pc = mmpc.open(path, mmpc.Append(), read_only=True)
    assert type(pc) is Observer
    return pc


def nobody(children: Children, look: Callable[..., Any], *args: Any) -> Child:
    """Starts a child that has no permission to write."""

    def run() -> Any:
        if not os.getuid():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        return look(*args)

    if os.getuid():
        pytest.skip("giving up permissions needs root")
    return children.start(run)


def state(path: str) -> dict[str, tuple[bytes, int, int]]:
    """All there is to see of a directory, but for when it was read."""
    found = {".": (b"", os.stat(path).st_mtime_ns, os.stat(path).st_ctime_ns)}
    for name in os.listdir(path):
        s = os.stat(os.path.join(path, name))
        found[name] = (Path(path, name).read_bytes(), s.st_mtime_ns, s.st_ctime_ns)
    return found


# ---- beside others


def write_at_full_speed(path: str, seed: int, pages: list[int], stop: int) -> int:
    """Changes pages in every way until the pipe closes. Fragment n of a page follows n - 1, or begins anew."""
    rng, done = random.Random(seed), 0
    os.set_blocking(stop, False)
    with opened(path) as pc:
        while True:
            try:
                if not os.read(stop, 1):
                    return done
            except BlockingIOError:
                pass
            for _ in range(50):
                pid, how = rng.choice(pages), rng.random()
                try:
                    page = pc.get(pid)
                    if how < 0.6:
                        held = numbers(pid, page.unwrap())
                        pc.link(pid, page.key, [seal(pid, held[-1] + 1 if held else 0, rng.choice([20, 300]))])
                    elif how < 0.9:
                        n = numbers(pid, page.unwrap())[-1:] or [0]
                        pc.replace(pid, page.key, [seal(pid, n[0], rng.choice([20, 5000]))])
                    elif how < 0.97:
                        other, key = pc.allocate([seal(0, 0, 8000)])
                        pc.free(other, key)
                    else:
                        pc.attempt_gc()
                except mmpc.Conflict:
                    continue
                done += 1
            if rng.random() < 0.2:
                pc.flush()


def look_at_everything(path: str, pages: list[int], seconds: float) -> tuple[int, int]:
    """Each value is sealed, in order without a gap, and never older than what was seen before. How many, and waits."""
    pc, newest, looks, busy = observer(path), dict.fromkeys(pages, (0, 0)), 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for pid in pages:
            try:
                page = pc.get(pid)
            except mmpc.StoreBusy:
                busy += 1
                continue
            held = numbers(pid, page.unwrap())
            assert held == list(range(held[0], held[0] + len(held))) if held else True, (pid, held)
            now = (page.key.wts, held[-1] if held else 0)
            assert now >= newest[pid], (pid, now, newest[pid])
            assert (now[0] > newest[pid][0]) or now == newest[pid]
            newest[pid] = now
            looks += 1
        key, fragments = pc.get_page_frags(pages[0])
        assert numbers(pages[0], [f for part in fragments for f in part]), key
    return looks, busy


@pytest.mark.parametrize("writers", [1, 3])
def test_never_a_wrong_value_beside_writers_at_full_speed(
    shared: str, children: Children, seed: int, writers: int
) -> None:
    filled(shared, 0)
    with opened(shared) as pc:
        pages = []
        for _ in range(6):
            pid, _ = pc.allocate([])
            pc.append(pid, [seal(pid, 0)])
            pages.append(pid)
        read, stop = os.pipe()

        def write(i: int) -> int:
            os.close(stop)
            return write_at_full_speed(shared, seed + i, pages, read)

        crowd = [children.start(write, i) for i in range(writers)]
        eyes = [nobody(children, look_at_everything, shared, pages, 3.0) for _ in range(2)]
        found = [child.result() for child in eyes]
        os.close(stop)
        done = [child.result() for child in crowd]
        os.close(read)
        assert all(looks > 100 for looks, _ in found), found
        assert sum(done) > 500, done
        assert pc.stats().cleaned > 5  # segments were given away beneath the observers
        pc._check()


def test_a_page_that_is_used_again_in_the_middle_of_its_copy(shared: str, children: Children, seed: int) -> None:
    """The observer is stopped at random moments, many of them inside the copy, until its bytes belong to others."""
    rng = random.Random(seed)

    def look(pid: int, end: int) -> int:
        os.set_blocking(end, False)
        pc, seen = mmpc.open(shared, mmpc.LastWriteWins(), read_only=True), set()
        assert type(pc) is Observer
        while True:
            for _ in range(20):
                value = pc.get(pid).unwrap()
                assert value == value[:4] * (len(value) // 4), "torn"
                seen.add(value[:4])
            try:
                os.read(end, 1)
                return len(seen)
            except BlockingIOError:
                continue

    with mmpc.open(shared, mmpc.LastWriteWins(), create=True, segment_size=1 << 20) as pc:
        pid, _ = pc.allocate(bytes(200_000))
        for name in os.listdir(shared):
            os.chmod(os.path.join(shared, name), 0o644)
        os.chmod(shared, 0o755)
        read, write = os.pipe()
        child = nobody(children, lambda: (os.close(write), look(pid, read))[1])
        for n in range(1, 1601):
            if n % 40 == 1:
                time.sleep(rng.random() * 0.004)
                child.signal(signal.SIGSTOP)
            pc.replace(pid, pc.get(pid).key, n.to_bytes(4, "little") * 50_000)
            if n % 10 == 0:
                pc.flush()
            if n % 40 == 0:
                child.signal(signal.SIGCONT)
        os.close(write)
        assert child.result() > 10
        assert pc.stats().cleaned > 40
        os.close(read)


def test_a_handle_that_may_write_pins_like_everybody(shared: str) -> None:
    model = filled(shared)
    with mmpc.open(shared, mmpc.Append(), read_only=True) as pc:
        assert not isinstance(pc, Observer)
        assert holds(pc, model)
        assert pc.stats().slots == 1


def test_an_observer_sees_what_returned_and_nobody_sees_it(shared: str, children: Children) -> None:
    filled(shared, 0)
    with opened(shared) as pc:
        pid, _ = pc.allocate([])
        ready, go = os.pipe()
        said, say = os.pipe()

        def look() -> int:
            mine, count = observer(shared), 0
            while (told := os.read(ready, 4)) != b"":
                expected = int.from_bytes(told, "little")
                assert numbers(pid, mine.get(pid).unwrap()) == list(range(expected))
                assert mine.get_many([pid, 10**6])[1].is_unallocated()
                count += 1
                os.write(say, b"+")
            return count

        child = nobody(children, lambda: (os.close(go), look())[1])
        os.close(ready)
        for n in range(200):
            pc.append(pid, [seal(pid, n)])
            os.write(go, (n + 1).to_bytes(4, "little"))
            assert os.read(said, 1) == b"+"
        assert pc.stats().slots == 1
        pc.free(pid, pc.get(pid).key)
        os.close(go)
        assert child.result() == 200


# ---- no byte is touched


def closed(path: str) -> None:
    """As it is."""


def rebooted(path: str) -> None:
    os.environ["MMPC_BOOT_ID"] = "another boot"


def without_table(path: str) -> None:
    for name in ("control", "table", "ids", "rts"):
        os.unlink(os.path.join(path, name))


def killed_dirty(path: str) -> None:
    """Unflushed writes of a process that was killed; a boot later they need not count."""
    pid = os.fork()
    if not pid:
        try:
            pc = opened(path)
            for _ in range(50):
                pc.allocate([seal(0, 0)])
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    os.environ["MMPC_BOOT_ID"] = "another boot"


@pytest.mark.parametrize("how", [closed, rebooted, without_table, killed_dirty])
def test_looking_changes_no_byte_and_no_time(
    shared: str, children: Children, monkeypatch: pytest.MonkeyPatch, how: Callable[[str], None]
) -> None:
    monkeypatch.setenv("MMPC_BOOT_ID", "this boot")
    model = filled(shared)
    how(shared)
    before = state(shared)

    def look() -> bool:
        with observer(shared) as pc:
            assert pc.stats().slots == 0
            assert pc.get_page_rts(2) == 0
            assert pc.stable_lsn > 0
            assert pc._check() >= len(model)
            return holds(pc, model)

    for _ in range(2):
        assert nobody(children, look).result() is True
    assert state(shared) == before
    with opened(shared) as pc:  # and what is passed over now is passed over by who recovers
        assert holds(pc, model)


def test_looking_beside_others_who_are_quiet_changes_nothing(shared: str, children: Children) -> None:
    model = filled(shared)
    with opened(shared) as pc:
        pc.flush()
        before = state(shared)

        def look() -> bool:
            with observer(shared) as mine:
                assert mine.stats().slots == 1
                return all(holds(mine, model) for _ in range(20))

        assert nobody(children, look).result() is True
        assert state(shared) == before


@pytest.mark.parametrize("volatile", [True, False], ids=["same boot", "without table"])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_medium_for_reading(tmp_path: Path, kind: str, volatile: bool) -> None:
    """By root, whom nothing else stops from writing."""
    with memory("8m") if kind == "tmpfs" else ext4(tmp_path / "image", 24) as disk:
        path = str(disk.path / "store")
        model = filled(path)
        if not volatile:
            without_table(path)
        disk.remount("ro")
        before = state(path)
        with observer(path) as pc, observer(path) as other:
            assert holds(pc, model)
            assert holds(other, model)
            for write in (lambda: pc.allocate([1]), lambda: pc.append(2, [1]), pc.flush, pc.snapshot, pc.attempt_gc):
                with pytest.raises(mmpc.Unsupported, match="read_only"):
                    write()
        assert state(path) == before
        with pytest.raises(mmpc.Unsupported, match=r"read_only=True.*copy the store"):
            mmpc.open(path, mmpc.Append())
        disk.remount("rw")
        with opened(path) as pc:
            assert holds(pc, model)


def test_a_copy_on_a_medium_for_reading(tmp_path: Path) -> None:
    """As on a DVD: the files are others than those that `control` names."""
    path = str(tmp_path / "store")
    model = filled(path)
    with memory("32m") as disk:
        shutil.copytree(path, disk.path / "copy")
        disk.remount("ro")
        with observer(str(disk.path / "copy")) as pc:
            assert holds(pc, model)


# ---- while the store is left, opened anew, made shorter, or fails


def steps(children: Children, look: Callable[[Callable[[], None]], Any]) -> tuple[Child, Callable[[], None]]:
    """A child without permission that waits between its steps, and what lets it go on until it waits again."""
    (ready, go), (said, say) = os.pipe(), os.pipe()

    def wait() -> None:
        os.write(say, b"+")
        assert os.read(ready, 1) == b"+"

    def run() -> Any:
        os.close(go)
        os.close(said)
        return look(wait)

    child = nobody(children, run)
    os.close(ready)
    os.close(say)

    def on() -> None:
        try:
            os.write(go, b"+")
            os.read(said, 1)
        except BrokenPipeError:
            child.result()  # tells why it has ended

    assert os.read(said, 1) in (b"+", b"")
    return child, on


def test_a_store_that_is_opened_anew_is_followed(
    shared: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, then live, then in the next boot; nothing is shown that the new life has overwritten."""
    model = filled(shared)
    without_table(shared)

    def look(wait: Callable[[], None]) -> list[list[int]]:
        pc, found = observer(shared), []
        for i in range(4):
            assert holds(pc, model)
            found.append(pc.get(2).unwrap())
            wait()
            if i == 2:
                os.environ["MMPC_BOOT_ID"] = "another boot"
        return found

    model.pop(2)
    child, on = steps(children, look)
    with opened(shared) as pc:
        pc.append(2, ["live"])
        on()
    on()
    monkeypatch.setenv("MMPC_BOOT_ID", "another boot")
    without_table(shared)
    with opened(shared) as pc:
        pc.append(2, ["again"])
        for _ in range(30):
            other, key = pc.allocate([bytes(30_000)])
            pc.free(other, key)
        on()
        on()
    assert child.result() == [[], ["live"], ["live"], ["live", "again"]]


def test_a_log_that_is_made_shorter_is_no_damage(shared: str, children: Children) -> None:
    model = filled(shared)

    def look(wait: Callable[[], None]) -> bool:
        pc = observer(shared)
        for _ in range(2):
            assert holds(pc, model)
            assert pc.get(last).is_materialized()
            wait()
        assert holds(pc, model)
        return pc.get(last).is_free()

    with opened(shared) as pc:
        keys = [pc.allocate([bytes(30_000)]) for _ in range(40)]
        last = keys[-1][0]
    child, on = steps(children, look)
    before = os.stat(os.path.join(shared, "log")).st_size
    on()
    with opened(shared) as pc:
        for pid, key in keys:
            pc.free(pid, pc.get(pid).key)
    for _ in range(20):  # what waits for a flush, or for a pin of who has just left, goes with the next one
        mmpc.clean(shared)
        if os.stat(os.path.join(shared, "log")).st_size < before:
            break
        with opened(shared) as pc:  # the last segment may be the one that is written to: go on in a free one
            pc.free(*pc.allocate([bytes(30_000)]))
    assert os.stat(os.path.join(shared, "log")).st_size < before
    on()
    assert child.result() is True


def test_a_failed_store_says_so_until_it_is_opened_again(shared: str, children: Children) -> None:
    model = filled(shared)

    def look(wait: Callable[[], None]) -> list[str]:
        pc, found = observer(shared), []
        for _ in range(3):
            try:
                found.append(str(holds(pc, model)))
            except mmpc.StoreFailed:
                found.append("failed")
            try:
                observer(shared).close()
            except mmpc.StoreFailed:
                found.append("failed")
            wait()
        return found

    pc = opened(shared)
    child, on = steps(children, look)
    pc.append(2, [seal(2, 0)])
    with failpoints.active("buffer write"), pytest.raises(mmpc.StoreFailed):
        pc.flush()
    on()
    with pytest.raises(mmpc.StoreFailed):
        pc.close()
    with opened(shared):
        on()
        on()
    assert child.result() == ["True", "failed", "failed", "True"]


def test_damage_is_named(shared: str, children: Children) -> None:
    model = filled(shared)
    pid = max(model, key=lambda p: len(model[p]))
    log = Path(shared, "log")
    log.write_bytes(log.read_bytes().replace(seal(pid, 3), seal(pid, 4)))

    def look() -> bool:
        pc = observer(shared)
        with pytest.raises(mmpc.CorruptionError, match=f"page {pid}.*'log' at offset"):
            pc.get(pid)
        model.pop(pid)
        return holds(pc, model)

    assert nobody(children, look).result() is True


# ---- what such a handle is


def test_what_it_cannot_do_is_said_with_the_reason(shared: str, children: Children) -> None:
    model = filled(shared)

    def look() -> bool:
        pc = observer(shared)
        for cannot in (lambda: pc.view(2), pc.begin, lambda: pc.backup(shared + "-copy")):
            with pytest.raises(mmpc.Unsupported, match=f"{shared}.*may not write.*cannot pin.*permission"):
                cannot()
        for write in (lambda: pc.allocate([1]), lambda: pc.free(2, pc.get(2).key), lambda: pc.bump_page_rts(2, 1)):
            with pytest.raises(mmpc.Unsupported, match="read_only"):
                write()
        with pytest.raises(mmpc.Unsupported, match=r"read_only=True.*chown"):
            mmpc.open(shared, mmpc.Append())
        with pytest.raises(mmpc.IncompatibleStore, match="append.*add"):
            mmpc.open(shared, mmpc.Add(), read_only=True)
        pc.close()
        with pytest.raises(mmpc.Closed):
            pc.get(2)
        return True

    assert nobody(children, look).result() is True
    os.chmod(os.path.join(shared, "log"), 0o600)

    def refused() -> str:
        with pytest.raises(mmpc.Unsupported, match=r"log.*who looks needs to read"):
            observer(shared)
        return "refused"

    assert nobody(children, refused).result() == "refused"
    assert len(model) == 20


def test_it_pickles_forks_and_is_shared_by_threads(shared: str, children: Children) -> None:
    model = filled(shared)

    def look() -> bool:
        pc = observer(shared)
        copy = pickle.loads(pickle.dumps(pc))
        assert type(copy) is Observer
        assert holds(copy, model)
        copy.close()
        with Children() as mine:
            assert mine.run(lambda: holds(pc, model))
        wrong: list[object] = []

        def run() -> None:
            try:
                wrong.extend([] if all(holds(pc, model) for _ in range(30)) else ["wrong"])
            except BaseException as e:
                wrong.append(e)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            pc._renew(pc._attachment)
        for thread in threads:
            thread.join()
        assert wrong == []
        return holds(pc, model)

    with opened(shared):
        assert nobody(children, look).result() is True


def test_it_leaks_no_descriptor_and_no_mapping(shared: str, children: Children) -> None:
    filled(shared)

    def look() -> bool:
        observer(shared).close()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with observer(shared) as pc:
                pc._renew(pc._attachment)
        assert len(os.listdir("/proc/self/fd")) == before
        return shared not in Path("/proc/self/maps").read_text()

    assert nobody(children, look).result() is True


def test_both_faces_observe(shared: str) -> None:
    model = filled(shared)
    with memory("32m") as disk:
        shutil.copytree(shared, disk.path / "copy")
        disk.remount("ro")
        code = (
            f"import mmpc; pc = mmpc.open({str(disk.path / 'copy')!r}, mmpc.Append(), read_only=True)\n"
            f"print(type(pc).__name__, {{p: len(pc.get(p).value) for p in {list(model)}}})"
        )
        for face in ("cffi", ""):
            env, command = os.environ | {"MMPC_FACE": face}, [sys.executable, "-P", "-c", code]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
            assert done.stdout == f"Observer { {p: len(m) for p, m in model.items()} }\n", done.stderr


def test_files_that_a_recovery_makes_may_be_read_by_who_may_read_the_log(
    shared: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMPC_BOOT_ID", "this boot")
    filled(shared)
    os.chmod(os.path.join(shared, "log"), 0o640)
    killed_dirty(shared)
    with opened(shared) as pc:
        pc.snapshot()
        modes = {n: os.stat(os.path.join(shared, n)).st_mode & 0o777 for n in os.listdir(shared)}
    made = [n for n in modes if n in ("config", "control", "table", "ids", "rts") or n.startswith("snapshot-")]
    assert len(made) == 6
    assert {modes[n] for n in made} == {0o640}
