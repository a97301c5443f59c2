"""Petting systemd's watchdog (sd_watchdog_enabled(3)), as long as the supervisor goes round.

Each turn begins in the event loop, which everything that happens to mounts goes through, and asks the supervisor for
the status of every mount: what `ps` would need. A loop that is stuck, or a supervisor that fails, pets nobody. It is no
thread of its own: that would go on petting while all else is stuck.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping

from amlmount.systemd import notify

TURNS = 3  # within the time the service manager allows
log = logging.getLogger(__name__)


def allowed_s(env: Mapping[str, str]) -> float | None:
    """Return the seconds within which this very process has to give a sign of life, None if nobody waits for one."""
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    value = env.get("WATCHDOG_USEC", "")
    return int(value) / 1e6 if value.isdigit() and int(value) else None


class Watchdog:
    """Goes round until `close`. `go_round` is the supervisor's part: it returns if all is well, and raises if not."""

    def __init__(self, go_round: Callable[[], object], env: Mapping[str, str] = os.environ) -> None:
        self._go_round = go_round
        self._env = env
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.TimerHandle | None = None
        self._every_s = (allowed_s(env) or 0.0) / TURNS
        if self._every_s:
            self._turn()

    def close(self) -> None:
        """Pet no more: the service manager does not wait for it from a service that is ending."""
        self._every_s = 0.0
        if self._next is not None:
            self._next.cancel()

    def _turn(self) -> None:
        try:
            self._go_round()
        except Exception:
            log.exception("the supervisor does not go round: the watchdog is told nothing")
        else:
            notify("WATCHDOG=1", self._env)
        self._next = self._loop.call_later(self._every_s, self._turn)
