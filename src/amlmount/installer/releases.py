"""The releases that Microsoft builds blobfuse2 for, and which of them this machine is.

Source of the table: Azure/azure-storage-fuse setup/packages.csv; of the keys: packages.microsoft.com/keys/README.
"""

import os
import shlex
from dataclasses import dataclass

from amlmount.errors import AmlmountError

OLD_KEY = ("microsoft.asc", "BC528686B50D79E339D3721CEB3E94ADBE1229CF")
NEW_KEY = ("microsoft-2025.asc", "AA86F75E427A19DD33346403EE4D7792F748182B")
BOTH = ("amd64", "arm64")


@dataclass(frozen=True, slots=True)
class Release:
    """One release: `id` and `version` as in /etc/os-release, the key its repository is signed with, its builds."""

    id: str
    version: str
    codename: str
    key_name: str = OLD_KEY[0]
    key_fingerprint: str = OLD_KEY[1]
    architectures: tuple[str, ...] = BOTH

    @property
    def title(self) -> str:
        """The name people use."""
        return f"{'Ubuntu' if self.id == 'ubuntu' else 'Debian'} {self.version}"

    @property
    def repository_path(self) -> str:
        """Where its packages are below the address of the package host."""
        return f"{self.id}/{self.version}/prod"


SUPPORTED = (
    Release("ubuntu", "20.04", "focal", architectures=("amd64",)),
    Release("ubuntu", "22.04", "jammy"),
    Release("ubuntu", "24.04", "noble"),
    Release("ubuntu", "26.04", "resolute", *NEW_KEY),
    Release("debian", "12", "bookworm"),
)


def find_release(os_release: str, architecture: str) -> Release:
    """Return the release that the text of /etc/os-release names. Raises AmlmountError with the list for any other."""
    fields = parse_os_release(os_release)
    name, version = fields.get("ID", ""), fields.get("VERSION_ID", "")
    title = fields.get("PRETTY_NAME") or f"{name} {version}".strip() or "this system"
    for release in SUPPORTED:
        if (release.id, release.version) == (name, version):
            if architecture in release.architectures:
                return release
            raise _refused(f"{title} on {architecture}")
    raise _refused(title)


def parse_os_release(text: str) -> dict[str, str]:
    """Read the variables of an os-release file (os-release(5): shell assignments)."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, is_assignment, value = line.strip().partition("=")
        if is_assignment and not key.startswith("#"):
            try:
                found[key] = "".join(shlex.split(value))
            except ValueError:
                found[key] = value
    return found


def read_os_release(root: str = "/") -> str:
    """Return the text of os-release, from /etc or, as os-release(5) says, /usr/lib. Raises AmlmountError."""
    for path in ("etc/os-release", "usr/lib/os-release"):
        try:
            with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            continue
    raise _refused("this system (it has no /etc/os-release)")


def _refused(title: str) -> AmlmountError:
    names = ", ".join(f"{release.title} ({'/'.join(release.architectures)})" for release in SUPPORTED)
    return AmlmountError(
        f"cannot install blobfuse2 on {title}: it is built for {names}",
        hint="without it amlmount mounts with its own engine: `amlmount install --engine python`",
        details={"supported": [[r.id, r.version, *r.architectures] for r in SUPPORTED]},
    )
