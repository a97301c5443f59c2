"""Tells the kinds of file apart and hands each to its reader.

A blobfuse2 file and a datastore are YAML mappings that differ by their keys; everything else is taken as fstab.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amlmount.blobfuse2.table import SECTION_KEYS, find, suggest_section
from amlmount.config.documents import Document, parse_document
from amlmount.config.store_models import STORE_TYPES, UNSUPPORTED_TYPES
from amlmount.errors import ConfigError
from amlmount.importer.finding import Finding
from amlmount.importer.vault import Vault


@dataclass(slots=True)
class Draft:
    """What one file becomes: sections of the new configuration, and what there is to say."""

    stores: dict[str, dict[str, Any]] = field(default_factory=dict)
    mounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_source(path: Path, vault: Vault, target: str | None) -> Draft:
    """Return what `path` becomes. Raises ConfigError when it is no kind of file that can be imported."""
    from amlmount.importer import blobfuse2_file, datastore, fstab

    text = read_text(path)
    if fstab.looks_like(text):
        return fstab.read(path, text, vault)
    document = parse_document(text, str(path))
    if looks_like_datastore(document):
        return datastore.read(path, document, vault)
    if looks_like_blobfuse2(document):
        return blobfuse2_file.read(path, document, vault, target)
    raise ConfigError(
        f"cannot import '{path}': it is no blobfuse2 configuration, fstab or Azure ML datastore",
        hint="a blobfuse2 file has sections such as azstorage:, a datastore has type: and account_name:",
    )


def read_text(path: Path) -> str:
    """Return the text of a file to import. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot import '{path}': {error.strerror}", hint="check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"cannot import '{path}': it is not UTF-8 text",
            hint="an encrypted file is decrypted with `blobfuse2 secure decrypt`",
        ) from None


def looks_like_datastore(document: Document) -> bool:
    """Tell an Azure ML datastore YAML by its type."""
    return document.data.get("type") in (*STORE_TYPES, *UNSUPPORTED_TYPES)


def looks_like_blobfuse2(document: Document) -> bool:
    """Tell a blobfuse2 configuration by one key or section it has, or nearly has."""
    names = [str(name).lower() for name in document.data]
    return any(name in SECTION_KEYS or find("", name) or suggest_section(name) in SECTION_KEYS for name in names)
