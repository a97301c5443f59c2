"""A container held in memory, for tests and for trying things out: everything a store may do, nothing lasting.

`before` is called ahead of every operation, outside the lock: a test delays or fails the call there.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from amlmount.errors import BlobNotFoundError, ConfigError, PreconditionFailedError
from amlmount.stores.base import NO_METADATA, Content, ObjectInfo, Page, Ranges


class MemoryStore:
    """A dictionary with a lock around it. Names may be any string."""

    def __init__(
        self,
        objects: Mapping[str, bytes] | None = None,
        *,
        is_local: bool = True,
        page_size: int | None = None,
        before: Callable[[str, str], None] | None = None,
    ) -> None:
        """`page_size` caps that of every listing; `before(operation, name)` may wait or raise."""
        self._is_local = is_local
        self._page_size = page_size
        self._before = before or (lambda operation, name: None)
        self._lock = threading.Lock()
        self._versions = itertools.count(1)
        self._blobs: dict[str, tuple[bytes, ObjectInfo]] = {}
        for name, data in (objects or {}).items():
            self.put(name, data)

    @property
    def is_local(self) -> bool:
        """As it was made: False makes the file system treat it like something far away."""
        return self._is_local

    def list(self, prefix: str = "", *, delimiter: bool = False, page_size: int = 5000) -> Iterator[Page]:
        """Yield what was there when the listing began, sorted, in pages; see ObjectStore.list."""
        self._before("list", prefix)
        with self._lock:
            infos = [info for name, (_, info) in self._blobs.items() if name.startswith(prefix)]
        entries = sorted(_cut(infos, prefix, delimiter).items())
        size = min(page_size, self._page_size or page_size)
        for start in range(0, len(entries), size):
            if start:
                self._before("list_page", prefix)
            part = entries[start : start + size]
            yield Page([info for _, info in part if info], [name for name, info in part if not info])

    def head(self, name: str) -> ObjectInfo:
        """See ObjectStore.head."""
        self._before("head", name)
        with self._lock:
            return self._found(name)[1]

    def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
        """See ObjectStore.get."""
        self._before("get", name)
        with self._lock:
            data, info = self._found(name)
        if if_match not in (None, info.etag):
            raise _changed("read", name)
        return data[start:] if length is None else data[start : start + length]

    def put(
        self,
        name: str,
        data: bytes,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """See ObjectStore.put."""
        self._before("put", name)
        with self._lock:
            present = self._blobs.get(name)
            if (if_none_match and present) or (if_match and (not present or present[1].etag != if_match)):
                raise _changed("write", name)
            return self._enter(name, bytes(data), metadata)

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        """See ObjectStore.delete."""
        self._before("delete", name)
        with self._lock:
            if if_match not in (None, self._found(name)[1].etag):
                raise _changed("delete", name)
            del self._blobs[name]

    # See WritableStore

    @property
    def keeps_metadata(self) -> bool:
        """Always true."""
        return True

    def upload(
        self,
        name: str,
        content: Content,
        *,
        unchanged: Ranges = (),
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """See WritableStore.upload; all of it is read first, even what is unchanged."""
        data = bytes(content.read(0, content.size_bytes)) if content.size_bytes else b""
        return self.put(name, data, if_match=if_match, if_none_match=if_none_match, metadata=metadata)

    def copy(self, source: ObjectInfo, name: str, *, if_none_match: bool = False) -> ObjectInfo:
        """See WritableStore.copy."""
        self._before("copy", name)
        with self._lock:
            data, info = self._found(source.name)
            if info.etag != source.etag or (if_none_match and name in self._blobs):
                raise _changed("copy", source.name)
            return self._enter(name, data, info.metadata)

    def set_metadata(self, info: ObjectInfo, metadata: Mapping[str, str]) -> ObjectInfo:
        """See WritableStore.set_metadata."""
        self._before("set_metadata", info.name)
        with self._lock:
            data, present = self._found(info.name)
            if present.etag != info.etag:
                raise _changed("write", info.name)
            return self._enter(info.name, data, metadata)

    def check_writable(self) -> None:
        """See WritableStore.check_writable."""
        self._before("check_writable", "")

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""

    def _enter(self, name: str, data: bytes, metadata: Mapping[str, str] | None) -> ObjectInfo:
        kept = {key.lower(): value for key, value in metadata.items()} if metadata else NO_METADATA
        info = ObjectInfo(name, len(data), f"{next(self._versions):x}", time.time_ns(), kept)
        self._blobs[name] = (data, info)
        return info

    def _found(self, name: str) -> tuple[bytes, ObjectInfo]:
        try:
            return self._blobs[name]
        except KeyError:
            raise BlobNotFoundError(f"cannot find blob {name!r}") from None


def open_memory(definition: Mapping[str, object]) -> MemoryStore:
    """Make a store from `{"type": "memory", "objects": {name: text}}`."""
    objects = definition.get("objects", {})
    if not isinstance(objects, Mapping):
        raise ConfigError("cannot open a memory store: objects is not a mapping of names to text")
    return MemoryStore({str(name): str(text).encode() for name, text in objects.items()})


def _cut(infos: list[ObjectInfo], prefix: str, delimiter: bool) -> dict[str, ObjectInfo | None]:
    entries: dict[str, ObjectInfo | None] = {}
    for info in infos:
        end = info.name.find("/", len(prefix)) if delimiter else -1
        if end < 0:
            entries[info.name] = info
        else:
            entries[info.name[: end + 1]] = None
    return entries


def _changed(verb: str, name: str) -> PreconditionFailedError:
    return PreconditionFailedError(f"cannot {verb} blob {name!r}: it is not the version asked for")
