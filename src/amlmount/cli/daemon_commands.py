"""`amlmount daemon`, which is the daemon itself, and `amlmount completion`."""

from enum import StrEnum
from typing import Annotated

import typer

from amlmount.cli.settings import locations, named_config, setting


class Shell(StrEnum):
    """Shells that can complete our commands."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def daemon(
    ctx: typer.Context,
    auto: Annotated[bool, typer.Option("--auto", hidden=True)] = False,
    ready_fd: Annotated[int | None, typer.Option("--ready-fd", hidden=True)] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", show_default=False, help="Log to standard error (the default).")
    ] = True,
    watch: Annotated[
        bool, typer.Option("--watch", help="Read the configuration again whenever its files change.")
    ] = False,
) -> None:
    """Run the daemon that keeps mounts mounted, until SIGTERM; SIGHUP reads the configuration again.

    You need not call it: `amlmount up` starts one, and a service runs this.
    """
    from amlmount.daemon import Options, main

    main(Options(locations(ctx), named_config(ctx), auto, ready_fd, bool(setting(ctx, "verbose")), watch))


def completion(shell: Annotated[Shell, typer.Argument(help="Your shell.")]) -> None:
    """Print the completion script of a shell: `source <(amlmount completion bash)`."""
    from typer import completion as scripts

    # Not in typer's __all__, but the function behind its own --show-completion.
    typer.echo(
        scripts.get_completion_script(  # type: ignore[attr-defined]
            prog_name="amlmount", complete_var="_AMLMOUNT_COMPLETE", shell=shell.value
        )
    )
