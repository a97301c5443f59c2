"""Mounts that read nothing any more are found by one look at all of them; the others cost nothing."""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from amlmount.engines.attaching import with_unread
from amlmount.engines.base import Running, TakesOver
from amlmount.supervisor.hanging import HUNG_LOOKS, HangWatch, Watched
from fake_engine import spec_named


class Counting:
    """Counts how often it was asked, and says that everything hangs."""

    def __init__(self) -> None:
        self.asked = 0
        self.engine = cast(TakesOver, self)

    def is_hung(self, running: Running) -> bool:
        self.asked += 1
        return True


def pipe() -> tuple[int, int]:
    reads, writes = os.pipe()
    return reads, writes


def running(fuse_fd: int) -> Running:
    exited: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    return Running(spec_named(f"m{fuse_fd}"), "python", fuse_fd, 1, fuse_fd, 1, exited)


def run(story: Callable[[list[tuple[int, int]]], Any]) -> None:
    pipes = [pipe() for _ in range(3)]
    try:
        asyncio.run(story(pipes))
    finally:
        for ends in pipes:
            for fd in ends:
                os.close(fd)


def test_what_is_unread_is_seen_of_all_at_once() -> None:
    async def story(pipes: list[tuple[int, int]]) -> None:
        os.write(pipes[1][1], b"x")
        assert with_unread([reads for reads, _ in pipes] + [-1]) == {pipes[1][0]}

    run(story)


def test_only_who_has_something_unread_is_asked_about_and_is_told_of_once() -> None:
    async def story(pipes: list[tuple[int, int]]) -> None:
        watch, engines, told = HangWatch(), [Counting() for _ in pipes], list[int]()
        os.write(pipes[1][1], b"x")
        for (reads, _), engine in zip(pipes, engines, strict=True):
            one = Watched(running(reads), engine.engine, lambda: True, partial(told.append, reads))
            watch.add(one, hung_after_s=0.03)
        async with asyncio.timeout(5):
            while not told:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert [engine.asked for engine in engines] == [0, HUNG_LOOKS, 0] and told == [pipes[1][0]]
        os.write(pipes[2][1], b"x")
        async with asyncio.timeout(5):
            while len(told) < 2:
                await asyncio.sleep(0.005)
        assert told[1] == pipes[2][0], "the others are looked at after one was told of"

    run(story)


def test_who_is_served_by_another_is_looked_at_no_more_and_then_nothing_is() -> None:
    async def story(pipes: list[tuple[int, int]]) -> None:
        watch, engine, current, told = HangWatch(), Counting(), [True], list[str]()
        os.write(pipes[0][1], b"x")
        one = Watched(running(pipes[0][0]), engine.engine, lambda: current[0], lambda: told.append("hung"))
        watch.add(one, hung_after_s=0.3)
        current[0] = False
        async with asyncio.timeout(5):
            while watch._timer is not None:
                await asyncio.sleep(0.01)
        assert not told and not engine.asked

    run(story)
