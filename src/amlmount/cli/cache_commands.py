"""`amlmount cache ls | du | prune | clear | pin | unpin`: what caches there are on disk, and taking them away.

`cache warm` is in warm_command.
"""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amlmount.cli import launch, warm_command
from amlmount.cli.output import Console, Format, Output, age, for_each, print_objects, print_table
from amlmount.cli.settings import complete_mount, console, locations, named_config, setting

if TYPE_CHECKING:
    from amlmount.cache import CacheInfo
    from amlmount.config.models import Config, Mount
    from amlmount.states import MountStatus

cache_app = typer.Typer(no_args_is_help=True, help="Look after the caches on disk.")
cache_app.command()(warm_command.warm)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The mount.", autocompletion=complete_mount)]
Pattern = Annotated[str, typer.Argument(metavar="GLOB", help="Files below the mount, such as '*.jpg' or 'a/**'.")]
PIN_TIMEOUT_S = 600.0


@cache_app.command()
def ls(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Show the cache of every mount: in use, kept for the next time, or left of a mount that is no more."""
    caches = _Caches(ctx).found
    if output is not Format.TABLE:
        print_objects([cache.to_json() for cache in caches], output)
        return
    print_table(console(ctx), ("NAME", "STATE", "SIZE", "USED", "SOURCE", "PATH"), [_row(cache) for cache in caches])


@cache_app.command()
def du(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Show how much of the disk caches take, and how much they may."""
    roots = _Caches(ctx).roots()
    if output is not Format.TABLE:
        print_objects(roots, output)
        return
    from amlmount.config.units import rough_size

    keys = ("used_bytes", "allowed_bytes", "free_bytes")
    rows = [(root["root"], *(rough_size(root[key]) for key in keys)) for root in roots]
    print_table(console(ctx), ("ROOT", "USED", "ALLOWED", "FREE"), rows)


@cache_app.command()
def prune(ctx: typer.Context, dry_run: DryRun = False, output: Output = Format.TABLE) -> None:
    """Remove what is left of mounts that are no longer in the configuration, and of programs that have ended."""
    caches = [cache for cache in _Caches(ctx).found if cache.state == "left"]
    _remove(console(ctx), caches, dry_run, output)


@cache_app.command()
def clear(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A mount; none means all.", autocompletion=complete_mount)
    ] = None,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Empty caches. A mount that is up keeps what is open or pinned, and goes on."""
    from amlmount.errors import NotFoundError

    caches = _Caches(ctx)
    meant = caches.found if name is None else caches.of(name)
    if name is not None and not meant and name not in caches.wanted:
        known = ", ".join(caches.wanted) or "none"
        raise NotFoundError(f"cannot find a mount with a cache called '{name}'", hint=f"mounts with a cache: {known}")
    served = [cache for cache in meant if cache.state == "used"]
    for cache in served if not dry_run else []:
        _clear_served(ctx, cache)
    _remove(console(ctx), [cache for cache in meant if cache not in served], dry_run, output, also=served)


@cache_app.command()
def pin(ctx: typer.Context, name: Name, glob: Pattern, output: Output = Format.TABLE) -> None:
    """Keep files that are in the cache from being evicted, until they change or are unpinned; survives a restart.

    Small files are kept together, so pinning one keeps its neighbours too.
    """
    _pin(ctx, name, glob, True, output)


@cache_app.command()
def unpin(ctx: typer.Context, name: Name, glob: Pattern, output: Output = Format.TABLE) -> None:
    """Let files be evicted again."""
    _pin(ctx, name, glob, False, output)


class _Caches:
    """The caches of the daemon that is meant, by its own configuration if it runs."""

    def __init__(self, ctx: typer.Context) -> None:
        from amlmount.cache import find_caches, temporary_roots, used_roots

        places = locations(ctx)
        self.config = _config(ctx)
        named = [self.config.cache.root] if self.config.cache.root else []
        self._roots = list(dict.fromkeys([*used_roots(places), *named, *temporary_roots(), str(places.cache_root)]))
        self.wanted = _wanted(self.config, self._roots, ctx)
        wanted = [path for paths in self.wanted.values() for path in paths]
        self._accounts = {name for name, mount in self.config.mounts.items() if _is_account(mount)}
        self.found = [self._known(cache) for cache in find_caches(self._roots, places, wanted, _in_use(ctx))]

    def of(self, name: str) -> "list[CacheInfo]":
        """Return the caches of a mount; of an account, or of one of its containers, by the name they bear."""
        if name.partition("/")[0] in self._accounts:
            return [cache for cache in self.found if f"{cache.name}/".startswith(f"{name}/")]
        return [cache for cache in self.found if cache.path in self.wanted.get(name, ())]

    def _known(self, cache: "CacheInfo") -> "CacheInfo":
        """Tell the cache of an account's container from those that are left: which it has, only the store knows."""
        is_kept = cache.state == "left" and cache.name.partition("/")[0] in self._accounts
        return replace(cache, state="kept") if is_kept else cache

    def roots(self) -> list[dict[str, Any]]:
        """Return for each root that has caches what they take, what they may, and what is free."""
        from amlmount.cache import Disks, budget_bytes, is_named_root

        found = []
        for root in self._roots:
            used = sum(cache.size_bytes for cache in self.found if cache.path.startswith(f"{root}/"))
            if any(cache.path.startswith(f"{root}/") for cache in self.found):
                allowed = budget_bytes(
                    self.config.cache, root, used_bytes=used, is_named=is_named_root(self.config.cache)
                )
                free = Disks().usage(root).free_bytes
                sizes = {"used_bytes": used, "allowed_bytes": allowed, "free_bytes": free}
                found.append({"schema_version": 1, "root": root, **sizes})
        return found


def _is_account(mount: "Mount") -> bool:
    from amlmount.config.models import ContainersSource

    return isinstance(mount.source, ContainersSource)


def _config(ctx: typer.Context) -> "Config":
    from pathlib import Path

    from amlmount.config.load import config_files, load_config

    client = launch.find_daemon(ctx)
    told = client.ping()["config"] if client else None
    explicit = Path(told) if told else named_config(ctx)
    return load_config(config_files(explicit, system=setting(ctx, "system")))


def _in_use(ctx: typer.Context) -> list[str]:
    mounts = launch.ask(ctx, lambda client: client.status()) or []
    return [status.cache_dir for status in mounts if status.cache_dir and status.state != "unmounted"]


def _wanted(config: "Config", roots: list[str], ctx: typer.Context) -> dict[str, list[str]]:
    """Return where the cache of each configured mount may be, by its name."""
    from amlmount.cache import mount_directory, needs_cache
    from amlmount.config.resolve import resolve_all

    specs = [spec for spec in resolve_all(config).values() if needs_cache(spec)]
    return {spec.name: [mount_directory(root, locations(ctx), spec) for root in roots] for spec in specs}


def _row(cache: "CacheInfo") -> tuple[str, ...]:
    from amlmount.config.units import rough_size

    used = f"{age(max(0.0, time.time() - cache.last_used_s))} ago" if cache.last_used_s else "-"
    return (cache.name, cache.state, rough_size(cache.size_bytes), used, cache.source, cache.path)


def _clear_served(ctx: typer.Context, cache: "CacheInfo") -> None:
    from amlmount.errors import BusyError

    how: dict[str, Any] = {}
    answer = launch.ask(ctx, lambda client: client.ask_cache(cache.name, "cache_clear", how, timeout_s=PIN_TIMEOUT_S))
    if answer is None:
        raise BusyError(f"cannot clear the cache of '{cache.name}': a process that is no daemon's uses it")


def _remove(
    talk: Console, caches: "list[CacheInfo]", dry_run: bool, output: Format, also: "list[CacheInfo] | None" = None
) -> None:
    """Remove caches, or say that they would be; `also` are done already and only told."""
    from amlmount.cache import remove_cache
    from amlmount.config.units import counted, rough_size
    from amlmount.errors import AmlmountError, PartialError

    errors: dict[str, Any] = {}
    for cache in caches:
        try:
            remove_cache(cache.path, dry_run=dry_run)
        except (AmlmountError, OSError) as error:
            errors[cache.path] = _as_json(cache, error)
    done = [cache for cache in [*(also or []), *caches] if cache.path not in errors]
    if output is not Format.TABLE:
        print_objects([cache.to_json() for cache in done], output)
    else:
        verb = "would clear" if dry_run else "cleared"
        for cache in done:
            talk.note(f"{cache.name}: {verb} {rough_size(cache.size_bytes)} in {cache.path}")
        if not done and not errors:
            talk.note("nothing to remove")
    if errors:
        raise PartialError(
            f"cannot remove {len(errors)} of {counted(len(caches), 'cache')}", details={"errors": errors}
        )


def _as_json(cache: "CacheInfo", error: Exception) -> dict[str, Any]:
    from amlmount.errors import AmlmountError

    if isinstance(error, OSError):
        error = AmlmountError(f"cannot remove '{cache.path}': {(error.strerror or '').lower()}")
    return error.to_json() if isinstance(error, AmlmountError) else {}


def _pin(ctx: typer.Context, name: str, glob: str, pinned: bool, output: Format) -> None:
    """Ask each mount that is meant. Of an account, containers without a match are left out unless all are."""
    from amlmount.errors import DaemonUnreachableError, UsageError

    talk, how = console(ctx), {"glob": glob, "pinned": pinned}
    mounts = launch.ask(ctx, lambda client: launch.mounts_called(client, name))
    client = launch.find_daemon(ctx)
    if mounts is None or client is None:
        raise DaemonUnreachableError(f"cannot ask '{name}': no daemon runs", hint=f"run: amlmount up {name}")
    answers: dict[str, dict[str, Any]] = {}
    unmatched: list[UsageError] = []

    def ask_one(status: "MountStatus") -> None:
        try:
            answers[status.name] = client.ask_cache(status.name, "cache_pin", how, timeout_s=PIN_TIMEOUT_S)
        except UsageError as error:
            unmatched.append(error)

    try:
        for_each(talk, mounts, "ask", ask_one)
    finally:
        _tell_pins(talk, answers, glob, pinned, output)
    if unmatched and not answers:
        raise unmatched[0]


def _tell_pins(talk: Console, answers: dict[str, dict[str, Any]], glob: str, pinned: bool, output: Format) -> None:
    from amlmount.config.units import counted

    if output is not Format.TABLE and answers:
        print_objects([{"schema_version": 1, "name": mount, **answer} for mount, answer in answers.items()], output)
        return
    for mount, answer in answers.items():
        talk.note(f"{mount}: {counted(answer['files'], 'file')} {'pinned' if pinned else 'no longer pinned'}")
        if pinned and answer["not_cached"]:
            missing = counted(answer["not_cached"], "file")
            talk.note(f"{missing} not in the cache: `amlmount cache warm {mount} '{glob}'` brings them")
