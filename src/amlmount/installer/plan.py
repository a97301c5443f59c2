"""A plan: what is there already, what has to be done, what people should know."""

from dataclasses import dataclass
from typing import Any

from amlmount.installer.steps import Step, to_json


@dataclass(frozen=True, slots=True)
class Plan:
    """`present` and `notes` are sentences; an empty `steps` means that nothing is to be done."""

    title: str
    present: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Plan") -> "Plan":
        return Plan(self.title, self.present + other.present, self.steps + other.steps, self.notes + other.notes)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "schema_version": 1,
            "title": self.title,
            "present": list(self.present),
            "steps": [to_json(step) for step in self.steps],
            "notes": list(self.notes),
        }
