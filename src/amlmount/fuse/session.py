"""The loop that reads the kernel's requests, has them answered, and ends cleanly whichever way the mount ends.

One thread reads. What can be answered at once is answered there; what must wait for a store goes to a bounded
pool, so one slow file never holds up the others. What a request means is the handler's business (adapter.py).
"""

import enum
import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, MutableSequence
from functools import partial
from typing import Protocol

from amlmount.errors import MountFailedError
from amlmount.fuse.buffers import HeapBuffers, RequestBuffers
from amlmount.fuse.negotiate import Feature, Negotiated, Offer, negotiate
from amlmount.fuse.pool import Pool
from amlmount.fuse.protocol import (
    IN_HEADER,
    INIT_OUT,
    MAJOR,
    OUT_HEADER,
    UNIQUE_RESEND,
    Header,
    InitIn,
    InterruptIn,
    Opcode,
    ProtocolError,
    Request,
    parse_body,
    parse_header,
)
from amlmount.fuse.signals import is_being_killed
from amlmount.fuse.stopper import Stopper
from amlmount.metrics import Timings
from amlmount.vfs.base import WouldBlock

log = logging.getLogger(__name__)

Reply = bytes | memoryview | None

_READ_AGAIN = {errno.EINTR, errno.ENOENT, errno.ECONNRESET}  # ENOENT: the request was interrupted before we had it
_GONE = {errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EPERM}
_FAILURES = {errno.EIO, errno.EACCES, errno.ETIMEDOUT, errno.ENOSPC}  # not the caller's fault, and no plain answer
_FREE_RUNNING = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}  # get no reply


class EndReason(enum.Enum):
    """Why a session ended."""

    UNMOUNTED = "unmounted"
    ABORTED = "aborted"
    STOPPED = "stopped"


class Handler(Protocol):
    """What the requests mean. Called from the reading thread and, with may_wait=True, from pool threads."""

    @property
    def constant_errors(self) -> Mapping[int, int]:
        """Opcodes whose every request gets the same errno; answered without parsing."""
        ...

    def begin(self, negotiated: Negotiated) -> None:
        """Learn what holds on this connection; before any other request."""
        ...

    def handle(self, request: Request, *, may_wait: bool) -> Reply:
        """Return the body of the reply (None: there is none). Raises OSError (its errno is the reply) or WouldBlock."""
        ...

    @property
    def follow_ups(self) -> Mapping[int, Callable[[Request], None]]:
        """What to do once a request of an opcode has been answered, while its caller is busy with the answer."""
        ...

    def undelivered(self, request: Request, reply: Reply) -> None:
        """Take back what `reply` gave the kernel: it no longer wanted it."""
        ...


class Session:
    """Serve one connection to the kernel, from INIT or, with `negotiated`, from where a predecessor left it.

    `on_negotiated` is called before INIT is answered: write the value down, a successor gets no INIT.
    `fd` stays open; it is the caller's. `stoppable` costs a system call a request, and makes `stop` possible.
    `pulse[0]` grows with every request that is read.
    """

    def __init__(
        self,
        fd: int,
        handler: Handler,
        *,
        offer: Offer | None = None,
        negotiated: Negotiated | None = None,
        on_negotiated: Callable[[Negotiated], None] | None = None,
        stoppable: bool = False,
        pool_threads: int = 32,
        drain_timeout_s: float = 5.0,
        buffers: RequestBuffers | None = None,
        pulse: MutableSequence[int] | memoryview | None = None,
    ) -> None:
        self._fd = fd
        self._handler = handler
        self._offer = offer or Offer()
        self._on_negotiated = on_negotiated
        self._drain_timeout_s = drain_timeout_s
        self._buffers = buffers or HeapBuffers((negotiated or self._offer).buffer_bytes)
        self._pulse = [0] if pulse is None else pulse
        self._pool = Pool(pool_threads, "fuse")
        self._waiting: dict[int, Request] = {}  # handed to the pool; whoever pops an entry answers it
        self._stopper = Stopper(fd) if stoppable else None
        self._done = threading.Event()
        self._failure: MountFailedError | None = None
        self._control: dict[int, Callable[[Request], object]] = {
            Opcode.INIT: self._on_init,
            Opcode.INTERRUPT: self._on_interrupt,
            Opcode.NOTIFY_REPLY: lambda request: None,  # we never ask for one
            Opcode.DESTROY: lambda request: self._reply(request.unique, b""),
        }
        is_marked = negotiated is None or Feature.HAS_RESEND in negotiated.features
        self._unique_mask = -1 if is_marked else ~UNIQUE_RESEND  # a kernel that does not mark does not know the mark
        self._constant_errors = handler.constant_errors
        self._follow_ups = handler.follow_ups
        self.request_counts: dict[int, int] = {}
        self.waits: dict[int, Timings] = {}  # of requests that could not be answered at once, by opcode
        self.failure_count = 0  # of requests that were answered with an error which is nobody's wish
        if negotiated is not None:
            handler.begin(negotiated)

    def run(self) -> EndReason:
        """Serve until unmounted, aborted or stopped. Raises MountFailedError if the kernel is too old, OSError if
        `fd` is no descriptor of a mount."""
        try:
            return self._serve()
        finally:
            if not self._pool.close(self._drain_timeout_s):
                log.warning("%d requests were still waiting for the store when the session ended", len(self._waiting))
            self._waiting.clear()
            if self._stopper is not None:
                self._stopper.close()
            self._done.set()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """End `run` from another thread without unmounting; callers then wait for whoever reads next.

        Requests already read are answered first, within the drain timeout. False if `run` did not end in time.
        """
        if self._stopper is None:
            raise ValueError("this session was not made stoppable")
        self._stopper.stop()
        return self._done.wait(timeout_s)

    def _serve(self) -> EndReason:
        fd, buffers, stopper, pulse = self._fd, self._buffers, self._stopper, self._pulse
        self._answer_left()
        while stopper is None or stopper.wait_for_request():
            buffer = buffers.take()
            try:
                size_bytes = os.readv(fd, (buffer,))
            except OSError as error:
                buffers.give_back(buffer)
                if (reason := self._after_failed_read(error)) is not None:
                    return reason
                continue
            pulse[0] += 1
            if not size_bytes:
                return EndReason.UNMOUNTED  # /dev/fuse never says this; a socket in its place does
            if self._dispatch(buffer[:size_bytes], buffer):
                buffers.give_back(buffer)
            if self._failure is not None:
                raise self._failure
        return EndReason.STOPPED

    def _answer_left(self) -> None:
        """Answer what a predecessor had read; the kernel takes no second answer to what it did answer."""
        for buffer in self._buffers.left():
            length = int.from_bytes(buffer[:4], "little")
            if self._dispatch(buffer[:length], buffer, again=UNIQUE_RESEND):
                self._buffers.give_back(buffer)

    def _after_failed_read(self, error: OSError) -> EndReason | None:
        if error.errno in _READ_AGAIN:
            return None
        if error.errno == errno.EAGAIN:  # somebody made the shared description non-blocking
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.poll()
            return None
        if error.errno == errno.ENODEV:
            return EndReason.UNMOUNTED
        if error.errno == errno.ECONNABORTED:
            return EndReason.ABORTED
        raise error

    def _dispatch(self, data: memoryview, buffer: memoryview, again: int = 0) -> bool:
        """Answer one request, or hand it with its buffer to the pool and return False. `again`: what marks it as one
        that may have been carried out before; a kernel that sends it again by itself has marked it."""
        try:
            header = parse_header(data)
            if again:
                header = header._replace(unique=header.unique | again)
            opcode = header.opcode
            self.request_counts[opcode] = self.request_counts.get(opcode, 0) + 1
            constant = self._constant_errors.get(opcode)
            if constant is not None:
                self._reply_error(header.unique, constant)
                return True
            request = parse_body(header, data)
        except ProtocolError as error:
            self._refuse(data, error)
            return True
        control = self._control.get(opcode)
        if control is not None:
            control(request)
            return True
        return self._answer_now(request, buffer)

    def _answer_now(self, request: Request, buffer: memoryview) -> bool:
        try:
            reply = self._handler.handle(request, may_wait=False)
        except WouldBlock:
            self._waiting[request.unique & ~UNIQUE_RESEND] = request
            self._pool.submit(partial(self._answer_waiting, request, buffer, time.perf_counter_ns()))
            return False
        except Exception as error:
            self._fail(request, error)
            return True
        if reply is not None:
            self._deliver(request, reply)
        return True

    def _answer_waiting(self, request: Request, buffer: memoryview, begun_ns: int) -> None:
        key = request.unique & ~UNIQUE_RESEND
        reply: Reply = None
        failure: Exception | None = None
        if key in self._waiting:
            try:
                reply = self._handler.handle(request, may_wait=True)
            except Exception as error:
                failure = error
        wanted = self._waiting.pop(key, None) is not None
        if wanted and failure is not None:
            self._fail(request, failure)
        elif wanted and reply is not None:
            self._deliver(request, reply)
        elif reply is not None:
            self._take_back(request, reply)
        self._buffers.give_back(buffer)
        waits = self.waits.get(request.opcode)
        (waits or self.waits.setdefault(request.opcode, Timings())).note(time.perf_counter_ns() - begun_ns)

    def _on_init(self, request: Request) -> None:
        init = request.body
        assert isinstance(init, InitIn)
        if init.major > MAJOR:  # we say what we speak, and the kernel asks again in that
            self._reply(request.unique, MAJOR.to_bytes(4, "little").ljust(INIT_OUT.size, b"\0"))
            return
        try:
            negotiated = negotiate(init, self._offer)
        except MountFailedError as error:
            self._failure = error
            self._reply_error(request.unique, errno.EPROTO)
            return
        try:
            if self._on_negotiated is not None:
                self._on_negotiated(negotiated)
            self._handler.begin(negotiated)
        except Exception:
            self._reply_error(request.unique, errno.EIO)  # the mount is of no use, but nobody may hang in it
            raise
        self._reply(request.unique, negotiated.pack())

    def _on_interrupt(self, request: Request) -> None:
        """A signal for a caller that waits. Only one that ends it is heeded: read(2) of a file does not give EINTR
        to a program for its SIGCHLD or SIGPROF, but a killed one shall go at once."""
        assert isinstance(request.body, InterruptIn)
        key = request.body.unique & ~UNIQUE_RESEND
        waiting = self._waiting.get(key)
        if waiting is not None and is_being_killed(waiting.pid) and self._waiting.pop(key, None) is not None:
            self._reply_error(waiting.unique, errno.EINTR)

    def _fail(self, request: Request, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno:
            number = error.errno
        else:
            log.error("opcode %d on node %d failed", request.opcode, request.node_id, exc_info=error)
            number = errno.EIO
        self.failure_count += number in _FAILURES
        if request.opcode not in _FREE_RUNNING:
            self._reply_error(request.unique, number)

    def _refuse(self, data: memoryview, error: ProtocolError) -> None:
        log.error("cannot read a request of the kernel: %s", error)
        if len(data) >= IN_HEADER.size:
            header = Header._make((*IN_HEADER.unpack_from(data)[1:7], 0))
            if header.opcode not in _FREE_RUNNING:
                self._reply_error(header.unique, errno.EIO)

    def _deliver(self, request: Request, body: bytes | memoryview) -> None:
        if not self._reply(request.unique, body):
            self._take_back(request, body)
            return
        follow_up = self._follow_ups.get(request.opcode)
        if follow_up is not None:
            try:
                follow_up(request)
            except Exception:
                log.exception("what follows opcode %d failed", request.opcode)

    def _take_back(self, request: Request, body: bytes | memoryview) -> None:
        try:
            self._handler.undelivered(request, body)
        except Exception:
            log.exception("taking back the reply to opcode %d failed", request.opcode)

    def _reply_error(self, unique: int, number: int) -> None:
        try:
            os.write(self._fd, OUT_HEADER.pack(OUT_HEADER.size, -number, unique & self._unique_mask))
        except OSError as error:
            if error.errno not in _GONE:
                log.error("cannot answer request %d with errno %d: %s", unique, number, error)

    def _reply(self, unique: int, body: bytes | memoryview) -> bool:
        try:
            os.writev(self._fd, (OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique & self._unique_mask), body))
        except OSError as error:
            if error.errno in _GONE:
                return False
            log.error("cannot answer request %d with %d bytes: %s", unique, len(body), error)
            self._reply_error(unique, errno.EIO)  # nobody may wait for ever for what the kernel did not take
            return False
        return True
