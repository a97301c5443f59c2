"""The API under what nobody should send: garbage, huge heads, slow and silent clients, a thousand connections at once.

Whatever comes, the daemon goes on to answer `ps`; what it answers is HTTP with an error in JSON, or the end.
"""

import contextlib
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from amlmount.api import server
from amlmount.api.peers import Peer
from amlmount.client import DaemonClient
from amlmount.errors import AccessDeniedError, AmlmountError
from sandbox import Sandbox
from test_api import Served
from userbox import ORDINARY_UID, UserBox

EXAMPLES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
PATHS = st.sampled_from(["up", "down", "refresh", "cache", "writing", "check", "reload", "restart", "wait"])
NAMES = st.text(max_size=20) | st.sampled_from(["a", "b"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50) | NAMES,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=10), inside, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    ["names", "name", "wait", "timeout_s", "dry_run", "sudo_uid", "lazy", "path", "what", "how", "x"]
)
BODIES = st.dictionaries(FIELDS, VALUES, max_size=5)


@pytest.fixture
def served(sandbox: Sandbox) -> Iterator[Served]:
    made = Served(sandbox.make_dir("a"))
    yield made
    made.close()


def is_well(served: Served) -> None:
    begun = time.monotonic()
    assert {status.name for status in served.client.status()} == {"a", "b"}
    assert time.monotonic() - begun < 2


def connect(served: Served) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    while True:
        try:
            sock.connect(served.socket)
            return sock
        except BlockingIOError:  # the backlog is full: connect(2) of a unix socket does not wait
            time.sleep(0.001)


def answer_of(served: Served, data: bytes, *, half_close: bool = False) -> bytes:
    """Send it, perhaps with the end of the stream behind it, and return what comes back until the end."""
    with connect(served) as sock:
        got = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            while block := sock.recv(65536):
                got += block
        return got


def post(served: Served, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Return the status and the last line of the answer; a stream comes in chunks."""
    head = f"POST /v1/{path} HTTP/1.0\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    got = answer_of(served, head.encode() + body)
    lines = got.partition(b"\r\n\r\n")[2].strip().splitlines()
    return int(got.split(b" ")[1]), json.loads(lines[-1])


@EXAMPLES
@given(data=st.binary(max_size=3000))
@example(data=b"GET /v1/status HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n")
@example(data=b"POST /v1/up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n")
@example(data=b"GET " + b"/a" * 100_000 + b" HTTP/1.1\r\n\r\n")
@example(data=b"GET /v1/status HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(50_000)) + b"\r\n")
def test_bytes_that_are_no_request(served: Served, data: bytes) -> None:
    got = answer_of(served, data, half_close=True)
    assert not got or got.startswith(b"HTTP/1.")
    is_well(served)


@EXAMPLES
@given(path=PATHS, body=BODIES)
@example(path="up", body={"names": ["a"], "timeout_s": float("nan")})
@example(path="cache", body={"name": "a", "what": "cache", "how": {"limit_bytes": -1}, "timeout_s": 0})
def test_requests_with_bodies_that_mean_nothing(served: Served, path: str, body: dict[str, Any]) -> None:
    body.setdefault("timeout_s", 0.01)
    data = json.dumps(body).encode(errors="replace")
    status, answer = post(served, path, data)
    assert status in (200, 400, 404, 409, 500, 504), (status, answer)
    if status >= 400:
        assert answer["error"]["message"].startswith("cannot ") and "met a bug" not in answer["error"]["message"], (
            answer
        )
    is_well(served)


@settings(EXAMPLES, max_examples=30)
@given(query=st.dictionaries(st.text(max_size=8) | st.sampled_from(["name", "since", "after"]), st.text(max_size=20)))
def test_queries_that_mean_nothing(served: Served, query: dict[str, str]) -> None:
    from urllib.parse import urlencode

    line = f"GET /v1/events?{urlencode(query, errors='replace')} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    got = answer_of(served, line.encode())
    assert got.split(b" ", 2)[1] in (b"200", b"400", b"404"), got
    is_well(served)


@pytest.fixture
def hasty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server that waits for a request's head, and for its body, for a quarter of a second."""
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.25)
    monkeypatch.setattr("amlmount.api.routes.BODY_TIMEOUT_S", 0.25)
    made = Served(sandbox.make_dir("a"))
    yield made
    made.close()


def test_slow_clients_are_hung_up_on(hasty: Served) -> None:
    """One that says nothing, one that sends its head byte by byte, and one that never sends its body."""
    heads = {"silent": b"", "slow": b"POST /v1/up HTTP/1.1\r\nHost", "no body": b"", "follows": b""}
    heads["no body"] = b"POST /v1/up HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"
    heads["follows"] = b'POST /v1/up HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"wait": true}'
    hasty.gate(False)
    socks = {}
    for name, head in heads.items():
        socks[name] = sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(3)
        sock.connect(hasty.socket)
        sock.sendall(head)
    ends = time.monotonic() + 0.6
    while time.monotonic() < ends:
        with contextlib.suppress(OSError):
            socks["slow"].send(b"x")
        time.sleep(0.02)
    assert socks["silent"].recv(100) == b""
    with pytest.raises(ConnectionError):
        socks["slow"].recv(100)
        socks["slow"].send(b"x" * 100)
    assert b" 400 " in (got := socks["no body"].recv(1000)) and b"does not come within" in got
    socks["follows"].setblocking(False)  # a request that takes its time is no slow client
    assert socks["follows"].recv(1000).startswith(b"HTTP/1.1 200")
    for sock in socks.values():
        sock.close()
    is_well(hasty)


def test_a_thousand_connections(served: Served) -> None:
    """As many as are allowed are held, the rest is told so, and all is well as soon as they go."""
    socks = []
    try:
        for _ in range(1000):
            socks.append(connect(served))
        socks[-1].sendall(b"GET /v1/ping HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b" 503 " in (got := socks[-1].recv(4096)) and b"too many connections" in got
        with pytest.raises(AmlmountError, match="too many connections"):
            served.client.status()
        socks[0].sendall(b"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n")
        assert socks[0].recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        for sock in socks:
            sock.close()
    is_well(served)


def test_a_client_waits_for_a_place(served: Served) -> None:
    """All places are taken by connections that the daemon has not come to yet: that is no absent daemon."""
    served.loop.call_soon_threadsafe(time.sleep, 0.5)
    socks: list[socket.socket] = []
    with contextlib.suppress(BlockingIOError):
        while len(socks) < 1000:
            socks.append(sock := socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            sock.connect(served.socket)
    try:
        assert len(socks) <= server.BACKLOG + 2
        assert served.client.ping()["version"]
    finally:
        for sock in socks:
            sock.close()


def test_others_leave_room_for_the_owner(served: Served) -> None:
    """However many connections members of the group open, root and the daemon's user get through."""
    api, member, owner = served.server, Peer(1, 12345, frozenset([7])), Peer(2, os.geteuid(), frozenset())
    for _ in range(server.MAX_CONNECTIONS_OF_OTHERS):
        assert api.has_room_for(member)
        api._of_user[member.uid] += 1
    assert not api.has_room_for(member) and api.has_room_for(owner)
    api.has_left(member)
    assert api.has_room_for(member)


@pytest.mark.root
def test_who_is_not_meant_is_refused_even_if_the_socket_lets_them(sandbox: Sandbox, as_user: UserBox) -> None:
    """Somebody has opened the socket's mode: the kernel still says who asks."""
    folder = sandbox.make_dir("a", 0o755)
    served = Served(folder)
    try:
        assert stat.S_IMODE(os.stat(served.socket).st_mode) == 0o600
        os.chmod(served.socket, 0o666)
        client = "import sys; from amlmount.client import DaemonClient; DaemonClient(sys.argv[1]).status()"
        done = as_user.run(sys.executable, "-c", client, served.socket)
        assert f"cannot use the daemon as user {ORDINARY_UID}: it is for root and the group amlmount" in done.stderr
        assert AccessDeniedError.__name__ in done.stderr
        assert DaemonClient(served.socket).status()
    finally:
        served.close()
