"""Every error amlmount raises on purpose: what happened, what to do about it, and how the process exits.

The tree::

    AmlmountError                  1
    ├── UsageError                 2   bad flag or argument
    ├── ConfigError                2   the configuration cannot be used
    ├── NotFoundError              3   no such mount, store, container or blob
    │   ├── ContainerNotFoundError
    │   └── BlobNotFoundError
    ├── DaemonUnreachableError     4
    ├── AccessDeniedError          5   authentication or permission
    ├── NetworkError               6   unreachable, timed out
    │   └── ThrottledError
    ├── PartialError               7   some of several mounts failed
    ├── BusyError                  8   in use; names the holders
    ├── PreconditionFailedError    1   the blob is not the version that was asked for
    ├── MountFailedError           1   the kernel or fusermount3 refused
    └── WaitTimeoutError         124

Wording: starts with "cannot", names the value, lower case, no full stop; the hint says what to do.
"""

from typing import Any, ClassVar

from amlmount.redaction import redact_shapes


class AmlmountError(Exception):
    """A failure that the user can read and act on: never shown with a traceback.

    `message` says what could not be done and why, `hint` what to do, `details` is machine readable. Texts come from
    elsewhere too (a service's answer, what somebody typed): what is a secret in them is hidden here, once for all.
    """

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, details: dict[str, Any] | None = None) -> None:
        self.message = redact_shapes(message)
        super().__init__(self.message)
        self.hint = redact_shapes(hint) if hint is not None else None
        self.details: dict[str, Any] = {
            key: redact_shapes(value) if isinstance(value, str) else value for key, value in (details or {}).items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the wire form `{"code", "message", "hint", "details"}` that api and `-o json` share."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


class UsageError(AmlmountError):
    """A flag or argument that makes no sense."""

    code = "usage"
    exit_code = 2


class ConfigError(AmlmountError):
    """A configuration that cannot be read, parsed or used."""

    code = "config"
    exit_code = 2


class NotFoundError(AmlmountError):
    """A name that does not exist."""

    code = "not_found"
    exit_code = 3


class ContainerNotFoundError(NotFoundError):
    """A container (or the directory of a local store) that is not there."""

    code = "container_not_found"


class BlobNotFoundError(NotFoundError):
    """A blob that is not there."""

    code = "blob_not_found"


class DaemonUnreachableError(AmlmountError):
    """Nobody answers on the daemon's socket."""

    code = "no_daemon"
    exit_code = 4


class AccessDeniedError(AmlmountError):
    """Credentials that are missing, wrong, expired, or that lack a right."""

    code = "access_denied"
    exit_code = 5


class NetworkError(AmlmountError):
    """The other side could not be reached or did not answer in time; trying again may help."""

    code = "network"
    exit_code = 6


class ThrottledError(NetworkError):
    """The store asked us to slow down."""

    code = "throttled"


class PartialError(AmlmountError):
    """Some of several things failed, others are done."""

    code = "partial"
    exit_code = 7


class BusyError(AmlmountError):
    """Something is in use; `details["holders"]` says by whom."""

    code = "busy"
    exit_code = 8


class PreconditionFailedError(AmlmountError):
    """The blob under this name is no longer (or not) the version asked for."""

    code = "precondition_failed"


class MountFailedError(AmlmountError):
    """The kernel or fusermount3 refused a mount or an unmount."""

    code = "mount_failed"


class WaitTimeoutError(AmlmountError):
    """Waiting ended before what was waited for came."""

    code = "timeout"
    exit_code = 124


def _tree(base: type[AmlmountError]) -> dict[str, type[AmlmountError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found |= _tree(child)
    return found


def from_json(data: dict[str, Any]) -> AmlmountError:
    """Rebuild the error that `to_json` wrote; an unknown code becomes a plain AmlmountError."""
    kind = _tree(AmlmountError).get(str(data.get("code")), AmlmountError)
    return kind(str(data.get("message", "failed")), hint=data.get("hint"), details=data.get("details"))
