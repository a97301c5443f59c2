"""What was counted of one mount, as the value that worker, api and client exchange; `stats -o json` shows it.

Counts begin anew with each process that serves a mount.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amlmount.metrics.timings import Spread

SCHEMA_VERSION = 1
NOTHING = Spread((), 0.0, 0)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a mount asked of its store: reads of bytes, listings of directories, uploads of files."""

    reads: Spread = NOTHING
    listings: Spread = NOTHING
    uploads: Spread = NOTHING
    read_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine counts itself (blobfuse2 does not).

    `requests` by operation of the kernel; `waits`: those that had to wait for the store, the others take microseconds.
    `read_bytes` and `written_bytes` of these requests: what the kernel reads from its own cache it does not ask for.
    `cache`: `hits`, `misses`, `used_bytes`, `limit_bytes`; None without a cache. `unsent`: `files`, `bytes`, `oldest_s`
    of what the store does not have yet; None for a mount that only reads.
    """

    requests: Mapping[str, int] = field(default_factory=dict)
    failures: int = 0
    waits: Mapping[str, Spread] = field(default_factory=dict)
    read_bytes: int = 0
    written_bytes: int = 0
    store: StoreStats = StoreStats()
    cache: Mapping[str, int | None] | None = None
    unsent: Mapping[str, float] | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EngineStats":
        """Rebuild what `worker.stats` answered. Raises KeyError, TypeError, ValueError."""
        store = data["store"]
        kinds = {kind: Spread.from_json(store[kind]) for kind in ("reads", "listings", "uploads")}
        return cls(
            dict(data["requests"]),
            int(data["failures"]),
            {name: Spread.from_json(waits) for name, waits in data["waits"].items()},
            int(data["read_bytes"]),
            int(data["written_bytes"]),
            StoreStats(**kinds, read_bytes=int(store["read_bytes"])),
            data["cache"],
            data["unsent"],
        )


@dataclass(frozen=True, slots=True)
class MountStats:
    """What is known of a mount that is served. `engine_raw` is what `EngineStats.from_json` reads, None if unknown.

    `age_s`: how long ago the engine said it, `is_stale`: it did not answer when it was asked for this. `cpu_s` and
    `memory_bytes` of its process (user and system; resident). `cache_bytes`: what its cache takes on disk.
    """

    name: str
    engine: str
    pid: int
    age_s: float | None = None
    is_stale: bool = False
    cpu_s: float | None = None
    memory_bytes: int | None = None
    cache_bytes: int | None = None
    engine_raw: dict[str, Any] | None = None

    @property
    def counted(self) -> EngineStats | None:
        """What the engine counted."""
        return EngineStats.from_json(self.engine_raw) if self.engine_raw is not None else None

    @property
    def unsent_bytes(self) -> int | None:
        """What was written and is not in the store yet, None if unknown or for a mount that only reads."""
        unsent = (self.engine_raw or {}).get("unsent")
        return int(unsent["bytes"]) if unsent else None

    @property
    def unsent_age_s(self) -> float | None:
        """For how long the oldest of that has been waiting, 0 if nothing is; None as above."""
        unsent = (self.engine_raw or {}).get("unsent")
        return round(float(unsent["oldest_s"]), 3) if unsent else None

    def to_json(self) -> dict[str, Any]:
        """Return one object of `stats -o json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "engine": self.engine,
            "pid": self.pid,
            "age_s": None if self.age_s is None else round(self.age_s, 3),
            "is_stale": self.is_stale,
            "cpu_s": self.cpu_s,
            "memory_bytes": self.memory_bytes,
            "cache_bytes": self.cache_bytes,
            "counted": self.engine_raw,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "MountStats":
        """Rebuild what `to_json` wrote; keys of a newer version are ignored."""
        keys = ("name", "engine", "pid", "age_s", "is_stale", "cpu_s", "memory_bytes", "cache_bytes")
        return cls(**{key: data[key] for key in keys}, engine_raw=data["counted"])
