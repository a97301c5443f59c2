"""The JSON Schema of the configuration file, for editors: names, choices, units and what each key means."""

from typing import Any

from amlmount.blobfuse2.schema import overrides_schema
from amlmount.config.models import Config

SCHEMA_URI = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a configuration file."""
    schema = Config.model_json_schema(by_alias=True, mode="validation")
    schema["patternProperties"] = {"^x-": True}
    for model in ("MountOptions", "Mount"):
        schema["$defs"][model]["properties"]["blobfuse2"] = overrides_schema()
    return {"$schema": SCHEMA_URI, **schema, "title": "amlmount configuration"}
