"""The worker as a process: what it does with a starter that talks nonsense, or goes; and the channel between them."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import pytest

from amlmount.errors import WaitTimeoutError
from amlmount.mounts.target import TargetPlan
from amlmount.states import RestartPolicy
from amlmount.worker import process, source
from amlmount.worker.channel import Channel, pair
from amlmount.worker.orders import StartOrder
from mounting import make_source, spec_of
from sandbox import Sandbox


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = pair()
    one, other = Channel(ours), Channel(theirs)
    yield one, other
    one.close()
    other.close()


def test_messages_and_descriptors_arrive_in_order(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    read, write = os.pipe()
    ours.send({"op": "a"})
    ours.send({"op": "b"}, [write])
    os.close(write)
    first, second = theirs.receive(), theirs.receive()
    assert first is not None and second is not None
    assert [first.body["op"], second.body["op"]] == ["a", "b"]
    [got] = [*first.descriptors, *second.descriptors]
    assert not os.get_inheritable(got)
    os.write(got, b"x")
    assert os.read(read, 1) == b"x"
    os.close(got)
    os.close(read)


def test_a_message_larger_than_the_socket_does_not_block_the_loop(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    text = "ö" * 1_000_000

    async def story() -> None:
        sending = asyncio.create_task(ours.send_soon({"text": text}))
        await asyncio.sleep(0.01)
        assert not sending.done()
        message = await asyncio.to_thread(theirs.receive)
        await sending
        assert message is not None and message.body["text"] == text

    asyncio.run(story())


def test_the_end_of_the_other_side_is_none(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.close()

    async def story() -> None:
        assert await ours.receive_soon() is None

    asyncio.run(story())


def test_a_start_order_survives_the_wire(sandbox: Sandbox) -> None:
    spec = spec_of(make_source(sandbox.make_dir("s")), "/nowhere")
    for order in (StartOrder(spec), StartOrder(spec, tied=TargetPlan("/x", ("/x",), 7), verbose=True)):
        assert StartOrder.from_json(json.loads(json.dumps(order.to_json()))) == order


@pytest.mark.parametrize("argv", [[], ["name"], ["name", "x"], ["name", "99"]])
def test_started_by_hand_it_says_what_to_do(argv: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "amlmount.worker", *argv], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "amlmount up" in done.stderr and "Traceback" not in done.stderr


def worker() -> tuple["subprocess.Popen[bytes]", socket.socket]:
    ours, theirs = pair()
    ours.setblocking(True)
    ours.settimeout(20)
    argv = [sys.executable, "-P", "-m", "amlmount.worker", "test", str(theirs.fileno())]
    with theirs:
        return subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE), ours


def test_it_ends_with_a_starter_that_goes_before_it_serves(sandbox: Sandbox) -> None:
    source = make_source(sandbox.make_dir("s"))
    for ready_first in (False, True):
        process, sock = worker()
        with process, sock:
            channel = Channel(sock)
            channel.send(StartOrder(spec_of(source, "/nowhere")).to_json())
            if ready_first:
                message = channel.receive()
                assert message is not None and message.body == {"op": "ready"}
            channel.close()
            assert process.wait(20) == 0


def test_a_start_order_that_is_nonsense_is_an_error_not_a_hang() -> None:
    process, sock = worker()
    with process, sock:
        Channel(sock).send({"op": "start", "spec": {"nonsense": 1}, "tied": None, "verbose": False})
        assert process.wait(20) != 0


def test_it_imports_nothing_it_does_not_need(sandbox: Sandbox) -> None:
    """A worker of a local folder must not pay for Azure, HTTP, an event loop or a command line."""
    code = """
import sys
import amlmount.worker.serving, amlmount.worker.source, amlmount.fuse.adapter, amlmount.fuse.session
import amlmount.stores.local
heavy = {"asyncio", "typer", "aiohttp", "azure", "obstore", "yaml", "psutil", "rich", "jinja2", "ssl", "requests"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[]\n"


def test_the_log_keeps_its_last_part(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.path.join(sandbox.make_dir("log"), "x.log")
    with open(path, "a+") as file:
        monkeypatch.setattr(process, "STDERR_FD", file.fileno())
        handler = process.BoundedLog(file)
        for number in range(30_000):
            handler.emit(logging.makeLogRecord({"msg": f"line {number} {'x' * 40}"}))
    with open(path) as file:
        lines = file.read().splitlines()
    assert os.stat(path).st_size <= process.MAX_LOG_BYTES
    assert lines[-1].startswith("line 29999 ") and all(line.startswith("line ") for line in lines)
    assert len(lines) * 50 >= process.KEPT_LOG_BYTES // 2


def test_descriptors_come_with_the_message_they_were_sent_with() -> None:
    """The kernel hands over a message without descriptors and the one after it, which has some, at once."""
    ours, theirs = pair()
    sender, receiver = Channel(ours), Channel(theirs)
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as other:
        sender.send({"op": "exited"})
        sender.send({"op": "forked"}, [one.fileno(), other.fileno()])
        sender.send({"op": "exited"})
        got = [message for message in (receiver.receive() for _ in range(3)) if message is not None]
        assert [(message.body["op"], len(message.descriptors)) for message in got] == [
            ("exited", 0),
            ("forked", 2),
            ("exited", 0),
        ]
        assert [os.fstat(fd).st_ino for fd in got[1].descriptors] == [os.fstat(f.fileno()).st_ino for f in (one, other)]
        for descriptor in got[1].descriptors:
            os.close(descriptor)
    sender.close()
    receiver.close()


@pytest.mark.parametrize("lets_go", [True, False])
def test_who_writes_through_the_state_directory_is_waited_for(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, lets_go: bool
) -> None:
    """A mount that was taken down may have something on its way; one that is used still comes back to that later."""
    root = sandbox.make_dir("w")
    make_source(f"{root}/source")
    spec = spec_of(f"{root}/source", f"{root}/mnt", read_only=False, state_dir=f"{root}/state")
    monkeypatch.setattr(source, "LET_GO_S", 20.0 if lets_go else 0.2)
    before = source.open_files(spec)
    try:
        if lets_go:
            threading.Timer(0.3, before.close).start()
            source.open_files(spec).close()
        else:
            with pytest.raises(WaitTimeoutError, match="another process writes through it") as caught:
                source.open_files(spec)
            assert caught.value.code in RestartPolicy().retryable and "while programs use it" in str(caught.value.hint)
    finally:
        before.close()
