"""A worker from its first order to its end: open the store, look whether it answers, serve the kernel.

Everything it needs comes over the channel, so a process forked from a loaded one can call `run` as well.
"""

import logging
import os
import threading
from contextlib import suppress

from amlmount.cache import remove_session_cache
from amlmount.config.spec import MountSpec
from amlmount.errors import AmlmountError, MountFailedError
from amlmount.fuse.handles import Ledger
from amlmount.fuse.negotiate import Negotiated
from amlmount.fuse.notify import Notifier
from amlmount.fuse.session import Session
from amlmount.mounts.readahead import widen_read_ahead
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.worker.answering import adapter_for, take_up_writing
from amlmount.worker.channel import Channel
from amlmount.worker.controls import Controls, controls_for
from amlmount.worker.estate import Estate, take_possession
from amlmount.worker.health import health_question
from amlmount.worker.late_cache import await_cache
from amlmount.worker.news import News
from amlmount.worker.orders import ERROR, NEGOTIATED, READY, SERVING, START, StartOrder
from amlmount.worker.process import give_up_privileges, log_to_stderr, settle
from amlmount.worker.source import open_checked, open_files
from amlmount.worker.stats import stats_question
from amlmount.worker.tie import Tie
from amlmount.worker.watch import Watch

CLOSE_GRACE_S = 5.0
OFFER_S = 0.2  # for an answer that is on its way
KERNEL_READ_AHEAD_BYTES = 2 << 20
log = logging.getLogger(__name__)


def run(channel: Channel) -> int:
    """Serve one mount until it is unmounted; return the exit code. An error before that is told to the starter."""
    message = channel.receive()
    if message is None or message.body.get("op") != START:
        return 0
    order = StartOrder.from_json(message.body)
    settle(order.spec.name)
    if not order.tied:
        give_up_privileges(str(source.store.get("type")) for source in order.spec.sources)
    log_to_stderr(order.spec.name, order.verbose)
    try:
        return Worker(channel, order, message.descriptors[0] if order.tied else None).run()
    except Exception as error:
        _report(channel, order.spec.name, error)
        return 1


class Worker:
    """One mount being served. The main thread runs it, the watch thread may end it."""

    def __init__(self, channel: Channel, order: StartOrder, caller_pidfd: int | None) -> None:
        self._channel = channel
        self._spec = order.spec
        self._negotiated = Negotiated.from_json(order.negotiated) if order.negotiated else None
        self._tie = Tie(order.spec, order.tied) if order.tied else None
        self._watch = Watch(channel, caller_pidfd, self.end, self._ask)
        self._controls: Controls | None = None
        self._closing = threading.Lock()  # whoever is second must not end the process under the first
        self._telling = threading.Lock()  # answers come from threads of their own
        self._news = News(self._offer)
        self._files: BlobFileSystem | None = None
        self._mount_fd: list[int] = []  # of a mount that no path leads to yet

    def run(self) -> int:
        """Open, check, tell the starter, serve. Raises what the store or the mount raises."""
        self._watch.start()
        try:
            self._files = files = (open_checked if self._negotiated is None else open_files)(self._spec)
            self._tell({"op": READY})
            order = self._watch.serve_order()
            if self._tie:
                self._serve(self._tie.mount(), files, None)
            else:
                descriptor, estate_fd, *self._mount_fd = order.descriptors
                self._serve(descriptor, files, Estate(estate_fd))
        finally:
            self._close()
        return 0

    def end(self) -> None:
        """End the process from any thread; if the store cannot be closed in time, without closing it."""
        threading.Timer(CLOSE_GRACE_S, os._exit, (1,)).start()
        self._close()
        os._exit(0)

    def _serve(self, descriptor: int, files: BlobFileSystem, estate: Estate | None) -> None:
        policy, notifier, negotiated = self._spec.policy, Notifier(descriptor), self._negotiated
        if policy.keep_cache and not policy.direct_io:
            files.use_page_cache(lambda node_id, data: notifier.store(node_id, 0, data))
        ledger = Ledger(estate.handles) if estate and estate.is_readable else None
        adapter, offer = adapter_for(files, self._spec, descriptor, ledger)
        buffers = take_possession(estate, files, offer, negotiated, notifier) if estate else None
        take_up_writing(files, self._spec, self._news, is_successor=negotiated is not None)
        session = Session(
            descriptor,
            adapter,
            offer=offer,
            negotiated=negotiated,
            on_negotiated=self._on_negotiated,
            buffers=buffers,
            pulse=estate.pulse if estate else None,
        )
        if negotiated is not None:
            log.info("serving %s in the place of a worker that died", self._spec.target)
            self._tell({"op": SERVING})
            self._news.open()
        self._controls = controls_for(files, notifier, self._tell)
        self._controls.learn({"health": health_question(session, files)})
        self._controls.learn({"stats": stats_question(session, adapter, files)})
        await_cache(files, self._spec, self._controls)
        log.info("ended: %s", session.run().value)

    def _on_negotiated(self, negotiated: Negotiated) -> None:
        self._tell({"op": NEGOTIATED, "negotiated": negotiated.to_json()})
        threading.Thread(target=self._prove, name="prove", daemon=True).start()

    def _prove(self) -> None:
        """Ask for the root through the kernel, as a user would; it waits until INIT is answered and accepted."""
        try:
            about = os.stat(self._mount_fd[0] if self._mount_fd else self._spec.target)
        except OSError as error:
            self._tell({"op": ERROR, **_refused(self._spec, error).to_json()})
            return
        finally:
            for descriptor in self._mount_fd:
                os.close(descriptor)
        widen_read_ahead(about.st_dev, KERNEL_READ_AHEAD_BYTES)
        log.info("serving %s", self._spec.target)
        self._tell({"op": SERVING})
        self._news.open()
        if self._files:
            self._files.warm_up()

    def _ask(self, body: dict[str, object]) -> None:
        (self._controls or Controls(self._tell, {})).ask(body)

    def _tell(self, body: dict[str, object]) -> None:
        with self._telling, suppress(OSError):  # the starter may be gone: what follows from that, the watch decides
            self._channel.send(body)

    def _offer(self, body: dict[str, object]) -> None:
        if self._telling.acquire(timeout=OFFER_S):
            try:
                with suppress(OSError):
                    self._channel.offer(body)
            finally:
                self._telling.release()

    def _close(self) -> None:
        with self._closing:
            if self._tie:
                self._tie.let_go()
            if self._files:
                self._files.close()
            if self._tie:
                remove_session_cache(self._spec.cache_dir)


def _refused(spec: MountSpec, error: OSError) -> MountFailedError:
    return MountFailedError(f"cannot use the mount at '{spec.target}': {error.strerror}")


def _report(channel: Channel, name: str, error: Exception) -> None:
    if not isinstance(error, AmlmountError):
        log.error("cannot serve '%s'", name, exc_info=error)
        error = AmlmountError(f"cannot serve '{name}': {error}", hint="its log has the traceback")
    with suppress(OSError):
        channel.send({"op": ERROR, **error.to_json()})
