"""Turns what is wrong with a configuration into one ConfigError: file, line, path, plain words, what to write.

Shows no value from under `stores` but a wrong name that cannot be a secret: one may have been pasted anywhere there.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from amlmount.config.credentials import CREDENTIAL_KINDS
from amlmount.config.documents import DataPath, Document, Place, dotted, nearest_place
from amlmount.config.models import Config
from amlmount.config.profiles import PolicyOverrides
from amlmount.config.store_models import ACCOUNT_RULE, CONTAINER_RULE
from amlmount.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: at which path, what, and what to do about it."""

    path: DataPath
    what: str
    hint: str | None = None


# What other tools call it -> what it is called here.
SYNONYMS = {
    "mount_point": "target",
    "mountpoint": "target",
    "mount_path": "target",
    "ro": "read_only",
    "uid": "owner",
    "user": "owner",
    "gid": "owner",
    "sources": "source",
    "account": "account_name",
    "container": "container_name",
    "bucket": "container_name",
    "datastores": "stores",
}
_UNKNOWN = "unknown key"
_MISSING = "is missing"
_PLAIN_WORDS = {
    "missing": _MISSING,
    "string_type": "must be text; put it in quotes",
    "string_too_short": "must not be empty",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a mapping: keys and values, indented below it",
    "model_type": "must be a mapping: keys and values, indented below it",
    "model_attributes_type": "must be a mapping: keys and values, indented below it",
    "union_tag_not_found": "must be a mapping: keys and values, indented below it",
    "tuple_type": "must be a list",
    "too_short": "must not be an empty list",
}
_PATTERN_WORDS = {
    "endpoint": "is not a domain such as core.windows.net, nor a URL without '?'",
    "env": "is not the name of an environment variable (the secret itself must not stand here)",
    "owner": "is not user or user:group",
}
_NAME_WORDS = "is not a usable name: letters, digits, '-', '_' and '.', up to 63, a letter or digit first"


def config_error(problems: Sequence[Problem], places: Mapping[DataPath, Place]) -> ConfigError:
    """Return one error that names every problem with its file and line, in the order of the files."""
    ordered = sorted(problems, key=lambda problem: _order(places, problem))
    listed = [(nearest_place(places, problem.path), problem) for problem in ordered]
    details = {"problems": [_to_json(place, problem) for place, problem in listed]}
    if len(listed) == 1:
        place, problem = listed[0]
        where = f"'{place.file}', line {place.line}" if place else "the configuration"
        return ConfigError(f"cannot use {where}: {_text(problem)}", hint=problem.hint, details=details)
    lines = [f"{place or 'configuration'}: {_text(problem, with_hint=True)}" for place, problem in listed]
    return ConfigError("\n  ".join([f"cannot use the configuration: {len(lines)} problems", *lines]), details=details)


def all_of(errors: Sequence[ConfigError]) -> ConfigError:
    """Return one error that says what several say; of one, that."""
    if len(errors) == 1:
        return errors[0]
    lines = [f"{error.message} ({error.hint})" if error.hint else error.message for error in errors]
    return ConfigError("\n  ".join([f"cannot use the configuration: {len(lines)} problems", *lines]))


def validation_problems(error: ValidationError, document: Document) -> list[Problem]:
    """Return what pydantic found, in plain words."""
    found = [_problem(item, document.data) for item in error.errors(include_url=False)]
    misspelt = {(*problem.path[:-1], problem.hint) for problem in found if problem.what == _UNKNOWN}
    return [
        problem
        for problem in dict.fromkeys(found)
        if problem.what != _MISSING or (*problem.path[:-1], f"did you mean '{problem.path[-1]}'?") not in misspelt
    ]


def unusable_account(path: DataPath, name: object) -> Problem:
    """Return what is said of a name that no storage account can have."""
    return Problem(path, f"{_shown(name)}is not the name of a storage account", f"it has {ACCOUNT_RULE}")


def unusable_container(path: DataPath, name: object) -> Problem:
    """Return what is said of a name that no container can have."""
    return Problem(
        path, f"{_shown(name)}is not the name of a container", f"it has {CONTAINER_RULE}, or is $root, $web or $logs"
    )


def _shown(name: object) -> str:
    """Quote a name. Keys, tokens and SAS have signs in them that a name tried for an account or container has not."""
    return f"'{name}' " if isinstance(name, str) and re.fullmatch(r"[\w.$ -]{0,80}", name, re.ASCII) else ""


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return `did you mean 'x'?` for the nearest of the known names, or None if none is near."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else None


def _order(places: Mapping[DataPath, Place], problem: Problem) -> tuple[str, int]:
    place = nearest_place(places, problem.path)
    return (place.file, place.line) if place else ("", 0)


def _text(problem: Problem, *, with_hint: bool = False) -> str:
    where = dotted(problem.path)
    hint = f" ({problem.hint})" if with_hint and problem.hint else ""
    return f"{where}: {problem.what}{hint}" if where else f"{problem.what}{hint}"


def _to_json(place: Place | None, problem: Problem) -> dict[str, Any]:
    return {
        "file": place.file if place else None,
        "line": place.line if place else None,
        "path": dotted(problem.path),
        "message": problem.what,
        "hint": problem.hint,
    }


def _problem(item: ErrorDetails, data: object) -> Problem:
    path, kind = _data_path(item, data), item["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, item["loc"])
    if kind == "inline_secret":
        return Problem(path, item["msg"], _move_secret_hint(path))
    if kind == "literal_error":
        return _not_a_choice(path, item)
    if kind == "value_error":
        what, _, hint = str(item["ctx"]["error"]).partition("; ")
        return Problem(path, what, hint or None)
    if kind == "string_pattern_mismatch" and path[-1] == "account_name":
        return unusable_account(path, item["input"])
    if kind == "string_pattern_mismatch":
        return Problem(path, _PATTERN_WORDS.get(str(path[-1])) or _unusable_name(path, item["input"]))
    return Problem(path, _PLAIN_WORDS.get(kind, item["msg"]))


def _data_path(item: ErrorDetails, data: object) -> DataPath:
    """Return the error's place in the data: pydantic's own path has the tags of unions in between."""
    path: list[str | int] = []
    for element in item["loc"]:
        known = element in data if isinstance(data, dict) else isinstance(data, list) and element in range(len(data))
        if known:
            data = data[element]  # type: ignore[index]
            path.append(element)
    if item["type"] == "missing":
        path.append(item["loc"][-1])
    return tuple(path)


def _not_a_choice(path: DataPath, item: ErrorDetails) -> Problem:
    expected = item["ctx"]["expected"]
    choices = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
    what = f"must be {expected}"
    if path[0] == "stores" or not isinstance(item["input"], str):
        return Problem(path, what)
    return Problem(path, f"'{item['input']}' is not possible; it {what}", did_you_mean(item["input"], choices))


def _unusable_name(path: DataPath, value: object) -> str:
    # A key has its path already; what a source names is a value, and mounts hold no secrets.
    shown = f"'{value}' " if path[0] == "mounts" and isinstance(value, str) else ""
    return shown + _NAME_WORDS


def _unknown_key(path: DataPath, loc: Sequence[str | int]) -> Problem:
    key = str(path[-1])
    known = sorted({name for model in _models_at(loc[:-1]) for name in _keys(model)})
    synonym = f"did you mean '{SYNONYMS[key]}'?" if SYNONYMS.get(key) in known else None
    hint = _belongs_elsewhere(path, key) or synonym or did_you_mean(key, known)
    return Problem(path, _UNKNOWN, hint or f"known here: {', '.join(known)}")


def _belongs_elsewhere(path: DataPath, key: str) -> str | None:
    if ":" in key:
        return "a ':' needs a space after it"
    if path[0] == "stores" and key in CREDENTIAL_KINDS:
        return f"write it under credentials, as a reference: credentials: {{{key}: {{env: NAME}}}}"
    if path[0] in ("mounts", "defaults") and key in PolicyOverrides.model_fields:
        return f"write it under policy: policy: {{{key}: ...}}"
    if len(path) == 1 and key in ("type", "account_name", "container_name", "filesystem", "credentials", "$schema"):
        return "a datastore file of Azure ML goes under a name of your choice: stores: {NAME: {...}}"
    if len(path) == 1 and key in ("components", "azstorage", "libfuse", "file_cache", "attr_cache", "mountall"):
        return "this is a blobfuse2 file; `amlmount import FILE` makes an amlmount one of it"
    return None


def _move_secret_hint(path: DataPath) -> str:
    store, key = str(path[1]), str(path[-1])
    variable = "".join(letter if letter.isalnum() else "_" for letter in f"{store}_{key}".upper())
    return (
        f"move it into a file that only you can read, with `install -D -m 0600 /dev/stdin secrets/{store}.key` beside "
        f"this file (paste it, Enter, Ctrl-D), and write {key}: {{file: secrets/{store}.key}}; "
        f"or give it to the daemon's environment and write {key}: {{env: {variable}}}"
    )


def _models_at(loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """Return the models that may stand at a path of the configuration (several where types are told by a tag)."""
    annotations: list[Any] = [Config]
    for element in loc:
        deeper = [inner for annotation in annotations for inner in _step(annotation, element)]
        annotations = deeper or annotations
    options = [option for annotation in annotations for option in _options(annotation)]
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _step(annotation: Any, element: str | int) -> Iterator[Any]:
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            yield from (
                field.annotation for name, field in option.model_fields.items() if element in (name, field.alias)
            )
        elif get_origin(option) is dict and isinstance(element, str):
            yield get_args(option)[1]
        elif get_origin(option) is tuple and isinstance(element, int):
            yield get_args(option)[0]


def _options(annotation: Any) -> Iterator[Any]:
    if hasattr(annotation, "__metadata__"):
        yield from _options(annotation.__origin__)
    elif get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    else:
        yield annotation


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
