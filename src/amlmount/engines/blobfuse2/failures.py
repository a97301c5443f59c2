"""What a blobfuse2 that did not start meant: its words become an error with the exit code of what was wrong."""

from amlmount.engines.base import ExitReason
from amlmount.errors import AccessDeniedError, AmlmountError, ContainerNotFoundError, MountFailedError, NetworkError

# Substrings of its messages, which come from several layers (facts of 2.5.6): the first that fits decides.
_KINDS: tuple[tuple[tuple[str, ...], type[AmlmountError], str], ...] = (
    (("ContainerNotFound", "FilesystemNotFound"), ContainerNotFoundError, "create it, or correct its name"),
    (
        ("AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch", "401", "403"),
        AccessDeniedError,
        "see what is wrong with: amlmount store test",
    ),
    (
        ("dial tcp", "no such host", "i/o timeout", "deadline exceeded", "connection re", "ServerBusy"),
        NetworkError,
        "see what is wrong with: amlmount store test",
    ),
)


def start_failed(target: str, reason: ExitReason) -> AmlmountError:
    """Return the error of a start that ended with the process; its last words are in `details["log"]`."""
    said = _essence(reason.log_tail)
    message = f"cannot mount '{target}': blobfuse2 {ExitReason(reason.returncode, '', reason.out_of_memory).text}"
    message += f": {said}" if said else " and said nothing"
    kind, hint = next(
        ((kind, hint) for words, kind, hint in _KINDS if any(word in said for word in words)),
        (MountFailedError, None if said else "if many mounts run: sudo sysctl fs.inotify.max_user_instances=1024"),
    )
    return kind(message, hint=hint, details={"log": reason.log_tail, "returncode": reason.returncode})


def _essence(tail: str) -> str:
    """Return the `Error: ` line with what follows it, else the last line."""
    _, marker, rest = tail.rpartition("Error: ")
    lines = (rest if marker else "\n".join(tail.splitlines()[-1:])).splitlines()
    return " ".join(line.strip() for line in lines if line.strip())[:500]
