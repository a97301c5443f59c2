"""What tests of the installer share: the repositories, a box that knows only those, and amlmount in it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amlmount.installer.releases import SUPPORTED, Release
from aptrepo import Key, make_deb, make_key, publish
from installbox import Box, needed_binds, open_box

PORT = 8099
URL = f"http://127.0.0.1:{PORT}"
OLD, MIDDLE, NEWEST, PREVIEW = "2.2.1", "2.5.5", "2.5.6", "2.6.0"
# This one is not named by chance below: its content does not fit on the small disk of a test.
BIG = "2.5.1"
BOOKWORM = next(release for release in SUPPORTED if release.id == "debian")


def os_release(release: Release) -> str:
    """The text of /etc/os-release of a release, as far as anybody reads it."""
    return (
        f'PRETTY_NAME="{release.title}"\nID={release.id}\nVERSION_ID="{release.version}"\n'
        f"VERSION_CODENAME={release.codename}\n"
    )


@dataclass(frozen=True)
class Mirrors:
    """A folder to serve: `good` has everything, `wrong` is signed with another key than the one it publishes."""

    top: Path
    debs: dict[str, Path]
    key: Key


def distribution_debs(lower: str) -> list[Path]:
    """The packages that the distribution would serve to a bare tree; this machine has them installed."""
    return [] if lower == "/" else sorted(Path(f"{lower}.debs").glob("*.deb"))


def make_mirrors(top: Path, lower: str = "/") -> Mirrors:
    """Build the packages and sign the repositories of every release."""
    work = top / "work"
    work.mkdir()
    debs = {version: make_deb(work, "blobfuse2", version) for version in (OLD, MIDDLE, NEWEST)}
    debs[BIG] = make_deb(work, "blobfuse2", BIG, payload_bytes=8 << 20)
    debs[PREVIEW] = make_deb(work, "blobfuse2-preview", PREVIEW)
    key, other = make_key(top / "key", "good@test.invalid"), make_key(top / "other", "other@test.invalid")
    served = top / "served"
    for mirror, signer in (("good", key), ("wrong", other)):
        for release in SUPPORTED if mirror == "good" else (BOOKWORM,):
            publish(served / mirror, release.repository_path, release.codename, list(debs.values()), signer)
        (served / mirror / "keys").mkdir()
        for name in ("microsoft.asc", "microsoft-2025.asc"):
            (served / mirror / "keys" / name).write_bytes(key.public)
    if lower != "/":
        publish(served, "distribution", "bookworm", distribution_debs(lower), key)
    for folder in (top / "key", top / "other"):
        subprocess.run(["gpgconf", "--homedir", str(folder), "--kill", "all"], check=True)
    return Mirrors(served, debs, key)


@dataclass
class Machine:
    """A box in which amlmount can be run; `mirrors` are served there at URL."""

    box: Box
    mirrors: Mirrors

    def amlmount(self, *args: str, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run `amlmount ARGS`, whatever its exit code."""
        return self.box.run(sys.executable, "-m", "amlmount", *args, timeout_s=timeout_s)

    def install(self, *args: str, mirror: str = "good") -> "subprocess.CompletedProcess[str]":
        """Run `amlmount install` with the mirror."""
        return self.amlmount("install", "--repo-url", f"{URL}/{mirror}", *args)

    def refused(self, *args: str, mirror: str = "good") -> tuple[int, dict[str, Any]]:
        """Run an installation that must fail; return its exit code and its error."""
        done = self.install(*args, "-o", "json", mirror=mirror)
        assert done.returncode != 0, done.stdout
        return done.returncode, json.loads(done.stderr.splitlines()[-1])["error"]

    def versions(self, name: str = "blobfuse2") -> str:
        """Return dpkg's word on a package, such as `ii 2.5.6`; empty if it knows none."""
        done = self.box.run("dpkg-query", "-W", "-f=${db:Status-Abbrev}${Version}", name)
        return " ".join(done.stdout.split())

    def set_release(self, release: Release) -> None:
        """Make the box say that it is another release."""
        self.box.write("/etc/os-release", os_release(release))

    def have(self, version: str) -> None:
        """Install a version with dpkg, as somebody else did it."""
        deb = self.mirrors.debs[version]
        if self.versions("fuse3")[:2] != "ii":
            self.box.sh("apt-get -q -y update && apt-get -q -y install --no-install-recommends fuse3")
        self.box.sh(f"dpkg -i /srv/debs/{deb.name}")


@contextmanager
def open_machine(mirrors: Mirrors, lower: str = "/", *, systemd: bool = False) -> Iterator[Machine]:
    """A Debian 12 whose only package source is a local one, and which has no blobfuse2."""
    binds = (*needed_binds(lower), f"{mirrors.top}:/srv/mirrors", f"{mirrors.debs[OLD].parent}:/srv/debs")
    with open_box(lower, systemd=systemd, binds=binds) as box:
        box.sh(
            "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/lib/apt/lists /var/cache/apt/*.bin;"
            "mkdir -p /var/lib/apt/lists/partial /var/lib/dpkg/updates; rm -f /etc/apt/apt.conf.d/*proxy*"
        )
        if lower != "/":
            box.sh("mkdir -p /etc/apt/keyrings; cp /srv/mirrors/good/keys/microsoft.asc /etc/apt/keyrings/test.asc")
            line = f"deb [signed-by=/etc/apt/keyrings/test.asc] {URL}/distribution bookworm main\n"
            box.write("/etc/apt/sources.list", line)
        machine = Machine(box, mirrors)
        machine.set_release(BOOKWORM)
        serve(box)
        yield machine


def serve(box: Box) -> None:
    """Start the mirrors' web server in a box and wait for it."""
    box.spawn(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", "/srv/mirrors", str(PORT))
    probe = f"import socket; socket.create_connection(('127.0.0.1', {PORT}), 1)"
    deadline = time.monotonic() + 15
    while box.run(sys.executable, "-c", probe).returncode != 0:
        assert time.monotonic() < deadline, "the mirrors are not served"
        time.sleep(0.05)


def can_box() -> bool:
    """Say whether boxes are possible here: root, and a system of dpkg's."""
    return os.geteuid() == 0 and shutil.which("dpkg-deb") is not None and shutil.which("gpg") is not None
