"""What is known of a mount: its state and `MountStatus`, the value that api and client exchange.

How a mount moves between the states is `machine`'s affair.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from amlmount.states.conditions import Condition, health_of

SCHEMA_VERSION = 1


class MountState(StrEnum):
    """Where a mount is; `pending` waits for its turn or for the next try."""

    UNMOUNTED = "unmounted"
    PENDING = "pending"
    MOUNTING = "mounting"
    MOUNTED = "mounted"
    DEGRADED = "degraded"
    UNMOUNTING = "unmounting"
    FAILED = "failed"


SERVING = frozenset({MountState.MOUNTED, MountState.DEGRADED})
COMING = frozenset({MountState.PENDING, MountState.MOUNTING})


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a value: the fields of `AmlmountError.to_json`."""

    code: str
    message: str
    hint: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the wire form that `errors.from_json` reads."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


@dataclass(frozen=True, slots=True)
class MountStatus:
    """All that is known of one mount. The part above `attempts` is what api and client exchange.

    `since` is when `state` was entered (seconds since 1970). `retry_in_s` is set while the next try is waited for.
    `crash_times_s` and `mounted_at_s` are monotonic. `cache_note` says which places for its cache would not do.
    """

    name: str
    target: str
    source: str
    read_only: bool
    profile: str
    state: MountState = MountState.UNMOUNTED
    since: float = 0.0
    engine: str | None = None
    engine_why: str | None = None
    pid: int | None = None
    mount_made_target: bool = False
    last_error: Failure | None = None
    restarts: int = 0
    retry_in_s: float | None = None
    wanted: bool = False
    attempts: int = 0
    crash_times_s: tuple[float, ...] = ()
    mounted_at_s: float | None = None
    cache_note: str = ""
    cache_dir: str | None = None
    conditions: tuple[Condition, ...] = ()

    @property
    def is_orphaned(self) -> bool:
        """Say whether its process is gone, and its callers wait for another to go on."""
        return self.state is MountState.DEGRADED and self.pid is None

    def to_json(self) -> dict[str, Any]:
        """Return one object of `ps -o json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "state": self.state.value,
            "engine": self.engine,
            "engine_why": self.engine_why,
            "pid": self.pid,
            "target": self.target,
            "source": self.source,
            "since": rfc3339(self.since),
            "read_only": self.read_only,
            "profile": self.profile,
            "last_error": self.last_error.to_json() if self.last_error else None,
            "restarts": self.restarts,
            "retry_in_s": None if self.retry_in_s is None else round(self.retry_in_s, 3),
            "wanted": self.wanted,
            "mount_made_target": self.mount_made_target,
            "cache_note": self.cache_note,
            "cache_dir": self.cache_dir,
            "health": health_of(self.conditions),
            "conditions": [condition.to_json() for condition in self.conditions],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "MountStatus":
        """Rebuild what `to_json` wrote; keys of a newer version are ignored."""
        known = {key: data[key] for key in _WIRE_FIELDS if key in data}
        error = known.pop("last_error", None)
        since = known.pop("since", None)
        return cls(
            **known,
            conditions=tuple(Condition.from_json(condition) for condition in data.get("conditions", ())),
            state=MountState(data["state"]),
            since=datetime.fromisoformat(since).timestamp() if since else 0.0,
            last_error=Failure(**error) if error else None,
        )


_WIRE_FIELDS = (
    "name",
    "target",
    "source",
    "read_only",
    "profile",
    "since",
    "engine",
    "engine_why",
    "pid",
    "mount_made_target",
    "last_error",
    "restarts",
    "retry_in_s",
    "wanted",
    "cache_note",
    "cache_dir",
)


def rfc3339(wall_s: float) -> str | None:
    """Write seconds since 1970 as RFC 3339 in UTC with milliseconds; 0 is None."""
    if not wall_s:
        return None
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an `up` or `down`: every mount that was meant, and why those in `errors` did not make it."""

    mounts: list[MountStatus]
    errors: dict[str, Failure] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the last line of a streamed answer."""
        errors = {name: failure.to_json() for name, failure in self.errors.items()}
        return {"mounts": [status.to_json() for status in self.mounts], "errors": errors}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Outcome":
        """Rebuild what `to_json` wrote."""
        errors = {name: Failure(**failure) for name, failure in data["errors"].items()}
        return cls([MountStatus.from_json(status) for status in data["mounts"]], errors)


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` would do with one mount: `action` is `mount`, `keep` (it is up) or `fail` (`error` says why).

    `makes` are the directories that would be made for the target.
    """

    name: str
    target: str
    source: str
    action: str
    engine: str | None = None
    engine_why: str | None = None
    makes: tuple[str, ...] = ()
    error: Failure | None = None

    def to_json(self) -> dict[str, Any]:
        """Return one object of `up --dry-run -o json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "target": self.target,
            "source": self.source,
            "action": self.action,
            "engine": self.engine,
            "engine_why": self.engine_why,
            "makes": list(self.makes),
            "error": self.error.to_json() if self.error else None,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """What `reload` does with one mount: `add`, `remove` or `replace`; mounts that are not named stay as they are.

    `fields`: what differs in its definition. `gap`: why there is a moment without a mount when it is replaced, None if
    there is none.
    """

    name: str
    action: str
    target: str
    fields: tuple[str, ...] = ()
    gap: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return one object of `reload --dry-run -o json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "action": self.action,
            "target": self.target,
            "fields": list(self.fields),
            "gap": self.gap,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Change":
        """Rebuild what `to_json` wrote."""
        return cls(data["name"], data["action"], data["target"], tuple(data["fields"]), data["gap"])
