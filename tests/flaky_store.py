"""A store around a store that fails or waits where a test says so, and counts what it was asked."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from amlmount.errors import AmlmountError, NetworkError
from amlmount.stores.base import ObjectInfo, ObjectStore, Page


class FlakyStore:
    """Passes everything on; `fail` and `on` change the n-th call of a named operation (`list`, `page`, `get`, ...)."""

    def __init__(self, inner: ObjectStore, *, is_local: bool | None = None) -> None:
        self.inner = inner
        self.calls: Counter[str] = Counter()
        self._is_local = inner.is_local if is_local is None else is_local
        self._hooks: dict[tuple[str, int], Callable[[], None]] = {}
        self._always: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def on(self, operation: str, hook: Callable[[], None], *, nth: int | None = None) -> None:
        """Call `hook` ahead of the n-th next call (1 = the very next), or of every call."""
        if nth is None:
            self._always[operation] = hook
        else:
            self._hooks[operation, self.calls[operation] + nth] = hook

    def fail(self, operation: str, error: AmlmountError | None = None, *, nth: int | None = None) -> None:
        """Raise `error` (default: the network is down) at the n-th next call, or at every call."""

        def hook() -> None:
            raise error or NetworkError(f"cannot reach the store for {operation}")

        self.on(operation, hook, nth=nth)

    def heal(self) -> None:
        """Let everything work again."""
        self._always.clear()
        self._hooks.clear()

    def _enter(self, operation: str) -> None:
        with self._lock:
            self.calls[operation] += 1
            hook = self._hooks.pop((operation, self.calls[operation]), None) or self._always.get(operation)
        if hook:
            hook()

    @property
    def is_local(self) -> bool:
        """As the test wants it."""
        return self._is_local

    def list(self, prefix: str = "", *, delimiter: bool = False, page_size: int = 5000) -> Iterator[Page]:
        """Operations `list` once, and `page` ahead of every page."""
        self._enter("list")
        for page in self.inner.list(prefix, delimiter=delimiter, page_size=page_size):
            self._enter("page")
            yield page

    def head(self, name: str) -> ObjectInfo:
        """Operation `head`."""
        self._enter("head")
        return self.inner.head(name)

    def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
        """Operation `get`."""
        self._enter("get")
        return self.inner.get(name, start, length, if_match=if_match)

    def put(
        self,
        name: str,
        data: bytes,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Operation `put`."""
        self._enter("put")
        return self.inner.put(name, data, if_match=if_match, if_none_match=if_none_match, metadata=metadata)

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Operation `delete`."""
        self._enter("delete")
        self.inner.delete(name, if_match=if_match)

    def close(self) -> None:
        """Operation `close`."""
        self._enter("close")
        self.inner.close()
