"""Kill the blobfuse2 of a mount, or replace the mount, again and again under readers, a writer and a poller.

`python -m benchmarks.survival_blobfuse2 [--kills 20] [--reloads 20] [--openers 2]`, as root, with blobfuse2 on PATH (or
named by AMLMOUNT_BLOBFUSE2) and Go for the store's stand-in. It prints one JSON object: what everybody saw, whether
every file whose close() succeeded is in the store and whole, and whether the old instances ended by themselves. Exits
1 unless nothing went wrong.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amlmount.config.load import config_from
from amlmount.config.resolve import DaemonUser, resolve_mount
from amlmount.config.spec import MountSpec
from amlmount.engines import select_engine
from amlmount.engines.blobfuse2 import Places, find_binary
from amlmount.fuse.negotiate import CAP_VARIABLE
from amlmount.mounts import read_mounts
from amlmount.run import is_same_process, start_time_ticks
from amlmount.states import MountState, RestartPolicy
from amlmount.stores import open_store
from amlmount.stores.base import ObjectStore
from amlmount.supervisor import KernelHost, RecordStore, Supervisor, Surroundings
from benchmarks.peers import ANY_KEY
from benchmarks.stub import ACCOUNT, Stub, build_stub, running_stub
from benchmarks.users import content

HERE = Path(__file__).parent
BETWEEN_S = 3.0
ENDS_WITHIN_S = 60.0


class User:
    """A process that uses the mount (`oracle.py` or `users.py`)."""

    def __init__(self, kind: str, *argv: str) -> None:
        self.kind = kind
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, *argv], stdin=pipe, stdout=pipe)

    def wait_until_ready(self) -> None:
        """Return once it works."""
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"

    def tally(self) -> dict[str, Any]:
        """End it and return what it saw."""
        found: dict[str, Any] = json.loads(self._process.communicate(timeout=120)[0])
        return found

    def kill(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()


@dataclass
class Ground:
    """Where a run takes place."""

    folder: str
    stub: Stub
    users: list[User] = field(default_factory=list)

    @property
    def target(self) -> str:
        """Where the mount is."""
        return f"{self.folder}/mount"

    def spec(self, turn: int, *, read_only: bool) -> MountSpec:
        """Return the mount's definition; from turn to turn credentials, cache and options change."""
        key = f"{self.folder}/key{turn % 3}"
        Path(key).write_text(ANY_KEY)
        os.chmod(key, 0o600)
        store = {
            "type": "azure_blob",
            "account_name": ACCOUNT,
            "container_name": "data",
            "endpoint": self.stub.endpoint,
            "credentials": {"account_key": {"file": key}},
        }
        mount = {"target": self.target, "source": "s", "engine": "blobfuse2", "read_only": read_only}
        mount |= {"blobfuse2": {"attr_cache": {"timeout-sec": 0}, "libfuse": {"entry-expiration-sec": 60 + turn}}}
        config = config_from({"stores": {"s": store}, "mounts": {"m": mount}})
        spec = resolve_mount(config, "m", DaemonUser(is_system=True, uid=0, gid=0))
        return spec.model_copy(update={"cache_dir": f"{self.folder}/cache{turn % 2}"} if read_only else {})

    def use(self, kind: str, *argv: str) -> None:
        """Start a user and wait until it works."""
        user = User(kind, *argv)
        self.users.append(user)
        user.wait_until_ready()

    def tally(self) -> dict[str, list[dict[str, Any]]]:
        """End all users and return what they saw, by kind."""
        found: dict[str, list[dict[str, Any]]] = {}
        for user in self.users:
            found.setdefault(user.kind, []).append(user.tally())
        self.users.clear()
        return found


def fill(folder: str, store: ObjectStore) -> str:
    """Put 100 small files and two large ones below `tree/`, and the same into a folder; return that."""
    source = f"{folder}/source"
    for number in range(100):
        path = Path(source, f"class {number % 5}", f"{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 700)
    for name in ("a", "b"):
        Path(source, f"{name}.bin").write_bytes(b"".join(b"%s%07d" % (name.encode(), i) for i in range(250_000)))
    for top, _, names in os.walk(source):
        for name in names:
            path = Path(top, name)
            store.put(f"tree/{path.relative_to(source)}", path.read_bytes())
    store.put("out/.keep", b"")
    return source


def make_supervisor(ground: Ground, spec: MountSpec) -> Supervisor:
    """Return a supervisor of one mount."""
    folder = ground.folder
    places = Places(f"{folder}/run", f"{folder}/state", f"{folder}/cache", f"{folder}/log")
    around = Surroundings(
        lambda spec: select_engine(spec, places=places),
        KernelHost(),
        RecordStore(f"{folder}/records"),
        policy=RestartPolicy(stable_s=BETWEEN_S / 2),
    )
    return Supervisor(around, [spec])


async def until(what: Any, why: str, timeout_s: float = ENDS_WITHIN_S) -> None:
    """Wait until `what()`."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, why
        await asyncio.sleep(0.005)


async def kills(ground: Ground, source: str, store: ObjectStore, count: int, openers: int) -> dict[str, Any]:
    """Kill blobfuse2 `count` times, each after the last recovery, and return what came of it."""
    supervisor = make_supervisor(ground, ground.spec(0, read_only=False))
    back_s: list[float] = []
    try:
        outcome = await supervisor.up(None, wait=True, timeout_s=60)
        assert not outcome.errors, outcome.errors
        await asyncio.to_thread(start_users, ground, source, openers, writer=True)
        for _ in range(count):
            await asyncio.sleep(BETWEEN_S)
            [status] = supervisor.status()
            assert status.pid
            os.kill(status.pid, signal.SIGKILL)
            begun, old = time.monotonic(), status.pid

            def is_back(old: int = old) -> bool:
                [now] = supervisor.status()
                return now.state is MountState.MOUNTED and now.pid != old

            await until(is_back, f"not back after a kill: {supervisor.status()}")
            back_s.append(time.monotonic() - begun)
        await asyncio.sleep(BETWEEN_S)
        seen = await asyncio.to_thread(ground.tally)
        closed = seen["write"][0]["closed"]
        await until(lambda: not missing(store, closed), f"not in the store: {missing(store, closed)}")
    finally:
        for user in ground.users:
            user.kill()
        await supervisor.close(timeout_s=30)
    await until(lambda: not heirs(ground.folder), "heirs stay")
    left = [str(path) for path in Path(ground.folder, "state").rglob("aside-*/data/*") if path.is_file()]
    return report(seen, openers) | {"kills": count, "serves_again_ms": spread(back_s), "left_aside": left}


async def reloads(ground: Ground, source: str, count: int, openers: int) -> dict[str, Any]:
    """Replace the mount `count` times by one that differs, and return what came of it."""
    supervisor = make_supervisor(ground, ground.spec(0, read_only=True))
    swaps_s: list[float] = []
    old: list[tuple[int, int]] = []
    begun_s = 0.0
    try:
        outcome = await supervisor.up(None, wait=True, timeout_s=60)
        assert not outcome.errors, outcome.errors
        await asyncio.to_thread(start_users, ground, source, openers, writer=False)
        begun_s = time.monotonic()
        for turn in range(1, count + 1):
            await asyncio.sleep(BETWEEN_S / 6)
            [status] = supervisor.status()
            assert status.pid
            old.append((status.pid, start_time_ticks(status.pid) or 0))
            supervisor.update([ground.spec(turn, read_only=True)])
            begun = time.monotonic()
            outcome = await supervisor.reload(timeout_s=60)
            assert not outcome.errors and len(outcome.mounts) == 1, outcome
            swaps_s.append(time.monotonic() - begun)
        elapsed_s = time.monotonic() - begun_s
        seen = await asyncio.to_thread(ground.tally)
        await until(lambda: not any(is_same_process(*one) for one in old), "an old instance stays")
    finally:
        for user in ground.users:
            user.kill()
        await supervisor.close(timeout_s=30)
    opens = sum(one["opens"] for one in seen.get("open", []))
    counts = {"reloads": count, "swap_ms": spread(swaps_s), "opens_per_s": round(opens / elapsed_s)}
    return report(seen, openers) | counts | {"old_instances_that_ended_by_themselves": len(old)}


def start_users(ground: Ground, source: str, openers: int, *, writer: bool) -> None:
    """Start readers that know every byte (with files open from the beginning), a poller, openers and a writer."""
    users = str(HERE / "users.py")
    ground.use("read", str(HERE / "oracle.py"), source, f"{ground.target}/tree", "2", "7")
    ground.use("poll", users, "poll", ground.target)
    for _ in range(openers):
        ground.use("open", users, "open", f"{ground.target}/tree")
    if writer:
        ground.use("write", users, "write", ground.target, "out")


def missing(store: ObjectStore, closed: Sequence[str]) -> list[str]:
    """Return which of these files are not in the store, or not as they were written."""
    there = {item.name for page in store.list("out/") for item in page.objects}
    return [name for name in closed if f"out/{name}" not in there or store.get(f"out/{name}") != content(name)]


def heirs(folder: str) -> list[str]:
    """Return the processes that still serve what a dead one left open."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", name, "cmdline").read_bytes()
        except OSError:
            continue
        if b"amlmount.afterlife" in words and folder.encode() in words:
            found.append(name)
    return found


def report(seen: dict[str, list[dict[str, Any]]], openers: int) -> dict[str, Any]:
    """Sum up what the users saw; `holds` says whether nothing went wrong."""
    read, polled, written = seen["read"][0], seen["poll"][0], seen.get("write", [None])[0]
    errors = read["errors"] + polled["errors"] + [error for one in seen.get("open", []) for error in one["errors"]]
    errors += written["errors"] if written else []
    slow = sorted(end - begin for begin, end in read["slow"])
    found = {
        "operations": sum(read["done"].values()),
        "wrong": read["wrong"],
        "errors": errors[:20],
        "looks_of_the_poller": polled["looks"],
        "looks_at_the_bare_directory": polled["bare"],
        "opens": sum(one["opens"] for one in seen.get("open", [])),
        "longest_pause_s": {"reader": round(slow[-1], 3) if slow else 0, "openers": _worst(seen, openers)},
        "holds": not errors and not read["wrong"] and not polled["bare"],
    }
    if written:
        found |= {"files_closed": len(written["closed"]), "longest_write_s": written["worst_s"]}
    return found


def _worst(seen: dict[str, list[dict[str, Any]]], openers: int) -> float:
    return max((one["worst_s"] for one in seen.get("open", [])), default=0.0) if openers else 0.0


def spread(values_s: list[float]) -> dict[str, float]:
    """Return median and maximum in milliseconds."""
    ordered = sorted(values_s) or [0.0]
    return {"median": round(statistics.median(ordered) * 1e3), "max": round(ordered[-1] * 1e3)}


async def survive(folder: str, stub: Stub, args: argparse.Namespace) -> dict[str, Any]:
    """Do what is asked for."""
    ground = Ground(folder, stub)
    store = open_store(ground.spec(0, read_only=True).sources[0].store)
    source = fill(folder, store)
    binary = find_binary()
    cap = os.environ.get(CAP_VARIABLE) or "as it is"
    found: dict[str, Any] = {"kernel": platform.release(), "fuse_minor": cap}
    found["blobfuse2"] = binary.version_text if binary else None
    if args.kills:
        found["killed"] = await kills(ground, source, store, args.kills, args.openers)
    if args.reloads:
        found["reloaded"] = await reloads(ground, source, args.reloads, args.openers)
    store.close()
    found["mounts_left"] = sum(entry.mount_point.startswith(folder) for entry in read_mounts())
    return found


def main() -> None:
    """Run once, print, and say by the exit code whether it held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--openers", type=int, default=2)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="amb-") as folder,
        running_stub(build_stub(), [], []) as stub,
    ):
        found = asyncio.run(survive(os.path.realpath(folder), stub, args))
    print(json.dumps(found, indent=1))
    sys.exit(0 if all(found[part]["holds"] for part in ("killed", "reloaded") if part in found) else 1)


if __name__ == "__main__":
    main()
