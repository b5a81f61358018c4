"""What is installed is what pyproject.toml says, and what the README says works."""

import ctypes
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import mmpc
import mmpc._native

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CPYTHON = sys.implementation.name == "cpython"


def test_version_is_the_projects() -> None:
    assert mmpc.__version__ == metadata.version("mmpc") == PROJECT["project"]["version"]


def test_changelog_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(mmpc.__version__)}\b", changelog, re.MULTILINE)


def test_types_are_announced() -> None:
    assert Path(mmpc.__file__).with_name("py.typed").exists()


def test_stubs_of_the_extension_are_installed() -> None:
    stubs = {path.name for path in (ROOT / "mmpc").glob("*.pyi")}
    assert stubs == {path.name for path in Path(mmpc.__file__).parent.glob("*.pyi")}


@pytest.mark.skipif(not CPYTHON, reason="other interpreters have no stable ABI")
def test_extension_is_abi3() -> None:
    assert mmpc._native.__file__.endswith(".abi3.so")
    assert ".abi3.so" in EXTENSION_SUFFIXES


@pytest.mark.skipif(not CPYTHON, reason="other interpreters have no C-API face")
def test_one_shared_object_has_two_faces() -> None:
    library = ctypes.CDLL(mmpc._native.__file__)
    assert hasattr(library, "PyInit__native")
    assert hasattr(library, "PyInit__hot")


def test_only_module_entries_are_exported() -> None:
    result = subprocess.run(
        ["nm", "-D", "--defined-only", mmpc._native.__file__], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in result.stdout.splitlines()}
    # _cffi_pypyinit__native: what PyPy would look for; cffi exports it everywhere
    ends = {"__start_mm_peeks", "__stop_mm_peeks"}  # the linker makes them, protected: nobody else's are taken for ours
    assert {n for n in names if not n.startswith(("PyInit_", "_cffi_pypyinit_", "__asan", "__odr"))} - ends == set()


def test_wheel_tag_is_the_oldest_python() -> None:
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    major, minor = map(int, oldest.split("."))
    hook = (ROOT / "csrc" / "build_ffi.py").read_text()
    assert PROJECT["tool"]["distutils"]["bdist_wheel"]["py-limited-api"] == f"cp{major}{minor}"
    assert f'LIMITED_API = "0x{major:02X}{minor:02X}0000"' in hook
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{major}{minor}"


def test_there_is_no_setup_py() -> None:
    assert not (ROOT / "setup.py").exists()


@pytest.mark.parametrize("words", ["-m pytest", "-m mmpc.demo"])
def test_readme_has_one_command_that(words: str) -> None:
    """.ci/run looks for these lines and runs them as they stand."""
    wanted = re.compile(r" *python3 -m venv .*" + re.escape(words))
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if wanted.match(line)]
    assert len(commands) == 1
    found_first = "pip install -e" in commands[0] or "python -P -m" in commands[0]
    assert found_first, "else `python -m` finds the source tree, where nothing is built"
