"""A blobfuse2 whose daemon was killed: what it could not send is kept, and it is waited for, never signalled."""

import os
import select

from amlmount.engines.blobfuse2 import caches
from amlmount.engines.blobfuse2.places import MARKER
from amlmount.recovery import Folder, read_folder
from amlmount.run import is_same_process

CONFIG_FLAG = b"--config-file="
PATIENCE_S = 15.0


def keep_unsent_of(pid: int, start_time: int) -> None:
    """Hard-link aside what an unmount would make this process wipe; nothing if it is not that process any more."""
    if is_same_process(pid, start_time) and (folder := _folder_of(pid)) is not None:
        caches.keep_unsent(folder)


def wait_for_end(pid: int, start_time: int) -> bool:
    """Wait for the end that follows on its unmount; False if it takes longer (it is at work, and ends by itself)."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not is_same_process(pid, start_time):
            return True
        waiter = select.poll()
        waiter.register(pidfd, select.POLLIN)
        return bool(waiter.poll(PATIENCE_S * 1000))
    finally:
        os.close(pidfd)


def _folder_of(pid: int) -> Folder | None:
    """Find the instance's directory by the configuration that the process was started with."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        [config] = [word.removeprefix(CONFIG_FLAG) for word in words if word.startswith(CONFIG_FLAG)]
        with open(os.path.join(os.path.dirname(os.path.dirname(os.fsdecode(config))), MARKER)) as marker:
            return read_folder(marker.read())
    except (OSError, ValueError):
        return None
