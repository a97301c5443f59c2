"""Which adapter answers the kernel: the one that only reads, or the one that writes, each with what it offers.

What is needed for writing is imported only where something is written.
"""

import logging
import time
from typing import TYPE_CHECKING

from amlmount.config.spec import MountSpec
from amlmount.fuse.adapter import ReadOnlyAdapter
from amlmount.fuse.handles import BackingFiles, Ledger
from amlmount.fuse.negotiate import Offer, offer_for
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.worker.news import News

if TYPE_CHECKING:
    from amlmount.vfs.writing import WritableFileSystem

SAYS_WITHIN_S = 2.0
log = logging.getLogger(__name__)


def adapter_for(
    files: BlobFileSystem, spec: MountSpec, descriptor: int, ledger: Ledger | None
) -> tuple[ReadOnlyAdapter, Offer]:
    """Return what answers the requests of a mount, and what is asked of the kernel."""
    backings = BackingFiles(descriptor)
    if spec.read_only:
        adapter = ReadOnlyAdapter(files, spec.policy, spec.ownership, backings=backings, ledger=ledger)
        return adapter, offer_for(spec.policy)
    from amlmount.fuse.writing import WritingAdapter, writing_offer
    from amlmount.vfs.writing import WritableFileSystem

    assert isinstance(files, WritableFileSystem)
    writing = WritingAdapter(files, spec.policy, spec.ownership, backings=backings, ledger=ledger)
    return writing, writing_offer(spec.policy)


def take_up_writing(files: BlobFileSystem, spec: MountSpec, news: News, *, is_successor: bool) -> None:
    """Recover what the process before this one left, and find out whether anything may be written."""
    if spec.read_only:
        return
    from amlmount.vfs.writing import WritableFileSystem, recover

    assert isinstance(files, WritableFileSystem)
    files.news.tell = news.tell
    found = recover(files, is_successor=is_successor)
    if found.pending and not is_successor:  # listed before anybody knew what is still to come
        for _, top in files.tops():
            files.expire(top)
    log.info("%d files go on, %d are being sent, %d were set aside", found.resumed, found.pending, len(found.kept))
    if not is_successor:
        _ask_whether_writable(files)


def _ask_whether_writable(files: "WritableFileSystem") -> None:
    """Ask all stores at once; one that is too busy to say so does not keep anybody from reading."""
    deadline = time.monotonic() + SAYS_WITHIN_S
    for thread in files.refusals.ask_all():
        thread.join(max(0.0, deadline - time.monotonic()))
