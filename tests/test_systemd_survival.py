"""Mounts outlive the daemon under a real systemd: killed, restarted, upgraded; `systemctl stop` takes them down."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from installbox import ROOT, Box, needed_binds, open_box
from readers import ORACLE

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
LOWER = os.environ.get("AMLMOUNT_TEST_TREE", "/")
CONFIG = """\
stores: {images: {type: local, path: /srv/images}}
mounts: {images: {target: /media/images, source: images}}
"""
AMLMOUNT = f"{sys.executable} -P -m amlmount"


@pytest.fixture
def box() -> Iterator[Box]:
    """A machine with a real systemd and our unit, run from the checkout."""
    with open_box(LOWER, systemd=True, binds=needed_binds(LOWER)) as made:
        made.sh(
            "mkdir -p /srv/images/sub; cd /srv/images; for i in $(seq 40); do echo $i >sub/$i.txt; done;"
            "head -c 300000 /dev/urandom >big.bin"
        )
        made.write("/etc/amlmount/amlmount.yaml", CONFIG)
        unit = (ROOT / "systemd" / "amlmount.service").read_text()
        made.write("/etc/systemd/system/amlmount.service", unit.replace("/opt/amlmount/bin/amlmount", AMLMOUNT))
        made.sh("systemctl daemon-reload; systemctl start amlmount")
        until(lambda: is_mounted(made), lambda: journal(made))
        yield made


def until(what: Callable[[], bool], saying: Callable[[], str]) -> None:
    deadline = time.monotonic() + 40
    while not what():
        assert time.monotonic() < deadline, saying()
        time.sleep(0.1)


def journal(box: Box) -> str:
    return box.run("journalctl", "--no-pager", "-u", "amlmount").stdout[-3000:]


def is_mounted(box: Box) -> bool:
    return "fuse.amlmount" in box.run("findmnt", "-n", "-o", "FSTYPE", "/media/images").stdout


def amlmount(box: Box, *args: str) -> "subprocess.CompletedProcess[str]":
    return box.run(sys.executable, "-P", "-m", "amlmount", "--system", *args)


def mount(box: Box) -> dict[str, Any]:
    done = amlmount(box, "ps", "-o", "json")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)
    return dict(found)


def daemon(box: Box) -> str:
    return box.sh("systemctl show -P MainPID amlmount").strip()


def wait_for_another(box: Box, old: str) -> None:
    until(lambda: daemon(box) not in ("0", old), lambda: journal(box))
    until(lambda: json.loads(amlmount(box, "ps", "-o", "json").stdout or "[]") != [], lambda: journal(box))


@contextmanager
def reading(box: Box) -> Iterator[Callable[[], dict[str, Any]]]:
    """Readers in the box; the function that is yielded ends them and returns their tally."""
    pipe = subprocess.PIPE
    argv = box.argv(sys.executable, ORACLE, "/srv/images", "/media/images", "2", "1")
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe)

    def tally() -> dict[str, Any]:
        out, _ = process.communicate(timeout=30)
        return dict(json.loads(out))

    try:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        yield tally
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "how",
    [
        "kill -9 $(systemctl show -P MainPID amlmount)",
        "systemctl restart amlmount",
        "systemctl kill -s USR2 --kill-who=main amlmount",
    ],
    ids=["killed", "restarted", "asked to leave"],
)
def test_the_next_daemon_finds_every_mount_as_it_was(box: Box, how: str) -> None:
    pid = mount(box)["pid"]
    assert int(box.sh("systemctl show -P NFileDescriptorStore amlmount")) == 3
    with reading(box) as tally:
        old = daemon(box)
        box.sh(how)
        wait_for_another(box, old)
        found = tally()
    assert not found["errors"] and not found["wrong"], journal(box)
    assert mount(box)["pid"] == pid, journal(box)
    assert int(box.sh("systemctl show -P NFileDescriptorStore amlmount")) == 3


def test_restart_by_our_own_command(box: Box) -> None:
    pid, old = mount(box)["pid"], daemon(box)
    with reading(box) as tally:
        done = amlmount(box, "restart", "--daemon")
        assert done.returncode == 0, done.stderr + journal(box)
        found = tally()
    assert not found["errors"] and not found["wrong"]
    assert mount(box)["pid"] == pid and daemon(box) not in ("0", old)


def test_worker_and_daemon_killed_at_once(box: Box) -> None:
    pid, old = mount(box)["pid"], daemon(box)
    with reading(box) as tally:
        box.sh(f"kill -9 {old} {pid}")
        wait_for_another(box, old)
        until(lambda: mount(box)["pid"] not in (None, pid), lambda: journal(box))
        found = tally()
    assert not found["errors"] and not found["wrong"], journal(box)


def test_reload_by_systemctl(box: Box) -> None:
    pid = mount(box)["pid"]
    box.write("/etc/amlmount/amlmount.yaml", CONFIG.replace("source: images", "source: images, profile: fresh"))
    with reading(box) as tally:
        box.sh("systemctl reload amlmount")
        until(lambda: mount(box)["profile"] == "fresh", lambda: journal(box))
        found = tally()
    assert not found["errors"] and not found["wrong"], journal(box)
    assert mount(box)["pid"] != pid


def test_stop_takes_everything_down(box: Box) -> None:
    box.sh("systemctl stop amlmount")
    assert not is_mounted(box) and "amlmount.worker" not in box.sh("ps -e -o args")
    assert box.run("systemctl", "is-failed", "amlmount").stdout.strip() == "inactive"
    box.sh("systemctl start amlmount")
    until(lambda: is_mounted(box), lambda: journal(box))
