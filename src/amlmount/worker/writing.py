"""Questions about what was written through a mount and is not in the store yet.

`writing` says how much that is, `flush` has it sent and waits.
"""

from typing import Any

from amlmount.vfs.writing import WritableFileSystem, WritingStats


class WritingQuestions:
    """Answers them for one mount. Methods may be called from any thread."""

    def __init__(self, files: WritableFileSystem) -> None:
        self._files = files

    def writing(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The question `writing`."""
        return _to_json(self._files.writing_stats())

    def flush(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The question `flush`: `timeout_s` is how long to wait; `is_done` says whether all is in the store."""
        is_done = self._files.drain(float(asked["timeout_s"]))
        return _to_json(self._files.writing_stats()) | {"is_done": is_done}


def _to_json(stats: WritingStats) -> dict[str, Any]:
    kept = [{"path": one.path, "name": one.name, "why": one.why, "at": one.at} for one in stats.kept]
    return {
        "dirty_files": stats.dirty_files,
        "dirty_bytes": stats.dirty_bytes,
        "oldest_s": stats.oldest_s,
        "trouble": stats.trouble,
        "kept": kept,
    }
