"""The JSON Schema of a mount's `blobfuse2:` mapping, for editors; made from the table.

It says what a schema can say (names, types, words, ranges); `validate` says the rest.
"""

from amlmount.blobfuse2.key import Key
from amlmount.blobfuse2.table import SECTION_KEYS

_TYPES = {
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "mode": ["integer", "string"],
    "umask": "integer",
    "list": "array",
}


def overrides_schema() -> dict[str, object]:
    """Return the schema of what may stand under `blobfuse2:`; keys that we decide ourselves are left out."""
    sections = {name: _section(keys) for name, keys in SECTION_KEYS.items() if name and _open(keys)}
    top = {key.name: _key(key) for key in _open(SECTION_KEYS[""])}
    return _object({**top, **sections}, "Settings of blobfuse2 that beat what the profile chose.")


def _open(keys: tuple[Key, ...]) -> list[Key]:
    return [key for key in keys if not key.owner and key.status == "current"]


def _section(keys: tuple[Key, ...]) -> dict[str, object]:
    return _object({key.name: _key(key) for key in _open(keys)}, "")


def _object(properties: dict[str, object], description: str) -> dict[str, object]:
    schema: dict[str, object] = {"type": "object", "additionalProperties": False, "properties": properties}
    return {"description": description, **schema} if description else schema


def _key(key: Key) -> dict[str, object]:
    schema: dict[str, object] = {"type": _TYPES.get(key.kind, "string"), "description": key.doc}
    words = list(key.allowed)
    if key.kind == "list":
        schema["items"] = {"type": "string", "enum": words} if words else {"type": "string"}
    elif words:
        schema["enum"] = words
    if key.kind in ("int", "float"):
        limits = {"minimum": key.minimum, "maximum": key.maximum}
        schema |= {name: limit for name, limit in limits.items() if limit is not None}
    if key.default is not None:
        schema["default"] = list(key.default) if isinstance(key.default, tuple) else key.default
    return schema
