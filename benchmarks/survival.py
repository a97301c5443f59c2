"""Kill the worker of a mount, or replace the mount, again and again under readers that know every byte.

`python -m benchmarks.survival [--kills 100] [--reloads 20]` prints one JSON object: what the readers saw, how long they
waited, and whether descriptors, memory and the mount table are as they were. Exits 1 unless nothing went wrong, at
least half of the kills came upon a request under way, and the median pause is within the target.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amlmount.config.spec import MountSpec
from amlmount.engines import select_engine
from amlmount.engines.forkserver import ForkServer
from amlmount.fuse.negotiate import CAP_VARIABLE
from amlmount.mounts import MountEntry, find_mount, read_mounts, waiting
from amlmount.session.source import resolve_source
from amlmount.states import MountState, MountStatus, RestartPolicy
from amlmount.supervisor import KernelHost, RecordStore, Supervisor, Surroundings

ORACLE = str(Path(__file__).with_name("oracle.py"))
OPENER = """
import os, sys, select, json
paths = [os.path.join(top, name).replace(sys.argv[1], sys.argv[2])
         for top, _, names in os.walk(sys.argv[1]) for name in names]
found = {"opens": 0, "errors": []}
while not select.select([0], [], [], 0)[0]:
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY)
            os.read(fd, 1)
            os.close(fd)
            found["opens"] += 1
        except OSError as error:
            found["errors"].append(str(error))
print(json.dumps(found))
"""
TARGET_PAUSE_S = 0.3
BETWEEN_S = 0.25
PATIENCE_S = 0.1


@dataclass
class Kill:
    """One kill, in monotonic seconds: when, when it was seen, when somebody went on; and whether a request waited."""

    at_s: float
    had_request: bool
    seen_s: float = 0.0
    back_s: float = 0.0


@dataclass
class Run:
    """A mount, its readers, and the kills so far."""

    supervisor: Supervisor
    target: str
    kills: list[Kill] = field(default_factory=list)

    def on_change(self, status: MountStatus) -> None:
        """Note when the supervisor saw the last kill and when it was done with it."""
        if not self.kills:
            return
        if status.state is MountState.DEGRADED:
            self.kills[-1].seen_s = time.monotonic()
        elif status.state is MountState.MOUNTED:
            self.kills[-1].back_s = time.monotonic()

    async def _request_under_way(self, entry: MountEntry) -> bool:
        """Say whether a request waits for its answer; three times in four, wait for a moment at which one does."""
        deadline = time.monotonic() + (PATIENCE_S if len(self.kills) % 4 else 0)
        while not (found := bool(waiting(entry))) and time.monotonic() < deadline:
            await asyncio.sleep(0)
        return found

    async def kill(self) -> None:
        """Kill the worker and wait until another goes on."""
        [status] = self.supervisor.status()
        entry = find_mount(self.target)
        assert status.pid and entry
        had_request = await self._request_under_way(entry)
        self.kills.append(Kill(time.monotonic(), had_request))
        os.kill(status.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while not self.kills[-1].back_s:
                await asyncio.sleep(0.002)


def make_files(folder: str) -> None:
    """Fill a folder: 10 directories of 40 small files, and two large ones."""
    for number in range(10):
        os.makedirs(f"{folder}/class {number}")
        for index in range(40):
            Path(f"{folder}/class {number}/{number}_{index}.jpg").write_bytes(bytes([number, index]) * 350)
    for name in ("a", "b"):
        Path(f"{folder}/{name}.bin").write_bytes(b"".join(b"%s%07d" % (name.encode(), i) for i in range(250_000)))


def pauses_s(kills: list[Kill], slow: list[tuple[float, float]]) -> list[float]:
    """Return, for each kill, how long the reader waited that waited longest (0: nobody for 20 ms)."""
    ends = [kill.at_s for kill in kills[1:]] + [float("inf")]
    found = []
    for kill, until in zip(kills, ends, strict=True):
        mine = [
            end - max(begin, kill.at_s) for begin, end in slow if end > kill.at_s and begin < min(kill.back_s, until)
        ]
        found.append(max(mine, default=0.0))
    return found


@dataclass(frozen=True)
class Plan:
    """How much of what. `openers`: processes that open, read 1 byte and close, as fast as they can."""

    kills: int
    reloads: int
    threads: int
    openers: int
    least: int


def belongings() -> dict[str, int]:
    """Return what must not grow: descriptors and memory of this process, entries of the mount table."""
    with open("/proc/self/status") as file:
        memory = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    return {"descriptors": len(os.listdir("/proc/self/fd")), "rss_kib": memory, "mounts": len(read_mounts())}


async def reload(run: Run, spec: MountSpec, turn: int) -> float:
    """Replace the mount by one that differs, and return the seconds that took."""
    policy = spec.policy.model_copy(update={"list_ttl_s": 100.0 + turn})
    run.supervisor.update([spec.model_copy(update={"policy": policy, "description": f"turn {turn}"})])
    begun = time.monotonic()
    outcome = await run.supervisor.reload(timeout_s=60)
    assert not outcome.errors and len(outcome.mounts) == 1, outcome
    return time.monotonic() - begun


async def survive(folder: str, plan: Plan) -> dict[str, Any]:
    """Do what is planned, kills and reloads in turn, and return the report."""
    source, target = f"{folder}/source", f"{folder}/mount"
    make_files(source)
    spec = resolve_source(source, target, read_only=True, profile=None, engine="python")
    forks = ForkServer()
    around = Surroundings(
        lambda spec: select_engine(spec, forks=forks),
        KernelHost(),
        RecordStore(f"{folder}/records"),
        policy=RestartPolicy(stable_s=BETWEEN_S / 2),
    )
    run = Run(Supervisor(around, [spec]), target)
    run.supervisor.listen(run.on_change)
    outcome = await run.supervisor.up(None, wait=True, timeout_s=60)
    assert not outcome.errors, outcome.errors
    pipe = subprocess.PIPE
    argv = [sys.executable, ORACLE, source, target, str(plan.threads), "7"]
    opener = [sys.executable, "-c", OPENER, source, target]
    openers = [subprocess.Popen(opener, stdin=pipe, stdout=pipe) for _ in range(plan.openers)]
    swaps: list[float] = []
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe) as readers:
        try:
            await asyncio.to_thread(_wait_until_ready, readers)
            begun, early = time.monotonic(), belongings()
            for turn in range(max(plan.kills, plan.reloads)):
                await asyncio.sleep(BETWEEN_S)
                if turn < plan.kills:
                    await run.kill()
                if turn < plan.reloads:
                    swaps.append(await reload(run, spec, turn))
                if turn == 10:
                    early = belongings()
            await asyncio.sleep(BETWEEN_S)
            late = belongings()
            elapsed_s = time.monotonic() - begun
            opened = [json.loads((await asyncio.to_thread(one.communicate))[0]) for one in openers]
            out, _ = await asyncio.to_thread(lambda: readers.communicate(timeout=60))
        finally:
            for process in (readers, *openers):
                process.kill()
            await run.supervisor.close(timeout_s=20)
            forks.close()
    found = report(run.kills, json.loads(out), elapsed_s, plan)
    found |= {"swaps": len(swaps), "swap_ms": _spread(swaps), "after_ten": early, "at_the_end": late}
    found["opens_per_s"] = round(sum(one["opens"] for one in opened) / elapsed_s)
    found["holds"] &= not any(one["errors"] for one in opened)
    return found


def report(kills: list[Kill], tally: dict[str, Any], elapsed_s: float, plan: Plan) -> dict[str, Any]:
    """Sum up; `holds` says whether everything that was promised is true."""
    pauses = sorted(pauses_s(kills, tally["slow"])) if kills else [0.0]
    operations = sum(tally["done"].values())
    in_flight = sum(kill.had_request for kill in kills)
    median_s = statistics.median(pauses)
    clean = not tally["errors"] and not tally["wrong"]
    return {
        "kernel": platform.release(),
        "fuse_minor": os.environ.get(CAP_VARIABLE) or "as it is",
        "kills": len(kills),
        "with_a_request_in_flight": in_flight,
        "operations": operations,
        "done": tally["done"],
        "errors": tally["errors"][:10],
        "wrong": tally["wrong"][:10],
        "elapsed_s": round(elapsed_s, 1),
        "seen_ms": _spread([kill.seen_s - kill.at_s for kill in kills]),
        "another_goes_on_ms": _spread([kill.back_s - kill.at_s for kill in kills]),
        "longest_pause_of_a_reader_ms": _spread(pauses),
        "holds": clean and operations >= plan.least and in_flight * 2 >= len(kills) and median_s <= TARGET_PAUSE_S,
    }


def _wait_until_ready(readers: "subprocess.Popen[bytes]") -> None:
    assert readers.stdout and readers.stdout.readline() == b"ready\n"


def _spread(values_s: list[float]) -> dict[str, float]:
    ordered = sorted(values_s) or [0.0]
    picks = {"median": statistics.median(ordered), "p95": ordered[int(len(ordered) * 0.95)], "max": ordered[-1]}
    return {name: round(value * 1e3, 1) for name, value in picks.items()}


def main() -> None:
    """Run once, print, and say by the exit code whether it held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--reloads", type=int, default=0)
    parser.add_argument("--openers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--operations", type=int, default=20_000, help="how many there must be at least")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amb-") as folder:
        plan = Plan(args.kills, args.reloads, args.threads, args.openers, args.operations)
        found = asyncio.run(survive(os.path.realpath(folder), plan))
    print(json.dumps(found, indent=1))
    sys.exit(0 if found["holds"] else 1)


if __name__ == "__main__":
    main()
