"""A definition that cannot work, where there must be a gap: the old mount is still there, and who uses it goes on."""

import json
from collections.abc import Iterator

import pytest

from amlmount.fuse.negotiate import CAP_VARIABLE
from daemons import Pair, make_pair
from fakeblob import FakeBlobService
from world import World


@pytest.fixture
def service() -> Iterator[FakeBlobService]:
    fake = FakeBlobService()
    fake.put("data", "d/file", b"here")
    yield fake
    fake.close()


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


def configure(pair: Pair, service: FakeBlobService, source: str, more: str = "", container: str = "data") -> None:
    store = json.dumps(service.definition(container))
    root = pair.world.root
    pair.world.write_config(
        f"stores: {{red: {store}}}\n"
        f"mounts: {{red: {{target: {root}/mnt/red, source: {source}, engine: python{more}}}}}\n"
    )


def test_the_old_mount_stays_where_the_new_definition_cannot_work(pair: Pair, service: FakeBlobService) -> None:
    configure(pair, service, "red")
    done = pair.world.cli("up", env={CAP_VARIABLE: "34"})  # a kernel with which there must be a gap
    assert done.returncode == 0, done.stderr
    pid = pair.mount("red")["pid"]
    service.containers["refused"] = {}
    service.fail("status", 1000, when=lambda asked: "/refused" in asked.path, status=403, code="AuthorizationFailure")
    for source, container, code, says in (
        ("red", "nosuch", 3, "nosuch"),
        ("{store: red, path: not/there}", "data", 3, "not/there"),
        ("red", "refused", 5, "refused"),
    ):
        configure(pair, service, source, container=container)
        failed = pair.world.cli("reload")
        assert failed.returncode == code and says in failed.stderr, failed.stderr
        assert "cannot restart 'red'" in failed.stderr
        assert pair.mount("red")["pid"] == pid and pair.state("red") == "mounted"
        with open(f"{pair.target('red')}/d/file") as file:
            assert file.read() == "here"
    configure(pair, service, "{store: red, path: d}", ", profile: fresh")
    done = pair.world.cli("reload")
    assert done.returncode == 0, done.stderr
    assert pair.mount("red")["pid"] != pid
    with open(f"{pair.target('red')}/file") as file:
        assert file.read() == "here"
    pair.world.cli("down")
