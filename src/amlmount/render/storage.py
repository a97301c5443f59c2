"""The storage section: account, container, endpoint, and every kind of credential as blobfuse2 takes it.

Kinds and keys: component/azstorage/config.go of Azure/azure-storage-fuse. Values of secrets pass through here only.
"""

from collections.abc import Callable, Mapping
from typing import Final

from amlmount.config.credentials import (
    AccountKey,
    Anonymous,
    AzureCli,
    ConnectionString,
    ManagedIdentity,
    SasToken,
    SecretRef,
    ServicePrincipal,
    WorkloadIdentity,
)
from amlmount.config.spec import MountSpec, SourceSpec
from amlmount.config.store_models import AzureDataLakeStore, AzureStore, LocalStore, parse_store
from amlmount.errors import ConfigError
from amlmount.render.choices import choose_cache
from amlmount.render.document import MASK

Reveal = Callable[[SecretRef], str]
Section = dict[str, object]

# A name that is a prefix of N siblings costs N/2 requests at blobfuse2's own 2.
LIST_PAGE: Final = 5000
# One try. An upload of up to 256 MiB is one request and must fit; a reader is better told than kept waiting.
READ_TRY_S: Final = 60
WRITE_TRY_S: Final = 300


def storage(spec: MountSpec, source: SourceSpec, secrets: Reveal | None, env: Mapping[str, str]) -> dict[str, object]:
    """Return the sections that say where data is; `components` too for a local store. Raises ConfigError."""
    store = parse_store(source.store)
    if source.glob:
        raise ConfigError(
            f"cannot filter by {source.glob!r} in mount '{spec.name}' with blobfuse2: its filter folds case and spaces",
            hint="use engine: python, or blobfuse2's own filter: `blobfuse2: {azstorage: {filter: ...}}`",
        )
    if isinstance(store, LocalStore):
        return _local(spec, source, store)
    return {"azstorage": _account(spec, source, store) | _login(spec, store, secrets, env)}


def _local(spec: MountSpec, source: SourceSpec, store: LocalStore) -> dict[str, object]:
    path = f"{store.path}/{source.path}".rstrip("/")
    return {"components": ["libfuse", choose_cache(spec), "attr_cache", "loopbackfs"], "loopbackfs": {"path": path}}


def _account(spec: MountSpec, source: SourceSpec, store: AzureStore) -> Section:
    adls = isinstance(store, AzureDataLakeStore)
    endpoint = store.dfs_url if isinstance(store, AzureDataLakeStore) else store.blob_url
    if not store.container:
        raise ConfigError(
            f"cannot mount store '{source.store_name}' of mount '{spec.name}': it names no container",
            hint=f"add {'filesystem' if adls else 'container_name'} to the store",
        )
    made: Section = {
        "type": "adls" if adls else "block",
        "account-name": store.account_name,
        "container": store.container,
        "endpoint": endpoint,
        "use-http": endpoint.startswith("http://"),
    }
    return made | ({"subdirectory": source.path} if source.path else {}) | _behaviour(spec)


def _behaviour(spec: MountSpec) -> Section:
    return {
        "virtual-directory": True,
        "max-results-for-list": LIST_PAGE,
        "max-concurrency": 32,
        "block-size-mb": 0,
        "tier": "none",
        "max-retries": 5,
        "max-retry-timeout-sec": READ_TRY_S if spec.read_only else WRITE_TRY_S,
        "retry-backoff-sec": 1 if spec.read_only else 4,
        "max-retry-delay-sec": 10 if spec.read_only else 60,
        "fail-unsupported-op": False,
    }


def _login(spec: MountSpec, store: AzureStore, secrets: Reveal | None, env: Mapping[str, str]) -> Section:
    match store.credentials:
        case AccountKey(account_key=key):
            return {"mode": "key", "account-key": _value(key, secrets)}
        case SasToken(sas_token=sas):
            return {"mode": "sas", "sas": _value(sas, secrets).removeprefix("?")}
        case ConnectionString(connection_string=text):
            return _from_connection_string(spec, text, secrets)
        case ServicePrincipal() as principal:
            return _principal(principal, secrets)
        case ManagedIdentity(managed_identity=identity):
            return _managed(identity.client_id, env)
        case AzureCli():
            return {"mode": "azcli"}
        case WorkloadIdentity(workload_identity=identity):
            return _federated(spec, identity.client_id, env)
        case Anonymous():
            # blobfuse2 has no such mode; with an empty signature 2.5.6 sends neither token nor header (tried).
            return {"mode": "sas", "sas": "?"}
    return _managed(None, env)


def _managed(client_id: str | None, env: Mapping[str, str]) -> Section:
    # On an Azure ML compute instance the answer without a client id is the logged-in user's token.
    identity = client_id or env.get("DEFAULT_IDENTITY_CLIENT_ID")
    return {"mode": "msi", "appid": identity} if identity else {"mode": "msi"}


def _principal(principal: ServicePrincipal, secrets: Reveal | None) -> Section:
    made: Section = {
        "mode": "spn",
        "tenantid": principal.tenant_id,
        "clientid": principal.client_id,
        "clientsecret": _value(principal.client_secret, secrets),
    }
    return made | ({"aadendpoint": principal.authority_url} if principal.authority_url else {})


def _federated(spec: MountSpec, client_id: str | None, env: Mapping[str, str]) -> Section:
    """The three variables are those the Azure workload identity webhook sets in a pod."""
    found = {"tenantid": env.get("AZURE_TENANT_ID"), "clientid": client_id or env.get("AZURE_CLIENT_ID")}
    token = env.get("AZURE_FEDERATED_TOKEN_FILE")
    if not token or not all(found.values()):
        raise ConfigError(
            f"cannot use workload identity for mount '{spec.name}': AZURE_TENANT_ID, AZURE_CLIENT_ID and "
            "AZURE_FEDERATED_TOKEN_FILE are not all set",
            hint="they are set in pods with the label azure.workload.identity/use; elsewhere use other credentials",
        )
    return {"mode": "spn", **found, "oauth-token-path": token}


def _from_connection_string(spec: MountSpec, reference: SecretRef, secrets: Reveal | None) -> Section:
    if secrets is None:
        return {"mode": "key", "account-key": MASK}
    parts = dict(part.split("=", 1) for part in secrets(reference).split(";") if "=" in part)
    if "AccountKey" in parts:
        return {"mode": "key", "account-key": parts["AccountKey"]}
    if "SharedAccessSignature" in parts:
        return {"mode": "sas", "sas": parts["SharedAccessSignature"]}
    raise ConfigError(
        f"cannot use the connection string of mount '{spec.name}': it has neither AccountKey nor SharedAccessSignature",
        hint="copy it again from the portal: Access keys, Connection string",
    )


def _value(reference: SecretRef, secrets: Reveal | None) -> str:
    return MASK if secrets is None else secrets(reference)


def reveal_override(value: object, secrets: Reveal | None) -> object:
    """Return a value of the user's blobfuse2 settings; one that is a reference to a secret is looked up."""
    return _value(SecretRef.model_validate(dict(value)), secrets) if isinstance(value, Mapping) else value
