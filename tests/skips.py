"""What may be skipped: tests/permitted-skips.txt, read, and held against a run.

A skip that is not on the list fails the run; so does, in a run of everything, a line of the list that nothing needs.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

USER, MACHINE = "[ordinary user]", "[machine]"


@dataclass(frozen=True)
class SkipList:
    """Patterns of test names: `user` may be skipped without root, `machine` also with it (something is not there)."""

    user: tuple[str, ...]
    machine: tuple[str, ...]

    def refused(self, skipped: Iterable[str], *, root: bool) -> list[str]:
        """Return the skipped tests that should have run."""
        permitted = self.machine if root else self.machine + self.user
        return [name for name in map(plain, skipped) if not any(matches(name, pattern) for pattern in permitted)]

    def stale(self, collected: Iterable[str], skipped: Iterable[str], *, root: bool) -> list[str]:
        """Return the patterns that a run of everything shows to be needless.

        Such a pattern names no test, or, where the run was an ordinary user's, only tests that a user runs too.
        """
        tests, unrun = set(map(plain, collected)), set(map(plain, skipped))
        named = [pattern for pattern in self.user + self.machine if not any_match(tests, pattern)]
        needless = [] if root else [pattern for pattern in self.user if not any_match(unrun, pattern)]
        return list(dict.fromkeys(named + needless))


def read_skip_list(path: Path) -> SkipList:
    """Read the list; `#` begins a comment, and a line is an ordinary user's unless it stands below `[machine]`."""
    found: dict[str, list[str]] = {USER: [], MACHINE: []}
    section = USER
    for line in path.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text in found:
            section = text
        elif text:
            found[section].append(text)
    return SkipList(tuple(found[USER]), tuple(found[MACHINE]))


def plain(nodeid: str) -> str:
    """Return the name of a test without its parameters."""
    return nodeid.partition("[")[0]


def matches(name: str, pattern: str) -> bool:
    """Say whether a pattern of the list means the test."""
    return fnmatch.fnmatchcase(name, pattern)


def any_match(names: Iterable[str], pattern: str) -> bool:
    """Say whether a pattern means any of the tests."""
    return any(matches(name, pattern) for name in names)


def summary(skipped: Sequence[str], refused: Sequence[str], stale: Sequence[str]) -> list[str]:
    """Return what the end of the run says; lines that begin with FAILED fail it."""
    count = [f"skipped: {len(skipped)}, of which permitted: {len(skipped) - len(refused)}"] if skipped else []
    bad = [f"FAILED skip is not in tests/permitted-skips.txt: {name}" for name in refused]
    old = [f"FAILED line of tests/permitted-skips.txt that nothing needs: {pattern}" for pattern in stale]
    return count + bad + old
