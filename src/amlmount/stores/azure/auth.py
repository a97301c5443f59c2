"""What a request carries so that the store lets it in: a signature, a SAS, a bearer token, or nothing.

An `Authorizer` dresses a request for the REST client and gives obstore the same credential; nothing else holds one.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import parse_qsl

from amlmount.errors import ConfigError
from amlmount.secrets.identity import TokenSource
from amlmount.stores.azure.transport import Request

# What obstore 0.12 speaks, too: one version for both clients.
API_VERSION = "2023-11-03"


class Authorizer(Protocol):
    """Lets requests in."""

    @property
    def kind(self) -> str:
        """What it is, for people."""
        ...

    def dress(self, request: Request) -> Request:
        """Return the request with what it needs to be let in; done again for every attempt."""
        ...

    def for_obstore(self) -> Any:
        """Return a credential as obstore's `credential_provider` gives it, None for anonymous."""
        ...

    def fingerprint(self) -> str:
        """Return what tells this credential from another one; not for showing."""
        ...

    def forget(self) -> None:
        """The store has refused the credential: get it anew the next time, if it can be had anew."""
        ...


class SharedKey:
    """Signs with an account key: "Authorize with Shared Key" of the Blob service, version 2015-02-21 and later."""

    kind = "account key"

    def __init__(self, account: str, key: str) -> None:
        self._account, self._key = account, key
        self._mac = hmac.new(_decode_key(account, key), digestmod=hashlib.sha256)

    def dress(self, request: Request) -> Request:
        headers = {**request.headers, "x-ms-date": formatdate(usegmt=True), "x-ms-version": API_VERSION}
        mac = self._mac.copy()
        mac.update(string_to_sign(self._account, request, headers).encode())
        signature = base64.b64encode(mac.digest()).decode()
        return replace(request, headers={**headers, "Authorization": f"SharedKey {self._account}:{signature}"})

    def for_obstore(self) -> Any:
        return {"access_key": self._key, "expires_at": None}

    def forget(self) -> None:
        """Nothing to do: whoever resolved the key resolves it again."""

    def fingerprint(self) -> str:
        return self._key


class Sas:
    """Appends a shared access signature to every URL."""

    kind = "SAS"

    def __init__(self, token: str) -> None:
        self._token = token.strip().lstrip("?").lstrip("&")
        # A SAS pasted undecoded has real plus signs in it, never spaces.
        self.fields = dict(parse_qsl(self._token.replace("+", "%2B"), keep_blank_values=True))
        if "sig" not in self.fields:
            raise ConfigError(
                "cannot use this SAS: it has no signature (sig=)", hint="copy the whole token, from sv= or ?sv= on"
            )

    def dress(self, request: Request) -> Request:
        headers = {**request.headers, "x-ms-version": API_VERSION}
        return replace(request, query={**request.query, **self.fields}, headers=headers)

    def for_obstore(self) -> Any:
        return {"sas_token": self._token, "expires_at": None}

    def forget(self) -> None:
        """Nothing to do: whoever resolved the SAS resolves it again."""

    def fingerprint(self) -> str:
        return self._token


class Bearer:
    """Sends a bearer token, over https only."""

    def __init__(self, tokens: TokenSource) -> None:
        self.tokens = tokens

    @property
    def kind(self) -> str:
        return self.tokens.description

    def dress(self, request: Request) -> Request:
        token = self.tokens.get().value
        headers = {"x-ms-version": API_VERSION, "Authorization": f"Bearer {token}"}
        return replace(request, headers={**request.headers, **headers})

    def for_obstore(self) -> Any:
        token = self.tokens.get()
        return {"token": token.value, "expires_at": datetime.fromtimestamp(token.expires_at_s, UTC)}

    def forget(self) -> None:
        self.tokens.forget()

    def fingerprint(self) -> str:
        # Never the same twice: after a refusal a new token is worth one try.
        return str(id(self))


class Anonymous:
    """Sends nothing: public containers."""

    kind = "anonymous"

    def dress(self, request: Request) -> Request:
        return replace(request, headers={**request.headers, "x-ms-version": API_VERSION})

    def for_obstore(self) -> Any:
        return None

    def forget(self) -> None:
        """Nothing to forget."""

    def fingerprint(self) -> str:
        return ""


_SIGNED = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


def string_to_sign(account: str, request: Request, headers: Mapping[str, str]) -> str:
    """Return the text that a Shared Key signature covers."""
    lower = {name.lower(): value for name, value in headers.items()}
    if request.body:
        lower["content-length"] = str(len(request.body))
    lines = [request.method, *(lower.get(name, "") for name in _SIGNED)]
    lines += [f"{name}:{lower[name].strip()}" for name in sorted(lower) if name.startswith("x-ms-")]
    resource = f"/{account}{request.path}"
    query = sorted((name.lower(), value) for name, value in request.query.items())
    return "\n".join([*lines, resource, *(f"{name}:{value}" for name, value in query)])


def _decode_key(account: str, key: str) -> bytes:
    try:
        return base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(
            f"cannot use the account key of {account!r}: it is not base64",
            hint=f"copy it whole: az storage account keys list -n {account}",
        ) from None
