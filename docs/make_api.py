"""Writes docs/api.md from the docstrings: python docs/make_api.py [--check]

It reads the source and imports nothing. `--check` writes nothing, and ends with 1 if the page is out of date.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

PACKAGE = Path(__file__).resolve().parent.parent / "mmpc"
PAGE = Path(__file__).resolve().parent / "api.md"
WIDTH = 110
# The faces: where the Python twins of what is built in C are.
TWINS = {"_face": ["results", "_portable_view", "_portable"], "_hot": ["results", "_portable_view", "_portable"]}
GROUPS = {
    "Opening": ["open"],
    "Handles": ["PageCache", "Observer", "Tx"],
    "Results": ["PagePtr", "Materialized", "Free", "Unallocated", "Counter", "Meta", "View"],
    "Materializers": ["Materializer", "Append", "Add", "Max", "LastWriteWins", "Union"],
    "Errors": [],  # those that are left
    "Looking": ["Stats", "Metrics", "ProcessMetrics", "Histogram", "prometheus", "Reader", "readers"],
    "Looking after": ["verify", "Report", "Problem", "salvage", "Salvaged", "backup", "Backup", "clean", "Cleaned"],
}
MODULES = ["failpoints", "event_log"]
# What these give stands with one class, not with each.
APART = {"Materializer", "ReadOnlyPageCache", "_Numeric", "_Page", "_Valued"}
MORE = {"Materialized": ["_Page"]}
HEAD = """# API

Made by `docs/make_api.py` from the docstrings; change those. Names are those of `mmpc` unless a heading says otherwise.
What a handle inherits stands with the handle, for an `Observer` with `PageCache`; all five results have the methods of
`Materialized`.
"""

Definition = ast.ClassDef | ast.FunctionDef


class Module:
    """A file of the package: what it defines, and where its other names come from."""

    known: ClassVar[dict[str, Module]] = {}

    def __init__(self, name: str) -> None:
        self.tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        self.defined: dict[str, Definition] = {}
        self.imported: dict[str, str] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                self.defined[node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is not None:
                self.imported |= {alias.asname or alias.name: node.module for alias in node.names}

    @classmethod
    def named(cls, name: str) -> Module:
        if name not in cls.known:
            cls.known[name] = cls(name)
        return cls.known[name]

    def find(self, name: str) -> tuple[Module, Definition] | None:
        """The definition of a name that this file defines or imports, and the file it stands in."""
        if name in self.defined:
            return self, self.defined[name]
        source = self.imported.get(name)
        if source is None:
            return None
        for place in TWINS.get(source, [source]):
            found = Module.named(place).find(name)
            if found is not None:
                return found
        return None


def public_names() -> list[str]:
    """`__all__` of the package."""
    for node in Module.named("__init__").tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise SystemExit("mmpc/__init__.py has no __all__")


def text_of(node: Definition | ast.Module) -> str:
    return ast.get_docstring(node) or ""


def decorators(node: ast.FunctionDef) -> set[str]:
    return {ast.unparse(decorator) for decorator in node.decorator_list}


def default_of(node: ast.FunctionDef, value: ast.expr | None) -> ast.expr | None:
    """A default as it is written, or what the constant is that it names."""
    parts = ast.unparse(value).split(".") if isinstance(value, ast.Name | ast.Attribute) else []
    if not parts or len(parts) > 2:
        return value
    modules = [Module.named(parts[0])] if len(parts) == 2 else [m for m in Module.known.values() if node in m.tree.body]
    for statement in (statement for module in modules for statement in module.tree.body):
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == parts[-1]:
            return statement.value
    return value


def signature(node: ast.FunctionDef, name: str) -> str:
    """As it is called: without self, one parameter a line if it is long."""
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
    pairs = list(zip(positional, defaults, strict=True))
    if pairs and pairs[0][0].arg in ("self", "cls"):
        pairs = pairs[1:]
    parts = [parameter(arg, default_of(node, default)) for arg, default in pairs]
    if spec.vararg is not None:
        parts.append("*" + parameter(spec.vararg, None))
    elif spec.kwonlyargs:
        parts.append("*")
    named = zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    parts += [parameter(arg, default_of(node, default)) for arg, default in named]
    if spec.kwarg is not None:
        parts.append("**" + parameter(spec.kwarg, None))
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def parameter(arg: ast.arg, default: ast.expr | None) -> str:
    written = arg.arg if arg.annotation is None else f"{arg.arg}: {ast.unparse(arg.annotation)}"
    if default is None:
        return written
    return f"{written} = {ast.unparse(default)}" if arg.annotation is not None else f"{written}={ast.unparse(default)}"


def bases(module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    """The class and what it inherits from the package, nearest first."""
    yield module, node
    for base in node.bases:
        name = ast.unparse(base).split("[")[0]
        found = module.find(name)
        if found is not None and isinstance(found[1], ast.ClassDef) and found[1].name not in APART:
            yield from bases(found[0], found[1])


def members(module: Module, node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """Public methods and properties with a docstring; the nearest definition counts."""
    found: dict[str, ast.FunctionDef] = {}
    above = [module.defined[name] for name in MORE.get(node.name, [])]
    for cls in [*(cls for _, cls in bases(module, node)), *above]:
        for item in cls.body:
            if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and text_of(item):
                found.setdefault(item.name, item)
    return found


def code(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


def function(node: ast.FunctionDef, name: str, level: int) -> list[str]:
    if "property" in decorators(node):
        kind = f": {ast.unparse(node.returns)}" if node.returns is not None else ""
        shown = f"{name}{kind}"
    else:
        shown = signature(node, name)
    return [f"{'#' * level} `{name}`", code(shown), text_of(node)]


def fields(node: ast.ClassDef) -> list[str]:
    """Attributes that a class declares, with what a string below or the comment beside says."""
    source = (PACKAGE / f"{home(node)}.py").read_text().splitlines()
    rows = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith("_"):
            comment = source[item.lineno - 1].partition("  # ")[2].strip()
            rows.append(f"* `{item.target.id}: {ast.unparse(item.annotation)}`{': ' if comment else ''}{comment}")
        elif isinstance(item, ast.If) and ast.unparse(item.test) == "TYPE_CHECKING":
            shown = [prop for prop in item.body if isinstance(prop, ast.FunctionDef) and prop.returns is not None]
            rows += [f"* `{prop.name}: {ast.unparse(prop.returns)}`" for prop in shown if prop.returns is not None]
    return ["\n".join(rows)] if rows else []


def home(node: ast.ClassDef) -> str:
    return next(name for name, module in Module.known.items() if module.defined.get(node.name) is node)


def entry(name: str, level: int = 3) -> list[str]:
    found = Module.named("__init__").find(name)
    if found is None:
        raise SystemExit(f"mmpc.{name} is defined nowhere")
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return function(node, name, level)
    parts = [f"{'#' * level} `{name}`", text_of(node), *fields(node)]
    for member, method in sorted(members(module, node).items()):
        parts += function(method, f"{name}.{member}", level + 1)
    return parts


def module_entry(name: str) -> list[str]:
    module = Module.named(name)
    parts = [f"## `mmpc.{name}`", text_of(module.tree)]
    hidden = {"opened", "Recorder", "RecordedPageCache", "RecordedReadOnlyPageCache", "encoded", "reach"}
    for item, node in module.defined.items():
        if item.startswith("_") or item in hidden or not text_of(node):
            continue
        if isinstance(node, ast.FunctionDef):
            parts += function(node, f"{name}.{item}", 3)
        else:
            parts += [f"### `{name}.{item}`", text_of(node), *fields(node)]
    return parts


def page() -> str:
    names = [name for name in public_names() if name not in MODULES]
    grouped = [name for group in GROUPS.values() for name in group]
    if set(grouped) - set(names):
        raise SystemExit(f"not public any more: {sorted(set(grouped) - set(names))}")
    errors = [name for name in names if name not in grouped]
    strange = [name for name in errors if name not in Module.named("errors").defined]
    if strange:
        raise SystemExit(f"in no group of docs/make_api.py: {strange}")
    parts = [HEAD.strip()]
    for title, group in GROUPS.items():
        parts.append(f"## {title}")
        if title == "Errors":
            parts.append(code(text_of(Module.named("errors").tree)))
        for name in group or errors:
            parts += entry(name)
    for name in MODULES:
        parts += module_entry(name)
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
