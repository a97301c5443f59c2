"""Questions about the cache that name files: which are not in it yet, and which shall stay in it.

Files are named by their path below the mount, as everybody sees them.
"""

import threading
from collections.abc import Iterator
from typing import Any

from amlmount.errors import UsageError
from amlmount.vfs.base import Node, NodeKind
from amlmount.vfs.content import ContentReader
from amlmount.vfs.content.directory import CacheDirectory
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.vfs.globs import Glob
from amlmount.vfs.nodes import FileNode


class KnownFiles:
    """The files of a mount that reads through a cache directory."""

    def __init__(self, files: BlobFileSystem, content: ContentReader, directory: CacheDirectory) -> None:
        self._files = files
        self._content = content
        self._directory = directory
        self._lock = threading.Lock()

    def missing(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The question `cache_missing`: which of `paths` would have to be fetched, as indices."""
        paths: list[str] = asked["paths"]
        return {"missing": [index for index, path in enumerate(paths) if not self._is_kept(path)]}

    def pin(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The question `cache_pin`: keep the files that match `glob` from being evicted, or no longer (`pinned`).

        Only what is in the cache can be pinned; of the rest, the number is told. Raises UsageError if nothing matches.
        """
        glob, wanted = Glob(asked["glob"]), bool(asked["pinned"])
        matching = [node for path, node in self._walk(self._files.root(), "") if glob.shows_file(path)]
        if not matching:
            raise UsageError(f"cannot find a file that matches '{asked['glob']}'", hint="quote the glob for the shell")
        kept = [node for node in matching if self._content.is_kept(node)]
        entries = {entry for node in kept if (entry := self._content.entry_of(node)) is not None}
        with self._lock:
            for entry in sorted(entries):
                self._directory.pin(entry, is_pinned=wanted)
        return {"files": len(kept), "not_cached": len(matching) - len(kept)}

    def _is_kept(self, path: str) -> bool:
        node: Node = self._files.root()
        try:
            for name in path.encode("utf-8", "surrogateescape").split(b"/"):
                node = self._files.lookup(node.node_id, name)
        except OSError:
            return False
        return isinstance(node, FileNode) and self._content.is_kept(node)

    def _walk(self, directory: Node, below: str) -> Iterator[tuple[str, FileNode]]:
        for node in self._files.list_dir(directory.node_id):
            path = below + node.name.decode("utf-8", "surrogateescape")
            if node.kind is NodeKind.DIRECTORY:
                yield from self._walk(node, f"{path}/")
            elif isinstance(node, FileNode):
                yield path, node
