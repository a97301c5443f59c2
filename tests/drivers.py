"""The blobfuse2 that a test drives, real or stand-in, and a world with containers in Azurite that it mounts.

Fixture `driver` runs a test with both; `real` is not run where there is none, and every test of it is counted as such.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from azurite import KEY, Azurite
from daemons import poll
from faulty_proxy import Proxy
from standin.install import Installed, install_standin
from world import World

REAL = shutil.which("blobfuse2", path=os.environ.get("AMLMOUNT_BLOBFUSE2_PATH", os.environ.get("PATH", "")))
WRITER = """
import os, sys
path, text, how = sys.argv[1:]
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
if text:
    os.write(fd, text.encode())
if how == "fsync":
    try:
        os.fsync(fd)
    except OSError:
        pass
print("written", flush=True)
if how == "close":
    os.close(fd)
sys.stdin.read()
"""
NOT_RUN = "NOT RUN: no real blobfuse2 on PATH or in AMLMOUNT_BLOBFUSE2_PATH"


@dataclass(frozen=True)
class Driver:
    """A blobfuse2: `binary` is what to start; `standin` has switches for faults, None for the real one."""

    binary: str
    standin: Installed | None

    @property
    def is_real(self) -> bool:
        """Say whether it is Microsoft's."""
        return self.standin is None


@pytest.fixture(params=["standin", pytest.param("real", marks=pytest.mark.real_blobfuse2)])
def driver(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A blobfuse2 that is first on PATH."""
    if request.param == "real":
        if not REAL:
            pytest.skip(NOT_RUN)
        found = Driver(REAL, None)
    else:
        installed = install_standin(tmp_path / "bin")
        found = Driver(str(installed.binary), installed)
    monkeypatch.setenv("PATH", f"{os.path.dirname(found.binary)}:{os.environ['PATH']}")
    return found


@dataclass
class Account:
    """A storage account in Azurite with containers, and an amlmount world that mounts them."""

    world: World
    azurite: Azurite
    name: str
    stores: dict[str, Any] = field(default_factory=dict)
    opened: dict[str, Any] = field(default_factory=dict)

    def container(self, container: str, **changes: Any) -> Any:
        """Make a container and return a store of our own on it, for looking behind the mount."""
        from amlmount.stores import open_store

        self.azurite.request("PUT", self.name, container, {"restype": "container"})
        self.stores[container] = self.definition(container) | changes
        self.opened[container] = open_store(self.definition(container))
        return self.opened[container]

    def definition(self, container: str | None = None) -> dict[str, Any]:
        """Return a store definition; the key is in a file of the world."""
        made = self.azurite.definition(self.name, container)
        return made | {"credentials": {"account_key": {"file": self.key_file}}}

    def go_through(self, proxy: Proxy) -> None:
        """Let the mounts, not our own stores, reach the account by way of a proxy."""
        for name, store in self.stores.items():
            self.stores[name] = store | {"endpoint": f"{proxy.url}/{self.name}"}

    @property
    def key_file(self) -> str:
        """Mode 0600."""
        path = os.path.join(self.world.root, "key")
        if not os.path.exists(path):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(KEY)
        return path

    def target(self, name: str) -> str:
        """Where a mount is."""
        return f"{self.world.root}/mnt/{name}"

    def configure(self, mounts: dict[str, dict[str, Any]] | None = None, **common: Any) -> None:
        """Write the configuration: a mount for each container unless `mounts` says otherwise."""
        import yaml

        made = mounts or {name: {"source": name} for name in self.stores}
        made = {name: {"target": self.target(name), **common, **mount} for name, mount in made.items()}
        self.world.write_config(yaml.safe_dump({"stores": self.stores, "mounts": made}))

    def up(self, *names: str) -> None:
        """`amlmount up`, which must succeed."""
        done = self.world.cli("up", *names)
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self, *args: str) -> None:
        """`amlmount down`, which must succeed."""
        done = self.world.cli("down", *args)
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self, name: str) -> dict[str, Any]:
        """What `ps` says of one mount."""
        [found] = [mount for mount in self.world.cli_json("ps", "-a") if mount["name"] == name]
        return dict(found)

    def until_replaced(self, name: str, pid: int) -> dict[str, Any]:
        """Wait until another process serves the mount."""
        return dict(
            poll(lambda: (s := self.status(name))["state"] == "mounted" and s["pid"] != pid and s, "not back", 30)
        )

    def daemon_log(self) -> str:
        """What the daemon wrote."""
        return Path(self.world.state_dir, "daemon.log").read_text()

    def leftovers(self) -> list[str]:
        """Files that lie about besides logs: caches, configurations, caches set aside."""
        roots = (self.world.cache_root, f"{self.world.state_dir}/blobfuse2", self.world.runtime_dir)
        found = [os.path.join(top, name) for root in roots for top, _, names in os.walk(root) for name in names]
        daemons = ("about.json", "lock", "daemon.lock", "amlmount.sock")
        return [path for path in found if os.path.basename(path) not in daemons and "/run/mounts/" not in path]


def sh(script: str, cwd: str = "/", timeout_s: float = 60) -> str:
    """Run a shell script that touches mounts, in a process that can be given up."""
    argv = ["sh", "-euc", script]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[Proxy]:
    """A proxy in front of Azurite."""
    made = Proxy(azurite.url)
    yield made
    made.close()


@pytest.fixture
def account(world: World, azurite: Azurite) -> Iterator[Account]:
    """An account of its own."""
    made = Account(world, azurite, azurite.new_account())
    yield made
    for store in made.opened.values():
        store.close()


class Writers:
    """Processes that hold files open; killed at the end."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def open(self, path: str, text: str, how: str = "hold") -> None:
        """Write a file and hold it open, after an fsync, or (`close`) go on to close it."""
        argv = [sys.executable, "-c", WRITER, path, text, how]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.all.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"written\n"

    def start(self, *argv: str) -> None:
        """Start a command."""
        null = subprocess.DEVNULL
        self.all.append(subprocess.Popen(argv, stdin=null, stdout=null, stderr=null))

    def end(self) -> None:
        """End all of them."""
        for process in self.all:
            process.kill()
            process.communicate(timeout=30)


@pytest.fixture
def writers() -> Iterator[Writers]:
    """Processes that write and hold files."""
    made = Writers()
    yield made
    made.end()


def fails_to_write(path: str, text: str) -> None:
    """Write a file whose upload is refused: close() says so (a shell's own `>` would not)."""
    code = "import sys; file = open(sys.argv[1], 'w'); file.write(sys.argv[2]); file.close()"
    argv = [sys.executable, "-c", code, path, text]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "OSError" in done.stderr, done
