"""What a mount comes to: sources, profile and overrides, and everything that is decided when nothing is said."""

import os
import pwd
from typing import Any

import pytest

from amlmount.config.models import Config
from amlmount.config.profiles import PROFILES, YEAR_S, PolicyOverrides, policy_field
from amlmount.config.resolve import DaemonUser, container_spec, find_daemon_user, resolve_all, resolve_mount
from amlmount.config.spec import ContainerChoice, MountSpec, Policy, SourceSpec
from amlmount.errors import ConfigError, NotFoundError

SYSTEM = DaemonUser(is_system=True, uid=0, gid=0)
USER = DaemonUser(is_system=False, uid=1000, gid=1001)
STORES: dict[str, Any] = {
    "here": {"type": "local", "path": "/srv/here"},
    "blobs": {"type": "azure_blob", "account_name": "acc", "container_name": "con", "credentials": "anonymous"},
    "account": {"type": "azure_blob", "account_name": "acc"},
}


def config(mount: dict[str, Any] | None = None, **sections: Any) -> Config:
    mounts = {"data": {"target": "/media/data", "source": "here"} | (mount or {})}
    return Config.model_validate({"stores": STORES, "mounts": mounts} | sections)


def spec(mount: dict[str, Any] | None = None, user: DaemonUser = SYSTEM, **sections: Any) -> MountSpec:
    return resolve_mount(config(mount, **sections), "data", user)


def test_unsaid_a_mount_is_read_only_standard_and_picks_its_engine() -> None:
    found = spec()
    assert found.read_only
    assert found.policy.profile == "standard"
    assert (found.policy.attr_timeout_s, found.policy.entry_timeout_s) == (120, 120)
    assert (found.engine, found.front, found.durability, found.upload_timeout_s) == ("auto", "auto", "store", 300)
    assert found.refresh_interval_s is None


def test_unsaid_the_system_lets_others_in_and_a_user_does_not() -> None:
    assert spec(user=SYSTEM).allow_other
    assert not spec(user=USER).allow_other
    assert spec({"allow_other": True}, USER).allow_other
    assert not spec({"allow_other": False}, SYSTEM).allow_other


def test_unsaid_the_owner_is_who_the_daemon_mounts_for() -> None:
    assert (spec(user=USER).ownership.uid, spec(user=USER).ownership.gid) == (1000, 1001)
    assert (spec(user=SYSTEM).ownership.uid, spec(user=SYSTEM).ownership.gid) == (0, 0)


def test_the_system_mounts_for_who_ran_sudo() -> None:
    nobody = pwd.getpwnam("nobody")
    assert find_daemon_user(is_system=True, sudo_uid=nobody.pw_uid) == DaemonUser(True, nobody.pw_uid, nobody.pw_gid)
    assert find_daemon_user(is_system=True, sudo_uid=54321) == DaemonUser(True, 54321, 54321)
    assert find_daemon_user(is_system=True) == DaemonUser(True, os.geteuid(), os.getegid())


def test_a_users_daemon_mounts_for_that_user_whatever_sudo_said() -> None:
    assert find_daemon_user(is_system=False, sudo_uid=54321) == DaemonUser(False, os.geteuid(), os.getegid())


@pytest.mark.parametrize(
    ("mount", "file_mode", "dir_mode"),
    [
        ({}, 0o444, 0o555),
        ({"read_only": False}, 0o644, 0o755),
        ({"read_only": False, "umask": "077"}, 0o600, 0o700),
        ({"umask": "0007"}, 0o440, 0o550),
        ({"read_only": False, "file_mode": "0666", "dir_mode": 777}, 0o666, 0o777),
        ({"file_mode": "0666", "dir_mode": "0770"}, 0o444, 0o550),
    ],
)
def test_modes_are_less_umask_and_have_no_write_bits_when_read_only(
    mount: dict[str, Any], file_mode: int, dir_mode: int
) -> None:
    ownership = spec(mount).ownership
    assert (oct(ownership.file_mode), oct(ownership.dir_mode)) == (oct(file_mode), oct(dir_mode))


@pytest.mark.parametrize(
    ("owner", "uid", "gid"), [("nobody:root", 65534, 0), ("1234:567", 1234, 567), ("1234", 1234, 1234), ("root", 0, 0)]
)
def test_an_owner_is_names_or_numbers(owner: str, uid: int, gid: int) -> None:
    assert (spec({"owner": owner}).ownership.uid, spec({"owner": owner}).ownership.gid) == (uid, gid)


@pytest.mark.parametrize("owner", ["no-such-user", "root:no-such-group"])
def test_an_owner_nobody_knows_is_an_error(owner: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot use the owner '{owner}' of mount 'data'"):
        spec({"owner": owner})


def test_an_unknown_mount_is_answered_with_names_like_it() -> None:
    with pytest.raises(NotFoundError, match="'dta'") as caught:
        resolve_mount(config(), "dta", SYSTEM)
    assert caught.value.hint == "did you mean data?"
    assert caught.value.exit_code == 3


def test_with_no_mounts_at_all_it_says_so() -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve_mount(Config(), "x", SYSTEM)
    assert caught.value.hint == "there is no mount at all"


def test_one_source_is_the_root_and_a_list_has_a_directory_each() -> None:
    assert [source.child for source in spec().sources] == [None]
    found = spec({"source": ["here", {"store": "here", "path": "/a/", "name": "part"}, "blobs"]})
    assert [(source.child, source.path) for source in found.sources] == [("here", ""), ("part", "a"), ("blobs", "")]
    assert found.description == "/srv/here,/srv/here/a,acc/con"


def test_a_list_of_one_still_has_a_directory() -> None:
    assert spec({"source": ["here"]}).sources[0].child == "here"


@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("", None, ("", None)),
        ("a/b/", None, ("a/b", None)),
        ("/**", None, ("", None)),
        ("a/**", None, ("a", None)),
        ("a/**/*", None, ("a", None)),
        ("a", "**", ("a", None)),
        ("a", "/**/*", ("a", None)),
        ("a", "*.jpg", ("a", "*.jpg")),
        ("", "**/*.jpg", ("", "**/*.jpg")),
        ("a/**", "*.jpg", ("a", "*.jpg")),
    ],
)
def test_a_last_double_star_means_the_whole_folder(
    path: str, glob: str | None, expected: tuple[str, str | None]
) -> None:
    source = spec({"source": {"store": "here", "path": path} | ({"glob": glob} if glob else {})}).sources[0]
    assert (source.path, source.glob) == expected


def test_a_source_carries_its_store_with_references_to_secrets_only() -> None:
    assert spec({"source": "blobs"}).sources == (
        SourceSpec(
            store_name="blobs",
            store={
                "type": "azure_blob",
                "account_name": "acc",
                "container_name": "con",
                "endpoint": "core.windows.net",
                "protocol": "https",
                "credentials": {"anonymous": {}},
            },
        ),
    )


def test_a_whole_account_is_one_mount_of_many() -> None:
    whole = spec({"source": {"store": "account", "containers": {"deny": ["x"]}, "watch": "5m"}})
    assert whole.containers == ContainerChoice(allow=("*",), deny=("x",), watch_s=300)
    one = container_spec(whole, "logs")
    assert (one.name, one.target, one.containers) == ("data/logs", f"{whole.target}/logs", None)
    assert one.sources[0].store["container_name"] == "logs" and one.description == f"{whole.description}/logs"


def test_a_target_is_normal_and_may_start_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert spec({"target": "~/x/../data/"}).target == "/home/someone/data"
    assert spec({"target": "//media//x"}).target == "/media/x"


def test_defaults_hold_for_mounts_that_say_nothing() -> None:
    defaults = {"profile": "fresh", "umask": "027", "policy": {"list_ttl": "5s", "max_read": "64KiB"}}
    assert spec(defaults=defaults).policy.profile == "fresh"
    found = spec({"profile": "stream", "policy": {"list_ttl": "7s"}}, defaults=defaults)
    assert (found.policy.profile, found.policy.list_ttl_s, found.policy.max_read_bytes) == ("stream", 7, 64 << 10)
    assert found.ownership.file_mode == 0o440


def test_a_mount_may_say_the_built_in_default_against_defaults() -> None:
    assert spec({"read_only": True}, defaults={"read_only": False}).read_only


def test_blobfuse2_settings_merge_key_by_key() -> None:
    found = spec({"blobfuse2": {"a": 1}}, defaults={"blobfuse2": {"a": 2, "b": 3}})
    assert found.blobfuse2 == {"a": 1, "b": 3}


def test_refresh_is_for_pinned_mounts() -> None:
    assert spec({"profile": "epochs", "refresh": "15m"}).refresh_interval_s == 900
    assert spec(defaults={"refresh": "15m"}).refresh_interval_s is None


@pytest.mark.parametrize("key", PolicyOverrides.model_fields)
def test_every_value_of_a_policy_can_be_overruled_and_no_other_changes(key: str) -> None:
    written, value = {float: ("77s", 77.0), int: ("77KiB", 77 << 10), bool: (True, True)}[
        type(getattr(PROFILES["fresh"], policy_field(key)))
    ]
    found = spec({"profile": "fresh", "policy": {key: written}}).policy
    assert found == PROFILES["fresh"].model_copy(update={policy_field(key): value})


def test_every_field_of_a_policy_has_a_key() -> None:
    assert {policy_field(key) for key in PolicyOverrides.model_fields} == set(Policy.model_fields) - {"profile"}


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_called_by_their_name_and_make_sense(name: str) -> None:
    policy = PROFILES[name]
    assert policy.profile == name
    assert policy.pinned or not policy.no_open
    assert not (policy.direct_io and policy.keep_cache)
    assert (policy.prefetch_small_bytes == 0) == (policy.prefetch_budget_bytes == 0)


def test_what_each_profile_promises() -> None:
    epochs, fresh, random = PROFILES["epochs"], PROFILES["fresh"], PROFILES["random"]
    assert epochs.pinned and epochs.no_open
    assert epochs.attr_timeout_s == epochs.entry_timeout_s == epochs.list_ttl_s == YEAR_S
    assert fresh.attr_timeout_s + fresh.list_ttl_s <= 2 and not fresh.keep_cache
    assert random.read_ahead_max_bytes == 0 and random.prefetch_small_bytes == 0
    assert not PROFILES["stream"].cache_on_disk
    assert PROFILES["stream"].read_ahead_max_bytes > PROFILES["standard"].read_ahead_max_bytes


def test_all_are_resolved_in_the_order_of_the_file_and_travel_as_json() -> None:
    mounts = {name: {"target": f"/media/{name}", "source": "here"} for name in ("z", "a")}
    found = resolve_all(config(mounts=mounts), USER)
    assert list(found) == ["z", "a"]
    assert MountSpec.model_validate_json(found["z"].model_dump_json()) == found["z"]
