"""The one place through which all events pass: they get their number, are logged, kept, and handed to who listens.

`tell` may be called from any thread; observers are called in it, one event after another, and must not wait.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from amlmount.events.event import Event
from amlmount.events.file import EventFile
from amlmount.events.kinds import Kind, Severity
from amlmount.redaction import redact

MAX_MESSAGE_CHARS = 2000
MAX_DETAIL_CHARS = 500
log = logging.getLogger("amlmount.events")
_LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.ERROR: logging.ERROR}
Observer = Callable[[Event], None]


class EventHub:
    """Takes in events. Without a `file` they are not kept. Log records carry the event as their attribute `event`."""

    def __init__(self, file: EventFile | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.file = file
        self._clock = clock
        self._lock = threading.RLock()
        self._number = file.last_number() if file is not None else 0
        self._observers: list[Observer] = []
        self._trouble = ""

    def tell(
        self, kind: Kind, message: str, *, mount: str | None = None, details: Mapping[str, Any] | None = None
    ) -> Event:
        """Take in that something happened. Secrets in `message` and `details` are hidden. Never raises."""
        text = redact(message)[:MAX_MESSAGE_CHARS]
        with self._lock:
            self._number += 1
            event = Event(
                self._number, self._clock(), kind.name, kind.severity.value, mount, text, _clean(details or {})
            )
            self._keep(event)
            log.log(_LEVELS[kind.severity], "%s: %s: %s", mount or "daemon", kind.name, text, extra={"event": event})
            for observer in list(self._observers):
                self._call(observer, event)
        return event

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call `observer` with every event from now on; what is returned ends that."""
        with self._lock:
            self._observers.append(observer)

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._observers.remove(observer)

        return end

    def _call(self, observer: Observer, event: Event) -> None:
        try:
            observer(event)
        except Exception:
            log.exception("an observer of events failed")

    def _keep(self, event: Event) -> None:
        if self.file is None:
            return
        try:
            self.file.append(event)
            self._trouble = ""
        except OSError as error:
            if str(error) != self._trouble:
                log.warning("cannot keep events: %s; they are only told to who listens", error)
            self._trouble = str(error)


def _clean(details: Mapping[str, Any]) -> dict[str, Any]:
    """Leave numbers, truths and short texts without secrets."""
    found: dict[str, Any] = {}
    for key, value in details.items():
        if value is None or isinstance(value, bool | int | float):
            found[key] = value
        else:
            found[key] = redact(str(value))[:MAX_DETAIL_CHARS]
    return found
