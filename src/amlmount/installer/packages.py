"""Packages as dpkg knows them, installed or lying in a folder: dpkg-query(1), dpkg-deb(1)."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from amlmount.errors import AmlmountError
from amlmount.run import Completed

Ask = Callable[[Sequence[str]], Completed]
QUERY = "${binary:Package}\\t${Version}\\t${db:Status-Want}\\t${db:Status-Status}\\t${db:Status-Eflag}\\n"
SETTLED = ("installed", "config-files", "not-installed")


@dataclass(frozen=True, slots=True)
class Package:
    """One package. `want` is what is selected (install, hold, deinstall); `state` what dpkg has got to."""

    name: str
    version: str
    want: str = "install"
    state: str = "installed"
    needs_reinstall: bool = False

    @property
    def is_installed(self) -> bool:
        """Say whether it is there, whole."""
        return self.state == "installed" and not self.needs_reinstall

    @property
    def is_held(self) -> bool:
        """Say whether someone keeps it at its version."""
        return self.want == "hold"


@dataclass(frozen=True, slots=True)
class DebFile:
    """A package in a file."""

    path: str
    package: str
    version: str
    architecture: str


def read_packages(ask: Ask) -> Mapping[str, Package]:
    """Return every package dpkg has heard of, by name without its architecture. Raises AmlmountError."""
    done = ask(["dpkg-query", "-W", f"-f={QUERY}"])
    if done.returncode != 0:
        raise AmlmountError(
            f"cannot read dpkg's database: {done.last_words}",
            hint="compare /var/lib/dpkg/status with /var/lib/dpkg/status-old and the copies in /var/backups",
        )
    rows = [line.split("\t") for line in done.text.splitlines()]
    found = [Package(r[0].partition(":")[0], r[1], r[2], r[3], r[4] == "reinstreq") for r in rows if len(r) == 5]
    return {package.name: package for package in found}


def read_deb_files(folder: str, ask: Ask) -> tuple[DebFile, ...]:
    """Return the packages that lie in `folder`. Raises AmlmountError if it cannot be read or one is damaged."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".deb"))
    except OSError as error:
        raise AmlmountError(f"cannot read the folder '{folder}': {(error.strerror or '').lower()}") from None
    return tuple(_read_deb(os.path.abspath(os.path.join(folder, name)), ask) for name in names)


def _read_deb(path: str, ask: Ask) -> DebFile:
    done = ask(["dpkg-deb", "-f", path, "Package", "Version", "Architecture"])
    fields = dict(line.split(": ", 1) for line in done.text.splitlines() if ": " in line)
    try:
        return DebFile(path, fields["Package"], fields["Version"], fields["Architecture"])
    except KeyError:
        raise AmlmountError(f"cannot read the package '{path}': {done.last_words}", hint="copy it anew") from None


def is_older(version: str, than: tuple[int, ...]) -> bool:
    """Compare the numbers at the front of a version."""
    numbers: list[int] = []
    for part in version.replace("-", ".").replace("~", ".").split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers) < than
