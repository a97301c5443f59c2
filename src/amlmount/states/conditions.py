"""The conditions of a mount, as Kubernetes has them: what is well, what is not, since when and why.

`KINDS` is the one table of them; docs/operations.md explains each of its reasons, and a test holds one to the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of condition: true when all is well. `reasons` are those it is false for.

    `degrades`: a mount for which it is false does not do what it is for; the others are warnings.
    """

    type: str
    question: str
    reasons: tuple[str, ...]
    degrades: bool = False


KINDS = (
    Kind("ProcessAlive", "does the process that serves it run", ("ProcessEnded",), degrades=True),
    Kind("Mounted", "is it there, and not hidden by another mount", ("Unmounted", "Hidden"), degrades=True),
    Kind("Answering", "does it answer", ("Silent", "Dead", "AnswersWithError"), degrades=True),
    Kind("StoreReachable", "does its store answer", ("StoreSilent", "StoreTrouble", "StoreGone"), degrades=True),
    Kind("StoreAuthorized", "does its store let us in", ("AccessRefused", "CredentialUnreadable"), degrades=True),
    Kind("CredentialValid", "is the credential good for a while", ("CredentialEndsSoon", "CredentialEnded")),
    Kind("CacheHasRoom", "is there room on the disks of cache and journal", ("DiskFull",)),
    Kind("UploadsOnTime", "does the store get what is written, in time", ("UploadsLate", "WritingRefused")),
    Kind("ErrorsRare", "do its callers get few errors", ("ManyErrors",)),
    Kind("ClockRight", "does this machine's clock agree with the store's", ("ClockOff",)),
)
_DEGRADING = frozenset(kind.type for kind in KINDS if kind.degrades)
_ORDER = {kind.type: number for number, kind in enumerate(KINDS)}


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. `reason` is one word for programs, `message` a sentence for people.

    `since`: when `status` turned (seconds since 1970); 0 in a finding that has not been merged yet.
    """

    type: str
    status: Truth
    reason: str
    message: str
    since: float = 0.0

    @property
    def degrades(self) -> bool:
        """Say whether the mount does not do what it is for because of this."""
        return self.status == "False" and self.type in _DEGRADING

    def to_json(self) -> dict[str, Any]:
        """Return one object of `conditions` in `ps -o json`."""
        since = datetime.fromtimestamp(self.since, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"type": self.type, "status": self.status, "reason": self.reason, "message": self.message}
        return fields | {"since": since if self.since else None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Condition":
        """Rebuild what `to_json` wrote; keys of a newer version are ignored."""
        since = datetime.fromisoformat(data["since"]).timestamp() if data.get("since") else 0.0
        return cls(data["type"], data["status"], data["reason"], data["message"], since)


@dataclass(frozen=True, slots=True)
class ConditionChange:
    """A condition that has turned; `before` is None for one that was not known of."""

    type: str
    before: Condition | None
    after: Condition


@dataclass(frozen=True, slots=True)
class Observed:
    """An event of `machine`: somebody has looked. Conditions in `found` take the place of what was known of them."""

    found: tuple[Condition, ...]


def merge(before: Sequence[Condition], found: Iterable[Condition], now_s: float) -> tuple[Condition, ...]:
    """Return the conditions after these findings; a type that was not looked at stays as it was.

    `since` is kept while the status is the same.
    """
    known = {condition.type: condition for condition in before}
    for finding in found:
        old = known.get(finding.type)
        since = old.since if old is not None and old.status == finding.status else now_s
        known[finding.type] = replace(finding, since=since)
    return tuple(sorted(known.values(), key=lambda condition: _ORDER.get(condition.type, len(_ORDER))))


def turned(before: Sequence[Condition], after: Sequence[Condition]) -> list[ConditionChange]:
    """Return the conditions whose status or reason is another; one that begins as true or unknown is no news."""
    known = {condition.type: condition for condition in before}
    changes = [ConditionChange(one.type, known.get(one.type), one) for one in after]
    return [change for change in changes if _is_news(change.before, change.after)]


def _is_news(before: Condition | None, after: Condition) -> bool:
    if before is None or before.status == "Unknown":
        return after.status == "False"
    if after.status == "Unknown":
        return False
    return (before.status, before.reason) != (after.status, after.reason)


def worst(conditions: Iterable[Condition]) -> Condition | None:
    """Return the false condition that matters most, None if there is none."""
    bad = [condition for condition in conditions if condition.status == "False"]
    return min(bad, key=lambda condition: (not condition.degrades, _ORDER.get(condition.type, 99)), default=None)


def health_of(conditions: Sequence[Condition]) -> str:
    """Say in a word how a mount is: `ok`, the reason of what is worst (and how many more), `-` if nothing is known."""
    bad = [condition for condition in conditions if condition.status == "False"]
    if first := worst(bad):
        return first.reason + (f"+{len(bad) - 1}" if len(bad) > 1 else "")
    return "ok" if any(condition.status == "True" for condition in conditions) else "-"
