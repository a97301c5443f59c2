"""How long the daemon takes to say how its mounts are while some of them hang: asked without a pause for a minute.

`python -m benchmarks.hanging [--mounts 50] [--hanging 10] [--seconds 60]`, as root, stops as many processes again and
again (each is noticed, killed and replaced), kills others, and looks at every mount 40 times as often as is usual.
Prints one JSON object; exits 1 unless every answer came within 100 ms.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from amlmount.client import DaemonClient
from amlmount.states import MountStatus
from benchmarks.machine import heading
from benchmarks.many import amlmount, world

WITHIN_S = 0.1
PAUSE_S = 0.01
FAULTS_EVERY_S = 3.0  # as long as it takes to notice one that hangs: as many hang at any moment
KILLED = 2
HEALTH = "health: {interval: 500ms, timeout: 1s}\n"


@dataclass(frozen=True)
class Answers:
    """What was measured. `silent`: how many mounts were found to be silent at one time or another."""

    mounts: int
    hanging: int
    asked: int
    silent: int
    replaced: int
    median_ms: float
    p99_ms: float
    worst_ms: float

    @property
    def holds(self) -> bool:
        """Say whether every answer came in time, and there was something to be slow at."""
        return self.worst_ms <= WITHIN_S * 1000 and self.silent >= self.hanging and self.replaced >= self.hanging


def measure(mounts: int, hanging: int, seconds: float) -> Answers:
    """Bring the mounts up and ask about them while some hang."""
    with world(mounts, HEALTH) as env:
        amlmount(env, "up", "--timeout", "120s")
        client = DaemonClient(f"{env['AMLMOUNT_RUNTIME_DIR']}/amlmount.sock")
        return ask(client, hanging, seconds)


def ask(client: DaemonClient, hanging: int, seconds: float) -> Answers:
    """Ask for the status all the time, and have processes hang and die."""
    took_s, silent, pids = [], set(), set()
    luck, found = random.Random(1), client.status()
    end = time.monotonic() + seconds
    faults_at = time.monotonic() + 1
    while (begun := time.monotonic()) < end:
        if begun >= faults_at:
            harm(found, hanging, luck)
            faults_at = begun + FAULTS_EVERY_S
        begun = time.monotonic()
        found = client.status()
        took_s.append(time.monotonic() - begun)
        silent |= {status.name for status in found if is_silent(status)}
        pids |= {status.pid for status in found if status.pid}
        time.sleep(PAUSE_S)
    in_order = [round(took * 1000, 1) for took in sorted(took_s)]
    median, p99 = in_order[len(in_order) // 2], in_order[int(len(in_order) * 0.99)]
    return Answers(len(found), hanging, len(took_s), len(silent), len(pids) - len(found), median, p99, in_order[-1])


def harm(found: Sequence[MountStatus], hanging: int, luck: random.Random) -> None:
    """Stop the processes of some mounts that serve, kill those of others."""
    victims = luck.sample([status.pid for status in found if status.pid], hanging + KILLED)
    for number, pid in enumerate(victims):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP if number < hanging else signal.SIGKILL)


def is_silent(status: MountStatus) -> bool:
    """Say whether the daemon has found that it does not answer."""
    return any(condition.reason == "Silent" and condition.status == "False" for condition in status.conditions)


def main() -> None:
    """Measure and print; exit 1 if an answer was late."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mounts", type=int, default=50)
    parser.add_argument("--hanging", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    found = measure(args.mounts, args.hanging, args.seconds)
    print(json.dumps({"where": heading(), **asdict(found), "holds": found.holds}, indent=1))
    sys.exit(0 if found.holds else 1)


if __name__ == "__main__":
    main()
