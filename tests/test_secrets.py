"""Secrets: found by reference, refused when others could read them, and never in any text."""

import json
import os
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from amlmount.config.credentials import KeyVaultSecret, SecretRef
from amlmount.errors import AccessDeniedError, AmlmountError, ConfigError, NetworkError, NotFoundError
from amlmount.secrets import Secret, filesystems, resolve
from amlmount.secrets.identity import RENEW_BEFORE_S, TokenSource, automatic, azure_cli, managed_identity
from amlmount.secrets.keyvault import read_secret, secret_url
from amlmount.secrets.managed import Token, fetch_token, find_endpoint

VALUE = "s3cr3t-v4lue"


def private(path: Path, text: str = VALUE + "\n", mode: int = 0o600) -> SecretRef:
    path.write_text(text)
    path.chmod(mode)
    return SecretRef(file=str(path))


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret(VALUE)
    assert secret.reveal() == VALUE
    assert VALUE not in f"{secret} {secret!r} {[secret]} {vars(Secret)}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret == Secret(VALUE) and secret != Secret("x") and hash(secret) == hash(Secret(VALUE))


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {VALUE}\n")
    assert resolve(SecretRef(env="MY_KEY")).reveal() == VALUE
    monkeypatch.setenv("MY_KEY", "")
    with pytest.raises(ConfigError, match="env:MY_KEY: it is empty"):
        resolve(SecretRef(env="MY_KEY"))
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="env:MY_KEY: the variable is not set"):
        resolve(SecretRef(env="MY_KEY"))


def test_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(private(tmp_path / "key")).reveal() == VALUE
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(SecretRef(file="~/key")).reveal() == VALUE
    with pytest.raises(ConfigError, match="there is no such file"):
        resolve(SecretRef(file=str(tmp_path / "absent")))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    reference = private(tmp_path / "key", mode=mode)
    with pytest.raises(AccessDeniedError, match="other users can read it") as caught:
        resolve(reference)
    assert f"chmod 600 {tmp_path / 'key'}" in (caught.value.hint or "")
    assert VALUE not in str(caught.value.to_json())


def test_where_there_are_no_modes_the_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "type_of", lambda path: "cifs")
    assert resolve(private(tmp_path / "key", mode=0o777)).reveal() == VALUE


def test_the_type_of_a_file_system_comes_from_the_mount_table(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 0:1 / / rw - ext4 /dev/a rw\n"
        r"23 22 0:2 / /mnt/with\040space rw shared:1 - cifs //a/b rw" + "\n"
        "24 22 0:3 / /mnt rw - tmpfs none rw\n"
    )
    found = [
        filesystems.type_of(path, str(table)) for path in ("/x", "/mnt/y", "/mnt/with space/k", "/mnt/with spaces")
    ]
    assert found == ["ext4", "tmpfs", "cifs", "tmpfs"]
    assert filesystems.type_of("/", str(tmp_path / "absent")) == ""


def test_what_is_no_secret_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)
    for reference, why in (
        (SecretRef(file=str(tmp_path / "fifo")), "not a regular file"),
        (SecretRef(file=str(tmp_path / "binary")), "not text"),
        (private(tmp_path / "long", "x" * 70_000), "larger than"),
        (private(tmp_path / "empty", " \n"), "empty"),
    ):
        with pytest.raises(ConfigError, match=why):
            resolve(reference)


def test_from_a_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private(tmp_path / "mnist", mode=0o440)  # systemd lets the service in by an ACL, which shows as a group bit
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert resolve(SecretRef(credential="mnist")).reveal() == VALUE
    with pytest.raises(ConfigError, match="no such file"):
        resolve(SecretRef(credential="absent"))
    with pytest.raises(ConfigError, match="no slash"):
        resolve(SecretRef(credential="../mnist"))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(ConfigError, match="not run under systemd") as caught:
        resolve(SecretRef(credential="mnist"))
    assert "LoadCredential=mnist:" in (caught.value.hint or "")


class _Endpoint(ThreadingHTTPServer):
    """Answers what it is told, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _EndpointHandler)
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.answers: list[tuple[int, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _EndpointHandler(BaseHTTPRequestHandler):
    server: _Endpoint

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.server.asked.append((parts.path, query, {key.lower(): value for key, value in self.headers.items()}))
        answers = self.server.answers
        status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture
def endpoint() -> Iterator[_Endpoint]:
    server = _Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "MSI_ENDPOINT",
        "MSI_SECRET",
        "DEFAULT_IDENTITY_CLIENT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_CLIENT_ID",
    )
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a token request that goes through a proxy fails here
    monkeypatch.setattr("amlmount.secrets.managed.time.sleep", lambda seconds: None)


RESOURCE = "https://storage.azure.com"


@pytest.mark.usefixtures("no_identity")
def test_a_compute_instance_has_its_endpoint_in_a_file(endpoint: _Endpoint, tmp_path: Path) -> None:
    sso = tmp_path / "environment.sso"
    sso.write_text(
        f'# by the agent\nMSI_ENDPOINT={endpoint.url}/MSI/auth\nMSI_SECRET="{VALUE}"\nDEFAULT_IDENTITY_CLIENT_ID=id1\n'
    )
    endpoint.answers = [(200, {"access_token": "tok", "expires_on": "2000000000"})]
    found = find_endpoint(RESOURCE, sso_file=str(sso))
    assert fetch_token(found) == Token("tok", 2e9)
    path, query, headers = endpoint.asked[0]
    assert path == "/MSI/auth" and headers["secret"] == VALUE
    assert query == {"api-version": "2017-09-01", "resource": RESOURCE, "clientid": "id1"}
    assert VALUE not in repr(found) and "tok'" not in repr(fetch_token(found))


@pytest.mark.usefixtures("no_identity")
def test_the_environment_wins_over_the_file(
    endpoint: _Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sso").write_text("MSI_ENDPOINT=http://127.0.0.1:9\nMSI_SECRET=x\n")
    monkeypatch.setenv("MSI_ENDPOINT", endpoint.url)
    monkeypatch.setenv("MSI_SECRET", VALUE)
    found = find_endpoint(RESOURCE, "mine", sso_file=str(tmp_path / "sso"))
    assert (found.url, found.headers["secret"], found.query["clientid"]) == (endpoint.url, VALUE, "mine")


@pytest.mark.usefixtures("no_identity")
def test_a_virtual_machine_asks_imds(endpoint: _Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", endpoint.url)
    endpoint.answers = [(429, {}), (500, b""), (200, {"access_token": "tok", "expires_on": "2000000000"})]
    source = managed_identity(f"{RESOURCE}/.default", "id2")
    assert source.get().value == "tok" and source.get().value == "tok"
    assert len(endpoint.asked) == 3
    path, query, headers = endpoint.asked[0]
    assert path == "/metadata/identity/oauth2/token" and headers["metadata"] == "true"
    assert query == {"api-version": "2018-02-01", "resource": RESOURCE, "client_id": "id2"}


@pytest.mark.usefixtures("no_identity")
def test_a_machine_without_identity_is_told_apart_from_silence(
    endpoint: _Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", endpoint.url)
    endpoint.answers = [(400, {"error": "invalid_request", "error_description": "Identity not found"})]
    with pytest.raises(AccessDeniedError, match="Identity not found") as caught:
        fetch_token(find_endpoint(RESOURCE))
    assert "assign a managed identity" in (caught.value.hint or "")
    endpoint.answers = [(200, b"<html>captive portal</html>")]
    with pytest.raises(NetworkError, match="holds no token"):
        fetch_token(find_endpoint(RESOURCE))
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="cannot get a token from IMDS"):
        fetch_token(find_endpoint(RESOURCE))


def source_of(lives_s: list[float], now: list[float]) -> tuple[TokenSource, list[int]]:
    calls: list[int] = []

    def fetch() -> Token:
        calls.append(1)
        life = lives_s[len(calls) - 1]
        if life < 0:
            raise NetworkError("cannot log in: down")
        return Token(f"t{len(calls)}", now[0] + life)

    return TokenSource(fetch, "test", lambda: now[0]), calls


def test_a_token_is_renewed_before_it_ends() -> None:
    now = [1000.0]
    source, calls = source_of([3600, 3600], now)
    assert [source.get().value for _ in range(3)] == ["t1"] * 3
    now[0] += 3600 - RENEW_BEFORE_S - 1
    assert source.get().value == "t1" and len(calls) == 1
    now[0] += 2
    assert source.get().value == "t2"


def test_a_renewal_that_fails_leaves_the_old_token_while_it_lives() -> None:
    now = [1000.0]
    source, calls = source_of([600, -1, -1, 3600], now)
    source.get()
    now[0] += 400
    assert source.get().value == "t1" and source.get().value == "t1" and len(calls) == 2
    now[0] += 201
    with pytest.raises(NetworkError):
        source.get()
    assert source.get().value == "t4"


def test_a_refused_token_is_not_used_again() -> None:
    source, _ = source_of([3600, 3600], [0.0])
    assert source.get().value == "t1"
    source.forget()
    assert source.get().value == "t2"


def test_many_threads_make_one_login() -> None:
    entered, leave = threading.Event(), threading.Event()
    calls: list[int] = []

    def fetch() -> Token:
        calls.append(1)
        entered.set()
        assert leave.wait(10)
        return Token("t", 1e12)

    source = TokenSource(fetch, "test")
    threads = [threading.Thread(target=source.get) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    leave.set()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def fake_az(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "az").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "az").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_azure_cli_gives_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.dumps({"accessToken": "cli-token", "expires_on": 2_000_000_000, "tokenType": "Bearer"})
    fake_az(tmp_path, f"echo '{answer}'", monkeypatch)
    assert azure_cli(f"{RESOURCE}/.default").get() == Token("cli-token", 2e9)


def test_without_a_login_the_azure_cli_says_run_az_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_az(tmp_path, "echo \"ERROR: Please run 'az login' to setup account.\" >&2; exit 1", monkeypatch)
    with pytest.raises(AccessDeniedError) as caught:
        azure_cli(f"{RESOURCE}/.default").get()
    assert "run az login" in (caught.value.hint or "")


@pytest.mark.usefixtures("no_identity")
def test_an_identity_is_found_by_itself(endpoint: _Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", endpoint.url)
    endpoint.answers = [(200, {"access_token": "tok", "expires_on": "2000000000"})]
    source = automatic(f"{RESOURCE}/.default")
    assert source.get().value == "tok" and source.description == "managed identity (found by itself)"
    endpoint.answers = [(400, {"error": "no"})]
    fake_az(tmp_path, "exit 1", monkeypatch)
    with pytest.raises(AccessDeniedError, match=r"managed identity: .*Azure CLI login: ") as caught:
        automatic(f"{RESOURCE}/.default").get()
    assert "az login" in (caught.value.hint or "")


def test_a_token_goes_to_a_key_vault_only() -> None:
    assert secret_url(KeyVaultSecret(vault="myvault", secret="key")) == (
        "https://myvault.vault.azure.net/secrets/key",
        "https://vault.azure.net/.default",
    )
    china = KeyVaultSecret(vault="https://v-1.vault.azure.cn/", secret="key", version="abc")
    assert secret_url(china) == ("https://v-1.vault.azure.cn/secrets/key/abc", "https://vault.azure.cn/.default")
    for vault, secret in (
        ("https://evil.example", "k"),
        ("http://v1x.vault.azure.net", "k"),
        ("a/b", "k"),
        ("vault", "../k"),
    ):
        with pytest.raises(ConfigError, match="no secret of a Key Vault"):
            secret_url(KeyVaultSecret(vault=vault, secret=secret))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AccessDeniedError),
        (403, AccessDeniedError),
        (404, NotFoundError),
        (500, NetworkError),
        (302, NetworkError),
    ],
)
def test_key_vault_refusals(
    endpoint: _Endpoint, status: int, kind: type[AmlmountError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    endpoint.answers = [(200, {"value": VALUE})]
    assert read_secret(f"{endpoint.url}/secrets/k", "tok", "keyvault:v/k") == VALUE
    assert endpoint.asked[0][2]["authorization"] == "Bearer tok" and endpoint.asked[0][1] == {"api-version": "7.4"}
    endpoint.answers = [(status, {"error": VALUE})]
    with pytest.raises(kind, match="keyvault:v/k") as caught:
        read_secret(f"{endpoint.url}/secrets/k", "tok", "keyvault:v/k")
    assert VALUE not in str(caught.value.to_json()) and caught.value.hint
