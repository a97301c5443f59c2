"""A proxy in front of Azurite that misbehaves on demand: refuses uploads, holds them up, stops downloads midway."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast
from urllib.parse import parse_qs, urlsplit

CHUNK_BYTES = 1 << 16
REFUSED = b"<?xml version='1.0'?><Error><Code>AuthorizationFailure</Code><Message>no</Message></Error>"


class Proxy:
    """Passes everything on to `upstream` (http://host:port). `refuses` and `holds` decide for each request.

    `stop_after_bytes`: answers to GETs of blobs stop there until `release`. `requests` counts what came.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.refuses: Callable[[str, str], bool] = lambda method, path: False
        self.holds: Callable[[str, str], bool] = lambda method, path: False
        self.refuses_signature: Callable[[str], bool] = lambda signature: False
        self.stop_after_bytes: int | None = None
        self.requests: Counter[str] = Counter()
        self.signatures: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self._released = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def release(self) -> None:
        """Behave from now on, and break the connections that are held up."""
        self.refuses = self.holds = lambda method, path: False
        self.stop_after_bytes = None
        self._released.set()

    def wait(self, what: str) -> None:
        """Hold a request up; `release` ends it."""
        self.held[what] += 1
        self._released.wait(120)
        raise ConnectionAbortedError

    def close(self) -> None:
        """End it."""
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """Serves one connection."""

    protocol_version = "HTTP/1.1"

    @property
    def proxy(self) -> Proxy:
        """Whose it is."""
        return cast(_Server, self.server).proxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError, http.client.HTTPException):
            self.close_connection = True

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method, parts = self.command, urlsplit(self.path)
        self.proxy.requests[method] += 1
        [signature] = parse_qs(parts.query).get("sig", [""])
        self.proxy.signatures[signature] += 1
        if self.proxy.refuses(method, parts.path) or self.proxy.refuses_signature(signature):
            self.answer(403, {"x-ms-error-code": "AuthorizationFailure"}, REFUSED)
            return
        if self.proxy.holds(method, parts.path):
            self.proxy.wait(parts.path)
        self.pass_on(method, body)

    def pass_on(self, method: str, body: bytes) -> None:
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
            upstream.request(method, self.path, body or None, {**headers, "Host": self.proxy.upstream})
            response = upstream.getresponse()
            content = response.read()
            known = dict(response.getheaders())
        finally:
            upstream.close()
        self.answer(response.status, known, content)

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        dropped = ("transfer-encoding", "content-length", "connection", "keep-alive")
        for key, value in headers.items():
            if key.lower() not in dropped:
                self.send_header(key, value)
        length = headers.get("Content-Length", headers.get("content-length", "0"))
        self.send_header("Content-Length", str(len(content)) if self.command != "HEAD" else length)
        self.end_headers()
        if self.command == "HEAD":
            return
        most = self.proxy.stop_after_bytes
        if self.command == "GET" and most is not None and len(content) > most:
            self.wfile.write(content[:most])
            self.wfile.flush()
            self.proxy.wait(self.path)
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_any
