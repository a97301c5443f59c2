"""What no single value shows: dangling references, targets in each other's way, options that exclude each other.

Compares paths as text only: a daemon must not touch anything under a target, where a dead mount may hang it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from amlmount.config.documents import DataPath
from amlmount.config.models import Config, ContainersSource, Mount, MountOptions, SourcePart
from amlmount.config.problems import Problem, did_you_mean, unusable_account, unusable_container
from amlmount.config.resolve import child_name, effective_options, effective_policy, split_path, target_path
from amlmount.config.store_models import AzureStore, LocalStore, is_account_name, is_container_name

WRITING_OPTIONS = {"durability", "upload_timeout", "state_dir"}


@dataclass(frozen=True)
class Unknown:
    """What could not be read: stores by name (or all of them), mounts of which only source and target are known."""

    stores: frozenset[str] = frozenset()
    options_of: frozenset[str] = frozenset()
    are_all_stores: bool = False

    def has(self, store: str) -> bool:
        """Say whether a store that is not there may be one that could not be read."""
        return self.are_all_stores or store in self.stores


NOTHING_UNKNOWN = Unknown()


def find_problems(config: Config, unknown: Unknown = NOTHING_UNKNOWN) -> list[Problem]:
    """Return everything that keeps a configuration of valid values from working, in no particular order."""
    problems: list[Problem] = list(_override_problems(config.defaults.blobfuse2, ("defaults", "blobfuse2")))
    problems += _store_problems(config)
    placed: list[str] = []
    for name, mount in config.mounts.items():
        problems += _source_problems(config, name, mount, unknown)
        misplaced = list(_target_problems(name, mount))
        problems += misplaced
        if not misplaced:
            placed.append(name)
        if name not in unknown.options_of:
            problems += _option_problems(config, name)
    targets = {name: target_path(config.mounts[name]) for name in placed}
    return [*problems, *_overlaps(targets), *_loops(config, targets), *_cache_problems(config, targets)]


def parts_of(mount: Mount) -> dict[DataPath, SourcePart | ContainersSource]:
    """Return the sources of a mount by their path below `source`."""
    if isinstance(mount.source, tuple):
        return {(index,): part for index, part in enumerate(mount.source)}
    return {(): mount.source}


def is_within(path: str, folder: str) -> bool:
    """Tell whether `path` is `folder` or something below it; both absolute and normalised."""
    return path == folder or path.startswith(folder if folder == "/" else f"{folder}/")


def _store_problems(config: Config) -> Iterator[Problem]:
    """Find names that Azure refuses."""
    for name, store in config.stores.items():
        if isinstance(store, LocalStore):
            continue
        if not is_account_name(store.account_name):
            yield unusable_account(("stores", name, "account_name"), store.account_name)
        if store.container is not None and not is_container_name(store.container):
            yield unusable_container(("stores", name, container_key(store)), store.container)


def container_key(store: AzureStore) -> str:
    """Return what the container is called in a store of this type."""
    return "filesystem" if store.type == "azure_data_lake_gen2" else "container_name"


def _source_problems(config: Config, name: str, mount: Mount, unknown: Unknown) -> Iterator[Problem]:
    for below, part in parts_of(mount).items():
        path: DataPath = ("mounts", name, "source", *below)
        if part.store not in config.stores and unknown.has(part.store):
            continue
        yield from _part_problems(config, path, part)
    if isinstance(mount.source, tuple):
        counted = Counter(child_name(part) for part in mount.source)
        for child in (child for child, times in counted.items() if times > 1):
            yield Problem(
                ("mounts", name, "source"),
                f"two sources would appear as the directory '{child}'",
                f"give one of them another name: {{store: {child}, path: ..., name: ...}}",
            )


def _part_problems(config: Config, path: DataPath, part: SourcePart | ContainersSource) -> Iterator[Problem]:
    store = config.stores.get(part.store)
    if store is None:
        known = did_you_mean(part.store, config.stores) or f"known: {', '.join(config.stores) or 'no store at all'}"
        yield Problem(path, f"there is no store called '{part.store}'", known)
    elif isinstance(part, SourcePart) and "*" in split_path(part.path):
        yield Problem(path, f"a wildcard in the path '{part.path}'", "write the folder under path, the rest under glob")
    elif isinstance(part, ContainersSource):
        if isinstance(store, LocalStore) or store.container is not None:
            yield Problem(
                path,
                f"store '{part.store}' is not a whole account, so it has no containers to choose from",
                "name a store that has no container_name (or filesystem)",
            )
    elif not isinstance(store, LocalStore) and store.container is None:
        key = container_key(store)
        yield Problem(
            path,
            f"store '{part.store}' is a whole account",
            f"add {key} to the store, or choose here: {{store: {part.store}, containers: {{allow: [...]}}}}",
        )


def _target_problems(name: str, mount: Mount) -> Iterator[Problem]:
    path: DataPath = ("mounts", name, "target")
    target = target_path(mount)
    if not os.path.isabs(target):
        yield Problem(path, f"'{mount.target}' is relative, and to what?", "write it from / or from ~")
    elif target == "/":
        yield Problem(path, "the root of the file system cannot be a target", "choose a folder, such as /media/data")
    elif "\0" in target or "\n" in target:
        yield Problem(path, "a line break or NUL in the name of a target", "choose another name")


def _option_problems(config: Config, name: str) -> Iterator[Problem]:
    options, mount = effective_options(config, name), config.mounts[name]
    policy = effective_policy(options)
    path: DataPath = ("mounts", name)
    if options.read_only:
        yield from _read_only_problems(config, name)
    elif policy.pinned or policy.no_open:
        yield Problem(
            (*path, "read_only"),
            f"{_who_said(options, 'pinned', 'no_open')} holds on to what it saw first, so nothing can be written "
            "through it",
            f"take read_only: false away, or {_without(options, 'pinned', 'no_open')}",
        )
    elif options.state_dir is not None and not os.path.isabs(os.path.expanduser(options.state_dir)):
        yield Problem((*path, "state_dir"), f"'{options.state_dir}' is relative, and to what?", "write it from / or ~")
    elif any(isinstance(part, SourcePart) and part.glob for part in parts_of(mount).values()):
        yield Problem((*path, "source"), "a view through a glob is read-only", "take read_only: false or the glob away")
    if policy.no_open and not policy.pinned:
        yield Problem((*path, "policy"), "no_open needs pinned", "add pinned: true, or take no_open away")
    if policy.direct_io and (policy.no_open or options.front == "overlay"):
        other = _who_said(options, "no_open") if policy.no_open else "front: overlay"
        yield Problem((*path, "policy"), f"direct_io excludes no_open and front: overlay, here {other}", _ONE_AWAY)
    if options.refresh is not None and "refresh" in mount.model_fields_set and not policy.pinned:
        yield Problem(
            (*path, "refresh"),
            f"{_unpinned(options)}, so it looks again by itself",
            "take refresh away, or choose profile epochs",
        )
    yield from _engine_problems(config, name)


_ONE_AWAY = "take one of them away"


def _who_said(options: MountOptions, *keys: str) -> str:
    """Name what a policy comes from: what the user wrote, else the profile."""
    said = [key for key in keys if getattr(options.policy, key)]
    return f"policy {said[0]}: true" if said else f"profile '{options.profile}'"


def _unpinned(options: MountOptions) -> str:
    if "pinned" in options.policy.model_fields_set:
        return "policy has pinned: false"
    return f"profile '{options.profile}' is not pinned"


def _without(options: MountOptions, *keys: str) -> str:
    """Say what to do about it."""
    said = [key for key in keys if getattr(options.policy, key)]
    return f"{' and '.join(said)} out of policy" if said else "choose profile standard or checkpoint"


def _read_only_problems(config: Config, name: str) -> Iterator[Problem]:
    said, path = config.mounts[name].model_fields_set, ("mounts", name)
    if effective_options(config, name).profile == "checkpoint":
        yield Problem((*path, "profile"), "profile 'checkpoint' is for writing", "add read_only: false")
    for key in sorted(WRITING_OPTIONS & said):
        yield Problem((*path, key), "means nothing for a read-only mount", "take it away, or add read_only: false")


def _engine_problems(config: Config, name: str) -> Iterator[Problem]:
    options, mount = effective_options(config, name), config.mounts[name]
    path: DataPath = ("mounts", name)
    if options.engine == "python" and "blobfuse2" in mount.model_fields_set and mount.blobfuse2:
        yield Problem(
            (*path, "blobfuse2"), "means nothing to engine python", "take it away, or write engine: blobfuse2"
        )
    yield from _override_problems(mount.blobfuse2, (*path, "blobfuse2"))
    if options.engine == "blobfuse2" and isinstance(mount.source, tuple):
        what = "engine blobfuse2 mounts one container, not several in one folder"
        yield Problem((*path, "source"), what, "write engine: auto, or a mount for each")


def _override_problems(keys: dict[str, object], where: DataPath) -> Iterator[Problem]:
    """Hold settings of blobfuse2 against the table of its keys, which is read only when there are any."""
    if keys:
        from amlmount.blobfuse2.problem import errors
        from amlmount.blobfuse2.validate import validate_overrides

        for problem in errors(validate_overrides(keys)):
            yield Problem((*where, *problem.path.split(".")), problem.message, problem.hint or None)


def _overlaps(targets: dict[str, str]) -> Iterator[Problem]:
    for name, target in targets.items():
        for other, others in targets.items():
            if other == name:
                break
            if target == others:
                yield Problem(("mounts", name, "target"), f"mount '{other}' has the same target '{target}'", _APART)
            elif is_within(target, others) or is_within(others, target):
                yield Problem(
                    ("mounts", name, "target"), f"'{target}' and '{others}' of mount '{other}' overlap", _APART
                )


_APART = "give each mount a folder of its own; several sources under one folder are one mount with a list of sources"


def _loops(config: Config, targets: dict[str, str]) -> Iterator[Problem]:
    """Find local stores that lead into a target, at once or by way of another mount that leads back."""
    leads = {name: _leads_to(config, name, targets) for name in targets}
    for name in targets:
        for other in leads[name]:
            if other == name or name in _reachable(leads, other):
                found = (
                    f"a loop: what '{name}' shows leads into the target of '{other}', and that back to '{name}'"
                    if other != name
                    else f"a loop: '{name}' would show its own target, because that and the store's folder overlap"
                )
                yield Problem(
                    ("mounts", name, "target"),
                    found,
                    "keep the folder of a local store and the targets of mounts apart",
                )


def _leads_to(config: Config, name: str, targets: dict[str, str]) -> list[str]:
    folders = [
        store.path
        for part in parts_of(config.mounts[name]).values()
        if isinstance(store := config.stores.get(part.store), LocalStore)
    ]
    return [
        other
        for other, target in targets.items()
        if any(is_within(target, folder) or is_within(folder, target) for folder in folders)
    ]


def _reachable(leads: dict[str, list[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += leads[name]
    return seen


def _cache_problems(config: Config, targets: dict[str, str]) -> Iterator[Problem]:
    root = config.cache.root
    for name, target in targets.items():
        if root is not None and (is_within(root, target) or is_within(target, root)):
            yield Problem(
                ("cache", "root"), f"'{root}' and the target '{target}' of mount '{name}' overlap", "keep them apart"
            )
