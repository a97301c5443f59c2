"""What becomes of uploads, as news for whoever looks after the mount: told when it turns, not at every attempt.

Methods may be called from any thread.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from amlmount.errors import AmlmountError
from amlmount.events import Kind, kinds
from amlmount.vfs.writing.sending import ConflictError

FORGOTTEN_AFTER_S = 300.0  # every failed upload is tried again much sooner: who is silent that long has gone
Tell = Callable[[Kind, str, Mapping[str, Any]], None]


class UploadNews:
    """Tells of the first upload that fails, of the end of all failures, and of data put under another name.

    `tell` must not wait.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tell: Tell = lambda kind, message, details: None
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: dict[str, float] = {}

    def attempted(self, name: str, error: AmlmountError | None) -> None:
        """Take in how an attempt to send the blob `name` went."""
        if isinstance(error, ConflictError):
            self.tell(kinds.WRITES_SET_ASIDE, error.message, error.details)
            return
        with self._lock:
            were_failing = bool(self._failing)
            now = self._clock()
            self._failing.pop(name, None)
            if error is None:
                self._failing = {one: at for one, at in self._failing.items() if now - at < FORGOTTEN_AFTER_S}
            else:
                self._failing[name] = now
            are_failing = bool(self._failing)
        if are_failing and not were_failing and error is not None:
            text = f"'{name}' is not in the store yet: {error.message}"
            self.tell(kinds.UPLOAD_FAILED, text, {"name": name, "code": error.code})
        elif were_failing and not are_failing:
            self.tell(
                kinds.UPLOAD_RECOVERED, f"the store takes what is written again, '{name}' for one", {"name": name}
            )

    def set_aside(self, name: str, why: str, place: str) -> None:
        """Take in that what was written to `name` before a crash cannot go there, and where it is."""
        text = f"'{name}' is not in the store: {why}; it is kept as '{place}'"
        self.tell(kinds.WRITES_SET_ASIDE, text, {"name": name, "kept": place})
