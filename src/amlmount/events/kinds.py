"""Every kind of event there is: its name, how bad it is, what it means and what to do about it.

The one table: docs/operations.md has it as text (`events.reference`), and a test brings about each of them.
"""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad an event is: as it should be, worth a look, somebody gets errors."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of event. `action` is what an operator does about it."""

    name: str
    severity: Severity
    meaning: str
    action: str


KINDS: dict[str, Kind] = {}
NOTHING = "nothing"


def _info(name: str, meaning: str, action: str = NOTHING) -> Kind:
    return _add(Kind(name, Severity.INFO, meaning, action))


def _warning(name: str, meaning: str, action: str) -> Kind:
    return _add(Kind(name, Severity.WARNING, meaning, action))


def _error(name: str, meaning: str, action: str) -> Kind:
    return _add(Kind(name, Severity.ERROR, meaning, action))


def _add(kind: Kind) -> Kind:
    KINDS[kind.name] = kind
    return kind


# --- a mount comes and goes --------------------------------------------------------------------------------------

REQUESTED = _info("requested", "somebody asked for the mount; it waits for its turn")
MOUNTING = _info("mounting", "its engine is being started")
MOUNTED = _info("mounted", "it is there and answers")
ADOPTED = _info("adopted", "a new daemon found it as the one before had left it, and looks after it")
START_FAILED = _warning(
    "start-failed",
    "it could not be mounted, and is tried again by itself after a pause",
    "nothing if the network or the store was away for a moment; else what the message says",
)
GAVE_UP = _error(
    "gave-up",
    "it is not mounted and is not tried again: trying again would not help, or it has crashed too often",
    "do what the message says, then `amlmount up NAME`",
)
UNMOUNTING = _info("unmounting", "somebody asked for it to go")
UNMOUNTED = _info("unmounted", "it is gone, and nothing is left of it")
UNMOUNT_FAILED = _warning(
    "unmount-failed",
    "it could not be unmounted and is as it was, most often because a program uses it",
    "end what the message names, or `amlmount down NAME --lazy`",
)

# --- what serves a mount ends, and another goes on -----------------------------------------------------------------

CRASHED = _warning(
    "crashed",
    "the process that served it ended without being asked to; `taken-over` or `mounted` follows when it serves again",
    "if it happens again: `amlmount logs NAME`, and `amlmount doctor --bundle` for a report",
)
HUNG = _warning(
    "hung",
    "the process that served it read no requests any more; it is killed, and another goes on",
    "if it happens again: `amlmount logs NAME` has where it hung",
)
TAKEN_OVER = _info("taken-over", "another process serves the same mount; its callers waited a moment and got no error")
TAKEOVER_FAILED = _error(
    "takeover-failed",
    "no other process could go on with it; it is tried again, or mounted anew and callers get an error",
    "`amlmount logs NAME`; programs that had files open there may have to be started again",
)
UNMOUNTED_ELSEWHERE = _warning(
    "unmounted-elsewhere",
    "somebody unmounted it behind the daemon's back; it is mounted again",
    "to take it down: `amlmount down NAME`",
)
REPLACED = _info("replaced", "a new mount took its place without a gap: after `reload`, `restart` or a new credential")
DEGRADED = _warning(
    "degraded",
    "it is mounted, but does not do what it is for; the conditions say what is wrong",
    "`amlmount check NAME`",
)
RECOVERED = _info("recovered", "it does what it is for again")
CONDITION_LOST = _warning(
    "condition-lost", "one of its conditions is not true any more", "look the condition up under Conditions"
)
CONDITION_BACK = _info("condition-back", "one of its conditions is true again")

# --- its data ----------------------------------------------------------------------------------------------------

REFRESHED = _info("refreshed", "it looked at its store again and found changes; looks that find none are no events")
REFRESH_FAILED = _warning(
    "refresh-failed",
    "it could not look at its store again and shows what it showed before",
    "nothing if the network was away; it is tried again when it is due",
)
UPLOAD_FAILED = _warning(
    "upload-failed",
    "something that was written is not in the store yet; it is kept on the local disk and tried again",
    "see that the store can be reached and lets us write: `amlmount check NAME --rw`",
)
UPLOAD_RECOVERED = _info("upload-recovered", "the store takes what was written again")
WRITES_SET_ASIDE = _warning(
    "writes-set-aside",
    "something that was written could not go where it belongs and was put under another name",
    "look at both versions, and keep the right one",
)
CONTAINERS_CHANGED = _info("containers-changed", "an account has new containers, or has lost some; mounts follow it")
CONTAINERS_UNKNOWN = _warning(
    "containers-unknown",
    "the containers of an account could not be listed; what is mounted stays",
    "nothing if the network was away; else what the message says",
)

# --- the daemon ----------------------------------------------------------------------------------------------------

DAEMON_STARTED = _info("daemon-started", "the daemon runs")
DAEMON_ENDING = _info("daemon-ending", "the daemon takes its mounts down and ends")
DAEMON_LEAVING = _info("daemon-leaving", "the daemon ends and leaves its mounts to the next one")
RELOADED = _info("reloaded", "the configuration was read again and what had changed was made so")
RELOAD_FAILED = _error(
    "reload-failed",
    "the configuration has a mistake, or a change could not be made; what is mounted stays as it was",
    "`amlmount config check`, then `amlmount reload`",
)
