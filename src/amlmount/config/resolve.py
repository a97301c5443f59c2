"""Decides everything about a mount: profile, overrides, owner, modes, sources: `MountSpec`, ready for an engine.

What the configuration does not say is decided here, by whose daemon it is (`DaemonUser`) and by nothing else.
"""

import difflib
import os
import re
from dataclasses import dataclass
from typing import Any

from amlmount.config.models import Config, ContainersSource, Mount, MountOptions, SourcePart
from amlmount.config.problems import all_of
from amlmount.config.profiles import PROFILES, PolicyOverrides, overrule
from amlmount.config.spec import ContainerChoice, MountSpec, Ownership, Policy, SourceSpec
from amlmount.config.store_models import LocalStore, dump_store
from amlmount.errors import ConfigError, NotFoundError

WRITE_BITS = 0o222
_WHOLE_FOLDER_GLOBS = ("**", "**/*")


@dataclass(frozen=True)
class DaemonUser:
    """For whom a daemon mounts: is it the system's, and who owns the files when the configuration does not say."""

    is_system: bool
    uid: int
    gid: int


def find_daemon_user(*, is_system: bool | None = None, sudo_uid: int | None = None) -> DaemonUser:
    """Return for whom we mount: the system's daemon for who ran `sudo amlmount up`, a user's for that user."""
    system = os.geteuid() == 0 if is_system is None else is_system
    if system and sudo_uid is not None:
        return DaemonUser(True, sudo_uid, _login_group(sudo_uid))
    return DaemonUser(system, os.geteuid(), os.getegid())


def resolve_all(config: Config, user: DaemonUser | None = None) -> dict[str, MountSpec]:
    """Return every mount, resolved, in the order of the configuration. Raises one ConfigError for all that cannot."""
    specs: dict[str, MountSpec] = {}
    errors: list[ConfigError] = []
    for name in config.mounts:
        try:
            specs[name] = resolve_mount(config, name, user)
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise all_of(errors)
    return specs


def resolve_mount(config: Config, name: str, user: DaemonUser | None = None) -> MountSpec:
    """Return one mount, resolved. Raises NotFoundError for an unknown name (with names like it), ConfigError."""
    mount = find_mount(config, name)
    options = effective_options(config, name)
    user = user or find_daemon_user()
    sources = _sources(config, name, mount)
    policy = effective_policy(options)
    return MountSpec(
        name=name,
        target=target_path(mount),
        sources=sources,
        description=",".join(_describe(config, source) for source in sources),
        read_only=options.read_only,
        engine=options.engine,
        policy=policy,
        ownership=_ownership(options, user, name),
        allow_other=user.is_system if options.allow_other is None else options.allow_other,
        containers=_containers(mount),
        refresh_interval_s=options.refresh if policy.pinned else None,
        durability=options.durability,
        state_dir=os.path.normpath(os.path.expanduser(options.state_dir)) if options.state_dir else None,
        state_dir_is_named=options.state_dir is not None,
        upload_timeout_s=options.upload_timeout,
        front=options.front,
        blobfuse2=options.blobfuse2,
    )


def target_path(mount: Mount) -> str:
    """Return the target, normalised, with `~` replaced; as text, without looking at the disk."""
    # normpath keeps two leading slashes, as POSIX allows it to.
    return os.path.normpath(re.sub(r"^/+", "/", os.path.expanduser(mount.target)))


def child_name(part: SourcePart) -> str:
    """Return the directory that a source of a list appears as."""
    return part.name or part.store


def find_mount(config: Config, name: str) -> Mount:
    """Return the mount called `name`. Raises NotFoundError that suggests names like it."""
    if name in config.mounts:
        return config.mounts[name]
    near = difflib.get_close_matches(name, config.mounts, n=3, cutoff=0.5)
    known = (
        f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(config.mounts) or 'no mount at all'}"
    )
    raise NotFoundError(f"cannot find a mount called '{name}'", hint=known, details={"name": name, "near": near})


def effective_options(config: Config, name: str) -> MountOptions:
    """Return the options of a mount with those of `defaults` where it says nothing; mappings merge."""
    mount = config.mounts[name]
    said = {key: getattr(mount, key) for key in mount.model_fields_set if key in MountOptions.model_fields}
    common = {key: getattr(config.defaults, key) for key in config.defaults.model_fields_set}
    merged = common | said
    if "policy" in common and "policy" in said:
        merged["policy"] = _both_policies(common["policy"], said["policy"])
    if "blobfuse2" in common and "blobfuse2" in said:
        merged["blobfuse2"] = _both_settings(common["blobfuse2"], said["blobfuse2"])
    return MountOptions.model_construct(_fields_set=set(merged), **merged)


def effective_policy(options: MountOptions) -> Policy:
    """Return the policy of the profile with the mount's own values in place."""
    return overrule(PROFILES[options.profile], options.policy)


def _both_policies(common: PolicyOverrides, said: PolicyOverrides) -> PolicyOverrides:
    values = {key: getattr(said, key) for key in said.model_fields_set}
    return common.model_copy(update=values)


def _both_settings(common: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """Merge settings of blobfuse2 section by section, key by key."""
    both = dict(common)
    for name, value in said.items():
        known = both.get(name)
        both[name] = known | value if isinstance(known, dict) and isinstance(value, dict) else value
    return both


def resolve_owner(options: MountOptions, user: DaemonUser, name: str) -> tuple[int, int]:
    """Return uid and gid of what mount `name` shows. Raises ConfigError for a user who is not known here."""
    return (user.uid, user.gid) if options.owner is None else _find_owner(options.owner, name)


def _ownership(options: MountOptions, user: DaemonUser, name: str) -> Ownership:
    uid, gid = resolve_owner(options, user, name)
    away = options.umask | (WRITE_BITS if options.read_only else 0)
    return Ownership(uid=uid, gid=gid, file_mode=options.file_mode & ~away, dir_mode=options.dir_mode & ~away)


def _find_owner(owner: str, mount_name: str) -> tuple[int, int]:
    import grp
    import pwd

    user, _, group = owner.partition(":")
    try:
        uid = int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        if not group:
            return uid, _login_group(uid)
        return uid, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(
            f"cannot use the owner '{owner}' of mount '{mount_name}': no such user or group on this machine",
            hint="write user, user:group or numbers; `getent passwd` shows who there is",
        ) from None


def _login_group(uid: int) -> int:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def _sources(config: Config, name: str, mount: Mount) -> tuple[SourceSpec, ...]:
    source = mount.source
    if isinstance(source, ContainersSource):
        return (SourceSpec(store_name=source.store, store=dump_store(config.stores[source.store])),)
    if isinstance(source, SourcePart):
        return (_source(config, source, child=None),)
    return tuple(_source(config, part, child=child_name(part)) for part in source)


def _containers(mount: Mount) -> ContainerChoice | None:
    source = mount.source
    if not isinstance(source, ContainersSource):
        return None
    return ContainerChoice(allow=source.containers.allow, deny=source.containers.deny, watch_s=source.watch)


def container_spec(spec: MountSpec, container: str) -> MountSpec:
    """Return the mount of one container of an account: `NAME/CONTAINER`, at a directory below the account's target."""
    [source] = spec.sources
    key = "filesystem" if source.store.get("type") == "azure_data_lake_gen2" else "container_name"
    changes = {
        "name": f"{spec.name}/{container}",
        "target": f"{spec.target}/{container}",
        "sources": (source.model_copy(update={"store": source.store | {key: container}}),),
        "description": f"{spec.description}/{container}",
        "containers": None,
    }
    return spec.model_copy(update=changes)


def _source(config: Config, part: SourcePart, child: str | None) -> SourceSpec:
    path, glob = split_glob(part)
    store = dump_store(config.stores[part.store])
    return SourceSpec(store_name=part.store, store=store, path=path, glob=glob, child=child)


def split_glob(part: SourcePart) -> tuple[str, str | None]:
    """Return folder and filter of a source; a last `**` or `**/*`, as Azure ML writes it, means the whole folder."""
    glob = (part.glob or "").strip("/")
    return split_path(part.path), None if glob in ("", *_WHOLE_FOLDER_GLOBS) else glob


def split_path(path: str) -> str:
    """Return a path without a last `**` or `**/*`."""
    for whole in reversed(_WHOLE_FOLDER_GLOBS):
        if path == whole:
            return ""
        path = path.removesuffix(f"/{whole}")
    return path


def _describe(config: Config, source: SourceSpec) -> str:
    store = config.stores[source.store_name]
    parts = (store.path,) if isinstance(store, LocalStore) else (store.account_name, store.container or "")
    return "/".join(part for part in (*parts, source.path) if part)
