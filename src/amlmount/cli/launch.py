"""Finding the daemon that is meant, and starting one if there is none.

The child gets nothing of ours but its log and a pipe on which it says, once, how its start went.
"""

import json
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from amlmount.cli.settings import locations, named_config, setting

if TYPE_CHECKING:
    from amlmount.client import DaemonClient
    from amlmount.config.locations import Locations
    from amlmount.errors import AmlmountError
    from amlmount.run import Process
    from amlmount.states import MountStatus

START_TIMEOUT_S = 60.0
MAX_STARTS = 20
Answer = TypeVar("Answer")
TAIL_LINES = 5
NOTHING_RUNS = "nothing is mounted: no daemon runs"
LEFTOVERS = "no daemon runs, but one that ended has left mounts: `amlmount up` looks after them again, `down` ends them"


def find_daemon(ctx: typer.Context) -> "DaemonClient | None":
    """Return a client of the running daemon, None if none runs (one that is ending is waited for).

    Raises ConfigError if it runs with another configuration than the one that is named.
    """
    from amlmount.client import DaemonClient, wait_until_gone
    from amlmount.errors import DaemonUnreachableError

    client = DaemonClient(str(locations(ctx).socket))
    for _ in range(MAX_STARTS):
        try:
            info = client.ping()
        except DaemonUnreachableError as error:
            if not error.details.get("absent"):
                raise
            return None
        if not info["ending"]:
            _check_same_config(ctx, info)
            return client
        wait_until_gone(info["pid"])
    raise DaemonUnreachableError("cannot reach the daemon: it is ending and does not get there", hint="see its log")


def mounts_called(client: "DaemonClient", name: str) -> "list[MountStatus]":
    """Return the mounts a name stands for: of an account that of each container. Raises NotFoundError."""
    found = client.status([name])
    return [status for status in found if status.name != name] or found


def ask(ctx: typer.Context, question: "Callable[[DaemonClient], Answer]") -> "Answer | None":
    """Return the daemon's answer, None if none runs. One that ends before it can answer is asked for again."""
    from amlmount.errors import DaemonUnreachableError

    for _ in range(MAX_STARTS):
        client = find_daemon(ctx)
        if client is None:
            return None
        try:
            return question(client)
        except DaemonUnreachableError as error:
            if not error.details.get("unheard"):
                raise
    raise DaemonUnreachableError("cannot get an answer: each daemon ends at once", hint="see daemon.log")


def find_or_start_daemon(ctx: typer.Context) -> "DaemonClient":
    """Return a client of the running daemon; start one if none runs. Raises what kept it from starting."""
    from amlmount.errors import DaemonUnreachableError

    for _ in range(MAX_STARTS):
        client = find_daemon(ctx)
        if client is not None:
            return client
        _start_daemon(ctx)
    raise DaemonUnreachableError("cannot keep a daemon running: each ends at once", hint="see daemon.log")


def has_leftovers(places: "Locations") -> bool:
    """Say whether a daemon that was killed left records of mounts."""
    try:
        return any(name.endswith(".json") for name in os.listdir(places.runtime_dir / "mounts"))
    except OSError:
        return False


def _check_same_config(ctx: typer.Context, info: dict[str, Any]) -> None:
    from amlmount.errors import ConfigError

    named = named_config(ctx)
    if named is not None and str(named) != info["config"]:
        raise ConfigError(
            f"cannot use '{named}': the daemon (pid {info['pid']}) runs with {info['config'] or 'the usual files'}",
            hint="give each configuration a daemon of its own with AMLMOUNT_RUNTIME_DIR, or `amlmount down` first",
        )


def _start_daemon(ctx: typer.Context) -> None:
    from amlmount.errors import from_json
    from amlmount.run import spawn

    places = locations(ctx)
    reader, writer = os.pipe()
    log_fd = _open_log(places)
    try:
        argv = _argv(ctx, writer)
        child = spawn(argv, env=_env(places), pass_fds=[writer], stdout=log_fd, stderr=log_fd, cwd="/")
        os.close(writer)
        writer = -1
        message = _read_message(reader)
        if message is None:
            raise _died(child, places)
        child.close()
        if "error" in message:
            raise from_json(message["error"])
    finally:
        for fd in (reader, writer, log_fd):
            if fd >= 0:
                os.close(fd)


def _argv(ctx: typer.Context, ready_fd: int) -> list[str]:
    config, system = named_config(ctx), setting(ctx, "system")
    # -P: the directory we happen to be in is no place to import modules from.
    argv = [sys.executable, "-P", "-m", "amlmount"]
    argv += ["--config", str(config)] if config else []
    argv += [] if system is None else ["--system" if system else "--user"]
    argv += ["--verbose"] if setting(ctx, "verbose") else []
    return [*argv, "daemon", "--auto", "--ready-fd", str(ready_fd)]


def _env(places: "Locations") -> dict[str, str]:
    """Our whole environment (secrets may be named by variable), with places that do not depend on the directory."""
    names = {
        "AMLMOUNT_RUNTIME_DIR": places.runtime_dir,
        "AMLMOUNT_STATE_DIR": places.state_dir,
        "AMLMOUNT_CACHE_ROOT": places.cache_root,
        "AMLMOUNT_SOCKET": places.socket,
    }
    return dict(os.environ) | {name: str(path) for name, path in names.items() if os.environ.get(name)}


def _open_log(places: "Locations") -> int:
    from amlmount.errors import ConfigError

    path = places.state_dir / "daemon.log"
    try:
        os.makedirs(places.state_dir, mode=0o700, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write the daemon's log '{path}': {(error.strerror or '').lower()}",
            hint="set AMLMOUNT_STATE_DIR to a directory that can be written",
        ) from error


def _read_message(reader: int) -> dict[str, Any] | None:
    waiter = select.poll()
    waiter.register(reader, select.POLLIN)
    text = b""
    while not text.endswith(b"\n") and waiter.poll(START_TIMEOUT_S * 1000):
        block = os.read(reader, 65536)
        if not block:
            break
        text += block
    message: dict[str, Any] | None = json.loads(text) if text.endswith(b"\n") else None
    return message


def _died(child: "Process", places: "Locations") -> "AmlmountError":
    from amlmount.errors import AmlmountError
    from amlmount.run import how_it_ended

    returncode = child.wait(1.0)
    path = places.state_dir / "daemon.log"
    how = "it does not get ready" if returncode is None else f"it {how_it_ended(returncode)}"
    return AmlmountError(f"cannot start the daemon: {how}", hint=f"the end of {path}: {_tail(str(path))}")


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            return " | ".join(file.read().decode(errors="replace").splitlines()[-TAIL_LINES:])
    except OSError:
        return "(cannot be read)"
