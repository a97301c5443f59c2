"""Mounts outlive the daemon under a real systemd: killed, restarted, upgraded; `systemctl stop` takes them down."""

import json
from collections.abc import Iterator

import pytest

from installbox import ROOT, Box
from servicebox import (
    CONFIG,
    amlmount,
    daemon,
    is_mounted,
    journal,
    mount,
    open_service,
    put_program,
    reading,
    show,
    until,
    wait_for_another,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
LIBRARY = "/opt/amlmount/lib"


@pytest.fixture(scope="module")
def machine() -> Iterator[Box]:
    """One boot for all: each test leaves the mount up."""
    with open_service() as made:
        yield made


@pytest.fixture
def box(machine: Box) -> Box:
    """The machine, with its mount up."""
    machine.write("/etc/amlmount/amlmount.yaml", CONFIG)
    amlmount(machine, "up")
    until(lambda: is_mounted(machine), lambda: journal(machine))
    return machine


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
    assert show(box, "NFileDescriptorStore") == "3"
    with reading(box) as tally:
        old = daemon(box)
        box.sh(how)
        wait_for_another(box, old)
        found = tally()
    assert not found["errors"] and not found["wrong"], journal(box)
    assert mount(box)["pid"] == pid, journal(box)
    assert show(box, "NFileDescriptorStore") == "3"


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


def put_version(box: Box, version: str) -> None:
    """As an upgrade does it: another tree, and the program leads there from one moment to the next."""
    tree = f"/opt/amlmount/{version}"
    box.sh(f"mkdir -p {tree}; cp -rpL {ROOT}/src/amlmount {tree}/amlmount")
    box.sh(f"sed -i 's/^__version__ = .*/__version__ = \"{version}\"/' {tree}/amlmount/__init__.py")
    put_program(box, python_path=tree)


def outdated(box: Box) -> dict[str, str]:
    """Return which mounts an older program serves, and what `restart --upgrade` would change."""
    done = amlmount(box, "restart", "--upgrade", "--dry-run", "-o", "json")
    assert done.returncode == 0, done.stderr
    return {change["name"]: " ".join(change["fields"]) for change in json.loads(done.stdout)}


def test_an_upgrade(box: Box) -> None:
    """`systemctl restart` has the new version look after what the old one serves; `restart --upgrade` replaces both."""
    pid, old = mount(box)["pid"], daemon(box)
    put_version(box, "9.8")
    with reading(box) as tally:
        box.sh("systemctl restart amlmount")
        wait_for_another(box, old)
        found = tally()
    assert not found["errors"] and not found["wrong"], journal(box)
    assert mount(box)["pid"] == pid and "ready: amlmount 9.8" in journal(box)
    assert " -> 9.8 " in outdated(box)["images"]
    put_version(box, "9.9")
    with reading(box) as tally:
        done = amlmount(box, "restart", "--upgrade")
        found = tally()
    assert done.returncode == 0 and not found["errors"] and not found["wrong"], done.stderr + journal(box)
    assert mount(box)["pid"] != pid and "ready: amlmount 9.9" in journal(box)
    assert outdated(box) == {} and show(box, "NFileDescriptorStore") == "3"
