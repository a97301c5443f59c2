"""All that an owner of a mount needs from outside, and what several owners do in the same way.

Nothing here keeps state.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from amlmount.config.spec import MountSpec
from amlmount.descriptors import DescriptorStore, NoStore
from amlmount.engines.base import Engine
from amlmount.errors import AmlmountError
from amlmount.events import EventHub
from amlmount.states import Failure, MountStatus, Now, RestartPolicy
from amlmount.supervisor.hanging import HangWatch
from amlmount.supervisor.host import Host
from amlmount.supervisor.records import MountRecord, RecordStore

log = logging.getLogger(__name__)


def read_clock() -> Now:
    """Return the real moment, with real luck."""
    return Now(time.time(), time.monotonic(), random.random())


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All that an owner needs from outside. `starts` bounds how many mounts are being made at once.

    `lazy_stop_timeout_s`: what is still open that long after a lazy stop gets errors. `prepare_cache` makes the cache
    directory of a mount that has one; it may block, and what it raises is the mount's failure. So it is with
    `look_at_stores`, which is asked before a mount is taken down for another definition.
    """

    select_engine: Callable[[MountSpec], tuple[Engine, str]]
    host: Host
    records: RecordStore
    descriptors: DescriptorStore = field(default_factory=NoStore)
    on_change: Callable[[MountStatus], None] = lambda _: None
    prepare_cache: Callable[[MountSpec], None] = lambda _: None
    look_at_stores: Callable[[MountSpec], None] = lambda _: None
    events: EventHub = field(default_factory=EventHub)
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    now: Callable[[], Now] = read_clock
    hangs: HangWatch = field(default_factory=HangWatch)
    starts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(8))
    start_timeout_s: float = 45.0
    stop_timeout_s: float = 20.0
    lazy_stop_timeout_s: float = 3.0
    hung_after_s: float = 3.0


def failure_of(error: BaseException, verb: str, name: str) -> Failure:
    """Turn any exception into a value that names the mount; one that nobody raised on purpose is logged as well."""
    doing = f"cannot {verb} '{name}'"
    if isinstance(error, AmlmountError):
        return replace(Failure(**error.to_json()), message=_naming(error.message, verb, name))
    log.error("%s: unexpected error", doing, exc_info=error)
    return Failure("failed", f"{doing}: {type(error).__name__}: {error}", "this is a bug in amlmount: please report it")


def _naming(message: str, verb: str, name: str) -> str:
    """`cannot mount at '/x': ...` and `cannot mount '/x': ...` speak of a target: say whose it is."""
    begin = f"cannot {verb} '{name}'"
    if message.startswith(begin):
        return message
    for spoken in (f"cannot {verb} at '/", f"cannot {verb} '/"):
        if message.startswith(spoken):
            return f"{begin} at '/{message.removeprefix(spoken)}"
    return f"{begin}: {message}"


async def clear_leftover(
    around: Surroundings, record: MountRecord, *, keep_target: bool, keep_dead: bool = False
) -> None:
    """End what a killed daemon left of one mount; the directories it made go too unless they are to be kept.

    `keep_dead`: the mount stays, dead, until another is beneath it.
    """
    try:
        await asyncio.to_thread(partial(around.host.end_leftover, record, keep_dead=keep_dead))
        if not keep_target:
            await asyncio.to_thread(around.host.remove_target, record.made)
    except Exception:
        log.exception("cannot clear away what was left of '%s'", record.name)
    around.records.delete(record.name)
