"""What makes a process a daemon: who it is (the lock), what it holds on to (nothing), whom it tells that it is ready.

None of this knows of mounts.
"""

import contextlib
import faulthandler
import fcntl
import gc
import json
import logging
import logging.handlers
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from amlmount.errors import AmlmountError, BusyError, ConfigError
from amlmount.journal import JournalHandler
from amlmount.log import RedactingFormatter, leads_to_journal
from amlmount.privileges import forbid_core_dumps

LOG_BYTES = 1 << 20
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class DaemonLock:
    """Decides who is the daemon of a runtime directory: whoever holds flock(2) on `daemon.lock` in it.

    The directory is made if it is missing, and removed again by `release` if this lock made it and it is empty.
    """

    def __init__(self, runtime_dir: str) -> None:
        self._directory = runtime_dir
        self._path = os.path.join(runtime_dir, "daemon.lock")
        self._fd = -1
        self._made_directory = False

    def acquire(self, *, patience_s: float, give_up: Callable[[], bool]) -> bool:
        """Become the daemon; False if somebody else is, and does not end within `patience_s` seconds.

        `give_up` is asked while it is somebody else: True if there is no point in waiting. Raises ConfigError.
        """
        deadline = time.monotonic() + patience_s
        while not self._try():
            if time.monotonic() >= deadline or give_up():
                return False
            time.sleep(0.05)
        os.truncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())
        return True

    def holder(self) -> int | None:
        """Return the pid that the lock's holder wrote, None if unknown."""
        try:
            with open(self._path) as file:
                return int(file.read())
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Stop being the daemon and leave nothing."""
        if self._fd < 0:
            return
        # Unlinked while it is held: whoever waits on the old file finds out in `_try` and takes the new one.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        if self._made_directory:
            with contextlib.suppress(OSError):
                os.rmdir(self._directory)
        os.close(self._fd)
        self._fd = -1

    def _try(self) -> bool:
        self._make_directory()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._path, flags, 0o600)
        except FileNotFoundError:  # its last daemon has just taken the directory along
            return False
        except OSError as error:
            raise ConfigError(f"cannot write to '{self._directory}': {(error.strerror or '').lower()}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(self._path)):
                self._fd = fd
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(fd)
        return False

    def _make_directory(self) -> None:
        from pathlib import Path

        from amlmount.config.locations import make_private_dir

        self._made_directory |= not os.path.lexists(self._directory)
        try:
            make_private_dir(Path(self._directory))
        except OSError as error:
            raise ConfigError(
                f"cannot use '{self._directory}' as the runtime directory: {(error.strerror or '').lower()}",
                hint="set AMLMOUNT_RUNTIME_DIR to a directory that can be made",
            ) from error


class ReadyPipe:
    """Tells whoever started the daemon, once, how it went: one line of JSON on a descriptor they passed."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def tell(self, message: dict[str, Any]) -> None:
        """Send and close; later calls do nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.write(fd, json.dumps(message).encode() + b"\n")
            os.close(fd)


def already_running(pid: int | None) -> AmlmountError:
    """Return the error of a second daemon."""
    who = f" (pid {pid})" if pid else ""
    return BusyError(
        f"cannot start the daemon: one is running already{who}",
        hint="`amlmount ps` shows its mounts; another AMLMOUNT_RUNTIME_DIR gives another daemon",
    )


def let_go_of_everything(keep: Iterable[int]) -> None:
    """Leave the directory we were started in and close inherited descriptors, so that no mount is kept busy by us.

    What we hold in memory is let go of as well: there is no core of it.
    """
    os.chdir("/")
    os.umask(0o022)
    forbid_core_dumps()
    first = 3
    for fd in sorted(set(keep)):
        if fd >= first:
            os.set_inheritable(fd, False)
            os.closerange(first, fd)
            first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_out_of_collections() -> None:
    """Have the collector pass over what there is now and stays: going through all of it stops the loop for 40 ms."""
    gc.collect()
    gc.freeze()


def log_path(state_dir: str) -> str:
    """Return where a daemon without a terminal logs."""
    return os.path.join(state_dir, "daemon.log")


def start_logging(to_file: str | None, *, verbose: bool) -> None:
    """Log to a bounded private file, or to standard error; where that is systemd's journal, with its fields."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if to_file is None and leads_to_journal(sys.stderr):
        handler = JournalHandler()
    elif to_file is not None:
        os.makedirs(os.path.dirname(to_file), mode=0o700, exist_ok=True)
        os.close(os.open(to_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        handler = logging.handlers.RotatingFileHandler(to_file, maxBytes=LOG_BYTES, backupCount=1)
    if not isinstance(handler, JournalHandler):
        handler.setFormatter(RedactingFormatter(LOG_FORMAT))
    if to_file is None:
        faulthandler.enable()  # a watchdog ends us with SIGABRT: that writes down where we were stuck
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for noisy in ("asyncio", "aiohttp", "azure"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
