"""Writes a configuration as YAML through templates/blobfuse2.yaml.j2, and proves that it reads back as it was meant.

Whatever stands in a name, a path or a secret, it can only ever become the value of its own key.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from amlmount.config.spec import MountSpec
from amlmount.errors import ConfigError
from amlmount.render.choices import Octal

TEMPLATE: Final = "blobfuse2.yaml.j2"
MASK: Final = "***"
# What stands without quotes: nothing that YAML 1.1 or 1.2 could take for a number, a date, a boolean or a null.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@-]*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}
# Printable ASCII and letters beyond; the rest, which YAML does not allow in the text, is escaped.
_UNSAFE = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]")


def write(spec: MountSpec, config: Mapping[str, object]) -> str:
    """Return `config` as YAML. Raises ConfigError if it cannot be written so that it reads back the same."""
    import yaml

    text = _render(spec, config)
    try:
        same = yaml.safe_load(text) == config
    except yaml.YAMLError:
        same = False
    if not same:
        raise ConfigError(
            f"cannot write the blobfuse2 configuration of mount '{spec.name}': it does not read back the same",
            hint="look for control characters in names, paths and secrets",
        )
    return text


def scalar(value: object) -> str:
    """Return a value as YAML on one line; text is quoted unless it is plainly text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Octal):
        return f"0{value:03o}"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(scalar(item) for item in value)}]"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


def _render(spec: MountSpec, config: Mapping[str, object]) -> str:
    sections = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    top = {name: value for name, value in config.items() if name not in sections}
    return str(_template().render(name=scalar(spec.name), profile=spec.policy.profile, top=top, sections=sections))


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["yaml"] = scalar
    return environment.from_string((files("amlmount") / "templates" / TEMPLATE).read_text(encoding="utf-8"))
