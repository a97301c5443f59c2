"""A change of names that may come twice: the kernel sends again what a dead process had read and not answered.

Noted before the store is asked, and again when all is done; so "it is there already" and "it is gone already" are
told apart from "somebody else was faster" by what we know, not by luck.
"""

from amlmount.vfs.writing.ledger import Ledger


class Attempt:
    """One request to change names. Without `ledger` it comes once: from a test, or a caller of our own."""

    def __init__(self, ledger: Ledger | None = None, request: int = 0, *, is_again: bool = False) -> None:
        """`request` is the number the kernel gave it, `is_again` that it was sent before."""
        self._ledger = ledger
        self._request = request
        self.was_done = bool(ledger and is_again and ledger.was_done(request))
        self.was_begun = self.was_done or bool(ledger and is_again and ledger.was_tried(request))

    def begin(self) -> None:
        """Note that the store is about to be asked; what is there by now, we may have made."""
        if self._ledger is not None:
            self._ledger.trying(self._request)

    def end(self) -> None:
        """Note that it is done; before it is answered."""
        if self._ledger is not None:
            self._ledger.did(self._request)


ONCE = Attempt()
