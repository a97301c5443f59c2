"""The composition root: builds the supervisor and the API, runs them until told to stop, takes everything down.

Everything that decides how mounts behave is elsewhere; this knows only what has to exist, and in which order.
"""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import amlmount
from amlmount.api import ApiServer, Figures
from amlmount.cache import assign_caches, assign_state, prepare_cache
from amlmount.config.load import config_files, config_folders, load_config, main_file, required_files
from amlmount.config.locations import Locations, share_with_group, shared_group
from amlmount.config.models import Config
from amlmount.config.resolve import find_daemon_user, resolve_all
from amlmount.config.spec import MountSpec
from amlmount.daemon import process
from amlmount.daemon.draining import drain
from amlmount.daemon.following import ConfigWatch, look_at, refuse_ruins
from amlmount.daemon.watchdog import Watchdog
from amlmount.descriptors import DescriptorStore, NoStore, open_store
from amlmount.engines import select_engine
from amlmount.engines.blobfuse2.places import Places
from amlmount.engines.forkserver import ForkServer
from amlmount.engines.offered import look_at_stores
from amlmount.errors import AmlmountError, DaemonUnreachableError
from amlmount.events import EventFile, EventHub, kinds
from amlmount.events.file import events_dir
from amlmount.mounts import MountEntry, clear_fronts
from amlmount.states import MountStatus, Plan
from amlmount.supervisor import (
    AccountSupervisor,
    CacheKeeper,
    HealthKeeper,
    KernelHost,
    RecordStore,
    RefreshTimer,
    Surroundings,
    TableWatch,
)
from amlmount.supervisor.moved import remove_moved
from amlmount.systemd import is_being_restarted, notify, passed_descriptors
from amlmount.worker.program import LOADED

log = logging.getLogger(__name__)

PREDECESSOR_PATIENCE_S = 15.0  # one that is ending may have mounts to take down
IDLE_AT_START_S = 10.0  # whoever started us has this long to say what for
IDLE_S = 0.2
CLOSE_TIMEOUT_S = 30.0
RELOAD_TIMEOUT_S = 300.0
RESTART_ME = 75  # EX_TEMPFAIL: our unit has systemd start the next one at once


@dataclass(frozen=True, slots=True)
class Options:
    """How a daemon runs. `auto`: started by a command, logs to a file, ends by itself after its last mount.

    `config` is an absolute path, None for the usual places. `ready_fd`: a descriptor for one line of JSON. `watch`:
    follow the configuration's files, whatever they say.
    """

    locations: Locations
    config: Path | None = None
    auto: bool = False
    ready_fd: int | None = None
    verbose: bool = False
    watch: bool = False


def main(options: Options) -> None:
    """Be the daemon until it is told to end. Raises AmlmountError if it cannot be."""
    ready = process.ReadyPipe(options.ready_fd)
    kept = [] if options.ready_fd is None else [options.ready_fd]
    process.let_go_of_everything([*kept, *passed_descriptors()])
    lock = process.DaemonLock(str(options.locations.runtime_dir))
    try:
        _resolve(options, _read_config(options, needed=options.auto), None)
        if not lock.acquire(patience_s=PREDECESSOR_PATIENCE_S, give_up=lambda: _answers(options)):
            _yield_to_other(options, lock, ready)
            return
        path = process.log_path(str(options.locations.state_dir)) if options.auto else None
        process.start_logging(path, verbose=options.verbose)
        daemon = _Daemon(options)
        asyncio.run(daemon.run(ready))
        if daemon.is_handing_over and not options.auto:
            sys.exit(RESTART_ME)
    except AmlmountError as error:
        ready.tell({"error": error.to_json()})
        raise
    finally:
        lock.release()


def plan_offline(options: Options, names: Sequence[str] | None) -> list[Plan]:
    """Say what `up` would do if no daemon runs. Raises NotFoundError, ConfigError."""

    async def plan() -> list[Plan]:
        specs = assign_state(_resolve(options, _read_config(options), None), options.locations)
        return await _make_supervisor(options, specs).plan(names)

    return asyncio.run(plan())


def _read_config(options: Options, *, needed: bool = True) -> Config:
    find = required_files if needed else config_files
    return load_config(find(options.config, system=options.locations.is_system))


def _resolve(options: Options, config: Config, sudo_uid: int | None) -> list[MountSpec]:
    user = find_daemon_user(is_system=options.locations.is_system, sudo_uid=sudo_uid)
    return list(resolve_all(config, user).values())


def _answers(options: Options) -> bool:
    from amlmount.client import DaemonClient

    try:
        return not DaemonClient(str(options.locations.socket)).ping().get("ending")
    except AmlmountError:
        return False


def _yield_to_other(options: Options, lock: process.DaemonLock, ready: process.ReadyPipe) -> None:
    if not options.auto:
        raise process.already_running(lock.holder())
    ready.tell({"already": lock.holder()})


def _make_supervisor(
    options: Options,
    specs: list[MountSpec],
    forks: ForkServer | None = None,
    store: DescriptorStore | None = None,
    events: EventHub | None = None,
) -> AccountSupervisor:
    records = RecordStore(os.path.join(options.locations.runtime_dir, "mounts"))
    places = Places.of(options.locations, _log_dir(options))
    runtime_dir = str(options.locations.runtime_dir)
    select = functools.partial(
        select_engine, log_dir=_log_dir(options), places=places, forks=forks, front_dir=runtime_dir
    )
    around = Surroundings(
        *(select, KernelHost(), records, store or NoStore()),
        prepare_cache=prepare_cache,
        look_at_stores=look_at_stores,
        events=events or EventHub(),
    )
    return AccountSupervisor(around, specs)


def _log_dir(options: Options) -> str:
    return str(options.locations.state_dir / "logs")


class _Daemon:
    """The running daemon; what the API calls `Service`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._sudo_uid = _env_number("SUDO_UID")
        self._seen = look_at(self._files)
        self._config = _read_config(options, needed=False)
        self._config_error: AmlmountError | None = None
        self._following: ConfigWatch | None = None
        self._forks = ForkServer()
        self._store = open_store(self._runtime_dir)
        self._events = EventHub(EventFile(events_dir(options.locations.state_dir)))
        specs = self._specs(self._config)
        self.supervisor = _make_supervisor(options, specs, self._forks, self._store, self._events)
        clear_moved = functools.partial(remove_moved, places=options.locations)
        self._caches = CacheKeeper(self.supervisor, lambda: self._config.cache, clear_moved=clear_moved)
        self.figures = Figures(self.supervisor, self._caches.used_bytes.get)
        self.health = HealthKeeper(self.supervisor, lambda: self._config.health)
        self._server = ApiServer(self, self._socket, group=_share(options.locations))
        self._requests = 0
        self._ending = asyncio.Event()
        self.is_handing_over = False
        self._reloads: asyncio.Task[None] | None = None
        self._idle_check: asyncio.TimerHandle | None = None

    async def run(self, ready: process.ReadyPipe) -> None:
        """Serve until the end, then undo everything."""
        async with contextlib.AsyncExitStack() as undo:
            os.makedirs(_log_dir(self._options), mode=0o700, exist_ok=True)
            self._watch_signals()
            undo.callback(self._forks.close)
            undo.callback(self._store.close)
            undo.callback(clear_fronts, self._runtime_dir)
            clear_fronts(self._runtime_dir)
            self._events.tell(kinds.DAEMON_STARTED, f"amlmount {amlmount.__version__}, pid {os.getpid()}")
            self.supervisor.recover(self._store.recall())
            undo.callback(TableWatch(self._on_table).close)
            undo.push_async_callback(self._server.close)
            await self._server.open()
            undo.push_async_callback(self.figures.close)
            self.figures.listen(self._config.metrics.listen)
            undo.push_async_callback(self._close_mounts)
            for watcher in (RefreshTimer(self.supervisor), self._caches, self.health):
                self.supervisor.listen(watcher.on_change)
                undo.callback(watcher.close)
            self.supervisor.listen(self._on_change)
            self.health.begin()
            undo.callback(self._follow_config, until_further=False)
            self._follow_config()
            self._check_idle_after(IDLE_AT_START_S)
            process.keep_out_of_collections()
            log.info("ready: amlmount %s, pid %d, socket %s", amlmount.__version__, os.getpid(), self._socket)
            ready.tell({"ready": os.getpid()})
            notify("READY=1")
            undo.callback(Watchdog(self.supervisor.status).close)
            await self._ending.wait()
            notify("STOPPING=1")
            log.info("ending")

    # --- Service -------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """See Service."""
        config = self._options.config or os.environ.get("AMLMOUNT_CONFIG")
        return {
            "version": amlmount.__version__,
            "pid": os.getpid(),
            "config": str(config) if config else None,
            "auto": self._options.auto,
            "system": self._options.locations.is_system,
            "ending": self._ending.is_set(),
            "program": LOADED.text,
            "config_error": self._config_error.to_json() if self._config_error else None,
        }

    def accept(self) -> None:
        """See Service."""
        if self._ending.is_set():
            raise DaemonUnreachableError("cannot take the request: the daemon is ending", details={"unheard": True})

    def refresh(self, sudo_uid: int | None, *, by_itself: bool = False) -> None:
        """See Service. `by_itself`: nobody asked for it, so what looks like an accident is refused."""
        self._sudo_uid = sudo_uid if sudo_uid is not None else self._sudo_uid
        seen = look_at(self._files)
        try:
            config = _read_config(self._options)
            if by_itself:
                refuse_ruins(self._main_file, self._seen, len(self._config.mounts), len(config.mounts))
            self.supervisor.update(self._specs(config))
        except AmlmountError as error:
            self._config_error = error
            raise
        self._config, self._seen, self._config_error = config, seen, None
        self._follow_config()
        self.figures.listen(config.metrics.listen)
        self._caches.share_out_soon()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """See Service."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._check_idle_after(IDLE_S)

    def end_if_idle(self) -> bool:
        """See Service."""
        if self._options.auto and self._requests <= 1 and not self.supervisor.needed:
            self._ending.set()
        return self._ending.is_set()

    def shut_down(self) -> None:
        """See Service."""
        self._ending.set()

    def hand_over(self) -> None:
        """See Service."""
        self.is_handing_over = True
        self._ending.set()

    # --- inside --------------------------------------------------------------------------------------------------

    def _specs(self, config: Config) -> list[MountSpec]:
        specs = _resolve(self._options, config, self._sudo_uid)
        return assign_state(assign_caches(specs, config.cache, self._options.locations), self._options.locations)

    async def _close_mounts(self) -> None:
        if self.is_handing_over:
            self._events.tell(kinds.DAEMON_LEAVING, "everything stays mounted for the next daemon")
            await self.supervisor.leave(timeout_s=CLOSE_TIMEOUT_S)
        else:
            self._events.tell(kinds.DAEMON_ENDING, "everything is taken down")
            await drain(self.supervisor)
            await self.supervisor.close(timeout_s=CLOSE_TIMEOUT_S)

    @property
    def _runtime_dir(self) -> str:
        return str(self._options.locations.runtime_dir)

    @property
    def _socket(self) -> str:
        return str(self._options.locations.socket)

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.shut_down)
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        loop.add_signal_handler(signal.SIGHUP, functools.partial(self._begin_reload, by_itself=False))
        loop.add_signal_handler(signal.SIGUSR2, self.hand_over)

    def _on_sigterm(self) -> None:
        """End; a service that is stopped only to be started again leaves its mounts to the next daemon."""
        if self._store.kind != "systemd":
            self.shut_down()
            return

        async def ask() -> None:
            user = not self._options.locations.is_system
            restarted = await asyncio.to_thread(functools.partial(is_being_restarted, user=user))
            (self.hand_over if restarted else self.shut_down)()

        self._asking = asyncio.create_task(ask(), name="sigterm")

    def _files(self) -> list[Path]:
        return config_files(self._options.config, system=self._options.locations.is_system)

    @property
    def _main_file(self) -> Path:
        return main_file(self._options.config, system=self._options.locations.is_system)

    def _follow_config(self, *, until_further: bool = True) -> None:
        """Follow the files, or no more, as is wanted now."""
        wanted = until_further and (self._options.watch or self._config.daemon.watch)
        if wanted and self._following is None and not self._ending.is_set():
            folders = config_folders(self._options.config, system=self._options.locations.is_system)
            changed = functools.partial(self._begin_reload, by_itself=True)
            self._following = ConfigWatch(self._files, folders, self._seen, changed)
        elif not wanted and self._following is not None:
            self._following.close()
            self._following = None

    def _begin_reload(self, *, by_itself: bool) -> None:
        self._reloads = asyncio.create_task(self._reload(self._reloads, by_itself), name="reload")

    async def _reload(self, before: "asyncio.Task[None] | None", by_itself: bool) -> None:
        if before is not None and not before.done():
            await asyncio.wait({before})
        notify("RELOADING=1")
        try:
            self.refresh(None, by_itself=by_itself)
            with self.busy():
                outcome = await self.supervisor.reload(timeout_s=RELOAD_TIMEOUT_S)
            for failure in outcome.errors.values():
                log.error("%s", failure.message)
        except AmlmountError as error:
            self._events.tell(kinds.RELOAD_FAILED, f"{error.message}; going on with the old configuration")
        notify("READY=1")

    def _on_table(self, table: list[MountEntry]) -> None:
        self.supervisor.look_at(table)
        self.health.look_at(table)

    def _on_change(self, status: MountStatus) -> None:
        self._check_idle_after(IDLE_S)

    def _check_idle_after(self, delay_s: float) -> None:
        if not self._options.auto:
            return
        if self._idle_check is not None:
            self._idle_check.cancel()
        self._idle_check = asyncio.get_running_loop().call_later(delay_s, self._end_when_idle)

    def _end_when_idle(self) -> None:
        if self._requests == 0 and not self.supervisor.needed:
            self._ending.set()


def _share(where: Locations) -> int | None:
    """Let the group that may use the system's daemon through to its socket; return that group."""
    group = shared_group() if where.is_system and where.socket.parent == where.runtime_dir else None
    if group is not None:
        share_with_group(where.runtime_dir, group)
    return group


def _env_number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else None
