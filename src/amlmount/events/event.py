"""One event as a value, and as the JSON object that file, api and client exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from amlmount.states import rfc3339

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `number` grows by one from event to event, over restarts of the daemon too.

    `time_s` is seconds since 1970; `kind` and `severity` as in `kinds`; `mount` is None for what concerns the daemon.
    """

    number: int
    time_s: float
    kind: str
    severity: str
    mount: str | None
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return one object of `events -o json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "number": self.number,
            "time": rfc3339(self.time_s),
            "type": self.kind,
            "severity": self.severity,
            "mount": self.mount,
            "message": self.message,
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Event":
        """Rebuild what `to_json` wrote; keys of a newer version are ignored. Raises ValueError, KeyError, TypeError."""
        return cls(
            int(data["number"]),
            datetime.fromisoformat(data["time"]).timestamp(),
            str(data["type"]),
            str(data["severity"]),
            data["mount"],
            str(data["message"]),
            dict(data.get("details", {})),
        )

    def concerns(self, names: "frozenset[str] | None", since_s: float = 0.0) -> bool:
        """Say whether it is about one of these mounts (None: any; an account's name means all of its mounts)."""
        if self.time_s < since_s:
            return False
        return names is None or (self.mount is not None and (self.mount in names or self.mount.split("/")[0] in names))
