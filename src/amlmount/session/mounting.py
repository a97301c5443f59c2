"""The `Mount` a caller holds: started and stopped from any thread, whatever loop the caller runs.

What serves it is a `Host`: a tied worker process (`session.tied`) or a thread of this process (`session.inprocess`).
"""

import atexit
import logging
import os
import secrets
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Protocol

from amlmount.cache import remove_session_cache
from amlmount.config.spec import MountSpec
from amlmount.engines import select_engine
from amlmount.errors import MountFailedError
from amlmount.mounts.fusemount import unmount
from amlmount.mounts.paths import canonical
from amlmount.mounts.target import TargetPlan, prepare_target, remove_target
from amlmount.session.caching import with_session_cache
from amlmount.session.source import Source, resolve_source

START_TIMEOUT_S = 30.0
log = logging.getLogger(__name__)


class Host(Protocol):
    """Serves one mount, once."""

    def start(self, spec: MountSpec, plan: TargetPlan, timeout_s: float) -> None:
        """Mount; on failure nothing is left."""
        ...

    def stop(self) -> None:
        """Take the mount away at once, whatever is open on it. Does not raise if it is gone already."""
        ...


class Mount:
    """A mount of this process. Nothing is mounted before `start()` or `with`; `mount_point` is known already.

    A child made by fork sees the files, but only the process that started the mount stops it: in the child,
    `stop()` and the end of a `with` do nothing.
    """

    def __init__(self, spec: MountSpec, *, in_process: bool, timeout_s: float, config_path: Path | None = None) -> None:
        self._spec = spec
        self._config_path = config_path
        self._cache_dir: str | None = None
        self._in_process = in_process
        self._timeout_s = timeout_s
        self._lock = threading.RLock()
        self._host: Host | None = None
        self._plan: TargetPlan | None = None
        self._pid = 0

    @property
    def mount_point(self) -> str:
        """The folder, absolute."""
        return self._spec.target

    def start(self) -> None:
        """Mount and return once it answers; nothing happens if it is started already.

        Raises MountFailedError (target in use, not empty, refused by the kernel), the store's error (exit codes
        3, 5, 6), WaitTimeoutError. Nothing is left behind then.
        """
        with self._lock:
            if self._host is not None and self._pid == os.getpid():
                return
            plan = _prepare(self.mount_point)
            host = _new_host(self._in_process)
            spec = with_session_cache(self._spec, self._config_path)
            try:
                host.start(spec, plan, self._timeout_s)
            except BaseException:
                remove_session_cache(spec.cache_dir)
                remove_target(plan)
                raise
            self._cache_dir = spec.cache_dir
            self._host, self._plan, self._pid = host, plan, os.getpid()
            atexit.register(self.stop)

    def stop(self) -> None:
        """Unmount at once and remove what `start` made; files still open on it give errors from then on.

        Nothing happens if it is not started.
        """
        with self._lock:
            if self._host is None or self._plan is None or self._pid != os.getpid():
                return
            host, self._host = self._host, None
            atexit.unregister(self.stop)
            try:
                host.stop()
            finally:
                remove_session_cache(self._cache_dir)
                remove_target(self._plan)

    def __enter__(self) -> "Mount":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __fspath__(self) -> str:
        return self.mount_point

    def __repr__(self) -> str:
        state = "started" if self._host is not None else "not started"
        return f"<amlmount.Mount {self._spec.description} at {self.mount_point}, {state}>"


def mount(
    source: Source,
    mount_point: str | os.PathLike[str] | None = None,
    *,
    read_only: bool = True,
    profile: str | None = None,
    engine: str = "auto",
    in_process: bool = False,
    config: str | os.PathLike[str] | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> Mount:
    """Return a mount of `source` that is not started yet: use it in a `with`, or call `start()` and `stop()`.

    `source`: a folder (a path, or a string with a slash), the name of a mount or a store of the configuration
    (`config`, else the user's), `{"store": ..., "path": ..., "glob": ...}`, a list of those (a child directory
    each), or a store's definition (`{"type": "local", "path": ...}`).
    `mount_point`: a folder that is empty or does not exist (then it is made, and removed again); relative to the
    working directory; None: a new temporary folder.
    `profile`: None = as the configuration says, else `standard`. `timeout_s`: how long `start()` may take.
    `in_process`: serve from a thread of this process, for tests: see docs/python-api.md for what that cannot do.
    Raises UsageError, ConfigError, NotFoundError for a source that makes no sense.
    """
    blank = mount_point is None or not os.fspath(mount_point).strip()
    target = _temporary() if mount_point is None or blank else canonical(os.path.expanduser(os.fspath(mount_point)))
    path = None if config is None else Path(config)
    spec = resolve_source(source, target, read_only=read_only, profile=profile, engine=engine, config_path=path)
    _refuse_what_a_session_cannot(spec)
    if in_process:
        spec = spec.model_copy(update={"policy": spec.policy.model_copy(update={"direct_io": True, "no_open": False})})
    return Mount(spec, in_process=in_process, timeout_s=timeout_s, config_path=path)


def _refuse_what_a_session_cannot(spec: MountSpec) -> None:
    """What a session runs is always the Python engine: whatever else is meant needs the daemon. Raises ConfigError."""
    named = spec.engine == "blobfuse2"
    select_engine(spec if named else spec.model_copy(update={"engine": "python"}))


def _temporary() -> str:
    """Choose a name only: the folder is made when the mount starts, so one that never starts leaves nothing."""
    return os.path.join(os.path.realpath(tempfile.gettempdir()), f"amlmount-{secrets.token_hex(8)}")


def _prepare(target: str) -> TargetPlan:
    plan = prepare_target(target)
    if plan.occupant == "ours":
        raise MountFailedError(
            f"cannot mount at '{target}': it is already mounted",
            hint=f"use what is there, unmount it (fusermount3 -u {target}), or choose another folder",
        )
    if plan.occupant == "dead":
        unmount(target, lazy=True)
        return prepare_target(target)
    return plan


def _new_host(in_process: bool) -> Host:
    if in_process:
        from amlmount.session.inprocess import ThreadHost

        return ThreadHost()
    from amlmount.session.tied import WorkerHost

    return WorkerHost()
