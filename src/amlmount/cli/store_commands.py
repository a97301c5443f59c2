"""`amlmount store ls | show | test`: what the configuration says of stores, and whether one can be reached.

Only typer is imported at the top: `amlmount --help` must not wait for what these commands need.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amlmount.cli.output import Console, Format, Output, print_objects, print_table
from amlmount.cli.settings import console, setting

if TYPE_CHECKING:
    from amlmount.config.models import Config
    from amlmount.errors import AmlmountError

store_app = typer.Typer(no_args_is_help=True, help="Look at stores and find out why one does not work.")


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a store in the configuration.")]


@store_app.command("ls")
def list_stores(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """List the stores of the configuration."""
    config = _load(ctx)
    rows = [_row(config, name) for name in sorted(config.stores)]
    if output is not Format.TABLE:
        print_objects(rows, output)
        return
    cells = [(row["name"], row["type"], row["where"], row["login"], ", ".join(row["mounts"]) or "-") for row in rows]
    print_table(console(ctx), ("NAME", "TYPE", "WHERE", "LOGIN", "MOUNTS"), cells)


@store_app.command()
def show(ctx: typer.Context, name: NameArgument, output: Output = Format.TABLE) -> None:
    """Show one store: its address, its login (references only) and the mounts that use it."""
    config = _load(ctx)
    fields = _details(config, _known(config, name))
    if output is not Format.TABLE:
        typer.echo(json.dumps({"schema_version": 1, **fields}, indent=2 if output is Format.JSON else None))
        return
    for key, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value)
        typer.echo(f"{key.replace('_', ' ') + ':':14} {text}")


@store_app.command()
def test(ctx: typer.Context, name: NameArgument, output: Output = Format.TABLE) -> None:
    """Try a store step by step, from its name to one entry of its listing, and say what to do at the first failure."""
    config = _load(ctx)
    steps, failure = [], None
    for step, detail, error in _steps(config, _known(config, name)):
        failure = error
        steps.append({"step": step, "ok": error is None, "detail": detail, "hint": error.hint if error else None})
        if output is Format.TABLE:
            _print_step(console(ctx), step, detail, error)
    if output is not Format.TABLE:
        report = {"schema_version": 1, "name": name, "ok": failure is None, "steps": steps}
        typer.echo(json.dumps(report, indent=2 if output is Format.JSON else None))
    if failure is not None:
        raise typer.Exit(failure.exit_code)


def _print_step(talk: Console, step: str, detail: str, error: "AmlmountError | None") -> None:
    mark = talk.paint("ok  ", typer.colors.GREEN) if error is None else talk.paint("FAIL", typer.colors.RED)
    typer.echo(f"{mark}  {step:8}  {detail}")
    if error is not None and error.hint:
        typer.echo(f"      {'':8}  hint: {error.hint}")


def _load(ctx: typer.Context) -> "Config":
    from amlmount.config.load import load_config, required_files

    return load_config(required_files(setting(ctx, "config"), system=setting(ctx, "system")))


def _known(config: "Config", name: str) -> str:
    if name in config.stores:
        return name
    import difflib

    from amlmount.errors import NotFoundError

    near = difflib.get_close_matches(name, config.stores, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(sorted(config.stores)) or 'none'}"
    raise NotFoundError(f"cannot find store {name!r} in the configuration", hint=hint)


def _row(config: "Config", name: str) -> dict[str, Any]:
    store = config.stores[name]
    return {
        "schema_version": 1,
        "name": name,
        "type": store.type,
        "where": _where(store),
        "login": _login(store),
        "mounts": _mounts_of(config, name),
    }


def _where(store: Any) -> str:
    if store.type == "local":
        return str(store.path)
    return f"{store.account_name}/{store.container or '*'}"


def _login(store: Any) -> str:
    if store.type == "local":
        return "-"
    if store.credentials is None:
        return "found on the machine"
    from amlmount.config.credentials import CREDENTIAL_KINDS

    return next(kind for kind, model in CREDENTIAL_KINDS.items() if isinstance(store.credentials, model))


def _mounts_of(config: "Config", name: str) -> list[str]:
    from amlmount.config.checks import parts_of

    users = (mount for mount, given in config.mounts.items() if any(p.store == name for p in parts_of(given).values()))
    return sorted(users)


def _details(config: "Config", name: str) -> dict[str, Any]:
    from amlmount.config.store_models import dump_store

    store = config.stores[name]
    fields: dict[str, Any] = {"name": name, **dump_store(store), "mounts": _mounts_of(config, name)}
    if store.type != "local":
        fields["url"] = store.blob_url + (f"/{store.container}" if store.container else "")
    return fields


def _steps(config: "Config", name: str) -> Iterator[tuple[str, str, "AmlmountError | None"]]:
    from amlmount.config.store_models import dump_store

    definition = dump_store(config.stores[name])
    if definition["type"] == "local":
        yield _try_local(definition)
        return
    from amlmount.stores.azure.diagnose import diagnose

    for step in diagnose(definition):
        yield step.name, step.detail, step.error


def _try_local(definition: dict[str, object]) -> tuple[str, str, "AmlmountError | None"]:
    from amlmount.errors import AmlmountError
    from amlmount.stores import open_store

    store = open_store(definition)
    try:
        page = next(iter(store.list(delimiter=True, page_size=1)), None)
    except AmlmountError as error:
        return "list", error.message, error
    finally:
        store.close()
    names = [info.name for info in page.objects] + page.prefixes if page else []
    return "list", f"first entry: {names[0]!r}" if names else "the folder is empty", None
