"""The command line: the table of commands, the global options, and the one place where errors become exit codes.

Modules of this package import only typer and the standard library at their top.
"""

import errno
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from amlmount.cli import (
    cache_commands,
    change_commands,
    check_command,
    config_commands,
    daemon_commands,
    doctor_commands,
    event_commands,
    flush_command,
    install_commands,
    log_commands,
    mount_commands,
    recover_commands,
    refresh_command,
    render_commands,
    stats_command,
    store_commands,
)
from amlmount.cli.output import Console

INTERRUPTED = 130
EPILOG = (
    "Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 not found, 4 no daemon, 5 authentication, 6 network, "
    "7 some of several failed, 8 busy, 124 timeout, 130 interrupted."
)

app = typer.Typer(
    name="amlmount",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import amlmount

        typer.echo(f"amlmount {amlmount.__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Configuration file or folder (AMLMOUNT_CONFIG).")
    ] = None,
    user: Annotated[bool, typer.Option("--user", help="Use the daemon of this user.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Use the daemon of the system.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print data and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more, in the daemon's log too.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours (as NO_COLOR=1).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep Azure blob containers mounted as folders."""
    if user and system:
        raise typer.BadParameter("--user and --system exclude each other")
    settings: dict[str, Any] = ctx.ensure_object(dict)
    settings |= {"config": config, "system": True if system else False if user else None, "verbose": verbose}
    talk: Console = settings.setdefault("console", Console())
    talk.quiet = quiet
    talk.no_colour |= no_color


app.command()(mount_commands.up)
app.command()(mount_commands.down)
app.command()(mount_commands.ps)
app.command()(change_commands.reload)
app.command()(change_commands.restart)
app.command()(refresh_command.refresh)
app.command()(flush_command.flush)
app.command()(check_command.check)
app.command()(daemon_commands.daemon)
app.command()(daemon_commands.completion)


app.command()(config_commands.init)
app.command()(render_commands.render)
app.command("import")(render_commands.import_)
app.command()(doctor_commands.doctor)
app.command()(stats_command.stats)
app.command()(event_commands.events)
app.command()(log_commands.logs)
app.command()(event_commands.wait)
app.command()(recover_commands.recover)
app.command()(install_commands.install)
app.command()(install_commands.uninstall)
app.add_typer(install_commands.export_app, name="export")
app.add_typer(cache_commands.cache_app, name="cache")
app.add_typer(config_commands.config_app, name="config")
app.add_typer(store_commands.store_app, name="store")


def run(argv: list[str] | None = None) -> None:
    """Run the command line and exit. The only place that prints errors and chooses the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if sys.stdout is None:  # closed by whoever started us: `>&-`
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    console = Console()
    console.as_json = _wants_json(words)
    sys.exit(_run(words, console))


def _wants_json(words: list[str]) -> bool:
    """Say whether data, and so errors, are to be JSON: known here because an error can come before any command."""
    said = [after for word, after in pairwise(words) if word in ("-o", "--output")]
    said += [word.removeprefix(start) for start in ("--output=", "-o") for word in words if word.startswith(start)]
    return any(form in ("json", "jsonl") for form in said)


def _run(argv: list[str], console: Console) -> int:
    from amlmount.errors import AmlmountError

    try:
        if "_AMLMOUNT_COMPLETE" in os.environ:
            from typer import completion

            completion.completion_init()  # type: ignore[attr-defined]
        returned = app(args=argv, prog_name="amlmount", standalone_mode=False, obj={"console": console})
        sys.stdout.flush()
        return returned if isinstance(returned, int) else 0
    except AmlmountError as error:
        console.error(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # Whoever read us has gone (`| head`), which typer turns into an exit with 1 before we see it.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # No more output, so that the interpreter's last flush is quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        # Usage errors of typer; its exception classes have moved between versions, their interface has not.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            return _print_full(error, console)
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        return _print_usage_error(error, console)


def _print_full(error: OSError, console: Console) -> int:
    from amlmount.errors import AmlmountError

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's last flush is quiet
    full = AmlmountError(f"cannot print: {(error.strerror or '').lower()}", hint="standard output goes to a full disk")
    console.error(full)
    return full.exit_code


def _print_usage_error(error: Any, console: Console) -> int:
    from amlmount.errors import UsageError
    from amlmount.redaction import redact_shapes

    if hasattr(error, "message"):
        text = error.message.removeprefix("Value error, ")  # pydantic's words, which typer passes on
        error.message = redact_shapes(text)  # a URL with a SAS, say
    if console.as_json:
        console.error(UsageError(f"cannot read the command line: {error.format_message()}", hint="see --help"))
    else:
        error.show()
    return int(error.exit_code)
