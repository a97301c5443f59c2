"""The effective configuration, every default included, as YAML or JSON, with where each value came from.

What is shown can be loaded again and means the same.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from amlmount.config.checks import WRITING_OPTIONS
from amlmount.config.documents import DataPath, dotted, walk
from amlmount.config.load import Loaded
from amlmount.config.models import Mount, MountOptions
from amlmount.config.profiles import PolicyOverrides, policy_field
from amlmount.config.resolve import DaemonUser, effective_options, effective_policy, resolve_owner, target_path
from amlmount.config.store_models import dump_store

OriginOf = Callable[[DataPath], str]


def effective_data(loaded: Loaded, user: DaemonUser) -> dict[str, Any]:
    """Return the whole configuration as JSON-able data: what was written, and every default. Raises ConfigError."""
    config = loaded.config
    return {
        "stores": {name: {"type": store.type} | dump_store(store) for name, store in config.stores.items()},
        "mounts": {name: _effective_mount(loaded, name, user) for name in config.mounts},
        "cache": config.cache.model_dump(mode="json", exclude_none=True),
        "health": config.health.model_dump(mode="json"),
        "metrics": config.metrics.model_dump(mode="json", exclude_none=True),
        "daemon": config.daemon.model_dump(mode="json"),
    }


def origin_of(loaded: Loaded, path: DataPath) -> str:
    """Return where a value of `effective_data` came from: `FILE:LINE`, a profile, or `default`."""
    if path in loaded.places:
        return str(loaded.places[path])
    match path:
        case ("mounts", _, "source", *_):
            return _nearest_written(loaded, path)
        case ("mounts", str(name), "policy", str(key)):
            return _common(loaded, ("policy", key)) or f"profile {effective_options(loaded.config, name).profile}"
        case ("mounts", str(name), "owner"):
            return _common(loaded, ("owner",)) or "default: who ran amlmount up"
        case ("mounts", str(name), "allow_other"):
            return _common(loaded, ("allow_other",)) or "default: yes for the system's daemon, no for a user's"
        case ("mounts", str(name), *rest):
            return _common(loaded, tuple(rest)) or "default"
    return "default"


def to_yaml(loaded: Loaded, user: DaemonUser, *, with_origin: bool = False) -> str:
    """Return the effective configuration as YAML, with each value's origin as a comment if asked for."""
    lines = list(_lines(effective_data(loaded, user), (), lambda path: origin_of(loaded, path)))
    if not with_origin:
        return "".join(f"{text}\n" for text, _ in lines)
    width = min(max((len(text) for text, origin in lines if origin), default=0), 60)
    return "".join(f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)


def to_json(loaded: Loaded, user: DaemonUser, *, with_origin: bool = False) -> str:
    """Return the effective configuration as JSON; with origins, one `{value, origin}` for each dotted path."""
    data = effective_data(loaded, user)
    if with_origin:
        data = {dotted(path): {"value": value, "origin": origin_of(loaded, path)} for path, value in walk(data)}
    return json.dumps(data, indent=2)


def _effective_mount(loaded: Loaded, name: str, user: DaemonUser) -> dict[str, Any]:
    mount = loaded.config.mounts[name]
    options = effective_options(loaded.config, name)
    ownership = resolve_owner(options, user, name)
    allow_other = user.is_system if options.allow_other is None else options.allow_other
    written = Mount.model_dump(mount, mode="json", include={"target", "source"}, exclude_none=True)
    return {
        "target": target_path(mount),
        "source": written["source"],
        **_dump_options(options),
        "owner": f"{ownership[0]}:{ownership[1]}",
        "allow_other": allow_other,
        "policy": _effective_policy(options),
    }


def _dump_options(options: MountOptions) -> dict[str, Any]:
    without = {"owner", "allow_other", "policy"} | (WRITING_OPTIONS if options.read_only else set())
    return options.model_dump(mode="json", exclude=without, exclude_none=True)


def _effective_policy(options: MountOptions) -> dict[str, Any]:
    policy = effective_policy(options)
    values = {key: getattr(policy, policy_field(key)) for key in PolicyOverrides.model_fields}
    return PolicyOverrides.model_construct(**values).model_dump(mode="json")


def _nearest_written(loaded: Loaded, path: DataPath) -> str:
    around = (path[:length] for length in range(len(path), 2, -1))
    return next((str(loaded.places[known]) for known in around if known in loaded.places), "default")


def _common(loaded: Loaded, rest: DataPath) -> str | None:
    place = loaded.places.get(("defaults", *rest))
    return f"{place} (defaults)" if place else None


def _lines(data: dict[str, Any], path: DataPath, origin: OriginOf) -> Iterator[tuple[str, str]]:
    indent = "  " * len(path)
    for key, value in data.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{_scalar(key)}:", ""
            yield from _lines(value, here, origin)
        else:
            yield f"{indent}{_scalar(key)}: {_scalar(value)}", origin(here)


def _scalar(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
