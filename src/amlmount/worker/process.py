"""What a worker makes of its own process before it serves: its name, no core dumps, a log that cannot grow for ever.

Nothing here knows of mounts.
"""

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterable

from amlmount.journal import JournalHandler
from amlmount.log import RedactingFormatter
from amlmount.privileges import Capability, forbid_core_dumps, gain_none, keep_only

PR_SET_NAME = 15  # include/uapi/linux/prctl.h
MAX_LOG_BYTES = 1 << 20
KEPT_LOG_BYTES = 1 << 18
STDERR_FD = 2


def settle(name: str) -> None:
    """Name the process `amlmount:NAME` (the kernel keeps 15 bytes), forbid core dumps, leave the caller's directory.

    The working directory must not keep anybody's mount busy.
    """
    ctypes.CDLL(None).prctl(PR_SET_NAME, f"amlmount:{name}".encode()[:15], 0, 0, 0)
    forbid_core_dumps()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.umask(0o077)
    os.chdir("/")
    _favour_latency()


def give_up_privileges(store_types: Iterable[str]) -> None:
    """Keep what serving needs of root's rights: SYS_ADMIN for files that the kernel reads by itself, DAC_OVERRIDE for
    secrets that are other users' files; and for local stores what it takes to write as if their owner did.

    Not for a worker that mounts by itself: as an ordinary user that takes fusermount3, which is set-user-ID.
    """
    kept = {Capability.SYS_ADMIN, Capability.DAC_OVERRIDE}
    if "local" in store_types:
        kept |= {Capability.CHOWN, Capability.FOWNER, Capability.FSETID}
    keep_only(kept)
    gain_none()


def _favour_latency() -> None:
    """The thread that reads requests must get the GIL at once from those that list or fetch, and listings make many
    thousands of objects that no cycle runs through: looking for cycles each 700 of them takes a third of the time."""
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class BoundedLog(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr, a file the starter opened for reading and appending; keeps its last part when it is long."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, then see to the size."""
        super().emit(record)
        try:
            self._cut()
        except OSError:  # a terminal or a pipe, when run by hand
            return

    def _cut(self) -> None:
        size = os.fstat(STDERR_FD).st_size
        if size <= MAX_LOG_BYTES:
            return
        kept = os.pread(STDERR_FD, KEPT_LOG_BYTES, size - KEPT_LOG_BYTES)
        os.ftruncate(STDERR_FD, 0)
        os.write(STDERR_FD, kept.partition(b"\n")[2])


def log_to_stderr(mount: str, verbose: bool) -> None:
    """Send all logging to the bounded stderr, and warnings to the journal too if the daemon logs there."""
    handlers: list[logging.Handler] = [BoundedLog()]
    handlers[0].setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if "JOURNAL_STREAM" in os.environ:
        handlers.append(JournalHandler(mount=mount))
        handlers[1].setLevel(logging.WARNING)
    faulthandler.enable()  # SIGABRT, which a hung worker gets first, writes down where each thread is
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=handlers, force=True)
