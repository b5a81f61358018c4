"""Rules of the project that a reader could otherwise only be asked to keep."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Which modules of the project a module of mmpc/ may import, also inside functions. `*`: any. A new module has
# to be entered here, with as few names as it needs.
LOW = {"errors", "results", "codec", "materializer", "_native"}
IMPORTS: dict[str, set[str]] = {
    "__init__": {"*"},
    "errors": set(),
    "failpoints": {"_checks", "_native"},
    "results": set(),
    "codec": {"errors"},
    "materializer": {"errors", "codec"},
    "tx": {"errors", "_native"},
    "_files": {"errors", "_native", "failpoints"},
    "_arrays": set(),
    "_portable_view": {"errors", "results", "_native", "_arrays"},
    "_portable_cache": set(),
    "_portable": LOW | {"tx", "_portable_cache", "_portable_view"},
    "_face": {"_native", "_hot", "_portable"},
    "_snapshot": {"errors", "_native", "_files", "failpoints"},
    "_recovery": {"errors", "_native", "_files", "_snapshot", "failpoints"},
    "_compression": {"errors", "_native"},
    "_cut": {"errors", "_extent", "_files", "_layout", "_log", "_native"},
    "_store": {"errors", "_native", "_compression", "_cut", "_files", "_snapshot", "_recovery", "failpoints"},
    "_maintenance": {"errors", "_native", "_snapshot", "_store"},
    "_readers": {"errors", "_files", "_findings", "_layout", "_volatile"},
    "_backup": {"errors", "_native", "_files", "failpoints", "_findings", "_layout", "_lasting", "_log", "_volatile"}
    | {"_extent"},
    "_views": {"errors", "_native", "_store"},
    "_checks": set(),
    "_reserved": set(),
    "_meta": {"errors", "codec", "_checks", "_native", "_reserved"},
    "_stats": {"_readers"},
    "_metrics": {"errors", "_native", "_files", "_layout", "_readers", "_profile"},
    "_profile": {"_metrics"},
    "pagecache": LOW
    | {"_backup", "_checks", "_face", "_files", "_maintenance", "_meta", "_open", "_snapshot", "_stats", "_store"}
    | {"_compression", "_metrics", "_views", "tx"},
    "observer": {"errors", "_native", "_face", "_files", "_recovery", "_stats", "_store", "pagecache", "tx"},
    "_open": {"event_log", "materializer", "observer", "pagecache", "_checks", "_face", "_files", "_store"}
    | {"_compression"},
    "_recording": {"errors", "results"},
    "event_log": {"errors", "codec", "_files", "_layout", "_native", "_recording", "pagecache"},
    "_visit": {"errors", "materializer", "pagecache", "_files", "_open", "_store"},
    "_space": {"errors", "_native", "_visit", "pagecache"},
    "_findings": set(),
    "_layout": {"_native"},
    "_extent": {"_layout"},
    "_log": {"_native", "_compression", "_layout", "_findings", "_extent"},
    "_lasting": {"_layout", "_findings"},
    "_intents": {"_layout", "_lasting", "_log"},
    "_volatile": {"_layout", "_findings", "_log", "_extent"},
    "verify": {"errors", "_files", "_intents", "_store", "_layout", "_findings", "_log", "_lasting", "_reserved"}
    | {"_compression", "_volatile"},
    "_wreck": {"_native", "_layout", "_findings", "_log", "_lasting", "_extent"},
    "salvage": {"errors", "materializer", "_native", "_store", "_layout", "_findings", "_log", "_lasting", "_volatile"}
    | {"_compression", "_reserved", "_wreck", "verify"},
    "__main__": {"cli"},
    "cli": LOW
    | {"__init__", "demo", "pagecache", "salvage", "verify", "_files", "_findings", "_lasting", "_layout", "_log"}
    | {"_extent", "_intents", "_metrics", "_readers", "_store", "_visit", "_volatile"},
    "demo": {"__init__"},  # a program like any other: the public names only
}

# Not imported by `import mmpc`: each costs milliseconds, and is imported when first needed.
LATE = ["asyncio", "dataclasses", "filelock", "inspect", "lmdb", "logging", "msgpack", "numpy", "rich", "tempfile"]
LATE.append("zstandard")
EXECUTES = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}  # reading runs what the bytes say


def files(*folders: str, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    """Text files of the project below the given folders (`.`: its root without folders); nothing built."""
    found: list[Path] = []
    for folder in folders:
        top = ROOT / folder
        candidates = top.iterdir() if folder == "." else top.rglob("*")
        found += [path for path in candidates if path.is_file() and path.name.endswith(suffixes)]
    built = {".so", ".pyc", ".o"}
    return sorted(p for p in found if p.suffix not in built and "__pycache__" not in p.parts)


def everything() -> list[Path]:
    return files(".", ".ci", "mmpc", "csrc", "tests", "bench", "docs")


def lines(paths: list[Path], pattern: str) -> Iterator[str]:
    """`file:line: text` of every line in `paths` that matches."""
    expression = re.compile(pattern)
    for path in paths:
        for number, text in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if expression.search(text):
                yield f"{path.relative_to(ROOT)}:{number}: {text.strip()}"


def module_name(path: Path) -> str:
    """The name of a file of mmpc/ in IMPORTS: `codec`, and `demo` for each file of a package."""
    return path.relative_to(ROOT / "mmpc").parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import that a file may execute; `from a import b` gives `a.b`."""
    package = ("mmpc", *path.relative_to(ROOT / "mmpc").parts[:-1])
    for node in executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            prefix = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node of `tree`, without what stands below `if TYPE_CHECKING:`."""
    yield tree
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test):
        for node in tree.orelse:
            yield from executed(node)
        return
    for node in ast.iter_child_nodes(tree):
        yield from executed(node)


def project_module(dotted: str) -> str | None:
    """The entry of IMPORTS that an absolute name belongs to, or None if it is not of this project."""
    parts = dotted.split(".")
    if parts[0] != "mmpc":
        return None
    known = len(parts) > 1 and parts[1] in set().union(IMPORTS, *IMPORTS.values())
    return parts[1] if known else "__init__"


PYTHON_FILES = files("mmpc", suffixes=(".py",))


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    name = module_name(path)
    assert name in IMPORTS, f"{name}: not in the table of tests/test_rules.py"
    allowed = IMPORTS[name] | {name}
    wrong = [
        f"{path.name}:{line}: imports {dotted}"
        for line, dotted in imported(path)
        if (module := project_module(dotted)) is not None and module not in allowed and "*" not in allowed
    ]
    assert wrong == []


def test_nothing_that_is_read_is_unpickled() -> None:
    wrong = [
        f"{path.name}:{line}: {name}"
        for path in PYTHON_FILES
        for line, name in imported(path)
        if name.split(".")[0] in EXECUTES
    ]
    assert wrong == []


def test_one_header_touches_stdatomic() -> None:
    found = lines(files("csrc"), r"#\s*include\s*<stdatomic\.h>")
    assert {hit.split(":")[0] for hit in found} <= {"csrc/atomics.h"}


def test_the_c_core_has_no_atomics_of_its_own() -> None:
    """Nor volatile: a handler's flag apart, it orders nothing between processors."""
    own = re.compile(r"\b(__atomic_\w+|__sync_\w+|atomic_\w+_explicit|volatile(?! sig_atomic_t))\b")
    comment = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
    others = [path for path in files("csrc", suffixes=(".c", ".h")) if path.name != "atomics.h"]
    found = {path.name: own.findall(comment.sub("", path.read_text())) for path in others}
    assert {name: words for name, words in found.items() if words} == {}


def test_no_file_is_long() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files("mmpc", "csrc")}
    assert {name: count for name, count in long.items() if count > 700} == {}


def test_the_tree_holds_what_works() -> None:
    unfinished = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"])
    assert list(lines(everything(), rf"\b({unfinished})\b")) == []


def test_no_path_of_one_machine() -> None:
    texts = [path for path in everything() if path.name != "LICENSE"]
    assert list(lines(texts, r"(?<![\w.~}])/(home|Users|root)/\w")) == []


def test_no_native_instruction_set() -> None:
    """One wheel runs on every machine of its architecture; faster instructions are chosen when it runs."""
    wanted = "-march" + "="
    assert list(lines(everything(), re.escape(wanted))) == []


def test_import_is_light() -> None:
    """In a bare interpreter (-S: without the .pth files of editable installs), with the same folders."""
    import mmpc

    folders = [str(Path(mmpc.__file__).parent.parent), *(p for p in sys.path if p.endswith("site-packages"))]
    code = f"import sys; sys.path += {folders!r}; import mmpc; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-S", "-E", "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 0, result.stderr
    assert set(LATE) & set(result.stdout.split()) == set()
