"""What `up` and `restart` would do with a mount, found out without doing any of it."""

from amlmount.errors import AmlmountError
from amlmount.states import SERVING, Change, Failure, Plan
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


async def restart_of(owner: MountOwner, *, only_newer: bool) -> Change | None:
    """Say what `restart` would do with a mount that is up; None if it would not be touched. Never raises.

    `only_newer`: it is touched only if another program would serve it.
    """
    try:
        newer = await owner.newer()
    except AmlmountError as error:  # it would be refused: that is for the restart to say
        newer = None if only_newer else error.message
    if only_newer and newer is None:
        return None
    fields = (*owner.changes, *([newer] if newer else []))
    return Change(owner.spec.name, "replace", owner.spec.target, fields, await owner.gap())
