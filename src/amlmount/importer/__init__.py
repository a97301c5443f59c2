"""From what users have (blobfuse2 files, fstab lines, `mount all` files, Azure ML datastores) to our configuration.

Nothing is printed and nothing is written but the files of secrets somebody asked for; a secret is never in the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amlmount.config.documents import parse_document
from amlmount.config.load import config_from
from amlmount.errors import ConfigError
from amlmount.importer.draft import Draft
from amlmount.importer.finding import Finding
from amlmount.importer.sources import read_source
from amlmount.importer.vault import Vault

__all__ = ["Finding", "Imported", "import_files"]


@dataclass(frozen=True, slots=True)
class Imported:
    """The new configuration as YAML, what was found wrong or was changed, and the files secrets went to."""

    text: str
    findings: tuple[Finding, ...]
    secret_files: tuple[Path, ...]


def import_files(
    paths: Sequence[Path], *, secrets_dir: Path | None = None, target: str | None = None, dry_run: bool = False
) -> Imported:
    """Return the configuration that does what the files did. Raises ConfigError for a file that is none of the kinds.

    With `secrets_dir` each secret goes to a file of its own there (directory 0700, files 0600), and the
    configuration refers to it; without, it refers to environment variables that are still to be set. `target` is
    where the mounts go: the folder itself for one, the folder above for several. `dry_run` writes nothing.
    """
    vault = Vault(secrets_dir)
    drafts = [read_source(path, vault, target) for path in paths]
    if target is not None and len(paths) > 1:
        _set_apart(drafts, target)
    data, renamed = _joined(drafts)
    text = _text(paths, data)
    _check(text)
    written = () if dry_run else vault.write()
    findings = [finding for draft in drafts for finding in draft.findings]
    return Imported(text, (*findings, *renamed, *vault.findings), written)


def _set_apart(drafts: Sequence[Draft], target: str) -> None:
    for draft in drafts:
        for name, mount in draft.mounts.items():
            if mount["target"] == target:
                mount["target"] = f"{target.rstrip('/')}/{name}"


def _joined(drafts: Sequence[Draft]) -> tuple[dict[str, Any], list[Finding]]:
    data: dict[str, Any] = {"stores": {}, "mounts": {}, "cache": {}}
    findings: list[Finding] = []
    for draft in drafts:
        names = {name: _add(data["stores"], name, store, findings) for name, store in draft.stores.items()}
        for name, mount in draft.mounts.items():
            renamed = _with_stores_renamed(mount, names)
            free = _add(data["mounts"], name, renamed, findings)
            if free != name and renamed["target"].endswith(f"/{name}"):
                renamed["target"] = f"{renamed['target'].removesuffix(name)}{free}"
        data["cache"] = draft.cache | data["cache"]
    return {section: value for section, value in data.items() if value}, findings


def _add(section: dict[str, Any], name: str, value: dict[str, Any], findings: list[Finding]) -> str:
    free = name
    number = 2
    while free in section and section[free] != value:
        free, number = f"{name}-{number}", number + 1
    if free != name:
        findings.append(Finding(name, "two things have this name", f"the second is called {free}"))
    section[free] = value
    return free


def _with_stores_renamed(mount: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    source = mount["source"]
    if isinstance(source, str):
        return {**mount, "source": names[source]}
    return {**mount, "source": {**source, "store": names[source["store"]]}}


def _text(paths: Sequence[Path], data: Mapping[str, Any]) -> str:
    import yaml

    names = ", ".join(ascii(path.name)[1:-1] for path in paths)
    body = yaml.safe_dump(data, sort_keys=False, width=110, allow_unicode=True)
    return f"# Imported from {names} by `amlmount import`.\n{body}"


def _check(text: str) -> None:
    """A result that does not load is better said here than at the next `up`."""
    try:
        config_from(parse_document(text, "the result").data)
    except ConfigError as error:
        raise ConfigError(
            f"cannot import: the result would not load: {error.message}",
            hint=f"correct the value in the file that was imported; {error.hint or 'it comes from there'}",
        ) from None
