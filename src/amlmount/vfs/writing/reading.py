"""Reading files that this mount writes to: what is on the local disk from there, the rest from the store.

Also fetching all of one, before part of it is changed or its blob goes away.
"""

import errno
from typing import Any

from amlmount.stores.base import ObjectInfo
from amlmount.vfs.base import Node, WouldBlock
from amlmount.vfs.nodes import FileNode
from amlmount.vfs.writing.direct import DirectTree
from amlmount.vfs.writing.livefile import LiveFile

# A blob up to this is fetched whole before a part of it is changed, so that a conflict loses nothing of our side.
WHOLE_BYTES = 8 << 20


class LiveReading(DirectTree):
    """DirectTree whose live files can be read."""

    def read(self, node_id: int, offset: int, size_bytes: int, *, may_wait: bool = True) -> bytes | memoryview:
        """See FileSystem.read; of a file that is being written, what was written last."""
        file = self.node(node_id)
        if not isinstance(file, LiveFile):
            return self._read_ordinary(file, offset, size_bytes, may_wait)
        if not file.lock.acquire(blocking=may_wait):
            raise WouldBlock
        try:
            self._refuse_displaced(file)
            wanted = min(size_bytes, file.state.size - offset)
            pieces = list(file.pieces(offset, wanted)) if wanted > 0 else []
            if not may_wait and not file.source.store.is_local and not all(is_here for _, _, is_here in pieces):
                raise WouldBlock
            local = [file.read_local(start, end) if is_here else None for start, end, is_here in pieces]
            version = self._version(file)
        finally:
            file.lock.release()
        try:
            parts = [
                self._read_version(version, start, end - start) if data is None else data
                for data, (start, end, _) in zip(local, pieces, strict=True)
            ]
        except OSError as error:
            if error.errno != errno.ESTALE or not self._is_new_version(file, version, may_wait):
                raise
            return self.read(node_id, offset, size_bytes, may_wait=may_wait)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_ordinary(self, node: Node, offset: int, size_bytes: int, may_wait: bool) -> bytes | memoryview:
        try:
            return super().read(node.node_id, offset, size_bytes, may_wait=may_wait)
        except OSError as error:
            if error.errno != errno.ESTALE or not isinstance(self._tree.nodes.get(node.node_id), LiveFile):
                raise
            return self.read(node.node_id, offset, size_bytes, may_wait=may_wait)  # it has become one meanwhile

    def _is_new_version(self, file: LiveFile, version: FileNode, may_wait: bool) -> bool:
        """Say whether an upload of ours has replaced the version that was just asked for (one may be under way), or
        all of it is here by now."""
        if not may_wait:
            raise WouldBlock
        with file.sending, file.lock:
            return file.state.whole or file.state.etag != version.etag

    def _version(self, file: LiveFile) -> FileNode:
        state = file.state
        info = ObjectInfo(state.name, state.base_size, state.etag, state.mtime_ns)
        return FileNode(file.node_id, file.ino, file.parent_id, file.name, file.source, info)

    def _read_version(self, version: FileNode, start: int, length: int) -> bytes | memoryview:
        if self._content is not None and not version.source.store.is_local:
            return self._content.read(version, start, length, may_wait=True)
        return self._download(version, start, length)

    def fetch_if_small(self, file: LiveFile, may_wait: bool) -> None:
        """Have all of a small file here before a part of it is changed."""
        state = file.state
        if state.whole or state.base_end > WHOLE_BYTES:
            return
        if not may_wait:
            raise WouldBlock
        self.fetch_all(file)

    def fetch_all(self, file: LiveFile) -> None:
        """Have all of a file here. Waits for an upload of it that is under way. Raises OSError."""
        with file.sending:
            self.fetch_rest(file)

    def fetch_rest(self, file: LiveFile) -> None:
        """Do what `fetch_all` does; needs `sending`."""
        with file.lock:
            state, version = file.state, self._version(file)
            if state.whole:
                return
            self._refuse_displaced(file)
            for start, end in list(state.held.gaps(0, state.base_end)):
                for place in range(start, end, WHOLE_BYTES):
                    length = min(WHOLE_BYTES, end - place)
                    self.disk.write(file.fd(), self._download(version, place, length), place)
                    state.held.add(place, place + length)
            file.fd()
            state.whole, state.base_end = True, 0
            self._note(file, self.ledger.restate)

    def opened(self, node: Node) -> None:
        """See OpenFiles.opened; a live file is not the reader's business."""
        if not isinstance(node, LiveFile):
            super().opened(node)

    def released(self, node: Node) -> None:
        """See OpenFiles.released."""
        if not isinstance(node, LiveFile):
            super().released(node)

    def whole_file(self, node: Node) -> int | None:
        """Never: the kernel would go on reading a file that is being changed."""
        return None

    def use_page_cache(self, store_page: Any) -> None:
        """Do not: what was fetched ahead might reach the kernel after what was written since."""
