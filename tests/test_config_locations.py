"""Where a daemon keeps things: for root, for a user, and with every variable; a foreign directory is refused."""

import os
import stat
from pathlib import Path

import pytest

from amlmount.config import locations
from amlmount.config.locations import SOCKET_PATH_MAX_BYTES, find_locations, make_private_dir
from amlmount.errors import ConfigError


def test_the_systems_places() -> None:
    found = find_locations(system=True, env={})
    assert (found.runtime_dir, found.state_dir) == (Path("/run/amlmount"), Path("/var/lib/amlmount"))
    assert (found.socket, found.is_system) == (Path("/run/amlmount/amlmount.sock"), True)


def test_a_users_places_are_those_of_xdg(tmp_path: Path) -> None:
    env = {f"XDG_{kind}": str(tmp_path / kind) for kind in ("STATE_HOME", "CACHE_HOME")}
    found = find_locations(system=False, env=env | {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert found.runtime_dir == tmp_path / "amlmount"
    assert found.state_dir == tmp_path / "STATE_HOME" / "amlmount"
    assert found.cache_root == tmp_path / "CACHE_HOME" / "amlmount"
    assert not found.is_system


def test_without_xdg_a_user_has_folders_at_home_and_a_private_one_in_tmp(tmp_path: Path) -> None:
    found = find_locations(system=False, env={"HOME": str(tmp_path), "XDG_STATE_HOME": "relative/is/ignored"})
    assert found.state_dir == tmp_path / ".local/state/amlmount"
    assert found.cache_root == tmp_path / ".cache/amlmount"
    assert found.runtime_dir == Path(f"/tmp/amlmount-{os.geteuid()}")


def test_a_runtime_dir_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After su, XDG_RUNTIME_DIR still names the directory of the user before."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    env = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    assert find_locations(system=False, env=env).runtime_dir == Path("/tmp/amlmount-54321")


@pytest.mark.parametrize("system", [True, False])
def test_the_variables_win(tmp_path: Path, system: bool) -> None:
    env = {f"AMLMOUNT_{kind}": str(tmp_path / kind) for kind in ("RUNTIME_DIR", "STATE_DIR", "CACHE_ROOT", "SOCKET")}
    found = find_locations(system=system, env=env)
    assert found.runtime_dir == tmp_path / "RUNTIME_DIR"
    assert (found.state_dir, found.cache_root) == (tmp_path / "STATE_DIR", tmp_path / "CACHE_ROOT")
    assert found.socket == tmp_path / "SOCKET"


def test_the_socket_is_in_the_runtime_dir_unless_it_is_named(tmp_path: Path) -> None:
    assert find_locations(env={"AMLMOUNT_RUNTIME_DIR": str(tmp_path)}).socket == tmp_path / "amlmount.sock"


def test_unsaid_root_is_the_system() -> None:
    assert find_locations(env={"AMLMOUNT_RUNTIME_DIR": "/x"}).is_system == (os.geteuid() == 0)


@pytest.mark.parametrize("letter", ["x", "ä"])
def test_a_socket_path_the_kernel_would_not_take_is_refused_to_the_byte(letter: str) -> None:
    room = SOCKET_PATH_MAX_BYTES - len("/") - len("/amlmount.sock")
    fits = "/" + letter * (room // len(letter.encode()))
    fits += "x" * (room + 1 - len(fits.encode()))
    assert len(os.fsencode(find_locations(env={"AMLMOUNT_RUNTIME_DIR": fits}).socket)) == SOCKET_PATH_MAX_BYTES
    with pytest.raises(ConfigError, match="has 108 bytes, the limit is 107") as caught:
        find_locations(env={"AMLMOUNT_RUNTIME_DIR": f"{fits}x"})
    assert "AMLMOUNT_RUNTIME_DIR" in str(caught.value.hint)


def test_a_private_directory_is_made_and_only_ours(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make_private_dir(tmp_path / "a" / "b")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    make_private_dir(tmp_path / "a" / "b")


def test_a_directory_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="others can enter it"):
        make_private_dir(tmp_path)


def test_a_link_planted_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "planted").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="it is not a directory"):
        make_private_dir(tmp_path / "planted")


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigError, match="it belongs to user"):
        locations.check_private_dir(tmp_path)
