"""The documents: every link leads somewhere, every file they name exists, and nothing of one machine is in the tree."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:src|tests|install|docs|templates|systemd|benchmarks)/[\w./-]+)`")


def headings(path: Path) -> set[str]:
    """Return the anchors of a document, made as GitHub makes them."""
    lines = [line.lstrip("#") for line in FENCED.sub("", path.read_text()).splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", line.strip().lower()).replace(" ", "-") for line in lines}


def broken(path: Path) -> list[str]:
    """Return the links of a document that lead nowhere; other sites are not asked."""
    found = []
    for link in LINK.findall(FENCED.sub("", path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_names_of_files_are_right(path: Path) -> None:
    assert broken(path) == []
    assert [name for name in NAMED.findall(path.read_text()) if not (ROOT / name).exists()] == []


def test_the_documents_name_every_other_document() -> None:
    text = (ROOT / "README.md").read_text()
    assert [path.name for path in DOCUMENTS if path.parent.name == "docs" and f"docs/{path.name}" not in text] == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One thing: `x`\n[1](#one-thing-x) [2](#two) [3](b.md) [4](a.md#one-thing-x)\n")
    assert broken(tmp_path / "a.md") == ["#two", "b.md"]


def test_nothing_of_one_machine_is_committed() -> None:
    """Paths of the machine it was written on say nothing to anybody else."""
    traces = [f"/{'work'}/main", f"/{'work'}/shared"]  # in two parts, so that this file does not find itself
    patterns = [word for trace in traces for word in ("-e", trace)]
    done = subprocess.run(["git", "grep", "-nIF", *patterns], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
