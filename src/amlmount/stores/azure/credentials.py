"""From the configuration of a store to the authorizer of its requests; secrets are resolved here and not before."""

from typing import Any

from amlmount.config import credentials as configured
from amlmount.config.store_models import AzureBlobStore, AzureDataLakeStore
from amlmount.errors import ConfigError
from amlmount.secrets import resolve
from amlmount.secrets.identity import (
    TokenSource,
    automatic,
    azure_cli,
    managed_identity,
    service_principal,
    workload_identity,
)
from amlmount.stores.azure.auth import Anonymous, Authorizer, Bearer, Sas, SharedKey
from amlmount.stores.azure.location import Location, locate

AzureDefinition = AzureBlobStore | AzureDataLakeStore
# One audience for all accounts and clouds: "Authorize with Microsoft Entra ID" of the Blob service.
SCOPE = "https://storage.azure.com/.default"


def locate_store(store: AzureDefinition, container: str | None = None) -> Location:
    """Return where a store is; `container` overrides its own. Raises ConfigError."""
    url = store.blob_url
    if isinstance(store.credentials, configured.ConnectionString) and "endpoint" not in store.model_fields_set:
        url = _connection_fields(store, store.credentials).get("BlobEndpoint") or url
    return locate(url, store.account_name, container or store.container or "")


def authorize(store: AzureDefinition, location: Location) -> Authorizer:
    """Resolve the store's credentials. Raises ConfigError, AccessDeniedError or NetworkError (Key Vault)."""
    given = store.credentials
    if isinstance(given, configured.AccountKey):
        return SharedKey(store.account_name, resolve(given.account_key).reveal())
    if isinstance(given, configured.SasToken):
        return Sas(resolve(given.sas_token).reveal())
    if isinstance(given, configured.ConnectionString):
        return _from_connection_string(store, given)
    if isinstance(given, configured.Anonymous):
        return Anonymous()
    if not location.is_secure:
        raise ConfigError(
            f"cannot send a token to {location.url}: it would be readable on its way",
            hint="use https, or an account key for an emulator",
        )
    return Bearer(_tokens(given))


def _tokens(given: Any) -> TokenSource:
    if isinstance(given, configured.ServicePrincipal):
        return service_principal(SCOPE, given)
    if isinstance(given, configured.ManagedIdentity):
        return managed_identity(SCOPE, given.managed_identity.client_id)
    if isinstance(given, configured.WorkloadIdentity):
        return workload_identity(SCOPE, given.workload_identity.client_id)
    if isinstance(given, configured.AzureCli):
        return azure_cli(SCOPE)
    return automatic(SCOPE)


def _from_connection_string(store: AzureDefinition, given: configured.ConnectionString) -> Authorizer:
    fields = _connection_fields(store, given)
    if fields.get("AccountKey"):
        return SharedKey(store.account_name, fields["AccountKey"])
    if fields.get("SharedAccessSignature"):
        return Sas(fields["SharedAccessSignature"])
    raise ConfigError(
        f"cannot use connection string {given.connection_string.description}: it has neither key nor SAS",
        hint="copy it whole, beginning with DefaultEndpointsProtocol= or BlobEndpoint=",
    )


def _connection_fields(store: AzureDefinition, given: configured.ConnectionString) -> dict[str, str]:
    text = resolve(given.connection_string).reveal()
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    named = fields.get("AccountName", store.account_name)
    if named != store.account_name:
        raise ConfigError(
            f"cannot use connection string {given.connection_string.description}: it is for account {named!r}, "
            f"the store says {store.account_name!r}",
            hint="correct account_name, or the connection string",
        )
    if not fields.get("BlobEndpoint") and (suffix := fields.get("EndpointSuffix")):
        scheme = fields.get("DefaultEndpointsProtocol", "https")
        fields["BlobEndpoint"] = f"{scheme}://{store.account_name}.blob.{suffix}"
    return fields
