"""Secrets by reference: where a key, token or password is kept, and how it is read at the last moment.

A reference is a `SecretRef` of the configuration (env, file, systemd credential, Key Vault); nothing here keeps,
prints or writes a value.
"""

import os
import stat
from typing import NoReturn

from amlmount.config.credentials import SecretRef
from amlmount.errors import AccessDeniedError, ConfigError

MAX_SECRET_BYTES = 64 * 1024
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Secret:
    """A value that no representation shows: only `reveal()` gives it out, and it cannot be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself; the caller sees to it that it goes nowhere but to the other side."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled: hand over its reference")


def resolve(reference: SecretRef) -> Secret:
    """Read the secret a reference points at; surrounding white space (a file's last newline) is cut off.

    Raises ConfigError when it is not there or empty, AccessDeniedError when it may not be read or when others
    could read it too; Key Vault adds NotFoundError and NetworkError.
    """
    value = _read(reference).strip()
    if not value:
        raise ConfigError(f"cannot use secret {reference.description}: it is empty", hint="put the secret there")
    return Secret(value)


def _read(reference: SecretRef) -> str:
    if reference.env is not None:
        return _from_env(reference.env)
    if reference.file is not None:
        return _read_private(os.path.expanduser(reference.file), f"file:{reference.file}")
    if reference.credential is not None:
        return _from_credential(reference.credential)
    from amlmount.secrets.keyvault import fetch_secret

    assert reference.keyvault is not None
    return fetch_secret(reference.keyvault)


def _from_env(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise ConfigError(
            f"cannot use secret env:{name}: the variable is not set",
            hint=f"export {name} where this runs; a service does not see your shell's variables: use file: there",
        ) from None


def _from_credential(name: str) -> str:
    """Read a systemd credential (systemd.exec(5), LoadCredential=), which the service manager has made private."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory or os.path.basename(name) != name:
        raise ConfigError(
            f"cannot use secret credential:{name}: "
            + ("the name must have no slash" if directory else "this does not run under systemd with credentials"),
            hint=f"add LoadCredential={os.path.basename(name)}:/path/to/secret to the unit",
        )
    return _read_private(os.path.join(directory, name), f"credential:{name}")


def _read_private(path: str, label: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigError(f"cannot use secret {label}: there is no such file", hint="create it, mode 600") from None
    except OSError as error:
        raise AccessDeniedError(
            f"cannot read secret {label}: {error.strerror}", hint="let the user that runs amlmount read it"
        ) from None
    with open(descriptor, "rb") as file:
        _refuse_shared(os.fstat(descriptor), label, path)
        data = file.read(MAX_SECRET_BYTES + 1)
    if len(data) > MAX_SECRET_BYTES:
        raise ConfigError(f"cannot use secret {label}: it is larger than {MAX_SECRET_BYTES // 1024} KiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"cannot use secret {label}: it is not text", hint="store it as UTF-8 text") from None


def _refuse_shared(status: os.stat_result, label: str, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"cannot use secret {label}: it is not a regular file", hint="give the path of a file")
    # systemd gives its credentials to the service by an access control list, which shows as a group bit.
    shared = _OTHERS if not label.startswith("credential:") else stat.S_IRWXO
    if status.st_mode & shared and _has_modes(path):
        raise AccessDeniedError(f"cannot use secret {label}: other users can read it", hint=f"run chmod 600 {path}")


def _has_modes(path: str) -> bool:
    """Say whether chmod means anything there: on CIFS and the like every file shows the mount's own mode."""
    from amlmount.secrets.filesystems import type_of

    return type_of(path) not in {"cifs", "smb3", "smb2", "vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "9p"}
