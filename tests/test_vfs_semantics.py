"""Holds docs/semantics.md to its word: every sentence has a test of its name."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SENTENCE = re.compile(r"^- (?:`([a-z0-9-]+)`: )?(.*)$", re.MULTILINE)


def test_every_sentence_has_a_test() -> None:
    sentences = SENTENCE.findall((ROOT / "docs/semantics.md").read_text())
    ids = [found for found, _ in sentences]
    assert len(ids) > 40 and "" not in ids, "a sentence without an id"
    assert len(set(ids)) == len(ids), "an id twice"
    code = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    tests = set(re.findall(r"^(?:async )?def test_(\w+)\(", code, re.MULTILINE))
    assert [found for found in ids if found.replace("-", "_") not in tests] == []
