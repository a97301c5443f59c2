"""The wheel, installed into an empty virtual environment, works without the checkout."""

import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from world import World

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.timeout(400)


def call(*argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bin directory of an environment that holds nothing but the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    bin_dir = folder / "venv" / "bin"
    call(bin_dir / "python", "-m", "pip", "install", "-q", "-c", ROOT / "install" / "constraints.txt", wheel)
    yield bin_dir


def test_the_command_runs(installed: Path, tmp_path: Path) -> None:
    assert call(installed / "amlmount", "--version", cwd=tmp_path).startswith("amlmount 0.")


def test_templates_and_units_are_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files; root = files('amlmount');"
        "print(*sorted(p.name for d in ('templates', 'units', 'units/user') for p in (root / d).iterdir()))"
    )
    shipped = call(installed / "python", "-c", code, cwd=tmp_path).split()
    ours = {p.name for folder in ("templates", "systemd", "systemd/user") for p in (ROOT / folder).iterdir()}
    assert ours and ours <= set(shipped)


def test_a_folder_is_mounted_by_it(installed: Path, world: World, tmp_path: Path) -> None:
    container, target = tmp_path / "container", tmp_path / "target"
    container.mkdir()
    (container / "hello.txt").write_text("hello")
    world.write_config(
        f"stores: {{data: {{type: local, path: {container}}}}}\nmounts: {{data: {{target: {target}, source: data}}}}\n"
    )
    call(installed / "amlmount", "up", cwd=tmp_path, env=world.env)
    try:
        assert call("cat", target / "hello.txt") == "hello"
    finally:
        call(installed / "amlmount", "down", cwd=tmp_path, env=world.env)
