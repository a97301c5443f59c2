"""From a resolved mount to a mounted `/dev/fuse` descriptor: which of its fields become mount options.

Used by whoever mounts: the engine for the daemon, the worker itself when it is tied to a caller.
"""

from amlmount.config.spec import MountSpec
from amlmount.mounts.fusemount import open_and_mount

SUBTYPE = "amlmount"


def attach(spec: MountSpec) -> int:
    """Mount `spec` at its target and return the descriptor. Raises MountFailedError.

    `default_permissions` always: the kernel then checks the bits the mount shows and never asks us (ACCESS).
    """
    return open_and_mount(
        spec.target,
        source=spec.description,
        subtype=SUBTYPE,
        read_only=spec.read_only,
        allow_other=spec.allow_other,
        default_permissions=True,
        max_read_bytes=spec.policy.max_read_bytes,
    )
