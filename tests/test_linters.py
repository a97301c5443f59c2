"""Lint, format, types and shell scripts are tests like any other, so one command is the whole gate."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = ["src", "tests", "benchmarks", "install"]
CHECKS = {
    "ruff": [sys.executable, "-m", "ruff", "check", *PYTHON],
    "format": [sys.executable, "-m", "ruff", "format", "--check", *PYTHON],
    "mypy": [sys.executable, "-m", "mypy"],
    "shellcheck": [
        str(Path(sys.executable).with_name("shellcheck")),
        "-x",
        *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "install").glob("*.sh")),
    ],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CHECKS)
def test_linter_is_content(name: str) -> None:
    done = subprocess.run(CHECKS[name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
