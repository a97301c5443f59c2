"""The keeper of caches with mounts of memory: who is asked what and when, and what goes from caches nobody uses."""

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from amlmount.cache import make_cache_directory
from amlmount.config.models import CacheConfig
from amlmount.config.spec import MountSpec
from amlmount.engines.base import Running
from amlmount.errors import AmlmountError
from amlmount.states import MountStatus
from amlmount.supervisor import CacheKeeper, RefreshTimer, Supervisor
from amlmount.supervisor.caching import FEW_REQUESTS
from fake_engine import spec_named

MB = 10**6


@dataclass
class Mounts:
    """What the keeper needs of a supervisor. `used` in bytes, None for a mount that answers no questions."""

    folder: Path
    used: dict[str, int | None] = field(default_factory=dict)
    log: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    refresh_s: dict[str, float] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    estates: dict[str, int] = field(default_factory=dict)

    def running(self) -> list[Running]:
        """Each mount that is in `read` leaves to be seen how many requests it has read."""
        return [self._running(name, read) for name, read in self.read.items()]

    def _running(self, name: str, read: int) -> Running:
        path = self.folder / f"{name}.estate"
        path.write_bytes(bytes(16) + read.to_bytes(8, sys.byteorder))
        self.estates.setdefault(name, os.open(path, os.O_RDONLY))
        spec = spec_named(name)
        return Running(spec, "python", 7, 1, -1, 1, asyncio.Future(), estate_fd=self.estates[name])

    def mounted(self) -> list[MountSpec]:
        return [
            spec_named(name).model_copy(
                update={"cache_dir": str(self.folder / name), "refresh_interval_s": self.refresh_s.get(name)}
            )
            for name in self.used
        ]

    async def ask(self, name: str, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        if self.used.get(name) is None:
            raise AmlmountError("answers no questions")
        self.log.append((name, what, how))
        return {"used_bytes": self.used[name], "added": 0, "removed": 0, "changed": 0}

    def limits(self) -> dict[str, int]:
        return {name: how["limit_bytes"] for name, _, how in self.log if "limit_bytes" in how}

    def add(self, name: str, used_bytes: int | None, on_disk_bytes: int = 0) -> Path:
        self.used[name] = used_bytes
        return self.idle(name, on_disk_bytes)

    def idle(self, name: str, on_disk_bytes: int) -> Path:
        path = self.folder / name
        make_cache_directory(str(path), spec_named(name))
        (path / "packs").mkdir()
        for number in range(on_disk_bytes // MB):
            for ending in ("pack", "index"):
                (path / "packs" / f"{number:06}.{ending}").write_bytes(os.urandom(MB) if ending == "pack" else b"x")
        return path


def status(name: str) -> MountStatus:
    return MountStatus(name, "/t", "s", True, "standard")


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    (tmp_path / "root").mkdir()
    return Mounts(tmp_path / "root" / "daemon")


def play(mounts: Mounts, scenario: Callable[[CacheKeeper], Any], *, max_size: str = "100MB") -> None:
    async def whole() -> None:
        config = CacheConfig.model_validate({"max_size": max_size, "keep_free": 0})
        keeper = CacheKeeper(cast(Supervisor, mounts), lambda: config, every_s=0.05)
        async with asyncio.timeout(10):
            await scenario(keeper)
        keeper.close()
        await asyncio.sleep(0)

    asyncio.run(whole())


async def until(what: Callable[[], object]) -> None:
    while not what():
        await asyncio.sleep(0.01)


def test_each_gets_its_part_and_is_told_once(mounts: Mounts) -> None:
    mounts.add("a", 10 * MB)
    mounts.add("b", 20 * MB)

    async def scenario(keeper: CacheKeeper) -> None:
        keeper.on_change(status("a"))
        await until(lambda: len([None for name, _, how in mounts.log if name == "a" and not how]) > 4)

    play(mounts, scenario)
    assert mounts.limits() == {"a": 50 * MB, "b": 50 * MB}
    assert len([None for _, _, how in mounts.log if how]) == 2


def test_one_that_nobody_uses_is_asked_no_more_until_somebody_does(mounts: Mounts) -> None:
    mounts.add("idle", 10 * MB)
    mounts.add("busy", 20 * MB)
    mounts.read |= {"idle": 5, "busy": 5}

    def asked(name: str) -> int:
        return len([None for asked, _, how in mounts.log if asked == name and not how])

    async def scenario(keeper: CacheKeeper) -> None:
        keeper.on_change(status("idle"))
        while asked("busy") < 6:
            mounts.read["busy"] += FEW_REQUESTS
            await asyncio.sleep(0.02)
        assert asked("idle") == 2, "twice the same, and nobody has read since"
        mounts.read["idle"] += FEW_REQUESTS - 1
        before = asked("busy")
        while asked("busy") < before + 2:
            mounts.read["busy"] += FEW_REQUESTS
            await asyncio.sleep(0.02)
        assert asked("idle") == 2
        mounts.read["idle"] += 1
        mounts.used["idle"] = 11 * MB
        await until(lambda: keeper.used_bytes["idle"] == 11 * MB and asked("idle") >= 3)

    play(mounts, scenario)
    for fd in mounts.estates.values():
        os.close(fd)


def test_one_that_nobody_uses_is_told_when_it_has_to_shrink(mounts: Mounts) -> None:
    mounts.add("idle", 40 * MB)
    mounts.read |= {"idle": 5}

    async def scenario(keeper: CacheKeeper) -> None:
        keeper.on_change(status("idle"))
        await until(lambda: len(mounts.log) >= 3)
        mounts.add("new", 60 * MB)
        mounts.add("other", 60 * MB)
        await until(lambda: mounts.limits()["idle"] < 40 * MB)

    play(mounts, scenario)
    for fd in mounts.estates.values():
        os.close(fd)


def test_a_mount_that_answers_nothing_keeps_what_it_has(mounts: Mounts) -> None:
    mounts.add("a", 1 * MB)
    mounts.add("blobfuse2", None, on_disk_bytes=30 * MB)

    async def scenario(keeper: CacheKeeper) -> None:
        keeper.on_change(status("a"))
        await until(mounts.limits)

    play(mounts, scenario)
    assert 65 * MB < mounts.limits()["a"] < 70 * MB


def test_what_is_not_mounted_gives_way(mounts: Mounts) -> None:
    mounts.add("a", 5 * MB)
    idle = mounts.idle("idle", 10 * MB)

    async def scenario(keeper: CacheKeeper) -> None:
        keeper.on_change(status("a"))
        await until(lambda: not list((idle / "packs").iterdir()))

    play(mounts, scenario, max_size="8MB")


def test_nothing_is_asked_while_nothing_is_up(mounts: Mounts) -> None:
    idle = mounts.idle("idle", 3 * MB)

    async def scenario(keeper: CacheKeeper) -> None:
        keeper.on_change(status("idle"))
        keeper.share_out_soon()
        await asyncio.sleep(0.2)
        assert len(asyncio.all_tasks()) == 1

    play(mounts, scenario, max_size="1MB")
    assert mounts.log == [] and len(list((idle / "packs").iterdir())) == 6


def test_the_refresh_timer_asks_only_who_wants_it(mounts: Mounts) -> None:
    mounts.add("often", 0)
    mounts.add("never", 0)
    mounts.refresh_s = {"often": 0.05}

    async def scenario(keeper: CacheKeeper) -> None:
        timer = RefreshTimer(cast(Supervisor, mounts))
        timer.on_change(status("often"))
        await until(lambda: len(mounts.log) >= 3)
        mounts.used.pop("often")
        timer.on_change(status("often"))
        asked = len(mounts.log)
        await asyncio.sleep(0.2)
        assert len(mounts.log) == asked
        timer.close()

    play(mounts, scenario)
    assert {(name, what) for name, what, _ in mounts.log} == {("often", "refresh")}
