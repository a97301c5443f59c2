"""How long things may take: time limits of one request and of a whole call, and a deadline to hand around."""

import time
from dataclasses import dataclass

from amlmount.errors import NetworkError


@dataclass(frozen=True, slots=True)
class Timing:
    """Limits in seconds. `silence_s` is how long a connection may say nothing, `request_s` how long one request may
    take with its body, `call_s` how long a call of the store may take with all its attempts.
    """

    connect_s: float = 5.0
    silence_s: float = 15.0
    request_s: float = 60.0
    call_s: float = 120.0
    first_backoff_s: float = 0.2
    max_backoff_s: float = 10.0
    attempts: int = 5


class Deadline:
    """A moment by which something must be over."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return the seconds that are left; zero or less when it is over."""
        return self._at - time.monotonic()

    def bound(self, seconds: float) -> float:
        """Return `seconds`, or what is left if that is less. Raises NetworkError when nothing is."""
        left = self.left_s()
        if left <= 0:
            raise NetworkError("cannot wait any longer: the deadline has passed", hint="see whether the store is up")
        return min(seconds, left)

    def within(self, seconds: float) -> "Deadline":
        """Return a deadline in `seconds`, but not after this one."""
        return Deadline(min(seconds, self.left_s()))
