"""Commands that are given the name of an account: they mean each of its mounts, and one that fails stops no other."""

import json
import os
from collections.abc import Iterator

import pytest

from daemons import poll
from fakeblob import FakeBlobService
from world import World


@pytest.fixture
def service() -> Iterator[FakeBlobService]:
    fake = FakeBlobService()
    for container in ("aaa", "data", "more"):
        fake.containers[container] = {}
        fake.put(container, "d/file", b"x" * 5000)
    yield fake
    fake.close()


def configure(world: World, service: FakeBlobService, options: str) -> None:
    world.write_config(
        f"stores: {{account: {json.dumps(service.definition(None))}}}\n"
        f"mounts: {{all: {{target: {world.root}/mnt, source: {{store: account, containers: {{}}}}, {options}}}}}\n"
        "cache: {keep_free: 1MiB}\n"
    )


def test_a_container_that_cannot_be_read_is_told_and_the_others_are_warmed_pinned_and_cleared(
    world: World, service: FakeBlobService
) -> None:
    service.fail("status", 1000, when=lambda asked: "/aaa" in asked.path, status=403, code="AuthorizationFailure")
    configure(world, service, "engine: python")
    assert world.cli("up").returncode == 7
    warmed = world.cli("cache", "warm", "all")
    assert warmed.returncode == 7 and "cannot warm 'all/aaa'" in warmed.stderr
    assert "all/data: 1 file read" in warmed.stderr and "all/more: 1 file read" in warmed.stderr

    service.put("data", "only/here", b"y" * 100)
    assert world.cli("refresh", "all/data").returncode == 0
    assert world.cli("cache", "warm", "all/data").returncode == 0
    done = world.cli("cache", "pin", "all", "only/**", "-o", "json")
    assert done.returncode == 7 and "all/aaa" in done.stderr
    assert {one["name"]: one["files"] for one in json.loads(done.stdout)} == {"all/data": 1}, done.stderr
    unmatched = world.cli("cache", "pin", "all/data", "nowhere/**")
    assert unmatched.returncode == 2 and "nowhere/**" in unmatched.stderr

    cleared = world.cli("cache", "clear", "all", "--dry-run")
    assert cleared.returncode == 0 and "all/data: would clear" in cleared.stderr and "all/more" in cleared.stderr
    assert world.cli("down").returncode == 0
    assert {cache["state"] for cache in world.cli_json("cache", "ls")} == {"kept"}
    assert "nothing to remove" in world.cli("cache", "prune").stderr
    assert world.cli("cache", "clear", "all/more").returncode == 0
    assert {cache["name"] for cache in world.cli_json("cache", "ls")} == {"all/aaa", "all/data"}
    assert world.cli("cache", "clear", "all").returncode == 0
    assert world.cli("cache", "clear", "nothing").returncode == 3


def test_an_account_is_flushed_container_by_container(world: World, service: FakeBlobService) -> None:
    configure(world, service, "engine: python, read_only: false")
    done = world.cli("up", "--timeout", "10s")
    assert done.returncode == 0, done.stderr
    for container in ("data", "more"):
        with open(f"{world.root}/mnt/{container}/new", "wb") as file:
            file.write(b"written")
    done = world.cli("flush", "all", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert [(one["name"], one["is_done"]) for one in json.loads(done.stdout)] == [
        ("all/aaa", True),
        ("all/data", True),
        ("all/more", True),
    ]
    assert all("new" in service.containers[container] for container in ("data", "more"))
    world.cli("down")


def test_a_path_that_is_nowhere_is_an_error_that_names_it(world: World, service: FakeBlobService) -> None:
    configure(world, service, "engine: python")
    assert world.cli("up").returncode == 0
    for path in ("data/nosuch-subfolder", f"{world.root}/mnt/data/d/nosuch", "data/d/file/below"):
        done = world.cli("refresh", "all", path)
        name = path.removeprefix(f"{world.root}/mnt/").removeprefix("data/")
        assert done.returncode == 3 and f"cannot refresh '{name}'" in done.stderr, done.stderr
    assert os.listdir(f"{world.root}/mnt/data/d") == ["file"]
    del service.containers["data"]["d/file"]
    gone = world.cli("refresh", "all", "data/d/file")
    assert (gone.returncode, gone.stderr) == (0, "all/data: 1 removed\n"), "it is news, not a mistake"
    poll(lambda: world.cli("refresh", "all", "data/d/file").returncode == 3, "still there")
    world.cli("down")
