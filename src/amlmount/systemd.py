"""What systemd offers a service; each piece does nothing outside of it.

Protocol: sd_notify(3). No dependency on libsystemd.
"""

import contextlib
import os
import socket
from collections.abc import Mapping

from amlmount.errors import AmlmountError
from amlmount.run import run

ASK_TIMEOUT_S = 5.0


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


def unit_name() -> str | None:
    """Return the service we run as, by our cgroup (systemd names it so), None outside of one."""
    try:
        with open("/proc/self/cgroup") as file:
            names = [line.rstrip("\n").rpartition("/")[2] for line in file]
    except OSError:
        return None
    return next((name for name in names if name.endswith(".service")), None)


def is_being_restarted(*, user: bool) -> bool:
    """Say whether systemd stops our service only to start it again; False if it cannot be asked. May take seconds."""
    unit = unit_name()
    if unit is None:
        return False
    argv = ["systemctl", *(["--user"] if user else []), "list-jobs", "--no-legend", "--plain"]
    try:
        done = run(argv, timeout_s=ASK_TIMEOUT_S, env=os.environ)
    except AmlmountError:
        return False
    jobs = [line.split() for line in done.text.splitlines()]
    return any(len(job) >= 3 and job[1:3] == [unit, "restart"] for job in jobs)
