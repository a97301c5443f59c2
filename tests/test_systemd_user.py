"""A user's own unit, by an ordinary user who logs in: mounts without root outlive everything that root's do.

The user's manager is the one that logind starts. What only root's daemon can (mounts beneath others) is no part of it.
"""

import json
from collections.abc import Iterator

import pytest

from amlmount.installer.paths import PROGRAM
from installbox import Box
from servicebox import is_mounted, let_others_in, open_service, reading, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(200)]
USER = "tester"
TARGET = f"/home/{USER}/mine"
SOURCE = f"/home/{USER}/data"
CONFIG = f"""\
stores: {{data: {{type: local, path: {SOURCE}}}}}
mounts: {{mine: {{target: {TARGET}, source: data}}}}
"""
FILES = """
mkdir -p data/sub .config/amlmount
for i in $(seq 20); do echo $i >data/sub/$i.txt; done; head -c 300000 /dev/urandom >data/big.bin
"""


@pytest.fixture
def box() -> Iterator[Box]:
    """A machine that has amlmount, and a user who has a configuration."""
    with open_service(starts=False) as made:
        let_others_in(made)
        made.sh(f"useradd -m -s /bin/sh {USER}")
        login(made, FILES)
        made.write(f"/home/{USER}/.config/amlmount/amlmount.yaml", CONFIG)
        made.write("/etc/systemd/logind.conf.d/soon.conf", "[Login]\nUserStopDelaySec=0\n")
        yield made


def login(box: Box, script: str) -> str:
    """Run something in a login shell of the user, which must succeed."""
    return box.run("su", "-l", USER, "-c", f"set -eu\n{script}", check=True).stdout


def ask(box: Box, *argv: str) -> str:
    """Ask something as the user, without the time that a login takes."""
    become = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    folder = box.sh("echo /run/user/*").strip()
    return box.run(*become, *argv, check=True, env={"XDG_RUNTIME_DIR": folder, "HOME": f"/home/{USER}"}).stdout


def show(box: Box, name: str) -> str:
    return ask(box, "systemctl", "--user", "show", "-P", name, "amlmount").strip()


def worker(box: Box) -> int:
    """Return who serves the mount, 0 if nobody does as far as the daemon of now knows."""
    found = json.loads(ask(box, PROGRAM, "ps", "-o", "json"))
    return next((int(one["pid"]) for one in found if one["state"] == "mounted"), 0)


def all_said(box: Box) -> str:
    return box.sh(f"journalctl --sync; journalctl --no-pager _UID=$(id -u {USER})")


def wait_until_mounted(box: Box) -> None:
    until(lambda: is_mounted(box, TARGET), lambda: all_said(box))


def read_by(box: Box, user: str, group: str) -> str:
    who = (f"--reuid={user}", f"--regid={group}", "--clear-groups")
    return box.run("setpriv", *who, "cat", f"{TARGET}/sub/7.txt").stdout


def test_an_ordinary_users_unit(box: Box) -> None:
    login(box, "loginctl enable-linger; systemctl --user enable -q --now amlmount")
    wait_until_mounted(box)
    assert box.sh(f"stat -c %U /proc/{show(box, 'MainPID')} /proc/{worker(box)}").split() == [USER, USER]
    assert login(box, f"cat {TARGET}/sub/7.txt") == "7\n" and show(box, "NFileDescriptorStore") == "3"
    box.sh(f"chmod a+x /home/{USER}")
    assert (read_by(box, USER, USER), read_by(box, "nobody", "nogroup")) == ("7\n", ""), "a user's mount is that user's"
    check_that_mounts_outlive_the_daemon(box)
    check_that_a_stuck_daemon_is_ended(box)
    check_that_a_worker_is_replaced(box)
    box.reboot()
    wait_until_mounted(box)  # nobody has logged in
    assert read_by(box, USER, USER) == "7\n"
    login(box, "systemctl --user stop amlmount")
    assert not is_mounted(box, TARGET) and "amlmount" not in box.sh(f"ps -u {USER} -o args")
    login(box, "systemctl --user start amlmount")
    wait_until_mounted(box)
    login(box, "loginctl disable-linger")
    until(lambda: not is_mounted(box, TARGET), lambda: all_said(box))  # with the last session the manager ends


def check_that_mounts_outlive_the_daemon(box: Box) -> None:
    pid = worker(box)
    for how in ("kill -9 $(systemctl --user show -P MainPID amlmount)", "systemctl --user restart amlmount"):
        before = show(box, "MainPID")
        with reading(box, SOURCE, TARGET, user=USER) as tally:
            login(box, how)
            until(lambda before=before: show(box, "MainPID") not in ("0", before), lambda: all_said(box))  # type: ignore[misc]
            found = tally()
        assert not found["errors"] and not found["wrong"], (how, found, all_said(box))
        until(lambda: worker(box) == pid, lambda: all_said(box))
        assert show(box, "NFileDescriptorStore") == "3"


def check_that_a_stuck_daemon_is_ended(box: Box) -> None:
    box.write(f"/home/{USER}/.config/systemd/user/amlmount.service.d/x.conf", "[Service]\nWatchdogSec=1s\n")
    login(box, "systemctl --user daemon-reload; systemctl --user restart amlmount")
    until(lambda: worker(box) != 0, lambda: all_said(box))
    pid, stuck = worker(box), show(box, "MainPID")
    with reading(box, SOURCE, TARGET, user=USER) as tally:
        login(box, f"kill -STOP {stuck}")
        until(lambda: show(box, "MainPID") not in ("0", stuck), lambda: all_said(box))
        found = tally()
    assert not found["errors"] and not found["wrong"] and "Watchdog timeout" in all_said(box), (found, all_said(box))
    until(lambda: worker(box) == pid, lambda: all_said(box))


def check_that_a_worker_is_replaced(box: Box) -> None:
    pid = worker(box)
    with reading(box, SOURCE, TARGET, user=USER) as tally:
        login(box, f"kill -9 {pid}")
        until(lambda: worker(box) not in (0, pid), lambda: all_said(box))
        found = tally()
    assert not found["errors"] and not found["wrong"], (found, all_said(box))
