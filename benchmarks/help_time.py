"""`amlmount --help` against a plain typer program of as many commands, process against process.

The plain program prints its help without rich, as ours does: the stricter yardstick.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pairs import Line, at_most, paired

CEILING = 1.5
HEAD = "import typer\napp = typer.Typer(rich_markup_mode=None, add_completion=False)\n"
COMMAND = '@app.command()\ndef command{number}(name: str = "x", flag: bool = False) -> None:\n    """Do {number}."""\n'
TAIL = "app()\n"


def command_count() -> int:
    """Return how many commands `amlmount --help` lists."""
    from amlmount.cli.app import app

    return len(app.registered_commands) + len(app.registered_groups)


def plain_program(count: int) -> str:
    """Return the source of a typer program with `count` commands that do nothing."""
    return HEAD + "".join(COMMAND.format(number=number) for number in range(count)) + TAIL


def seconds_of(argv: list[str]) -> float:
    """Run a program to its end and return how long it took."""
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return time.perf_counter() - started


def help_line(trials: int) -> Line:
    """Measure both in turn, after one run of each that only warms the disk."""
    with tempfile.TemporaryDirectory(prefix="amb-") as folder:
        program = Path(folder, "plain.py")
        program.write_text(plain_program(command_count()))
        plain = [sys.executable, str(program), "--help"]
        ours = [sys.executable, "-m", "amlmount", "--help"]
        seconds_of(plain), seconds_of(ours)
        speeds = paired(lambda: seconds_of(ours), lambda: seconds_of(plain), trials)
    return at_most("amlmount --help, against plain typer", tuple(1 / speed for speed in speeds), CEILING, "x")


if __name__ == "__main__":
    print(help_line(15).row())
