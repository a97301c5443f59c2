"""Carrying out what `classify` says of a cache that was set aside: send, keep, put away; nothing unproven is deleted.

One process at a time works on a folder (flock); what could not be done for now is done by the next.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from amlmount.blobfuse2 import unfinished_download_mode
from amlmount.errors import AmlmountError, BlobNotFoundError, BusyError, PreconditionFailedError
from amlmount.recovery.classify import MEANINGS, Comparison, LocalFile, Rules, Verdict, classify, local_files
from amlmount.recovery.contents import is_part, is_same, send
from amlmount.recovery.instances import LOCK, REPORT, Folder, remove_tree
from amlmount.stores import open_store
from amlmount.stores.base import ObjectInfo, ObjectStore

PARALLEL = 8
# A PUT that the dead blobfuse2 had sent may still be committed by the service.
SETTLE_S = 3.0
SENT = (Verdict.NEW, Verdict.CHANGED)
SETTLED = (Verdict.CLEAN, Verdict.STORED, Verdict.STALE, Verdict.UNFINISHED)


@dataclass(frozen=True, slots=True)
class Found:
    """One file: what it is, what was done with it (`sent`, `kept`, `removed`, `trashed`, or with dry run `none`)."""

    name: str
    size_bytes: int
    verdict: str
    action: str
    detail: str = ""

    @property
    def needs_attention(self) -> bool:
        """Say whether somebody has to look at it: it is kept because only a person can decide, or could not be sent."""
        return self.action == "kept"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in one folder. `pending`: something should be sent and could not be."""

    mount: str
    folder: str
    ended_at_s: float
    files: list[Found] = field(default_factory=list)
    pending: bool = False
    dry_run: bool = False

    def count(self, action: str) -> int:
        """Return how many files met with `action`."""
        return sum(found.action == action for found in self.files)

    def to_json(self) -> dict[str, Any]:
        """Return one object of `recover -o json`."""
        files = [
            {
                "name": found.name,
                "size_bytes": found.size_bytes,
                "verdict": found.verdict,
                "action": found.action,
                "detail": found.detail,
            }
            for found in self.files
        ]
        return {
            "schema_version": 1,
            "mount": self.mount,
            "folder": self.folder,
            "pending": self.pending,
            "dry_run": self.dry_run,
            "files": files,
        }


def salvage(folder: Folder, *, dry_run: bool = False) -> Report:
    """Deal with one folder that was set aside and say what was found. Raises BusyError if another process is at it.

    A store that cannot be reached leaves everything as it is, with `pending`.
    """
    with claimed(folder):
        return salvage_claimed(folder, dry_run=dry_run)


def salvage_pending(folder: Folder) -> Report | None:
    """Do as `salvage`, but nothing (and return None) where somebody did by now, and only a person can do more."""
    with claimed(folder):
        before = read_report(folder)
        return None if before is not None and not before["pending"] else salvage_claimed(folder)


def salvage_claimed(
    folder: Folder, *, dry_run: bool = False, held: Collection[str] = (), resumed: bool = False
) -> Report:
    """As `salvage`, for who has claimed the folder. Files named in `held` are left alone, for a later time.

    `resumed`: whoever was at work goes on, so an empty file is one that was just being made or closed, not a lost one.
    """
    store = open_store(folder.instance.store)
    try:
        worker = _Worker(folder, store, dry_run, resumed)
        report = _deal_with(folder, worker, dry_run, held)
    finally:
        store.close()
    if not dry_run:
        _close(folder, report)
    return report


def read_report(folder: Folder) -> dict[str, Any] | None:
    """Return the report of the last salvage, None if there was none."""
    try:
        with open(os.path.join(folder.path, REPORT)) as file:
            data: dict[str, Any] = json.load(file)
            return data
    except (OSError, ValueError):
        return None


def _deal_with(folder: Folder, worker: "_Worker", dry_run: bool, held: Collection[str]) -> Report:
    instance = folder.instance
    if not instance.may_be_dirty:
        return Report(instance.mount, folder.path, instance.ended_at_s, dry_run=dry_run)
    with ThreadPoolExecutor(PARALLEL, "salvage") as pool:
        found_files = [file for file in local_files(folder.data) if file.name not in held]
        files = list(pool.map(worker.deal_with, sorted(found_files, key=lambda file: file.name)))
    pending = bool(held) or is_unsent(files)
    return Report(instance.mount, folder.path, instance.ended_at_s, files, pending, dry_run)


def is_unsent(files: Iterable[Found]) -> bool:
    """Say whether something should be sent and could not be."""
    return any(found.action == "kept" and found.verdict in ("unknown", *SENT) for found in files)


class _Worker:
    """Deals with one file after the other; several threads use it."""

    def __init__(self, folder: Folder, store: ObjectStore, dry_run: bool, resumed: bool) -> None:
        self._folder, self._store, self._dry_run, self._resumed = folder, store, dry_run, resumed
        mode = unfinished_download_mode(allow_other=folder.instance.allow_other)
        self._rules = Rules(whole_seconds=not store.is_local, unfinished_mode=mode)

    def deal_with(self, file: LocalFile) -> Found:
        """Classify a file and do what follows; errors of the store keep it."""
        name = "/".join(part for part in (self._folder.instance.path.strip("/"), file.name) if part)
        try:
            blob, verdict = self._judge(name, file)
            if verdict not in SETTLED and self._let_settle():
                blob, verdict = self._judge(name, file)
        except (AmlmountError, OSError) as error:
            return Found(name, file.size_bytes, "unknown", "kept", str(error))
        return self._act(name, file, blob, verdict)

    def _judge(self, name: str, file: LocalFile) -> tuple[ObjectInfo | None, Verdict]:
        blob = self._head(name)
        compare = Comparison(
            lambda: blob is not None and is_same(self._store, blob, file.path),
            lambda: blob is not None and is_part(self._store, blob, file.path),
        )
        verdict = classify(file, blob, self._rules, compare)
        if verdict is Verdict.LOST and self._resumed:
            verdict = Verdict.NEW if blob is None else Verdict.STALE
        return blob, verdict

    def _let_settle(self) -> bool:
        """Wait until what the dead one had sent is committed or lost; say whether that took a moment."""
        left_s = self._folder.instance.ended_at_s + SETTLE_S - time.time()
        if not self._folder.instance.crashed or self._dry_run or not 0 < left_s <= SETTLE_S:
            return False
        time.sleep(left_s)
        return True

    def _head(self, name: str) -> ObjectInfo | None:
        try:
            return self._store.head(name)
        except BlobNotFoundError:
            return None

    def _act(self, name: str, file: LocalFile, blob: ObjectInfo | None, verdict: Verdict) -> Found:
        found = Found(name, file.size_bytes, verdict, "none", MEANINGS[verdict])
        if self._dry_run:
            return found
        if verdict in SENT:
            return self._send(found, file, blob)
        if verdict in (Verdict.CLEAN, Verdict.STORED):
            os.unlink(file.path)
            return _but(found, "removed")
        if verdict in (Verdict.STALE, Verdict.UNFINISHED):
            target = os.path.join(self._folder.trash, file.name)
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            os.rename(file.path, target)
            return _but(found, "trashed")
        return _but(found, "kept")

    def _send(self, found: Found, file: LocalFile, blob: ObjectInfo | None) -> Found:
        try:
            etag, metadata = (blob.etag, dict(blob.metadata)) if blob else (None, None)
            send(self._store, found.name, file.path, if_match=etag, metadata=metadata)
        except PreconditionFailedError:
            return _but(found, "kept", verdict=Verdict.CONFLICT, detail=MEANINGS[Verdict.CONFLICT])
        except (AmlmountError, OSError) as error:
            return _but(found, "kept", detail=f"{found.detail}; {error}")
        os.unlink(file.path)
        return _but(found, "sent")


def _but(found: Found, action: str, *, verdict: str | None = None, detail: str | None = None) -> Found:
    return replace(found, action=action, verdict=verdict or found.verdict, detail=detail or found.detail)


def _close(folder: Folder, report: Report) -> None:
    """Write the report, or remove the folder if nothing of interest is left in it."""
    kept = os.path.lexists(folder.trash) or folder.has_files()
    if not folder.instance.may_be_dirty or not (report.pending or kept):
        folder.remove()
        return
    draft = os.path.join(folder.path, f"{REPORT}.new")
    with open(draft, "w", opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, 0o600)) as file:
        json.dump(_with_history(report.to_json(), read_report(folder)), file)
    os.replace(draft, os.path.join(folder.path, REPORT))


def _with_history(report: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """Return the report with what became of other files before."""
    names = {file["name"] for file in report["files"]}
    earlier = [file for file in (before or {}).get("files", []) if file["name"] not in names]
    return report | {"files": earlier + report["files"]}


def empty_trash(folder: Folder) -> None:
    """Remove what has lain in a folder's trash for its time, and the folder if nothing else is in it."""
    done = read_report(folder)
    old = time.time() - folder.instance.ended_at_s > folder.instance.trash_after_s
    if done is None or done.get("pending") or not old:
        return
    remove_tree(folder.trash)
    if not folder.has_files():
        folder.remove()


@contextlib.contextmanager
def claimed(folder: Folder) -> Iterator[None]:
    """Be the one process that works on a folder. Raises BusyError if another does, or it is in use."""
    if folder.instance.alive:
        raise BusyError(f"cannot recover {folder.path}: its blobfuse2 still runs", hint="wait until it has ended")
    try:
        fd = os.open(os.path.join(folder.path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        raise BusyError(f"cannot recover {folder.path}: another process has just done it") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BusyError(f"cannot recover {folder.path}: another process is at it", hint="wait and try again") from None
    finally:
        os.close(fd)
