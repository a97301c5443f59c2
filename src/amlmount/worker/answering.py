"""Which adapter answers the kernel: the one that only reads, or the one that writes, each with what it offers.

What is needed for writing is imported only where something is written.
"""

import logging

from amlmount.config.spec import MountSpec
from amlmount.fuse.adapter import ReadOnlyAdapter
from amlmount.fuse.handles import BackingFiles, Ledger
from amlmount.fuse.negotiate import Offer, offer_for
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.worker.news import News

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
    log.info("%d files go on, %d are being sent, %d were set aside", found.resumed, found.pending, len(found.kept))
    if not is_successor:
        for source in {id(source.store): source for source, _ in files.tops()}.values():
            files.check_writable(source)
