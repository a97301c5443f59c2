"""Writing: a container as a file system whose acknowledged changes are never lost, whatever dies.

`open_writable` builds one for a mount; docs/semantics.md says what it promises, docs/journal.md how it keeps that.
"""

import time
from collections.abc import Callable, Mapping

from amlmount.config.spec import MountSpec
from amlmount.errors import ConfigError
from amlmount.stores.base import ObjectStore, WritableStore
from amlmount.vfs import content_for, sources_of
from amlmount.vfs.content.keys import identity_of
from amlmount.vfs.writing.filesystem import WritableFileSystem
from amlmount.vfs.writing.live import WritingOptions
from amlmount.vfs.writing.recovery import Recovered, recover
from amlmount.vfs.writing.standing import WritingStats

__all__ = ["Recovered", "WritableFileSystem", "WritingStats", "open_writable", "recover"]


def open_writable(
    spec: MountSpec,
    *,
    stores: Mapping[str, ObjectStore] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> WritableFileSystem:
    """Build the file system of a mount that can be written; `recover` it before anything is asked of it.

    Raises ConfigError for a mount without a state directory or over a store that cannot be written, BusyError if
    another process has the state directory, AmlmountError if its journal cannot be read.
    """
    if spec.state_dir is None:
        raise ConfigError(f"cannot write through '{spec.name}': it has no state directory", hint="set state_dir")
    sources = sources_of(spec, stores)
    for _, source in sources:
        if not isinstance(source.store, WritableStore):
            raise ConfigError(f"cannot write through '{spec.name}': store '{source.name}' is read-only by its kind")
    options = WritingOptions(
        state_dir=spec.state_dir,
        places={index: identity_of(source) for index, source in enumerate(spec.sources)},
        durability=spec.durability,
        upload_timeout_s=spec.upload_timeout_s,
    )
    content = content_for(spec, [source.store for _, source in sources])
    return WritableFileSystem(sources, spec.policy, options=options, clock=clock, open_content=content)
