"""Logging in over the network: service principals, tokens that are refused, tokens near their end."""

import json
import shutil
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from amlmount.errors import AccessDeniedError
from amlmount.secrets.identity import TokenSource
from amlmount.secrets.managed import Token
from amlmount.stores.azure import open_azure
from amlmount.stores.azure.auth import Bearer
from amlmount.stores.azure.store import AzureStore
from azurite import Azurite, make_certificates
from test_azure_network import TENANT, TIMING, jwt, only_fast


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return make_certificates(tmp_path_factory.mktemp("fake-tls"))


class _Authority(ThreadingHTTPServer):
    """As much of Entra ID as a client secret needs."""

    daemon_threads = True

    def __init__(self, certificates: tuple[Path, Path, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _AuthorityHandler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificates[1:])
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.answer: tuple[int, dict[str, Any]] = (500, {})
        self.logins: list[str] = []

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}"


class _AuthorityHandler(BaseHTTPRequestHandler):
    server: _Authority

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        base = f"{self.server.url}/{TENANT}"
        endpoints = {"token_endpoint": f"{base}/oauth2/v2.0/token", "authorization_endpoint": f"{base}/authorize"}
        self._send(200, {**endpoints, "issuer": f"{base}/v2.0"})

    def do_POST(self) -> None:
        self.server.logins.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self._send(*self.server.answer)

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def authority(certificates: tuple[Path, Path, Path]) -> Iterator[_Authority]:
    server = _Authority(certificates)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *authorities: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    with bundle.open("wb") as file:
        for authority in authorities:
            with authority.open("rb") as source:
                shutil.copyfileobj(source, file)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))


def test_a_service_principal_logs_in_and_reads(
    azurite_oauth: tuple[Azurite, Path],
    authority: _Authority,
    certificates: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    azurite, ca_file = azurite_oauth
    trust(tmp_path, monkeypatch, ca_file, certificates[0])
    monkeypatch.setenv("SP_SECRET", "s3cr3t")
    login = {"tenant_id": TENANT, "client_id": "app", "client_secret": {"env": "SP_SECRET"}}
    definition = azurite.new_container()
    store = open_azure({**definition, "credentials": {**login, "authority_url": authority.url}}, timing=TIMING)
    authority.answer = (401, {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret"})
    with pytest.raises(AccessDeniedError, match=r"service principal app: .*AADSTS7000215") as caught:
        list(store.list())
    assert "secret is wrong" in (caught.value.hint or "") and "s3cr3t" not in str(caught.value.to_json())
    token = jwt(time.time() + 3600)
    authority.answer = (200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"})
    store.put("x", b"12345")
    assert [info.name for page in store.list() for info in page.objects] == ["x"]
    logins = len(authority.logins)
    only_fast(monkeypatch)
    assert store.get("x", 1, 3) == b"234"
    assert len(authority.logins) == logins, "both clients share one token"
    assert "scope=https%3A%2F%2Fstorage.azure.com%2F.default" in authority.logins[-1]
    store.close()


def bearer_store(definition: dict[str, Any], source: TokenSource, monkeypatch: pytest.MonkeyPatch) -> AzureStore:
    monkeypatch.setattr("amlmount.stores.azure.store.authorize", lambda store, location: Bearer(source))
    return open_azure(definition, timing=TIMING)


def test_a_refused_token_is_got_anew_once(
    azurite_oauth: tuple[Azurite, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    azurite, ca_file = azurite_oauth
    trust(tmp_path, monkeypatch, ca_file)
    tokens = [jwt(time.time() - 100), jwt(time.time() + 3600)]
    source = TokenSource(lambda: Token(tokens.pop(0), time.time() + 3600), "test")
    store = bearer_store(azurite.new_container(), source, monkeypatch)
    store.put("x", b"1")
    assert store.get("x") == b"1" and tokens == []
    store.close()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"aud": "https://management.azure.com"}, "audience"),
        ({"exp": 1}, "expired"),
        ({"iss": "https://evil/"}, "issuer"),
    ],
)
def test_a_token_that_stays_refused_is_an_error(
    azurite_oauth: tuple[Azurite, Path],
    changes: dict[str, Any],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    azurite, ca_file = azurite_oauth
    trust(tmp_path, monkeypatch, ca_file)
    calls: list[int] = []

    def fetch() -> Token:
        calls.append(1)
        return Token(jwt(time.time() + 3600, **changes), time.time() + 3600)

    store = bearer_store(azurite.new_container(), TokenSource(fetch, "test"), monkeypatch)
    with pytest.raises(AccessDeniedError, match=rf"AuthenticationFailed .*{why}"):
        list(store.list())
    assert len(calls) <= 3
    store.close()


def test_a_token_near_its_end_is_renewed_for_both_clients(
    azurite_oauth: tuple[Azurite, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    azurite, ca_file = azurite_oauth
    trust(tmp_path, monkeypatch, ca_file)
    now = [time.time()]
    calls: list[float] = []

    def fetch() -> Token:
        calls.append(now[0])
        return Token(jwt(now[0] + 3600), now[0] + 3600)

    store = bearer_store(azurite.new_container(), TokenSource(fetch, "test", lambda: now[0]), monkeypatch)
    store.put("x", b"1")
    assert store.get("x") == b"1" and len(calls) == 1
    now[0] += 3400
    store.head("x")
    assert len(calls) == 2
    store.close()
