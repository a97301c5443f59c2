"""What came of a refresh, as the value that worker, api and client exchange."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What changed behind a mount. `names`: kind and path below the mount; `more` are left out."""

    added: int
    removed: int
    changed: int
    names: tuple[tuple[str, str], ...] = ()
    more: int = 0

    @property
    def total(self) -> int:
        """How many names mean something else now."""
        return self.added + self.removed + self.changed

    def to_json(self) -> dict[str, Any]:
        """Return the wire form, and the object of `refresh -o json`."""
        names = [list(pair) for pair in self.names]
        return {
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "names": names,
            "more": self.more,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Refreshed":
        """Rebuild what `to_json` wrote; keys of a newer version are ignored."""
        counts = {key: int(data[key]) for key in ("added", "removed", "changed", "more")}
        return cls(**counts, names=tuple((kind, path) for kind, path in data["names"]))
