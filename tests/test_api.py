"""The API over a real unix socket, with the real client, a supervisor of fakes, and requests nobody should send."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from amlmount.api import ApiServer, Figures
from amlmount.client import DaemonClient
from amlmount.config.models import HealthConfig
from amlmount.errors import ConfigError, DaemonUnreachableError, NetworkError, NotFoundError, UsageError
from amlmount.states import MountState, MountStatus
from amlmount.supervisor import HealthKeeper, RecordStore, Supervisor
from fake_engine import FakeWorld, spec_named
from sandbox import Sandbox


class FakeService:
    """The daemon without a process: never ends, its configuration never changes unless `trouble` is set."""

    def __init__(self, world: FakeWorld) -> None:
        self.world = world
        self.trouble: Exception | None = None
        self.sudo_uid: int | None = None
        self.requests = 0
        self.is_handing_over = False

    @property
    def supervisor(self) -> Supervisor:
        return self.world.supervisor

    @property
    def figures(self) -> Figures:
        return Figures(self.supervisor)

    @property
    def health(self) -> HealthKeeper:
        return HealthKeeper(self.world.supervisor, HealthConfig)

    def describe(self) -> dict[str, Any]:
        return {"version": "0", "pid": os.getpid(), "config": None, "auto": False, "ending": False}

    def accept(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    def refresh(self, sudo_uid: int | None) -> None:
        self.sudo_uid = sudo_uid

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def end_if_idle(self) -> bool:
        return False

    def hand_over(self) -> None:
        self.is_handing_over = True

    def shut_down(self) -> None:
        self.trouble = DaemonUnreachableError("cannot take the request: the daemon is ending")


class Served:
    """The service in a thread with a loop of its own, and a client of it."""

    def __init__(self, directory: str) -> None:
        self.socket = f"{directory}/s"
        self.client = DaemonClient(self.socket)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.run(self._open(directory))

    async def _open(self, directory: str) -> None:
        self.world = FakeWorld(RecordStore(f"{directory}/mounts"))
        self.service = FakeService(self.world)
        self.server = ApiServer(self.service, self.socket)
        await self.server.open()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def until(self, **states: str) -> None:
        self.run(self.world.until(**states))

    async def remove(self, name: str) -> None:
        """Take a mount out of the configuration."""
        self.world.supervisor.update([spec_named(other) for other in self.world.names if other != name])

    def gate(self, is_open: bool) -> None:
        gate = self.world.engine.gate
        self.loop.call_soon_threadsafe(gate.set if is_open else gate.clear)

    def raw(self, data: bytes, timeout_s: float = 5) -> bytes:
        """Send bytes, read all that comes."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout_s)
            sock.connect(self.socket)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
                answer = b""
                while block := sock.recv(65536):
                    answer += block
                    if b"\r\n\r\n" in answer and b'"ending"' in answer:
                        break
                return answer
        return b""

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = self.raw(head.encode() + body)
        return int(answer.split(b" ")[1]), json.loads(answer.partition(b"\r\n\r\n")[2])

    def close(self) -> None:
        self.gate(True)
        self.run(self.world.supervisor.close(timeout_s=5))
        self.run(self.server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def served(sandbox: Sandbox) -> Iterator[Served]:
    made = Served(sandbox.make_dir("a"))
    yield made
    made.close()


def test_up_status_down(served: Served) -> None:
    seen: list[MountStatus] = []
    outcome = served.client.up(None, wait=True, timeout_s=5, sudo_uid=7, progress=seen.append)
    assert {status.name: status.state for status in outcome.mounts} == {"a": "mounted", "b": "mounted"}
    assert {status.name for status in seen} == {"a", "b"} and served.service.sudo_uid == 7
    [status] = served.client.status(["b"])
    assert status.state is MountState.MOUNTED and status.engine_why == "blobfuse2 not installed"
    assert {s.state for s in served.client.down(["b"], lazy=False, timeout_s=5).mounts} == {"unmounted"}
    assert [s.state for s in served.client.status()] == ["mounted", "unmounted"]


def test_restart_reload_and_their_plan(served: Served) -> None:
    served.client.up(None, wait=True, timeout_s=5)
    before = {status.name: status.pid for status in served.client.status()}
    seen: list[MountStatus] = []
    outcome = served.client.restart(["a"], timeout_s=5, sudo_uid=3, progress=seen.append)
    assert outcome.errors == {} and served.service.sudo_uid == 3 and seen
    after = {status.name: status.pid for status in served.client.status()}
    assert after["a"] != before["a"] and after["b"] == before["b"]
    with pytest.raises(NotFoundError):
        served.client.restart(["nope"], timeout_s=5)
    assert served.client.changes() == []
    served.run(served.remove("b"))
    assert [(change.name, change.action) for change in served.client.changes()] == [("b", "remove")]
    assert [status.state for status in served.client.reload(timeout_s=5).mounts] == ["unmounted"]
    assert [status.name for status in served.client.status()] == ["a"]


def test_hand_over(served: Served) -> None:
    assert served.post("/v1/handover", b"{}") == (200, {"ending": True})
    assert served.service.is_handing_over


def test_errors_come_back_as_they_were_raised(served: Served) -> None:
    with pytest.raises(NotFoundError, match="cannot find a mount named 'x y&z'") as caught:
        served.client.status(["x y&z"])
    assert caught.value.hint == "the configuration has: a, b"
    with pytest.raises(NotFoundError):
        served.client.up(["nope"], wait=True, timeout_s=5)
    served.service.trouble = ConfigError("cannot read x", hint="line 3")
    with pytest.raises(ConfigError, match="cannot read x"):
        served.client.up(None, wait=True, timeout_s=5)


def test_busy_down_carries_the_holders(served: Served) -> None:
    served.client.up(["a"], wait=True, timeout_s=5)
    served.world.engine.busy = True
    outcome = served.client.down(["a"], lazy=False, timeout_s=5)
    assert outcome.errors["a"].code == "busy" and outcome.errors["a"].details["holders"][0]["pid"] == 7
    assert outcome.errors["a"].message.startswith("cannot unmount 'a' at '/fake/a': in use by cat")


def test_whoever_walks_away_from_up_takes_it_back(served: Served) -> None:
    served.gate(False)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(served.socket)
        body = b'{"names": ["a"], "wait": true}'
        sock.sendall(b"POST /v1/up HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while "start a" not in served.world.engine.log:
            time.sleep(0.001)
    served.until(a="unmounted")
    assert "undo a" in served.world.engine.log


def test_a_plan_is_only_told(served: Served) -> None:
    plans = served.client.plan(None)
    assert [(plan["name"], plan["action"], plan["makes"]) for plan in plans] == [
        ("a", "mount", ["/fake/a"]),
        ("b", "mount", ["/fake/b"]),
    ]
    assert served.world.engine.log == []


def test_shutdown_refuses_more(served: Served) -> None:
    served.client.shut_down()
    with pytest.raises(DaemonUnreachableError, match="ending"):
        served.client.up(None, wait=True, timeout_s=5)


def test_the_socket_is_ours_alone(served: Served) -> None:
    assert stat.S_IMODE(os.stat(served.socket).st_mode) == 0o600


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"names": "a"}', b'{"nmaes": ["a"]}', b'{"timeout_s": -1}', b'{"timeout_s": 1e400}', b"\xff\xfe"],
)
def test_malformed_bodies_are_refused_in_plain_words(served: Served, body: bytes) -> None:
    status, answer = served.post("/v1/up", body)
    assert status == 400 and answer["error"]["code"] == UsageError.code
    assert answer["error"]["message"].startswith("cannot read the request: ")
    assert served.world.engine.log == []


def test_sizes_are_bounded(served: Served) -> None:
    status, answer = served.post("/v1/up", b'{"names": ["' + b"x" * (2 << 20) + b'"]}')
    assert status == 413 and answer["error"]["message"].startswith("cannot serve POST /v1/up")
    assert b" 400 " in served.raw(b"GET /v1/ping HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")[:40]


def test_garbage_does_not_hurt(served: Served) -> None:
    assert b" 400 " in served.raw(b"\x00\x01\x02\r\n\r\n")[:40]
    assert served.post("/v1/nothing", b"")[0] == 404
    assert served.post("/v1/ping", b"")[0] == 405
    assert served.client.ping()["pid"] == os.getpid()


def test_a_bug_in_the_daemon_is_no_traceback_for_the_client(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeService, "describe", lambda _: 1 / 0)
    with pytest.raises(Exception, match="cannot serve the request: the daemon met a bug"):
        served.client.ping()
    assert "ZeroDivisionError" in caplog.text


def test_status_is_quick_while_mounts_are_being_made(served: Served) -> None:
    served.gate(False)
    served.client.up(None, wait=False, timeout_s=5)
    begin = time.monotonic()
    assert {status.state for status in served.client.status()} <= {"pending", "mounting"}
    assert time.monotonic() - begin < 1


def test_network_trouble_is_told_while_it_is_tried_again(served: Served) -> None:
    served.world.engine.start_errors = [NetworkError("cannot reach the store")] * 3
    seen: list[MountStatus] = []
    outcome = served.client.up(["a"], wait=True, timeout_s=5, progress=seen.append)
    assert outcome.errors == {}
    assert any(status.last_error and status.last_error.code == "network" for status in seen)


class TestNobodyThere:
    """What the client says without a daemon."""

    def test_no_socket(self, sandbox: Sandbox) -> None:
        with pytest.raises(DaemonUnreachableError, match="nobody listens") as caught:
            DaemonClient(sandbox.make_dir("a") + "/s").ping()
        assert caught.value.details["absent"]

    def test_a_dead_daemons_socket(self, sandbox: Sandbox) -> None:
        path = sandbox.make_dir("a") + "/s"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        with pytest.raises(DaemonUnreachableError, match="nobody listens"):
            DaemonClient(path).ping()

    @pytest.mark.parametrize("answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
    def test_one_that_goes_away(self, sandbox: Sandbox, answer: bytes) -> None:
        path = sandbox.make_dir("a") + "/s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()

            def answer_once() -> None:
                peer, _ = listener.accept()
                with peer:
                    peer.recv(65536)
                    peer.sendall(answer)

            thread = threading.Thread(target=answer_once)
            thread.start()
            with pytest.raises(DaemonUnreachableError, match="went away"):
                DaemonClient(path).ping()
            thread.join()
