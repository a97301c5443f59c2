"""Mounts that outlive their daemon: what is put by for the next one, and how that one finds it.

A record says what was mounted, the descriptor store has what is needed to go on with it, the mount table proves it.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Claim, Engine, Running, TakesOver
from amlmount.errors import AmlmountError
from amlmount.supervisor.records import MadeTarget, MountRecord, current_boot_id
from amlmount.supervisor.surroundings import Surroundings

log = logging.getLogger(__name__)
KINDS = ("fuse", "estate", "channel")


def record_of(running: Running, made: MadeTarget, *, is_leaving: bool = False) -> MountRecord:
    """Return what the next daemon must know of a mount."""
    spec = running.spec
    return MountRecord(
        spec.name,
        spec.target,
        running.engine,
        made,
        current_boot_id(),
        running.pid,
        running.pid_start_time,
        running.mount_id,
        spec.model_dump(mode="json"),
        running.negotiated,
        is_leaving,
    )


async def secure(around: Surroundings, engine: TakesOver, made: MadeTarget, running: Running) -> None:
    """Put by what the next daemon needs. What cannot be kept costs the mount that, and no more."""
    name = running.spec.name
    descriptors = {f"{name}.{kind}": fd for kind, fd in engine.descriptors(running).items()}
    around.records.save(record_of(running, made))
    try:
        await asyncio.to_thread(around.descriptors.keep, descriptors)
    except AmlmountError as error:
        log.warning("%s: would not survive a crash of the daemon: %s", name, error.message)


async def let_go(around: Surroundings, name: str) -> None:
    """Keep the descriptors of a mount no longer."""
    await asyncio.to_thread(around.descriptors.drop, [f"{name}.{kind}" for kind in KINDS])


def grouped(kept: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return what was put by, by mount and by kind."""
    found: dict[str, dict[str, int]] = {}
    for name, descriptor in kept.items():
        mount, _, kind = name.rpartition(".")
        found.setdefault(mount, {})[kind] = descriptor
    return found


async def adopt(
    around: Surroundings, record: MountRecord, descriptors: dict[str, int]
) -> "tuple[Engine, str, Running] | None":
    """Return the mount of `record` as an earlier daemon left it, with its engine and why that serves it.

    None if it cannot be adopted. `descriptors` by kind; they belong to what is returned, or are closed.
    """
    try:
        adopted = await _try(around, record, descriptors)
    except Exception as error:
        log.warning("%s: cannot be adopted: %s", record.name, error)
        adopted = None
    if adopted is None:
        close(descriptors.values())
        await let_go(around, record.name)
    return adopted


def spec_in(record: MountRecord) -> MountSpec | None:
    """Return what was mounted, None if the record does not say (or another version of amlmount wrote it)."""
    try:
        return MountSpec.model_validate(record.spec) if record.spec else None
    except ValueError:
        return None


def close(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)


async def _try(
    around: Surroundings, record: MountRecord, descriptors: dict[str, int]
) -> "tuple[Engine, str, Running] | None":
    spec = spec_in(record)
    if spec is None or record.is_leaving or record.boot_id != current_boot_id():
        return None
    if record.pid is None or record.pid_start_time is None or record.mount_id is None:
        return None
    if not await asyncio.to_thread(around.host.has_mount, record):
        return None
    engine, why = await asyncio.to_thread(around.select_engine, spec.model_copy(update={"engine": record.engine}))
    if not isinstance(engine, TakesOver) or engine.name != record.engine:
        return None
    claim = Claim(spec, record.pid, record.pid_start_time, record.mount_id, record.negotiated, descriptors)
    return engine, why, engine.adopt(claim)
