"""What `amlmount doctor` looks at: the machine, the kernel, FUSE's set-up, the software, the stores.

It changes nothing. A check is a function without arguments that returns findings; a new one is written in its module
and named in CHECKS.
"""

from amlmount.doctor.findings import Check, Finding, Level, examine
from amlmount.doctor.fuse_setup import dev_fuse, fuse_conf, fuse_mounts, fusectl, fusermount
from amlmount.doctor.kernel import features, kernel
from amlmount.doctor.machine import container, open_files, updatedb
from amlmount.doctor.software import blobfuse2, libraries, ourselves
from amlmount.doctor.stores import store_checks
from amlmount.doctor.surroundings import (
    apt_sources,
    clock,
    disks,
    identity,
    old_blobfuse,
    others_mounts,
    proxies,
    storage_variables,
    supported_release,
)

CHECKS: tuple[Check, ...] = (
    ourselves,
    libraries,
    blobfuse2,
    kernel,
    container,
    dev_fuse,
    fusermount,
    fuse_conf,
    fusectl,
    features,
    fuse_mounts,
    open_files,
    updatedb,
    supported_release,
    apt_sources,
    old_blobfuse,
    others_mounts,
    disks,
    clock,
    identity,
    proxies,
    storage_variables,
)

__all__ = ["CHECKS", "Check", "Finding", "Level", "examine", "store_checks"]
