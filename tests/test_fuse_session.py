"""The request loop against a kernel made of a socket: one message is one request, as on /dev/fuse."""

import errno
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

from amlmount.errors import MountFailedError
from amlmount.fuse.buffers import HeapBuffers
from amlmount.fuse.negotiate import Feature, Negotiated, Offer
from amlmount.fuse.protocol import IN_HEADER, OUT_HEADER, UNIQUE_RESEND, Opcode, Request
from amlmount.fuse.session import EndReason, Reply, Session
from amlmount.vfs.base import WouldBlock

DEADLINE_S = 5.0


class FakeHandler:
    """Answers by opcode, from functions that tests set."""

    constant_errors: Mapping[int, int] = {Opcode.IOCTL: errno.ENOTTY}

    def __init__(self) -> None:
        self.answers: dict[int, Callable[[Request, bool], Reply]] = {}
        self.begun: list[Negotiated] = []
        self.taken_back: list[Request] = []
        self.followed: list[Request] = []

    @property
    def follow_ups(self) -> Mapping[int, Callable[[Request], None]]:
        return {Opcode.READDIRPLUS: self.followed.append}

    def begin(self, negotiated: Negotiated) -> None:
        self.begun.append(negotiated)

    def handle(self, request: Request, *, may_wait: bool) -> Reply:
        return self.answers[request.opcode](request, may_wait)

    def undelivered(self, request: Request, reply: Reply) -> None:
        self.taken_back.append(request)


class Kernel:
    """The other side. Closing it is the unmount."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(DEADLINE_S)
        self.handler = FakeHandler()
        self.negotiated: list[Negotiated] = []
        self.result: list[EndReason | Exception] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.options: dict[str, int | float | Offer | Negotiated | HeapBuffers] = {}

    def start(self) -> None:
        self.session = Session(
            self.theirs.fileno(),
            self.handler,
            on_negotiated=self.negotiated.append,
            **self.options,  # type: ignore[arg-type]
        )
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result.append(self.session.run())
        except Exception as error:
            self.result.append(error)

    def send(self, opcode: int, body: bytes = b"", unique: int = 2, pid: int = 0, node_id: int = 1) -> None:
        self.ours.send(IN_HEADER.pack(40 + len(body), opcode, unique, node_id, 0, 0, pid, 0, 0) + body)

    def receive(self) -> tuple[int, int, bytes]:
        """Return (unique, errno, body) of the next reply."""
        data = self.ours.recv(1 << 20)
        length, number, unique = OUT_HEADER.unpack_from(data)
        assert length == len(data)
        return unique, -number, data[OUT_HEADER.size :]

    def ask(self, opcode: int, body: bytes = b"", unique: int = 2) -> tuple[int, int, bytes]:
        self.send(opcode, body, unique)
        return self.receive()

    def end(self) -> EndReason | Exception:
        self.ours.close()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        return self.result[0]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.ours.close()
    made.thread.join(DEADLINE_S)
    made.theirs.close()


INIT_BODY = struct.pack("<5I44x", 7, 45, 131072, 0xFFFFFFFF, 0xFFFFFFFF)
READ_BODY = struct.pack("<QQIIQII", 0, 0, 4096, 0, 0, 0, 0)


def test_init_is_written_down_before_it_is_answered(kernel: Kernel) -> None:
    kernel.start()
    unique, number, body = kernel.ask(Opcode.INIT, INIT_BODY, unique=4)
    assert (unique, number, body) == (4, 0, kernel.negotiated[0].pack())
    assert kernel.handler.begun == kernel.negotiated
    assert kernel.end() is EndReason.UNMOUNTED


def handed_over(features: Feature) -> Negotiated:
    return Negotiated.from_json(dict.fromkeys(Negotiated.__dataclass_fields__, 8192) | {"features": int(features)})


def test_what_a_predecessor_left_is_known_to_come_again(kernel: Kernel) -> None:
    """Of a kernel that sends nothing again by itself, and does not know the mark."""
    buffers, left = HeapBuffers(8192), bytearray(IN_HEADER.pack(40, Opcode.STATFS, 8, 1, 0, 0, 0, 0, 0))
    buffers.left = lambda: [memoryview(left)]  # type: ignore[method-assign]
    kernel.options |= {"negotiated": handed_over(Feature(0)), "buffers": buffers}
    seen: list[int] = []

    def answer(request: Request, may_wait: bool) -> Reply:
        seen.append(request.unique)
        if not may_wait and request.unique & UNIQUE_RESEND:
            raise WouldBlock
        return b"12345678"

    kernel.handler.answers[Opcode.STATFS] = answer
    kernel.start()
    assert kernel.receive() == (8, 0, b"12345678")
    assert kernel.ask(Opcode.STATFS, unique=10) == (10, 0, b"12345678")
    assert seen == [UNIQUE_RESEND | 8, UNIQUE_RESEND | 8, 10]


def test_a_successor_gets_no_init(kernel: Kernel) -> None:
    handed = handed_over(Feature.HAS_RESEND)
    kernel.options["negotiated"] = handed
    kernel.start()
    assert kernel.handler.begun == [handed]
    kernel.handler.answers[Opcode.STATFS] = lambda request, may_wait: b"12345678"
    assert kernel.ask(Opcode.STATFS, unique=UNIQUE_RESEND | 6) == (UNIQUE_RESEND | 6, 0, b"12345678")


def test_when_it_cannot_be_written_down_the_mount_fails(kernel: Kernel) -> None:
    def refuse(negotiated: Negotiated) -> None:
        raise RuntimeError("disk full")

    kernel.handler.begin = refuse  # type: ignore[method-assign]
    kernel.start()
    assert kernel.ask(Opcode.INIT, INIT_BODY)[1] == errno.EIO
    assert isinstance(kernel.end(), RuntimeError)


def test_too_old_a_kernel_ends_the_session_with_a_reason(kernel: Kernel) -> None:
    kernel.start()
    assert kernel.ask(Opcode.INIT, struct.pack("<4I", 7, 23, 0, 0))[1] == errno.EPROTO
    assert isinstance(kernel.end(), MountFailedError)


def test_a_newer_major_is_asked_to_come_down(kernel: Kernel) -> None:
    kernel.start()
    assert kernel.ask(Opcode.INIT, struct.pack("<4I", 8, 0, 0, 0))[2][:4] == b"\7\0\0\0"
    assert not kernel.negotiated
    kernel.ask(Opcode.INIT, INIT_BODY)
    assert kernel.negotiated


def test_what_would_block_goes_to_the_pool_and_the_loop_goes_on(kernel: Kernel) -> None:
    release = threading.Event()

    def read(request: Request, may_wait: bool) -> bytes:
        if not may_wait:
            raise WouldBlock
        release.wait(DEADLINE_S)
        return b"slow"

    kernel.handler.answers[Opcode.READ] = read
    kernel.handler.answers[Opcode.GETATTR] = lambda request, may_wait: b"fast"
    kernel.start()
    for unique in (2, 4, 6):
        kernel.send(Opcode.READ, READ_BODY, unique)
    assert kernel.ask(Opcode.GETATTR, bytes(16), unique=8) == (8, 0, b"fast")
    release.set()
    assert {kernel.receive()[0] for _ in range(3)} == {2, 4, 6}


def test_the_pool_is_bounded_and_queues(kernel: Kernel) -> None:
    release, lock, running, most = threading.Event(), threading.Lock(), [0], [0]
    begun = threading.Semaphore(0)

    def read(request: Request, may_wait: bool) -> bytes:
        if not may_wait:
            raise WouldBlock
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        begun.release()
        release.wait(DEADLINE_S)
        with lock:
            running[0] -= 1
        return b""

    kernel.handler.answers[Opcode.READ] = read
    kernel.handler.answers[Opcode.STATFS] = lambda request, may_wait: b""
    kernel.options["pool_threads"] = 3
    kernel.start()
    for unique in range(2, 22, 2):
        kernel.send(Opcode.READ, READ_BODY, unique)
    kernel.ask(Opcode.STATFS, unique=100)
    assert all(begun.acquire(timeout=DEADLINE_S) for _ in range(3)), "the pool does not get its threads to work"
    release.set()
    assert {kernel.receive()[0] for _ in range(10)} == set(range(2, 22, 2))
    assert most[0] == 3


@pytest.mark.parametrize("pooled", [False, True])
def test_a_bug_in_the_handler_is_eio_and_logged(kernel: Kernel, pooled: bool, caplog: pytest.LogCaptureFixture) -> None:
    def read(request: Request, may_wait: bool) -> bytes:
        if pooled and not may_wait:
            raise WouldBlock
        raise ZeroDivisionError("a bug")

    kernel.handler.answers[Opcode.READ] = read
    kernel.start()
    for unique in (2, 4):
        assert kernel.ask(Opcode.READ, READ_BODY, unique) == (unique, errno.EIO, b"")
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError] * 2


def test_errors_pass_as_they_are(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    def lookup(request: Request, may_wait: bool) -> bytes:
        raise OSError(errno.ESTALE, "gone")

    kernel.handler.answers[Opcode.LOOKUP] = lookup
    kernel.start()
    assert kernel.ask(Opcode.LOOKUP, b"x\0") == (2, errno.ESTALE, b"")
    assert kernel.ask(Opcode.IOCTL, b"not even a body") == (2, errno.ENOTTY, b"")
    assert not caplog.records


def test_garbage_is_eio_and_the_loop_lives(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    kernel.handler.answers[Opcode.STATFS] = lambda request, may_wait: b"ok"
    kernel.start()
    with caplog.at_level(logging.CRITICAL):
        kernel.ours.send(b"short")
        assert kernel.ask(Opcode.LOOKUP, b"no NUL", unique=8) == (8, errno.EIO, b"")
        kernel.send(Opcode.FORGET, b"")  # too short, and nobody waits for a reply
        assert kernel.ask(Opcode.STATFS) == (2, 0, b"ok")


def test_forget_has_no_reply_even_when_it_fails(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    def forget(request: Request, may_wait: bool) -> None:
        raise KeyError(request.node_id)

    kernel.handler.answers[Opcode.FORGET] = forget
    kernel.handler.answers[Opcode.STATFS] = lambda request, may_wait: b""
    kernel.start()
    with caplog.at_level(logging.CRITICAL):
        kernel.send(Opcode.FORGET, bytes(8))
        assert kernel.ask(Opcode.STATFS, unique=12)[0] == 12


def test_an_interrupt_of_a_living_caller_changes_nothing(kernel: Kernel) -> None:
    release = threading.Event()

    def read(request: Request, may_wait: bool) -> bytes:
        if not may_wait:
            raise WouldBlock
        release.wait(DEADLINE_S)
        return b"whole"

    kernel.handler.answers[Opcode.READ] = read
    kernel.handler.answers[Opcode.STATFS] = lambda request, may_wait: b""
    kernel.start()
    kernel.send(Opcode.READ, READ_BODY, unique=2, pid=1)
    kernel.send(Opcode.INTERRUPT, struct.pack("<Q", 2), unique=3)
    kernel.send(Opcode.INTERRUPT, struct.pack("<Q", 777), unique=5)
    assert kernel.ask(Opcode.STATFS, unique=4)[0] == 4
    release.set()
    assert kernel.receive() == (2, 0, b"whole")


def test_an_interrupt_of_a_dying_caller_ends_its_wait(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    release, begun = threading.Event(), threading.Event()

    def read(request: Request, may_wait: bool) -> bytes:
        if not may_wait:
            raise WouldBlock
        begun.set()
        release.wait(DEADLINE_S)
        return b"late"

    monkeypatch.setattr("amlmount.fuse.session.is_being_killed", lambda pid: pid == 33)
    kernel.handler.answers[Opcode.READ] = read
    kernel.handler.answers[Opcode.STATFS] = lambda request, may_wait: b""
    kernel.start()
    kernel.send(Opcode.READ, READ_BODY, unique=UNIQUE_RESEND | 2, pid=33)
    assert begun.wait(DEADLINE_S)
    kernel.send(Opcode.INTERRUPT, struct.pack("<Q", 2), unique=3)
    assert kernel.receive() == (UNIQUE_RESEND | 2, errno.EINTR, b"")
    release.set()
    assert kernel.ask(Opcode.STATFS, unique=4)[0] == 4
    assert kernel.end() is EndReason.UNMOUNTED
    assert [request.unique for request in kernel.handler.taken_back] == [UNIQUE_RESEND | 2]


def test_follow_ups_come_after_the_reply(kernel: Kernel) -> None:
    kernel.handler.answers[Opcode.READDIRPLUS] = lambda request, may_wait: b""
    kernel.handler.answers[Opcode.STATFS] = lambda request, may_wait: b""
    kernel.start()
    kernel.ask(Opcode.READDIRPLUS, READ_BODY)
    kernel.ask(Opcode.STATFS)
    assert len(kernel.handler.followed) == 1


def test_run_ends_in_bounded_time_with_a_thread_that_hangs(kernel: Kernel) -> None:
    hang = threading.Event()

    def read(request: Request, may_wait: bool) -> bytes:
        if not may_wait:
            raise WouldBlock
        hang.wait(60)
        return b""

    kernel.handler.answers[Opcode.READ] = read
    kernel.options["drain_timeout_s"] = 0.05
    kernel.start()
    kernel.send(Opcode.READ, READ_BODY)
    assert kernel.end() is EndReason.UNMOUNTED
    hang.set()
