"""Wait for a request or for somebody who wants the reading to end, whichever comes first.

A thread blocked in a read of /dev/fuse cannot be woken by anything but a request, so whoever may have to stop
waits here first, at the price of one system call a request.
"""

import os
import select


class Stopper:
    """Watches a `/dev/fuse` descriptor and a switch. Between this and the read the caller of a request may be killed
    and the request be gone; the read then blocks until the next one, and a stop waits as long."""

    def __init__(self, fuse_fd: int) -> None:
        self._switch = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(fuse_fd, select.POLLIN)
        self._poll.register(self._switch, select.POLLIN)

    def stop(self) -> None:
        """End the waiting, now and for good; harmless after `close`."""
        if self._switch >= 0:
            os.eventfd_write(self._switch, 1)

    def wait_for_request(self) -> bool:
        """Return True when there is something to read (an error counts), False once stopped."""
        return all(fd != self._switch for fd, _ in self._poll.poll())

    def close(self) -> None:
        """Give the descriptor back."""
        switch, self._switch = self._switch, -1
        os.close(switch)
