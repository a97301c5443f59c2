"""A world whose mounts log in with secrets from everywhere: every kind of credential, from every place one can be in.

`FIELDS`, `PLACES` and `LOGINS` are held against the configuration's models, so that a new way in is not forgotten.
blobfuse2 is Microsoft's where there is one, else the stand-in. One server on 127.0.0.1 is Entra ID, the Key Vault, the
identity endpoint of a compute instance, and the proxy to them.
"""

import base64
import contextlib
import json
import os
import ssl
import threading
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from pydantic import BaseModel

from amlmount.config.credentials import SecretRef
from azurite import make_certificates
from drivers import REAL
from fakeblob import FakeBlobService
from standin.install import install_standin
from world import World

BLOB = "hello.txt"
VAULT, LOGIN_HOST = "planted.vault.azure.net", "login.microsoftonline.com"
APPLICATION = {"tenant_id": "11111111-1111-1111-1111-111111111111", "client_id": "app"}


def signature(secret: str) -> str:
    return f"?sv=2023-11-03&ss=b&srt=co&sp=rl&se=2099-01-01T00:00:00Z&sig={quote(secret, safe='')}"


@dataclass(frozen=True)
class Field:
    """A field of the configuration that leads to a secret. `text`: what lies in its place, the secret in it."""

    key: str
    text: Callable[[str], str] = str
    besides: tuple[tuple[str, str], ...] = ()


FIELDS = {
    "AccountKey.account_key": Field("account_key"),
    "SasToken.sas_token": Field("sas_token", signature),
    "ConnectionString.connection_string": Field(
        "connection_string", "DefaultEndpointsProtocol=https;AccountName=fakeaccount;AccountKey={}".format
    ),
    "ServicePrincipal.client_secret": Field("client_secret", str, tuple(APPLICATION.items())),
}
PLACES = ("env", "file", "credential", "keyvault")
# Credentials without a field of their own: what they lead to comes from the machine.
LOGINS = ("managed_identity", "azure_cli", "workload_identity")
# Settings of blobfuse2 that may be references.
OVERRIDES = ("azstorage.cpk-encryption-key", "azstorage.cpk-encryption-key-sha256")


def secret_fields(model: type[BaseModel]) -> set[str]:
    """Return every field below a model of the configuration that is a reference to a secret."""
    seen: set[type[BaseModel]] = set()
    found: set[str] = set()

    def look(annotation: object, where: str) -> None:
        if annotation is SecretRef:
            found.add(where)
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation not in seen:
                seen.add(annotation)
                for name, field in annotation.model_fields.items():
                    look(field.annotation, f"{annotation.__name__}.{name}")
        else:
            for part in typing.get_args(annotation):
                look(part, where)

    look(model, model.__name__)
    return found


class Planted:
    """The world, with a secret of its own for each way in. `said` is all that commands have printed."""

    def __init__(self, world: World, service: FakeBlobService, issuer: "Issuer", authority: Path) -> None:
        self.world, self.service, self.issuer, self.said = world, service, issuer, ""
        self.secrets: dict[str, str] = issuer.tokens
        self.env: dict[str, str] = {}
        self.in_env: set[str] = set()
        self.ways: dict[str, dict[str, Any]] = {}
        self.given = f"{world.root}/given"
        os.makedirs(f"{self.given}/credentials", 0o700)
        os.chmod(self.given, 0o700)
        for field in FIELDS.values():
            for place in PLACES:
                self._plant(field, place)
        self._plant_logins()
        self.secrets |= {"url": new_key(), "old": new_key()}
        self._surround(authority)
        self.by_blobfuse2 = [name for name in self.ways if name.endswith("-file")] if os.geteuid() == 0 else []
        self.config = self._configuration()
        world.write_config(yaml.safe_dump(self.config))

    def _plant(self, field: Field, place: str) -> None:
        name = f"{field.key}-{place}".replace("_", "-")
        self.secrets[name] = new_key()
        reference = self._put(name, place, field.text(self.secrets[name]))
        self.ways[name] = {field.key: {place: reference}, **dict(field.besides)}

    def _put(self, name: str, place: str, text: str) -> Any:
        """Put a text into a place and return the reference to it."""
        if place == "env":
            variable = f"PLANTED_{name.upper().replace('-', '_')}"
            self.env[variable] = text
            self.in_env.add(name)
            return variable
        if place == "file":
            return self._file(name, text)
        if place == "credential":
            self._file(f"credentials/{name}", text)
            return name
        self.issuer.vault[name] = text
        return {"vault": VAULT.partition(".")[0], "secret": name}

    def _plant_logins(self) -> None:
        self.ways |= {name.replace("_", "-"): {name: {}} for name in LOGINS}
        self.secrets |= {"msi": new_key(), "assertion": new_key(), "cli": new_key(), "proxy": new_key()}
        self.env |= {
            "MSI_ENDPOINT": f"http://127.0.0.1:{self.issuer.server_address[1]}/msi",
            "MSI_SECRET": self.secrets["msi"],
            "AZURE_FEDERATED_TOKEN_FILE": self._file("assertion", self.secrets["assertion"]),
            "AZURE_TENANT_ID": APPLICATION["tenant_id"],
            "AZURE_CLIENT_ID": APPLICATION["client_id"],
        }
        answer = {"accessToken": self.secrets["cli"], "expires_on": 2_000_000_000, "tokenType": "Bearer"}
        self._file("answer", json.dumps(answer))
        Path(self.given, "az").write_text(f"#!/bin/sh\ncat {self.given}/answer\n")
        os.chmod(f"{self.given}/az", 0o700)

    def _surround(self, authority: Path) -> None:
        folder = os.path.dirname(REAL) if REAL else self._stand_in()
        proxy = f"http://me:{quote(self.secrets['proxy'], safe='')}@127.0.0.1:{self.issuer.server_address[1]}"
        self.env |= {
            "HTTPS_PROXY": proxy,
            "NO_PROXY": "127.0.0.1",
            "CREDENTIALS_DIRECTORY": f"{self.given}/credentials",
        }
        self.env |= {"SSL_CERT_FILE": str(authority), "REQUESTS_CA_BUNDLE": str(authority)}
        self.env["PATH"] = f"{folder}:{self.given}:{self.world.env['PATH']}"
        self.in_env |= {"msi", "proxy"}

    def _stand_in(self) -> str:
        installed = install_standin(Path(self.given, "bin"))
        os.makedirs(installed.containers / "data")
        (installed.containers / "data" / BLOB).write_text("hello")
        return str(installed.folder)

    def _configuration(self) -> dict[str, Any]:
        stores = {name: self.service.definition(credentials=way) for name, way in self.ways.items()}
        mounts: dict[str, dict[str, Any]] = {name: {"source": name, "engine": "python"} for name in self.ways}
        mounts |= {f"b-{name}": {"source": name, "engine": "blobfuse2"} for name in self.by_blobfuse2}
        overrides: dict[str, Any] = {"cpk-enabled": True}
        for path in OVERRIDES:
            self.secrets[path] = new_key()
            overrides[path.rpartition(".")[2]] = {"file": self._file(path, self.secrets[path])}
        if self.by_blobfuse2:
            mounts["b-account-key-file"] |= {"blobfuse2": {"azstorage": overrides}}
        mounts = {name: {"target": self.target(name), **mount} for name, mount in mounts.items()}
        return {"stores": stores, "mounts": mounts}

    def target(self, name: str) -> str:
        """Where a mount is."""
        return f"{self.world.root}/mnt/{name}"

    def _file(self, name: str, text: str) -> str:
        path = Path(self.given, name)
        path.write_text(text)
        path.chmod(0o600)
        return str(path)

    def run(self, *words: str) -> int:
        """Run a command, keep what it says, return its exit code."""
        done = self.world.cli(*words, env=self.env, timeout_s=120)
        self.said += f"{done.stdout}\n{done.stderr}\n"
        return done.returncode

    def found_in(self, text: str, *, but: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
        """Name the secrets that are in a text, as they are or quoted."""
        forms = {name: {key, quote(key, safe=""), key.rstrip("=")} for name, key in self.secrets.items()}
        return {name for name, them in forms.items() if name not in but and any(form in text for form in them)}


def new_key() -> str:
    """Return something that is a good account key."""
    return base64.b64encode(os.urandom(64)).decode()


class Issuer(ThreadingHTTPServer):
    """Gives tokens and secrets away. `tokens` are those it gives, `vault` what the vault holds, `asked` what for."""

    daemon_threads = True

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__(("127.0.0.1", 0), _IssuerHandler)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(certificate, key)
        self.tokens = {"token-entra": new_key(), "token-msi": new_key()}
        self.vault: dict[str, str] = {}
        self.asked: list[str] = []


class _IssuerHandler(BaseHTTPRequestHandler):
    server: Issuer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_CONNECT(self) -> None:
        """Be whoever is asked for."""
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def finish(self) -> None:
        """Close what `do_CONNECT` has made of the connection."""
        super().finish()
        self.connection.close()

    def do_GET(self) -> None:
        self.server.asked.append(path := self.path.partition("?")[0])
        base = f"https://{LOGIN_HOST}/{APPLICATION['tenant_id']}"
        if path.startswith("/msi"):
            self._send({"access_token": self.server.tokens["token-msi"], "expires_on": "2000000000"})
        elif path.startswith("/secrets/"):
            self._send({"value": self.server.vault[path.rpartition("/")[2]]})
        else:
            endpoints = {name: f"{base}/oauth2/v2.0/{name.partition('_')[0]}" for name in ("token_endpoint",)}
            self._send(endpoints | {"authorization_endpoint": f"{base}/authorize", "issuer": f"{base}/v2.0"})

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send({"access_token": self.server.tokens["token-entra"], "expires_in": 3600, "token_type": "Bearer"})

    def _send(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def plant(world: World, folder: Path) -> Iterator[Planted]:
    """Yield a world in which everything is planted; `folder` gets certificates."""
    authority, certificate, key = make_certificates(folder, (VAULT, LOGIN_HOST))
    service = FakeBlobService((str(certificate), str(key)))
    service.put("data", BLOB, b"hello")
    issuer = Issuer(certificate, key)
    thread = threading.Thread(target=issuer.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Planted(world, service, issuer, authority)
    finally:
        issuer.shutdown()
        issuer.server_close()
        thread.join()
        service.close()
