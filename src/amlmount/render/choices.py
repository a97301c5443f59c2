"""What a profile means for blobfuse2: which data cache, how long anything is believed, how much it may take.

Where blobfuse2's own default loses, mixes or hides data, the safer value stands here with the reason.
"""

from dataclasses import dataclass
from typing import Final

from amlmount.blobfuse2 import unfinished_download_mode
from amlmount.blobfuse2.rules import DATA_CACHES, components
from amlmount.blobfuse2.validate import normalized
from amlmount.config.spec import MountSpec, Policy
from amlmount.errors import ConfigError

Sections = dict[str, object]
MIB: Final = 1 << 20
YEAR_S: Final = 365 * 86400
# Content can be pinned by its copy in the file cache, attributes cannot: a blob replaced while old attributes are
# believed is read cut to the old length, so even a pinned mount asks again after this time.
LONGEST_ATTR_S: Final = 600
ATTR_CACHE_MB: Final = 128
LOG_FILE_MB: Final = 10
LOG_FILES: Final = 3
STREAM_BLOCK_MB: Final = 16
RANDOM_BLOCK_MB: Final = 1
MIN_PREFETCH: Final = 11
MAX_PREFETCH: Final = 64
PARALLELISM: Final = 32


class Octal(int):
    """A file mode: written to YAML with its leading 0."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one instance may take: disk of its cache and memory of its blocks, in bytes."""

    cache_bytes: int
    memory_bytes: int

    @property
    def cache_mb(self) -> int:
        """At least 1: a cache of 0 would be 80 % of the disk."""
        return max(1, self.cache_bytes // MIB)

    @property
    def memory_mb(self) -> int:
        """At least what the smallest pool of blocks needs."""
        return max(16, self.memory_bytes // MIB)


def choose(spec: MountSpec, limits: Limits, *, cache_dir: str, log_path: str | None, work_dir: str | None) -> Sections:
    """Return everything but the storage section. Raises ConfigError for a cache that cannot do what is asked."""
    cache = choose_cache(spec)
    made: Sections = {
        "components": ["libfuse", cache, "attr_cache", "azstorage"],
        "foreground": True,
        "read-only": spec.read_only,
        "allow-other": spec.allow_other,
        "nonempty": True,
        "logging": _logging(log_path),
        "libfuse": _libfuse(spec, cache),
        cache: _CACHES[cache](spec, limits, cache_dir),
        "attr_cache": _attr_cache(spec, cache),
    }
    return made | ({"default-working-dir": work_dir} if work_dir else {})


def choose_cache(spec: MountSpec) -> str:
    """Return the data cache: the one the user's settings name, else the profile's. Raises ConfigError."""
    asked = _asked_cache(spec)
    cache = asked or ("block_cache" if spec.policy.profile in ("stream", "random") else "file_cache")
    if cache == "xload" and not spec.read_only:
        raise ConfigError(
            f"cannot write through xload (preload) in mount '{spec.name}': it is for reading only",
            hint="take the xload section out, or write read_only: true",
        )
    if cache == "block_cache" and not spec.read_only and not asked:
        raise ConfigError(
            f"cannot write through block_cache, which profile '{spec.policy.profile}' uses, in mount '{spec.name}': "
            "it refuses to open most existing blobs for writing, and a crash loses what close() has not committed",
            hint="use profile standard or checkpoint, or ask for it by name: `blobfuse2: {block_cache: {}}`",
        )
    return cache


def _asked_cache(spec: MountSpec) -> str | None:
    overrides = normalized(spec.blobfuse2)
    listed = [name for name in components(overrides) if name in DATA_CACHES]
    named = listed or [name for name in DATA_CACHES if name in overrides and name != "stream"]
    if len(named) > 1:
        raise ConfigError(
            f"cannot use {' and '.join(named)} together in mount '{spec.name}'", hint="keep one of these sections"
        )
    if named == ["stream"]:
        raise ConfigError(
            f"cannot use component stream in mount '{spec.name}': it is deprecated", hint="use block_cache"
        )
    return named[0] if named else None


def _logging(log_path: str | None) -> Sections:
    if log_path is None:
        return {"type": "syslog", "level": "log_warning"}
    return {
        "type": "base",
        "level": "log_warning",
        "file-path": log_path,
        "max-file-size-mb": LOG_FILE_MB,
        "file-count": LOG_FILES,
    }


def _libfuse(spec: MountSpec, cache: str) -> Sections:
    names_s = choose_times(spec.policy).kernel_s
    made: Sections = {
        "default-permission": Octal(unfinished_download_mode(allow_other=False)),
        "attribute-expiration-sec": names_s,
        "entry-expiration-sec": _seconds(spec.policy.entry_timeout_s, names_s),
        "negative-entry-expiration-sec": _seconds(spec.policy.negative_timeout_s, names_s),
        "kernel-list-cache-expiration-sec": _seconds(spec.policy.list_ttl_s, names_s),
        # With the kernel's writeback cache a blob changed elsewhere is never seen, and a crash takes what was written;
        # without it block_cache mixes up concurrent writers of one file.
        "disable-writeback-cache": cache != "block_cache" or spec.read_only,
        "ignore-open-flags": True,
        "max-fuse-threads": 128,
        "uid": spec.ownership.uid,
        "gid": spec.ownership.gid,
    }
    # libfuse knows one mask for files and directories; written in decimal digits, which it reads as octal.
    umask = 0o777 & ~spec.ownership.dir_mode
    return made | ({"umask": int(f"{umask:o}")} if umask else {})


@dataclass(frozen=True, slots=True)
class Times:
    """How long, in seconds, the kernel and attr_cache believe attributes and a local copy is served unasked."""

    kernel_s: int
    attr_cache_s: int
    content_s: int


def choose_times(policy: Policy) -> Times:
    """Share out what the profile promises: the three add up (a copy expires, then its old size must, twice)."""
    promised_s = _seconds(policy.attr_timeout_s, YEAR_S)
    attr_s = min(promised_s // 4, LONGEST_ATTR_S)
    keeps = policy.cache_on_disk and policy.keep_cache
    return Times(attr_s, attr_s, promised_s - 2 * attr_s if keeps else 0)


def _seconds(timeout_s: float, longest_s: int) -> int:
    return int(min(max(timeout_s, 0), longest_s))


def _attr_cache(spec: MountSpec, cache: str) -> Sections:
    # file_cache writes the size and time of its copy into attr_cache's own entry, and downloads by that entry: a
    # replaced blob of which a copy is in use is never seen, for as long as it is in use (seen with 2.5.6).
    believes_copies = cache == "file_cache" and not spec.policy.pinned
    timeout_s = 0 if believes_copies else choose_times(spec.policy).attr_cache_s
    return {"timeout-sec": timeout_s, "no-symlinks": False, "max-size-mb": ATTR_CACHE_MB}


def _file_cache(spec: MountSpec, limits: Limits, cache_dir: str) -> Sections:
    return {
        "path": _path(spec, cache_dir),
        "policy": "lru",
        "timeout-sec": choose_times(spec.policy).content_s,
        "max-size-mb": limits.cache_mb,
        "high-threshold": 80,
        "low-threshold": 60,
        "max-eviction": 5000,
        "create-empty-file": False,
        "allow-non-empty-temp": False,
        "cleanup-on-start": False,
        "policy-trace": False,
        "offload-io": False,
        # blobfuse2's own fsync stores nothing in the container.
        "sync-to-flush": True,
        "ignore-sync": False,
    }


def _block_cache(spec: MountSpec, limits: Limits, cache_dir: str) -> Sections:
    memory_mb = limits.memory_mb
    random = spec.policy.read_ahead_max_bytes == 0
    block_mb = RANDOM_BLOCK_MB if random else max(1, min(STREAM_BLOCK_MB, memory_mb // (MIN_PREFETCH + 2)))
    prefetch = 0 if random else max(MIN_PREFETCH, min(MAX_PREFETCH, memory_mb * 3 // 4 // block_mb))
    made: Sections = {
        "block-size-mb": block_mb,
        "mem-size-mb": memory_mb,
        "prefetch": prefetch,
        "parallelism": PARALLELISM,
        "prefetch-on-open": False,
        "cleanup-on-start": False,
    }
    if not spec.policy.cache_on_disk:
        return made
    on_disk = {
        "disk-size-mb": limits.cache_mb,
        "disk-timeout-sec": choose_times(spec.policy).content_s,
        "consistency": True,
    }
    return {"path": _path(spec, cache_dir)} | made | on_disk


def _xload(spec: MountSpec, limits: Limits, cache_dir: str) -> Sections:
    workers = max(1, min(PARALLELISM, limits.memory_mb // (3 * STREAM_BLOCK_MB)))
    return {
        "path": _path(spec, cache_dir),
        "mode": "preload",
        "block-size-mb": STREAM_BLOCK_MB,
        "workers": workers,
        "pool-size": workers * 3,
        "export-progress": True,
        "validate-md5": False,
        "cleanup-on-start": False,
    }


def _path(spec: MountSpec, path: str) -> str:
    """Return `path` if blobfuse2 takes it as it is: it expands ~ and $NAME, and resolves relative ones by itself."""
    if path.startswith("/") and "$" not in path:
        return path
    raise ConfigError(
        f"cannot use cache directory {path!r} for mount '{spec.name}': blobfuse2 would read another path from it",
        hint="set cache.root to an absolute path without $",
    )


_CACHES = {"file_cache": _file_cache, "block_cache": _block_cache, "xload": _xload}
