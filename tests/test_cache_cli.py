"""Caches of real mounts: kept over restarts, within their room, warmed, pinned, cleared, gone when they shall be."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from daemons import Pair, make_pair, poll
from fakeblob import FakeBlobService
from world import World

CONFIG = """\
stores:
  blobs: {definition}
mounts:
  blobs: {{target: {root}/mnt/blobs, source: blobs, engine: python{more}}}
cache: {cache}
"""
FILES = {f"d{number % 3}/f{number:02}": bytes([number]) * 5_000 for number in range(30)}
LARGE = {f"large{number}": bytes([number]) * 6_000_000 for number in range(5)}


@pytest.fixture
def service() -> Iterator[FakeBlobService]:
    fake = FakeBlobService()
    for name, data in (FILES | LARGE).items():
        fake.put("data", name, data)
    yield fake
    fake.close()


class Box:
    """One world with one mount of the blob service."""

    def __init__(self, world: World, service: FakeBlobService) -> None:
        self.world = world
        self.service = service
        self.target = f"{world.root}/mnt/blobs"

    def configure(self, more: str = "", **cache: str) -> None:
        definition = json.dumps(self.service.definition())
        room = json.dumps({"keep_free": "1MiB"} | cache)
        self.world.write_config(CONFIG.format(definition=definition, root=self.world.root, more=more, cache=room))

    def up(self, more: str = "", **cache: str) -> None:
        self.configure(more, **cache)
        done = self.world.cli("up")
        assert done.returncode == 0, done.stderr

    def down(self) -> None:
        assert self.world.cli("down").returncode == 0
        poll(lambda: not self.world.processes(), "the daemon stays")

    def read(self, name: str) -> bytes:
        return Path(self.target, name).read_bytes()

    def gets(self) -> list[str]:
        """The blobs that were asked for so far."""
        return [asked.path.rpartition("data/")[2] for asked in self.service.asked if not asked.is_list]

    def drop_pages(self) -> None:
        """Have the kernel forget contents, by a mount that is new."""
        self.down()
        self.up()

    def caches(self) -> list[dict[str, Any]]:
        return list(self.world.cli_json("cache", "ls"))

    def cache(self) -> dict[str, Any]:
        [found] = self.caches()
        return dict(found)


@pytest.fixture
def box(world: World, service: FakeBlobService) -> Box:
    return Box(world, service)


def modes_below(path: str) -> set[int]:
    found = [path]
    for folder, folders, files in os.walk(path):
        found += [os.path.join(folder, name) for name in [*folders, *files]]
    return {stat.S_IMODE(os.lstat(name).st_mode) for name in found}


def test_a_cache_survives_a_restart_and_nobody_else_can_look_in(box: Box) -> None:
    box.up()
    assert all(box.read(name) == data for name, data in (FILES | LARGE).items())
    cache = box.cache()
    assert cache["state"] == "used" and cache["size_bytes"] >= 30_000_000 and cache["name"] == "blobs"
    assert modes_below(box.world.cache_root) == {0o700, 0o600}
    box.drop_pages()
    before = len(box.gets())
    assert all(box.read(name) == data for name, data in (FILES | LARGE).items())
    assert box.gets()[before:] == []
    box.down()
    assert box.cache() | {"state": "used"} == cache | {"size_bytes": box.cache()["size_bytes"]} | {
        "last_used_s": box.cache()["last_used_s"]
    }
    assert box.cache()["state"] == "kept"


def test_a_changed_source_gets_another_and_the_old_one_is_pruned(box: Box) -> None:
    box.up()
    box.read("large0")
    box.down()
    box.service.containers["other"] = {}
    box.service.put("other", "large0", b"other")
    definition = json.dumps(box.service.definition("other"))
    box.world.write_config(CONFIG.format(definition=definition, root=box.world.root, more="", cache="{}"))
    assert box.world.cli("up").returncode == 0
    assert box.read("large0") == b"other"
    assert sorted(cache["state"] for cache in box.caches()) == ["left", "used"]
    would = box.world.cli("cache", "prune", "--dry-run")
    assert would.returncode == 0 and "blobs: would clear " in would.stderr and len(box.caches()) == 2
    done = box.world.cli("cache", "prune")
    assert done.returncode == 0 and "blobs: cleared " in done.stderr
    assert [cache["state"] for cache in box.caches()] == ["used"]
    assert box.world.cli("cache", "prune").stderr == "nothing to remove\n"


@pytest.mark.root
def test_a_cache_that_moves_is_left_with_the_last_reader(box: Box) -> None:
    """`cache.root` is another place: the mount is replaced under its readers, and what lies at the old one goes."""
    old, new = (f"{box.world.root}/{name}" for name in ("old", "new"))
    box.up(root=old)
    with open(f"{box.target}/large0", "rb", buffering=0) as reader:
        first = reader.read(1_000_000)
        before = box.cache()
        assert before["path"].startswith(old) and before["size_bytes"] > 0
        box.configure(root=new)
        assert box.world.cli("reload").returncode == 0
        assert box.read("large1") == LARGE["large1"]
        held = {cache["path"]: cache["state"] for cache in box.caches()}
        assert held.pop(before["path"]) == "used", "somebody still reads from it"
        assert [(path.startswith(new), state) for path, state in held.items()] == [(True, "used")]
        assert first + reader.readall() == LARGE["large0"]
    poll(lambda: not os.path.exists(before["path"]), "the old cache stays", timeout_s=25)
    assert box.cache()["path"].startswith(new)
    assert box.world.cli("cache", "pin", "blobs", "large1").returncode == 0
    pinned = box.cache()["path"]
    box.configure(root=old)
    assert box.world.cli("reload").returncode == 0
    poll(lambda: sorted(cache["state"] for cache in box.caches()) == ["kept", "used"], "pinned: left", timeout_s=25)
    assert os.path.exists(pinned)
    box.down()


def test_the_room_is_kept_and_reads_go_on(box: Box) -> None:
    """12 MB of room for 30 MB that are read twice."""
    box.up(max_size="12MB")
    for _ in range(2):
        assert all(box.read(name) == data for name, data in LARGE.items())
    assert 5_000_000 <= box.cache()["size_bytes"] <= 12_500_000
    [root] = box.world.cli_json("cache", "du")
    assert root["allowed_bytes"] == 12_000_000 and root["used_bytes"] <= 12_500_000


def test_less_room_is_kept_at_once_by_who_is_up_and_who_is_not(box: Box) -> None:
    box.up()
    for name in LARGE:
        box.read(name)
    assert box.cache()["size_bytes"] >= 30_000_000
    box.configure(max_size="13MB")
    assert box.world.cli("up").returncode == 0  # reads the configuration again
    poll(lambda: box.cache()["size_bytes"] <= 13_000_000, "it stays larger than it may be", timeout_s=25)
    assert all(box.read(name) == data for name, data in LARGE.items())


def test_what_is_pinned_stays(box: Box) -> None:
    box.up(max_size="13MB")
    box.read("large0")
    assert box.world.cli_json("cache", "pin", "blobs", "large0") == [
        {"schema_version": 1, "name": "blobs", "files": 1, "not_cached": 0}
    ]
    for name in LARGE:
        box.read(name)
    box.down()
    box.up(max_size="13MB")
    before = len(box.gets())
    assert box.read("large0") == LARGE["large0"] and box.gets()[before:] == []
    assert box.world.cli("cache", "unpin", "blobs", "large*").returncode == 0
    done = box.world.cli("cache", "pin", "blobs", "nothing*")
    assert done.returncode == 2 and "cannot find a file that matches 'nothing*'" in done.stderr


def test_clear_while_it_is_up_and_when_it_is_not(box: Box) -> None:
    box.up()
    assert all(box.read(name) == data for name, data in (FILES | LARGE).items())
    with open(f"{box.target}/large1", "rb", buffering=0) as reader:
        assert reader.read(10) == LARGE["large1"][:10]
        assert box.world.cli("cache", "clear", "blobs", "--dry-run").returncode == 0
        assert box.cache()["size_bytes"] >= 30_000_000
        assert box.world.cli("cache", "clear", "blobs").returncode == 0
        assert box.cache()["size_bytes"] < 7_000_000
        assert reader.read(5_990_000) == LARGE["large1"][10:5_990_010]
    assert box.read("d0/f00") == FILES["d0/f00"]
    box.down()
    assert box.world.cli("cache", "clear").returncode == 0
    assert box.caches() == []
    done = box.world.cli("cache", "clear", "nope")
    assert done.returncode == 3 and "mounts with a cache: blobs" in done.stderr


def test_warm_reads_what_is_not_there_and_nothing_twice(box: Box) -> None:
    box.up()
    [first] = box.world.cli_json("cache", "warm", "blobs", "d1/*")
    assert (first["read"], first["skipped"], first["failed"]) == (10, 0, 0)
    done = box.world.cli("cache", "warm", "blobs")
    assert done.returncode == 0 and done.stderr.splitlines()[-1].startswith("blobs: ")
    before = len(box.gets())
    [again] = box.world.cli_json("cache", "warm", "blobs")
    assert (again["read"], again["skipped"], again["bytes"]) == (0, 35, 0) and box.gets()[before:] == []
    box.drop_pages()
    before = len(box.gets())
    assert all(box.read(name) == data for name, data in (FILES | LARGE).items())
    assert box.gets()[before:] == []


def test_warm_only_what_is_young(box: Box) -> None:
    blobs = box.service.containers["data"]
    for name in ("d0/f00", "d0/f03"):
        blobs[name] = replace(blobs[name], modified=formatdate(time.time() - 30 * 86400, usegmt=True))
    box.up()
    assert box.world.cli_json("cache", "warm", "blobs", "d0/*", "--since", "7d")[0]["read"] == 8
    assert box.world.cli_json("cache", "warm", "blobs", "d0/*", "--since", "31d")[0]["skipped"] >= 8


def test_warm_says_what_could_not_be_read(box: Box) -> None:
    box.up()
    box.service.fail("status", 1000, when=lambda asked: asked.path.endswith("d2/f02"), status=403)
    done = box.world.cli("cache", "warm", "blobs", "d2/*", "-o", "json")
    assert done.returncode == 7 and "cannot read 1 of 10 files" in done.stderr and "d2/f02" in done.stderr
    assert json.loads(done.stdout)[0]["failed"] == 1


def test_warm_in_a_pipe_and_as_json_lines(box: Box) -> None:
    box.up()
    lines = [json.loads(line) for line in box.world.cli("cache", "warm", "blobs", "-o", "jsonl").stdout.splitlines()]
    assert lines[-2]["progress"]["files"] == 35 and lines[-1]["read"] == 35
    assert "\r" not in box.world.cli("cache", "warm", "blobs").stderr


def test_warm_interrupted_leaves_nothing_and_goes_on_later(box: Box) -> None:
    box.up()
    box.service.fail("silence", 1000, when=lambda asked: asked.path.endswith("large3"))
    running = Pair(box.world).start("cache", "warm", "blobs", "large*", "--jobs", "1", "-o", "jsonl")
    assert running.stdout is not None
    while json.loads(running.stdout.readline())["progress"]["files"] < 3:
        pass
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130 and "the same command goes on from there" in err and "Traceback" not in err
    poll(lambda: not [p for p, _ in box.world.processes() if b"warm_child" in cmdline(p)], "the child stays")
    box.service.ended.set()


def test_warm_through_a_mount_that_hangs_can_be_left(box: Box) -> None:
    box.up()
    box.service.fail("silence", 1000, when=lambda asked: asked.is_list)
    running = Pair(box.world).start("cache", "warm", "blobs")
    poll(lambda: [p for p, _ in box.world.processes() if b"warm_child" in cmdline(p)], "no child comes")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=20)
    assert running.returncode == 130
    box.service.ended.set()


def test_warm_with_an_engine_that_cannot_say_what_it_has(world: World) -> None:
    """As with blobfuse2: everything is read."""
    make_pair(world)
    assert world.cli("up", "red").returncode == 0
    [done] = world.cli_json("cache", "warm", "red")
    assert (done["read"], done["bytes"], done["skipped"]) == (1, 3, 0)
    assert world.cli("cache", "warm", "blue").returncode == 1


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@pytest.mark.parametrize("args", [["warm", "blobs"], ["pin", "blobs", "*"]])
def test_without_a_daemon_and_without_a_mount(box: Box, args: list[str]) -> None:
    box.configure()
    assert box.world.cli("cache", *args).returncode == 4
    assert box.caches() == []


def test_a_root_that_will_not_do_is_passed_over_and_ps_says_so(box: Box) -> None:
    Path(box.world.root, "file").write_text("")
    box.up(root=f"{box.world.root}/file/c")
    [mount] = box.world.cli_json("ps")
    assert mount["cache_note"].startswith(f"'{box.world.root}/file/c' cannot be written (")
    assert f"cache: '{box.world.root}/file/c' cannot be written" in box.world.cli("ps").stdout
    assert box.read("d0/f00") == FILES["d0/f00"] and box.cache()["path"].startswith(box.world.cache_root)


def test_a_mount_of_a_program_leaves_no_cache(box: Box) -> None:
    box.configure()
    code = """
import amlmount, os, sys
with amlmount.mount("blobs", config=os.environ["AMLMOUNT_CONFIG"]) as mount:
    assert open(f"{mount.mount_point}/large0", "rb").read() == bytes(6_000_000)
    print(sum(len(files) for _, _, files in os.walk(os.environ["AMLMOUNT_CACHE_ROOT"])), flush=True)
    sys.stdin.read(1)
"""
    for end in ("politely", "by SIGKILL"):
        pipe = subprocess.PIPE
        env = box.world.env
        running = subprocess.Popen([sys.executable, "-c", code], env=env, stdin=pipe, stdout=pipe, text=True)
        assert running.stdout is not None
        assert int(running.stdout.readline()) >= 3, end
        assert modes_below(box.world.cache_root) == {0o700, 0o600}
        assert [cache["state"] for cache in box.caches()] == ["used"] and "(session)" in box.cache()["name"]
        if end == "by SIGKILL":
            running.kill()
        running.communicate(timeout=20)
        poll(lambda: box.caches() == [], f"a cache is left after an end {end}")
