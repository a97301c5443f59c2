"""The daemon's API as calls: standard library only, so that commands start quickly.

Every method opens a connection of its own; errors come back as the AmlmountError that the daemon raised.
`details["unheard"]` of a DaemonUnreachableError: it did nothing with the request, so asking another one is safe.
"""

import contextlib
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from amlmount.errors import AmlmountError, DaemonUnreachableError, from_json
from amlmount.states import Change, MountStatus, Outcome, Refreshed

if TYPE_CHECKING:
    from amlmount.events.event import Event
    from amlmount.states.stats import MountStats

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
MAX_LINE_BYTES = 16 << 20
Progress = Callable[[MountStatus], None]


class DaemonClient:
    """Talks to the daemon behind `socket_path`. Every call raises DaemonUnreachableError if there is none."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path

    def ping(self) -> dict[str, Any]:
        """Return version, pid, configuration of the daemon."""
        return self._call("GET", "/v1/ping")

    def status(self, names: Sequence[str] | None = None) -> list[MountStatus]:
        """Return the status of the named mounts or of all. Raises NotFoundError."""
        query = "?" + urlencode([("name", name) for name in names]) if names else ""
        return [MountStatus.from_json(data) for data in self._call("GET", f"/v1/status{query}")["mounts"]]

    def up(
        self,
        names: Sequence[str] | None,
        *,
        wait: bool,
        timeout_s: float,
        sudo_uid: int | None = None,
        progress: Progress = lambda _: None,
    ) -> Outcome:
        """Bring mounts up; `progress` is called at every change. Closing the connection (Ctrl-C) takes it back."""
        body = {"names": names, "wait": wait, "timeout_s": timeout_s, "sudo_uid": sudo_uid}
        return self._follow("/v1/up", body, timeout_s + ANSWER_TIMEOUT_S, progress)

    def plan(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        """Return what `up` would do, one object a mount (`states.Plan.to_json`)."""
        plans: list[dict[str, Any]] = self._call("POST", "/v1/up", {"names": names, "dry_run": True})["plans"]
        return plans

    def down(
        self,
        names: Sequence[str] | None,
        *,
        lazy: bool,
        timeout_s: float,
        progress: Progress = lambda _: None,
    ) -> Outcome:
        """Take mounts down. If that was the last thing the daemon was for, return once it has gone."""
        body = {"names": names, "lazy": lazy, "timeout_s": timeout_s}
        return self._follow("/v1/down", body, timeout_s + ANSWER_TIMEOUT_S, progress)

    def refresh(self, name: str, path: str | None, *, timeout_s: float) -> Refreshed:
        """Have a mount look at its store again, all of it or what is at and below `path`; return what changed."""
        body = {"name": name, "path": path, "timeout_s": timeout_s}
        return Refreshed.from_json(self._call("POST", "/v1/refresh", body, timeout_s + ANSWER_TIMEOUT_S))

    def ask_cache(self, name: str, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return a mount's answer about its cache (`worker.caching`, `worker.known_files`)."""
        body = {"name": name, "what": what, "how": how, "timeout_s": timeout_s}
        return self._call("POST", "/v1/cache", body, timeout_s + ANSWER_TIMEOUT_S)

    def check(self, names: Sequence[str] | None, *, rw: bool, timeout_s: float) -> list[MountStatus]:
        """Have the daemon look at everything of these mounts (None: all that are wanted) now. Raises NotFoundError."""
        body = {"names": names, "rw": rw, "timeout_s": timeout_s}
        mounts = self._call("POST", "/v1/check", body, 3 * timeout_s + ANSWER_TIMEOUT_S)["mounts"]
        return [MountStatus.from_json(data) for data in mounts]

    def ask_writing(self, name: str, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return a mount's answer about what is not in the store yet (`worker.writing`)."""
        body = {"name": name, "what": what, "how": how, "timeout_s": timeout_s}
        return self._call("POST", "/v1/writing", body, timeout_s + ANSWER_TIMEOUT_S)

    def wait(
        self, names: Sequence[str], goal: str, *, timeout_s: float, progress: Progress = lambda _: None
    ) -> Outcome:
        """Return once mounts are `mounted`, `healthy` or `gone`; those that it takes too long are among the errors."""
        body = {"names": list(names), "goal": goal, "timeout_s": timeout_s}
        return self._follow("/v1/wait", body, timeout_s + ANSWER_TIMEOUT_S, progress)

    def events(
        self, names: Sequence[str] | None = None, *, since_s: float = 0.0, after: int = 0, follow: bool = False
    ) -> "Iterator[Event]":
        """Yield the events that are kept, the oldest first, and with `follow` those that happen until the daemon ends.

        `since_s`: seconds since 1970. `after`: only those with a higher number.
        """
        from amlmount.events.event import Event

        query = urlencode(
            [("since", since_s), ("after", after), ("follow", int(follow)), *[("name", name) for name in names or ()]]
        )
        timeout_s = None if follow else ANSWER_TIMEOUT_S
        with self._exchange("GET", f"/v1/events?{query}", None, timeout_s) as (_, response):
            while line := response.readline(MAX_LINE_BYTES):
                yield Event.from_json(json.loads(line))

    def stats(self, names: Sequence[str] | None = None, *, within_s: float) -> "list[MountStats]":
        """Return the figures of the mounts that are served, after about `within_s` seconds at most.

        Raises NotFoundError.
        """
        from amlmount.states.stats import MountStats

        query = urlencode([("within", within_s), *[("name", name) for name in names or ()]])
        return [MountStats.from_json(data) for data in self._call("GET", f"/v1/stats?{query}")["stats"]]

    def metrics(self) -> str:
        """Return what Prometheus reads."""
        with self._exchange("GET", "/metrics", None, ANSWER_TIMEOUT_S) as (_, response):
            return response.read().decode()

    def changes(self) -> list[Change]:
        """Return what `reload` would do; the configuration is read again for that."""
        answer = self._call("POST", "/v1/reload", {"dry_run": True})
        return [Change.from_json(change) for change in answer["changes"]]

    def reload(self, *, timeout_s: float, sudo_uid: int | None = None, progress: Progress = lambda _: None) -> Outcome:
        """Make what is mounted as the configuration says; `progress` as in `up`."""
        body = {"timeout_s": timeout_s, "sudo_uid": sudo_uid}
        return self._follow("/v1/reload", body, timeout_s + ANSWER_TIMEOUT_S, progress)

    def restart(
        self,
        names: Sequence[str] | None,
        *,
        timeout_s: float,
        sudo_uid: int | None = None,
        progress: Progress = lambda _: None,
    ) -> Outcome:
        """Put new mounts in the place of these (None: of all that are up); `progress` as in `up`."""
        body = {"names": names, "timeout_s": timeout_s, "sudo_uid": sudo_uid}
        return self._follow("/v1/restart", body, timeout_s + ANSWER_TIMEOUT_S, progress)

    def restarts(self, names: Sequence[str] | None, *, upgrade: bool) -> list[Change]:
        """Return what `restart` would do; with `upgrade`, for those that another program would serve."""
        body = {"names": names, "dry_run": True, "upgrade": upgrade}
        answer = self._call("POST", "/v1/restart", body)
        return [Change.from_json(change) for change in answer["changes"]]

    def hand_over(self) -> int:
        """Have the daemon end with everything left mounted, and return its pid once it has gone."""
        with self._exchange("POST", "/v1/handover", {}, ANSWER_TIMEOUT_S) as (connection, response):
            response.read()
        wait_until_gone(connection.peer_pid)
        return connection.peer_pid

    def shut_down(self) -> None:
        """Ask the daemon to take everything down and end; returns at once."""
        self._call("POST", "/v1/shutdown", {})

    # --- inside --------------------------------------------------------------------------------------------------

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> dict[str, Any]:
        with self._exchange(method, path, body, timeout_s) as (_, response):
            data: dict[str, Any] = json.loads(response.read())
            return data

    def _follow(self, path: str, body: dict[str, Any], timeout_s: float, progress: Progress) -> Outcome:
        with self._exchange("POST", path, body, timeout_s) as (connection, response):
            last = _read_until_last(response, progress)
        if last.get("ending"):
            wait_until_gone(connection.peer_pid)
        if "error" in last:
            raise from_json(last["error"])
        return Outcome.from_json(last["outcome"])

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float | None
    ) -> "Iterator[tuple[_UnixConnection, HTTPResponse]]":
        connection = _UnixConnection(self.socket_path)
        answered = False
        try:
            connection.open(timeout_s)
            connection.request(method, path, json.dumps(body) if body is not None else None)
            response = connection.getresponse()
            answered = True
            if response.status >= 400:
                raise _error_of(response, connection.peer_pid)
            yield connection, response
        except (ConnectionError, HTTPException, ValueError) as error:
            raise _went_away(self.socket_path, answered) from error
        except TimeoutError as error:
            raise DaemonUnreachableError(
                f"cannot get an answer from the daemon at {self.socket_path} within {timeout_s:g} s",
                hint="it hangs: its log says more (daemon.log in the state directory)",
            ) from error
        finally:
            connection.close()


class _UnixConnection(HTTPConnection):
    """HTTP over a unix socket; the host name means nothing."""

    def __init__(self, socket_path: str) -> None:
        super().__init__("amlmount")
        self._socket_path = socket_path
        self.peer_pid = 0

    def open(self, timeout_s: float | None) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT_S)
        try:
            _connect(self.sock, self._socket_path)
        except OSError as error:
            raise _unreachable(self._socket_path, error) from error
        self.sock.settimeout(timeout_s)
        # The kernel's word for who listens: SO_PEERCRED, unix(7).
        packed = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.peer_pid = struct.unpack("3i", packed)[0]


def _connect(sock: socket.socket, path: str) -> None:
    """Connect, and wait for a place if all are taken: for a unix socket connect(2) says EAGAIN then, timeout or not."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def wait_until_gone(pid: int, timeout_s: float = 40.0) -> None:
    """Wait until the daemon `pid` has ended, which is after it has removed its socket; gives up quietly."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        waiter = select.poll()
        waiter.register(pidfd, select.POLLIN)
        waiter.poll(timeout_s * 1000)
    finally:
        os.close(pidfd)


def _read_until_last(response: HTTPResponse, progress: Progress) -> dict[str, Any]:
    while line := response.readline(MAX_LINE_BYTES):
        data: dict[str, Any] = json.loads(line)
        if "progress" not in data:
            return data
        progress(MountStatus.from_json(data["progress"]))
    raise ConnectionResetError("the stream ended early")


def _error_of(response: HTTPResponse, peer_pid: int) -> AmlmountError:
    try:
        data = json.loads(response.read())
        if data.get("ending"):
            wait_until_gone(peer_pid)
        return from_json(data["error"])
    except (ValueError, KeyError, TypeError):
        return AmlmountError(f"cannot use the daemon: it answered {response.status} {response.reason}")


def _unreachable(path: str, error: OSError) -> AmlmountError:
    if isinstance(error, PermissionError):
        return DaemonUnreachableError(f"cannot reach the daemon at {path}: permission denied", hint="use sudo")
    return DaemonUnreachableError(
        f"cannot reach the daemon: nobody listens at {path}",
        hint="`amlmount up` starts one",
        details={"absent": True, "unheard": True},
    )


def _went_away(path: str, answered: bool) -> AmlmountError:
    return DaemonUnreachableError(
        f"cannot finish the request: the daemon at {path} went away",
        hint="its log says why (daemon.log in the state directory); `amlmount up` starts it again",
        details={"unheard": not answered},
    )
