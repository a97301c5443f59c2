"""Writable mounts from outside: `up`, `flush`, `down`, a store that is down meanwhile, and the next `up`."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fakeblob import Asked, FakeBlobService
from mounting import until
from world import World

pytestmark = pytest.mark.timeout(120)


def config_of(service: FakeBlobService, world: World, durability: str) -> str:
    store = json.dumps(service.definition())
    mount = {
        "target": f"{world.root}/mnt",
        "source": "data",
        "read_only": False,
        "engine": "python",
        "profile": "checkpoint",
        "durability": durability,
        "upload_timeout": "1s",
    }
    return f"stores: {{data: {store}}}\nmounts: {{ckpt: {json.dumps(mount)}}}\n"


@pytest.fixture
def service() -> Iterator[FakeBlobService]:
    with closing(FakeBlobService()) as fake:
        yield fake


def is_write(asked: Asked) -> bool:
    return asked.method == "PUT"


def test_what_was_written_is_in_the_store_when_it_is_taken_down(world: World, service: FakeBlobService) -> None:
    world.write_config(config_of(service, world, "journal"))
    up = world.cli("up")
    assert up.returncode == 0, up.stderr
    Path(world.root, "mnt", "a").write_bytes(b"data")
    flushed = world.cli("flush", "ckpt")
    assert flushed.returncode == 0 and "everything is in the store" in flushed.stderr
    assert service.containers["data"]["a"].data == b"data"
    Path(world.root, "mnt", "b").write_bytes(b"more")
    down = world.cli("down")
    assert down.returncode == 0, down.stderr
    assert service.containers["data"]["b"].data == b"more"


def test_a_store_that_is_down_keeps_the_mount_up_and_loses_nothing(world: World, service: FakeBlobService) -> None:
    world.write_config(config_of(service, world, "journal"))
    assert world.cli("up").returncode == 0
    service.fail("status", 1 << 30, when=is_write, status=500, code="InternalError")
    Path(world.root, "mnt", "a").write_bytes(b"data")
    assert Path(world.root, "mnt", "a").read_bytes() == b"data"
    flushed = world.cli("flush", "ckpt", "--timeout", "1s")
    assert flushed.returncode == 124 and "4 bytes of 1 file are not in the store yet" in flushed.stderr
    refused = world.cli("down", "--timeout", "1s")
    assert refused.returncode == 8 and "--discard-dirty" in refused.stderr
    assert Path(world.root, "mnt", "a").read_bytes() == b"data"
    assert world.cli("down", "--discard-dirty").returncode == 0
    assert "a" not in service.containers["data"]
    service._faults.clear()
    assert world.cli("up").returncode == 0
    assert Path(world.root, "mnt", "a").read_bytes() == b"data"
    until(lambda: "a" in service.containers["data"])
    assert service.containers["data"]["a"].data == b"data"
    assert world.cli("down").returncode == 0


def test_a_worker_that_dies_is_followed_by_one_that_goes_on(world: World, service: FakeBlobService) -> None:
    world.write_config(config_of(service, world, "store"))
    assert world.cli("up").returncode == 0
    Path(world.root, "mnt", "a").write_bytes(b"data")
    [mount] = world.cli_json("ps")
    os.kill(mount["pid"], signal.SIGKILL)
    with open(f"{world.root}/mnt/a", "ab") as file:
        file.write(b" and more")
    assert service.containers["data"]["a"].data == b"data and more"
    assert world.cli("down").returncode == 0


def test_a_refused_credential_shows_at_open(world: World, service: FakeBlobService) -> None:
    service.fail("status", 1 << 30, when=is_write, status=403, code="AuthorizationPermissionMismatch")
    world.write_config(config_of(service, world, "store"))
    assert world.cli("up").returncode == 0
    with pytest.raises(PermissionError):
        Path(world.root, "mnt", "a").write_bytes(b"x")
    assert os.listdir(f"{world.root}/mnt") == []
    assert world.cli("down").returncode == 0
