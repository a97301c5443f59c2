"""Tells the kinds of file apart and hands each to its reader.

A blobfuse2 file and a datastore are YAML mappings that differ by their keys; everything else is taken as fstab.
"""

from pathlib import Path

from amlmount.blobfuse2.table import SECTION_KEYS, find, suggest_section
from amlmount.config.documents import Document, parse_document
from amlmount.config.store_models import STORE_TYPES, UNSUPPORTED_TYPES
from amlmount.errors import ConfigError
from amlmount.importer import blobfuse2_file, datastore, fstab
from amlmount.importer.draft import Draft, read_text
from amlmount.importer.vault import Vault


def read_source(path: Path, vault: Vault, target: str | None) -> Draft:
    """Return what `path` becomes. Raises ConfigError when it is no kind of file that can be imported."""
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


def looks_like_datastore(document: Document) -> bool:
    """Tell an Azure ML datastore YAML by its type."""
    return document.data.get("type") in (*STORE_TYPES, *UNSUPPORTED_TYPES)


def looks_like_blobfuse2(document: Document) -> bool:
    """Tell a blobfuse2 configuration by one key or section it has, or nearly has."""
    names = [str(name).lower() for name in document.data]
    return any(name in SECTION_KEYS or find("", name) or suggest_section(name) in SECTION_KEYS for name in names)
