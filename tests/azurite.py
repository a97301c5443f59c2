"""A real Azurite for tests, as a pytest plugin that conftest loads: the fixtures `azurite` and `azurite_oauth`.

One process for the whole run, with many accounts, because accounts isolate tests from each other and containers do
not. Without Node or Azurite these tests fail and say what to install: a store that is not tested is not a pass.
"""

import functools
import itertools
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ENTRY = Path(__file__).parents[1] / ".work/azurite/node_modules/azurite/dist/src/blob/main.js"
FLAGS = ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobPort", "0"]
KEY = b64encode(b"a key of sixty-four bytes, for an emulator that forgets it all.").decode()
KEY_VARIABLE = "AMLMOUNT_TEST_AZURITE_KEY"
ACCOUNTS = 64
START_DEADLINE_S = 60.0
_LISTENS = "successfully listens on "


@dataclass
class Azurite:
    """A running Azurite: `url` has no account in it; `process` may be looked at but is ended by its fixture."""

    url: str
    process: "subprocess.Popen[str]"
    _names: Iterator[str] = field(default_factory=lambda: (f"acct{number:03d}" for number in range(ACCOUNTS)))
    _containers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def new_account(self) -> str:
        """Return the name of an account nobody has used yet."""
        try:
            return next(self._names)
        except StopIteration:
            pytest.fail(f"more than {ACCOUNTS} accounts asked for: raise azurite.ACCOUNTS", pytrace=False)

    @functools.cached_property
    def shared_account(self) -> str:
        """An account for tests that put a few small blobs into containers of their own."""
        return self.new_account()

    def definition(self, account: str, container: str | None = None, **changes: Any) -> dict[str, Any]:
        """Return a store definition as the configuration has it; the key is in the environment."""
        fields: dict[str, Any] = {
            "type": "azure_blob",
            "account_name": account,
            "endpoint": f"{self.url}/{account}",
            "credentials": {"account_key": {"env": KEY_VARIABLE}},
        }
        return fields | ({"container_name": container} if container else {}) | changes

    def new_container(self, account: str | None = None) -> dict[str, Any]:
        """Create a container, in a new account unless one is named, and return its store definition."""
        account = account or self.new_account()
        container = f"c{next(self._containers):04d}"
        self.request("PUT", account, container, {"restype": "container"})
        return self.definition(account, container)

    def request(self, method: str, account: str, path: str, query: Mapping[str, str], **headers: str) -> bytes:
        """Send one signed request that the store itself has no use for; `headers` with `_` for `-`."""
        from amlmount.stores.azure.auth import SharedKey
        from amlmount.stores.azure.location import locate
        from amlmount.stores.azure.timing import Deadline, Timing
        from amlmount.stores.azure.transport import Pool, Request

        where = locate(f"{self.url}/{account}", account, "")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = SharedKey(account, KEY).dress(Request(method, f"{where.base_path}/{path}", query, named))
        pool = Pool(where.scheme, where.host, where.port, Timing())
        with pool.send(request, Deadline(30)).response() as reply:
            body = reply.read()
            assert reply.status < 300, body
        pool.close()
        return body


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """Azurite over http; each of its accounts has KEY, which the variable KEY_VARIABLE holds."""
    os.environ[KEY_VARIABLE] = KEY
    process, url = start(FLAGS)
    try:
        yield Azurite(url, process)
    finally:
        stop(process)
        del os.environ[KEY_VARIABLE]


@pytest.fixture(scope="session")
def azurite_oauth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Azurite, Path]]:
    """Azurite over https that takes bearer tokens, and the file of the authority that signed its certificate."""
    os.environ.setdefault(KEY_VARIABLE, KEY)
    folder = tmp_path_factory.mktemp("tls")
    ca_file, certificate, key = make_certificates(folder)
    process, url = start([*FLAGS, "--oauth", "basic", "--cert", str(certificate), "--key", str(key)])
    try:
        yield Azurite(url, process), ca_file
    finally:
        stop(process)


def start(arguments: list[str]) -> tuple["subprocess.Popen[str]", str]:
    """Start an Azurite and return it with its address; fails the test that asked when there is none to start."""
    node = shutil.which("node")
    if node is None or not ENTRY.exists():
        pytest.fail("Azurite is not installed, so the Azure store is not tested: run install/azurite.sh", pytrace=False)
    accounts = ";".join(f"acct{number:03d}:{KEY}" for number in range(ACCOUNTS))
    process = subprocess.Popen(
        [node, str(ENTRY), *arguments],
        env={**os.environ, "AZURITE_ACCOUNTS": accounts},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd="/",
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_drain, args=(process, lines), daemon=True).start()
    deadline, seen = time.monotonic() + START_DEADLINE_S, ""
    while time.monotonic() < deadline and process.poll() is None:
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            continue
        seen += line
        if _LISTENS in line:
            return process, line.split(_LISTENS)[1].strip()
    stop(process)
    pytest.fail(f"Azurite did not start:\n{seen}", pytrace=False)


def stop(process: "subprocess.Popen[str]") -> None:
    """End an Azurite: it holds nothing that must be kept."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _drain(process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)


def make_certificates(folder: Path, hosts: Sequence[str] = ()) -> tuple[Path, Path, Path]:
    """Make an authority and a certificate for 127.0.0.1, localhost and `hosts`; return authority, certificate, key.

    Two certificates, because rustls refuses one that is authority and server at once.
    """
    ca, ca_key, certificate, key = (folder / name for name in ("ca.pem", "ca.key", "leaf.pem", "leaf.key"))
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl = shutil.which("openssl") or pytest.fail("openssl is missing: install it", pytrace=False)
    authority = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    _run(openssl, "req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-days", 30, "-subj", "/CN=test", *authority)
    _run(openssl, "req", *curve, "-keyout", key, "-out", folder / "leaf.csr", "-subj", "/CN=127.0.0.1")
    extensions = folder / "extensions"
    names = ",".join(["IP:127.0.0.1", *(f"DNS:{host}" for host in ("localhost", *hosts))])
    extensions.write_text(f"subjectAltName={names}\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\n")
    signing = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", 30, "-extfile", extensions]
    _run(openssl, "x509", "-req", "-in", folder / "leaf.csr", *signing, "-out", certificate)
    return ca, certificate, key


def _run(*arguments: object) -> None:
    subprocess.run([str(argument) for argument in arguments], check=True, capture_output=True)
