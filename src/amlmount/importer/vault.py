"""Where secrets of imported files go: files only their owner can read, or nowhere at all.

Values are kept from reading to `write()`; nothing here prints them.
"""

import os
import re
import stat
from pathlib import Path

from amlmount.errors import ConfigError
from amlmount.importer.finding import Finding


class Vault:
    """Takes secrets and gives references to them. `folder` None: the references are environment variables."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else Path(os.path.abspath(folder))
        self._values: dict[str, str] = {}
        self.findings: list[Finding] = []

    def keep(self, store: str, kind: str, value: str) -> dict[str, str]:
        """Take the secret `kind` of `store`; return the reference to it for the configuration."""
        name = self._free_name(f"{store}.{kind}", value)
        self._values[name] = value
        if self._folder is not None:
            return {"file": str(self._folder / name)}
        variable = re.sub(r"[^A-Z0-9]+", "_", name.upper())
        self.findings.append(
            Finding(f"store {store}", f"{kind} was left out", f"set {variable}, or import again with --secrets-dir DIR")
        )
        return {"env": variable}

    def _free_name(self, name: str, value: str) -> str:
        free, number = name, 2
        while self._values.get(free, value) != value:
            free, number = f"{name}-{number}", number + 1
        return free

    def write(self) -> tuple[Path, ...]:
        """Write what was kept, mode 0600 in a directory 0700. Raises ConfigError for a place others can read."""
        if self._folder is None or not self._values:
            return ()
        _make_folder(self._folder)
        return tuple(_write(self._folder / name, value) for name, value in self._values.items())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.stat(folder)
    except OSError as error:
        raise ConfigError(f"cannot keep secrets in '{folder}': {error.strerror}", hint="name another folder") from None
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"cannot keep secrets in '{folder}': other users can enter it (mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"run chmod 700 {folder}, on a file system that has modes (a share of Azure Files has none)",
        )


def _write(path: Path, value: str) -> Path:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        if path.is_file() and not path.is_symlink() and path.read_text() == value:
            return path
        raise ConfigError(
            f"cannot write secret file '{path}': there is another one", hint="remove it, or name another folder"
        ) from None
    with open(descriptor, "w") as file:
        file.write(value)
    return path
