"""Readers with a content oracle (benchmarks/oracle.py), in a process of their own: whoever kills holds no mount."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemons import Pair, make_pair
from mounting import make_source
from world import World

ORACLE = str(Path(__file__).parents[1] / "benchmarks" / "oracle.py")
USERS = str(Path(__file__).parents[1] / "benchmarks" / "users.py")


class Readers:
    """Read until `tally` is asked for."""

    def __init__(self, source: str, mount: str, threads: int = 3) -> None:
        pipe = subprocess.PIPE
        argv = [sys.executable, ORACLE, source, mount, str(threads), "1"]
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe)

    def wait_until_ready(self) -> None:
        """Return once all of them have their files open."""
        assert self._process.stdout
        assert self._process.stdout.readline() == b"ready\n"

    def tally(self) -> dict[str, Any]:
        """End them and return what they saw: `oracle.Tally`."""
        out, _ = self._process.communicate(timeout=30)
        found: dict[str, Any] = json.loads(out)
        return found

    def kill(self) -> None:
        """End them, whatever they are at."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()


class User(Readers):
    """One of `benchmarks/users.py`."""

    def __init__(self, what: str, mount: str, *rest: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, USERS, what, mount, *rest], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )


def make_readable_pair(world: World) -> Pair:
    """Make a pair whose `red` has a tree worth reading."""
    made = make_pair(world)
    make_source(f"{world.root}/red")
    return made


@contextmanager
def reading(pair: Pair) -> Iterator[Readers]:
    """Have readers at `red`, from when they have their files open."""
    readers = Readers(f"{pair.world.root}/red", pair.target("red"))
    try:
        readers.wait_until_ready()
        yield readers
    finally:
        readers.kill()
