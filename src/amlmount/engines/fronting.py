"""Whether a mount of the Python engine gets an overlay in front: where it is allowed, and can do no harm."""

import os

from amlmount.config.spec import MountSpec
from amlmount.mounts.front import UNUSABLE
from amlmount.mounts.syscalls import has_sys_admin


def why_no_front(spec: MountSpec, folder: str | None) -> str | None:
    """Say why there is none, None if there is one. `folder`: where fronts are made, None: nowhere."""
    if spec.front == "none":
        return "the configuration says so"
    if not spec.read_only or not spec.policy.pinned or spec.policy.direct_io:
        return "what it shows may change"
    if not spec.allow_other:
        return "it would let others in"
    if folder is None or UNUSABLE & set(folder) or not has_sys_admin():
        return "only root's daemon can make one"
    return None if _kernel_has_overlay() else "this kernel has no overlay file system"


def _kernel_has_overlay() -> bool:
    with open("/proc/filesystems") as file:
        known = any(line.split()[-1] == "overlay" for line in file)
    return known or os.path.isdir(f"/lib/modules/{os.uname().release}/kernel/fs/overlayfs")
