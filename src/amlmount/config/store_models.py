"""A store as the configuration describes it: the fields of an Azure ML v2 datastore YAML, and a local folder.

`parse_store` gives the typed model back from the JSON-able form that travels in a `SourceSpec`.
Holds references to secrets only, never a secret.
"""

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter

from amlmount.config.credentials import Credentials
from amlmount.config.spec import Frozen

Tags = dict[str, Any]
# learn.microsoft.com: "Storage account name" and "Naming and referencing containers, blobs, and metadata".
ACCOUNT_RULE = "3 to 24 lower-case letters and digits"
CONTAINER_RULE = "3 to 63 lower-case letters, digits and single dashes, beginning and ending with a letter or digit"
_CONTAINER_PATTERN = r"^([a-z0-9]+(-[a-z0-9]+)*|\$root|\$web|\$logs)$"
_CONTAINER_SCHEMA: dict[str, Any] = {"pattern": _CONTAINER_PATTERN, "minLength": 3, "maxLength": 63}


def is_account_name(name: str) -> bool:
    """Say whether Azure lets a storage account be called so."""
    return re.fullmatch(r"[a-z0-9]{3,24}", name) is not None


def is_container_name(name: str) -> bool:
    """Say whether Azure lets a container (or file system) be called so."""
    return 3 <= len(name) <= 63 and re.fullmatch(_CONTAINER_PATTERN, name) is not None


class _Described(Frozen):
    """What every datastore YAML may carry besides; kept, and without effect on the mount."""

    json_schema_uri: str | None = Field(default=None, alias="$schema", description="as in an Azure ML file; no effect")
    name: str | None = Field(default=None, description="as in an Azure ML file; the key above it is what counts")
    description: str | None = Field(default=None, description="for people")
    tags: Tags | None = Field(default=None, description="for people")


class _AzureStore(_Described):
    account_name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{1,62}$", description=f"the storage account: {ACCOUNT_RULE}")
    # No '?': a SAS URL pasted here would be shown wherever the store is.
    endpoint: str = Field(
        default="core.windows.net",
        pattern=r"^(https?://)?[A-Za-z0-9._:-]+(/[A-Za-z0-9._-]+)*/?$",
        description="domain of the cloud, or a whole URL (http://127.0.0.1:10000/devstoreaccount1) for an emulator",
    )
    credentials: Credentials | None = Field(
        default=None, description="how to log in; left out: the identity found on the machine"
    )

    def _url(self, service: str, protocol: str) -> str:
        if "://" in self.endpoint:
            return self.endpoint.rstrip("/")
        scheme = "http" if protocol == "http" else "https"
        return f"{scheme}://{self.account_name}.{service}.{self.endpoint}"


class AzureBlobStore(_AzureStore):
    """A container of a storage account, or with no `container_name` the account itself."""

    type: Literal["azure_blob"] = Field(description="azure_blob")
    container_name: str | None = Field(
        default=None,
        description="the container: 3 to 63 lower-case letters, digits, single dashes; left out: for `containers`",
        json_schema_extra=_CONTAINER_SCHEMA,
    )
    protocol: Literal["https", "http", "wasbs", "wasb"] = Field(default="https", description="http only for emulators")

    @property
    def container(self) -> str | None:
        """The container, whatever its key is called for this type."""
        return self.container_name

    @property
    def blob_url(self) -> str:
        """URL of the account's blob service, without a slash at its end."""
        return self._url("blob", self.protocol)


class AzureDataLakeStore(_AzureStore):
    """A file system of an account with hierarchical namespace (Data Lake Storage Gen2)."""

    type: Literal["azure_data_lake_gen2"] = Field(description="azure_data_lake_gen2")
    filesystem: str | None = Field(
        default=None, description="the file system; left out: for `containers`", json_schema_extra=_CONTAINER_SCHEMA
    )
    protocol: Literal["https", "http", "abfss", "abfs"] = Field(default="https", description="http only for emulators")

    @property
    def container(self) -> str | None:
        """The container, whatever its key is called for this type."""
        return self.filesystem

    @property
    def blob_url(self) -> str:
        """URL of the account's blob service, without a slash at its end."""
        return self._url("blob", self.protocol)

    @property
    def dfs_url(self) -> str:
        """URL of the account's hierarchical service, without a slash at its end."""
        return self._url("dfs", self.protocol)


class LocalStore(_Described):
    """A folder of this machine."""

    type: Literal["local"] = Field(description="local")
    path: str = Field(min_length=1, description="the folder; relative to the file this stands in, ~ is the home folder")


AzureStore = AzureBlobStore | AzureDataLakeStore
STORE_TYPES = ("azure_blob", "azure_data_lake_gen2", "local")

# From Azure ML's own list of datastore types, with what to do instead.
UNSUPPORTED_TYPES = {
    "azure_file": "the kernel itself mounts a file share: mount -t cifs //ACCOUNT.file.core.windows.net/SHARE DIR",
    "azure_data_lake_gen1": "Azure has retired Data Lake Gen1; its successor is azure_data_lake_gen2",
    "one_lake": "OneLake is not supported; copy or shortcut the data into a storage account",
}


def _store_type(value: object) -> str | None:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def _refuse_unsupported(value: object) -> object:
    kind = _store_type(value)
    if kind in STORE_TYPES or not isinstance(value, dict | Frozen):
        return value
    if kind is None:
        raise ValueError(f"type is missing; write one of {', '.join(STORE_TYPES)}")
    near = difflib.get_close_matches(str(kind), STORE_TYPES, n=1)
    otherwise = f"did you mean '{near[0]}'?" if near else "copy the data into a blob container, or mount it without us"
    what = f"store type '{kind}' cannot be mounted, only {', '.join(STORE_TYPES)}"
    raise ValueError(f"{what}; {UNSUPPORTED_TYPES.get(str(kind), otherwise)}")


Store = Annotated[
    Annotated[AzureBlobStore, Tag("azure_blob")]
    | Annotated[AzureDataLakeStore, Tag("azure_data_lake_gen2")]
    | Annotated[LocalStore, Tag("local")],
    Discriminator(_store_type),
    BeforeValidator(_refuse_unsupported),
]
_ADAPTER: TypeAdapter[AzureBlobStore | AzureDataLakeStore | LocalStore] = TypeAdapter(Store)


def parse_store(data: dict[str, object]) -> AzureBlobStore | AzureDataLakeStore | LocalStore:
    """Return the store that `dump_store` wrote."""
    return _ADAPTER.validate_python(data)


def dump_store(store: AzureBlobStore | AzureDataLakeStore | LocalStore) -> dict[str, object]:
    """Return a store as JSON-able data, secrets as references."""
    return store.model_dump(mode="json", by_alias=True, exclude_none=True)
