"""What an import has to tell: something that was wrong in a file, and what was made of it.

A finding never carries the value of a secret.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`where` is a file and line, or a name; `what` is wrong there; `change` is what the new configuration has."""

    where: str
    what: str
    change: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" -> {self.change}" if self.change else "")
