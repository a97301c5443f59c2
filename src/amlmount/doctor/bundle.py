"""The diagnostic archive of `amlmount doctor --bundle`: what a person who helps wants to see, and no secret.

Everything passes through one `Scrubber` that knows the values of this machine's secrets, not only their look.
"""

import contextlib
import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import amlmount
from amlmount.config.credentials import SecretRef
from amlmount.config.load import load_config
from amlmount.config.locations import Locations
from amlmount.doctor.findings import Finding
from amlmount.doctor.scrub import Scrubber, is_secret_name, secret_values
from amlmount.doctor.surroundings import SSO_FILE
from amlmount.errors import AmlmountError, UsageError
from amlmount.run import run

LOG_BYTES = 1 << 20
SHOWN_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "SHELL", "TERM", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "TMPDIR")
SHOWN_PREFIXES = ("AMLMOUNT_", "CI_")
SYSTEM_FILES = (
    "/etc/os-release", "/etc/fstab", "/etc/fuse.conf", "/etc/updatedb.conf", "/etc/default/amlmount",
    "/etc/systemd/system/amlmount.service", "/proc/version", "/proc/meminfo", "/proc/self/mountinfo",
    "/proc/self/limits", "/proc/sys/fs/inotify/max_user_instances",
)  # fmt: skip
COMMANDS = {
    "systemctl.txt": ("systemctl", "--no-pager", "show", "amlmount.service"),
    "journal.txt": ("journalctl", "--no-pager", "-o", "short-precise", "-n", "5000", "-u", "amlmount.service"),
    "packages.txt": ("dpkg-query", "-W", "fuse3", "libfuse3*", "blobfuse*"),
    "disks.txt": ("lsblk", "-o", "NAME,SIZE,TYPE,FSTYPE,MOUNTPOINT"),
}


@dataclass(frozen=True, slots=True)
class Sources:
    """What goes into an archive: findings, the daemon's word (None: none runs), configuration files, places."""

    findings: Sequence[Finding]
    mounts: Sequence[Mapping[str, Any]] | None
    config_files: Sequence[Path]
    places: Locations


def write_bundle(path: str, sources: Sources, env: Mapping[str, str] = os.environ) -> list[str]:
    """Write the archive (tar, gzip, mode 0600) and return the names in it. Raises UsageError if `path` is there."""
    scrubber = Scrubber(_secrets(sources, env))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "name a new file" if isinstance(error, FileExistsError) else None
        raise UsageError(f"cannot write '{path}': {(error.strerror or '').lower()}", hint=hint) from None
    names = []
    with open(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in _members(sources, env):
            data = scrubber.scrub(text).encode(errors="replace")
            entry = tarfile.TarInfo(f"amlmount-doctor/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))
            names.append(name)
    return names


def _members(sources: Sources, env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "about.txt", f"amlmount {amlmount.__version__}\nPython {sys.version}\n{platform.platform()}\n{sys.argv}\n"
    yield "findings.json", json.dumps([finding.to_json() for finding in sources.findings], indent=1)
    if sources.mounts is not None:
        yield "mounts.json", json.dumps(list(sources.mounts), indent=1)
    yield "environment.txt", "".join(f"{name}={_shown(name, env[name])}\n" for name in sorted(env))
    for path in sources.config_files:
        yield f"config/{_flat(str(path))}", _tail(str(path))
    for log in _logs(sources.places):
        yield f"logs/{_flat(log)}", _tail(log)
    for name in SYSTEM_FILES:
        if text := _tail(name):
            yield f"system/{_flat(name)}", text
    yield "processes.txt", "".join(_processes())
    for name, argv in COMMANDS.items():
        with contextlib.suppress(AmlmountError):
            done = run(argv, timeout_s=20, check=False)
            yield f"system/{name}", done.text + done.stderr.decode(errors="replace")


def _secrets(sources: Sources, env: Mapping[str, str]) -> Iterator[str]:
    """Yield every secret we can find: variables, a compute instance's, what the configuration refers to."""
    yield from secret_values(env)
    pairs = (line.partition("=") for line in _tail(SSO_FILE).splitlines())
    yield from (value.strip("\"' ") for name, _, value in pairs if is_secret_name(name.strip()))
    with contextlib.suppress(AmlmountError):
        yield from _referenced(load_config(sources.config_files))


def _referenced(value: object) -> Iterator[str]:
    if isinstance(value, SecretRef):
        yield from _resolved(value)
    elif isinstance(value, Mapping):
        yield from _each(value.values())
    elif isinstance(value, (list, tuple)):
        yield from _each(value)
    elif hasattr(value, "model_fields_set"):
        yield from _each(getattr(value, name) for name in type(value).model_fields)  # type: ignore[attr-defined]


def _each(values: Iterable[object]) -> Iterator[str]:
    for value in values:
        yield from _referenced(value)


def _resolved(reference: SecretRef) -> Iterator[str]:
    from amlmount.secrets import resolve

    if reference.keyvault is not None:  # it is only in the vault, and nothing here may depend on a network
        return
    with contextlib.suppress(AmlmountError, OSError):
        yield resolve(reference).reveal()


def _shown(name: str, value: str) -> str:
    if is_secret_name(name):
        return "(set)"
    if name in SHOWN_VARIABLES or name.startswith(SHOWN_PREFIXES) or name.lower().endswith("_proxy"):
        return value
    return "(set)"


def _logs(places: Locations) -> list[str]:
    folders = [str(places.state_dir / part) for part in ("", "logs", "events")]
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):
            names = [name for name in sorted(os.listdir(folder)) if ".log" in name or ".jsonl" in name]
            found += [os.path.join(folder, name) for name in names]
    return [path for path in found if os.path.isfile(path)]


def _processes() -> Iterator[str]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
                if "amlmount" in line or "blobfuse" in line:
                    yield f"{name} {line}\n"


def _tail(path: str) -> str:
    """Return the end of a file as text, empty if it cannot be read. Never of a file below a mount: a log or /etc."""
    try:
        with open(path, "rb") as file:
            with contextlib.suppress(OSError):
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            return file.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _flat(path: str) -> str:
    return path.strip("/").replace("/", "_")
