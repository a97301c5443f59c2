"""Azure Blob Storage: block blobs, and accounts with hierarchical namespace through the same flat interface.

`open_azure` is all the rest of the program needs; `diagnose` looks at a store that does not work.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amlmount.stores.azure.store import AzureStore
    from amlmount.stores.azure.timing import Timing


def open_azure(definition: Mapping[str, object], *, timing: "Timing | None" = None) -> "AzureStore":
    """Make the store of a validated definition; secrets are read, and the network is used, at the first call.

    Without a container it can only list the account's containers. Raises ConfigError for an impossible address.
    """
    from amlmount.config.store_models import LocalStore, parse_store
    from amlmount.errors import ConfigError
    from amlmount.stores.azure.store import AzureStore

    store = parse_store(dict(definition))
    if isinstance(store, LocalStore):
        raise ConfigError("cannot open a local store as an Azure container", hint="set type: azure_blob")
    return AzureStore(store, timing=timing)
