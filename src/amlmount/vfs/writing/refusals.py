"""Whether the stores of a mount let anything be written: asked, remembered, and asked again after a while.

So an opening fails with EACCES, and not the close after it.
"""

import logging
import threading
import time
from collections.abc import Sequence

from amlmount.errors import AccessDeniedError, AmlmountError
from amlmount.stores.base import WritableStore
from amlmount.vfs.errno import as_os_error
from amlmount.vfs.nodes import Source
from amlmount.vfs.writing.uploads import Uploads

ASK_AGAIN_S = 5.0  # how long a store that refused writing is believed to go on refusing
log = logging.getLogger(__name__)


class Refusals:
    """Keeps `uploads.refused` up to date when nothing is sent. Methods may be called from any thread."""

    def __init__(self, uploads: Uploads, sources: Sequence[Source]) -> None:
        self._uploads, self._sources = uploads, sources
        self._asked_at = float("-inf")

    def refuse(self, source: Source) -> None:
        """Raise EACCES if the store lets nothing be written; asked again after a while."""
        if self._is_to_be_asked():
            self.ask(source)
        if self._uploads.refused is not None:
            raise as_os_error(self._uploads.refused)

    def ask_again(self) -> None:
        """Find out whether stores that refused writing still do, without waiting for them."""
        if self._is_to_be_asked():
            self.ask_all()

    def _is_to_be_asked(self) -> bool:
        """Say whether a store has refused, and that is long ago; whoever hears so asks."""
        if self._uploads.refused is None or time.monotonic() - self._asked_at <= ASK_AGAIN_S:
            return False
        self._asked_at = time.monotonic()
        return True

    def ask_all(self) -> list[threading.Thread]:
        """Begin to `ask` all stores at once; return who does."""
        sources = {id(source.store): source for source in self._sources}.values()
        asking = [
            threading.Thread(target=self.ask, args=(source,), name="may-write", daemon=True) for source in sources
        ]
        for thread in asking:
            thread.start()
        return asking

    def ask(self, source: Source) -> None:
        """Ask a store whether it lets anything be written, and remember if not. Never raises."""
        assert isinstance(source.store, WritableStore)
        try:
            source.store.check_writable()
            if self._uploads.refused is not None:
                self._uploads.refused = None
                self._uploads.hurry()
        except AccessDeniedError as error:
            self._uploads.refused = error
            log.warning("%s: opening a file for writing gives an error until that has changed", error.message)
        except AmlmountError as error:
            log.warning("cannot find out whether the store can be written to: %s", error.message)
