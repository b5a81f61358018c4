"""The types that users meet: tests/typing/sample.py, judged strictly and run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "tests" / "typing" / "sample.py"
PYRIGHT = shutil.which("pyright", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def run(command: list[str], folder: Path, **environment: str) -> str:
    env = {**os.environ, **environment}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_mypy_finds_what_is_right_and_what_is_wrong(tmp_path: Path) -> None:
    """In a folder of its own and by no settings of ours, as for a user; comments that are not needed are errors."""
    program = tmp_path / "sample.py"
    shutil.copy(SAMPLE, program)
    flags = ["--strict", "--warn-unused-ignores", "--no-incremental", "--config-file="]
    said = run([sys.executable, "-m", "mypy", *flags, str(program)], tmp_path, MYPYPATH=str(ROOT))
    assert "no issues found" in said


@pytest.mark.skipif(PYRIGHT is None, reason="pyright is not installed: it is in the extra dev")
def test_pyright_agrees(tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path)
    settings = {
        "extraPaths": [str(ROOT)],
        "pythonVersion": "3.11",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "typeCheckingMode": "strict",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    assert PYRIGHT is not None
    assert "0 errors, 0 warnings" in run([PYRIGHT, "-p", str(tmp_path), "--pythonpath", sys.executable], tmp_path)


@pytest.mark.parametrize("face", ["", "cffi"])
def test_what_is_typed_runs(tmp_path: Path, face: str) -> None:
    said = run([sys.executable, "-W", "error", str(SAMPLE)], tmp_path, MMPC_FACE=face)
    assert said == "a,b3 {'words': 2} none\n"
