"""Whether this user can mount FUSE file systems here, and what FUSE mounts there are already."""

import os
import stat

from amlmount.doctor.findings import Finding
from amlmount.errors import MountFailedError
from amlmount.mounts import MountEntry, fusectl_mounted, has_sys_admin, is_dead, is_ours, open_dev_fuse, read_mounts
from amlmount.mounts.connection import FUSECTL
from amlmount.mounts.fusermount import fusermount_path
from amlmount.run import run

FUSE_CONF = "/etc/fuse.conf"
FUSE_DEVICE = os.makedev(10, 229)  # Documentation/admin-guide/devices.txt


def dev_fuse() -> list[Finding]:
    """Open /dev/fuse as this user."""
    try:
        os.close(open_dev_fuse())
    except MountFailedError as error:
        return [Finding("/dev/fuse", "fail", error.message, error.hint)]
    found = os.stat("/dev/fuse")
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != FUSE_DEVICE:
        fix = "sudo rm /dev/fuse; sudo mknod -m 666 /dev/fuse c 10 229"
        return [Finding("/dev/fuse", "fail", "is there, but is not a FUSE device", fix)]
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o006 != 0o006:
        text = f"can be opened, but not by other users (mode {mode:04o}): they cannot mount"
        return [Finding("/dev/fuse", "info", text, "for ordinary users: sudo chmod 666 /dev/fuse")]
    return [Finding("/dev/fuse", "ok", "can be opened")]


def fusermount() -> list[Finding]:
    """Look for the helper without which an ordinary user cannot mount."""
    needed = not has_sys_admin()
    try:
        path = fusermount_path()
    except MountFailedError as error:
        text = "not there: ordinary users cannot mount"
        return [Finding("fusermount3", "fail" if needed else "info", text, error.hint)]
    version = run([path, "-V"], timeout_s=10, check=False).text.rpartition(" ")[2].strip() or "?"
    if not is_setuid_root(path):
        text = f"{path} {version} is not setuid root: ordinary users cannot mount"
        return [
            Finding("fusermount3", "fail" if needed else "warn", text, f"sudo chown root {path}; sudo chmod u+s {path}")
        ]
    return [Finding("fusermount3", "ok", f"{path} {version}, setuid root")]


def is_setuid_root(path: str) -> bool:
    """Say whether a program runs as root, whoever starts it."""
    found = os.stat(path)
    return found.st_uid == 0 and bool(found.st_mode & stat.S_ISUID)


def fuse_conf(path: str = FUSE_CONF) -> list[Finding]:
    """Read whether ordinary users may share their mounts (allow_other)."""
    try:
        with open(path, errors="replace") as file:
            allowed = any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        allowed = False
    if allowed:
        return [Finding("user_allow_other", "ok", f"set in {path}: ordinary users may share their mounts")]
    text = "not set: a mount of an ordinary user is seen by that user only"
    return [Finding("user_allow_other", "info", text, f"to share: echo user_allow_other | sudo tee -a {path}")]


def fusectl() -> list[Finding]:
    """Look for the file system by which a dead mount is told from a hung one."""
    if fusectl_mounted():
        return [Finding("fusectl", "ok", f"mounted at {FUSECTL}")]
    fix = f"sudo mount -t fusectl none {FUSECTL}"
    if has_sys_admin():
        return [Finding("fusectl", "ok", f"not mounted at {FUSECTL}; a private one is used")]
    return [Finding("fusectl", "warn", "not mounted: hung mounts cannot be aborted, dead ones are found slower", fix)]


def fuse_mounts() -> list[Finding]:
    """List the FUSE mounts that are not ours, and the dead ones; none of them is touched."""
    found = [finding for entry in read_mounts() if entry.is_fuse and (finding := _judge(entry))]
    return found or [Finding("FUSE mounts", "ok", "no dead or foreign ones")]


def _judge(entry: MountEntry) -> Finding | None:
    what = f"{entry.mount_point} ({entry.fstype}, {entry.source})"
    name = "FUSE mount"
    if is_dead(entry):
        fix = "amlmount up" if is_ours(entry) else f"sudo umount -l {entry.mount_point}"
        return Finding(name, "warn", f"{what} is dead: its server has gone, every use fails", fix)
    return None if is_ours(entry) else Finding(name, "info", f"{what} belongs to somebody else, it is left alone")
