"""Bytes on their way into stores from this process, for whoever has to know whether sending goes on.

What an attempt had sent that failed is taken back: the sum passes its highest value only when something gets further.
"""


class Flow:
    """Counted without a lock, see `Timings`; a process serves one mount."""

    __slots__ = ("sent_bytes",)

    def __init__(self) -> None:
        self.sent_bytes = 0

    def add(self, count: int) -> None:
        """Count bytes that have left, or with a negative number take them back."""
        self.sent_bytes += count


UPLOADS = Flow()
