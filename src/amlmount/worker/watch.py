"""The thread of a worker that waits for everything but the kernel: orders of the starter, the death of the caller.

It ends the process by itself, because the main thread sits in a read of `/dev/fuse` or in a call to a store.
"""

import logging
import os
import queue
import select
import threading
from collections.abc import Callable
from typing import Any

from amlmount.worker.channel import Channel, Message
from amlmount.worker.orders import ASK, EXIT, SERVE

log = logging.getLogger(__name__)


class Watch:
    """Hands the ServeOrder to the main thread, questions to `asked`, and calls `end` when it is time to go.

    Without a caller to be tied to, a closed channel ends the worker only until it serves: from then on it
    outlives its starter, and the end of the connection is its own.
    """

    def __init__(
        self,
        channel: Channel,
        caller_pidfd: int | None,
        end: Callable[[], None],
        asked: Callable[[dict[str, Any]], None],
    ) -> None:
        self._channel = channel
        self._caller_pidfd = caller_pidfd
        self._end = end
        self._asked = asked
        self._orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._serving = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def serve_order(self) -> Message:
        """Wait for the order to serve. The process ends here if the starter is gone before it gives it."""
        message = self._orders.get()
        self._serving.set()
        return message

    def _run(self) -> None:
        try:
            self._watch()
        except Exception:
            log.exception("cannot watch the starter any longer")
        finally:
            if not self._serving.is_set() or self._caller_pidfd is not None:
                self._end()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        if self._caller_pidfd is not None:
            poll.register(self._caller_pidfd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._caller_pidfd in ready:
                log.info("the caller is gone")
                return
            if self._obey(self._channel.receive()):
                continue
            if self._caller_pidfd is None:
                return
            poll.unregister(self._channel.fileno())

    def _obey(self, message: Message | None) -> bool:
        """Say whether the channel is still of use."""
        if message is None:
            return False
        if message.body.get("op") == EXIT:
            self._end()
        elif message.body.get("op") == ASK:
            self._asked(message.body)
        elif message.body.get("op") == SERVE:
            self._orders.put(message)
        for descriptor in message.descriptors if message.body.get("op") != SERVE else ():
            os.close(descriptor)
        return True
