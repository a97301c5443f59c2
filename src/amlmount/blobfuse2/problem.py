"""What validation finds: one problem each, with what to do about it.

Errors are refused, warnings are told. No problem ever carries the value of a secret key.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """`path` names the key (`section.name`), `message` what is wrong, `hint` what to write instead."""

    path: str
    message: str
    hint: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


def errors(problems: list[Problem]) -> list[Problem]:
    """Return those that are errors."""
    return [problem for problem in problems if problem.severity == "error"]
