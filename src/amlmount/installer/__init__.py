"""Makes a machine able to mount: looks at it, plans what is missing, carries the plan out, takes all of it back.

`observe` -> `plan_install` (pure) -> `apply`; what was changed is recorded, and `plan_uninstall` undoes the record.
"""

from amlmount.installer import paths
from amlmount.installer.apply import Report, apply
from amlmount.installer.install_plan import plan_install
from amlmount.installer.machine import Machine, observe
from amlmount.installer.needs import Needs, find_needs
from amlmount.installer.plan import Plan
from amlmount.installer.record import Record, load_record
from amlmount.installer.uninstall_plan import plan_uninstall
from amlmount.installer.wanted import Channel, Wanted, WantedEngine

__all__ = [
    "Channel",
    "Machine",
    "Needs",
    "Plan",
    "Record",
    "Report",
    "Wanted",
    "WantedEngine",
    "apply",
    "find_needs",
    "load_record",
    "observe",
    "paths",
    "plan_install",
    "plan_uninstall",
]
