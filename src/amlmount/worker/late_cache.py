"""A worker whose cache directory another process still has: the mount it replaces, until the last file there is closed.

It reads without one until then, and takes it when it is free.
"""

import logging
import threading
import time

from amlmount.config.spec import MountSpec
from amlmount.vfs.content import open_late
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.worker.controls import Controls, cache_handlers

EVERY_S = 0.5
log = logging.getLogger(__name__)


def await_cache(files: BlobFileSystem, spec: MountSpec, controls: Controls) -> None:
    """Begin to wait for the cache directory of `spec`, if it is to have one and does not; returns at once."""
    content = files.content
    if content is None or content.directory is not None or spec.cache_dir is None or not spec.policy.cache_on_disk:
        return
    threading.Thread(target=_wait, args=(files, spec, controls), name="late cache", daemon=True).start()


def _wait(files: BlobFileSystem, spec: MountSpec, controls: Controls) -> None:
    while (open_content := open_late(spec)) is None:
        time.sleep(EVERY_S)
    files.exchange_content(open_content)
    controls.learn(cache_handlers(files))
    log.info("the cache directory %s is free now, and used", spec.cache_dir)
