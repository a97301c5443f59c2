"""The rest of a blobfuse2 file becomes the options of a mount: what it is for, who owns it, and what stays special.

A setting equal to blobfuse2's default is not carried over: what the profile chooses is meant to be better.
"""

from collections.abc import Mapping
from typing import Any

from amlmount.blobfuse2.rules import DATA_CACHES
from amlmount.blobfuse2.table import TABLE
from amlmount.importer.cleaning import Cleaner, Settings, nested
from amlmount.importer.finding import Finding

# Longer, and a replaced blob is read cut or padded for so long.
LONGEST_ATTR_CACHE_S = 300
_V1 = {
    "file_cache.file-cache-timeout-in-seconds": "file_cache.timeout-sec",
    "attr_cache.max-files": "",
    "attr_cache.cache-on-list": "",
    "file_cache.empty-dir-check": "",
}
# Decided here or by the profile; said, if there is something to say, by a finding.
_DROPPED = ("logging.type", "logging.max-file-size-mb", "logging.file-count", "logging.compress", "lazy-write")


def options_of(cleaner: Cleaner) -> dict[str, Any]:
    """Return the options of the mount; traps in the file are told to `cleaner.findings`."""
    settings = dict(cleaner.settings)
    for trap in (_logging, _staleness, _leftovers, _lazy_write, _kernel_cache, _writeback, _own_times, _bad_ideas):
        trap(cleaner, settings)
    cache = _cache(cleaner, settings)
    return {
        "read_only": settings.get("read-only") is True or cache == "xload",
        **_purpose(cache, settings),
        **_owner(settings),
        **_overrides(settings, cache),
    }


def _say(cleaner: Cleaner, key: str, what: str, change: str) -> None:
    cleaner.findings.append(Finding(cleaner.where(key), what, change))


def _logging(cleaner: Cleaner, settings: Settings) -> None:
    level = str(settings.get("logging.level", "")).lower()
    if level in ("log_debug", "log_trace"):
        what = f"{level} fills the disk"
        what += ", and writes the SAS in clear at every rename" if level == "log_debug" else ""
        _say(cleaner, "logging.level", what, "warnings only; `amlmount logs` shows them")
        del settings["logging.level"]
    for name in _DROPPED:
        if name.startswith("logging."):
            settings.pop(name, None)


def _staleness(cleaner: Cleaner, settings: Settings) -> None:
    timeout_s = settings.get("attr_cache.timeout-sec", 0)
    if timeout_s > LONGEST_ATTR_CACHE_S:
        what = f"attributes are believed for {timeout_s} s: a blob replaced elsewhere is read cut, or padded with zeros"
        _say(cleaner, "attr_cache.timeout-sec", what, "the times of the profile")
        del settings["attr_cache.timeout-sec"]


def _leftovers(cleaner: Cleaner, settings: Settings) -> None:
    for key in ("file_cache.allow-non-empty-temp", "file_cache.cleanup-on-start", "cleanup-on-start"):
        if settings.pop(key, False):
            what = TABLE["file_cache." + key.rpartition(".")[2]].warn
            _say(cleaner, key, what, "unsent files are set aside and uploaded before the next mount")


def _lazy_write(cleaner: Cleaner, settings: Settings) -> None:
    if settings.pop("lazy-write", False):
        settings["(durability)"] = "journal"
        _say(cleaner, "lazy-write", TABLE["lazy-write"].warn, "durability: journal, which keeps the bytes on disk")


def _kernel_cache(cleaner: Cleaner, settings: Settings) -> None:
    names = ("disable-kernel-cache", "direct-io", "libfuse.direct-io")
    found = [name for name in names if settings.pop(name, False)]
    if found:
        settings["(profile)"] = "fresh"
        _say(cleaner, found[0], "the page cache is off to see changes: shared mmap fails", "profile: fresh")


def _writeback(cleaner: Cleaner, settings: Settings) -> None:
    if not settings.pop("libfuse.disable-writeback-cache", False):
        what = "the kernel's writeback cache is on: what others change is not seen, what a crash meets is lost"
        _say(cleaner, "libfuse", what, "off, but for block_cache that is written to")
    settings.pop("libfuse.ignore-open-flags", None)


def _own_times(cleaner: Cleaner, settings: Settings) -> None:
    for old, new in _V1.items():
        value = settings.pop(old, None)
        if value is not None:
            _say(cleaner, old, f"{old} is a name of blobfuse v1", f"{new or 'left out'}")
        if value is not None and new:
            settings.setdefault(new, value)


def _bad_ideas(cleaner: Cleaner, settings: Settings) -> None:
    for path in [path for path, value in settings.items() if value and path in TABLE and TABLE[path].warn]:
        _say(cleaner, path, f"{path}: {TABLE[path].warn}", "left out")
        del settings[path]


def _cache(cleaner: Cleaner, settings: Settings) -> str:
    listed = [str(name).lower() for name in settings.get("components", ())]
    flags = {"block-cache": "block_cache", "preload": "xload", "streaming": "stream"}
    named = [name for name in DATA_CACHES if name in listed]
    named += [name for flag, name in flags.items() if settings.pop(flag, False)]
    cache = named[0] if named else "file_cache"
    if cache == "stream":
        _say(cleaner, "components", "stream is deprecated: blobfuse2 maps it to block_cache", "block_cache")
        return "block_cache"
    if cache == "block_cache" and "block_cache.mem-size-mb" not in settings:
        what = "block_cache.mem-size-mb is missing: every mount takes 60 % of the memory"
        _say(cleaner, "block_cache", what, "a size is always given")
    return cache


def _purpose(cache: str, settings: Settings) -> dict[str, Any]:
    by_cache = {"block_cache": "stream", "xload": "epochs"}
    profile = settings.get("(profile)", by_cache.get(cache))
    chosen = {"profile": profile} if profile else {}
    writes = settings.get("read-only") is not True and cache != "xload"
    return chosen | ({"durability": "journal"} if writes and "(durability)" in settings else {})


def _owner(settings: Settings) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if "libfuse.uid" in settings or "libfuse.gid" in settings:
        made["owner"] = f"{settings.get('libfuse.uid', 0)}:{settings.get('libfuse.gid', 0)}"
    if "libfuse.umask" in settings:
        made["umask"] = f"{int(settings['libfuse.umask']):04d}"
    if mode := settings.get("libfuse.default-permission"):
        made |= {"file_mode": _mode(mode), "dir_mode": _mode(mode)}
    return made | ({"allow_other": settings["allow-other"]} if "allow-other" in settings else {})


def _mode(mode: int | str) -> str:
    return f"{mode:04o}" if isinstance(mode, int) else f"0{mode.lstrip('0o')}"


def _overrides(settings: Settings, cache: str) -> dict[str, Any]:
    in_use = ("", "logging", "libfuse", "azstorage", "attr_cache", "entry_cache", cache)
    kept = {path: value for path, value in settings.items() if _is_special(path, value) and _section(path) in in_use}
    made: dict[str, Any] = nested(kept)
    if cache in ("block_cache", "xload"):
        made.setdefault(cache, {})
    return {"blobfuse2": made} if made else {}


def _section(path: str) -> str:
    return path.rpartition(".")[0]


def _is_special(path: str, value: object) -> bool:
    key = TABLE.get(path)
    if key is None or key.owner or key.secret or key.status != "current" or path in ("components", *_DROPPED):
        return False
    return value != key.default and not key.warn


def is_mount_all(settings: Mapping[str, Any]) -> bool:
    """Tell a file of `mount all`: it has lists of containers, or names none."""
    return any(path.startswith("mountall.") for path in settings) or not settings.get("azstorage.container")
