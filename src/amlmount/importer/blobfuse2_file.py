"""A blobfuse2 configuration, for one container or for `mount all`, becomes a store and a mount.

The mount path is not in the file; it is an argument of blobfuse2's command line.
"""

from pathlib import Path
from typing import Any

from amlmount.blobfuse2.table import TABLE
from amlmount.config.documents import Document
from amlmount.errors import ConfigError
from amlmount.importer.cleaning import Cleaner
from amlmount.importer.draft import Draft
from amlmount.importer.finding import Finding
from amlmount.importer.naming import store_name
from amlmount.importer.options import is_mount_all, options_of
from amlmount.importer.safety import cache_finding, secret_findings
from amlmount.importer.stores import store_of
from amlmount.importer.vault import Vault


def read(path: Path, document: Document, vault: Vault, target: str | None, *, mount_all: bool = False) -> Draft:
    """Return what a blobfuse2 file becomes. Raises ConfigError if it does not say which account."""
    cleaner = Cleaner(path, document)
    if "azstorage.account-name" not in cleaner.settings:
        raise ConfigError(
            f"cannot import '{path}': it has no azstorage.account-name",
            hint="it may come from AZURE_STORAGE_ACCOUNT: write it into the file and import again",
        )
    every = mount_all or is_mount_all(cleaner.settings)
    container = cleaner.settings.get("azstorage.container")
    name = store_name(str(cleaner.settings["azstorage.account-name"] if every else container))
    if every:
        cleaner.settings.pop("azstorage.container", None)
    draft = Draft(stores={name: store_of(cleaner, name, vault)}, findings=cleaner.findings)
    draft.mounts[name] = {"target": _target(path, draft, target, name), "source": _source(cleaner, name, every)}
    draft.mounts[name] |= options_of(cleaner)
    _keep_customer_key(cleaner, draft.mounts[name], name, vault)
    draft.cache = _cache(cleaner)
    _tell_secrets(path, cleaner, every)
    return draft


def _target(path: Path, draft: Draft, target: str | None, name: str) -> str:
    if target is None:
        what = "a blobfuse2 file does not say where to mount; that was an argument of the command"
        draft.findings.append(Finding(str(path), what, f"target: /mnt/{name}; change it, or import with --target DIR"))
    return target or f"/mnt/{name}"


def _source(cleaner: Cleaner, name: str, every: bool) -> str | dict[str, Any]:
    settings = cleaner.settings
    prefix = str(settings.get("azstorage.subdirectory", "")).strip("/")
    if not every:
        return {"store": name, "path": prefix} if prefix else name
    allow, deny = settings.get("mountall.container-allowlist"), settings.get("mountall.container-denylist")
    if allow and deny:
        where = cleaner.where("mountall.container-denylist")
        cleaner.findings.append(Finding(where, "blobfuse2 ignores the denylist beside an allowlist", "both count"))
    lists = {"allow": allow, "deny": deny}
    chosen = {key: list(value) for key, value in lists.items() if value}
    return {"store": name, "containers": chosen}


def _keep_customer_key(cleaner: Cleaner, mount: dict[str, Any], name: str, vault: Vault) -> None:
    for key in ("cpk-encryption-key", "cpk-encryption-key-sha256"):
        value = cleaner.settings.get(f"azstorage.{key}")
        if value and cleaner.settings.get("azstorage.cpk-enabled"):
            mount["blobfuse2"]["azstorage"][key] = vault.keep(name, key, str(value))


def _cache(cleaner: Cleaner) -> dict[str, Any]:
    for section in ("file_cache", "block_cache", "xload"):
        directory = cleaner.settings.get(f"{section}.path")
        if not directory:
            continue
        found = cache_finding(cleaner.where(f"{section}.path"), str(directory))
        if found is None:
            return {"root": str(directory)}
        cleaner.findings.append(found)
    return {}


def _tell_secrets(path: Path, cleaner: Cleaner, every: bool) -> None:
    secrets = [key for key in TABLE.values() if key.secret and cleaner.settings.get(key.path)]
    for key in secrets:
        cleaner.findings += secret_findings(path, cleaner.where(key.path), key.path)
    if secrets and every:
        what = (
            "`blobfuse2 mount all` has left copies of this file, readable by everybody, in ~/.blobfuse2/config_*.yaml"
        )
        cleaner.findings.append(Finding(str(path), what, "amlmount makes none; delete those (root's, too)"))
