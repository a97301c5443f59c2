"""From what a caller of `amlmount.mount` wrote to a resolved mount: folders, names of the configuration, definitions.

What has the shape of a path is one and never looked up as a name; a name is a mount's, else a store's, else a folder's.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from amlmount.config.load import config_files, load_config
from amlmount.config.models import Config, MountOptions
from amlmount.config.resolve import find_daemon_user, resolve_mount
from amlmount.config.spec import MountSpec
from amlmount.errors import ConfigError, ContainerNotFoundError, NotFoundError, UsageError

Source = str | os.PathLike[str] | Mapping[str, object] | Sequence[str | Mapping[str, object]]
Options = dict[str, Any]
MAX_NAME_BYTES = 40


def resolve_source(
    source: Source,
    target: str,
    *,
    read_only: bool,
    profile: str | None,
    engine: str,
    config_path: Path | None = None,
) -> MountSpec:
    """Return the mount that `source` stands for, at `target`. `profile` None: the mount's own, else `standard`.

    Raises UsageError, ConfigError, NotFoundError (with names like it), ContainerNotFoundError (no such folder).
    """
    options = {"read_only": read_only, "engine": engine, "target": target} | ({"profile": profile} if profile else {})
    try:
        name, config = _find(source, config_path, options)
    except ValidationError as error:
        raise _invalid(source, error) from None
    return resolve_mount(config, name, find_daemon_user(is_system=False))


def _find(source: Source, config_path: Path | None, options: Options) -> tuple[str, Config]:
    """Return a mount's name and the least configuration that holds it and the stores it needs."""
    if isinstance(source, os.PathLike) or (isinstance(source, str) and _is_path(source)):
        return _folder(os.fspath(source), options)
    if isinstance(source, Mapping) and "type" in source:
        return _one_mount("source", "source", {"source": dict(source)}, options)
    config = load_config(config_files(config_path))
    if isinstance(source, str):
        return _named(source, config, options)
    if not isinstance(source, Mapping | Sequence):
        raise UsageError(
            f"cannot mount {source!r}: it is no source", hint="give a folder, a name, a mapping or a list of those"
        )
    written = dict(source) if isinstance(source, Mapping) else [_plain(part) for part in source]
    name, made = _one_mount("source", written, dict(config.stores), options)
    _check_stores(made)
    return name, made


def _check_stores(config: Config) -> None:
    for mount in config.mounts.values():
        for part in mount.source if isinstance(mount.source, tuple) else (mount.source,):
            if part.store not in config.stores:
                raise NotFoundError(f"cannot find a store called '{part.store}'", hint=_near(part.store, config.stores))


def _near(name: str, known: Iterable[str]) -> str:
    stores = list(known)
    near = difflib.get_close_matches(name, stores, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"the configuration has: {', '.join(stores) or 'none'}"


def _is_path(source: str) -> bool:
    if re.match(r"[a-z][a-z0-9+.-]*://|azureml:", source):
        raise UsageError(
            f"cannot mount '{source}': URLs are not understood yet",
            hint="describe it as a store in the configuration, and mount it by that name",
        )
    return source.startswith(("/", "./", "../", "~")) or source in (".", "..", "")


def _folder(written: str, options: Options) -> tuple[str, Config]:
    path = os.path.abspath(os.path.expanduser(written)) if written else ""
    if not os.path.exists(path):
        raise ContainerNotFoundError(f"cannot mount '{written}': there is no such folder", hint="check its name")
    if not os.path.isdir(path):
        raise UsageError(f"cannot mount '{written}': it is not a folder", hint="mount the folder it lies in")
    name = _name_for(path)
    return _one_mount(name, name, {name: {"type": "local", "path": path}}, options)


def _name_for(path: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(path)).strip("-._")
    return name[:MAX_NAME_BYTES] or "folder"


def _named(name: str, config: Config, options: Options) -> tuple[str, Config]:
    if name in config.mounts:
        asked = MountOptions.model_validate({key: value for key, value in options.items() if key != "target"})
        changes = {key: getattr(asked, key) for key in asked.model_fields_set} | {"target": options["target"]}
        return name, config.model_copy(update={"mounts": {name: config.mounts[name].model_copy(update=changes)}})
    if name in config.stores:
        return _one_mount(name, name, dict(config.stores), options)
    if os.path.isdir(name):
        return _folder(name, options)
    near = difflib.get_close_matches(name, [*config.mounts, *config.stores], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "a folder is written with a slash: ./data"
    raise NotFoundError(f"cannot find a mount, a store or a folder called '{name}'", hint=hint)


def _plain(part: object) -> object:
    return dict(part) if isinstance(part, Mapping) else part


def _one_mount(name: str, source: object, stores: dict[str, Any], options: Options) -> tuple[str, Config]:
    return name, Config.model_validate({"stores": stores, "mounts": {name: {"source": source} | options}})


def _invalid(source: Source, error: ValidationError) -> ConfigError:
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("("))
    return ConfigError(f"cannot mount '{source}': {place}: {first['msg'].removeprefix('Value error, ')}")
