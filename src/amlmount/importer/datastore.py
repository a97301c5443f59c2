"""An Azure ML v2 datastore YAML becomes a store; our stores have its fields, so little is left to do.

Its secrets may stand in the file itself, which ours may not.
"""

from pathlib import Path
from typing import Any

from amlmount.config.documents import Document
from amlmount.config.store_models import UNSUPPORTED_TYPES
from amlmount.errors import ConfigError
from amlmount.importer.draft import Draft
from amlmount.importer.finding import Finding
from amlmount.importer.naming import store_name
from amlmount.importer.safety import secret_findings
from amlmount.importer.vault import Vault

_SECRETS = ("account_key", "sas_token", "client_secret", "connection_string")


def read(path: Path, document: Document, vault: Vault) -> Draft:
    """Return the store of a datastore file. Raises ConfigError for a type that cannot be mounted."""
    data = dict(document.data)
    kind = str(data["type"])
    if kind in UNSUPPORTED_TYPES:
        raise ConfigError(f"cannot import '{path}': type {kind} cannot be mounted", hint=UNSUPPORTED_TYPES[kind])
    draft = Draft()
    name = store_name(str(data.get("name") or data.get("container_name") or data.get("filesystem") or path.stem))
    credentials = data.get("credentials")
    if isinstance(credentials, dict):
        data["credentials"] = _credentials(name, path, document, credentials, vault, draft)
    draft.stores[name] = data
    draft.findings.append(Finding(str(path), "a datastore says nothing of where to mount", f"add a mount of {name}"))
    return draft


def _credentials(
    name: str, path: Path, document: Document, credentials: dict[str, Any], vault: Vault, draft: Draft
) -> dict[str, Any]:
    inline = [key for key in _SECRETS if isinstance(credentials.get(key), str)]
    kept = {key: vault.keep(name, key, credentials[key]) for key in inline}
    if inline:
        place = document.places.get(("credentials", inline[0]))
        draft.findings += secret_findings(path, f"{place or path}", " and ".join(inline))
    return {**credentials, **kept}
