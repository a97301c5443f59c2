"""What the stand-in is told: YAML, flags and environment in blobfuse2's order, and the errors it answers with.

Texts are the real binary's (2.5.6): `Error: ` and these words on standard error, exit code 1.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ENVIRONMENT = {
    "azstorage.account-name": "AZURE_STORAGE_ACCOUNT",
    "azstorage.container": "AZURE_STORAGE_ACCOUNT_CONTAINER",
    "azstorage.account-key": "AZURE_STORAGE_ACCESS_KEY",
    "azstorage.sas": "AZURE_STORAGE_SAS_TOKEN",
    "azstorage.mode": "AZURE_STORAGE_AUTH_TYPE",
}
FLAGS = {
    "--foreground": "foreground",
    "--read-only": "read-only",
    "--allow-other": "allow-other",
    "--tmp-path": "file_cache.path",
    "--file-cache-timeout": "file_cache.timeout-sec",
    "--container-name": "azstorage.container",
    "--log-type": "logging.type",
    "--log-level": "logging.level",
    "--log-file-path": "logging.file-path",
    "--default-working-dir": "default-working-dir",
    "--cleanup-on-start": "cleanup-on-start",
    "--wait-for-mount": "wait-for-mount",
    "--disable-version-check": "disable-version-check",
}
FUSE_OPTIONS = {"ro": "read-only", "allow_other": "allow-other", "nonempty": "nonempty"}
CACHES = ("file_cache", "block_cache", "xload", "stream")
IGNORED_OPTIONS = ("default_permissions", "rw", "dev", "nodev", "suid", "nosuid", "auto", "noauto", "exec", "noexec")
FUSE_OPTIONS_REFUSED = (
    "Invalid FUSE options. Allowed FUSE configurations are: `-o attr_timeout=TIMEOUT`, `-o negative_timeout=TIMEOUT`, "
    "`-o entry_timeout=TIMEOUT` `-o allow_other`, `-o allow_root`, `-o umask=PERMISSIONS -o default_permissions`, "
    "`-o ro`"
)
PIPELINE = "failed to initialize new pipeline [config error in"


class Refused(Exception):
    """An error of blobfuse2: its text goes to standard error, the exit code is 1."""


@dataclass(slots=True)
class Settings:
    """Values by path (`section.key`), lower case."""

    values: dict[str, Any] = field(default_factory=dict)

    def get(self, path: str, default: Any = None) -> Any:
        """Environment beats the file, an empty variable too; flags have been put into the values last."""
        flag = self.values.get(f"flag:{path}")
        if flag is None and path in ENVIRONMENT and ENVIRONMENT[path] in os.environ:
            return os.environ[ENVIRONMENT[path]]
        value = self.values.get(path) if flag is None else flag
        return default if value is None else value

    def truth(self, path: str) -> bool:
        """Return a boolean; flags bring it as text."""
        return str(self.get(path, False)).lower() == "true"

    def number(self, path: str, default: int) -> int:
        """Return a whole number; a negative one wraps, as in the real program."""
        return int(self.get(path, default)) % 2**32

    @property
    def components(self) -> list[str]:
        """The pipeline."""
        listed = self.get("components")
        return [str(name) for name in listed] if listed else ["libfuse", "file_cache", "attr_cache", "azstorage"]

    @property
    def cache(self) -> str | None:
        """The data cache in the pipeline."""
        return next((name for name in self.components if name in CACHES), None)


def read_settings(config: str | None, flags: dict[str, str], options: list[str]) -> Settings:
    """Return the settings of a `mount` command. Raises Refused."""
    settings = Settings()
    if config is None and os.path.exists("config.yaml"):
        config = "config.yaml"
    if config is not None:
        settings.values = _flat(_parse(config))
    settings.values |= {f"flag:{FLAGS[name]}": value for name, value in flags.items() if name in FLAGS}
    for option in options:
        name = option.partition("=")[0]
        if name in FUSE_OPTIONS:
            settings.values[f"flag:{FUSE_OPTIONS[name]}"] = "true"
        elif name not in IGNORED_OPTIONS and name not in ("umask", "uid", "gid", "attr_timeout", "entry_timeout"):
            raise Refused(FUSE_OPTIONS_REFUSED)
    return settings


def _parse(config: str) -> dict[str, Any]:
    if not os.path.exists(config):
        raise Refused(f"invalid config file [open {config}: no such file or directory]")
    if Path(config).suffix not in (".yaml", ".yml", ".json"):
        raise Refused(f'invalid config file [Unsupported Config Type "{Path(config).suffix[1:]}"]')
    try:
        data = yaml.safe_load(Path(config).read_text())
    except yaml.YAMLError as error:
        raise Refused(f"invalid config file [While parsing config: yaml: {error}]") from None
    return data if isinstance(data, dict) else {}


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for name, value in data.items():
        section = str(name).lower()
        inside = value if isinstance(value, dict) else None
        pairs |= (
            {section: value} if inside is None else {f"{section}.{str(key).lower()}": v for key, v in inside.items()}
        )
    return pairs


def check_pipeline(settings: Settings) -> None:
    """Refuse what cmd/mount.go and the components' Configure refuse, in their order."""
    if sum(name in CACHES for name in settings.components) > 1:
        raise Refused("invalid pipeline components [mount: file-cache and block-cache cannot be used together]")
    if settings.truth("disable-kernel-cache") and settings.truth("libfuse.direct-io"):
        raise Refused("direct-io and disable-kernel-cache cannot be enabled together")


def check_storage(settings: Settings) -> None:
    """Refuse an account section that lacks something: component/azstorage/config.go."""
    if "azstorage" not in settings.components:
        return
    if not settings.get("azstorage.account-name"):
        raise Refused(f"{PIPELINE} azstorage [account name not provided]]")
    if not settings.get("azstorage.container"):
        raise Refused(f"{PIPELINE} azstorage [container name not provided]]")
    needs = {"key": ("account-key", "storage key not provided"), "sas": ("sas", "SAS key not provided")}
    key, text = needs.get(str(settings.get("azstorage.mode", "")).lower(), ("", ""))
    if key and not settings.get(f"azstorage.{key}"):
        raise Refused(f"{PIPELINE} azstorage [{text}]]")


def check_cache_dir(settings: Settings, mount_path: str) -> str | None:
    """Return the cache directory, made if it was not there. Refuses one that is not empty."""
    if settings.cache is None:
        return None
    path = settings.get(f"{settings.cache}.path")
    if not path:
        if settings.cache == "file_cache":
            raise Refused(f"{PIPELINE} file_cache error [tmp-path not set]]")
        return None
    path = os.path.abspath(os.path.expandvars(os.path.expanduser(str(path))))
    if path == mount_path:
        raise Refused(f"{PIPELINE} {settings.cache} error [tmp-path is same as mount path]]")
    os.makedirs(path, mode=0o755, exist_ok=True)
    if os.listdir(path) and not settings.truth("file_cache.allow-non-empty-temp"):
        raise Refused(f"{PIPELINE} {settings.cache} [temp directory not empty]]")
    return path
