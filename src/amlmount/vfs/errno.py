"""Store errors become errno here and nowhere else, and the latest trouble with each store is remembered.

A trouble is logged when it begins and when it ends, not at every request it fails.
"""

import errno
import logging
import threading
import time
from dataclasses import dataclass

from amlmount.errors import AccessDeniedError, AmlmountError, BlobNotFoundError, PreconditionFailedError

_LOG = logging.getLogger("amlmount.vfs")


def errno_of(error: AmlmountError) -> int:
    """Return what the kernel shall see: ESTALE for a version that is gone, EACCES, else EIO."""
    if isinstance(error, BlobNotFoundError | PreconditionFailedError):
        return errno.ESTALE
    if isinstance(error, AccessDeniedError):
        return errno.EACCES
    return errno.EIO


def as_os_error(error: AmlmountError) -> OSError:
    """Return the OSError to raise for a store error."""
    return OSError(errno_of(error), error.message)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A store that does not do what it should. `since_ns` is wall-clock time."""

    store_name: str
    error: AmlmountError
    since_ns: int


class TroubleLog:
    """Which stores are in trouble; any thread may report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._troubles: dict[str, Trouble] = {}

    def failed(self, store_name: str, error: AmlmountError) -> None:
        """Note a failed request; said once until the trouble changes its kind or ends."""
        if errno_of(error) == errno.ESTALE:
            return
        with self._lock:
            known = self._troubles.get(store_name)
            is_new = known is None or known.error.code != error.code
            since_ns = known.since_ns if known else time.time_ns()
            self._troubles[store_name] = Trouble(store_name, error, since_ns)
        if is_new:
            _LOG.warning("store %s: %s", store_name, error.message)

    def worked(self, store_name: str) -> None:
        """Note a request that went well: a trouble, if there was one, is over."""
        if store_name not in self._troubles:
            return
        with self._lock:
            trouble = self._troubles.pop(store_name, None)
        if trouble:
            _LOG.info("store %s is well again", store_name)

    def latest(self) -> Trouble | None:
        """Return the trouble that began last and is not over."""
        with self._lock:
            return max(self._troubles.values(), key=lambda trouble: trouble.since_ns, default=None)
