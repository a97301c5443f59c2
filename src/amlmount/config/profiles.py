"""What each profile decides, in one table, and the names under which a mount may overrule a value of it.

docs/configuration.md is generated from here.
"""

from types import MappingProxyType
from typing import Final

from pydantic import Field

from amlmount.config.fields import Duration, Size
from amlmount.config.spec import Frozen, Policy, ProfileName

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
YEAR_S: Final = 365 * 86400.0

PROFILE_PURPOSE: Final = MappingProxyType(
    {
        "standard": "everything that has no special needs; another's change is seen within 2 minutes",
        "epochs": "the same data read again and again; names and content stay those of the first look until `refresh`",
        "stream": "large files read once from front to back; nothing is kept on disk",
        "random": "pieces read here and there in large files; only what was asked for is fetched",
        "fresh": "others write while we read; every open asks the store",
        "checkpoint": "written by the training itself; needs `read_only: false`",
    }
)


class PolicyOverrides(Frozen):
    """Single values of the profile, overruled. The keys are those of `Policy` without their unit."""

    attr_timeout: Duration | None = Field(
        default=None, description="how long the kernel believes size and time of a file"
    )
    entry_timeout: Duration | None = Field(
        default=None, description="how long the kernel believes that a name is there"
    )
    negative_timeout: Duration | None = Field(default=None, description="how long it believes that a name is not there")
    list_ttl: Duration | None = Field(default=None, description="how long a listing of the store counts as fresh")
    no_open: bool | None = Field(
        default=None, description="the kernel opens files without asking us; needs read_only, pinned"
    )
    pinned: bool | None = Field(
        default=None, description="names and content stay those of the first look until `refresh`"
    )
    keep_cache: bool | None = Field(default=None, description="an open keeps what the page cache has of the file")
    direct_io: bool | None = Field(default=None, description="past the page cache: every read comes to us")
    max_read: Size | None = Field(default=None, description="the largest single read the kernel sends us")
    read_ahead_max: Size | None = Field(default=None, description="how far we fetch ahead of a sequential reader")
    prefetch_small: Size | None = Field(
        default=None, description="files up to this size are fetched ahead of their readers"
    )
    prefetch_budget: Size | None = Field(default=None, description="how much may be fetched ahead and not be read yet")
    cache_on_disk: bool | None = Field(default=None, description="what was read is kept in the cache directory")


def policy_field(key: str) -> str:
    """Return the field of `Policy` that a key of `PolicyOverrides` overrules: the same name with its unit."""
    return next(name for name in Policy.model_fields if name in (key, f"{key}_s", f"{key}_bytes"))


def overrule(policy: Policy, overrides: PolicyOverrides) -> Policy:
    """Return the policy with every value that `overrides` gives put in its place."""
    given = {key: getattr(overrides, key) for key in PolicyOverrides.model_fields}
    return policy.model_copy(update={policy_field(key): value for key, value in given.items() if value is not None})


_STANDARD = Policy(
    profile="standard",
    attr_timeout_s=120,
    entry_timeout_s=120,
    negative_timeout_s=10,
    list_ttl_s=120,
    no_open=False,
    pinned=False,
    keep_cache=True,
    direct_io=False,
    max_read_bytes=1 * MIB,
    read_ahead_max_bytes=64 * MIB,
    prefetch_small_bytes=128 * KIB,
    prefetch_budget_bytes=256 * MIB,
    cache_on_disk=True,
)


def _differs(profile: ProfileName, **values: float | bool) -> Policy:
    return Policy.model_validate(_STANDARD.model_dump() | values | {"profile": profile})


PROFILES: Final = MappingProxyType[str, Policy](
    {
        "standard": _STANDARD,
        "epochs": _differs(
            "epochs",
            attr_timeout_s=YEAR_S,
            entry_timeout_s=YEAR_S,
            negative_timeout_s=YEAR_S,
            list_ttl_s=YEAR_S,
            no_open=True,
            pinned=True,
            prefetch_small_bytes=1 * MIB,
            prefetch_budget_bytes=1 * GIB,
        ),
        "stream": _differs("stream", read_ahead_max_bytes=256 * MIB, cache_on_disk=False),
        "random": _differs("random", read_ahead_max_bytes=0, prefetch_small_bytes=0, prefetch_budget_bytes=0),
        "fresh": _differs(
            "fresh",
            attr_timeout_s=1,
            entry_timeout_s=1,
            negative_timeout_s=0,
            list_ttl_s=1,
            keep_cache=False,
            prefetch_small_bytes=0,
            prefetch_budget_bytes=0,
        ),
        "checkpoint": _differs(
            "checkpoint",
            attr_timeout_s=10,
            entry_timeout_s=10,
            negative_timeout_s=0,
            list_ttl_s=10,
            prefetch_small_bytes=0,
            prefetch_budget_bytes=0,
        ),
    }
)
