"""Cache directories on disk: whose they are, that they are private, that removing one touches nothing else."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from amlmount.cache import (
    assign_caches,
    find_caches,
    make_cache_directory,
    mount_directory,
    prepare_cache,
    remove_cache,
    used_roots,
)
from amlmount.cache.places import claim, is_used, read_about, session_directory
from amlmount.config.load import config_from
from amlmount.config.locations import Locations
from amlmount.config.models import CacheConfig
from amlmount.config.resolve import DaemonUser, resolve_all
from amlmount.config.spec import MountSpec
from amlmount.errors import AmlmountError, BusyError, ConfigError
from amlmount.supervisor.trimming import trim
from sandbox import lazy_unmount

STORE = {"type": "azure_blob", "account_name": "acc", "container_name": "data", "credentials": {"anonymous": {}}}


def specs(mounts: dict[str, Any] | None = None, **store: Any) -> list[MountSpec]:
    data = {
        "stores": {"s": STORE | store, "here": {"type": "local", "path": "/usr"}},
        "mounts": mounts or {"m": {"target": "/t/m", "source": "s"}},
    }
    return list(resolve_all(config_from(data), DaemonUser(False, os.geteuid(), os.getegid())).values())


@pytest.fixture
def places(tmp_path: Path) -> Locations:
    return Locations(tmp_path / "run", tmp_path / "state", tmp_path / "cache", tmp_path / "run/s", False)


def wanted(tmp_path: Path, **more: object) -> CacheConfig:
    return CacheConfig.model_validate({"root": str(tmp_path / "root"), "keep_free": "1MiB"} | more)


def made(places: Locations, tmp_path: Path, **store: Any) -> str:
    [spec] = assign_caches(specs(**store), wanted(tmp_path), places)
    prepare_cache(spec)
    assert spec.cache_dir is not None and os.path.isdir(spec.cache_dir)
    return spec.cache_dir


def test_a_mount_gets_a_private_directory_and_the_same_again(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    for folder in (path, os.path.dirname(path)):
        assert stat.S_IMODE(os.lstat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.lstat(f"{path}/about.json").st_mode) == 0o600
    assert path.startswith(f"{tmp_path}/root/user-{os.geteuid()}-") and os.path.basename(path).startswith("m-")
    assert made(places, tmp_path) == path
    about = read_about(path)
    assert about is not None and (about.mount, about.source, about.session) == ("m", "acc/data", False)


def test_another_source_never_gets_it_and_another_login_does(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    assert made(places, tmp_path, credentials={"account_key": {"env": "KEY"}}) == path
    others = {made(places, tmp_path, **change) for change in ({"container_name": "other"}, {"account_name": "bcc"})}
    below = {"m": {"target": "/t/m", "source": {"store": "s", "path": "below"}}}
    [spec] = assign_caches(specs(below), wanted(tmp_path), places)
    assert len(others | {path, str(spec.cache_dir)}) == 4
    moved = {"m": {"target": "/elsewhere", "source": "s", "profile": "epochs"}}
    assert assign_caches(specs(moved), wanted(tmp_path), places)[0].cache_dir == path


def test_a_spec_with_a_cache_travels_as_json_and_is_the_same_each_time(places: Locations, tmp_path: Path) -> None:
    for size in ("80%", "100GB"):
        [one] = assign_caches(specs(), wanted(tmp_path, max_size=size), places)
        (tmp_path / "fill").write_bytes(bytes(5 << 20))
        [two] = assign_caches(specs(), wanted(tmp_path, max_size=size), places)
        assert one == two == MountSpec.model_validate_json(one.model_dump_json())
    assert one.cache_max_bytes == 100 * 10**9


def test_who_needs_none_gets_none_and_nothing_is_made(places: Locations, tmp_path: Path) -> None:
    mounts = {
        "local": {"target": "/t/l", "source": "here"},
        "stream": {"target": "/t/s", "source": "s", "profile": "stream"},
    }
    assert [spec.cache_dir for spec in assign_caches(specs(mounts), wanted(tmp_path), places)] == [None, None]
    assert os.listdir(tmp_path) == []


def test_no_place_is_no_error(places: Locations, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("in the way")
    (tmp_path / "cache").write_text("in the way too")
    [spec] = assign_caches(specs(), wanted(tmp_path), places)
    assert spec.cache_dir is None and "so nothing is cached on disk" in spec.cache_note
    prepare_cache(spec)


def test_a_root_that_was_removed_is_made_again(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    [spec] = assign_caches(specs(), wanted(tmp_path), places)
    shutil.rmtree(tmp_path / "root")
    prepare_cache(spec)
    assert read_about(path) is not None and stat.S_IMODE(os.lstat(os.path.dirname(path)).st_mode) == 0o700


def test_roots_are_remembered(places: Locations, tmp_path: Path) -> None:
    for name in ("a", "b", "a"):
        assign_caches(specs(), wanted(tmp_path, root=str(tmp_path / name)), places)
    assert used_roots(places) == [str(tmp_path / "b"), str(tmp_path / "a")]
    (places.state_dir / "cache-roots.json").write_text('{"no": "list"')
    assert used_roots(places) == []


def test_what_is_left_is_found_and_removed(places: Locations, tmp_path: Path) -> None:
    kept, left = made(places, tmp_path), made(places, tmp_path, container_name="old")
    os.makedirs(f"{left}/packs")
    Path(f"{left}/packs/000001.pack").write_bytes(bytes(300_000))
    session = session_directory(str(tmp_path / "root"), places)
    make_cache_directory(session, specs()[0])
    os.mkdir(f"{os.path.dirname(kept)}/not ours")
    found = find_caches([str(tmp_path / "root"), str(tmp_path / "nowhere")], places, [kept])
    assert {cache.path: cache.state for cache in found} == {kept: "kept", left: "left", session: "left"}
    [old] = [cache for cache in found if cache.path == left]
    assert old.size_bytes >= 300_000 and old.source == "acc/old"
    for path in (left, session):
        assert remove_cache(path) > 0
    assert sorted(os.listdir(os.path.dirname(kept))) == [os.path.basename(kept), "not ours"]


def test_a_removal_that_was_cut_short_is_finished(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    os.rename(path, f"{path}.removed")
    os.unlink(f"{path}.removed/about.json")
    Path(f"{path}.removed/x").write_text("x")
    [half] = find_caches([str(tmp_path / "root")], places, [])
    assert half.state == "left"
    remove_cache(half.path)
    assert os.listdir(os.path.dirname(path)) == []


def test_a_cache_that_is_used_stays(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    lock = claim(path)
    assert lock is not None
    try:
        assert is_used(path) and claim(path) is None
        [cache] = find_caches([str(tmp_path / "root")], places, [])
        assert cache.state == "used"
        with pytest.raises(BusyError, match="a mount uses it"):
            remove_cache(path)
        assert trim(path, 1 << 40) == 0
    finally:
        os.close(lock)
    assert not is_used(path) and remove_cache(path) > 0 and not os.path.exists(path)


def test_a_cache_that_an_engine_uses_without_a_lock_is_used(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    [cache] = find_caches([str(tmp_path / "root")], places, [], [path])
    assert cache.state == "used"


def test_what_is_no_cache_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for path in ("data", "link", "nowhere"):
        with pytest.raises(AmlmountError, match="does not look like a cache of ours"):
            remove_cache(str(tmp_path / path))
    assert (tmp_path / "data" / "precious").read_text() == "x"


@pytest.mark.root
def test_a_cache_of_another_user_is_refused(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    os.chown(path, 12345, -1)
    assert read_about(path) is None
    with pytest.raises(ConfigError, match="it belongs to user 12345"):
        make_cache_directory(path, specs()[0])


def test_symlinks_are_not_followed(places: Locations, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    path = made(places, tmp_path)
    os.symlink(tmp_path / "data", f"{path}/blobs")
    os.symlink(tmp_path / "data" / "precious", f"{path}/pins")
    remove_cache(path)
    assert (tmp_path / "data" / "precious").read_text() == "x" and not os.path.lexists(path)


def test_a_dry_run_removes_nothing(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    assert remove_cache(path, dry_run=True) > 0
    assert os.listdir(path) == ["about.json"]


@pytest.mark.root
@pytest.mark.parametrize("bind", [False, True])
def test_what_is_mounted_in_a_cache_is_not_touched(places: Locations, tmp_path: Path, bind: bool) -> None:
    """A bind mount is of the same disk, so only the mount table shows it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    path = made(places, tmp_path)
    point = f"{path}/blobs"
    os.mkdir(point)
    argv = ["--bind", str(tmp_path / "data")] if bind else ["-t", "tmpfs", "none"]
    subprocess.run(["mount", *argv, point], check=True, timeout=10)
    try:
        Path(point, "inside").write_text("x")
        with pytest.raises(AmlmountError, match="something is mounted at"):
            remove_cache(path)
        assert os.path.exists(f"{point}/inside") and (tmp_path / "data" / "precious").exists()
    finally:
        lazy_unmount(point)


def test_trimming_takes_the_least_recently_used_and_leaves_the_pinned(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    os.makedirs(f"{path}/packs")
    os.makedirs(f"{path}/blobs/ab")
    for base, age_s in (("packs/000001", 30), ("packs/000002", 20), ("blobs/ab/abcd", 10), ("packs/000003", 40)):
        data, index = (".data", ".map") if base.startswith("blobs") else (".pack", ".index")
        for ending in (data, index):
            Path(f"{path}/{base}{ending}").write_bytes(b"x" * 100_000)
            os.utime(f"{path}/{base}{ending}", (10**9 - age_s, 10**9 - age_s))
    Path(f"{path}/pins").write_text("packs/000003\n")
    assert trim(path, 150_000) >= 150_000
    assert sorted(os.listdir(f"{path}/packs")) == ["000003.index", "000003.pack"]
    assert trim(path, 1 << 40) > 0
    assert os.listdir(f"{path}/blobs/ab") == [] and len(os.listdir(f"{path}/packs")) == 2


def test_the_lock_goes_with_the_process(places: Locations, tmp_path: Path) -> None:
    path = made(places, tmp_path)
    code = f"from amlmount.cache.places import claim; print(claim({path!r}) is not None, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "True\n"
        assert is_used(path) and claim(path) is None
    finally:
        child.kill()
        child.communicate()
    lock = claim(path)
    assert lock is not None
    os.close(lock)


def test_two_daemons_never_share_one(places: Locations, tmp_path: Path) -> None:
    other = Locations(tmp_path / "run2", places.state_dir, places.cache_root, tmp_path / "run2/s", False)
    assert mount_directory("/r", places, specs()[0]) != mount_directory("/r", other, specs()[0])
