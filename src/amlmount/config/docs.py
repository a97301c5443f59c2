"""Writes docs/configuration.md from the models: `python -m amlmount.config.docs > docs/configuration.md`.

A test compares the two, so the text cannot drift from the code.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from amlmount.config.credentials import CREDENTIAL_KINDS, KeyVaultSecret, SecretRef
from amlmount.config.models import (
    CacheConfig,
    ContainerFilter,
    DaemonConfig,
    HealthConfig,
    MetricsConfig,
    Mount,
    MountOptions,
    SourcePart,
)
from amlmount.config.profiles import PROFILE_PURPOSE, PROFILES, PolicyOverrides, policy_field
from amlmount.config.store_models import UNSUPPORTED_TYPES, AzureBlobStore, AzureDataLakeStore, LocalStore

INTRODUCTION = """\
# Configuration

<!-- Generated: python -m amlmount.config.docs > docs/configuration.md -->

```yaml
stores:
  mnist_data:
    type: azure_blob
    account_name: mystorage
    container_name: mnist-data
    credentials: {account_key: {env: MNIST_KEY}}
  labels: {type: local, path: ./labels}
mounts:
  mnist:
    target: /media/aml_data/mnist-data
    source: mnist_data
    profile: epochs
  both:
    target: /media/aml_data/both
    source: [mnist_data, labels]      # one directory per store
cache: {max_size: 80%, keep_free: 10GiB}
```

`amlmount init` writes a commented file to start from, `amlmount config check` says what is wrong with one,
`amlmount config show --origin` shows every value and where it came from, `amlmount config schema` prints a JSON
Schema for editors (`# yaml-language-server: $schema=FILE` in the first line).

## Files

| whose | files, in the order they are merged |
| --- | --- |
| the system's daemon (root) | `/etc/amlmount/amlmount.yaml`, then `/etc/amlmount/conf.d/*.yaml` by name |
| a user's | the same in `$XDG_CONFIG_HOME/amlmount/` (`~/.config/amlmount/`) |
| `--config PATH`, else `AMLMOUNT_CONFIG` | that file alone, or that folder in the same way |

Later files win key by key: mappings merge, single values and lists replace. Relative paths (of a local store, a
secret's file, the cache root) start at the folder of the file they stand in; `~` is the home folder of whoever runs
the daemon. A key given twice in one file, and an unknown key, are errors. Sections named `x-...` are skipped: a
place for YAML anchors. Only `true` and `false` are taken for booleans where text may stand, and `0644` is a mode
with or without quotes.

| variable | what it sets |
| --- | --- |
| `AMLMOUNT_CONFIG` | the configuration |
| `AMLMOUNT_RUNTIME_DIR` | socket and pid; else `/run/amlmount`, a user's `$XDG_RUNTIME_DIR/amlmount` |
| `AMLMOUNT_STATE_DIR` | what must survive; else `/var/lib/amlmount`, a user's `$XDG_STATE_HOME/amlmount` |
| `AMLMOUNT_CACHE_ROOT` | caches, if no `cache.root` is set; a user's `$XDG_CACHE_HOME/amlmount` |
| `AMLMOUNT_SOCKET` | the daemon's socket itself |

## Units

Sizes: `KiB MiB GiB TiB` (1024) and `B KB MB GB TB` (1000), as in `512MiB` or `1.5GB`; where a share of the disk makes
sense also `80%`. Durations: `ms s m h d w`, as in `30s` or `1h30m`. A bare number is refused, except `0`.
"""

STORES = """
## Stores

A store is the content of an Azure ML v2 datastore YAML under a name of your choice, so such a file can be pasted
(indented below `stores: NAME:`). Only its secrets must move: see [secrets](#secrets).
"""

SECRETS = """
### Secrets

Wherever a secret is needed, the configuration says where it is: one of these keys.
"""

INLINE_SECRET = """
A secret written into the file itself is refused. An Azure ML file that says

```yaml
credentials:
  account_key: XXXXXXXX
```

becomes `account_key: {file: secrets/mnist.key}` after

```sh
install -D -m 0600 /dev/stdin /etc/amlmount/secrets/mnist.key    # paste the key, Enter, Ctrl-D
```

or `account_key: {env: MNIST_KEY}` if the daemon's environment has it.
"""

SOURCES = """
### Sources

`source` is the name of a store, a mapping with the keys below, or a list of either: then each is a directory of its
own, called as its store (or `name`). A last `/**` or `/**/*`, as Azure ML writes it, means the whole folder.
"""

CONTAINERS = """
`{store: NAME, containers: {...}}`, with a store that has no container of its own, mounts every container of the
account that passes the filter, each as a directory and a mount of its own, `NAME/CONTAINER`. With `watch: 5m` beside
`containers`, new and vanished containers are looked for that often; left out: at `up` only.
"""

HEALTH = """
Under `health:` stands from when on a condition of a mount is false: `amlmount check` and `amlmount ps -o json` show
them, [operations.md](operations.md) says what each means.
"""

DAEMON = """
With `daemon: {watch: true}` (or `amlmount daemon --watch`) a file that is saved counts at once. It is read when nobody
writes to it any more; one that cannot be used, or names no mounts any more, changes nothing, and `ps` says so. Changes
that another machine makes in a shared folder are not seen.
"""

METRICS = """
`metrics: {listen: 127.0.0.1:9464}` has the daemon serve `/metrics` by TCP, without asking who reads it;
[metrics.md](metrics.md) has the list. The same is always to be had on the daemon's socket.
"""

UNSAID = """
## What happens when nothing is said

| | the system's daemon | a user's daemon |
| --- | --- | --- |
| who owns the files | who ran `sudo amlmount up`, else root | the user |
| who may enter | everybody, as the modes allow | the user |
| modes | 0644 and 0755, less `umask`; no write bits when read-only | the same |
| writing | not possible: `read_only: true` | the same |
"""


def render_docs() -> str:
    """Return the text of docs/configuration.md."""
    cache = ("\n## Cache\n", _keys(CacheConfig))
    metrics = ("\n## Metrics\n", METRICS, _keys(MetricsConfig))
    health = ("\n## Health\n", HEALTH, _keys(HealthConfig))
    daemon = ("\n## Daemon\n", DAEMON, _keys(DaemonConfig))
    sections = [INTRODUCTION, *_stores(), *_mounts(), *_profiles(), *cache, *health, *metrics, *daemon, UNSAID]
    return "\n".join(section.strip("\n") + "\n" for section in sections)


def _stores() -> Iterator[str]:
    yield STORES
    for model, kind in ((AzureBlobStore, "azure_blob"), (AzureDataLakeStore, "azure_data_lake_gen2")):
        yield f"### type: {kind}\n\n{model.__doc__}\n"
        yield _keys(model)
    yield f"### type: local\n\n{LocalStore.__doc__}\n"
    yield _keys(LocalStore, without=AzureBlobStore)
    yield "### Other types\n"
    yield _table(("type", "what to do instead"), ((f"`{kind}`", what) for kind, what in UNSUPPORTED_TYPES.items()))
    yield "### Credentials\n\nOne of these kinds; with none, the identity found on the machine.\n"
    yield _table(("keys", "what it is"), ((_credential_keys(kind), kind.__doc__ or "") for kind in _kinds()))
    yield SECRETS
    yield _keys(SecretRef)
    yield "and below `keyvault`:\n"
    yield _keys(KeyVaultSecret)
    yield INLINE_SECRET


def _mounts() -> Iterator[str]:
    yield "## Mounts\n"
    yield _keys(Mount, without=MountOptions)
    yield "and the options, which may also stand under `defaults:` and then hold for every mount that says nothing:\n"
    yield _keys(MountOptions)
    yield SOURCES
    yield _keys(SourcePart)
    yield CONTAINERS
    yield _keys(ContainerFilter)


def _profiles() -> Iterator[str]:
    yield "## Profiles\n"
    yield _table(("profile", "for"), ((f"`{name}`", what) for name, what in PROFILE_PURPOSE.items()))
    yield "What each decides, and the key under `policy:` by which a mount overrules it:\n"
    rows = ([f"`{key}`", *(_policy_value(name, key) for name in PROFILES), _meaning(key)] for key in _policy_keys())
    yield _table(("key", *PROFILES, "meaning"), rows)


def _policy_keys() -> list[str]:
    return list(PolicyOverrides.model_fields)


def _meaning(key: str) -> str:
    return PolicyOverrides.model_fields[key].description or ""


def _policy_value(profile: str, key: str) -> str:
    overrides = PolicyOverrides.model_construct(**{key: getattr(PROFILES[profile], policy_field(key))})
    value = overrides.model_dump(mode="json", exclude_unset=True)[key]
    return _plain(value)


def _kinds() -> list[type[BaseModel]]:
    return list(CREDENTIAL_KINDS.values())


def _credential_keys(kind: type[BaseModel]) -> str:
    return ", ".join(f"`{name}`" for name in kind.model_fields)


def _keys(model: type[BaseModel], *, without: type[BaseModel] | None = None) -> str:
    hidden = set(without.model_fields) if without else set()
    defaults = _defaults(model)
    rows = [
        (
            f"`{field.alias or name}`",
            _plain(defaults.get(name, "")) or _required(field.is_required()),
            field.description,
        )
        for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] != "type")
        if name not in hidden or name == "type"
    ]
    return _table(("key", "default", "meaning"), ([key, value, meaning or ""] for key, value, meaning in rows))


def _required(is_required: bool) -> str:
    return "needed" if is_required else ""


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    values = {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}
    given = {name: value for name, value in values.items() if not model.model_fields[name].is_required()}
    return model.model_construct(**given).model_dump(mode="json", exclude_none=True, warnings=False)


def _plain(value: object) -> str:
    match value:
        case "" | [] | {} | None:
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case list():
            return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"


def _table(heads: tuple[str, ...], rows: Any) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    print(render_docs(), end="")
