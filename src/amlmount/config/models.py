"""The whole configuration as frozen models: one class for each section of the YAML, one field for each key.

Descriptions stand here once; the JSON Schema, docs/configuration.md and `config show` read them.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from amlmount.config.fields import Address, AlsoTakes, Duration, Mode, Name, Owner, Prefix, Share, Size, SizeOrPercent
from amlmount.config.profiles import GIB, MIB, PolicyOverrides
from amlmount.config.spec import Durability, EngineName, Front, Frozen, ProfileName
from amlmount.config.store_models import Store
from amlmount.config.units import Percent


class SourcePart(Frozen):
    """One container, or a part of it."""

    store: Name = Field(description="name of a store above")
    path: Prefix = Field(default="", description="only what is below this path; it becomes the top")
    glob: str | None = Field(default=None, description="only names that match, such as *.jpg or **/*.parquet")
    name: Name | None = Field(default=None, description="in a list: the directory it appears as; else the store's name")


class ContainerFilter(Frozen):
    """Which containers of an account, by glob; `deny` wins."""

    allow: tuple[str, ...] = Field(default=("*",), min_length=1, description="containers to mount")
    deny: tuple[str, ...] = Field(default=(), description="containers to leave out")


class ContainersSource(Frozen):
    """Every container of an account that passes the filter, each as a directory ("mount all")."""

    store: Name = Field(description="name of a store that has no container of its own")
    containers: ContainerFilter
    watch: Duration | None = Field(
        default=None, description="look for new and vanished containers this often; left out: at `up` only"
    )


def _as_part(value: object) -> object:
    return {"store": value} if isinstance(value, str) else value


Part = Annotated[SourcePart, BeforeValidator(_as_part), AlsoTakes({"type": "string"})]


def _source_kind(value: object) -> str:
    if isinstance(value, list | tuple):
        return "(list)"
    has_filter = "containers" in value if isinstance(value, dict) else isinstance(value, ContainersSource)
    return "(containers)" if has_filter else "(part)"


Source = Annotated[
    Annotated[Part, Tag("(part)")]
    | Annotated[ContainersSource, Tag("(containers)")]
    | Annotated[tuple[Part, ...], Field(min_length=1), Tag("(list)")],
    Discriminator(_source_kind),
]


class MountOptions(Frozen):
    """How a mount behaves: keys of `defaults`, and of each mount."""

    read_only: bool = Field(default=True, description="nothing can be written through it")
    profile: ProfileName = Field(default="standard", description="what the data is used for; see the table of profiles")
    engine: EngineName = Field(default="auto", description="auto: blobfuse2 if it is there and able, else python")
    owner: Owner | None = Field(
        default=None, description="user or user:group that owns the files; left out: who ran `amlmount up`"
    )
    umask: Mode = Field(default=0, description="permission bits to take away from file_mode and dir_mode")
    file_mode: Mode = Field(default=0o644, description="permission bits of files; read_only takes the write bits away")
    dir_mode: Mode = Field(default=0o755, description="permission bits of directories; read_only as above")
    allow_other: bool | None = Field(
        default=None, description="may other users enter; left out: yes for the system's daemon, else no"
    )
    refresh: Duration | None = Field(
        default=None, description="for pinned profiles: look again this often and swap without a gap; left out: never"
    )
    durability: Durability = Field(
        default="store", description="when close() returns: once the store has it, or once the journal on disk has it"
    )
    upload_timeout: Duration = Field(default=300.0, description="how long close() waits for a store that is down")
    state_dir: str | None = Field(
        default=None,
        description="where what was written lies until the store has it; on a lasting disk; left out: the daemon's",
    )
    front: Front = Field(
        default="auto", description="overlay: a read-only overlay in front; auto: for `epochs` where it is allowed"
    )
    policy: PolicyOverrides = Field(default_factory=PolicyOverrides, description="values of the profile, overruled")
    blobfuse2: dict[str, Any] = Field(default_factory=dict, description="settings of blobfuse2, as in its own YAML")


class Mount(MountOptions):
    """One folder that amlmount keeps."""

    target: str = Field(min_length=1, description="the folder: absolute, or beginning with ~")
    source: Source = Field(description="a store, {store, path, glob}, {store, containers}, or a list of the first two")


class CacheConfig(Frozen):
    """Where caches are and how much of the disk they may take, all mounts together."""

    root: str | None = Field(default=None, description="directory; left out: the temporary disk if there is one")
    max_size: SizeOrPercent = Field(default=Percent(80), description="a size, or a share of that disk")
    keep_free: SizeOrPercent = Field(default=10 * GIB, description="what stays free on that disk in any case")


class MetricsConfig(Frozen):
    """Where metrics can be read besides the daemon's socket."""

    listen: Address | None = Field(
        default=None, description="host:port for Prometheus, such as 127.0.0.1:9464; left out: nowhere"
    )


class HealthConfig(Frozen):
    """How often mounts and stores are looked at, and from when on something is wrong with them."""

    interval: Duration = Field(default=20.0, gt=0, description="each mount is looked at this often")
    timeout: Duration = Field(default=5.0, gt=0, description="a mount that has not answered by then is silent")
    store_interval: Duration = Field(
        default=60.0, gt=0, description="each store is asked this often, for all its mounts"
    )
    store_timeout: Duration = Field(default=10.0, gt=0, description="a store that has not answered by then is silent")
    credential_ends: Duration = Field(
        default=86400.0, description="a SAS is told of when it ends this soon (or in a quarter of its life, if less)"
    )
    disk_free: Size = Field(default=256 * MIB, description="less free on the disk of a cache or journal is too little")
    upload_age: Duration = Field(
        default=900.0, description="what was written is late when the store lacks it for so long"
    )
    error_share: Share = Field(default=Percent(5), description="more than this share of requests that fail is too many")
    clock_error: Duration = Field(default=120.0, description="how far this machine's clock may be from the store's")


class DaemonConfig(Frozen):
    """How the daemon itself behaves."""

    watch: bool = Field(
        default=False, description="read these files again when they change, and do as `amlmount reload` does"
    )


class Config(Frozen):
    """The configuration: all files merged."""

    stores: dict[Name, Store] = Field(default_factory=dict, description="where data is")
    mounts: dict[Name, Mount] = Field(default_factory=dict, description="folders to keep mounted")
    defaults: MountOptions = Field(default_factory=MountOptions, description="options of every mount that says nothing")
    cache: CacheConfig = Field(default_factory=CacheConfig, description="the cache on disk")
    health: HealthConfig = Field(default_factory=HealthConfig, description="when something is said to be wrong")
    metrics: MetricsConfig = Field(default_factory=MetricsConfig, description="metrics for Prometheus")
    daemon: DaemonConfig = Field(default_factory=DaemonConfig, description="how the daemon behaves")
