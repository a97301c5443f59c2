"""`python -m amlmount.worker.forkserver FD`: has loaded all that a worker needs, and makes workers of itself by fork.

A worker is there in milliseconds then, which is what callers wait for when one died, and shares its memory with the
others. Nothing in this process uses what it loads: a library may start threads, and those do not survive a fork.
"""

import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
from typing import NoReturn

from amlmount.log import leads_to_journal
from amlmount.procstat import stat_fields
from amlmount.worker.channel import Channel, Message

FORK, FORKED, EXITED = "fork", "forked", "exited"
_AZURE = "amlmount.stores.azure.store"
_STORE_CODE = {"local": "amlmount.stores.local", "azure_blob": _AZURE, "azure_data_lake_gen2": _AZURE}


def main() -> None:
    """Fork on demand until the other end of the channel closes; workers go on then, and belong to init."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    os.set_inheritable(channel.fileno(), False)
    os.chdir("/")
    if not leads_to_journal(sys.stderr):  # the variable is somebody else's, left over in the environment
        os.environ.pop("JOURNAL_STREAM", None)
    _load([])
    waker, wakened = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakened)
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    poll.register(waker, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if waker in ready:
            os.read(waker, 4096)
            _report_ended(channel)
        if channel.fileno() in ready:
            message = channel.receive()
            if message is None:
                return
            _fork(channel, message, [waker, wakened])


def _load(store_types: list[str]) -> None:
    """Import what a worker for such stores imports."""
    for module in ("amlmount.worker.serving", *[_STORE_CODE[kind] for kind in store_types if kind in _STORE_CODE]):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()


def _fork(channel: Channel, message: Message, ours: list[int]) -> None:
    name, (socket_fd, log_fd) = str(message.body["name"]), message.descriptors
    _load(message.body["store_types"])
    pid = os.fork()
    if pid == 0:
        _become_worker(name, channel, socket_fd, log_fd, ours)
    os.close(socket_fd)
    os.close(log_fd)
    pidfd = os.pidfd_open(pid)
    channel.send({"op": FORKED, "order": message.body["order"], "pid": pid}, [pidfd])
    os.close(pidfd)


def _become_worker(name: str, channel: Channel, socket_fd: int, log_fd: int, ours: list[int]) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        channel.close()
        for descriptor in ours:
            os.close(descriptor)
        os.setsid()
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        os.close(log_fd)
        _rename(name)
        from amlmount.worker.serving import run

        code = run(Channel(socket.socket(fileno=socket_fd)))
    finally:
        os._exit(code)


def _rename(name: str) -> None:
    """Show the worker's name in `ps`: /proc/PID/cmdline is read from where the kernel put the arguments (proc(5))."""
    start, end = map(int, stat_fields("self")[45:47])
    line = b"\0".join((b"amlmount.worker", name.encode()))[: end - start - 1]
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


def _report_ended(channel: Channel) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        channel.send({"op": EXITED, "pid": pid, "returncode": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    main()
