"""Sending what was written before a daemon takes its mounts down, for as long as something moves.

The service manager is asked for more time with every turn (sd_notify(3), EXTEND_TIMEOUT_USEC). Whatever is not sent
then is lost by nobody: it is in the journal on disk, and the next start sends it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from amlmount.config.spec import MountSpec
from amlmount.errors import AmlmountError
from amlmount.systemd import notify

SLICE_S = 2.0
ANSWER_S = 10.0
STALLED_AFTER_S = 15.0
EXTENSION_S = 60.0
log = logging.getLogger(__name__)


class Mounts(Protocol):
    """What is needed of the supervisor."""

    def mounted(self) -> list[MountSpec]:
        """Return what is being served."""
        ...

    async def ask(self, name: str, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return a mount's answer. Raises AmlmountError."""
        ...


async def drain(
    mounts: Mounts, tell: Callable[[str], object] = notify, *, stalled_after_s: float = STALLED_AFTER_S
) -> None:
    """Have all writable mounts send what they have; return when that is done, or nothing has moved for a while."""
    writable = [spec.name for spec in mounts.mounted() if not spec.read_only]
    await asyncio.gather(*(_drain(mounts, name, tell, stalled_after_s) for name in writable))


async def _drain(mounts: Mounts, name: str, tell: Callable[[str], object], stalled_after_s: float) -> None:
    loop, moved_at = asyncio.get_running_loop(), 0.0
    seen: tuple[Any, ...] = ()
    while True:
        tell(f"EXTEND_TIMEOUT_USEC={int(EXTENSION_S * 1e6)}")
        try:
            found = await mounts.ask(name, "flush", {"timeout_s": SLICE_S}, timeout_s=SLICE_S + ANSWER_S)
            if found["is_done"]:
                return
            stats = await mounts.ask(name, "stats", {}, timeout_s=ANSWER_S)
        except AmlmountError:  # it answers no questions, or no more
            return
        before, seen = seen, (found["dirty_files"], found["dirty_bytes"], stats["store"]["uploads"])
        if seen != before:
            moved_at = loop.time()
        elif loop.time() - moved_at > stalled_after_s:
            text = "%s: %d bytes of %d files are not in the store (%s); they are kept, and sent by the next start"
            log.warning(text, name, found["dirty_bytes"], found["dirty_files"], found["trouble"] or "nothing moves")
            return
