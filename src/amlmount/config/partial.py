"""What can still be said of a configuration of which a part cannot be read, so that all of it is said at once.

What is left must not be blamed for what is not: options are left out where a part of them could not be read.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from amlmount.config.checks import Unknown, find_problems
from amlmount.config.models import Config
from amlmount.config.problems import Problem

_PLACES = ("source", "target")


def further_problems(data: dict[str, Any], found: Sequence[Problem]) -> list[Problem]:
    """Return what else is wrong with a configuration besides what was `found` when it was read."""
    wrong = {problem.path[:3] for problem in found}
    stores = _without(data.get("stores"), _names_in("stores", wrong))
    mounts = _placed(data.get("mounts"), _names_in("mounts", wrong))
    sections = {path[0] for path in wrong} | {"stores", "mounts"}
    rest = {key: value for key, value in data.items() if key not in sections}
    try:
        config = Config.model_validate(rest | {"stores": stores, "mounts": mounts})
    except ValidationError:
        return []
    return find_problems(config, _unknown(data, wrong, config))


def _unknown(data: dict[str, Any], wrong: set[tuple[str | int, ...]], config: Config) -> Unknown:
    stores = {str(name) for name in _keys(data.get("stores"))} - set(config.stores)
    mounts = {str(name) for name in _names_in("mounts", wrong)}
    if any(path[0] == "defaults" for path in wrong):
        mounts = set(config.mounts)
    return Unknown(frozenset(stores), frozenset(mounts), are_all_stores=("stores",) in wrong)


def _names_in(section: str, wrong: set[tuple[str | int, ...]]) -> dict[str | int, set[str | int]]:
    """Return which entries of a section are wrong, and at which of their keys."""
    names: dict[str | int, set[str | int]] = {}
    for path in wrong:
        if path[0] == section and len(path) > 1:
            names.setdefault(path[1], set()).update(path[2:] or _PLACES)
    return names


def _placed(section: object, wrong: dict[str | int, set[str | int]]) -> dict[Any, Any]:
    """Return mounts in their order; those that are wrong with source and target only, and none that are wrong there."""
    mounts: dict[Any, Any] = {}
    for name, mount in section.items() if isinstance(section, dict) else ():
        keys = wrong.get(name)
        if keys is None:
            mounts[name] = mount
        elif isinstance(mount, dict) and keys.isdisjoint(_PLACES):
            mounts[name] = {key: mount[key] for key in _PLACES if key in mount}
    return mounts


def _without(section: object, names: dict[str | int, set[str | int]]) -> dict[Any, Any]:
    return {key: value for key, value in section.items() if key not in names} if isinstance(section, dict) else {}


def _keys(section: object) -> list[Any]:
    return list(section) if isinstance(section, dict) else []
