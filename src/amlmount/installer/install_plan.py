"""The whole plan of an installation, put together from its parts. Pure: the same machine gives the same plan."""

from amlmount.installer.machine import Machine
from amlmount.installer.package_plan import plan_packages
from amlmount.installer.plan import Plan
from amlmount.installer.record import Record
from amlmount.installer.service_plan import plan_service
from amlmount.installer.system_plan import plan_system
from amlmount.installer.wanted import Wanted


def plan_install(machine: Machine, wanted: Wanted, record: Record) -> Plan:
    """Return what is there, what has to be done and what people should know.

    Raises AmlmountError for a system that is not supported or a state that must not be touched.
    """
    plan = Plan("install") + plan_packages(machine, wanted, record) + plan_system(machine, wanted.needs)
    return plan if wanted.service == "no" else plan + plan_service(machine, wanted)
