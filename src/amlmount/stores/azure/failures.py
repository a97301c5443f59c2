"""One place that turns what the store or the network answered into an error a person can act on.

The rows are the service's documented error codes ("Status and error codes", "Blob service error codes").
"""

import http.client
import re
import socket
import ssl
import time
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime

from amlmount.errors import (
    AccessDeniedError,
    AmlmountError,
    BlobNotFoundError,
    BusyError,
    ConfigError,
    ContainerNotFoundError,
    NetworkError,
    PreconditionFailedError,
    ThrottledError,
)
from amlmount.stores.azure.location import Location

MAX_CLOCK_ERROR_S = 300.0
_FIELD = re.compile(r"<(Code|Message|AuthenticationErrorDetail)>([^<]*)<")


@dataclass(slots=True, eq=False)
class Refusal(Exception):
    """An answer that is not what was asked for. `clock_error_s`: our clock less the store's, if known."""

    status: int
    code: str
    detail: str
    retry_after_s: float | None = None
    clock_error_s: float | None = None

    @property
    def is_throttle(self) -> bool:
        """True when the store asks us to slow down."""
        return self.status in (429, 503)

    @property
    def may_pass(self) -> bool:
        """True when the same request may succeed later."""
        return self.status in (408, 429) or self.status >= 500


class DamagedBodyError(Exception):
    """A body that is not what its headers or its listing say: worth another try."""


@dataclass(frozen=True, slots=True)
class Attempted:
    """What was being done, for the message: `verb` as in "cannot <verb>"; the blob's name if there is one."""

    verb: str
    location: Location
    name: str | None = None
    credential: str = ""

    @property
    def what(self) -> str:
        """The beginning of the message."""
        place = f"container {self.location.container!r}" if self.location.container else "the account"
        thing = f"blob {self.name!r} in {place}" if self.name is not None else place
        return f"cannot {self.verb} {thing} of account {self.location.account!r}"


def refusal_from(status: int, headers: Message, body: bytes) -> Refusal:
    """Read the service's code and reason from an answer (headers alone for HEAD)."""
    found = dict(_FIELD.findall(body[:16384].decode(errors="replace")))
    code = headers.get("x-ms-error-code") or found.get("Code") or _CODE_OF_STATUS.get(status, f"HTTP {status}")
    detail = found.get("AuthenticationErrorDetail") or found.get("Message", "").partition("\n")[0]
    return Refusal(status, code, detail.strip(), _retry_after_s(headers), clock_error_s(headers))


_CODE_OF_STATUS = {
    404: "NotFound",
    412: "ConditionNotMet",
    416: "InvalidRange",
    403: "AuthorizationFailure",
    401: "NoAuthenticationInformation",
    503: "ServerBusy",
}


def clock_error_s(headers: Message) -> float | None:
    """Return how many seconds our clock is ahead of the store's, by the Date header of an answer."""
    try:
        return time.time() - parsedate_to_datetime(headers["Date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return None


def _retry_after_s(headers: Message) -> float | None:
    try:
        return max(float(headers["Retry-After"]), 0.0)
    except (KeyError, ValueError, TypeError):
        return None


def explain(refusal: Refusal, attempted: Attempted) -> AmlmountError:
    """Return the error for an answer of the store."""
    kind, hint = _kind_and_hint(refusal, attempted)
    reason = refusal.detail or _PLAIN.get(refusal.code, "")
    message = f"{attempted.what}: {refusal.code}" + (f" ({reason.rstrip('.')[:200]})" if reason else "")
    details = {"status": refusal.status, "code": refusal.code}
    return kind(message, hint=hint.format(**_fields(attempted)), details=details)


def _fields(attempted: Attempted) -> dict[str, str]:
    where = attempted.location
    return {"account": where.account, "container": where.container, "credential": attempted.credential or "credential"}


_PLAIN = {
    "AuthorizationFailure": "refused without a reason",
    "ContainerNotFound": "there is no such container",
    "ResourceNotFound": "there is no such account or container",
    "BlobNotFound": "there is no such blob",
    "ConditionNotMet": "it has changed",
    "BlobAlreadyExists": "it is there already",
}

_ROLE_HINT = (
    "the login works but lacks a right: a SAS needs sp=rl to read and rwdl to write; an identity needs the role "
    "Storage Blob Data Reader (or Contributor) on the container {container!r}, Owner is not enough; "
    "a new role takes up to 10 minutes"
)
_CHECK_NAME = "check container_name and account_name; amlmount store test NAME shows names that are near"

_Row = tuple[type[AmlmountError], str]
_ROWS: dict[str, _Row] = {
    "AuthenticationFailed": (AccessDeniedError, "the {credential} is wrong or has expired: get a new one"),
    "InvalidAuthenticationInfo": (AccessDeniedError, "the token is expired, or for another tenant: log in again"),
    "NoAuthenticationInformation": (AccessDeniedError, "no login was sent: set credentials: of the store"),
    "AuthorizationFailure": (
        AccessDeniedError,
        "either the {credential} is wrong or has expired, or the account's firewall refuses this network",
    ),
    "AuthorizationPermissionMismatch": (AccessDeniedError, _ROLE_HINT),
    "InsufficientAccountPermissions": (AccessDeniedError, _ROLE_HINT),
    "KeyBasedAuthenticationNotPermitted": (
        AccessDeniedError,
        "keys and SAS are switched off for this account: use managed_identity, a service principal or azure_cli",
    ),
    "PublicAccessNotPermitted": (
        AccessDeniedError,
        "this account lets nobody in unnamed: set the credentials of the store",
    ),
    "AuthorizationSourceIPMismatch": (AccessDeniedError, "the SAS is for other addresses (sip=)"),
    "AuthorizationProtocolMismatch": (AccessDeniedError, "the SAS is for https only (spr=https)"),
    "AuthorizationServiceMismatch": (AccessDeniedError, "the SAS is for other services: it needs ss=b"),
    "AuthorizationResourceTypeMismatch": (AccessDeniedError, "the SAS is for other things: it needs srt=sco"),
    "AccountIsDisabled": (AccessDeniedError, "the account is disabled: see its subscription in the portal"),
    "ContainerNotFound": (ContainerNotFoundError, _CHECK_NAME),
    "ResourceNotFound": (ContainerNotFoundError, _CHECK_NAME),
    "ContainerBeingDeleted": (ContainerNotFoundError, "it is just being deleted: wait a minute, then create it again"),
    "ContainerDisabled": (ContainerNotFoundError, "see the container in the portal"),
    "BlobNotFound": (BlobNotFoundError, "it was deleted or renamed, or the name is mistyped"),
    "InvalidResourceName": (ConfigError, "a container name has 3 to 63 lower-case letters, digits and single dashes"),
    "OutOfRangeInput": (ConfigError, "a container name has 3 to 63 lower-case letters, digits and single dashes"),
    "BlobArchived": (
        AccessDeniedError,
        "it is in the archive: az storage blob set-tier --tier Hot",
    ),
    "BlobBeingRehydrated": (BusyError, "it is on its way out of the archive: try again in some hours"),
    "LeaseIdMissing": (BusyError, "someone holds a lease on it: wait, or break it (az storage blob lease break)"),
    "LeaseIdMismatchWithBlobOperation": (BusyError, "someone holds a lease on it: wait, or break it"),
    "BlobAlreadyExists": (PreconditionFailedError, "someone else has created it"),
    "ConditionNotMet": (PreconditionFailedError, "someone else has changed it: read it again"),
    "UnauthorizedBlobOverwrite": (AccessDeniedError, _ROLE_HINT),
}


def _kind_and_hint(refusal: Refusal, attempted: Attempted) -> _Row:
    if refusal.is_throttle:
        return ThrottledError, "the store is busy: read with fewer processes, or try again later"
    if refusal.status in (401, 403) and _is_clock_off(refusal):
        return AccessDeniedError, clock_hint(refusal.clock_error_s or 0.0)
    if row := _ROWS.get(refusal.code):
        return row
    if refusal.status == 404:
        return (BlobNotFoundError if attempted.name is not None else ContainerNotFoundError), _CHECK_NAME
    if refusal.status in (401, 403):
        return AccessDeniedError, "the {credential} does not allow this"
    if refusal.status == 412:
        return PreconditionFailedError, "someone else has changed it: read it again"
    if refusal.may_pass:
        return NetworkError, "the store has trouble of its own: try again in a minute"
    return AmlmountError, "look up the code under Blob service error codes"


def _is_clock_off(refusal: Refusal) -> bool:
    return refusal.clock_error_s is not None and abs(refusal.clock_error_s) > MAX_CLOCK_ERROR_S


def clock_hint(error_s: float) -> str:
    """Say what to do about a clock that is off by that many seconds."""
    ahead = "ahead of" if error_s > 0 else "behind"
    return f"this machine's clock is {abs(error_s) / 60:.0f} minutes {ahead} the store's: timedatectl set-ntp true"


def explain_network(error: BaseException, attempted: Attempted) -> AmlmountError:
    """Return the error for a connection that failed."""
    if isinstance(error, AmlmountError):
        return error
    host = attempted.location.host
    if isinstance(error, socket.gaierror):
        return NetworkError(
            f"{attempted.what}: the name {host} does not resolve",
            hint="check account_name and endpoint; with a private endpoint, this network's name server must know it",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return NetworkError(
            f"{attempted.what}: the certificate of {host} is not trusted ({error.verify_message})",
            hint="a proxy on the way may have put in its own: name its authority's PEM file in SSL_CERT_FILE",
        )
    reason = _reason(error)
    return NetworkError(f"{attempted.what}: {reason}", hint="amlmount store test NAME says at which step it fails")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return f"the answer broke off, {error.expected} bytes were missing"
    if isinstance(error, http.client.BadStatusLine | http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
