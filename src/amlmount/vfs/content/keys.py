"""What a cached blob is known by: container, name and etag, as one digest that means the same after a restart."""

import json
from collections.abc import Mapping
from hashlib import blake2b

from amlmount.config.spec import SourceSpec
from amlmount.vfs.nodes import FileNode

KEY_BYTES = 16
_NOT_IDENTITY = ("credentials",)


def identity_of(source: SourceSpec) -> str:
    """Name the container behind a source: its definition, less how one logs in."""
    fields = {key: value for key, value in source.store.items() if key not in _NOT_IDENTITY}
    return json.dumps(fields, sort_keys=True, default=str)


class Keys:
    """Makes the keys of one mount; `identities` by the index of the source."""

    def __init__(self, identities: Mapping[int, str]) -> None:
        self._begun = {
            index: blake2b(text.encode("utf-8", "surrogateescape") + b"\0", digest_size=KEY_BYTES)
            for index, text in identities.items()
        }

    def of(self, node: FileNode) -> bytes:
        """Return the key of one version of one blob."""
        state = self._begun[node.source.index].copy()
        state.update(f"{node.blob_name}\0{node.etag}".encode("utf-8", "surrogateescape"))
        return state.digest()
