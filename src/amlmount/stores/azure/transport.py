"""HTTP/1.1 with kept connections, proxies, own certificate authorities, and a deadline on every byte.

Built on http.client: azure-core's pipeline costs 0.1 s more to import and 13 MB a process, and cannot time out
a body that trickles. Knows nothing of Azure.
"""

import contextlib
import functools
import http.client
import io
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from amlmount.errors import ConfigError
from amlmount.metrics import UPLOADS
from amlmount.stores.azure.timing import Deadline, Timing
from amlmount.stores.pieces import Body, Pieces

CHUNK_BYTES = 256 * 1024
# Azure closes a silent connection after some minutes; firewalls on the way sooner.
_MAX_IDLE_S = 45.0
_MAX_IDLE_CONNECTIONS = 64
_DRAIN_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask: `path` is quoted, `query` is not."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = b""


class StaleConnectionError(ConnectionError):
    """A kept connection turned out to be closed by the other side: a new one is worth trying at once."""


class _TimedReader(io.RawIOBase):
    """Reads a socket; each read waits for `silence_s` at most, and never past the deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline, silence_s: float) -> None:
        self._sock, self._deadline, self._silence_s = sock, deadline, silence_s
        self._raw: Any = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.bound(self._silence_s))
        return self._raw.readinto(buffer)  # type: ignore[no-any-return]

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _TimedSocket:
    """The part of a socket that http.client uses, under a deadline that is set anew for every request."""

    def __init__(self, sock: socket.socket, silence_s: float) -> None:
        self._sock, self._silence_s = sock, silence_s
        self.deadline = Deadline(silence_s)
        self.body_bytes = 0  # of the present request, as far as it has left

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self.deadline, self._silence_s), CHUNK_BYTES)

    def sendall(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            self._sock.settimeout(self.deadline.bound(self._silence_s))
            # In pieces: TLS takes all it is given at once, and its time limit would be for the whole body.
            view = view[self._sock.send(view[:CHUNK_BYTES]) :]

    def send_body(self, body: Body) -> None:
        """Send the body of a request and count it as it leaves."""
        for piece in body if isinstance(body, Pieces) else _cut(body):
            self.sendall(piece)
            self.body_bytes += len(piece)
            UPLOADS.add(len(piece))

    def settle(self, *, is_accepted: bool) -> None:
        """The request is over; a body that was not accepted has to be sent again, so it has not got anywhere."""
        if not is_accepted:
            UPLOADS.add(-self.body_bytes)
        self.body_bytes = 0

    def close(self) -> None:
        self._sock.close()


def _cut(body: bytes | memoryview) -> Iterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


class Response:
    """An answer whose body is still on its way; `close` gives the connection back if it was read to its end."""

    def __init__(self, pool: "Pool", connection: http.client.HTTPConnection, reply: http.client.HTTPResponse) -> None:
        self._pool, self._connection, self._reply = pool, connection, reply
        self.status = reply.status
        self.headers = reply.headers
        self._is_open = True

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes. Raises OSError or HTTPException when it breaks off."""
        while chunk := self._reply.read1(CHUNK_BYTES):
            yield chunk
        if self._reply.length:
            raise http.client.IncompleteRead(b"", self._reply.length)

    def read(self) -> bytes:
        """Return the whole body. Raises OSError or HTTPException when it breaks off."""
        return self._reply.read()

    def close(self) -> None:
        """Give the connection back, or close it if more of the body would come than is worth reading."""
        if not self._is_open:
            return
        self._is_open = False
        reply = self._reply
        if not reply.isclosed() and reply.length is not None and reply.length <= _DRAIN_BYTES:
            with contextlib.suppress(OSError, http.client.HTTPException):
                reply.read()
        self._pool.take_back(self._connection, is_clean=reply.isclosed() and not reply.will_close)

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Exchange:
    """A request that has been sent; `response` waits for the answer."""

    def __init__(self, pool: "Pool", connection: http.client.HTTPConnection, is_reused: bool) -> None:
        self._pool, self._connection, self._is_reused = pool, connection, is_reused

    def response(self) -> Response:
        """Wait for status and headers. Raises OSError or HTTPException; the connection is gone then."""
        sock: Any = self._connection.sock
        with _closed_on_error(self._connection, self._is_reused):
            reply = self._connection.getresponse()
            sock.settle(is_accepted=reply.status < 300)
            return Response(self._pool, self._connection, reply)

    def abandon(self) -> None:
        """Close the connection: nobody wants the answer any more."""
        self._connection.close()


class Pool:
    """Connections to one server. Threads share it; a forked child needs its own."""

    def __init__(self, scheme: str, host: str, port: int, timing: Timing) -> None:
        """Raises ConfigError for authorities (`find_ca_file`) that cannot be read, and for an impossible proxy."""
        self._scheme, self._host, self._port, self._timing = scheme, host, port, timing
        self._ssl = _ssl_context(find_ca_file()) if scheme == "https" else None
        self.proxy = find_proxy(scheme, host)
        self._idle: deque[tuple[http.client.HTTPConnection, float]] = deque()
        self._lock = threading.Lock()
        self._is_closed = False

    def send(self, request: Request, deadline: Deadline, *, fresh: bool = False) -> Exchange:
        """Send a request on an idle connection, or on a new one. Raises OSError or HTTPException."""
        connection = None if fresh else self._take()
        is_reused = connection is not None
        connection = connection or self._connect(deadline)
        sock: Any = connection.sock
        sock.deadline = deadline
        with _closed_on_error(connection, is_reused):
            self._write(connection, request)
        return Exchange(self, connection, is_reused)

    def take_back(self, connection: http.client.HTTPConnection, *, is_clean: bool) -> None:
        """Keep a connection for the next request, if it can serve one."""
        if is_clean:
            with self._lock:
                if not self._is_closed and len(self._idle) < _MAX_IDLE_CONNECTIONS:
                    self._idle.append((connection, time.monotonic()))
                    return
        connection.close()

    def connect_tls(self, deadline: Deadline) -> ssl.SSLSocket:
        """Return one new connection, for looking at its certificate. Raises OSError or HTTPException."""
        connection = self._new_connection(deadline.bound(self._timing.connect_s))
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        return connection.sock

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = list(self._idle), deque()
        for connection, _ in idle:
            connection.close()

    def _take(self) -> http.client.HTTPConnection | None:
        oldest = time.monotonic() - _MAX_IDLE_S
        with self._lock:
            while self._idle:
                connection, since = self._idle.pop()
                if since >= oldest:
                    return connection
                connection.close()
        return None

    def _connect(self, deadline: Deadline) -> http.client.HTTPConnection:
        connection = self._new_connection(deadline.bound(self._timing.connect_s))
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        sock: Any = _TimedSocket(connection.sock, self._timing.silence_s)
        connection.sock = sock
        return connection

    def _new_connection(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = self._host, self._port
        proxy = urlsplit(self.proxy) if self.proxy else None
        if proxy is not None:
            host, port = proxy.hostname or "", proxy.port or 80
        if self._ssl is None:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._ssl)
        if proxy is not None:
            connection.set_tunnel(self._host, self._port, _proxy_headers(proxy.username, proxy.password))
        return connection

    def _write(self, connection: http.client.HTTPConnection, request: Request) -> None:
        target = request.path + ("?" + urlencode(request.query, quote_via=quote) if request.query else "")
        host = f"[{self._host}]" if ":" in self._host else self._host
        netloc = f"{host}:{self._port}"
        headers = dict(request.headers)
        if self.proxy and self._ssl is None:
            proxy = urlsplit(self.proxy)
            target = f"http://{netloc}{target}"
            headers |= _proxy_headers(proxy.username, proxy.password)
        connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host if self._port in (80, 443) else netloc)
        for name, value in headers.items():
            connection.putheader(name, value)
        if request.body or request.method in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(request.body)))
        connection.endheaders()
        if request.body:
            sock: Any = connection.sock
            sock.send_body(request.body)


@contextlib.contextmanager
def _closed_on_error(connection: http.client.HTTPConnection, is_reused: bool) -> Iterator[None]:
    sock: Any = connection.sock
    try:
        yield
    except BaseException as error:
        sock.settle(is_accepted=False)
        connection.close()
        if is_reused and isinstance(error, ConnectionError):
            raise StaleConnectionError(str(error)) from error
        raise


def find_proxy(scheme: str, host: str) -> str | None:
    """Return the proxy that HTTP_PROXY or HTTPS_PROXY and NO_PROXY ask for. Raises ConfigError for one that is none."""
    proxies = getproxies_environment()
    url = proxies.get(scheme)
    if not url or proxy_bypass_environment(host, proxies):
        return None
    url = url if "://" in url else f"http://{url}"
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(
            f"cannot use the proxy of {scheme.upper()}_PROXY: it is no http:// address",
            hint="write http://host:port (that is how https is tunnelled, too)",
        )
    return url


def find_ca_file() -> str | None:
    """Return the file of certificate authorities that the environment names, if any."""
    return os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE") or None


@functools.lru_cache(maxsize=4)
def _ssl_context(ca_file: str | None) -> ssl.SSLContext:
    """Return the one for all connections: authorities are read for 20 ms, and kept in a megabyte."""
    try:
        context = ssl.create_default_context()
        if ca_file:
            context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot use certificate authorities in {ca_file}: {error}", hint="correct SSL_CERT_FILE: a PEM file"
        ) from None
    return context


def _proxy_headers(user: str | None, password: str | None) -> dict[str, str]:
    if not user:
        return {}
    import base64
    from urllib.parse import unquote

    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair).decode()}
