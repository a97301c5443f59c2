"""The watchdog is petted by the supervisor's own progress: not while it is stuck, not when it fails."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator, Mapping

import pytest

from amlmount.daemon.watchdog import Watchdog, allowed_s
from sandbox import Sandbox

ALLOWED_S = 0.15


class ServiceManager:
    """Takes what a service says, with the time at which it came."""

    def __init__(self, path: str) -> None:
        self.env = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(int(ALLOWED_S * 1e6)), "WATCHDOG_PID": str(os.getpid())}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)

    def heard(self) -> int:
        """Return how often we were petted since the last time."""
        count = 0
        while True:
            try:
                count += self.socket.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                return count


@pytest.fixture
def manager(sandbox: Sandbox) -> Iterator[ServiceManager]:
    made = ServiceManager(f"{sandbox.make_dir('n')}/notify")
    yield made
    made.socket.close()


def test_it_pets_in_time_and_not_while_the_loop_is_stuck(manager: ServiceManager) -> None:
    async def live() -> list[int]:
        rounds: list[None] = []
        watchdog = Watchdog(lambda: rounds.append(None), manager.env)
        await asyncio.sleep(ALLOWED_S * 2)
        before = manager.heard()
        time.sleep(ALLOWED_S * 2)  # the loop is stuck, threads would go on
        stuck = manager.heard()
        await asyncio.sleep(ALLOWED_S)
        after = manager.heard()
        watchdog.close()
        await asyncio.sleep(ALLOWED_S)
        return [before, stuck, after, manager.heard(), len(rounds) - before - after]

    before, stuck, after, closed, other_rounds = asyncio.run(live())
    assert before >= 3 and stuck == 0 and after >= 1 and closed == 0 and other_rounds == 0


def test_a_supervisor_that_fails_is_not_petted(manager: ServiceManager) -> None:
    async def live() -> int:
        def fail() -> None:
            raise RuntimeError("its mounts are a mess")

        watchdog = Watchdog(fail, manager.env)
        await asyncio.sleep(ALLOWED_S * 2)
        watchdog.close()
        return manager.heard()

    assert asyncio.run(live()) == 0


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_who_is_waited_for(env: Mapping[str, str], seconds: float | None) -> None:
    assert allowed_s(env) == seconds
