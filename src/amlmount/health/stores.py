"""Stores looked at on behalf of their mounts: one look for all mounts of the same container and credential.

A look that hangs is abandoned; no other begins before it has ended.
"""

import asyncio
import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from amlmount.config.spec import MountSpec
from amlmount.engines.offload import in_thread
from amlmount.errors import AccessDeniedError, AmlmountError, ContainerNotFoundError, NetworkError
from amlmount.health.prober import Answer, Prober
from amlmount.stores.azure.checkup import Checkup, Examiner

REFUSED = (errno.EACCES, errno.EPERM)
GONE = (errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class StoreKey:
    """Which store, and which part of it. `definition` is JSON with sorted keys; it holds references to secrets only."""

    name: str
    definition: str
    path: str


def keys_of(spec: MountSpec) -> Sequence[StoreKey]:
    """Return the stores of a mount."""
    found = [
        StoreKey(source.store_name, json.dumps(source.store, sort_keys=True), source.path) for source in spec.sources
    ]
    return list(dict.fromkeys(found))


class StoreWatch:
    """Looks at one store; `is_local`: it is a folder of this machine. Belongs to an event loop."""

    def __init__(self, key: StoreKey, prober: Prober) -> None:
        self.key = key
        self._definition = json.loads(key.definition)
        self.is_local = self._definition["type"] == "local"
        self.found: Checkup | None = None
        self._prober = prober
        self._examiner: Examiner | None = None
        self._look: asyncio.Future[Checkup] | None = None

    async def look(self, timeout_s: float) -> Checkup:
        """Look once, and wait for `timeout_s` seconds at most. Never raises for what is found."""
        if self.is_local:
            self.found = await self._look_locally(timeout_s)
            return self.found
        if self._look is None or self._look.done():
            self._look = in_thread(lambda: self._examine(timeout_s))
        await asyncio.wait({self._look}, timeout=timeout_s + 1.0)
        self.found = self._look.result() if self._look.done() else self._silent(timeout_s)
        return self.found

    def _examine(self, timeout_s: float) -> Checkup:
        try:
            if self._examiner is None:
                self._examiner = Examiner(self._definition, self.key.path and f"{self.key.path}/")
            return self._examiner.look(timeout_s)
        except AmlmountError as error:
            return Checkup(error, None)

    async def _look_locally(self, timeout_s: float) -> Checkup:
        path = os.path.join(str(self._definition["path"]), self.key.path)
        answer = await self._prober.ask("list", path, timeout_s)
        return self._silent(timeout_s) if answer.error is None else Checkup(_local_error(path, answer), True)

    def _silent(self, timeout_s: float) -> Checkup:
        return Checkup(NetworkError(f"no answer within {timeout_s:g} s"), False)


def _local_error(path: str, answer: Answer) -> AmlmountError | None:
    if not answer.error:
        return None
    text = f"cannot list '{path}': {answer.text}"
    if answer.error in REFUSED:
        return AccessDeniedError(text)
    return ContainerNotFoundError(text) if answer.error in GONE else NetworkError(text)
