"""What `up` would do with a mount, found out without doing any of it."""

from amlmount.errors import AmlmountError
from amlmount.states import SERVING, Failure, Plan
from amlmount.supervisor.owner import MountOwner
from amlmount.supervisor.surroundings import Surroundings


def plan_for(owner: MountOwner, around: Surroundings) -> Plan:
    """Return the plan for one mount; what would be refused is in it, not raised. Blocks, so call it in a thread."""
    spec, status = owner.spec, owner.status
    if status.state in SERVING:
        return Plan(spec.name, status.target, status.source, "keep", status.engine, status.engine_why)
    try:
        engine, why = around.select_engine(spec)
        makes = around.host.missing_directories(spec.target)
    except AmlmountError as error:
        return Plan(spec.name, spec.target, spec.description, "fail", error=Failure(**error.to_json()))
    return Plan(spec.name, spec.target, spec.description, "mount", engine.name, why, makes)
