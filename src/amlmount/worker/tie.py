"""A mount that belongs to one caller: the worker makes it, and takes it away when the caller is gone.

The caller never holds the `/dev/fuse` descriptor: a fork of it would keep a dead connection alive, and a page
fault on a file below would wait for a server that only the faulting process could replace.
"""

import logging
import threading

from amlmount.config.spec import MountSpec
from amlmount.errors import AmlmountError, MountFailedError
from amlmount.mounts.fusemount import unmount
from amlmount.mounts.paths import find_mount
from amlmount.mounts.target import TargetPlan, remove_target
from amlmount.worker.attach import attach

log = logging.getLogger(__name__)


class Tie:
    """Mounts and unmounts one target, once each, from any thread; the directories `plan` created go with it."""

    def __init__(self, spec: MountSpec, plan: TargetPlan) -> None:
        self._spec = spec
        self._plan = plan
        self._lock = threading.Lock()
        self._mount_id: int | None = None
        self._over = False

    def mount(self) -> int:
        """Mount and return the descriptor. Raises MountFailedError, also when `let_go` came first."""
        with self._lock:
            if self._over:
                raise MountFailedError(f"cannot mount '{self._spec.target}': the caller is gone")
            descriptor = attach(self._spec)
            entry = find_mount(self._spec.target)
            self._mount_id = entry.mount_id if entry else None
            return descriptor

    def let_go(self) -> None:
        """Detach the mount if it is still ours, remove the directories. Never waits for the mount, never raises."""
        with self._lock:
            if self._over:
                return
            self._over = True
            try:
                self._detach()
            except AmlmountError as error:
                log.error("%s", error)
            remove_target(self._plan)

    def _detach(self) -> None:
        entry = find_mount(self._spec.target)
        if entry is not None and entry.mount_id == self._mount_id:
            unmount(self._spec.target, lazy=True)
