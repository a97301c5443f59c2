"""Validation of blobfuse2 settings: whole files (rendered or imported), and the `blobfuse2:` part of our own YAML.

blobfuse2 itself ignores what it does not know and coerces what does not fit; here both are problems with a suggestion.
"""

from collections.abc import Mapping

from amlmount.blobfuse2.key import Key
from amlmount.blobfuse2.problem import Problem
from amlmount.blobfuse2.rules import check_rules
from amlmount.blobfuse2.table import SECTION_KEYS, find, suggest, suggest_section
from amlmount.blobfuse2.values import check_value


def validate_overrides(overrides: Mapping[str, object]) -> list[Problem]:
    """Return the problems of a mount's `blobfuse2:` mapping: as `check_config`, and keys that we decide are refused.

    A secret among them must be a reference, such as `{env: NAME}`; what it refers to is not looked at here.
    """
    secrets = [(key, value) for key, value in known_keys(overrides) if key.secret and not key.owner]
    references = {key.path for key, value in secrets if isinstance(value, Mapping)}
    hint = "write it as {env: NAME} or {file: PATH}"
    inline = [Problem(key.path, "must not stand in the configuration", hint) for key, _ in secrets]
    found = [problem for problem in inline if problem.path not in references]
    found += [problem for problem in check_config(_without(overrides, references)) if problem.path not in references]
    for key, _ in known_keys(overrides):
        if key.owner:
            found.append(Problem(key.path, "cannot be overridden", f"it is decided by {key.owner}"))
        elif key.status in ("flag", "testing"):
            found.append(Problem(key.path, "cannot be overridden", f"use {key.instead}" if key.instead else ""))
    return found


def _without(config: Mapping[str, object], paths: set[str]) -> dict[str, object]:
    return {
        name: {key: item for key, item in value.items() if f"{name}.{key}" not in paths}
        if isinstance(value, Mapping)
        else value
        for name, value in normalized(config).items()
    }


def check_config(config: Mapping[str, object]) -> list[Problem]:
    """Return the problems of a blobfuse2 configuration, or of a part of one: unknown keys, values, conflicts, traps."""
    found: list[Problem] = []
    for name, value in config.items():
        found += (
            _check_section(str(name).lower(), value) if str(name).lower() in SECTION_KEYS else _check("", name, value)
        )
    return found + check_rules(normalized(config))


def normalized(config: Mapping[str, object]) -> dict[str, object]:
    """Return a copy with sections and keys in lower case, as blobfuse2 reads them."""
    return {
        str(name).lower(): {str(key).lower(): item for key, item in value.items()}
        if isinstance(value, Mapping)
        else value
        for name, value in config.items()
    }


def known_keys(config: Mapping[str, object]) -> list[tuple[Key, object]]:
    """Return the rows of the table that `config` sets, with the values."""
    found = []
    for name, value in normalized(config).items():
        pairs = value.items() if name in SECTION_KEYS and isinstance(value, Mapping) else [(name, value)]
        section = name if name in SECTION_KEYS else ""
        found += [(key, item) for pair, item in pairs if (key := find(section, str(pair)))]
    return found


def _check_section(section: str, value: object) -> list[Problem]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        return [Problem(section, "is a section: its keys go below it, indented")]
    return [problem for name, item in value.items() for problem in _check(section, name, item)]


def _check(section: str, name: object, value: object) -> list[Problem]:
    key = find(section, str(name))
    if key is None:
        return [_unknown(section, str(name), isinstance(value, Mapping))]
    return [*check_value(key, value), *_status(key, value)]


def _unknown(section: str, name: str, is_section: bool) -> Problem:
    path = f"{section}.{name}" if section else name
    meant = suggest_section(name) if is_section or not section else None
    meant = suggest(section, name) if meant is None else meant
    return Problem(path, "is not a key of blobfuse2, which ignores it", f"did you mean {meant}?" if meant else "")


def _status(key: Key, value: object) -> list[Problem]:
    if key.status == "removed":
        return [Problem(key.path, f"is not read since blobfuse2 {key.until}", f"use {key.instead}")]
    if key.status == "ignored":
        return [Problem(key.path, "does nothing in blobfuse2 v2", "leave it out", severity="warning")]
    if key.status == "v1":
        return [Problem(key.path, "is a name of blobfuse v1", f"use {key.instead}", severity="warning")]
    if key.warn and value not in (False, 0) and key.name != "refresh-sec":
        return [Problem(key.path, key.warn, severity="warning")]
    return []
