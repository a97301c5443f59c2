"""Object stores behind one interface: `open_store` makes one from its definition in the configuration.

Only this package knows which class serves which `type`; everybody else sees `ObjectStore`.
"""

from collections.abc import Mapping

from amlmount.errors import ConfigError
from amlmount.stores.base import ObjectStore

TYPES = ("azure_blob", "azure_data_lake_gen2", "local", "memory")


def open_store(definition: Mapping[str, object]) -> ObjectStore:
    """Make the store that a validated definition describes; nothing is asked of it yet.

    Slow imports happen here, and only those this type needs. Raises ConfigError for an unknown type.
    """
    kind = definition.get("type")
    if kind in ("azure_blob", "azure_data_lake_gen2"):
        from amlmount.stores.azure import open_azure

        return open_azure(definition)
    if kind == "local":
        from amlmount.stores.local import LocalStore

        return LocalStore(str(definition["path"]))
    if kind == "memory":
        from amlmount.stores.memory import open_memory

        return open_memory(definition)
    raise ConfigError(f"cannot open a store of type {kind!r}", hint=f"use one of {', '.join(TYPES)}")
