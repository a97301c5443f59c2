"""One daemon, a mount for every fault that can be made: the right condition turns, in time, and nothing else does."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlmount.client import DaemonClient
from amlmount.health import Prober, judge_answer
from amlmount.mounts import open_and_mount
from amlmount.states import KINDS
from daemons import poll
from drivers import Account, Driver, sh
from fakeblob import FakeBlobService
from faulty_proxy import Proxy
from sandbox import lazy_unmount
from world import World

pytestmark = pytest.mark.root
TIMES = {"interval": "200ms", "timeout": "500ms", "store_interval": "300ms", "store_timeout": "500ms"}
LIMITS = {"disk_free": "4MiB", "upload_age": "300ms"}
# As docs/operations.md says: interval and timeout of mounts, or of stores twice and the pause; BUSY_S is the machine's.
BUSY_S = 3.0
WITHIN_S = {"at once": BUSY_S, "mount": 0.7 + BUSY_S, "store": 0.33 + 2 * 0.5 + 0.5 + BUSY_S}
WITHIN_S["a successor"] = 12.0


EVERY_FAULT = {
    ("clock", "ClockOff"),
    ("silent", "StoreSilent"),
    ("revoked", "AccessRefused"),
    ("busy", "StoreTrouble"),
    ("expiring", "CredentialEndsSoon"),
    ("expiring", "CredentialEnded"),
    ("unread", "CredentialUnreadable"),
    ("late", "UploadsLate"),
    ("late", "WritingRefused"),
    ("failing", "ManyErrors"),
    ("full", "DiskFull"),
    ("hidden", "Hidden"),
    ("stopped", "Silent"),
    ("killed", "ProcessEnded"),
}

REPLACED = ("stopped", "ProcessEnded")  # what hangs is ended by us, and another process goes on


class Ground:
    """A world whose mounts each have a store of their own, so that a fault is one mount's alone."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stores: dict[str, Any] = {}
        self.mounts: dict[str, Any] = {}

    def local(self, name: str, **options: Any) -> None:
        os.mkdir(f"{self.world.root}/{name}")
        Path(self.world.root, name, "file").write_text(name)
        self.add(name, {"type": "local", "path": f"{self.world.root}/{name}"}, options)

    def remote(
        self, name: str, fake: FakeBlobService, credentials: dict[str, Any] | None = None, **options: Any
    ) -> None:
        fake.containers[name] = {}
        fake.put(name, "file", name.encode())
        known = {"credentials": credentials} if credentials else {}
        self.add(name, fake.definition(name, **known), options)

    def add(self, name: str, store: dict[str, Any], options: dict[str, Any]) -> None:
        self.stores[name] = store
        self.mounts[name] = {"source": name, "target": self.target(name), "engine": "python", **options}

    def target(self, name: str) -> str:
        return f"{self.world.root}/mnt/{name}"

    def up(self, *names: str) -> None:
        config = {"stores": self.stores, "mounts": self.mounts, "health": TIMES | LIMITS}
        self.world.write_config(yaml.safe_dump(config))
        done = self.world.cli("up", *names)
        assert done.returncode == 0, done.stderr

    def wrong(self) -> dict[str, set[str]]:
        """Return by mount the reasons of what is false."""
        return {mount["name"]: reasons(mount, "False") for mount in self.status()}

    def status(self) -> list[dict[str, Any]]:
        return status_of(self.world)

    def of(self, name: str) -> dict[str, Any]:
        [found] = [mount for mount in self.status() if mount["name"] == name]
        return dict(found)

    def turns(self, name: str, reason: str, within: str) -> None:
        """Wait until this, and nothing else, is wrong with the mount; all others are well."""
        begun = time.monotonic()
        poll(lambda: self.wrong()[name] == {reason}, f"{name} does not get {reason}: {self.of(name)}", 10)
        assert time.monotonic() - begun < WITHIN_S[within], "later than it says"
        assert [other for other, why in self.wrong().items() if why] == [name]

    def recovers(self, name: str) -> None:
        poll(
            lambda: not self.wrong()[name] and self.of(name)["state"] == "mounted", f"{name} stays {self.of(name)}", 15
        )

    def sas(self, path: str, left: timedelta) -> None:
        ends = (datetime.now(UTC) + left).strftime("%Y-%m-%dT%H:%M:%SZ")
        Path(path).write_text(f"sv=2023-11-03&sr=c&sp=rl&se={ends}&sig=c2VjcmV0")
        os.chmod(path, 0o600)


def status_of(world: World) -> list[dict[str, Any]]:
    """Ask the daemon itself: a command takes too long to see what lasts for half a second."""
    client = DaemonClient(os.path.join(world.runtime_dir, "amlmount.sock"))
    return [status.to_json() for status in client.status()]


def alarms(world: World) -> Counter[tuple[str | None, str]]:
    """Return every condition that has turned false since the daemon began, with its mount: how often."""
    client = DaemonClient(os.path.join(world.runtime_dir, "amlmount.sock"))
    lost = [event for event in client.events() if event.kind == "condition-lost"]
    return Counter((event.mount, event.details["reason"]) for event in lost)


def reasons(mount: dict[str, Any], status: str) -> set[str]:
    return {condition["reason"] for condition in mount["conditions"] if condition["status"] == status}


@pytest.fixture
def fakes() -> Iterator[tuple[FakeBlobService, FakeBlobService]]:
    made = FakeBlobService(), FakeBlobService()
    yield made
    for fake in made:
        fake.close()


@pytest.fixture
def small_disk(world: World) -> Iterator[str]:
    path = f"{world.root}/small"
    os.mkdir(path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], check=True, timeout=10)
    yield path
    lazy_unmount(path)


def test_every_fault_turns_its_condition_and_no_other(
    world: World, fakes: tuple[FakeBlobService, FakeBlobService], small_disk: str
) -> None:
    fake, other = fakes
    ground = Ground(world)
    sas = f"{world.root}/sas"
    ground.sas(sas, timedelta(days=30))
    for name in ("well", "killed", "stopped", "hidden"):
        ground.local(name)
    ground.local("full", read_only=False, state_dir=f"{small_disk}/state")
    for name in ("silent", "revoked", "busy", "failing"):
        ground.remote(name, fake)
    ground.remote("expiring", fake, {"sas_token": {"file": sas}})
    ground.sas(unread := f"{world.root}/unread", timedelta(days=30))
    ground.remote("unread", fake, {"sas_token": {"file": unread}})
    ground.remote("late", fake, read_only=False, durability="journal")
    ground.remote("clock", other)
    ground.up()
    poll(lambda: all(mount["health"] == "ok" for mount in ground.status()), "not all well at the beginning", 15)
    poll(lambda: all("StoreReachable" in types(mount) for mount in ground.status()), "no store was looked at")

    other_clock(ground, other)
    store_faults(ground, fake)
    credential_faults(ground, sas, unread)
    failing_requests(ground, fake)
    mount_faults(ground, small_disk)
    assert set(alarms(world)) - {REPLACED} == EVERY_FAULT, "not even for a moment does anything else turn"
    assert world.cli("check", "well").returncode == 0
    assert world.cli("down", "--discard-dirty", "--lazy").returncode == 0


def test_every_reason_is_brought_about_with_something_real() -> None:
    """By a daemon here; `Dead` and the next with the kernel's own answers; what nobody serves any more by `check`."""
    elsewhere = {"Dead", "AnswersWithError", "Unmounted", "StoreGone"}
    assert {reason for _, reason in EVERY_FAULT} | elsewhere == {reason for kind in KINDS for reason in kind.reasons}


def is_another(ground: Ground, pid: int) -> bool:
    return bool(ground.of("killed")["pid"] != pid)


def types(mount: dict[str, Any]) -> set[str]:
    return {condition["type"] for condition in mount["conditions"]}


def asks(container: str) -> Callable[[Any], bool]:
    return lambda asked: bool(asked.path.split("/")[2] == container)


def other_clock(ground: Ground, other: FakeBlobService) -> None:
    other.clock_offset_s = 400.0
    ground.turns("clock", "ClockOff", "store")
    other.clock_offset_s = 0.0
    ground.recovers("clock")


def store_faults(ground: Ground, fake: FakeBlobService) -> None:
    fake.fail("silence", 10**6, when=asks("silent"))
    ground.turns("silent", "StoreSilent", "store")
    assert ground.of("silent")["state"] == "degraded" and ground.of("silent")["last_error"]["code"] == "network"
    done = ground.world.cli("check", "silent", "well", "-o", "jsonl")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 7 and {line["name"] for line in lines} == {"silent", "well"}
    fake.heal()
    ground.recovers("silent")

    fake.fail("status", 10**6, when=asks("revoked"), status=403, code="AuthenticationFailed")
    ground.turns("revoked", "AccessRefused", "store")
    fake.heal()
    ground.recovers("revoked")

    fake.fail("status", 10**6, when=asks("busy"), status=503, code="ServerBusy")
    ground.turns("busy", "StoreTrouble", "store")
    fake.heal()
    ground.recovers("busy")


def credential_faults(ground: Ground, sas: str, unread: str) -> None:
    ground.sas(sas, timedelta(hours=2))
    ground.turns("expiring", "CredentialEndsSoon", "store")
    assert ground.of("expiring")["state"] == "mounted", "it is a warning"
    ground.sas(sas, timedelta(hours=-2))
    ground.turns("expiring", "CredentialEnded", "store")
    ground.sas(sas, timedelta(days=30))
    ground.recovers("expiring")

    os.chmod(unread, 0o644)
    ground.turns("unread", "CredentialUnreadable", "store")
    os.chmod(unread, 0o600)
    ground.recovers("unread")


def failing_requests(ground: Ground, fake: FakeBlobService) -> None:
    fake.fail("status", 10**6, when=lambda asked: asks("late")(asked) and asked.method == "PUT", status=500)
    sh(f"echo precious > {ground.target('late')}/new", timeout_s=20)
    ground.turns("late", "UploadsLate", "mount")
    fake.heal()
    ground.recovers("late")

    refused = {"status": 403, "code": "AuthorizationPermissionMismatch"}
    fake.fail("status", 10**6, when=lambda asked: asks("late")(asked) and asked.method == "PUT", **refused)
    sh(f"echo refused > {ground.target('late')}/another || true", timeout_s=20)
    ground.turns("late", "WritingRefused", "mount")
    fake.heal()
    ground.recovers("late")

    reads = asks("failing")
    fake.fail(
        "status", 10**6, when=lambda asked: reads(asked) and not asked.is_list, status=403, code="AuthorizationFailure"
    )
    sh(f"for i in $(seq 40); do cat {ground.target('failing')}/file 2> /dev/null || true; done", timeout_s=20)
    ground.turns("failing", "ManyErrors", "mount")
    fake.heal()
    ground.recovers("failing")


def mount_faults(ground: Ground, small_disk: str) -> None:
    ballast = Path(small_disk, "ballast")
    ballast.write_bytes(bytes(14 << 20))
    ground.turns("full", "DiskFull", "mount")
    assert ground.of("full")["state"] == "mounted", "it is a warning"
    ballast.unlink()
    ground.recovers("full")

    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", ground.target("hidden")], check=True, timeout=10)
    ground.turns("hidden", "Hidden", "at once")
    assert "tmpfs" in ground.of("hidden")["last_error"]["message"]
    subprocess.run(["umount", ground.target("hidden")], check=True, timeout=10)
    ground.recovers("hidden")

    pid = ground.of("stopped")["pid"]
    os.kill(pid, signal.SIGSTOP)
    ground.turns("stopped", "Silent", "mount")
    poll(lambda: ground.of("stopped")["pid"] not in (pid, None), "it is not replaced", 15)
    ground.recovers("stopped")

    for _ in range(3):  # the third time it is given a pause of a second before it comes back
        pid = poll(lambda: ground.of("killed")["pid"], "it does not come back")
        os.kill(pid, signal.SIGKILL)
        poll(partial(is_another, ground, pid), "it lives")
    ground.turns("killed", "ProcessEnded", "at once")
    ground.recovers("killed")


def test_the_same_for_blobfuse2(driver: Driver, account: Account, proxy: Proxy) -> None:
    account.container("data").put("a.txt", b"hello")
    account.go_through(proxy)
    account.configure(engine="blobfuse2", read_only=False)
    with open(account.world.config, "a") as file:
        file.write(yaml.safe_dump({"health": TIMES}))
    account.up()
    one = One(account)
    one.turns(None, "at once")

    done = account.world.cli("check", "data", "--rw", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line["type"]: line["status"] for line in json.loads(done.stdout)}
    assert found.pop("Writable") == "True" and found.pop("ErrorsRare") == found.pop("UploadsOnTime") == "Unknown"
    assert set(found.values()) == {"True"} and len(found) == 8
    assert [item.name for page in account.opened["data"].list() for item in page.objects] == ["a.txt"]

    proxy.refuses = lambda method, path: True
    one.turns("AccessRefused", "store")
    proxy.refuses = lambda method, path: False
    one.turns(None, "store")

    proxy.holds = lambda method, path: True
    one.turns("StoreSilent", "store")
    proxy.release()
    one.turns(None, "store")

    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", account.target("data")], check=True, timeout=10)
    one.turns("Hidden", "at once")
    subprocess.run(["umount", account.target("data")], check=True, timeout=10)
    one.turns(None, "at once")

    one.signal(signal.SIGSTOP)
    one.turns("Silent", "mount")
    with contextlib.suppress(ProcessLookupError):
        one.signal(signal.SIGCONT)
    one.turns(None, "a successor")

    one.signal(signal.SIGKILL)
    one.turns("ProcessEnded", "at once")
    one.turns(None, "a successor")
    wanted = {"AccessRefused", "StoreSilent", "Hidden", "Silent", "ProcessEnded"}
    assert {reason for _, reason in alarms(account.world)} == wanted, "not even for a moment does anything else turn"
    account.down()


class One:
    """The one mount of an account."""

    def __init__(self, account: Account) -> None:
        self.world = account.world

    def signal(self, number: int) -> None:
        """Send it to the process that serves."""
        os.kill(status_of(self.world)[0]["pid"], number)

    def turns(self, reason: str | None, within: str) -> None:
        """Wait until this is wrong, and nothing else (None: nothing is wrong), for as long as it may take."""
        wanted, begun = {reason} - {None}, time.monotonic()
        poll(lambda: reasons(status_of(self.world)[0], "False") == wanted, f"not {wanted} in time", 15)
        assert time.monotonic() - begun < WITHIN_S[within], f"{reason}: later than it says"


def test_a_dead_mount_is_told_from_one_that_answers_with_an_error(mountpoint: str) -> None:
    fuse_fd = open_and_mount(mountpoint, source="t", read_only=True, allow_other=True, default_permissions=True)
    os.close(fuse_fd)

    async def reasons_of(*paths: str) -> list[str]:
        prober = Prober()
        try:
            return [judge_answer(await prober.ask("attributes", path, 10), 10, None).reason for path in paths]
        finally:
            prober.close()

    dead, wrong, well = asyncio.run(reasons_of(mountpoint, f"{os.path.dirname(mountpoint)}/nothing", "/"))
    assert (dead, wrong, well) == ("Dead", "AnswersWithError", "Answered")


def test_check_of_what_is_not_there(world: World) -> None:
    assert world.cli("check").returncode == 4, "no daemon"
    ground = Ground(world)
    ground.local("up")
    ground.local("down")
    ground.up("up")
    assert world.cli("check").returncode == 0, "what nobody wants is not asked about"
    done = world.cli("check", "up", "down", "--rw", "-o", "jsonl")
    found = {(line["name"], line["reason"]) for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 7 and ("down", "Unmounted") in found
    assert ("up", "ReadOnly") in found, "nobody asked to write there"
    assert world.cli("check", "nope").returncode == 3
    shutil.rmtree(f"{world.root}/up")
    done = world.cli("check", "up")
    assert done.returncode == 1 and "StoreGone" in done.stdout
    os.kill(int(Path(world.runtime_dir, "daemon.lock").read_text()), signal.SIGKILL)
    assert world.cli("up", "up").returncode == 0
    poll(lambda: "StoreGone" in ground.wrong()["up"], "the next daemon does not look")
    assert world.cli("down").returncode == 0
