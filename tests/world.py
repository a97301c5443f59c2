"""An amlmount of its own for a test: its configuration, its directories, and the command line in it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandbox import all_processes, carries, kill_all, lazy_unmount, mounts_below, start_time
from userbox import UserBox


@dataclass(frozen=True)
class World:
    """Everything below `root`; nothing of another daemon, not even the user's own, is seen from in here."""

    root: str
    box: UserBox | None = None

    @property
    def config(self) -> str:
        """Path of the configuration file; a test writes it."""
        return os.path.join(self.root, "amlmount.yaml")

    @property
    def runtime_dir(self) -> str:
        """Where the socket is."""
        return os.path.join(self.root, "run")

    @property
    def state_dir(self) -> str:
        """What survives."""
        return os.path.join(self.root, "state")

    @property
    def cache_root(self) -> str:
        """What may go."""
        return os.path.join(self.root, "cache")

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of a command in this world."""
        dirs = {"RUNTIME_DIR": self.runtime_dir, "STATE_DIR": self.state_dir, "CACHE_ROOT": self.cache_root}
        own = {f"AMLMOUNT_{name}": path for name, path in (dirs | {"CONFIG": self.config}).items()}
        own |= {"XDG_RUNTIME_DIR": os.path.join(self.root, "xdg"), "XDG_CONFIG_HOME": os.path.join(self.root, "etc")}
        if self.box is not None:
            return self.box.env(own)
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
        plain = {"PATH": path, "HOME": os.path.join(self.root, "home"), "LC_ALL": "C.UTF-8"}
        return plain | {"TMPDIR": os.environ["TMPDIR"]} | own

    def write_config(self, text: str) -> str:
        """Write the configuration file and return its path."""
        with open(self.config, "w") as file:
            file.write(text)
        return self.config

    def argv(self, *args: str) -> list[str]:
        """Return the command line of `amlmount ARGS`; it needs `pass_fds` and `env`."""
        argv = [sys.executable, "-m", "amlmount", *args]
        return argv if self.box is None else self.box.argv(argv)

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """The descriptors that `argv` needs."""
        return () if self.box is None else self.box.pass_fds

    def cli(
        self, *args: str, timeout_s: float = 60, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run `amlmount ARGS` to its end, whatever its exit code."""
        return subprocess.run(
            self.argv(*args),
            env=self.env | dict(env or {}),
            pass_fds=self.pass_fds,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def cli_json(self, *args: str, timeout_s: float = 60) -> Any:
        """Run `amlmount ARGS -o json`, which must succeed, and return what it printed."""
        done = self.cli(*args, "-o", "json", timeout_s=timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def processes(self) -> list[tuple[int, int]]:
        """Return the processes of this world (its root is in their environment or arguments) as (pid, start time)."""
        return [(pid, start) for pid, start in all_processes() if pid != os.getpid() and carries(pid, self.root)]

    def mounts(self) -> list[str]:
        """Return the mount points below `root` that pytest sees (those of a user's box it does not)."""
        return [point for _, point in mounts_below(self.root)]

    def end(self, grace_s: float = 5.0) -> None:
        """End all processes of this world, politely first, and let go of its mounts."""
        running = self.processes()
        for pid, start in running:
            if start_time(pid) == start:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and any(start_time(pid) == start for pid, start in running):
            time.sleep(0.02)
        kill_all(self.processes())
        for point in sorted(self.mounts(), reverse=True):
            lazy_unmount(point)


def make_world(root: str, box: UserBox | None = None) -> World:
    """Make the directories of a world below `root` (short: a socket's path may have 107 bytes)."""
    world = World(root, box)
    for path in (world.runtime_dir, world.state_dir, world.cache_root, f"{root}/home", f"{root}/xdg", f"{root}/etc"):
        os.mkdir(path, 0o700)
        if box is not None and box.namespace_fd is not None:
            os.chown(path, box.uid, box.uid)
    if box is not None and box.namespace_fd is not None:
        os.chown(root, box.uid, box.uid)
    return world
