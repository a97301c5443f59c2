"""Mounting and unmounting as an ordinary user: through the setuid `fusermount3` of the distribution's fuse3 package.

Protocol: libfuse's lib/mount.c (`_FUSE_COMMFD` names a socket on which the helper sends the /dev/fuse descriptor).
"""

import os
import shutil
import socket

from amlmount.errors import MountFailedError
from amlmount.run import Completed, base_env, run

TIMEOUT_S = 20.0
_HINTS = (
    (
        "user_allow_other",
        "an administrator must put the line user_allow_other into /etc/fuse.conf, or leave out allow_other",
    ),
    ("failed to open /dev/fuse: Permission denied", "/dev/fuse must be open to all: sudo chmod 666 /dev/fuse"),
    ("device not found", "load the kernel module: sudo modprobe fuse"),
    ("fuse device is missing", "load the kernel module: sudo modprobe fuse"),
    ("too many FUSE filesystems", "raise mount_max in /etc/fuse.conf, or unmount something"),
    ("user has no write access to mountpoint", "choose a directory that belongs to you"),
    (
        "mount failed: Operation not permitted",
        "fusermount3 lacks its setuid bit, or runs in a container that forbids mounts",
    ),
)


def fusermount_path() -> str:
    """Return where fusermount3 is. Raises MountFailedError with the line that installs it."""
    found = shutil.which("fusermount3") or shutil.which("fusermount3", path="/usr/bin:/bin:/usr/local/bin")
    if not found:
        raise MountFailedError(
            "cannot mount as an ordinary user: fusermount3 is not there", hint="install it: sudo apt install fuse3"
        )
    return found


def mount_by_helper(target: str, options: list[str]) -> int:
    """Let fusermount3 mount `target` and return the /dev/fuse descriptor it hands over (close-on-exec)."""
    helper = fusermount_path()
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, its:
        env = base_env(_FUSE_COMMFD=str(its.fileno()))
        argv = [helper, "-o", ",".join(options), "--", target]
        done = run(argv, timeout_s=TIMEOUT_S, env=env, pass_fds=[its.fileno()], check=False)
        if done.returncode != 0:
            raise _refused(f"cannot mount '{target}'", done)
        its.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        raise MountFailedError(f"cannot mount '{target}': fusermount3 sent no descriptor", hint=done.last_words or None)
    os.set_inheritable(fds[0], False)
    return fds[0]


def unmount_by_helper(target: str, *, lazy: bool) -> None:
    """Let fusermount3 unmount `target`. Raises OSError(EBUSY) when it is in use, MountFailedError for the rest."""
    argv = [fusermount_path(), "-u", *(["-z"] if lazy else []), "--", target]
    done = run(argv, timeout_s=TIMEOUT_S, check=False)
    if done.returncode == 0:
        return
    if "busy" in done.last_words.lower():
        import errno

        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), target)
    raise _refused(f"cannot unmount '{target}'", done)


def escape_option(value: str) -> str:
    """Protect commas and backslashes in the value of a fusermount3 option."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _refused(what: str, done: Completed) -> MountFailedError:
    said = done.last_words.splitlines()[-1:] or [f"fusermount3 exited with {done.returncode}"]
    hint = next((hint for phrase, hint in _HINTS if phrase in done.last_words), None)
    return MountFailedError(f"{what}: {said[0].rpartition('fusermount3: ')[2].strip()}", hint=hint)
