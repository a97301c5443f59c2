"""What systemd offers a service; each piece does nothing outside of it.

Protocol: sd_notify(3). No dependency on libsystemd.
"""

import contextlib
import os
import socket
from collections.abc import Mapping


def notify(state: str, env: Mapping[str, str] = os.environ) -> bool:
    """Tell the service manager `state`, e.g. `READY=1`; False if there is none or it does not listen."""
    address = env.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # an abstract socket's name begins with a NUL
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        sock.sendall(state.encode())
        return True
    return False


def passed_descriptors(env: Mapping[str, str] = os.environ) -> range:
    """Return the descriptors that systemd handed to this very process (LISTEN_FDS, sd_listen_fds(3))."""
    first = 3
    count = env.get("LISTEN_FDS", "")
    if env.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return range(first, first)
    return range(first, first + int(count))
