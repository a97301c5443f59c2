"""Sending what was written before a daemon takes its mounts down, for as long as something moves.

The service manager is asked for more time with every turn (sd_notify(3), EXTEND_TIMEOUT_USEC). Whatever is not sent
then is lost by nobody: it is in the journal on disk, and the next start sends it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from amlmount.config.spec import MountSpec
from amlmount.config.units import counted
from amlmount.errors import AmlmountError
from amlmount.systemd import notify

SLICE_S = 2.0
ANSWER_S = 10.0
STALLED_AFTER_S = 15.0
WRITERS_S = 60.0  # for programs that go on writing; others have ended long before
EXTENSION_S = 60.0
log = logging.getLogger(__name__)
Tell = Callable[[str], object]


class Mounts(Protocol):
    """What is needed of the supervisor."""

    def mounted(self) -> list[MountSpec]:
        """Return what is being served."""
        ...

    async def ask(self, name: str, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return a mount's answer. Raises AmlmountError."""
        ...


async def drain(mounts: Mounts, tell: Tell = notify, *, stalled_after_s: float | None = None) -> None:
    """Have all writable mounts send what they have.

    Returns when that is done, when nothing has moved for `stalled_after_s` seconds (STALLED_AFTER_S), or when more
    was sent than there was, for WRITERS_S: programs go on writing.
    """
    patience_s = STALLED_AFTER_S if stalled_after_s is None else stalled_after_s
    writable = [spec.name for spec in mounts.mounted() if not spec.read_only]
    await asyncio.gather(*(_Draining(mounts, name, tell, patience_s).run() for name in writable))


class _Draining:
    """One mount that sends what it has."""

    def __init__(self, mounts: Mounts, name: str, tell: Tell, patience_s: float) -> None:
        self._mounts, self._name, self._tell, self._patience_s = mounts, name, tell, patience_s
        self._now_s = asyncio.get_running_loop().time
        self._begun_s = self._moved_s = self._now_s()
        self._best: tuple[int, ...] = ()
        self._meant_files = 0

    async def run(self) -> None:
        """See `drain`."""
        try:
            found = await self._mounts.ask(self._name, "writing", {}, timeout_s=ANSWER_S)
        except AmlmountError:  # it answers no questions
            return
        self._meant_files = _sent(found)[0] + found["dirty_files"]
        while found["dirty_files"]:
            self._tell(f"EXTEND_TIMEOUT_USEC={int(EXTENSION_S * 1e6)}")
            self._tell(f"STATUS={self._name}: {_left(found)} on their way to the store")
            if why := self._why_not_wait(found):
                text = "%s: %s are not in the store (%s); they are kept, and sent by the next start"
                log.warning(text, self._name, _left(found), why)
                return
            found = await self._flush(found)

    async def _flush(self, before: dict[str, Any]) -> dict[str, Any]:
        """Wait a little for the store to get everything; a mount that is between two processes has not moved."""
        try:
            return await self._mounts.ask(self._name, "flush", {"timeout_s": SLICE_S}, timeout_s=SLICE_S + ANSWER_S)
        except AmlmountError as error:
            await asyncio.sleep(min(SLICE_S, self._patience_s))
            return before | {"trouble": error.message}

    def _why_not_wait(self, found: dict[str, Any]) -> str:
        """Return why there is no point in waiting any longer, empty if there is one."""
        files, size = _sent(found)
        reached = (files, size, -found["dirty_files"], -found["dirty_bytes"])
        best, now_s = self._best or reached, self._now_s()
        if not self._best or any(new > old for new, old in zip(reached, best, strict=True)):
            self._moved_s = now_s
        self._best = tuple(map(max, reached, best))
        if now_s - self._moved_s > self._patience_s:
            return found["trouble"] or "nothing moves"
        if now_s - self._begun_s > WRITERS_S and files > self._meant_files:
            return "programs go on writing"
        return ""


def _sent(found: dict[str, Any]) -> tuple[int, int]:
    """Return how many files and bytes have got into the store; a worker of an older version does not say."""
    return found.get("sent_files", 0), found.get("sent_bytes", 0)


def _left(found: dict[str, Any]) -> str:
    return f"{counted(found['dirty_bytes'], 'byte')} of {counted(found['dirty_files'], 'file')}"
