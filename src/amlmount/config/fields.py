"""The kinds of value that configuration models are made of: sizes, durations, modes, names, paths.

Each reads what a person writes, writes it back the same way, and says in the JSON Schema what may stand there.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from amlmount.config.units import (
    DURATION_PATTERN,
    PERCENT_PATTERN,
    SIZE_PATTERN,
    Percent,
    format_duration,
    format_size,
    parse_duration,
    parse_percent,
    parse_size,
    parse_size_or_percent,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
ADDRESS_PATTERN = r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})$"
OWNER_PATTERN = r"^[A-Za-z0-9_.@\\-]+(:[A-Za-z0-9_.@\\-]+)?$"

_ZERO = {"const": 0}


@dataclass(frozen=True, eq=False)
class AlsoTakes:
    """Says in the JSON Schema that a short form may stand in the place of the mapping."""

    short_form: JsonSchemaValue

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [self.short_form, handler(core)]}


def parse_mode(value: object) -> int:
    """Return permission bits; `644`, `0644`, `"0644"` and `0o644` all mean what `chmod 644` means."""
    written = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"(?:0o)?[0-7]{1,4}", written):
        raise ValueError(f"{written!r} is not a mode; write it as for chmod, such as 0644")
    mode = int(written.removeprefix("0o"), 8)
    if mode > 0o777:
        raise ValueError(f"{written!r} has set-id or sticky bits, which a mount never shows; write three digits")
    return mode


def format_mode(mode: int) -> str:
    """Write a mode as chmod takes it: `0644`."""
    return f"{mode:04o}"


def parse_prefix(value: object) -> str:
    """Return a path within a container without slashes at its ends; raises ValueError for `.` and `..` in it."""
    if not isinstance(value, str):
        raise ValueError("a path within the store is text; write it in quotes")
    path = value.strip("/")
    if any(part in (".", "..") for part in path.split("/")):
        raise ValueError(f"{value!r} goes up or sideways; write the path from the top of the container")
    return path


def parse_address(value: object) -> str:
    """Return an address of a TCP port: `127.0.0.1:9464`, `[::1]:9464`, `localhost:9464`."""
    found = re.fullmatch(ADDRESS_PATTERN, value) if isinstance(value, str) else None
    if found is None or not 0 <= int(found[2]) <= 65535:
        raise ValueError(f"{value!r} is not an address and a port; write it as in 127.0.0.1:9464")
    return str(value)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of what `parse_address` let through."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": SIZE_PATTERN}, _ZERO]}),
]
SizeOrPercent = Annotated[
    int | Percent,
    BeforeValidator(lambda value: value if isinstance(value, Percent) else parse_size_or_percent(value)),
    PlainSerializer(format_size),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": f"{SIZE_PATTERN}|{PERCENT_PATTERN}"}, _ZERO]}),
]
Share = Annotated[
    Percent,
    BeforeValidator(lambda value: value if isinstance(value, Percent) else parse_percent(value)),
    PlainSerializer(format_size),
    WithJsonSchema({"type": "string", "pattern": PERCENT_PATTERN}),
]
Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": DURATION_PATTERN}, _ZERO]}),
]
Mode = Annotated[
    int,
    BeforeValidator(parse_mode),
    PlainSerializer(format_mode),
    WithJsonSchema({"type": ["string", "integer"], "pattern": "^(0o)?[0-7]{1,4}$", "examples": ["0644"]}),
]
Address = Annotated[str, BeforeValidator(parse_address), WithJsonSchema({"type": "string", "pattern": ADDRESS_PATTERN})]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Owner = Annotated[str, Field(pattern=OWNER_PATTERN)]
Prefix = Annotated[str, BeforeValidator(parse_prefix), WithJsonSchema({"type": "string"})]
