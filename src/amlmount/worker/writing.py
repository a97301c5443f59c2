"""Questions about what was written through a mount and is not in the store yet.

`writing` says how much that is, `flush` has it sent and waits.
"""

import logging
import threading
import time
from typing import Any

from amlmount.errors import AmlmountError
from amlmount.metrics import UPLOADS
from amlmount.vfs.writing import WritableFileSystem, WritingStats

log = logging.getLogger(__name__)


class WritingQuestions:
    """Answers them for one mount. Methods may be called from any thread."""

    def __init__(self, files: WritableFileSystem) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._drain: _Drain | None = None

    def writing(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The question `writing`. `sent_files` and `sent_bytes` say how far uploads have got, all of them together."""
        files = self._files
        sent = {"sent_files": sum(files.tally.uploads.counts), "sent_bytes": UPLOADS.sent_bytes}
        return _to_json(files.writing_stats()) | sent

    def flush(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The question `flush`: `timeout_s` is how long to wait; `is_done` says whether all is in the store.

        What a large file or a silent store takes longer than that goes on without who asked. Raises AmlmountError.
        """
        deadline = time.monotonic() + float(asked["timeout_s"])
        while True:
            drain = self._begun(max(deadline - time.monotonic(), 0.0))
            drain.join(max(deadline - time.monotonic(), 0.0))
            found = self.writing(asked)
            if not found["dirty_files"] or time.monotonic() >= deadline:
                return found | {"is_done": not found["dirty_files"]}
            if drain.error is not None:
                raise AmlmountError(f"cannot send what was written: {drain.error}", hint="its log has the traceback")

    def _begun(self, timeout_s: float) -> "_Drain":
        with self._lock:
            if self._drain is None or not self._drain.is_alive():
                self._drain = _Drain(self._files, timeout_s)
                self._drain.start()
            return self._drain


class _Drain(threading.Thread):
    """Has everything sent. It makes attempts itself, which may take longer than anybody waits."""

    def __init__(self, files: WritableFileSystem, timeout_s: float) -> None:
        super().__init__(name="drain", daemon=True)
        self._files, self._timeout_s = files, timeout_s
        self.error: OSError | None = None

    def run(self) -> None:
        """Do it."""
        try:
            self._files.drain(self._timeout_s)
        except OSError as error:
            log.exception("cannot keep what was written")
            self.error = error


def _to_json(stats: WritingStats) -> dict[str, Any]:
    kept = [{"path": one.path, "name": one.name, "why": one.why, "at": one.at} for one in stats.kept]
    return {
        "dirty_files": stats.dirty_files,
        "dirty_bytes": stats.dirty_bytes,
        "oldest_s": stats.oldest_s,
        "trouble": stats.trouble,
        "kept": kept,
    }
