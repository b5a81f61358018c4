"""docs/seed-features.md: every test that it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "seed-features.md").read_text()
SECTIONS = 23
NONE = "—"


def functions(path: Path) -> set[str]:
    """The names of the test functions of a file, methods included."""
    if not path.exists():
        return set()
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def rows() -> list[list[str]]:
    """The cells of each row, without heads of tables."""
    cells = [re.split(r" *\| *", line.strip("| ")) for line in TEXT.splitlines() if line.startswith("|")]
    return [row for row in cells if row[-1] != "shown by" and not set(row[0]) <= {"-"}]


def test_every_section_has_rows() -> None:
    numbers = [int(n) for n in re.findall(r"^## (\d+)\. ", TEXT, re.MULTILINE)]
    assert numbers == list(range(1, SECTIONS + 1))
    assert all("\n|" in section for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:])


def test_every_row_names_a_test_or_a_reason() -> None:
    wrong = [row for row in rows() if len(row) != 3 or not all(row) or (row[2] == NONE and "gone" not in row[1])]
    assert wrong == []


def test_every_test_that_is_named_exists() -> None:
    named = [re.fullmatch(r"`([\w/]+\.py)::(\w+)`", row[2]) for row in rows() if row[2] != NONE]
    assert len(named) > 150
    there = {match[1]: functions(ROOT / "tests" / match[1]) for match in named if match}
    assert [match and match[0] for match in named if not match or match[2] not in there[match[1]]] == []
