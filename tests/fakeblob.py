"""A blob service in the test's own process that misbehaves on demand: what Azurite never does, and Azure sometimes.

It speaks the part of the protocol that the store uses; the contract test runs against it and Azurite alike, so that
it cannot drift. It checks no signature: refusals are told to it.
"""

import base64
import hashlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fakeblob_answers import (
    Answer,
    Asked,
    Blob,
    check_conditions,
    containers_xml,
    error,
    list_xml,
    md5,
    metadata,
    spoiled,
)

__all__ = ["ACCOUNT", "Asked", "FakeBlobService"]
ACCOUNT = "fakeaccount"
VERSION = "2023-11-03"
PIECE_BYTES = 64 << 10


@dataclass
class Fault:
    """Something to do instead of answering, to requests that `matches` likes, `times` times."""

    kind: str
    times: int
    matches: Callable[[Asked], bool]
    status: int = 500
    code: str = "InternalError"
    detail: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class FakeBlobService:
    """The service. `fail` tells it to misbehave, `asked` is what it was asked, `clock_offset_s` sets its clock.

    `bytes_per_s` is how fast it takes in what is sent, from all senders together.
    """

    def __init__(self, certificate: tuple[str, str] | None = None, port: int = 0) -> None:
        self.containers: dict[str, dict[str, Blob]] = {"data": {}}
        self.blocks: dict[tuple[str, str], dict[str, bytes]] = {}
        self.asked: list[Asked] = []
        self.clock_offset_s = 0.0
        self.bytes_per_s: float | None = None
        self.link = threading.Lock()
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self._faults: list[Fault] = []
        self._versions = 0
        self._scheme = "https" if certificate else "http"
        self._server = _Server(self, certificate, port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on, on 127.0.0.1."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Address of the account."""
        return f"{self._scheme}://127.0.0.1:{self.port}/{ACCOUNT}"

    def definition(self, container: str | None = "data", **changes: Any) -> dict[str, Any]:
        """Return a store definition as the configuration has it, anonymous unless changed."""
        fields: dict[str, Any] = {"type": "azure_blob", "account_name": ACCOUNT, "endpoint": self.url}
        fields |= {"credentials": {"anonymous": {}}} | ({"container_name": container} if container else {})
        return fields | changes

    def fail(
        self, kind: str, times: int = 1, *, when: Callable[[Asked], bool] = lambda asked: True, **more: Any
    ) -> None:
        """Misbehave: status, reset, silence, stall, truncate, wrong_range, full, corrupt, no_etag, garbage, done_reset.

        `done_reset` carries the request out and then breaks the connection.
        """
        self._faults.append(Fault(kind, times, when, **more))

    def take_in_little(self) -> None:
        """Have new connections feel at once how fast we read, without megabytes in the kernel's buffers."""
        self._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)

    def heal(self) -> None:
        """Behave from now on."""
        with self.lock:
            self._faults.clear()

    def next_fault(self, asked: Asked) -> Fault | None:
        """Return what to do to this request, if anything."""
        with self.lock:
            self.asked.append(asked)
            for fault in self._faults:
                if fault.times > 0 and fault.matches(asked):
                    fault.times -= 1
                    return fault
        return None

    def put(
        self,
        container: str,
        name: str,
        data: bytes,
        metadata: dict[str, str] | None = None,
        blocks: tuple[tuple[str, bytes], ...] = (),
    ) -> Blob:
        """Store a blob (under the lock)."""
        self._versions += 1
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        etag = f"0x8DE{self._versions:012X}"
        blob = Blob(data, etag, formatdate(usegmt=True), metadata or {}, md5, blocks)
        self.containers[container][name] = blob
        return blob

    def close(self) -> None:
        """End it, and whoever hangs in it."""
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, fake: FakeBlobService, certificate: tuple[str, str] | None, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.fake = fake
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if certificate else None
        if self.context and certificate:
            self.context.load_cert_chain(*certificate)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.settimeout(30)
        if self.context:
            # The handshake belongs to the connection's own thread: one client must not hold up the others.
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() + self.server.fake.clock_offset_s, usegmt=True)

    def _serve(self) -> None:
        self.fake = self.server.fake
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.body = self._read_body(int(headers.get("content-length", 0)))
        asked = Asked(time.monotonic(), self.command, unquote(parts.path), query, headers)
        self.fault = self.fake.next_fault(asked)
        if self.fault and self._broken_before(self.fault):
            return
        _, _, container, *rest = [*parts.path.split("/", 3), ""]
        name = unquote(rest[0]) if rest else ""
        with self.fake.lock:
            answer = self._answer(asked, container, name)
        self._send(*answer)

    def _read_body(self, length: int) -> bytes:
        pieces: list[bytes] = []
        while length > 0 and (piece := self.rfile.read(min(length, PIECE_BYTES))):
            length -= len(piece)
            pieces.append(piece)
            if self.fake.bytes_per_s is not None:
                with self.fake.link:
                    time.sleep(len(piece) / self.fake.bytes_per_s)
        return b"".join(pieces)

    do_GET = do_PUT = do_HEAD = do_DELETE = _serve

    def _broken_before(self, fault: Fault) -> bool:
        if fault.kind == "status":
            self._send(*error(fault.status, fault.code, fault.detail, fault.headers))
        elif fault.kind == "reset":
            self._reset()
        elif fault.kind == "garbage":
            self.wfile.write(b"hello\r\n\r\n")
            self.close_connection = True
        elif fault.kind == "silence":
            self.fake.ended.wait(60)
            self.close_connection = True
        else:
            return False
        return True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _answer(self, asked: Asked, container: str, name: str) -> Answer:
        if not container and asked.query.get("comp") == "list":
            return 200, containers_xml(self.fake.containers), {"Content-Type": "application/xml"}
        blobs = self.fake.containers.get(container)
        if blobs is None:
            return error(404, "ContainerNotFound", "The specified container does not exist.")
        if asked.is_list:
            return 200, list_xml(blobs, asked.query), {"Content-Type": "application/xml"}
        if asked.method == "PUT":
            return self._put(asked, container, name)
        return self._existing(asked, blobs, name)

    def _put(self, asked: Asked, container: str, name: str) -> Answer:
        body, staged = self.body, self.fake.blocks.setdefault((container, name), {})
        if asked.query.get("comp") == "block":
            staged[asked.query["blockid"]] = body
            return 201, b"", {}
        present = self.fake.containers[container].get(name)
        if refused := check_conditions(asked, present):
            return refused
        if asked.query.get("comp") == "metadata":
            return self._describe(asked, container, name, present)
        if "x-ms-copy-source" in asked.headers:
            return self._copy(asked, container, name)
        blocks: tuple[tuple[str, bytes], ...] = ()
        if asked.query.get("comp") == "blocklist":
            known = {"Uncommitted": staged, "Committed": dict(present.blocks) if present else {}}
            listed = re.findall("<(Uncommitted|Committed)>([^<]+)<", body.decode())
            if any(block not in known[kind] for kind, block in listed) or len({len(block) for _, block in listed}) > 1:
                return error(400, "InvalidBlockList", "The specified block list is invalid.")
            blocks = tuple((block, known[kind][block]) for kind, block in listed)
            body = b"".join(data for _, data in blocks)
        sent = asked.headers.get("content-md5")
        if asked.query.get("comp") != "blocklist" and sent and sent != md5(body):
            return error(400, "Md5Mismatch", "The MD5 value does not match.")
        self.fake.blocks.pop((container, name), None)
        blob = self.fake.put(container, name, body, metadata(asked), blocks)
        return 201, b"", {"ETag": f'"{blob.etag}"', "Last-Modified": blob.modified}

    def _describe(self, asked: Asked, container: str, name: str, present: Blob | None) -> Answer:
        if present is None:
            return error(404, "BlobNotFound", "The specified blob does not exist.")
        blob = self.fake.put(container, name, present.data, metadata(asked), present.blocks)
        return 200, b"", {"ETag": f'"{blob.etag}"', "Last-Modified": blob.modified}

    def _copy(self, asked: Asked, container: str, name: str) -> Answer:
        source_name = unquote(urlsplit(asked.headers["x-ms-copy-source"]).path.split("/", 3)[3])
        source = self.fake.containers[container].get(source_name)
        if source is None:
            return error(404, "BlobNotFound", "The specified blob does not exist.")
        if asked.headers.get("x-ms-source-if-match", "").strip('"') not in ("", source.etag):
            return error(412, "SourceConditionNotMet", "The source condition is not met.")
        blob = self.fake.put(container, name, source.data, source.metadata, source.blocks)
        return 202, b"", {"ETag": f'"{blob.etag}"', "Last-Modified": blob.modified, "x-ms-copy-status": "success"}

    def _existing(self, asked: Asked, blobs: dict[str, Blob], name: str) -> Answer:
        blob = blobs.get(name)
        if blob is None:
            return error(404, "BlobNotFound", "The specified blob does not exist.")
        if refused := check_conditions(asked, blob):
            return refused
        if asked.method == "DELETE":
            del blobs[name]
            return 202, b"", {}
        if asked.query.get("comp") == "blocklist":
            names = "".join(
                f"<Block><Name>{block}</Name><Size>{len(data)}</Size></Block>" for block, data in blob.blocks
            )
            text = f"<BlockList><CommittedBlocks>{names}</CommittedBlocks></BlockList>"
            return 200, text.encode(), {"ETag": f'"{blob.etag}"'}
        headers = {"ETag": f'"{blob.etag}"', "Last-Modified": blob.modified, "x-ms-blob-type": "BlockBlob"}
        headers |= {f"x-ms-meta-{key}": value for key, value in blob.metadata.items()}
        wanted = asked.headers.get("x-ms-range") or asked.headers.get("range")
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if asked.method == "HEAD" or not found or (self.fault and self.fault.kind == "full"):
            return 200, blob.data, headers | {"Content-MD5": blob.md5}
        first, last = int(found[1]), min(int(found[2] or len(blob.data)), len(blob.data) - 1)
        if first >= len(blob.data):
            return error(416, "InvalidRange", "The range specified is invalid.")
        part = blob.data[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.data)}"
        if asked.headers.get("x-ms-range-get-content-md5") == "true":
            headers["Content-MD5"] = md5(part)
        return 206, part, headers

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        kind = self.fault.kind if self.fault else ""
        if kind == "done_reset":
            self._reset()
            return
        status, body, headers, cut_at = spoiled(kind, status, body, headers)
        self.send_response_only(status)
        announced = len(body)
        standard = {"Content-Length": str(announced), "Date": self.date_time_string(), "x-ms-version": VERSION}
        for key, value in {**standard, "x-ms-request-id": "1", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut_at is None else body[:cut_at])
        self.wfile.flush()
        if kind == "stall":
            self.fake.ended.wait(60)
        if cut_at is not None:
            self.close_connection = True
