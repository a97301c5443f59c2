"""Which engine serves a mount, and why: `auto` is blobfuse2 where it is there and able, else python.

The reason is a short phrase that completes "python: ..." in `ps` and `up --dry-run`.
"""

import os
from typing import TYPE_CHECKING

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Engine
from amlmount.errors import AmlmountError, ConfigError

if TYPE_CHECKING:
    from amlmount.engines.blobfuse2 import Binary, Places
    from amlmount.engines.forkserver import ForkServer

AZURE_TYPES = ("azure_blob", "azure_data_lake_gen2")
# Microsoft Learn, known issues: block cache loses or mixes data in these.
BAD_BLOCK_CACHE = ((2, 2, 0), (2, 2, 1), (2, 3, 0))


def select_engine(
    spec: MountSpec,
    *,
    log_dir: str | None = None,
    places: "Places | None" = None,
    forks: "ForkServer | None" = None,
    front_dir: str | None = None,
) -> tuple[Engine, str]:
    """Return a new engine for `spec` and why it is this one; `log_dir` is where its processes log, `forks` makes them.

    `places`: where blobfuse2 keeps its files; None: there is only the Python engine. Raises ConfigError if no engine
    can do what the mount asks for.
    """
    from amlmount.engines.python import PythonEngine

    binary, why = (None, "asked for by name") if spec.engine == "python" else _find_blobfuse2(spec, places)
    if spec.engine == "blobfuse2" and binary is None:
        hint = "write engine: auto or engine: python" if spec.read_only else "see what is missing with: amlmount doctor"
        raise ConfigError(f"cannot mount '{spec.name}' with blobfuse2: {why}", hint=hint)
    if binary is not None and places is not None:
        from amlmount.engines.blobfuse2 import Blobfuse2Engine

        return Blobfuse2Engine(binary, places), why
    if not spec.read_only:
        _check_state(spec, why)
    return PythonEngine(log_dir=log_dir, forks=forks, front_dir=front_dir), why


def _check_state(spec: MountSpec, why: str) -> None:
    """Refuse to write where what was promised could vanish with the machine's next stop. Raises ConfigError."""
    if spec.state_dir is None:
        raise ConfigError(
            f"cannot mount '{spec.name}' for writing: the python engine does that for the daemon only ({why})",
            hint="mount it by the daemon: amlmount up, or leave out 'read_only: false'",
        )
    from amlmount.cache import why_not_lasting

    if (against := why_not_lasting(spec.state_dir)) is not None and not spec.state_dir_is_named:
        raise ConfigError(
            f"cannot mount '{spec.name}' for writing: its state directory '{spec.state_dir}' {against}",
            hint="name one on a lasting disk as state_dir; the same one, if what is not stored yet may be lost",
        )


def _find_blobfuse2(spec: MountSpec, places: "Places | None") -> "tuple[Binary | None, str]":
    """Return the blobfuse2 that is to serve `spec` and why, or None and what stands against it."""
    if (against := _what_it_cannot(spec)) is not None:
        return None, against
    from amlmount.engines.blobfuse2 import find_binary
    from amlmount.engines.blobfuse2.promises import limits

    try:
        binary = find_binary()
    except AmlmountError as error:
        return None, error.message.removeprefix("cannot use ")
    if binary is None:
        return None, "blobfuse2 is not installed"
    if places is None:
        return None, "blobfuse2 needs the daemon: amlmount up"
    if (missing := _what_is_missing(spec, binary)) is not None:
        return None, missing
    named = "asked for by name, " if spec.engine == "blobfuse2" else ""
    return binary, "; ".join([f"{named}version {binary.version_text}", *limits(spec)])


def _what_it_cannot(spec: MountSpec) -> str | None:
    if len(spec.sources) != 1:
        return "blobfuse2 mounts one container, not several in one folder"
    [source] = spec.sources
    if source.store.get("type") not in AZURE_TYPES and spec.engine != "blobfuse2":
        return "blobfuse2 mounts Azure storage only"
    if source.glob:
        return "blobfuse2 has no such filter by name"
    if spec.front == "overlay":
        return "there is no overlay in front of blobfuse2"
    if not spec.read_only and spec.durability == "journal":
        return "blobfuse2 keeps no journal"
    return None


def _what_is_missing(spec: MountSpec, binary: "Binary") -> str | None:
    from amlmount.mounts import has_sys_admin
    from amlmount.mounts.fusermount import fusermount_path
    from amlmount.render.choices import choose_cache

    if not os.path.exists("/dev/fuse"):
        return "/dev/fuse is not there"
    try:
        if not has_sys_admin():
            fusermount_path()
        cache = choose_cache(spec)
    except AmlmountError as error:
        return error.message.removeprefix("cannot ")
    if cache == "block_cache" and binary.version in BAD_BLOCK_CACHE:
        return f"the block cache of blobfuse2 {binary.version_text} is known to be broken"
    return None
