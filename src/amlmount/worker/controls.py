"""What the starter may ask of a mount that is being served: each question in a thread of its own, answered by number.

`program` (which amlmount serves it), `refresh` (path), and what is asked about the cache (`worker.caching`). A question
that fails is answered with an error.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from amlmount.errors import AmlmountError, NotFoundError, UsageError, WaitTimeoutError
from amlmount.fuse.notify import Notifier
from amlmount.vfs.base import FileSystem
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.vfs.tree import Change
from amlmount.worker.kernel_news import KernelNews
from amlmount.worker.orders import ANSWER
from amlmount.worker.program import LOADED

MAX_NAMES = 10_000
KERNEL_PATIENCE_S = 30.0
# What mounts that cannot do it say to a question; they do not know their name.
UNABLE = {
    "flush": "flush this mount: it is read-only, so nothing is written through it",
    "cache_pin": "pin anything: this mount keeps no cache on disk",
}
log = logging.getLogger(__name__)
Tell = Callable[[dict[str, object]], None]
Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Controls:
    """Answers questions. `handlers` by the name of what is asked; each may take its time."""

    def __init__(self, tell: Tell, handlers: dict[str, Handler]) -> None:
        self._tell = tell
        self._handlers = {"program": lambda asked: asdict(LOADED)} | handlers

    def learn(self, handlers: dict[str, Handler]) -> None:
        """Answer these questions too from now on."""
        self._handlers = self._handlers | handlers

    def ask(self, body: dict[str, Any]) -> None:
        """Begin to answer; returns at once."""
        threading.Thread(target=self._answer, args=(body,), name="ask", daemon=True).start()

    def _answer(self, body: dict[str, Any]) -> None:
        number = body.get("number")
        try:
            handler = self._handlers.get(str(body.get("what")))
            if handler is None:
                raise _unknown(str(body.get("what")))
            self._tell({"op": ANSWER, "number": number, "result": handler(body.get("with", {}))})
        except AmlmountError as error:
            self._tell({"op": ANSWER, "number": number, "error": error.to_json()})
        except Exception as error:
            log.exception("cannot answer '%s'", body.get("what"))
            wrapped = AmlmountError(f"cannot answer '{body.get('what')}': {error}", hint="its log has the traceback")
            self._tell({"op": ANSWER, "number": number, "error": wrapped.to_json()})


def _unknown(what: str) -> UsageError:
    return UsageError("cannot " + UNABLE.get(what, f"answer '{what}': this mount does not know the question"))


class Refresher:
    """The question `refresh`: look at the store again, and have the kernel forget what is no longer so."""

    def __init__(self, files: BlobFileSystem, news: KernelNews) -> None:
        self._files = files
        self._news = news
        # Two at once would each be told a part of what changed.
        self._lock = threading.Lock()

    def refresh(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return what changed, once the kernel knows it; names only up to MAX_NAMES. Raises the store's errors.

        `quiet`: the kernel is not told, because a new mount is about to take the place of this one.
        """
        with self._lock:
            told = self._files.on_change
            if asked.get("quiet"):
                self._files.on_change = lambda directory, before: None
            try:
                changes = self._files.refresh(asked.get("path"))
            finally:
                self._files.on_change = told
            if not self._news.settle(KERNEL_PATIENCE_S):
                raise WaitTimeoutError("cannot have the kernel forget what it knows: it does not get to it")
        if asked.get("path") and not changes:
            self._require(asked["path"])
        kinds = [_kind(change) for change in changes]
        names = [[kind, self._path(change)] for kind, change in zip(kinds, changes[:MAX_NAMES], strict=False)]
        counts = {kind: kinds.count(kind) for kind in ("added", "removed", "changed")}
        return counts | {"names": names, "more": len(changes) - len(names)}

    def _require(self, path: str) -> None:
        """Raise NotFoundError for a path that leads nowhere; one that has just gone is among the changes."""
        node = self._files.root()
        try:
            for segment in path.split("/"):
                node = self._files.lookup(node.node_id, segment.encode("utf-8", "surrogateescape"))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(
                f"cannot refresh '{path}': there is no such file or folder in the mount",
                hint="a path is written as below the mount, or with its target in front",
            ) from None
        except OSError:
            return  # it cannot be told now

    def _path(self, change: Change) -> str:
        parts, node_id, root_id = [change.name], change.parent_id, self._files.root().node_id
        while node_id != root_id:
            try:
                node = self._files.node(node_id)
            except OSError:
                break
            parts.append(node.name)
            node_id = node.parent_id
        return b"/".join(reversed(parts)).decode("utf-8", "surrogateescape")


def _kind(change: Change) -> str:
    if change.old_node_id is None:
        return "added"
    return "removed" if change.new_node_id is None else "changed"


def controls_for(files: FileSystem, notifier: Notifier, tell: Tell) -> Controls:
    """Return what answers questions about a mount that is being served, and has the kernel told of every change."""
    if not isinstance(files, BlobFileSystem):
        return Controls(tell, {})
    news = KernelNews(notifier)
    files.on_change = news.relisted
    handlers: dict[str, Handler] = {"refresh": Refresher(files, news).refresh}
    return Controls(tell, handlers | cache_handlers(files) | writing_handlers(files))


def writing_handlers(files: BlobFileSystem) -> dict[str, Handler]:
    """Return what answers questions about what is not in the store yet, nothing for a mount that only reads."""
    if not hasattr(files, "writing_stats"):  # what writes is imported only where something is written
        return {}
    from amlmount.vfs.writing import WritableFileSystem
    from amlmount.worker.writing import WritingQuestions

    assert isinstance(files, WritableFileSystem)
    questions = WritingQuestions(files)
    return {"writing": questions.writing, "flush": questions.flush}


def cache_handlers(files: BlobFileSystem) -> dict[str, Handler]:
    """Return what answers questions about the cache directory, nothing without one."""
    if files.content is None or files.content.directory is None:
        return {}
    from amlmount.worker.caching import CacheKeeper
    from amlmount.worker.known_files import KnownFiles

    keeper = CacheKeeper(files.content.directory)
    known = KnownFiles(files, files.content, files.content.directory)
    handlers: dict[str, Handler] = {"cache": keeper.usage, "cache_clear": keeper.clear}
    return handlers | {"cache_pin": known.pin, "cache_missing": known.missing}
