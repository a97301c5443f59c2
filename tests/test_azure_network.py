"""Tokens, certificates and proxies: the store's way out of networks that are not plain."""

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from amlmount.errors import ConfigError, NetworkError
from amlmount.stores.azure import open_azure
from amlmount.stores.azure.auth import Sas, SharedKey, string_to_sign
from amlmount.stores.azure.timing import Timing
from amlmount.stores.azure.transport import Request, find_proxy
from azurite import KEY, make_certificates
from fakeblob import FakeBlobService

TIMING = Timing(connect_s=2, silence_s=2, request_s=5, call_s=10, first_backoff_s=0.01, attempts=2)
TENANT = "11111111-1111-1111-1111-111111111111"


def jwt(expires_at_s: float, **changes: Any) -> str:
    now = int(time.time())
    issuer = f"https://sts.windows.net/{TENANT}/"
    claims = {"aud": "https://storage.azure.com", "iss": issuer, "exp": int(expires_at_s), **changes}
    claims |= {"iat": now - 10, "nbf": now - 10, "oid": "someone"}
    parts = [{"alg": "none", "typ": "JWT"}, claims, "signature nobody checks"]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return make_certificates(tmp_path_factory.mktemp("fake-tls"))


@pytest.fixture
def tls_fake(certificates: tuple[Path, Path, Path]) -> Iterator[FakeBlobService]:
    service = FakeBlobService((str(certificates[1]), str(certificates[2])))
    service.put("data", "x", b"12345")
    yield service
    service.close()


@pytest.fixture
def plain_fake() -> Iterator[FakeBlobService]:
    service = FakeBlobService()
    service.put("data", "x", b"12345")
    yield service
    service.close()


def only_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a read fail that does not come by obstore."""
    monkeypatch.setattr("amlmount.stores.azure.store.Download", None)


def test_an_unknown_authority_is_named_and_a_known_one_trusted_by_both_clients(
    tls_fake: FakeBlobService, certificates: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_azure(tls_fake.definition(), timing=TIMING)
    for call in (lambda: store.get("x"), lambda: list(store.list())):
        with pytest.raises(NetworkError, match=r"certificate of 127\.0\.0\.1 is not trusted") as caught:
            call()
        assert "SSL_CERT_FILE" in (caught.value.hint or "")
    store.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates[0]))
    store = open_azure(tls_fake.definition(), timing=TIMING)
    assert store.head("x").size_bytes == 5
    only_fast(monkeypatch)
    assert store.get("x") == b"12345"
    store.close()
    monkeypatch.setenv("SSL_CERT_FILE", "/absent.pem")
    with pytest.raises(ConfigError, match=r"/absent\.pem"):
        open_azure(tls_fake.definition(), timing=TIMING).head("x")


def test_azure_variables_of_the_environment_do_not_leak_into_a_store(
    plain_fake: FakeBlobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AZURE_STORAGE_ACCOUNT_NAME": "other",
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=leak",
        "AZURE_STORAGE_TOKEN": "leak",
        "AZURE_CONTAINER_NAME": "other",
        "AZURE_ENDPOINT": "http://127.0.0.1:9",
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURE_CLIENT_ID": "leak",
    }.items():
        monkeypatch.setenv(name, value)
    only_fast(monkeypatch)
    monkeypatch.setenv("OWN_KEY", KEY)
    logins: list[dict[str, Any]] = [{"anonymous": {}}, {"account_key": {"env": "OWN_KEY"}}]
    for login in logins:
        store = open_azure(plain_fake.definition(credentials=login), timing=TIMING)
        assert store.get("x") == b"12345"
        store.close()
    anonymous, signed = plain_fake.asked
    assert "authorization" not in anonymous.headers and "sig" not in anonymous.query
    assert signed.headers["authorization"].startswith("SharedKey fakeaccount:")


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.asked: list[tuple[str, str, str | None]] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def end(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tunnels end as they end."""


class _ProxyHandler(BaseHTTPRequestHandler):
    server: _Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_CONNECT(self) -> None:
        self.server.asked.append(("CONNECT", self.path, self.headers.get("Proxy-Authorization")))
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), 5) as other:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pipe, args=(other, self.connection))
            back.start()
            _pipe(self.connection, other)
            back.join()
        self.close_connection = True

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Proxy-Authorization")))
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.send_header("ETag", '"0x1"')
        self.send_header("Last-Modified", "Thu, 20 Nov 2025 10:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"proxy")

    do_HEAD = do_GET


def _pipe(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[_Proxy]:
    server = _Proxy()
    yield server
    server.end()


def test_https_goes_through_the_proxy_in_a_tunnel(
    tls_fake: FakeBlobService, certificates: tuple[Path, Path, Path], proxy: _Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates[0]))
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@{proxy.netloc}")
    store = open_azure(tls_fake.definition(), timing=TIMING)
    assert store.head("x").size_bytes == 5
    assert proxy.asked == [
        ("CONNECT", f"127.0.0.1:{tls_fake.port}", "Basic " + base64.b64encode(b"user:p@ss").decode())
    ]
    only_fast(monkeypatch)
    assert store.get("x") == b"12345"
    assert len(proxy.asked) == 2 and proxy.asked[1] == proxy.asked[0]
    store.close()


def test_http_goes_to_the_proxy_with_its_whole_address(
    plain_fake: FakeBlobService, proxy: _Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.netloc)
    store = open_azure(plain_fake.definition(), timing=TIMING)
    assert store.head("x").etag == "0x1"
    assert proxy.asked[0][:2] == ("HEAD", f"{plain_fake.url}/data/x")
    only_fast(monkeypatch)
    assert store.get("x") == b"proxy"
    store.close()


def test_no_proxy_is_kept_by_both_clients(
    plain_fake: FakeBlobService, proxy: _Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.netloc)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    store = open_azure(plain_fake.definition(), timing=TIMING)
    assert store.head("x").size_bytes == 5
    only_fast(monkeypatch)
    assert store.get("x") == b"12345" and proxy.asked == []
    store.close()


def test_a_proxy_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:secret@h:1")
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        find_proxy("https", "a.blob.core.windows.net")
    assert "secret" not in str(caught.value.to_json())


def test_what_is_signed_is_what_the_service_documents() -> None:
    request = Request("GET", "/acct/data/a%20b", {"comp": "list", "prefix": "x y"}, {"If-Match": '"0x1"'})
    headers = {**request.headers, "x-ms-version": "V", "x-ms-date": "D"}
    assert string_to_sign("acct", request, headers) == (
        'GET\n\n\n\n\n\n\n\n"0x1"\n\n\n\nx-ms-date:D\nx-ms-version:V\n/acct/acct/data/a%20b\ncomp:list\nprefix:x y'
    )


def test_a_sas_survives_however_it_was_pasted() -> None:
    assert Sas(" ?sv=1&sig=a%2Bb%3D ").fields == {"sv": "1", "sig": "a+b="}
    assert Sas("sv=1&sig=a+b=").fields == {"sv": "1", "sig": "a+b="}
    with pytest.raises(ConfigError, match="no signature"):
        Sas("sv=1&se=2")
    assert KEY not in repr(SharedKey("a", KEY)) and "sig" not in repr(Sas("sig=1"))


def test_a_body_that_leaves_slowly_is_not_silence(
    tls_fake: FakeBlobService, certificates: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS writes all it is given at once: a limit for silence would be one for a whole block on a slow link."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates[0]))
    store = open_azure(tls_fake.definition(), timing=Timing(silence_s=1.5, request_s=30, call_s=30, attempts=1))
    data = bytes(8_000_000)
    tls_fake.take_in_little()
    tls_fake.bytes_per_s = 2.5e6
    begun = time.monotonic()
    store.put("slow", data)
    assert time.monotonic() - begun > 2 and tls_fake.containers["data"]["slow"].data == data
    assert sum(asked.method == "PUT" for asked in tls_fake.asked) == 1
    store.close()
