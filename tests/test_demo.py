"""The demo: nothing is lost, duplicated or torn while workers are killed; it says so when something is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import mmpc
from mmpc.demo import index
from mmpc.demo.__main__ import main
from mmpc.demo.crew import Crew, JobFailed, Tally
from mmpc.demo.sources import count_words, standard_library

pytestmark = pytest.mark.processes

FILES = 40
LONGEST = 80.0  # seconds for one command; then its whole session is ended


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end, in a session of its own that is ended with it."""
    command = [sys.executable, "-P", "-m", "mmpc.demo", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LONGEST)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    print(" ".join(command), out, err, sep="\n")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def facts(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON of a command."""
    result = demo(*arguments, "--json")
    return result.returncode, json.loads(result.stdout)


@pytest.fixture
def build(path: str, seed: int) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Indexes a part of the standard library into the test's store."""

    def build(*arguments: object) -> tuple[int, dict[str, Any]]:
        return facts("index", "--store", path, "--limit", FILES, "--seed", seed, *arguments)

    return build


def forge(path: str, change: Callable[[index.Pages, index.Layout], object]) -> tuple[int, dict[str, Any]]:
    """Change a finished index through the API, and have it judged."""
    with mmpc.open(path, mmpc.Union()) as pages:
        change(pages, index.load(pages))
    return facts("check", "--store", path)


def page_of(pages: index.Pages, layout: index.Layout, word: str) -> int:
    """The page id of a word."""
    pid: int = index.read(pages, [layout.bucket(word)])[0].value[word]
    return pid


# ---- index


def test_workers_are_killed_and_every_posting_is_there_once(path: str, seed: int) -> None:
    options = ["--store", path, "--limit", FILES, "--seed", seed, "--workers", 3, "--kill-every", 0.02]
    result = demo("index", *options)
    assert result.returncode == 0, result.stderr
    assert "Every posting is there, once." in result.stdout
    rows = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines() if len(line.split()) > 1}
    assert [rows[name] for name in ("files", "lost", "duplicated", "torn")] == [str(FILES), "0", "0", "0"]


def test_json_says_what_the_text_says(build: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    status, found = build("--workers", 2, "--kill-every", 0.03)
    assert status == 0
    assert found["ok"] is True
    assert (found["files"], found["files_written"], found["workers"]) == (FILES, FILES, 2)
    assert found["postings"] == found["postings_written"] > 1000
    assert [found[name] for name in ("lost", "duplicated", "torn", "crashed")] == [0, 0, 0, []]
    assert found["killed"] >= found["interrupted"] >= 0
    assert found["bytes_on_disk"] > found["postings"]


def test_the_job_ends_however_often_workers_are_killed(
    build: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    status, found = build("--limit", 10, "--workers", 4, "--kill-every", 0.001)
    assert (status, found["ok"], found["files_written"]) == (0, True, 10)
    assert found["killed"] > 0


def test_indexing_again_counts_nothing_twice(build: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    first, second = build("--workers", 2), build("--workers", 2, "--again", "--kill-every", 0.05)
    assert (first[0], second[0]) == (0, 0)
    assert second[1]["files_written"] == FILES
    assert second[1]["postings"] == first[1]["postings"]


def test_a_finished_index_is_begun_anew(build: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    first, second = build(), build("--limit", 10)
    assert (first[0], second[0]) == (0, 0)
    assert second[1]["files"] == 10
    assert second[1]["words"] < first[1]["words"]


def test_goes_on_after_the_parent_was_killed(path: str, seed: int) -> None:
    options = ["--store", path, "--limit", 400, "--seed", str(seed)]
    parent = subprocess.Popen(
        [sys.executable, "-P", "-m", "mmpc.demo", "index", *map(str, options), "--workers", "2", "--json"],
        start_new_session=True,
    )
    try:
        done = wait_for(lambda: files_done(path) > 5 or parent.poll() is not None)
        parent.kill()
        assert done
        assert parent.wait() == -signal.SIGKILL, "the job was over before its parent could be killed"
        assert wait_for(lambda: not session(parent.pid)), "workers outlive their parent"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    status, found = facts("index", *options, "--workers", 2)
    assert (status, found["ok"], found["files"]) == (0, True, 400)
    assert 0 < found["files_written"] < 400


def test_another_programs_store_is_left_alone(open_store: Callable[..., Any], path: str) -> None:
    with open_store(mmpc.Union()) as pages:
        pid, _ = pages.allocate({"mine": 1})
    result = demo("index", "--store", path, "--limit", 3)
    assert result.returncode == 2
    assert "another program's pages" in result.stderr
    with mmpc.open(path, mmpc.Union()) as pages:
        assert pages.get(pid).value == {"mine": 1}


# ---- check


def test_a_lost_posting_is_found(build: Callable[..., tuple[int, dict[str, Any]]], path: str) -> None:
    build()

    def lose(pages: index.Pages, layout: index.Layout) -> None:
        pid = page_of(pages, layout, "import")
        file_id = min(index.read(pages, [pid])[0].value)
        pages.append(pid, {file_id: None})

    status, found = forge(path, lose)
    assert (status, found["ok"]) == (1, False)
    assert [found[name] for name in ("lost", "duplicated", "torn")] == [1, 0, 0]
    assert found["examples"][0].startswith("lost: 'import' in ")


def test_a_lost_word_is_all_its_postings(build: Callable[..., tuple[int, dict[str, Any]]], path: str) -> None:
    build()
    with mmpc.open(path, mmpc.Union()) as pages:
        layout = index.load(pages)
        files = len(index.find(pages, layout, ["import"])["import"])
    status, found = forge(path, lambda pages, layout: pages.append(layout.bucket("import"), {"import": None}))
    assert (status, found["lost"], found["orphan_pages"]) == (1, files, 1)


def test_a_posting_counted_twice_is_found(
    build: Callable[..., tuple[int, dict[str, Any]]], path: str
) -> None:
    build()

    def double(pages: index.Pages, layout: index.Layout) -> None:
        pid = page_of(pages, layout, "import")
        file_id, count = min(index.read(pages, [pid])[0].value.items())
        pages.append(pid, {file_id: 2 * count, 100_000: 1})

    status, found = forge(path, double)
    assert (status, found["ok"]) == (1, False)
    assert [found[name] for name in ("lost", "duplicated", "torn")] == [0, 2, 0]


def test_two_words_with_one_page_are_found(
    build: Callable[..., tuple[int, dict[str, Any]]], path: str
) -> None:
    build()

    def share(pages: index.Pages, layout: index.Layout) -> None:
        pages.append(layout.bucket("import"), {"import": page_of(pages, layout, "def")})

    status, found = forge(path, share)
    assert (status, found["duplicated"]) == (1, 1)


@pytest.mark.parametrize("value", ["three", [1, 2], {}])
def test_a_value_that_no_writer_wrote_is_torn(
    build: Callable[..., tuple[int, dict[str, Any]]], path: str, value: object
) -> None:
    build()

    def tear(pages: index.Pages, layout: index.Layout) -> None:
        pid = page_of(pages, layout, "import")
        file_id = min(index.read(pages, [pid])[0].value)
        pages.append(pid, {file_id: value})

    status, found = forge(path, tear)
    assert (status, found["torn"]) == (1, 1)


def test_pages_without_a_word_count_nothing(
    build: Callable[..., tuple[int, dict[str, Any]]], path: str
) -> None:
    build()
    status, found = forge(path, lambda pages, layout: [pages.allocate({0: 1}) for _ in range(3)])
    assert (status, found["ok"], found["orphan_pages"]) == (0, True, 3)


# ---- search


def test_search_ranks_the_files_that_hold_all_words(
    build: Callable[..., tuple[int, dict[str, Any]]], path: str
) -> None:
    build()
    tree = standard_library(FILES)
    counts = [count_words(tree.read(n)) for n in range(len(tree))]
    both = {tree.paths[n]: c["import"] + c["self"] for n, c in enumerate(counts) if c["import"] and c["self"]}
    status, found = facts("search", "--store", path, "--top", 1000, "import", "self")
    assert status == 0
    assert {name: sum(each) for name, each in found["best"]} == both
    sums = [sum(each) for _, each in found["best"]]
    assert sums == sorted(sums, reverse=True)
    text = demo("search", "--store", path, "--top", 2, "import", "self").stdout
    assert found["best"][0][0] in text
    assert " ms" in text


def test_search_without_an_answer(build: Callable[..., tuple[int, dict[str, Any]]], path: str) -> None:
    assert demo("search", "--store", path, "import").returncode == 2
    build("--limit", 3)
    assert demo("search", "--store", path, "no_such_word_anywhere").returncode == 1


def test_index_and_search_agree_on_where_the_store_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert facts("index", "--limit", 3, "--seed", seed)[1]["store"] == str(tmp_path / "mmpc-demo")
    assert demo("search", "import").returncode == 0


# ---- the crew


class Nothing:
    """A sink that keeps nothing."""

    def add(self, file_id: int, counts: Mapping[str, int]) -> None:
        """Takes no notice."""

    def close(self) -> None:
        """Nothing to close."""


class Failing(Nothing):
    def add(self, file_id: int, counts: Mapping[str, int]) -> None:
        raise ValueError(f"cannot take file {file_id}")


def run_crew(sink: Callable[[], Any], files: int, **options: Any) -> Tally:
    return Crew(standard_library(files), sink, workers=2, **options).run(range(files))


def test_an_error_in_a_worker_ends_the_job_and_is_shown(seed: int) -> None:
    with pytest.raises(JobFailed, match=r"(?s)Traceback.*ValueError: cannot take file"):
        run_crew(Failing, 5, seed=seed)


def test_a_crash_is_told_from_a_kill(seed: int, tmp_path: Path) -> None:
    once = tmp_path / "once"

    class Crashing(Nothing):
        def add(self, file_id: int, counts: Mapping[str, int]) -> None:
            with contextlib.suppress(FileExistsError):
                once.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGUSR1)

    tally = run_crew(Crashing, 12, seed=seed)
    assert (tally.files, tally.killed, tally.crashed) == (12, 0, ["SIGUSR1"])


def test_workers_that_crash_for_ever_end_the_job(seed: int) -> None:
    class Crashing(Nothing):
        def add(self, file_id: int, counts: Mapping[str, int]) -> None:
            os._exit(3)

    with pytest.raises(JobFailed, match="workers crashed: exit 3"):
        run_crew(Crashing, 12, seed=seed)


def children() -> set[str]:
    """Processes of this one; multiprocessing may keep servers of other tests among them."""
    return {
        pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    }


def test_no_process_is_left_behind(seed: int) -> None:
    before = children()
    run_crew(Nothing, 8, seed=seed, kill_every=0.01)
    assert children() <= before


# ---- the peer


def test_comparison_with_lmdb(build: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    pytest.importorskip("lmdb")
    status, found = build("--limit", 20, "--peer", "lmdb", "--rounds", 1)
    assert (status, found["peer"]["name"]) == (0, "lmdb")
    assert [duel["workers"] for duel in found["peer"]["duels"]] == [1, 2]
    assert all(duel["ratio"] > 0 for duel in found["peer"]["duels"])


def test_without_lmdb_it_says_how_to_get_it(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert main(["index", "--store", path, "--peer", "lmdb"]) == 2
    assert "pip install lmdb" in capsys.readouterr().err
    assert not Path(path).exists()


# ---- sources


def test_words_of_a_source() -> None:
    assert count_words(b"a = a1 + _b2  # 3c, d-e 12 0x1f x1f\n") == {
        "a": 1,
        "a1": 1,
        "_b2": 1,
        "c": 1,
        "d": 1,
        "e": 1,
        "x1f": 2,
    }
    assert count_words("é_x = 'ü'".encode()) == {"_x": 1}
    assert count_words("wört".encode("latin-1")) == {"w": 1, "rt": 1}


def test_words_are_what_the_pattern_says() -> None:
    tree = standard_library(100)
    for file_id in range(len(tree)):
        source = tree.read(file_id)
        found = re.findall("[A-Za-z_][A-Za-z0-9_]*", source.decode("latin-1"))
        assert count_words(source) == Counter(found), tree.paths[file_id]


def test_a_limit_spreads_over_the_library() -> None:
    whole, part = standard_library(), standard_library(10)
    assert len(part) == 10
    assert set(part.paths) <= set(whole.paths)
    assert len({name[0] for name in part.paths}) > 3
    assert not any("site-packages" in name for name in whole.paths)
    assert part.digest != whole.digest


# ---- helpers


def wait_for(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; False if it does not for LONGEST seconds."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def files_done(path: str) -> int:
    """How many files an index that is being built has finished."""
    try:
        with mmpc.open(path, mmpc.Union()) as pages:
            return len(index.finished(pages, index.load(pages)))
    except (mmpc.MmpcError, index.NotAnIndex, FileNotFoundError):
        return 0


def session(sid: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, *ids = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(ids[2]) == sid and state != "Z":
                found.append(int(entry.name))
    return found
