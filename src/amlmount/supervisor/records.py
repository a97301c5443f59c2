"""One small file a mount in the runtime directory: what the next daemon needs to find if this one is killed.

A record is a claim, never a proof: whoever acts on one asks /proc and the mount table first (`leftovers`).
"""

import contextlib
import json
import logging
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MadeTarget:
    """Directories made for a mount, outermost first, and the device (st_dev) they were made on."""

    created: tuple[str, ...] = ()
    device: int = 0


@dataclass(frozen=True, slots=True)
class MountRecord:
    """A mount that is there or about to be. `pid`, `pid_start_time` and `mount_id` are None while it is being made.

    `boot_id` is /proc/sys/kernel/random/boot_id: after a reboot pids and mount ids mean nothing. `spec` is what is
    mounted, as data (it holds references to secrets, never secrets), and `negotiated` what a successor of its engine is
    not told again. `is_leaving`: it was being taken down. `next`: another was about to take its place.
    """

    name: str
    target: str
    engine: str
    made: MadeTarget
    boot_id: str
    pid: int | None = None
    pid_start_time: int | None = None
    mount_id: int | None = None
    spec: dict[str, Any] | None = None
    negotiated: dict[str, int] | None = None
    is_leaving: bool = False
    next: "MountRecord | None" = None


def current_boot_id() -> str:
    """Return the id of this boot of the kernel (random(4))."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


class RecordStore:
    """The records below `directory` (made when needed, mode 0700, files 0600, replaced whole or not at all)."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def save(self, record: MountRecord) -> None:
        """Write or replace the record of `record.name`."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        draft = self._path(record.name) + ".new"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w") as file:
            json.dump(asdict(record), file)
        os.replace(draft, self._path(record.name))

    def delete(self, name: str) -> None:
        """Forget `name`; fine if there is nothing. The last one takes the directory along."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))
        with contextlib.suppress(OSError):
            os.rmdir(self._directory)

    def load(self) -> list[MountRecord]:
        """Return all records, in the order of their names; a file that is none is removed."""
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []
        found = [self._read(os.path.join(self._directory, name)) for name in names]
        return [record for record in found if record is not None]

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, f"{name.replace('/', ':')}.json")

    def _read(self, path: str) -> MountRecord | None:
        try:
            with open(path) as file:
                return _from_json(json.load(file))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("removing %s, which is no record of a mount: %s", path, error)
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None


def _from_json(data: dict[str, Any]) -> MountRecord:
    data["made"] = MadeTarget(tuple(data["made"]["created"]), int(data["made"]["device"]))
    data["next"] = _from_json(data["next"]) if data.get("next") else None
    return MountRecord(**{field.name: data[field.name] for field in fields(MountRecord) if field.name in data})
