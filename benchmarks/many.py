"""Bring many mounts up at once and see what they cost while nobody uses them.

`python -m benchmarks.many [--mounts 100] [--idle 60]`, as root, prints one JSON object: seconds until all are up, the
daemon's memory, the memory of all processes together a mount (PSS), processor time while idle, how long `ps` takes.
Exits 1 unless every target of issue 7 holds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.machine import heading

MB = 1 << 20
FILES_A_MOUNT = 20
UP_S, DAEMON_MB, MOUNT_PSS_MB, IDLE_PERCENT, PS_S = 20.0, 100.0, 10.0, 1.0, 0.1


@dataclass(frozen=True)
class Many:
    """What was measured. `idle_percent`: of one core, all processes together; `ps_s`: the daemon's answer alone."""

    mounts: int
    mounted: int
    processes: int
    up_s: float
    daemon_rss_mb: float
    pss_mb_a_mount: float
    idle_percent: float
    ps_s: float
    down_s: float

    @property
    def holds(self) -> bool:
        """Say whether every target is met."""
        return (
            self.mounted == self.mounts
            and self.up_s <= UP_S
            and self.daemon_rss_mb <= DAEMON_MB
            and self.pss_mb_a_mount <= MOUNT_PSS_MB
            and self.idle_percent < IDLE_PERCENT
            and self.ps_s <= PS_S
        )


@contextmanager
def world(count: int, settings: str = "") -> Iterator[dict[str, str]]:
    """Yield an environment whose configuration has `count` mounts of small local folders, and `settings` (YAML).

    All is down afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="amb-") as folder:
        names = [f"m{number:03}" for number in range(count)]
        for name in names:
            Path(folder, "stores", name).mkdir(parents=True)
            for index in range(FILES_A_MOUNT):
                Path(folder, "stores", name, f"{index}.bin").write_bytes(bytes([index]) * 700)
        stores = "".join(f"  {name}: {{type: local, path: ./stores/{name}}}\n" for name in names)
        mounts = "".join(f"  {name}: {{target: {folder}/mnt/{name}, source: {name}}}\n" for name in names)
        Path(folder, "amlmount.yaml").write_text(f"stores:\n{stores}mounts:\n{mounts}{settings}")
        places = {f"AMLMOUNT_{name}": f"{folder}/{name.lower()}" for name in ("RUNTIME_DIR", "STATE_DIR", "CACHE_ROOT")}
        env = os.environ | places | {"AMLMOUNT_CONFIG": f"{folder}/amlmount.yaml"}
        try:
            yield env
        finally:
            amlmount(env, "down", "--lazy", check=False)


def amlmount(env: dict[str, str], *words: str, check: bool = True) -> str:
    """Run an amlmount command and return what it printed."""
    argv = [sys.executable, "-m", "amlmount", *words]
    return subprocess.run(argv, env=env, check=check, capture_output=True, text=True, timeout=300).stdout


def measure(count: int, idle_s: float) -> Many:
    """Bring `count` mounts up, look at them for `idle_s` seconds, take them down."""
    with world(count) as env:
        begun = time.monotonic()
        amlmount(env, "up", "--timeout", "120s")
        up_s = time.monotonic() - begun
        found = json.loads(amlmount(env, "ps", "-o", "json"))
        read_all(found)
        processes = family(env)
        daemon = next(process for process in processes if "daemon" in process.cmdline())
        result = Many(
            mounts=count,
            mounted=sum(mount["state"] == "mounted" for mount in found),
            processes=len(processes),
            up_s=up_s,
            idle_percent=idle_percent(processes, idle_s),
            daemon_rss_mb=daemon.memory_info().rss / MB,
            pss_mb_a_mount=sum(process.memory_full_info().pss for process in processes) / MB / count,
            ps_s=status_s(env),
            down_s=0.0,
        )
        begun = time.monotonic()
        amlmount(env, "down")
        return Many(**asdict(result) | {"down_s": time.monotonic() - begun})


def read_all(found: list[dict[str, str]]) -> None:
    """Read every file once, in a process of its own, so that the mounts are not merely begun."""
    script = "import os,sys\nfor t in sys.argv[1:]:\n for n in os.listdir(t): open(os.path.join(t,n),'rb').read()"
    subprocess.run([sys.executable, "-c", script, *(mount["target"] for mount in found)], check=True, timeout=120)


def family(env: dict[str, str]) -> list[psutil.Process]:
    """Return all processes that were started for this world: they carry its folder, or descend from one that does."""
    mark, found = env["AMLMOUNT_RUNTIME_DIR"], dict[int, psutil.Process]()
    for process in psutil.process_iter():
        try:
            if process.environ().get("AMLMOUNT_RUNTIME_DIR") == mark:
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        except psutil.Error:
            continue
    return list(found.values())


def idle_percent(processes: list[psutil.Process], seconds: float) -> float:
    """Return the processor time all of them took within `seconds`, in percent of one core."""
    time.sleep(5)  # what the reading has begun comes to its end
    before, begun = cpu_s(processes), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(processes) - before) / (time.monotonic() - begun) * 100


def cpu_s(processes: list[psutil.Process]) -> float:
    """Return the processor seconds of all of them, to the nanosecond, those of threads that have ended included."""
    return sum(time.clock_gettime(cpu_clock(process.pid)) for process in processes)


def cpu_clock(pid: int) -> int:
    """Return the clock of a process's processor time, as clock_getcpuclockid(3) makes it (CPUCLOCK_SCHED)."""
    return (~pid << 3) | 2


def status_s(env: dict[str, str]) -> float:
    """Return the median seconds that the daemon needs to say how all mounts are."""
    from amlmount.client import DaemonClient

    client, taken = DaemonClient(f"{env['AMLMOUNT_RUNTIME_DIR']}/amlmount.sock"), []
    for _ in range(11):
        begun = time.monotonic()
        client.status()
        taken.append(time.monotonic() - begun)
    return statistics.median(taken)


def main() -> None:
    """Measure and print; exit 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mounts", type=int, default=100)
    parser.add_argument("--idle", type=float, default=60.0)
    args = parser.parse_args()
    found = measure(args.mounts, args.idle)
    print(json.dumps({"where": heading(), **asdict(found), "holds": found.holds}, indent=1))
    sys.exit(0 if found.holds else 1)


if __name__ == "__main__":
    main()
