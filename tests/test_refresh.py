"""`amlmount refresh`: what others changed in the store is seen at once, through mounts that would believe for minutes.

Real daemon, real workers, real mounts; the store is a folder, or a blob service of the test's own.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from daemons import Pair, make_pair, poll
from fakeblob import FakeBlobService
from world import World

AZURE = """\
stores:
  blobs: {definition}
mounts:
  blobs: {{target: {root}/mnt/blobs, source: blobs, engine: python, profile: {profile}{more}}}
"""


@pytest.fixture
def service() -> Iterator[FakeBlobService]:
    fake = FakeBlobService()
    yield fake
    fake.close()


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


def write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def up_blobs(world: World, service: FakeBlobService, profile: str, more: str = "") -> str:
    definition = json.dumps(service.definition())
    world.write_config(AZURE.format(definition=definition, root=world.root, profile=profile, more=more))
    done = world.cli("up")
    assert done.returncode == 0, done.stderr
    return f"{world.root}/mnt/blobs"


def test_added_changed_removed_and_a_name_that_was_not_there(pair: Pair) -> None:
    store, target = f"{pair.world.root}/red", pair.target("red")
    write(f"{store}/gone", "1")
    write(f"{store}/sub/x", "1")
    assert pair.world.cli("up", "red").returncode == 0
    assert read(f"{target}/gone") == "1" and read(f"{target}/colour") == "red" and read(f"{target}/sub/x") == "1"
    assert not os.path.exists(f"{target}/new")
    before = os.listdir(target), os.stat(f"{target}/colour").st_size
    os.unlink(f"{store}/gone")
    write(f"{store}/colour", "crimson")
    write(f"{store}/new", "2")
    write(f"{store}/sub/y", "3")
    assert (os.listdir(target), os.stat(f"{target}/colour").st_size) == before, "the kernel would have asked anyway"
    done = pair.world.cli("refresh", "red", "-v")
    assert (done.returncode, done.stderr) == (0, "red: 2 added, 1 removed, 1 changed\n"), done.stderr
    assert sorted(done.stdout.splitlines()) == ["+ new", "+ sub/y", "- gone", "~ colour"]
    assert sorted(os.listdir(target)) == ["colour", "new", "sub"] and sorted(os.listdir(f"{target}/sub")) == ["x", "y"]
    assert read(f"{target}/new") == "2" and read(f"{target}/colour") == "crimson"
    assert os.stat(f"{target}/colour").st_size == 7 and not os.path.exists(f"{target}/gone")
    assert pair.world.cli("refresh", "red").stderr == "red: nothing changed\n"
    assert pair.world.cli_json("refresh", "red") == [
        {"schema_version": 1, "name": "red", "added": 0, "removed": 0, "changed": 0, "names": [], "more": 0}
    ]


def test_only_a_path(pair: Pair) -> None:
    store, target = f"{pair.world.root}/red", pair.target("red")
    write(f"{store}/a/x", "1")
    write(f"{store}/b/x", "1")
    pair.world.cli("up", "red")
    assert read(f"{target}/a/x") == read(f"{target}/b/x") == "1"
    write(f"{store}/a/x", "two")
    write(f"{store}/b/x", "two")
    done = pair.world.cli("refresh", "red", f"{target}/a/", "-v")
    assert done.stdout == "~ a/x\n" and read(f"{target}/a/x") == "two"
    assert os.stat(f"{target}/b/x").st_size == 1, "its page may be gone from memory, what it was is not"
    assert pair.world.cli("refresh", "red", "b", "-v").stdout == "~ b/x\n" and read(f"{target}/b/x") == "two"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["red", "/etc"], 2, "it is not below"),
        (["red", "../blue"], 2, "it is not below"),
        (["reed"], 3, "did you mean 'red'?"),
        (["blue"], 1, "it is not mounted"),
    ],
)
def test_refusals(pair: Pair, args: list[str], code: int, says: str) -> None:
    pair.world.cli("up", "red")
    done = pair.world.cli("refresh", *args)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr


def test_without_a_daemon(pair: Pair) -> None:
    done = pair.world.cli("refresh", "red")
    assert done.returncode == 4 and "no daemon runs" in done.stderr


@pytest.mark.parametrize("profile", ["standard", "epochs"])
def test_a_blob_that_changed_and_who_has_it_open(world: World, service: FakeBlobService, profile: str) -> None:
    """An open reader gets the old bytes, or ESTALE; never a mix. `epochs` never sees an OPEN."""
    old, new = b"old " * 100_000, b"new " * 100_000
    service.put("data", "big", old)
    service.put("data", "small", b"old")
    target = up_blobs(world, service, profile)
    assert read(f"{target}/small") == "old"
    with open(f"{target}/big", "rb", buffering=0) as reader:
        assert reader.read(4096) == old[:4096]
        service.put("data", "big", new)
        service.put("data", "small", b"newer")
        assert read(f"{target}/small") == "old"
        assert world.cli("refresh", "blobs").stderr == "blobs: 2 changed\n"
        assert read(f"{target}/small") == "newer"
        with open(f"{target}/big", "rb") as file:
            assert file.read() == new
        rest = b""
        with contextlib.suppress(OSError):
            while piece := reader.read(65536):
                rest += piece
        assert rest == old[4096 : 4096 + len(rest)]


def test_a_store_that_cannot_be_asked(world: World, service: FakeBlobService) -> None:
    service.put("data", "a", b"1")
    target = up_blobs(world, service, "epochs")
    assert os.listdir(target) == ["a"]
    service.fail("status", 1000, when=lambda asked: asked.is_list, status=403)
    done = world.cli("refresh", "blobs")
    assert done.returncode == 5 and done.stderr.startswith("error: cannot ")
    assert read(f"{target}/a") == "1"


def test_on_an_interval(world: World, service: FakeBlobService) -> None:
    """A pinned mount never looks by itself; with `refresh` it does, and a mount without is not asked."""
    service.put("data", "a", b"1")
    target = up_blobs(world, service, "epochs", ", refresh: 300ms")
    assert os.listdir(target) == ["a"]
    service.put("data", "b", b"2")
    poll(lambda: sorted(os.listdir(target)) == ["a", "b"], "not refreshed by itself")
    assert world.cli("down").returncode == 0
    asked = len(service.asked)
    poll(lambda: not world.processes(), "the daemon stays")
    assert len(service.asked) == asked


def test_a_store_that_does_not_answer_in_time(world: World, service: FakeBlobService) -> None:
    service.put("data", "a", b"1")
    target = up_blobs(world, service, "standard")
    assert os.listdir(target) == ["a"]
    service.fail("silence", 1000, when=lambda asked: asked.is_list)
    done = world.cli("refresh", "blobs", "--timeout", "1s")
    assert done.returncode == 124 and "within 1 s" in done.stderr
    assert world.cli("ps").returncode == 0


def test_a_worker_that_is_killed_while_it_is_asked(world: World, service: FakeBlobService) -> None:
    service.put("data", "a", b"1")
    target = up_blobs(world, service, "standard")
    assert os.listdir(target) == ["a"]
    service.fail("silence", 1000, when=lambda asked: asked.is_list)
    pair = Pair(world)

    def listings() -> int:
        """Those of a health check, which goes on all the time, ask for one name."""
        return sum(asked.is_list and asked.query.get("maxresults") != "1" for asked in list(service.asked))

    before = listings()
    waiting = pair.start("refresh", "blobs")
    poll(lambda: listings() > before, "the store is not asked")
    [worker] = pair.workers()
    os.kill(worker, signal.SIGKILL)
    _, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 1 and "killed by SIGKILL" in err


def test_what_one_listing_finds_everybody_sees(world: World, service: FakeBlobService) -> None:
    """A name that the kernel believes for two minutes more means something else as soon as we know better."""
    service.put("data", "a", b"1")
    target = up_blobs(world, service, "standard", ", policy: {list_ttl: 100ms}")
    assert os.stat(f"{target}/a").st_size == 1
    service.put("data", "a", b"four")
    assert os.stat(f"{target}/a").st_size == 1
    time.sleep(0.2)
    assert not os.path.exists(f"{target}/no such name")  # has to be looked up, so the folder is listed again
    poll(lambda: os.stat(f"{target}/a").st_size == 4, "the kernel was not told", timeout_s=10)


def test_an_account_is_refreshed_and_warmed_container_by_container(world: World, service: FakeBlobService) -> None:
    service.containers["more"] = {}
    world.write_config(
        f"stores: {{account: {json.dumps(service.definition(None))}}}\n"
        f"mounts: {{all: {{target: {world.root}/mnt, source: {{store: account, containers: {{}}}}, engine: python}}}}\n"
    )
    assert world.cli("up").returncode == 0
    assert os.listdir(f"{world.root}/mnt/data") == []
    service.put("data", "new", b"data")
    found = world.cli_json("refresh", "all")
    assert sorted((one["name"], one["added"]) for one in found) == [("all/data", 1), ("all/more", 0)]
    for part in ("data", "data/new", f"{world.root}/mnt/data"):
        done = world.cli("refresh", "all", part)
        assert (done.returncode, done.stderr) == (0, "all/data: nothing changed\n")
    warmed = world.cli("cache", "warm", "all")
    assert "all/data: 1 file read (4 B)" in warmed.stderr and "all/more: 0 files read" in warmed.stderr
    totals = world.cli("stats", "all").stdout
    assert "all/data" in totals and "OPERATION" not in totals, "which mount's operations would these be?"


def test_a_folder_just_made_can_be_a_mount_of_its_own(world: World, service: FakeBlobService) -> None:
    definition = json.dumps(service.definition())
    mounts = {
        "whole": {"target": f"{world.root}/whole", "source": "blobs"},
        "part": {"target": f"{world.root}/part", "source": {"store": "blobs", "path": "run 1/out"}},
    }
    text = f"stores: {{blobs: {definition}}}\ndefaults: {{engine: python, read_only: false}}\n"
    world.write_config(f"{text}mounts: {json.dumps(mounts)}\n")
    assert world.cli("up", "whole").returncode == 0
    refused = world.cli("up", "part")
    assert refused.returncode == 3 and "cannot find path 'run 1/out'" in refused.stderr
    os.makedirs(f"{world.root}/whole/run 1/out")
    up = world.cli("up", "part")
    assert up.returncode == 0, up.stderr
    write(f"{world.root}/part/model", "weights")
    assert service.containers["data"]["run 1/out/model"].data == b"weights"
    assert world.cli("down").returncode == 0
