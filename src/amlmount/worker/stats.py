"""The question `stats`: what a mount has counted since its process began, for people and for Prometheus.

Asking costs microseconds; counting goes on meanwhile.
"""

from collections.abc import Callable
from typing import Any

from amlmount.fuse.adapter import ReadOnlyAdapter
from amlmount.fuse.protocol import Opcode
from amlmount.fuse.session import Session
from amlmount.vfs.filesystem import BlobFileSystem


def stats_question(
    session: Session, adapter: ReadOnlyAdapter, files: BlobFileSystem
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what answers it. `states.stats` says what the keys mean."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        tally = files.tally
        return {
            "requests": {_name(opcode): count for opcode, count in list(session.request_counts.items())},
            "failures": session.failure_count,
            "waits": {_name(opcode): timings.to_json() for opcode, timings in list(session.waits.items())},
            "read_bytes": adapter.read_bytes,
            "written_bytes": adapter.all_written_bytes,
            "store": {
                "reads": tally.reads.to_json(),
                "listings": tally.listings.to_json(),
                "uploads": tally.uploads.to_json(),
                "read_bytes": tally.read_bytes,
            },
            "cache": _cache(files),
            "unsent": _unsent(files),
        }

    return answer


def _name(opcode: int) -> str:
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return f"opcode_{opcode}"


def _cache(files: BlobFileSystem) -> dict[str, Any] | None:
    content = files.content
    if content is None:
        return None
    directory = content.directory
    return {
        "hits": content.hits,
        "misses": content.misses,
        "used_bytes": directory.used_bytes if directory is not None else 0,
        "limit_bytes": directory.limit_bytes if directory is not None else None,
    }


def _unsent(files: BlobFileSystem) -> dict[str, Any] | None:
    if not hasattr(files, "writing_stats"):  # what writes is imported only where something is written
        return None
    stats = files.writing_stats()
    return {"files": stats.dirty_files, "bytes": stats.dirty_bytes, "oldest_s": stats.oldest_s or 0.0}
