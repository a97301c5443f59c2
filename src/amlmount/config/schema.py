"""The JSON Schema of the configuration file, for editors: names, choices, units and what each key means."""

from typing import Any

from amlmount.config.models import Config

SCHEMA_URI = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a configuration file."""
    schema = Config.model_json_schema(by_alias=True, mode="validation")
    schema["patternProperties"] = {"^x-": True}
    return {"$schema": SCHEMA_URI, **schema, "title": "amlmount configuration"}
