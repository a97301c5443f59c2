"""Which store there is: systemd's if we run as a service that has one, else a keeper."""

import os
from collections.abc import Mapping

from amlmount.descriptors.base import DescriptorStore
from amlmount.descriptors.keeping import KeeperStore
from amlmount.descriptors.servicemanager import SystemdStore

# systemd sets it from version 254 on; our unit sets it for older ones, together with FileDescriptorStoreMax=.
LIMIT_VARIABLE = "FDSTORE"


def open_store(runtime_dir: str, env: Mapping[str, str] = os.environ) -> DescriptorStore:
    """Return the store of the daemon whose runtime directory this is; nothing is started yet."""
    address, limit = env.get("NOTIFY_SOCKET", ""), env.get(LIMIT_VARIABLE, "")
    if address.startswith(("/", "@")) and limit.isdigit() and int(limit) > 0:
        return SystemdStore(address, env)
    return KeeperStore(runtime_dir)
