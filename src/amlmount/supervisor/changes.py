"""What differs between two definitions of a mount, and whether it takes a new mount to make it so."""

from amlmount.config.spec import MountSpec

# Known to the daemon only, or told to a mount while it is served.
IN_PLACE = frozenset({"cache_max_bytes", "cache_note", "cache_is_ephemeral", "refresh_interval_s"})


def difference(old: MountSpec, new: MountSpec) -> list[str]:
    """Return the fields that differ, `policy.attr_timeout_s` for one of a part. Values are not shown: a source's may
    be secret."""
    found = []
    for name in MountSpec.model_fields:
        one, other = getattr(old, name), getattr(new, name)
        if one == other:
            continue
        parts = getattr(type(one), "model_fields", {})
        inside = [f"{name}.{part}" for part in parts if getattr(one, part) != getattr(other, part, None)]
        found += inside or [name]
    return found


def needs_new_mount(changes: list[str]) -> bool:
    """Say whether these fields mean a new mount."""
    return any(name not in IN_PLACE for name in changes)
