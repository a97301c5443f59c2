"""The units under a real systemd: who sees mounts, who may use the socket, who can wait for a mount, what is in the
journal, where secrets come from, what hardens the unit. One boot, many checks: see `servicebox`.

That mounts outlive the daemon is in test_systemd_survival and _watchdog; what is sent before the end in _stop.
"""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from amlmount.installer import paths
from amlmount.journal import message_id
from installbox import ROOT, Box
from servicebox import (
    CONFIG,
    READ,
    amlmount,
    daemon,
    drop_in,
    is_mounted,
    journal,
    mount,
    open_service,
    put_program,
    until,
    wait_for_another,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
EXPOSURE = 5.2  # what `systemd-analyze security` says of the unit as it is shipped, systemd 252
WAITER = "[Unit]\n{wait}\n[Service]\nType=oneshot\nExecStart=/bin/cat /media/images/sub/7.txt\n"
KEY = base64.b64encode(b"secret of a credential that nobody may see anywhere else").decode()  # not in this file either
# Serves containers from the same code as the tests' own store, and writes down whether requests were signed.
STORE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from fakeblob import FakeBlobService, ACCOUNT
service = FakeBlobService()
service.put("data", "hello.txt", b"hello")
open("/run/store.url", "w").write(service.url)
while True:
    time.sleep(0.05)
    headers = [{name.lower(): value for name, value in asked.headers.items()} for asked in list(service.asked)]
    open("/run/store.seen", "w").write("\\n".join(each.get("authorization", "")[:20] for each in headers))
"""


@pytest.fixture
def box() -> Iterator[Box]:
    """A machine with our units, started as they stand; one mount is up."""
    with open_service() as made:
        yield made


def test_a_machine_with_our_units(box: Box) -> None:
    check_the_unit_file(box)
    check_that_each_hardening_is_there_or_explained(box)
    check_that_a_start_ends_when_it_is_ready(box)
    check_who_sees_the_mount(box)
    check_who_may_use_the_socket(box)
    check_the_journal_by_field(box)
    check_the_journal_with_and_without_systemds_own_module(box)
    check_units_that_wait(box)
    check_nothing_is_readable_for_others(box)
    box.reboot()
    until(lambda: is_mounted(box), lambda: journal(box))
    assert box.sh(READ) == "7\n"


def check_the_unit_file(box: Box) -> None:
    verified = box.run("systemd-analyze", "verify", *(paths.UNITS.keys() - {paths.USER_UNIT, paths.MOUNTED_ONE}))
    assert (verified.returncode, verified.stderr) == (0, "")
    said = box.sh("systemd-analyze --no-pager security amlmount.service | tail -1")
    assert float(said.partition("amlmount.service: ")[2].split()[0]) <= EXPOSURE, said
    assert f"{EXPOSURE} MEDIUM" in (ROOT / "systemd/amlmount.service").read_text()
    assert f"{EXPOSURE} MEDIUM" in (ROOT / "docs/operations.md").read_text()
    limits = box.sh(f"cat /proc/{daemon(box)}/limits /proc/{mount(box)['pid']}/limits")
    assert all(line.split()[4:6] in (["0", "0"], ["1", "1"]) for line in limits.splitlines() if "core file" in line)


def check_that_each_hardening_is_there_or_explained(box: Box) -> None:
    """What `systemd-analyze security` misses stands in the unit: set in part, or left out with the reason."""
    text = (ROOT / "systemd/amlmount.service").read_text()
    given, left_out = (part.replace("\n#   ", " ") for part in text.split("# --- and what is left out"))
    reasons = {
        name: why for names, why in re.findall(r"^# ([A-Z][^:\n]+): (.+)$", left_out, re.M) for name in _names(names)
    }
    for found in json.loads(box.sh("systemd-analyze --no-pager --json=short security amlmount.service")):
        name, _, group = found["name"].partition("=")
        if not found["set"] and (group.startswith("~@") or not re.search(rf"^{name}=", given, re.M)):
            assert group.strip("~") in left_out or not group.startswith("~@"), found
            assert len(reasons.get(name, "")) > 10, f"{name}: {found['description']}"
    assert {"User", "PrivateTmp", "MemoryDenyWriteExecute"} <= reasons.keys()


def _names(text: str) -> list[str]:
    """Return the directives of a list of them: `PrivateTmp, RootDirectory/RootImage, User`."""
    return re.findall(r"[A-Z][A-Za-z]+", text)


def check_that_a_start_ends_when_it_is_ready(box: Box) -> None:
    """READY: what comes after `systemctl start` finds the daemon; one that cannot start fails the command."""
    box.sh("systemctl stop amlmount")
    ping = "curl -sS --unix-socket /run/amlmount/amlmount.sock http://amlmount/v1/status"
    assert '"mounts"' in box.sh(f"systemctl start amlmount; {ping}")
    box.sh("systemctl stop amlmount")
    box.write("/etc/amlmount/amlmount.yaml", "mounts: {images: {target: relative}}\n")
    started = box.run("systemctl", "start", "amlmount")
    assert started.returncode != 0 and "failed" in started.stderr, started
    assert "cannot" in journal(box)
    box.write("/etc/amlmount/amlmount.yaml", CONFIG)  # and the next try, a second later, finds it mended
    until(lambda: is_mounted(box), lambda: journal(box))


def check_who_sees_the_mount(box: Box) -> None:
    """Other users, a login, hardened services: also one that was there before the mount was."""
    assert box.sh(f"setpriv --reuid=65534 --regid=65534 --clear-groups {READ}") == "7\n"
    box.sh("useradd -m -s /bin/sh somebody")
    assert box.run("su", "-l", "somebody", "-c", f"echo $XDG_SESSION_ID; {READ}", check=True).stdout.split()[1:] == [
        "7"
    ]
    hardened = "-p ProtectSystem=strict -p ProtectHome=yes -p PrivateTmp=yes -p PrivateDevices=yes -p DynamicUser=yes"
    assert box.sh(f"systemd-run -q --wait --pipe {hardened} {READ}") == "7\n"
    assert amlmount(box, "down").returncode == 0
    box.sh(f"systemd-run -q --unit=early {hardened} sh -c 'until {READ} >/tmp/seen; do sleep 0.05; done; sleep 99'")
    assert amlmount(box, "up").returncode == 0
    seen = "cat /tmp/systemd-private-*-early.service-*/tmp/seen || true"
    until(lambda: box.sh(seen) == "7\n", lambda: box.sh("journalctl --no-pager -u early"))
    box.sh("systemctl stop early")


def ask(box: Box, groups: str, method: str, what: str) -> "subprocess.CompletedProcess[str]":
    """Ask the daemon as an ordinary user who is in `groups`."""
    url = f"http://amlmount/v1/{what}"
    curl = ("curl", "-sS", "--unix-socket", "/run/amlmount/amlmount.sock", "-X", method, url, "-d", "{}")
    return box.run("setpriv", "--reuid=65534", "--regid=65534", f"--groups={groups}", *curl)


def check_who_may_use_the_socket(box: Box) -> None:
    group = box.sh("getent group amlmount | cut -d: -f3").strip()
    assert box.sh("stat -c '%a %U:%G' /run/amlmount /run/amlmount/amlmount.sock").splitlines() == [
        "710 root:amlmount",
        "660 root:amlmount",
    ]
    refused = ask(box, "65534", "GET", "status")
    assert refused.returncode == 7, refused  # curl: could not connect
    assert json.loads(ask(box, group, "GET", "status").stdout)["mounts"][0]["name"] == "images"
    assert '"outcome"' in ask(box, group, "POST", "up").stdout
    said = json.loads(ask(box, group, "POST", "shutdown").stdout)
    assert said["error"]["code"] == "access_denied" and is_mounted(box)


def entries(box: Box, *matches: str) -> list[dict[str, Any]]:
    box.sh("journalctl --sync")
    return [json.loads(line) for line in box.sh(f"journalctl -o json {' '.join(matches)}").splitlines()]


def check_the_journal_by_field(box: Box) -> None:
    found = entries(box, "AMLMOUNT_MOUNT=images", f"MESSAGE_ID={message_id('mounted')}")
    assert found and {e["AMLMOUNT_EVENT"] for e in found} == {"mounted"} and found[0]["PRIORITY"] == "6"
    assert {e["_SYSTEMD_UNIT"] for e in found} == {"amlmount.service"}
    assert entries(box, "AMLMOUNT_MOUNT=nobody") == []
    assert any("ready: amlmount" in str(e["MESSAGE"]) for e in entries(box, "-u", "amlmount"))


def check_the_journal_with_and_without_systemds_own_module(box: Box) -> None:
    """Its fields do not depend on systemd-python: what was found so far was with or without, this is the other."""
    was_there = box.run(sys.executable, "-P", "-c", "import systemd.journal").returncode == 0
    other = "raise ImportError('no libsystemd')" if was_there else "raise SystemExit('somebody uses it')"
    box.write("/opt/other/systemd/__init__.py", other)
    put_program(box, python_path="/opt/other")
    old = daemon(box)
    box.sh("systemctl restart amlmount")
    wait_for_another(box, old)
    found = entries(box, "AMLMOUNT_MOUNT=images", "AMLMOUNT_EVENT=adopted", f"_PID={daemon(box)}")
    assert len(found) == 1 and found[0]["MESSAGE_ID"] == message_id("adopted"), journal(box)
    put_program(box)


def check_units_that_wait(box: Box) -> None:
    """Each of the three ways brings the mount up before the unit that needs it begins."""
    assert amlmount(box, "export", "systemd-mount", "images", "--directory", "/etc/systemd/system").returncode == 0
    ways = {
        "one": "Requires=amlmount-mounted@images.service\nAfter=amlmount-mounted@images.service",
        "all": "Requires=amlmount.target\nAfter=amlmount.target",
        "path": "RequiresMountsFor=/media/images/sub",
    }
    for name, wait in ways.items():
        box.write(f"/etc/systemd/system/{name}.service", WAITER.format(wait=wait))
    box.sh("systemctl daemon-reload")
    for name in ways:
        assert amlmount(box, "down").returncode == 0 and not is_mounted(box)
        box.sh(f"systemctl start {name}.service")
        assert is_mounted(box)
    assert box.sh("systemctl is-active media-images.mount amlmount.target").split() == ["active", "active"]
    pid, old = mount(box)["pid"], daemon(box)
    box.sh("systemctl restart amlmount")  # neither the mount nor who waits for it is touched
    assert mount(box)["pid"] == pid and daemon(box) != old
    assert box.sh("systemctl is-active media-images.mount amlmount.target").split() == ["active", "active"]
    box.sh("systemctl stop amlmount")
    assert not is_mounted(box) and box.run("systemctl", "is-active", "amlmount.target").stdout == "inactive\n"
    box.sh("rm /etc/systemd/system/media-images.mount; systemctl daemon-reload; systemctl start amlmount")
    until(lambda: is_mounted(box), lambda: journal(box))


def check_nothing_is_readable_for_others(box: Box) -> None:
    folders = "/run/amlmount /var/lib/amlmount /var/cache/amlmount"
    assert box.sh(f"find {folders} -type f -perm /077").split() == []
    assert box.sh(f"find {folders} -mindepth 1 -type s -perm /007").split() == []
    assert box.sh("setpriv --reuid=65534 --regid=65534 --clear-groups ls /var/lib/amlmount 2>&1 || true").endswith(
        "Permission denied\n"
    )


def test_a_credential_of_the_service_manager_is_a_key_of_a_store(box: Box) -> None:
    box.write("/run/store.py", STORE)
    # As a unit: what nsenter starts is nobody's child in there, and a shutdown would wait for it in vain.
    box.sh(f"systemd-run -q --unit=store {sys.executable} /run/store.py {ROOT / 'tests'}")
    until(lambda: box.exists("/run/store.url"), lambda: "the store does not begin")
    store = {
        "type": "azure_blob",
        "account_name": "fakeaccount",
        "container_name": "data",
        "endpoint": box.read("/run/store.url"),
        "credentials": {"account_key": {"credential": "data_key"}},
    }
    config = {"stores": {"data": store}, "mounts": {"data": {"target": "/media/data", "source": "data"}}}
    box.write("/etc/amlmount/amlmount.yaml", json.dumps(config))
    box.write("/etc/amlmount/data_key", KEY)
    drop_in(box, "key", "[Service]\nLoadCredential=data_key:/etc/amlmount/data_key\n")
    box.sh("chmod 600 /etc/amlmount/data_key; systemctl restart amlmount")
    done = amlmount(box, "up", "data")
    assert done.returncode == 0, done.stdout + done.stderr + journal(box)
    assert box.sh("cat /media/data/hello.txt") == "hello"
    assert "SharedKey fakeaccou" in box.read("/run/store.seen")
    own = box.sh("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; journalctl --sync; journalctl -o export", timeout_s=60)
    assert KEY not in own
    files = box.run("grep", "-rl", KEY, "/run", "/var/lib/amlmount", "/var/cache/amlmount", "/var/log", "/tmp").stdout
    assert all(path.startswith("/run/credentials/") for path in files.split()), files
    assert os.path.basename(files.split()[0]) == "data_key"
