"""The whole table of blobfuse2's keys, and the ways to look one up.

Names are compared as blobfuse2 does: case does not matter, hyphen and underscore do.
"""

import difflib

from amlmount.blobfuse2 import cache_keys, metadata_keys, mount_keys, storage_keys
from amlmount.blobfuse2.key import Key

SECTION_KEYS: dict[str, tuple[Key, ...]] = {
    "": mount_keys.TOP,
    "logging": mount_keys.LOGGING,
    "libfuse": mount_keys.LIBFUSE,
    "entry_cache": metadata_keys.ENTRY_CACHE,
    "file_cache": cache_keys.FILE_CACHE,
    "block_cache": cache_keys.BLOCK_CACHE,
    "xload": cache_keys.XLOAD,
    "stream": metadata_keys.STREAM,
    "attr_cache": metadata_keys.ATTR_CACHE,
    "loopbackfs": metadata_keys.LOOPBACKFS,
    "azstorage": storage_keys.AZSTORAGE,
    "mountall": mount_keys.MOUNTALL,
    "health_monitor": mount_keys.HEALTH_MONITOR,
}
TABLE: dict[str, Key] = {key.path: key for keys in SECTION_KEYS.values() for key in keys}
SECRET_PATHS = frozenset(path for path, key in TABLE.items() if key.secret)


def find(section: str, name: str) -> Key | None:
    """Return the key `name` of `section` (`""` = top level), or None."""
    path = f"{section}.{name}" if section else name
    return TABLE.get(path.lower())


def suggest(section: str, name: str) -> str | None:
    """Return the path of the key that was probably meant: the same name elsewhere, or the nearest spelling."""
    lowered = name.lower().replace("_", "-")
    if lowered != name and find(section, lowered):
        return f"{section}.{lowered}" if section else lowered
    here = [key.name for key in SECTION_KEYS.get(section, ())]
    near = difflib.get_close_matches(lowered, here, n=1, cutoff=0.72)
    if near:
        return f"{section}.{near[0]}" if section else near[0]
    elsewhere = [key.path for key in TABLE.values() if key.name == lowered and key.status == "current"]
    return elsewhere[0] if elsewhere else None


def suggest_section(name: str) -> str | None:
    """Return the section, or else the top-level key, that was probably meant by `name`."""
    lowered = name.lower().replace("-", "_")
    candidates = [section for section in SECTION_KEYS if section]
    near = difflib.get_close_matches(lowered, candidates, n=1, cutoff=0.7)
    return near[0] if near else suggest("", name)
