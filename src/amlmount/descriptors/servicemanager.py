"""systemd's file descriptor store (sd_notify(3), FDSTORE=1): what it keeps comes back at the service's next start.

Rules, each observed: a descriptor is safe only once a barrier has been answered; a `/dev/fuse` descriptor must be
mounted before it is stored, and is dropped by systemd itself when its mount is gone; one that it has already, under
whatever name, it does not take again; the order of LISTEN_FDS means nothing, the names do.
"""

import array
import os
import select
import socket
from collections.abc import Iterable, Mapping

from amlmount.errors import AmlmountError

BARRIER_TIMEOUT_S = 10.0
FIRST_PASSED = 3


class SystemdStore:
    """The store of the service we run as. Names may hold no `:` and have at most 255 characters."""

    kind = "systemd"

    def __init__(self, address: str, env: Mapping[str, str] = os.environ) -> None:
        """`address` as in $NOTIFY_SOCKET."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._passed = passed_by_name(env)

    def recall(self) -> dict[str, int]:
        """See DescriptorStore. Only the first call returns anything."""
        passed, self._passed = self._passed, {}
        return passed

    def keep(self, descriptors: Mapping[str, int], *, instead_of: Iterable[str] = ()) -> None:
        """See DescriptorStore."""
        try:
            for name in (*instead_of, *descriptors):
                self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")
            for name, descriptor in descriptors.items():
                self._send(f"FDSTORE=1\nFDNAME={name}", [descriptor])
            self._barrier()
        except OSError as error:
            raise AmlmountError(f"cannot give systemd descriptors to keep: {error.strerror or error}") from error

    def drop(self, names: Iterable[str]) -> None:
        """See DescriptorStore."""
        try:
            for name in names:
                self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")
        except OSError:
            return

    def close(self) -> None:
        """See DescriptorStore."""

    def _send(self, message: str, descriptors: Iterable[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(self._address)
            sock.sendmsg([message.encode()], rights)

    def _barrier(self) -> None:
        """Wait until systemd has handled what was sent before: it closes the pipe it is sent (sd_notify_barrier(3))."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self._send("BARRIER=1", [writer])
            os.close(writer)
            writer = -1
            waiter = select.poll()
            waiter.register(reader, 0)
            if not waiter.poll(BARRIER_TIMEOUT_S * 1000):
                raise TimeoutError("it does not answer")
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)


def passed_by_name(env: Mapping[str, str]) -> dict[str, int]:
    """Return the descriptors handed to this very process (sd_listen_fds_with_names(3)), close-on-exec from now on."""
    count, names = env.get("LISTEN_FDS", ""), env.get("LISTEN_FDNAMES", "").split(":")
    if env.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return {}
    found = {}
    for index, name in enumerate(names[: int(count)]):
        os.set_inheritable(FIRST_PASSED + index, False)
        found[name] = FIRST_PASSED + index
    return found
