"""What a blobfuse2 file really says: keys that blobfuse2 reads, values as it reads them; the rest becomes findings.

blobfuse2 ignores keys it does not know: leaving them out keeps what the mount did, and the finding says what was meant.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amlmount.blobfuse2.key import Key
from amlmount.blobfuse2.problem import Problem
from amlmount.blobfuse2.rules import check_rules
from amlmount.blobfuse2.table import SECTION_KEYS, TABLE, find
from amlmount.blobfuse2.validate import check_config
from amlmount.blobfuse2.values import check_value
from amlmount.config.documents import Document
from amlmount.importer.finding import Finding

Settings = dict[str, Any]


class Cleaner:
    """Turns one file's data into `settings`: key path -> value. `where` names file and line of a key."""

    def __init__(self, path: Path, document: Document) -> None:
        self._path = path
        self._places = {_lower(place): str(found) for place, found in document.places.items()}
        self.findings: list[Finding] = []
        self.settings: Settings = {}
        self._read(document.data)

    def where(self, key_path: str) -> str:
        """Return `file:line` of a key, the file alone if it stands nowhere."""
        return self._places.get(tuple(key_path.split(".")), str(self._path))

    def _read(self, data: Mapping[str, Any]) -> None:
        for problem in check_config(data):
            if problem.path not in TABLE:
                self._say(problem, "left out, as blobfuse2 does")
        for name, value in data.items():
            section = name.lower()
            if section in SECTION_KEYS and isinstance(value, Mapping):
                self._read_section(section, value)
            elif key := find("", section):
                self._take(key, value)
        for problem in check_rules(nested(self.settings)):
            self._say(problem, "not carried over as it is")

    def _read_section(self, section: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if key := find(section, name):
                self._take(key, value)

    def _take(self, key: Key, written: object) -> None:
        if written is None:
            return
        value = self._as_blobfuse2_reads(key, written)
        problems = check_value(key, value)
        for problem in problems:
            self._say(problem, "left out")
        if key.status in ("ignored", "removed"):
            self.findings.append(Finding(self.where(key.path), f"{key.path} does nothing in blobfuse2", "left out"))
        elif not problems:
            self.settings[key.path] = value

    def _as_blobfuse2_reads(self, key: Key, written: object) -> object:
        """Undo what YAML and viper do to numbers: `"77"` is taken as 77, 0644 as octal, a umask by its digits."""
        if key.kind == "str" and isinstance(written, int | float) and not isinstance(written, bool):
            return str(written)
        if not isinstance(written, str):
            return [written] if key.kind == "list" and not isinstance(written, list) else written
        if key.kind == "umask" and re.fullmatch(r"0+[0-7]+", written):
            self._umask_trap(written)
            return int(written)
        if key.kind in ("int", "float", "umask") and re.fullmatch(r"-?\d+(\.\d+)?", written):
            return float(written) if "." in written else int(written)
        if key.kind == "bool" and written.lower() in ("1", "t", "true", "0", "f", "false"):
            return written.lower() in ("1", "t", "true")
        return [written] if key.kind == "list" else written

    def _umask_trap(self, written: str) -> None:
        read = int(written, 8)
        self.findings.append(
            Finding(
                self.where("libfuse.umask"),
                f"umask {written}: YAML reads {read}, and blobfuse2 hands that on as the octal digits {read:04d}",
                f"taken as it was meant: {read:04o}",
            )
        )

    def _say(self, problem: Problem, change: str) -> None:
        what = f"{problem.path} {problem.message}" + (f" ({problem.hint})" if problem.hint else "")
        self.findings.append(Finding(self.where(problem.path), what, change))


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as sections again."""
    result: dict[str, Any] = {}
    for path, value in settings.items():
        section, _, name = path.rpartition(".")
        (result.setdefault(section, {}) if section else result)[name] = value
    return result


def _lower(path: tuple[str | int, ...]) -> tuple[str, ...]:
    return tuple(str(step).lower() for step in path)
