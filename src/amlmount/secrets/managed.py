"""The machine's own identity: tokens from the metadata service (IMDS) or an Azure ML compute instance's endpoint.

Both are one GET that answers JSON, so azure-identity (32 MB and 0.2 s a process) is not needed for them.
"""

import http.client
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from amlmount.errors import AccessDeniedError, AmlmountError, NetworkError

SSO_FILE = "/etc/environment.sso"
IMDS = "http://169.254.169.254"
_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 2.0
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and when it ends, in seconds since the epoch."""

    value: str
    expires_at_s: float

    def __repr__(self) -> str:
        return f"Token(***, expires_at_s={self.expires_at_s})"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the machine's tokens come from; `secret` goes along as a header, where the endpoint wants one."""

    kind: str
    url: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Endpoint({self.kind}, {self.url})"


def find_endpoint(resource: str, client_id: str | None = None, *, sso_file: str | None = None) -> Endpoint:
    """Say where this machine's tokens for `resource` come from.

    A compute instance of Azure ML has MSI_ENDPOINT and MSI_SECRET in its terminals only; services, cron and sudo
    lose them, so they are read from /etc/environment.sso as its own agents do (facts: azureml.md 3.1).
    """
    variables = {**_read_sso(sso_file or SSO_FILE), **os.environ}
    client_id = client_id or variables.get("DEFAULT_IDENTITY_CLIENT_ID")
    if variables.get("MSI_ENDPOINT") and variables.get("MSI_SECRET"):
        query = {"api-version": "2017-09-01", "resource": resource}
        query |= {"clientid": client_id} if client_id else {}
        return Endpoint("Azure ML", variables["MSI_ENDPOINT"], query, {"secret": variables["MSI_SECRET"]})
    query = {"api-version": "2018-02-01", "resource": resource}
    query |= {"client_id": client_id} if client_id else {}
    host = os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST", IMDS).rstrip("/")
    return Endpoint("IMDS", f"{host}/metadata/identity/oauth2/token", query, {"Metadata": "true"})


def fetch_token(endpoint: Endpoint) -> Token:
    """Ask the endpoint for a token, past every proxy, four times at most.

    Raises AccessDeniedError when there is no such identity, NetworkError when nobody answers.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(0.4 * 2 ** (attempt - 1))
        status, body = _get(endpoint)
        # IMDS says 404, 410 and 429 while it is being updated or overloaded.
        if status not in (404, 410, 429) and status < 500:
            break
    if status != 200:
        raise _refusal(endpoint, status, body)
    return _parse(endpoint, body)


def _read_sso(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.removeprefix("export ").partition("=") for line in lines if "=" in line and line[:1] != "#")
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def _get(endpoint: Endpoint) -> tuple[int, bytes]:
    address = urlsplit(endpoint.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=_CONNECT_TIMEOUT_S)
    try:
        connection.connect()
        connection.sock.settimeout(_TIMEOUT_S)
        connection.request("GET", f"{address.path}?{urlencode(endpoint.query)}", headers=dict(endpoint.headers))
        reply = connection.getresponse()
        return reply.status, reply.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _silence(endpoint, error) from None
    finally:
        connection.close()


def _silence(endpoint: Endpoint, error: Exception) -> NetworkError:
    hint = "this machine seems to have no managed identity: choose other credentials for the store"
    if endpoint.kind == "Azure ML":
        hint = "the compute instance's identity agent is down: restart the instance, or turn single sign-on on"
    elif os.path.exists("/mnt/azmnt/.nbvm"):
        hint = f"this is a compute instance, but {SSO_FILE} has no MSI_ENDPOINT: turn single sign-on on, and log in"
    return NetworkError(f"cannot get a token from {endpoint.kind} at {endpoint.url}: {error}", hint=hint)


def _refusal(endpoint: Endpoint, status: int, body: bytes) -> AmlmountError:
    text = body.decode(errors="replace")
    try:
        reply = json.loads(text)
        text = str(reply.get("error_description") or reply.get("message") or reply.get("error") or text)
    except (ValueError, AttributeError):
        pass
    message = f"cannot get a token from {endpoint.kind}: {text.strip()[:200] or 'no reason given'} (HTTP {status})"
    if status in (404, 410, 429) or status >= 500:
        return NetworkError(message, hint="try again in a minute")
    hint = "assign a managed identity to this machine, or correct client_id"
    if not {"client_id", "clientid"} & set(endpoint.query):
        hint += "; with several identities, client_id says which one"
    return AccessDeniedError(message, hint=hint)


def _parse(endpoint: Endpoint, body: bytes) -> Token:
    try:
        reply: dict[str, Any] = json.loads(body)
        expires = reply.get("expires_on") or time.time() + float(reply["expires_in"])
        return Token(str(reply["access_token"]), float(expires))
    except (ValueError, KeyError, TypeError):
        raise NetworkError(
            f"cannot use the answer of {endpoint.kind} at {endpoint.url}: it holds no token",
            hint="see whether something else listens at that address",
        ) from None
