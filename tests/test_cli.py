"""The command line itself: what it costs to start, its help, completion, errors, pipes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amlmount.cli.output import age
from amlmount.cli.settings import complete_mount
from daemons import make_pair
from world import World

HEAVY = ("pydantic", "yaml", "aiohttp", "azure", "rich.console", "obstore", "asyncio", "http.client", "subprocess")


def imported_by(code: str, env: dict[str, str] | None = None) -> set[str]:
    """Return the modules that a fresh interpreter has after `code`, less those that typer alone brings."""

    def modules(source: str) -> set[str]:
        argv = [sys.executable, "-c", f"{source}\nimport sys; print(*sys.modules)"]
        return set(subprocess.run(argv, capture_output=True, env=env, text=True, check=True, timeout=30).stdout.split())

    return modules(code) - modules("import typer")


def test_starting_imports_nothing_heavy() -> None:
    found = imported_by("import amlmount.cli.app")
    assert not [name for name in found if name.startswith(HEAVY)]


def test_asking_for_help_imports_nothing_heavy() -> None:
    code = "import amlmount.cli.app as a, contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    code += " try: a.run(['--help'])\n except SystemExit: pass"
    assert not [name for name in imported_by(code) if name.startswith(HEAVY)]


def test_asking_the_daemon_needs_no_server_and_no_configuration(world: World) -> None:
    code = "import amlmount.cli.app as a, contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    code += " try: a.run(['ps'])\n except SystemExit: pass"
    found = imported_by(code, world.env)
    assert "amlmount.client" in found
    # pydantic itself comes with newer typers, which read their parameters with it.
    assert not [name for name in found if name.startswith(("aiohttp", "azure", "asyncio", "yaml", "amlmount.config.m"))]


def test_version_and_help(world: World) -> None:
    import amlmount

    assert world.cli("--version").stdout == f"amlmount {amlmount.__version__}\n"
    text = world.cli("--help").stdout
    assert "Exit codes: 0 ok" in text
    for command in ("up", "down", "ps", "daemon", "completion"):
        assert f"\n  {command} " in text
        assert world.cli(command, "--help").returncode == 0


def test_the_docs_know_every_command_and_every_exit_code() -> None:
    from amlmount.cli.app import app
    from amlmount.errors import AmlmountError

    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    names |= {group.name or "" for group in app.registered_groups}
    assert [name for name in names if f"`{name}" not in text] == []
    kinds, codes = [AmlmountError], {0, 130}
    for kind in kinds:
        codes.add(kind.exit_code)
        kinds += kind.__subclasses__()
    assert [code for code in codes if f"| {code} |" not in text] == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nope"], "No such command 'nope'"),
        (["up", "--timeout", "5"], "a number needs its unit, as in 5s"),
        (["ps", "-o", "xml"], "'xml' is not one of"),
        (["--user", "--system", "ps"], "exclude each other"),
        (["down", "--all", "x"], "cannot take both names and --all"),
    ],
)
def test_usage_errors(world: World, args: list[str], says: str) -> None:
    done = world.cli(*args)
    assert done.returncode == 2 and says in done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "Value error"))


@pytest.mark.parametrize("form", [["-o", "json"], ["-ojson"], ["--output=jsonl"]])
def test_who_asks_for_json_gets_usage_errors_as_json(world: World, form: list[str]) -> None:
    done = world.cli("ps", "--nope", *form)
    assert (done.returncode, done.stdout) == (2, "")
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "usage" and "No such option: --nope" in error["message"]


def test_a_reader_that_goes_away_is_no_error(world: World) -> None:
    make_pair(world)
    argv = " ".join(f"'{arg}'" for arg in world.argv("ps", "-a", "-o", "json"))
    script = f"{argv} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=world.env, capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(("where", "code", "said"), [(">/dev/full", 1, "cannot print: no space left"), (">&-", 0, "")])
def test_output_that_cannot_be_written_is_no_traceback(world: World, where: str, code: int, said: str) -> None:
    make_pair(world)
    argv = ["sh", "-c", f'exec "$@" {where}', "sh", *world.argv("ps", "-a")]
    done = subprocess.run(argv, env=world.env, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert said in done.stderr and bool(said) == bool(done.stderr)


def test_ctrl_c_is_130(world: World) -> None:
    code = "import os, signal, amlmount.cli.launch as l, amlmount.cli.app as a\n"
    code += "l.find_daemon = lambda ctx: os.kill(os.getpid(), signal.SIGINT)\na.run(['ps'])"
    done = subprocess.run([sys.executable, "-c", code], env=world.env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 128 + signal.SIGINT and "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(world: World, shell: str) -> None:
    script = world.cli("completion", shell).stdout
    assert "_AMLMOUNT_COMPLETE" in script and "amlmount" in script


def test_completion_offers_commands_and_mounts(world: World) -> None:
    make_pair(world)

    def offered(words: str, index: int) -> set[str]:
        env = {"_AMLMOUNT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        return set(world.cli(env=env).stdout.split())

    assert {"up", "ps", "down"} <= offered("amlmount ", 1)
    assert offered("amlmount up ", 2) == {"red", "blue"}
    assert offered("amlmount down r", 2) == {"red"}
    world.write_config("mounts: [")
    assert offered("amlmount up ", 2) == set(), "a broken file completes nothing and says nothing"
    assert complete_mount is not None


def test_quiet(world: World) -> None:
    assert world.cli("-q", "down").stderr == ""
    assert world.cli("down").stderr == "nothing is mounted: no daemon runs\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.9, "59s"), (60, "1m"), (3600 * 5, "5h"), (86400 * 9 + 5, "9d")]
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text
