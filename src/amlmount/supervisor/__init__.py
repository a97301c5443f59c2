"""Desired against actual: `Supervisor` brings named mounts up, keeps them up and takes them down.

The daemon is its only user; engines, kernel and clock are handed in (`Surroundings`), so tests need none of them.
"""

from amlmount.supervisor.accounts import AccountSupervisor
from amlmount.supervisor.caching import CacheKeeper
from amlmount.supervisor.exposing import Exposition
from amlmount.supervisor.health import HealthKeeper
from amlmount.supervisor.host import Host, KernelHost
from amlmount.supervisor.measuring import Measurer
from amlmount.supervisor.owner import MountOwner
from amlmount.supervisor.records import MadeTarget, MountRecord, RecordStore
from amlmount.supervisor.refreshing import RefreshTimer
from amlmount.supervisor.supervise import Supervisor
from amlmount.supervisor.surroundings import Surroundings
from amlmount.supervisor.waiting import Goal, wait_for
from amlmount.supervisor.watching import TableWatch

__all__ = [
    "AccountSupervisor",
    "CacheKeeper",
    "Exposition",
    "Goal",
    "HealthKeeper",
    "Host",
    "KernelHost",
    "MadeTarget",
    "Measurer",
    "MountOwner",
    "MountRecord",
    "RecordStore",
    "RefreshTimer",
    "Supervisor",
    "Surroundings",
    "TableWatch",
    "wait_for",
]
