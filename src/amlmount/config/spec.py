"""A mount with everything decided: what `resolve` makes of the configuration and what an engine is handed.

It goes to worker processes as JSON over a socket, so it holds no secret, only references to secrets.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Base of all configuration models: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


EngineName = Literal["auto", "python", "blobfuse2"]
Durability = Literal["store", "journal"]
Front = Literal["auto", "overlay", "none"]
ProfileName = Literal["standard", "epochs", "stream", "random", "fresh", "checkpoint"]


class Policy(Frozen):
    """What a profile decides. Timeouts in seconds, sizes in bytes; see docs/configuration.md for each profile's values.

    `no_open`: answer OPEN with ENOSYS, so the kernel keeps pages for the life of the mount and never asks again.
    `pinned`: names and content are those of the first look until `refresh`.
    """

    profile: ProfileName
    attr_timeout_s: float
    entry_timeout_s: float
    negative_timeout_s: float
    list_ttl_s: float
    no_open: bool
    pinned: bool
    keep_cache: bool
    direct_io: bool
    max_read_bytes: int
    read_ahead_max_bytes: int
    prefetch_small_bytes: int
    prefetch_budget_bytes: int
    cache_on_disk: bool


class SourceSpec(Frozen):
    """One container, or a part of it. `child` is the directory it appears as; None = it is the mount's root.

    `store` is the validated store definition as JSON-able data (secrets as references).
    """

    store_name: str
    store: dict[str, object]
    path: str = ""
    glob: str | None = None
    child: str | None = None


class ContainerChoice(Frozen):
    """Which containers of an account are mounted, by glob; `deny` wins. `watch_s`: how often to look again."""

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    watch_s: float | None = None


class Ownership(Frozen):
    """Who owns what the mount shows, and its permission bits (already less umask)."""

    uid: int
    gid: int
    file_mode: int
    dir_mode: int


class MountSpec(Frozen):
    """One mount, resolved. `description` is the text of the SOURCE column (`ps`, `mount`, `df`).

    `refresh_interval_s`: a pinned mount looks again this often, None = only when asked. `upload_timeout_s`: how
    long `close()` waits for a store that is down. `blobfuse2`: the user's settings for that engine, as written.
    `containers`: it is a whole account; each container becomes a mount of its own, `NAME/CONTAINER`.
    `cache_dir`: None = nothing is kept on disk; `cache_max_bytes`: what it may take before the daemon says otherwise.
    `cache_is_ephemeral`: that disk is emptied when the machine stops. `cache_note`: places passed over, and why.
    `state_dir`: of a writable mount, where what was promised lies until the store has it; on a lasting disk, unless
    the user named another one (`state_dir_is_named`).
    """

    name: str
    target: str
    sources: tuple[SourceSpec, ...]
    description: str
    read_only: bool
    engine: EngineName
    policy: Policy
    ownership: Ownership
    allow_other: bool
    containers: ContainerChoice | None = None
    cache_dir: str | None = None
    cache_max_bytes: int | None = None
    cache_is_ephemeral: bool = False
    cache_note: str = ""
    state_dir: str | None = None
    state_dir_is_named: bool = False
    refresh_interval_s: float | None = None
    durability: Durability = "store"
    upload_timeout_s: float = 300.0
    front: Front = "auto"
    blobfuse2: dict[str, object] = Field(default_factory=dict)
