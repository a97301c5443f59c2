"""What runs of the installer changed on this machine, kept so that all of it can be taken back.

A file is remembered as it was before our first change, and as we left it: so it is seen when others change it later.
"""

import base64
import contextlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amlmount.errors import AmlmountError
from amlmount.installer import paths

VERSION = 1


@dataclass(frozen=True, slots=True)
class FileState:
    """A file or a symbolic link as it was: its bytes or its target, its mode and its owner."""

    content: bytes | None
    link: str | None = None
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class FileChange:
    """What was there before (None: nothing) and what we left (None: nothing)."""

    before: FileState | None
    after: FileState | None


@dataclass(frozen=True, slots=True)
class PackageChanges:
    """What happened to packages: versions by name, (old, new) for those whose version changed."""

    installed: Mapping[str, str] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.installed or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class Record:
    """All changes, oldest first. `undo` are commands that take something back."""

    files: Mapping[str, FileChange] = field(default_factory=dict)
    directories: tuple[str, ...] = ()
    undo: tuple[tuple[str, ...], ...] = ()
    packages: PackageChanges = field(default_factory=PackageChanges)

    def __bool__(self) -> bool:
        return bool(self.files or self.directories or self.undo or self.packages)

    @property
    def held(self) -> frozenset[str]:
        """The packages that we hold."""
        return frozenset(argv[2] for argv in self.undo if argv[:2] == ("apt-mark", "unhold"))

    def then(self, later: "Record") -> "Record":
        """Return this record followed by what a later run changed."""
        files = dict(self.files)
        for path, change in later.files.items():
            files[path] = FileChange(files[path].before if path in files else change.before, change.after)
        return Record(
            files,
            tuple(dict.fromkeys(self.directories + later.directories)),
            tuple(dict.fromkeys(self.undo + later.undo)),
            _compose(self.packages, later.packages),
        )


def read_state(path: str) -> FileState | None:
    """Return what is at `path`, None if nothing is. Raises OSError."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(found.st_mode):
        return FileState(None, os.readlink(path))
    with open(path, "rb") as file:
        return FileState(file.read(), None, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def load_record(path: str = paths.RECORD) -> Record:
    """Return what was recorded, an empty record if nothing was. Raises AmlmountError if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']} of it is unknown")
        return _from_json(data)
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AmlmountError(
            f"cannot read the record of the installation '{path}': {error}",
            hint="move it away to begin a new one; what it lists must then be taken back by hand",
        ) from None


def save_record(record: Record, path: str = paths.RECORD) -> None:
    """Write the record as one step; an empty one is removed, and its folder with it if that is empty."""
    if not record:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(path))
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    draft = f"{path}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(_to_json(record), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _compose(first: PackageChanges, then: PackageChanges) -> PackageChanges:
    installed, removed, changed = dict(first.installed), dict(first.removed), dict(first.changed)
    for name, version in then.removed.items():
        if installed.pop(name, None) is None:
            removed[name] = changed.pop(name, (version, ""))[0]
    for name, (old, new) in then.changed.items():
        if name in installed:
            installed[name] = new
        else:
            changed[name] = (changed.get(name, (old, new))[0], new)
    for name, version in then.installed.items():
        if (old_version := removed.pop(name, None)) is None:
            installed[name] = version
        elif old_version != version:
            changed[name] = (old_version, version)
    return PackageChanges(installed, removed, {name: pair for name, pair in changed.items() if pair[0] != pair[1]})


def _to_json(record: Record) -> dict[str, Any]:
    return {
        "version": VERSION,
        "files": {path: [_pack(c.before), _pack(c.after)] for path, c in record.files.items()},
        "directories": list(record.directories),
        "undo": [list(argv) for argv in record.undo],
        "packages": {
            "installed": dict(record.packages.installed),
            "removed": dict(record.packages.removed),
            "changed": {name: list(pair) for name, pair in record.packages.changed.items()},
        },
    }


def _from_json(data: dict[str, Any]) -> Record:
    packages = data["packages"]
    changed = {name: (old, new) for name, (old, new) in packages["changed"].items()}
    return Record(
        {path: FileChange(_unpack(before), _unpack(after)) for path, (before, after) in data["files"].items()},
        tuple(data["directories"]),
        tuple(tuple(argv) for argv in data["undo"]),
        PackageChanges(packages["installed"], packages["removed"], changed),
    )


def _pack(state: FileState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    content = None if state.content is None else base64.b64encode(state.content).decode()
    return {"content": content, "link": state.link, "mode": state.mode, "uid": state.uid, "gid": state.gid}


def _unpack(data: dict[str, Any] | None) -> FileState | None:
    if data is None:
        return None
    content = None if data["content"] is None else base64.b64decode(data["content"])
    return FileState(content, data["link"], data["mode"], data["uid"], data["gid"])
