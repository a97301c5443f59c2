"""The storage section of a blobfuse2 file becomes a store of ours, its login a reference.

What blobfuse2 guesses when nothing is said (kind of account, kind of login) is decided here the same way.
"""

from collections.abc import Callable
from typing import Any

from amlmount.importer.cleaning import Cleaner, Settings
from amlmount.importer.finding import Finding
from amlmount.importer.vault import Vault

_PUBLIC = "core.windows.net"
# component/azstorage/utils.go, autoDetectAuthMode: in this order.
_GUESSES = (("appid", "msi"), ("resid", "msi"), ("objid", "msi"), ("account-key", "key"), ("sas", "sas"))


def store_of(cleaner: Cleaner, name: str, vault: Vault) -> dict[str, Any]:
    """Return the store that azstorage describes; what cannot be kept is told to `cleaner.findings`."""
    settings = {key.partition(".")[2]: value for key, value in cleaner.settings.items() if key.startswith("azstorage.")}
    adls = _is_adls(cleaner, settings)
    container = {"filesystem" if adls else "container_name": settings.get("container")}
    store: dict[str, Any] = {
        "type": "azure_data_lake_gen2" if adls else "azure_blob",
        "account_name": settings.get("account-name", ""),
        **{key: value for key, value in container.items() if value and "mountall" not in _sections(cleaner)},
        **_endpoint(settings),
    }
    return store | {"credentials": _credentials(cleaner, settings, name, vault)}


def _sections(cleaner: Cleaner) -> set[str]:
    return {key.partition(".")[0] for key in cleaner.settings}


def _is_adls(cleaner: Cleaner, settings: Settings) -> bool:
    if "type" not in settings and "use-adls" not in settings:
        what = "azstorage.type is missing: blobfuse2 asks the account, and takes an emulator for a hierarchical one"
        cleaner.findings.append(Finding(cleaner.where("azstorage"), what, "azure_blob"))
    return bool(settings.get("use-adls", str(settings.get("type")).lower() == "adls"))


def _endpoint(settings: Settings) -> dict[str, Any]:
    endpoint = str(settings.get("endpoint", ""))
    if not endpoint:
        return {"protocol": "http"} if settings.get("use-http") else {}
    scheme, _, rest = endpoint.rpartition("://")
    host = rest.rstrip("/")
    for service in ("blob", "dfs"):
        before = f"{settings.get('account-name')}.{service}."
        if host.startswith(before) and "/" not in host and scheme in ("", "https"):
            domain = host.removeprefix(before)
            return {} if domain == _PUBLIC else {"endpoint": domain}
    return {"endpoint": f"{scheme or ('http' if settings.get('use-http') else 'https')}://{host}"}


def _mode(settings: Settings) -> str:
    said = str(settings.get("mode", "")).lower()
    spn = "spn" if settings.get("clientid") else "msi"
    return said or next((mode for key, mode in _GUESSES if settings.get(key)), spn)


def _credentials(cleaner: Cleaner, settings: Settings, name: str, vault: Vault) -> dict[str, Any]:
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "key": lambda: _secret(cleaner, settings, vault, (name, "account_key", "account-key")),
        "sas": lambda: _secret(cleaner, settings, vault, (name, "sas_token", "sas")),
        "spn": lambda: _principal(cleaner, settings, name, vault),
        "msi": lambda: _managed(cleaner, settings),
        "azcli": lambda: {"azure_cli": {}},
        "workloadidentity": lambda: _federated(cleaner, settings),
    }
    return makers[_mode(settings)]()


def _secret(cleaner: Cleaner, settings: Settings, vault: Vault, what: tuple[str, str, str]) -> dict[str, Any]:
    name, ours, theirs = what
    value = settings.get(theirs)
    if value:
        return {ours: vault.keep(name, ours, str(value))}
    variable = {"account-key": "AZURE_STORAGE_ACCESS_KEY", "sas": "AZURE_STORAGE_SAS_TOKEN"}.get(
        theirs, "AMLMOUNT_SECRET"
    )
    note = f"azstorage.{theirs} is not in the file: it came from the environment"
    cleaner.findings.append(Finding(cleaner.where("azstorage"), note, f"read from {variable}"))
    return {ours: {"env": variable}}


def _principal(cleaner: Cleaner, settings: Settings, name: str, vault: Vault) -> dict[str, Any]:
    if settings.get("oauth-token-path") or settings.get("workload-identity-token"):
        return _federated(cleaner, settings)
    login = _secret(cleaner, settings, vault, (name, "client_secret", "clientsecret"))
    ids = {"tenant_id": settings.get("tenantid", ""), "client_id": settings.get("clientid", "")}
    authority = settings.get("aadendpoint")
    return {**ids, **login} | ({"authority_url": authority} if authority else {})


def _managed(cleaner: Cleaner, settings: Settings) -> dict[str, Any]:
    for other in ("resid", "objid"):
        if settings.get(other):
            what = f"azstorage.{other} names the identity, which Azure ML does not take"
            cleaner.findings.append(
                Finding(cleaner.where(f"azstorage.{other}"), what, "write its client id under managed_identity")
            )
    appid = settings.get("appid")
    return {"managed_identity": {"client_id": appid} if appid else {}}


def _federated(cleaner: Cleaner, settings: Settings) -> dict[str, Any]:
    what = "a federated login: tenant and token file are taken from the pod's AZURE_* variables"
    cleaner.findings.append(Finding(cleaner.where("azstorage.mode"), what, "workload_identity"))
    client_id = settings.get("clientid")
    return {"workload_identity": {"client_id": client_id} if client_id else {}}
