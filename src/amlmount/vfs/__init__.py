"""A container as a file system: inodes, listings and reads, without any knowledge of FUSE.

`open_filesystem` builds one for a mount; what it promises is in docs/semantics.md and `vfs/base.py`.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from amlmount.config.spec import MountSpec, SourceSpec
from amlmount.errors import ConfigError
from amlmount.stores import open_store
from amlmount.stores.base import ObjectStore
from amlmount.vfs.content import OpenContent, open_reader
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.vfs.globs import Glob
from amlmount.vfs.names import HiddenReason, encode_segment
from amlmount.vfs.nodes import Source


def open_filesystem(
    spec: MountSpec,
    *,
    stores: Mapping[str, ObjectStore] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> BlobFileSystem:
    """Build the tree of a mount; no store is asked anything yet (`probe` does that).

    `stores` by store name take the place of those the definitions describe. `clock` counts seconds.
    Raises ConfigError for sources that cannot stand in one tree.
    """
    sources = sources_of(spec, stores)
    content = content_for(spec, [source.store for _, source in sources])
    return BlobFileSystem(sources, spec.policy, clock=clock, open_content=content)


def sources_of(spec: MountSpec, stores: Mapping[str, ObjectStore] | None = None) -> list[tuple[bytes | None, Source]]:
    """Return the sources of a mount, opened, with the name each appears under. Raises ConfigError."""
    opened: dict[str, ObjectStore] = dict(stores or {})
    sources = []
    for index, source in enumerate(spec.sources):
        if source.store_name not in opened:
            opened[source.store_name] = open_store(source.store)
        sources.append((_child_name(source), _source(index, source, opened[source.store_name])))
    names = [name for name, _ in sources]
    if not names or (None in names and len(names) > 1) or len(set(names)) < len(names):
        raise ConfigError(
            f"cannot mount {spec.name!r}: {len(names)} sources without a directory name for each",
            hint="several sources need different names; one source may do without",
        )
    return sources


def content_for(spec: MountSpec, stores: Iterable[ObjectStore]) -> OpenContent | None:
    """Return what reads from the stores of a mount, None if all of them are local."""
    if all(store.is_local for store in stores):
        return None
    return partial(open_reader, spec)


def _child_name(source: SourceSpec) -> bytes | None:
    if source.child is None:
        return None
    name = encode_segment(source.child)
    if isinstance(name, HiddenReason) or b"/" in name:
        raise ConfigError(f"cannot use {source.child!r} as a directory name", hint="use a plain name without `/`")
    return name


def _source(index: int, source: SourceSpec, store: ObjectStore) -> Source:
    path = source.path.strip("/")
    if path and any(isinstance(encode_segment(part), HiddenReason) for part in path.split("/")):
        raise ConfigError(
            f"cannot use path {source.path!r} of store {source.store_name!r}: not a plain folder path",
            hint="write it as folder/subfolder, without `..` and without `//`",
        )
    glob = Glob(source.glob) if source.glob else None
    return Source(index, source.store_name, store, f"{path}/" if path else "", glob)
