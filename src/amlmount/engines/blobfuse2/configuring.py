"""The files of one run: a private directory in memory with the configuration, and the cache on disk, written down.

The configuration's directory holds nothing else: blobfuse2 watches it and reads again at every change in it.
"""

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from amlmount.blobfuse2.validate import normalized
from amlmount.config.credentials import SecretRef
from amlmount.config.spec import MountSpec, SourceSpec
from amlmount.engines.blobfuse2.budget import DEFAULT_CACHE_BYTES, MIB, Asked, Granted, Machine, grant, look_at_machine
from amlmount.engines.blobfuse2.places import MARKER, Places
from amlmount.errors import BusyError
from amlmount.recovery import Folder, Instance, make_running
from amlmount.render import render_blobfuse2
from amlmount.render.choices import choose_cache

log = logging.getLogger(__name__)
_granting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What one run of blobfuse2 is started with. `mode` is the storage mode of its configuration (`sas`, `key`...).

    `lock_fd` (-1: none) locks the mount's cache directory for as long as blobfuse2 holds it too. `references` are the
    secrets that stand in the configuration.
    """

    folder: Folder
    runtime_dir: str
    mode: str = ""
    lock_fd: int = -1
    references: tuple[SecretRef, ...] = ()
    granted: Granted = field(default_factory=lambda: Granted(0, 0))

    @property
    def config_path(self) -> str:
        """Mode 0600, in a directory of its own."""
        return os.path.join(self.runtime_dir, "config", "blobfuse2.yaml")

    @property
    def work_dir(self) -> str:
        """Its HOME and working directory."""
        return os.path.join(self.runtime_dir, "work")

    def remove_runtime(self) -> None:
        """Remove configuration and working directory."""
        shutil.rmtree(self.runtime_dir, ignore_errors=True)
        above = os.path.dirname(self.runtime_dir)
        with contextlib.suppress(OSError):  # the last one takes the directories along
            os.rmdir(above)
            os.rmdir(os.path.dirname(above))

    def let_go(self) -> None:
        """Close our copy of the lock."""
        if self.lock_fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.lock_fd)


def prepare(
    spec: MountSpec, source: SourceSpec, places: Places, look: Callable[[str], Machine] = look_at_machine
) -> Prepared:
    """Make the directories of a run and write its configuration. Raises BusyError, ConfigError, AccessDeniedError."""
    folder, granted = _reserve(spec, source, places, look)
    runtime_dir = os.path.join(places.runtime_base(spec.name), os.path.basename(folder.path))
    prepared = Prepared(folder, runtime_dir, granted=granted)
    try:
        for path in (places.log_dir, prepared.runtime_dir, os.path.dirname(prepared.config_path), prepared.work_dir):
            os.makedirs(path, mode=0o700, exist_ok=True)
        with open(os.path.join(prepared.runtime_dir, MARKER), "w") as marker:
            marker.write(folder.path)
        used: list[SecretRef] = []
        text = render(spec, source, places, prepared, used)
        write_config(prepared.config_path, text)
        return replace(prepared, mode=mode_of(text), lock_fd=_lock(spec), references=tuple(used))
    except BaseException:
        prepared.remove_runtime()
        folder.remove()
        raise


def render(
    spec: MountSpec, source: SourceSpec, places: Places, prepared: Prepared, used: list[SecretRef] | None = None
) -> str:
    """Return the configuration, secrets in it; `used` gets the references to them."""

    def look_up(reference: SecretRef) -> str:
        if used is not None:
            used.append(reference)
        return reveal(reference)

    return render_blobfuse2(
        spec.model_copy(update={"cache_max_bytes": prepared.granted.cache_bytes}),
        source=source,
        secrets=look_up,
        cache_dir=prepared.folder.data,
        log_path=places.log_path(spec.name),
        work_dir=prepared.work_dir,
        memory_max_bytes=prepared.granted.memory_bytes or MIB,
    )


def write_config(path: str, text: str) -> None:
    """Write it whole or not at all: read while half written it would be taken for an empty one.

    The draft lies outside the watched directory, so that exactly one change is seen.
    """
    draft = os.path.join(os.path.dirname(os.path.dirname(path)), "blobfuse2.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def mode_of(text: str) -> str:
    """Return the storage mode of a configuration, empty for a local folder."""
    import yaml

    section = yaml.safe_load(text).get("azstorage") or {}
    return str(section.get("mode", ""))


def reveal(reference: SecretRef) -> str:
    """Return a secret as it is now. Raises ConfigError, AccessDeniedError, NetworkError."""
    from amlmount import secrets

    return secrets.resolve(reference).reveal()


def _reserve(
    spec: MountSpec, source: SourceSpec, places: Places, look: Callable[[str], Machine]
) -> tuple[Folder, Granted]:
    cache = choose_cache(spec)
    with _granting:  # two mounts that start together must not be promised the same bytes
        base, granted = _place(spec, cache, places, look)
        instance = Instance(
            mount=spec.name,
            target=spec.target,
            store=source.store,
            path=source.path,
            read_only=spec.read_only,
            allow_other=spec.allow_other,
            cache=cache,
            cache_bytes=granted.cache_bytes,
            memory_bytes=granted.memory_bytes,
        )
        return make_running(base, instance), granted


def _place(spec: MountSpec, cache: str, places: Places, look: Callable[[str], Machine]) -> tuple[str, Granted]:
    """Return the first place that has room, and what is granted there. Raises the BusyError of the first."""
    running = [folder.instance for folder in places.running()]
    first, *others = places.cache_bases(spec)
    try:
        return first, grant(_asked(spec, first, cache), running, look(first))
    except BusyError as error:
        for base in others:
            with contextlib.suppress(BusyError):
                granted = grant(_asked(spec, base, cache), running, look(base))
                log.warning("%s; its cache goes to %s, which may not last", error.message, base)
                return base, granted
        raise


def _asked(spec: MountSpec, base: str, cache: str) -> Asked:
    section = normalized(spec.blobfuse2).get(cache)
    said = section if isinstance(section, dict) else {}
    disk = said.get("max-size-mb") or said.get("disk-size-mb")
    memory = said.get("mem-size-mb")
    blocks = cache in ("block_cache", "xload")
    return Asked(
        mount=spec.name,
        base=base,
        cache_bytes=int(disk) * MIB if disk else None,
        cache_most_bytes=spec.cache_max_bytes or DEFAULT_CACHE_BYTES,
        memory_bytes=int(memory) * MIB if memory else None,
        needs_disk=cache != "block_cache" or spec.policy.cache_on_disk,
        needs_memory=blocks,
    )


def _lock(spec: MountSpec) -> int:
    """Take the lock of the mount's cache directory, so that nobody tidies it away; -1 if there is none to take."""
    if not spec.read_only or spec.cache_dir is None:
        return -1
    from amlmount.cache.places import claim

    found = claim(spec.cache_dir)
    return -1 if found is None else found
