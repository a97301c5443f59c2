"""What happens when nothing is said: mounts of which the configuration says only what and where, seen from outside."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from amlmount.mounts import MountEntry, find_mount
from daemons import Pair, make_pair, poll
from fakeblob import FakeBlobService
from world import World

SOMEBODY = 12345
LIST_EVERYTHING = (
    "import os, sys; print(sum(os.stat(f'{d}/{f}').st_size for d, _, fs in os.walk(sys.argv[1]) for f in fs))"
)


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


def up(pair: Pair, **env: str) -> MountEntry:
    assert pair.world.cli("up", "red", env=env).returncode == 0
    entry = find_mount(pair.target("red"))
    assert entry is not None
    return entry


def facts(path: str) -> tuple[str, int, int]:
    found = os.stat(path)
    return stat.filemode(found.st_mode), found.st_uid, found.st_gid


def test_it_is_read_only_and_has_neither_setuid_files_nor_devices(pair: Pair) -> None:
    entry = up(pair)
    assert {"ro", "nosuid", "nodev"} <= set(entry.options)
    with pytest.raises(OSError) as caught:
        os.mkdir(f"{pair.target('red')}/new")
    assert caught.value.errno == errno.EROFS
    assert [facts(f"{pair.target('red')}{name}")[0] for name in ("", "/colour")] == ["dr-xr-xr-x", "-r--r--r--"]
    assert pair.mount("red")["read_only"] is True


def test_its_profile_is_standard_and_its_engine_chosen(pair: Pair) -> None:
    up(pair)
    assert (pair.mount("red")["profile"], pair.mount("red")["engine"]) == ("standard", "python")
    assert pair.mount("red")["engine_why"]


@pytest.mark.root
def test_a_mount_of_the_system_is_everybodys_and_the_kernel_checks_who_may(pair: Pair) -> None:
    entry = up(pair)
    assert {"allow_other", "default_permissions"} <= set(entry.super_options)
    assert facts(f"{pair.target('red')}/colour")[1:] == (0, 0)
    done = subprocess.run(["cat", f"{pair.target('red')}/colour"], user=SOMEBODY, group=SOMEBODY, capture_output=True)
    assert done.stdout == b"red"


@pytest.mark.root
def test_a_mount_of_the_system_belongs_to_who_ran_sudo(pair: Pair) -> None:
    up(pair, SUDO_UID=str(SOMEBODY))
    assert facts(f"{pair.target('red')}/colour")[1:] == (SOMEBODY, SOMEBODY)


def test_a_mount_of_a_user_is_that_users_only(user_world: World) -> None:
    pair = make_pair(user_world)
    assert user_world.box is not None
    done = user_world.cli("up", "red")
    assert done.returncode == 0, done.stderr
    target = pair.target("red")
    table = user_world.box.run("cat", "/proc/self/mountinfo").stdout
    [line] = [line for line in table.splitlines() if f" {target} " in line]
    assert "allow_other" not in line and "default_permissions" in line and "ro,nosuid,nodev" in line
    seen = user_world.box.run("stat", "-c", "%A %u", f"{target}/colour").stdout
    assert seen == f"-r--r--r-- {user_world.box.uid}\n"
    assert user_world.cli("down").returncode == 0


@pytest.fixture
def service() -> Iterator[FakeBlobService]:
    fake = FakeBlobService()
    for number in range(20):
        fake.put("data", f"images/{number:02}.jpg", bytes(700))
    yield fake
    fake.close()


def blobs_read(service: FakeBlobService) -> set[str]:
    with service.lock:
        return {asked.path for asked in service.asked if asked.method == "GET" and asked.path.endswith(".jpg")}


def test_who_only_looks_downloads_nothing_and_who_reads_gets_the_next_ones_too(
    world: World, service: FakeBlobService
) -> None:
    definition, target = json.dumps(service.definition()), f"{world.root}/mnt/blobs"
    world.write_config(f"stores: {{blobs: {definition}}}\nmounts: {{blobs: {{target: {target}, source: blobs}}}}\n")
    done = world.cli("up")
    assert done.returncode == 0, done.stderr
    for _ in range(2):
        sizes = subprocess.run([sys.executable, "-c", LIST_EVERYTHING, target], capture_output=True, timeout=20)
        assert sizes.stdout == b"14000\n"
    os.close(os.open(f"{target}/images/05.jpg", os.O_RDONLY))  # as `file` and indexers do first
    time.sleep(0.3)  # long enough for a prefetch that should not be
    assert blobs_read(service) == set()
    with open(f"{target}/images/00.jpg", "rb") as file:
        assert file.read() == bytes(700)
    poll(lambda: len(blobs_read(service)) > 5, "nothing is prefetched")
    assert world.cli("down").returncode == 0
