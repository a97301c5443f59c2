"""One mount of one peer, from cold to the last step, and what each step took: seconds, requests, bytes, CPU, memory."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import drop_caches, mount_points
from benchmarks.pairs import READER
from benchmarks.peers import Mounted, Peer, PeerFailed, Place
from benchmarks.stub import Stub

CLIENT = READER.with_name("client.py")
OURS, DISK = "amlmount", "disk"
CLIENT_NAME, OWN_CLIENT_NAME = "client", "own client"
STEP_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Step:
    """One reading of one place. `work` is its name in the table, `reader` what reader.py calls it.

    `cold`: every byte has to come from the store. `drop`: forget the kernel's caches before. `ours_only`: for peers
    it says nothing more. `untimed`: done, not recorded. `pairs`: ours and the disk take so many turns, one right
    after the other, because it is over so fast that what else the machine does would decide.
    """

    work: str
    reader: str
    path: str
    cold: bool = False
    drop: bool = False
    ours_only: bool = False
    untimed: bool = False
    pairs: int = 0


@dataclass(frozen=True)
class Sample:
    """What one step took. `cpu_s` is of the processes that serve, `peak_bytes` their resident memory so far.

    `error` is empty unless the peer failed or read other bytes than the disk has.
    """

    work: str
    peer: str
    trial: int
    seconds: float = 0.0
    read_bytes: int = 0
    store_bytes: int = 0
    requests: int = 0
    cpu_s: float = 0.0
    reader_cpu_s: float = 0.0
    peak_bytes: int = 0
    digest: int | None = None
    cold: bool = False
    repeat: int = 0
    error: str = ""
    tried: str = ""
    sent_bytes: int = 0


def sample_mount(peer: Peer, place: Place, steps: Sequence[Step], trial: int) -> list[Sample]:
    """Mount with nothing cached anywhere, do all steps in turn, unmount, remove what was cached.

    A step that fails ends it; its sample has the error.
    """
    prepare_place(place)
    drop_caches()
    found: list[Sample] = []
    now = steps[0]
    try:
        with peer.mounted(place) as mounted:
            for now in steps:
                found += _taken(peer.name, now, mounted, place, trial)
    except PeerFailed as error:
        found.append(Sample(now.work, peer.name, trial, cold=now.cold, error=" ".join(str(error).split())[:300]))
    finally:
        remove_place(place)
    return found


def prepare_place(place: Place) -> None:
    """Make the folders a peer needs."""
    layers = [place.folder / name for name in ("lower", "upper", "work")]
    for folder in (place.target, place.cache, *layers):
        folder.mkdir(parents=True, mode=0o700)
    if place.is_overlay:
        options = ",".join(f"{layer.name}dir={layer}" for layer in layers)
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(place.cache)], check=True)


def remove_place(place: Place) -> None:
    """Unmount and remove what a peer may have left."""
    for point in {str(place.target), str(place.cache)} & mount_points():
        subprocess.run(["umount", "-l", point], check=True, timeout=STEP_TIMEOUT_S)
    shutil.rmtree(place.folder)


def _taken(peer: str, step: Step, mounted: Mounted, place: Place, trial: int) -> Iterator[Sample]:
    """Take a step with one peer, or in pairs with the disk if the peer is ours."""
    if not step.pairs or peer not in (OURS, DISK):
        if not step.ours_only or peer in (OURS, DISK):
            yield from _measured(peer, step, mounted, place, trial)
        return
    if peer == DISK:
        return
    disk = Mounted(str(place.local))
    list(_measured(DISK, step, disk, place, trial))  # as warm as ours is by now
    for turn in range(step.pairs):
        both = [(peer, mounted), (DISK, disk)]
        for name, folder in both if turn % 2 else reversed(both):
            for sample in _measured(name, step, folder, place, trial):
                yield replace(sample, repeat=turn)


def _measured(peer: str, step: Step, mounted: Mounted, place: Place, trial: int) -> Iterator[Sample]:
    if step.drop:
        drop_caches()
    place.store.served()
    before_s = cpu_seconds(mounted.pids)
    argv = [*place.placement, sys.executable, str(READER), step.reader, f"{mounted.folder}/{step.path}"]
    report = run_report(argv)
    served = place.store.served()
    if step.untimed:
        return
    yield Sample(
        step.work,
        peer,
        trial,
        round(report["seconds"], 6),
        report["bytes"],
        served.read_bytes,
        served.total,
        round(cpu_seconds(mounted.pids) - before_s, 3),
        round(report["cpu_s"], 3),
        peak_bytes(mounted.pids),
        report["digest"],
        step.cold,
    )


def sample_client(place: Place, work: str, program: str, trial: int) -> Sample:
    """Do a work with the storage client alone; `program` is what client.py calls it."""
    drop_caches()
    place.store.served()
    report = run_report([*place.placement, *client_argv(program, place.store, place.folder.with_suffix(".bin"))])
    served = place.store.served()
    tried = ", ".join(f"{name}: {seconds} s" for name, seconds in report.get("tried", {}).items())
    return Sample(
        work,
        OWN_CLIENT_NAME if program.startswith("own-") else CLIENT_NAME,
        trial,
        round(report["seconds"], 6),
        report["bytes"],
        served.read_bytes,
        served.total,
        round(report["cpu_s"], 3),
        tried=tried,
    )


def client_argv(work: str, store: Stub, path: Path) -> list[str]:
    """Return the command line of client.py."""
    return [sys.executable, str(CLIENT), work, store.endpoint, str(path)]


def run_report(argv: Sequence[str]) -> dict[str, Any]:
    """Run a program that reports as JSON. Raises PeerFailed with its last words if it fails or takes for ever."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=STEP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"no end after {STEP_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise PeerFailed((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return user and system time of processes so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids if psutil.pid_exists(pid))


def peak_bytes(pids: Sequence[int]) -> int:
    """Return the largest resident memory that processes have had, summed."""
    return sum(_peak_of(pid) for pid in pids if psutil.pid_exists(pid))


def _peak_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0
