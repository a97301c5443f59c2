"""A module may import only modules on an earlier line of LAYERS, or from its own package."""

import ast
from pathlib import Path

import pytest

LAYERS = [
    {"metrics", "redaction"},
    {"errors", "states", "procstat"},
    {"blobfuse2"},
    {"run", "log"},
    {"mounts", "descriptors", "systemd", "journal", "events", "privileges"},
    {"config"},
    {"secrets", "render", "importer", "cache", "probes", "client", "installer"},
    {"stores"},
    {"vfs", "transfer", "recovery"},
    {"fuse"},
    {"worker", "afterlife"},
    {"engines"},
    {"health"},
    {"supervisor", "session", "doctor"},
    {"api"},
    {"daemon"},
    {"cli", "__init__"},
    {"__main__"},
]
FORBIDDEN = {("cli", "supervisor"), ("cli", "engines")}  # the CLI talks to the daemon, or uses session
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ROOT = Path(__file__).parents[1] / "src" / "amlmount"
FILES = sorted(ROOT.rglob("*.py"))


def top(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            if node.module == "amlmount":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("amlmount."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("amlmount.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    me = top(path)
    for name in imports(path) - {me}:
        assert RANK[name] < RANK[me] and (me, name) not in FORBIDDEN, f"{me} must not import {name}"


MAX_MODULE_LINES = 400


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_MODULE_LINES
