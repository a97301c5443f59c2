"""Bearer tokens: which identity they belong to, and one source of them that renews a token before it ends.

azure-identity is imported only when a token of its kinds is asked for; a managed identity does without it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amlmount.config.credentials import ServicePrincipal
from amlmount.errors import AccessDeniedError, AmlmountError, ConfigError, NetworkError
from amlmount.secrets import resolve
from amlmount.secrets.managed import Token, fetch_token, find_endpoint

if TYPE_CHECKING:
    from azure.identity import AzureCliCredential, ClientSecretCredential, WorkloadIdentityCredential

    Credential = AzureCliCredential | ClientSecretCredential | WorkloadIdentityCredential

RENEW_BEFORE_S = 300.0
RETRY_RENEWAL_S = 30.0


class TokenSource:
    """Gives a token with life left in it; one thread renews it while the others go on with the old one."""

    def __init__(self, fetch: Callable[[], Token], description: str, clock: Callable[[], float] = time.time) -> None:
        self._fetch, self._clock, self.description = fetch, clock, description
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._not_before_s = 0.0

    def get(self) -> Token:
        """Return a token that is valid now, renewed when less than five minutes of it are left.

        Raises AccessDeniedError or NetworkError when there is none and none can be had.
        """
        token, now = self._token, self._clock()
        if token is not None and self._is_fresh(token, now):
            return token
        alive = token is not None and token.expires_at_s > now
        if not self._lock.acquire(blocking=not alive):
            assert token is not None
            return token
        try:
            return self._renew()
        finally:
            self._lock.release()

    def forget(self) -> None:
        """Drop the present token: the store has refused it."""
        with self._lock:
            self._token, self._not_before_s = None, 0.0

    def _is_fresh(self, token: Token, now: float) -> bool:
        left_s = token.expires_at_s - now
        return left_s > RENEW_BEFORE_S or (left_s > 0 and now < self._not_before_s)

    def _renew(self) -> Token:
        token, now = self._token, self._clock()
        if token is not None and self._is_fresh(token, now):
            return token
        self._not_before_s = now + RETRY_RENEWAL_S
        try:
            self._token = token = self._fetch()
        except AmlmountError:
            if token is None or token.expires_at_s <= now:
                raise
        return token


def managed_identity(scope: str, client_id: str | None = None) -> TokenSource:
    """Return tokens of this machine's identity (IMDS or an Azure ML compute instance)."""
    resource = scope.removesuffix("/.default")
    return TokenSource(lambda: fetch_token(find_endpoint(resource, client_id)), "managed identity")


def service_principal(scope: str, application: ServicePrincipal) -> TokenSource:
    """Return tokens of an application; its secret is read again for every login."""

    def build() -> "Credential":
        from azure.identity import ClientSecretCredential

        secret = resolve(application.client_secret).reveal()
        # A private or sovereign authority is not listed by the public one, which would be asked first.
        own = {"authority": application.authority_url, "disable_instance_discovery": True}
        options: dict[str, Any] = own if application.authority_url else {}
        return ClientSecretCredential(application.tenant_id, application.client_id, secret, **options)

    return _from_library(build, scope, f"service principal {application.client_id}")


def workload_identity(scope: str, client_id: str | None = None) -> TokenSource:
    """Return tokens got for a federated token file (AZURE_FEDERATED_TOKEN_FILE), which is read again each time."""

    def build() -> "Credential":
        from azure.identity import WorkloadIdentityCredential

        return WorkloadIdentityCredential(**({"client_id": client_id} if client_id else {}))

    return _from_library(build, scope, "workload identity")


def azure_cli(scope: str) -> TokenSource:
    """Return tokens of whoever is logged in to the Azure CLI as the user this process runs as."""

    def build() -> "Credential":
        from azure.identity import AzureCliCredential

        return AzureCliCredential()

    return _from_library(build, scope, "Azure CLI login")


def automatic(scope: str) -> TokenSource:
    """Return tokens of the first that answers: workload identity if it is set up, this machine's identity, the CLI."""
    candidates = [managed_identity(scope), azure_cli(scope)]
    if os.environ.get("AZURE_FEDERATED_TOKEN_FILE"):
        candidates.insert(0, workload_identity(scope))
    source = TokenSource(lambda: _first_of(candidates, source), "automatic")
    return source


def _first_of(candidates: list[TokenSource], source: TokenSource) -> Token:
    reasons = []
    for candidate in candidates:
        try:
            token = candidate.get()
        except AmlmountError as error:
            reasons.append(f"{candidate.description}: {error.message.removeprefix('cannot ')}")
        else:
            source.description = f"{candidate.description} (found by itself)"
            return token
    raise AccessDeniedError(
        f"cannot find an identity on this machine ({'; '.join(reasons)})",
        hint="name one under credentials: of the store, or run az login",
    )


def _from_library(build: Callable[[], "Credential"], scope: str, description: str) -> TokenSource:
    def fetch() -> Token:
        from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError

        # The library also logs what it raises; with no handler of the program's own that would go to stderr.
        logging.getLogger("azure").addHandler(logging.NullHandler())
        try:
            with build() as credential:  # made anew each hour: no idle connection, and a replaced secret is read
                token = credential.get_token(scope)
        except (ServiceRequestError, ServiceResponseError) as error:
            raise NetworkError(
                f"cannot reach the login service for {description}: {_brief(error)}", hint="check network and proxy"
            ) from None
        except ClientAuthenticationError as error:
            raise _explain(description, str(error)) from None
        except ValueError as error:
            raise ConfigError(f"cannot use {description}: {_brief(error)}", hint="correct credentials:") from None
        return Token(token.token, float(token.expires_on))

    return TokenSource(fetch, description)


_AAD_HINTS = {
    "AADSTS7000215": "the client secret is wrong (its id was given instead of its value?): create a new one",
    "AADSTS7000222": "the client secret has expired: create a new one",
    "AADSTS700016": "there is no such application in this tenant: correct client_id or tenant_id",
    "AADSTS90002": "there is no such tenant: correct tenant_id",
    "AADSTS50076": "this login needs a second factor: run az login again",
    "AADSTS700024": "the federated token has expired: see who renews AZURE_FEDERATED_TOKEN_FILE",
}


def _explain(description: str, text: str) -> AmlmountError:
    hints = [hint for code, hint in _AAD_HINTS.items() if code in text.replace(":", " ").split()]
    if "az login" in text:
        hints.append("run az login as the user this runs as (a service has no login)")
    elif "CLI not found" in text:
        hints.append("install the Azure CLI, or choose other credentials")
    message = f"cannot get a token as {description}: {_brief(text)}"
    return AccessDeniedError(message, hint=hints[0] if hints else "correct credentials: of the store")


def _brief(text: object) -> str:
    return " ".join(str(text).split())[:240]
