"""What must hold between keys: blobfuse2 refuses some of it late and with few words, the rest it takes and misbehaves.

A rule looks at a whole configuration (sections as mappings) and returns problems; it is silent about absent parts.
"""

from collections.abc import Callable, Mapping

from amlmount.blobfuse2.problem import Problem
from amlmount.blobfuse2.table import TABLE

Config = Mapping[str, object]
DATA_CACHES = ("file_cache", "block_cache", "xload", "stream")
# internal/component.go: priorities must not increase along the pipeline.
PRIORITY = {"libfuse": 1000, **dict.fromkeys(("entry_cache", *DATA_CACHES), 500), "attr_cache": 300, "azstorage": 100}
PRIORITY["loopbackfs"] = 100
MODE_KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "key": (("account-key",),),
    "sas": (("sas",),),
    "spn": (("tenantid",), ("clientid",), ("clientsecret", "oauth-token-path", "workload-identity-token")),
    "workloadidentity": (("tenantid",), ("clientid",), ("appid",)),
}
DEFAULT_BLOCK_MB = 16


def check_rules(config: Config) -> list[Problem]:
    """Return every broken rule of `config`, which may be part of a configuration."""
    return [problem for rule in _RULES for problem in rule(config)]


def get(config: Config, path: str) -> object:
    """Return the value at `section.name` or at top-level `name`, None when it is not there."""
    section, _, name = path.rpartition(".")
    inside = config.get(section) if section else config
    return inside.get(name) if isinstance(inside, Mapping) else None


def components(config: Config) -> tuple[str, ...]:
    """Return the pipeline as listed; empty when it is not."""
    listed = config.get("components")
    return tuple(str(item).lower() for item in listed) if isinstance(listed, list | tuple) else ()


def _number(config: Config, path: str) -> float | None:
    value = get(config, path)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _set(value: object) -> bool:
    return value is not None and value is not False and value != ""


def _conflicts(config: Config) -> list[Problem]:
    pairs = {frozenset((key.path, other)) for key in TABLE.values() for other in key.conflicts}
    broken = [sorted(pair) for pair in pairs if all(_set(get(config, path)) for path in pair)]
    return [
        Problem(path, f"cannot be used together with {other}", "keep one of them") for path, other in sorted(broken)
    ]


def _pipeline(config: Config) -> list[Problem]:
    listed = components(config)
    if not listed:
        return []
    found = []
    caches = [name for name in listed if name in DATA_CACHES]
    if len(caches) > 1:
        found.append(Problem("components", f"{' and '.join(caches)} exclude each other", "keep one of them"))
    ranks = [PRIORITY[name] for name in listed if name in PRIORITY]
    if ranks != sorted(ranks, reverse=True):
        order = ", ".join(sorted(listed, key=lambda name: -PRIORITY.get(name, 0)))
        found.append(Problem("components", "are out of order", f"write them as {order}"))
    if len(set(listed)) != len(listed):
        found.append(Problem("components", "name one twice"))
    if "libfuse" not in listed:
        found.append(Problem("components", "lack libfuse: blobfuse2 exits with 0 and nothing is mounted"))
    if not {"azstorage", "loopbackfs"} & set(listed):
        found.append(Problem("components", "lack azstorage: there is no store behind the mount"))
    return found


def _read_only_needed(config: Config) -> list[Problem]:
    if config.get("read-only") is not False:
        return []
    listed = components(config)
    found = [Problem(name, "works on read-only mounts only") for name in ("entry_cache", "xload") if name in listed]
    if _set(get(config, "azstorage.filter")):
        found.append(Problem("azstorage.filter", "works on read-only mounts only"))
    return found


def _owner_pair(config: Config) -> list[Problem]:
    uid, gid = get(config, "libfuse.uid"), get(config, "libfuse.gid")
    if (uid is None) == (gid is None):
        return []
    missing = "gid" if gid is None else "uid"
    return [Problem(f"libfuse.{missing}", "is missing: with only one of uid and gid the other one becomes 0")]


def _proxy(config: Config) -> list[Problem]:
    only_http = _set(get(config, "azstorage.http-proxy")) and not _set(get(config, "azstorage.https-proxy"))
    if only_http and get(config, "azstorage.use-http") is not True:
        return [Problem("azstorage.http-proxy", "needs `use-http: true`", "use https-proxy for https")]
    return []


def _customer_key(config: Config) -> list[Problem]:
    if get(config, "azstorage.cpk-enabled") is not True:
        return []
    parts = ("azstorage.cpk-encryption-key", "azstorage.cpk-encryption-key-sha256")
    return [Problem(path, "is missing, and cpk-enabled needs it") for path in parts if not _set(get(config, path))]


def _credentials(config: Config) -> list[Problem]:
    mode = get(config, "azstorage.mode")
    if not isinstance(mode, str):
        return []
    found = []
    if mode != mode.lower():
        found.append(Problem("azstorage.mode", f"{mode!r}: a SAS is reloaded only if it is written in lower case"))
    for group in MODE_KEYS.get(mode.lower(), ()):
        if not any(_set(get(config, f"azstorage.{name}")) for name in group):
            found.append(Problem(f"azstorage.{group[0]}", f"is missing, and mode {mode} needs {' or '.join(group)}"))
    return found


def _acl(config: Config) -> list[Problem]:
    if get(config, "azstorage.honour-acl") is True and not _set(get(config, "azstorage.objid")):
        return [Problem("azstorage.honour-acl", "needs mode msi and objid")]
    return []


def _block_cache(config: Config) -> list[Problem]:
    prefetch = _number(config, "block_cache.prefetch")
    if prefetch is None:
        return []
    if 0 < prefetch <= 10:
        return [Problem("block_cache.prefetch", f"{prefetch:g} is refused by blobfuse2", "0 for none, or 11 and more")]
    memory = _number(config, "block_cache.mem-size-mb")
    needed = (_number(config, "block_cache.block-size-mb") or DEFAULT_BLOCK_MB) * prefetch
    if memory is not None and needed > memory:
        return [
            Problem("block_cache.mem-size-mb", f"{memory:g} is too little for block-size-mb x prefetch = {needed:g}")
        ]
    return []


def _thresholds(config: Config) -> list[Problem]:
    high, low = _number(config, "file_cache.high-threshold"), _number(config, "file_cache.low-threshold")
    if high is not None and low is not None and low >= high:
        return [Problem("file_cache.low-threshold", f"{low:g} is not below high-threshold {high:g}")]
    return []


def _refresh(config: Config) -> list[Problem]:
    if _number(config, "file_cache.refresh-sec") and get(config, "attr_cache.timeout-sec") != 0:
        return [Problem("file_cache.refresh-sec", TABLE["file_cache.refresh-sec"].warn, severity="warning")]
    return []


_RULES: tuple[Callable[[Config], list[Problem]], ...] = (
    _pipeline,
    _conflicts,
    _read_only_needed,
    _owner_pair,
    _proxy,
    _customer_key,
    _credentials,
    _acl,
    _block_cache,
    _thresholds,
    _refresh,
)
