"""The question `health`: what a mount has counted, for the daemon to judge how it is doing."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from amlmount.fuse.session import Session
from amlmount.vfs.base import FileSystem

if TYPE_CHECKING:
    from amlmount.vfs.writing import WritableFileSystem


def health_question(session: Session, files: FileSystem) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what answers it: the fields of `health.EngineTally`."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        counts = {"requests": sum(list(session.request_counts.values())), "failures": session.failure_count}
        return counts | _unsent(files)

    return answer


def _unsent(files: FileSystem) -> dict[str, Any]:
    if not hasattr(files, "writing_stats"):  # what writes is imported only where something is written
        return {}
    written = cast("WritableFileSystem", files)
    stats = written.writing_stats()
    written.refusals.ask_again()
    unsent = {"dirty_bytes": stats.dirty_bytes, "oldest_s": stats.oldest_s or 0.0}
    return unsent | {"trouble": stats.trouble or "", "refused": stats.refused}
