"""The question `health`: what a mount has counted, for the daemon to judge how it is doing."""

from collections.abc import Callable
from typing import Any

from amlmount.fuse.session import Session
from amlmount.vfs.base import FileSystem


def health_question(session: Session, files: FileSystem) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what answers it: the fields of `health.EngineTally`."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        counts = {"requests": sum(list(session.request_counts.values())), "failures": session.failure_count}
        return counts | _unsent(files)

    return answer


def _unsent(files: FileSystem) -> dict[str, Any]:
    if not hasattr(files, "writing_stats"):  # what writes is imported only where something is written
        return {}
    stats = files.writing_stats()
    return {"dirty_bytes": stats.dirty_bytes, "oldest_s": stats.oldest_s or 0.0, "trouble": stats.trouble or ""}
