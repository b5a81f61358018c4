"""README.md: its examples run, and it names what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmpc
import mmpc.errors

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_example_has_at_most_eight_lines() -> None:
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 8


def run(program: str, folder: Path) -> str:
    """What a program prints, run as a script in a folder of its own."""
    (folder / "example.py").write_text(program)
    command = [sys.executable, "-W", "error", "example.py"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_the_first_example_runs(tmp_path: Path) -> None:
    (promised,) = re.findall(r"print\(.*#\s*(.*)\n", EXAMPLES[0])
    assert run(EXAMPLES[0], tmp_path) == promised + "\n"


def test_the_second_example_runs(tmp_path: Path) -> None:
    program = "import mmpc\npath = 'store'\n" + EXAMPLES[1] + "print(page.value)\n"
    assert run(program, tmp_path) == "{'a': 2, 'b': 2, 'c': 3}\n"


def test_the_example_of_roots_and_numbers_runs(tmp_path: Path) -> None:
    program = "import mmpc\npages = mmpc.open('store', mmpc.Append(), create=True)\npid, key = pages.allocate([1])\n"
    (example,) = [e for e in EXAMPLES if "generate_id" in e]
    assert run(program + example + "print(number < tx.ts, pages.meta())\n", tmp_path) == "True {}\n"


def test_the_example_of_views_runs(tmp_path: Path) -> None:
    program = "import numpy, mmpc\npages = mmpc.open('store', mmpc.LastWriteWins(), create=True)\n"
    (example,) = [e for e in EXAMPLES if "pages.view" in e]
    assert run(program + "pid, _ = pages.allocate(numpy.arange(4))\n" + example + "print(total)\n", tmp_path) == "6\n"


def test_the_example_of_metrics_runs(tmp_path: Path) -> None:
    program = "import mmpc\npages = mmpc.open('store', mmpc.Append(), create=True)\n"
    program += "pages.append(pages.allocate([1])[0], [2])\n"
    (example,) = [e for e in EXAMPLES if "pages.metrics" in e]
    said = run(program + example + "print(len(text) > 1000, m.histograms['append'].count)\n", tmp_path)
    assert "pagecache" in said
    assert said.endswith("True 1\n")


def test_every_example_is_run() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("words", ["-m mmpc.demo", "-m pytest"])
def test_one_line_sets_up_and_runs(words: str) -> None:
    """.ci/run takes these lines from the page and runs them in a fresh clone."""
    lines = re.findall(rf"^ *python3 -m venv .*{re.escape(words)}", TEXT, re.MULTILINE)
    assert len(lines) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"`((?:csrc|mmpc|tests|bench|docs|\.ci)/[\w./]*\w)`", text))
    linked = {str((page.parent / link).relative_to(ROOT)) for link in re.findall(r"\]\(([\w/.]+)\)", text)}
    assert {name for name in named | linked if not (ROOT / name).exists()} == set()


def test_every_error_is_in_the_page() -> None:
    errors = {cls.__name__ for cls in vars(mmpc.errors).values() if isinstance(cls, type)} & set(mmpc.__all__)
    assert {name for name in errors if f"`{name}`" not in TEXT} == set()


def test_verbs_that_are_named_exist() -> None:
    section = TEXT.split("\nAlso ", 1)[1].split(". The", 1)[0]
    named = re.findall(r"`(\w+)`", section)
    assert len(named) >= 10
    assert [name for name in named if not hasattr(mmpc.PageCache, name)] == []
