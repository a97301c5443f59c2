"""What was found out becomes conditions: pure functions of what was seen and of the thresholds of the configuration."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from amlmount.config.models import HealthConfig
from amlmount.config.units import counted, rough_size
from amlmount.errors import AccessDeniedError, NotFoundError
from amlmount.health.prober import Answer
from amlmount.mounts import MountEntry
from amlmount.states import Condition, Failure, MountState, MountStatus
from amlmount.states.conditions import Truth
from amlmount.stores.azure.checkup import Checkup

QUARTER = 0.25
TOKEN_GRACE_S = 60.0
FEW_REQUESTS = 20  # a share of fewer says nothing


@dataclass(frozen=True, slots=True)
class EngineTally:
    """What an engine has counted since it began: requests, those that failed (not: no such file), what is unsent."""

    requests: int = 0
    failures: int = 0
    dirty_bytes: int = 0
    oldest_s: float = 0.0
    trouble: str = ""
    refused: str = ""


def judge_process(status: MountStatus) -> Condition:
    """ProcessAlive."""
    if status.pid is not None:
        return _say("ProcessAlive", "True", "Running", f"process {status.pid} serves it")
    if status.state in (MountState.PENDING, MountState.MOUNTING) and status.last_error is None:
        return _say("ProcessAlive", "Unknown", "Starting", "it is being started")
    why = status.last_error or Failure("failed", "it has none")
    return _say("ProcessAlive", "False", "ProcessEnded", f"nothing serves it: {why.message}")


def judge_place(status: MountStatus, entry: MountEntry | None, cover: MountEntry | None) -> Condition:
    """Mounted: `entry` is our mount as the table has it, `cover` what lies over it."""
    if entry is None:
        return _say("Mounted", "False", "Unmounted", f"nothing of ours is mounted at {status.target}")
    if cover is not None:
        text = f"{cover.source} ({cover.fstype}) is mounted over it at {cover.mount_point}"
        return _say("Mounted", "False", "Hidden", text)
    return _say("Mounted", "True", "AtTarget", f"mounted at {status.target}")


def judge_answer(answer: Answer, timeout_s: float, waiting: int | None) -> Condition:
    """Answering: `waiting` is how many requests are not answered yet."""
    if answer.error is None:
        requests = f"; {counted(waiting, 'request')} waiting" if waiting else ""
        return _say("Answering", "False", "Silent", f"no answer within {timeout_s:g} s{requests}")
    if answer.error == errno.ENOTCONN:
        return _say("Answering", "False", "Dead", "its server has gone (transport endpoint is not connected)")
    if answer.error:
        return _say("Answering", "False", "AnswersWithError", f"it answers: {answer.text}")
    return _say("Answering", "True", "Answered", "it answers")


def judge_store(found: Checkup, name: str, timeout_s: float) -> list[Condition]:
    """StoreReachable and StoreAuthorized; what could not be found out is left as it was."""
    error, reachable = found.error, "StoreReachable"
    if found.is_reached is None:
        why = error.message if error else "no credential"
        return [_say("StoreAuthorized", "False", "CredentialUnreadable", f"store {name}: {why}")]
    if not found.is_reached:
        why = error.message if error else f"no answer within {timeout_s:g} s"
        return [_say(reachable, "False", "StoreSilent", f"store {name}: {why}")]
    if isinstance(error, AccessDeniedError):
        refused = _say("StoreAuthorized", "False", "AccessRefused", f"store {name}: {error.message}")
        return [_say(reachable, "True", "Reached", f"store {name} answers"), refused]
    allowed = _say("StoreAuthorized", "True", "LetIn", f"store {name} lets us in")
    if error is None:
        return [_say(reachable, "True", "Reached", f"store {name} answers"), allowed]
    if isinstance(error, NotFoundError):
        return [_say(reachable, "False", "StoreGone", f"store {name}: {error.message}")]
    return [_say(reachable, "False", "StoreTrouble", f"store {name}: {error.message}")]


def judge_credential(found: Checkup, name: str, config: HealthConfig, now_s: float) -> Condition:
    """CredentialValid."""
    ends = found.credential_until_s
    if ends is None:
        return _say("CredentialValid", "True", "NoEnd", f"store {name}: the {found.credential or 'login'} has no end")
    when = datetime.fromtimestamp(ends, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if ends <= now_s:
        text = f"store {name}: the {found.credential} ended {when}"
        return _say("CredentialValid", "False", "CredentialEnded", text)
    text = f"store {name}: the {found.credential} ends {when}"
    if found.renews:
        text = f"store {name}: the token of {found.credential} is renewed by itself"
        soon = ends - now_s < TOKEN_GRACE_S
    else:
        soon = ends - now_s < _patience_s(found, config, ends)
    return _say("CredentialValid", *(("False", "CredentialEndsSoon") if soon else ("True", "FarEnd")), text)


def _patience_s(found: Checkup, config: HealthConfig, ends: float) -> float:
    if found.credential_from_s is None:
        return config.credential_ends
    return min(config.credential_ends, QUARTER * (ends - found.credential_from_s))


def judge_clock(error_s: float, config: HealthConfig) -> Condition:
    """ClockRight: `error_s` is our clock less the store's."""
    if abs(error_s) <= config.clock_error:
        return _say("ClockRight", "True", "Right", "this machine's clock agrees with the store's")
    way = "ahead of" if error_s > 0 else "behind"
    return _say("ClockRight", "False", "ClockOff", f"this machine's clock is {abs(error_s):.0f} s {way} the store's")


def judge_disks(free: Mapping[str, Answer], config: HealthConfig) -> Condition:
    """CacheHasRoom: `free` says by directory how much is free on its disk; a disk that does not answer is told of."""
    for path, answer in free.items():
        if answer.error != 0:
            return _say("CacheHasRoom", "Unknown", "DiskSilent", f"the disk of {path}: {answer.text}")
        if answer.value < config.disk_free:
            text = f"only {rough_size(answer.value)} are free on the disk of {path}"
            return _say("CacheHasRoom", "False", "DiskFull", text)
    return _say("CacheHasRoom", "True", "Room", "there is room on its disks")


def judge_uploads(tally: EngineTally, config: HealthConfig) -> Condition:
    """UploadsOnTime."""
    if tally.refused:
        return _say("UploadsOnTime", "False", "WritingRefused", f"nothing can be written: {tally.refused}")
    if tally.oldest_s <= config.upload_age:
        return _say("UploadsOnTime", "True", "InTime", "the store gets what is written")
    why = f": {tally.trouble}" if tally.trouble else ""
    text = f"{rough_size(tally.dirty_bytes)} wait to be sent, some for more than {config.upload_age:g} s{why}"
    return _say("UploadsOnTime", "False", "UploadsLate", text)


def judge_errors(before: EngineTally | None, now: EngineTally, config: HealthConfig) -> Condition | None:
    """ErrorsRare, by what happened between two looks; None if that was too little to say anything."""
    requests, failures = now.requests, now.failures
    if before is not None and before.requests <= now.requests:
        requests, failures = requests - before.requests, failures - before.failures
    if failures * 100 <= requests * config.error_share.value:
        return _say("ErrorsRare", "True", "Few", "its callers get few errors")
    if requests < FEW_REQUESTS:
        return None
    text = f"{failures} of {counted(requests, 'request')} of its callers failed since the last look"
    return _say("ErrorsRare", "False", "ManyErrors", text)


def _say(kind: str, status: Truth, reason: str, message: str) -> Condition:
    return Condition(kind, status, reason, message)
