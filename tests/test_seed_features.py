"""docs/seed-features.md: every test that it names is there."""

import ast
import re
from pathlib import Path

import mmpc

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


# Section 19 of the seed's features.
METRICS = (
    "advance_snapshot tree_set tree_get tree_del tree_cas tree_scan tree_reverse_scan tree_merge tree_start "
    "tree_traverse page_in rewrite_page replace_page link_page merge_page page_out pull serialize deserialize compress "
    "decompress make_stable assign_offset assign_spinloop reserve_lat reserve_sz reserve_current_condvar_wait "
    "reserve_written_condvar_wait write_to_log written_bytes read accountant_lock accountant_hold accountant_next "
    "accountant_mark_link accountant_mark_replace accountant_bump_tip tree_child_split_attempt tree_loops "
    "log_reservations log_reservation_attempts"
)


def test_every_metric_of_the_seed_has_a_counterpart_or_a_reason() -> None:
    """docs/design.md has them in a table; those of ours that it names exist."""
    from mmpc._metrics import described

    design = (ROOT / "docs" / "design.md").read_text()
    table = design.partition("| seed (`M`) | here |\n")[2].partition("\n\n")[0].splitlines()[1:]
    cells = [re.split(r" *\| *", line.strip("| "), maxsplit=1) for line in table]
    patterns = [name.replace("*", r"\w+") for there, _here in cells for name in re.findall(r"`([\w*]+)`", there)]
    assert [m for m in METRICS.split() if not any(re.fullmatch(p, m) for p in patterns)] == []
    with mmpc.open(None, mmpc.Append(), temporary=True) as pc:
        ours = {*pc.metrics().histograms, *(name for name, _what in described("counters"))}
    assert {name for _there, here in cells for name in re.findall(r"`(\w+)`", here)} <= ours


def test_every_test_that_is_named_exists() -> None:
    named = [re.fullmatch(r"`([\w/]+\.py)::(\w+)`", row[2]) for row in rows() if row[2] != NONE]
    assert len(named) > 150
    there = {match[1]: functions(ROOT / "tests" / match[1]) for match in named if match}
    assert [match and match[0] for match in named if not match or match[2] not in there[match[1]]] == []
