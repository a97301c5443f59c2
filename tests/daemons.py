"""A world with two small containers and two mounts of them, and what tests of the daemon ask about it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sandbox import command_line, start_time
from world import World

CONFIG = """\
stores:
  red: {{type: local, path: ./red}}
  blue: {{type: local, path: ./blue}}
mounts:
  red: {{target: {root}/mnt/red, source: red}}
  blue: {{target: {root}/mnt/blue, source: blue}}
"""


def poll(what: Callable[[], Any], why: str, timeout_s: float = 20) -> Any:
    """Return the first true value of `what()`, asked again and again."""
    deadline = time.monotonic() + timeout_s
    while not (value := what()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {why}"
        time.sleep(0.01)
    return value


@dataclass(frozen=True)
class Pair:
    """Two mounts, `red` and `blue`, each with a file `colour` that holds its name."""

    world: World

    def target(self, name: str) -> str:
        return f"{self.world.root}/mnt/{name}"

    def read(self, name: str) -> str:
        """Read through the mount, in a process that can be given up."""
        argv = ["cat", f"{self.target(name)}/colour"]
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout

    def mount(self, name: str) -> dict[str, Any]:
        """What `ps` says of one mount."""
        [found] = [mount for mount in self.world.cli_json("ps", "-a") if mount["name"] == name]
        return dict(found)

    def state(self, name: str) -> str:
        return str(self.mount(name)["state"])

    def until_replaced(self, name: str, pid: int) -> dict[str, Any]:
        """Wait until another process than `pid` serves the mount, and return what `ps` says then."""

        def replaced() -> dict[str, Any] | None:
            seen = self.mount(name)  # one answer: between two the mount may have changed
            return seen if seen["state"] == "mounted" and seen["pid"] != pid else None

        return dict(poll(replaced, f"{name} does not come back"))

    def workers(self) -> list[int]:
        return [pid for pid, _ in self.world.processes() if command_line(pid).startswith("amlmount.worker ")]

    def daemon(self) -> int:
        [pid] = self.daemons()
        return pid

    def daemons(self) -> list[int]:
        return [pid for pid, _ in self.world.processes() if " daemon --" in command_line(pid)]

    def start(self, *args: str, **options: Any) -> "subprocess.Popen[str]":
        """Start `amlmount ARGS` and return at once."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.world.argv(*args), env=self.world.env, stdout=pipe, stderr=pipe, text=True, **options
        )

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal and, for SIGKILL, wait for the end."""
        begun = start_time(pid)
        os.kill(pid, number)
        if number == signal.SIGKILL:
            poll(lambda: start_time(pid) != begun, f"{pid} survives SIGKILL")

    def assert_as_before(self) -> None:
        """Nothing runs, nothing is mounted, nothing lies about but logs."""
        poll(lambda: not self.world.processes(), f"still there: {self.world.processes()}", timeout_s=5)
        assert self.world.mounts() == []
        assert os.listdir(self.world.runtime_dir) == []
        assert not os.path.lexists(f"{self.world.root}/mnt")


def make_pair(world: World) -> Pair:
    for name in ("red", "blue"):
        os.mkdir(f"{world.root}/{name}")
        with open(f"{world.root}/{name}/colour", "w") as file:
            file.write(name)
    world.write_config(CONFIG.format(root=world.root))
    return Pair(world)
