"""Mounts that outlive their daemon: what is put by for the next one, and how that one finds it.

A record says what was mounted, the descriptor store has what is needed to go on with it, the mount table proves it.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Claim, Engine, Running, TakesOver
from amlmount.errors import AmlmountError
from amlmount.supervisor.records import MadeTarget, MountRecord, current_boot_id
from amlmount.supervisor.surroundings import Surroundings

log = logging.getLogger(__name__)
KINDS = ("fuse", "estate", "channel")
NEXT = "next-"
EARLIER_CHOICE = "an earlier daemon chose it"


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


async def secure(
    around: Surroundings, engine: TakesOver, made: MadeTarget, running: Running, *, instead_of: Sequence[str] = ()
) -> None:
    """Put by what the next daemon needs. What cannot be kept costs the mount that, and no more."""
    name = running.spec.name
    descriptors = {f"{name}.{kind}": fd for kind, fd in engine.descriptors(running).items()}
    try:
        await asyncio.to_thread(partial(around.descriptors.keep, descriptors, instead_of=instead_of))
    except AmlmountError as error:
        log.warning("%s: would not survive a crash of the daemon: %s", name, error.message)
    around.records.save(record_of(running, made))  # last: it must not speak of what is not kept


async def secure_next(
    around: Surroundings, engine: TakesOver, made: MadeTarget, old: Running, running: Running
) -> None:
    """Put by what the next daemon needs of a mount that is about to take the place of `old`; both are known then."""
    name = running.spec.name
    descriptors = {f"{name}.{NEXT}{kind}": fd for kind, fd in engine.descriptors(running).items()}
    await asyncio.to_thread(around.descriptors.keep, descriptors)
    around.records.save(replace(record_of(old, made), next=record_of(running, made)))


async def secure_successor(
    around: Surroundings, engine: TakesOver, made: MadeTarget, old: Running, running: Running
) -> None:
    """Put by what the next daemon needs of what takes over from `old`: the same mount, or one in its place."""
    if running.mount_id == old.mount_id:
        await secure(around, engine, made, running)
    else:
        await secure_next(around, engine, made, old, running)


async def only(around: Surroundings, engine: Engine, made: MadeTarget, running: Running) -> None:
    """Let `running` be all there is of its mount, whatever was to take its place or had it."""
    names = [f"{running.spec.name}.{NEXT}{kind}" for kind in KINDS]
    if isinstance(engine, TakesOver):
        await secure(around, engine, made, running, instead_of=names)
    else:
        around.records.save(record_of(running, made))
        await asyncio.to_thread(around.descriptors.drop, names)


async def let_go(around: Surroundings, name: str) -> None:
    """Keep the descriptors of a mount no longer."""
    names = [f"{name}.{part}{kind}" for kind in KINDS for part in ("", NEXT)]
    await asyncio.to_thread(around.descriptors.drop, names)


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
    ours = {kind: fd for kind, fd in descriptors.items() if not kind.startswith(NEXT)}
    upcoming = {kind.removeprefix(NEXT): fd for kind, fd in descriptors.items() if kind.startswith(NEXT)}
    try:
        if record.next is not None and await asyncio.to_thread(around.host.has_mount, record.next):
            # It is in place, the old one perhaps still on top of it.
            if record.mount_id is not None:
                await asyncio.to_thread(around.host.take_off, record.target, record.mount_id)
            record, ours, upcoming = record.next, upcoming or ours, ours if upcoming else {}
        adopted = await _try(around, record, ours)
    except Exception as error:
        log.warning("%s: cannot be adopted: %s", record.name, error)
        adopted = None
    close([*ours.values(), *upcoming.values()])  # `ours` is empty once an engine has them
    if adopted is None:
        await let_go(around, record.name)
        return None
    await only(around, adopted[0], record.made, adopted[2])
    return adopted


async def take_off_dead(around: Surroundings, target: str, *, but: int | None = None) -> None:
    """Detach the dead mounts of ours that lie on top at `target`, down to the one with the id `but`."""
    while (dead := await asyncio.to_thread(around.host.dead_mount, target)) not in (None, but):
        assert dead is not None
        await asyncio.to_thread(around.host.take_off, target, dead)


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
    await take_off_dead(around, spec.target, but=record.mount_id)
    engine, why = await asyncio.to_thread(_engine_again, around, spec, record.engine)
    if not isinstance(engine, TakesOver) or engine.name != record.engine:
        return None
    claim = Claim(spec, record.pid, record.pid_start_time, record.mount_id, record.negotiated, dict(descriptors))
    descriptors.clear()
    return engine, why, engine.adopt(claim)


def _engine_again(around: Surroundings, spec: MountSpec, name: str) -> tuple[Engine, str]:
    """Return the engine of that name, and why `spec` has it: with `auto`, nobody asked for it by name."""
    engine, named = around.select_engine(spec.model_copy(update={"engine": name}))
    if spec.engine != "auto":
        return engine, named
    try:
        today, why = around.select_engine(spec)
    except AmlmountError:
        return engine, EARLIER_CHOICE
    return engine, why if today.name == name else EARLIER_CHOICE
