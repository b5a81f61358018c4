"""docs/: examples run as they stand in the page, the reference is that of the docstrings, and every page is found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
GUIDE = (DOCS / "guide.md").read_text()
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))


def python(*command: str, folder: Path) -> str:
    arguments = [sys.executable, "-W", "error", *command]
    result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def printed(text: str) -> list[str]:
    """What the page says that each program prints: the first indented lines behind it."""
    behind = re.split(r"^```python\n.*?^```$", text, flags=re.MULTILINE | re.DOTALL)[1:]
    found = [re.search(r"(?:^    .*\n)+", part, re.MULTILINE) for part in behind]
    return [re.sub(r"^    ", "", match[0], flags=re.MULTILINE) for match in found if match]


def test_the_guide_shows_the_files() -> None:
    assert sorted(blocks(GUIDE)) == sorted(path.read_text() for path in EXAMPLES)
    assert len(printed(GUIDE)) == len(EXAMPLES) >= 3


@pytest.mark.processes
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_recipe_prints_what_the_guide_says(path: Path, tmp_path: Path) -> None:
    promised = dict(zip(blocks(GUIDE), printed(GUIDE), strict=True))
    assert python(str(path), folder=tmp_path) == promised[path.read_text()]


def test_recipes_are_typed(tmp_path: Path) -> None:
    flags = ["--strict", "--no-incremental", "--config-file="]
    said = python("-m", "mypy", *flags, *map(str, EXAMPLES), folder=ROOT)
    assert "no issues found" in said


def test_every_block_of_python_is_run_by_a_test() -> None:
    """Those of the guide are files; the README has tests of its own."""
    assert {page.name for page in PAGES if blocks(page.read_text())} <= {"guide.md"}


def test_the_reference_is_that_of_the_docstrings() -> None:
    """Otherwise: python docs/make_api.py."""
    python("docs/make_api.py", "--check", folder=ROOT)


def test_every_public_name_is_in_the_reference() -> None:
    import mmpc

    reference = (DOCS / "api.md").read_text()
    assert [name for name in mmpc.__all__ if not re.search(rf"^##+ `(mmpc\.)?{name}`$", reference, re.MULTILINE)] == []


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    links = set(re.findall(r"\]\(([\w.-]+\.md)\)", index))
    assert links | {"README.md"} == {page.name for page in PAGES}
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        place, _, anchor = link.partition("#")
        target = page if not place else page.parent / place
        if not place.startswith("http") and not (target.exists() and (not anchor or anchor in anchors(target))):
            wrong.append(link)
    assert wrong == []


def anchors(page: Path) -> set[str]:
    return {slug(head) for head in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)}


def slug(head: str) -> str:
    """The anchor of a heading, as sites that show Markdown make it."""
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
