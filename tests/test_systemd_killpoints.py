"""A service's daemon is killed at await points of what it does; systemd starts the next one, which gets there.

Two points each time. All of them, in some minutes: `AMLMOUNT_TEST_EVERY_POINT=1 sh install/test.sh
tests/test_systemd_killpoints.py -s`.
"""

import itertools
import json
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from installbox import Box
from killing_daemon import ARMED
from servicebox import (
    CONFIG,
    amlmount,
    daemon,
    drop_in,
    journal,
    mount,
    open_service,
    program_of,
    reading,
    show,
    until,
)

EVERY = bool(os.environ.get("AMLMOUNT_TEST_EVERY_POINT"))
pytestmark = [pytest.mark.root, pytest.mark.timeout(1800 if EVERY else 120)]
# How many points there are at least, as under the keeper (test_killpoints): fewer would mean that nothing is counted.
LEAST = {"up": 20, "down": 8, "takeover": 8, "reload": 20}
SAMPLE = ("takeover", "reload")
# Without the real one's limit on how often, and how soon, a service may be started again.
AGAIN_AT_ONCE = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=50ms\n"


@pytest.fixture
def box() -> Iterator[Box]:
    """A machine with a real systemd and our unit, whose daemon can be killed anywhere."""
    with open_service(daemon=program_of("killing_daemon.py")) as made:
        drop_in(made, "again", AGAIN_AT_ONCE)
        yield made


@pytest.mark.parametrize("operations", [tuple(LEAST) if EVERY else SAMPLE], ids=["every point" if EVERY else "sample"])
def test_killed_at_await_points(operations: tuple[str, ...], box: Box) -> None:
    for operation in operations:
        if not EVERY:
            assert one_point(box, operation, random.randrange(2, LEAST[operation])), "there is no such point"
            continue
        points = next(point for point in itertools.count(1) if not one_point(box, operation, point)) - 1
        print(f"{operation}: killed at each of {points} points", flush=True)
        assert points > LEAST[operation]


def one_point(box: Box, operation: str, point: int) -> bool:
    """Kill at one point, and look at what the next daemon made of it; False if the operation has fewer points."""
    before = daemon(box)
    with ExitStack() as ending:
        assert amlmount(box, "down" if operation == "up" else "up").returncode == 0, journal(box)
        tally = ending.enter_context(reading(box)) if operation in ("takeover", "reload") else None
        profile = change_profile(box) if operation == "reload" else mount(box)["profile"] if tally else ""
        box.write(ARMED, str(point))
        begin(box, operation)
        was_killed = box.run("test", "-e", ARMED).returncode != 0
        box.run("rm", "-f", ARMED)
        if was_killed:
            until(lambda: daemon(box) not in ("0", before), lambda: journal(box))
            until(lambda: box.run("systemctl", "is-active", "amlmount").stdout == "active\n", lambda: journal(box))
        finish(box, operation, profile)
        if tally is not None:
            found = tally()
            assert not found["errors"] and not found["wrong"], f"{operation} {point}: {found} {journal(box)}"
    until(lambda: counts(box) in ((1, 1, 3), *([(0, 0, 0)] if operation == "down" else [])), lambda: left(box))
    return was_killed


def begin(box: Box, operation: str) -> None:
    """Do it, and wait until it is done or the daemon is gone; how the command ends does not matter."""
    if operation == "takeover":
        pid = mount(box)["pid"]
        box.sh(f"kill -9 {pid}")
        until(lambda: box.run("test", "-e", ARMED).returncode != 0 or is_served_again(box, pid), lambda: journal(box))
    else:
        amlmount(box, operation)


def is_served_again(box: Box, old: int) -> bool:
    """Say whether another worker serves the mount, as far as the daemon of now knows it already."""
    done = amlmount(box, "ps", "-o", "json")
    return any(found["pid"] not in (None, old) for found in json.loads(done.stdout or "[]"))


def finish(box: Box, operation: str, profile: str) -> None:
    """Ask for the same once more, as whoever saw the command fail does; the mount must be as it was asked for."""
    if operation == "reload":
        assert amlmount(box, "reload").returncode == 0, journal(box)
    if operation != "down":
        done = amlmount(box, "up")
        assert done.returncode == 0, done.stderr + journal(box)
        assert mount(box)["state"] == "mounted" and profile in ("", mount(box)["profile"])


def change_profile(box: Box) -> str:
    """Have the configuration say another profile, and return it."""
    profile = {"standard": "fresh"}.get(mount(box)["profile"], "standard")
    text = CONFIG.replace("source: images", f"source: images, profile: {profile}")
    box.write("/etc/amlmount/amlmount.yaml", text)
    return profile


def counts(box: Box) -> tuple[int, int, int]:
    """Return how many mounts, workers and kept descriptors there are."""
    mounts = box.run("findmnt", "-n", "-t", "fuse.amlmount").stdout.count("/media/images")
    workers = box.sh("ps -e -o args").count("amlmount.worker images")
    return mounts, workers, int(show(box, "NFileDescriptorStore"))


def left(box: Box) -> str:
    return f"{counts(box)} {journal(box)}"
