"""Which directory caches go to: machines with and without a temporary disk, as lists of mounts, and a real tmpfs."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from amlmount.cache import Disks, DiskUsage, budget_bytes, choose_root
from amlmount.cache.places import daemon_id, make_daemon_directory
from amlmount.config.locations import Locations
from amlmount.config.models import CacheConfig
from amlmount.mounts.mountinfo import parse
from sandbox import Sandbox, lazy_unmount

GB = 10**9
GIB = 1 << 30
SYSTEM = "20 1 8:1 / / rw - ext4 /dev/sda1 rw"
TEMPORARY = "21 20 8:17 / /mnt rw - ext4 /dev/sdb1 rw"
RESOURCE = "22 20 8:33 / /mnt/resource rw - xfs /dev/sdc1 rw"


def machine(*lines: str, free: dict[str, int] | None = None) -> Disks:
    """A machine with these mounts; each disk has 100 GB, of which `free` (else 50 GB) are free."""
    table = parse("\n".join(lines).encode())

    def usage(path: str) -> DiskUsage:
        inside = [e.mount_point for e in table if f"{path}/".startswith(e.mount_point.rstrip("/") + "/")]
        return DiskUsage(100 * GB, (free or {}).get(max(inside, key=len), 50 * GB))

    return Disks(mounts=lambda: table, usage=usage)


def places(root: Path = Path("/"), *, is_system: bool = True) -> Locations:
    runtime = Path("/run/amlmount") if is_system else root / "run"
    return Locations(runtime, root / "state", root / "var/cache/amlmount", runtime / "s", is_system)


def chosen(disks: Disks, wanted: CacheConfig | None = None, **options: object) -> tuple[str | None, bool, str]:
    made = {"env": {}, "prepare": lambda path: None} | options
    root = choose_root(wanted or CacheConfig(), places(), disks=disks, **made)  # type: ignore[arg-type]
    return root.path, root.is_ephemeral, root.note


USUAL = "/var/cache/amlmount"


def test_a_temporary_disk_comes_before_the_system_disk() -> None:
    assert chosen(machine(SYSTEM, TEMPORARY)) == ("/mnt/amlmount/cache", True, "")


def test_the_temporary_disk_of_other_distributions() -> None:
    assert chosen(machine(SYSTEM, RESOURCE)) == ("/mnt/resource/amlmount/cache", True, "")


def test_a_folder_called_mnt_is_no_disk() -> None:
    """Sizes without a temporary disk, and v6 sizes whose NVMe disks have no file system."""
    assert chosen(machine(SYSTEM)) == (USUAL, False, "")


@pytest.mark.parametrize("line", ["21 20 8:1 /x /mnt rw - ext4 /dev/sda1 rw", "21 20 0:40 / /mnt rw - tmpfs none rw"])
def test_a_part_of_the_system_disk_or_memory_at_mnt_is_none_either(line: str) -> None:
    assert chosen(machine(SYSTEM, line))[0] == USUAL


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "fuse.blobfuse2", "9p"])
def test_what_is_not_local_is_never_used(kind: str) -> None:
    remote = f"21 20 0:44 / /mnt rw - {kind} server rw"
    assert chosen(machine(SYSTEM, remote))[0] == USUAL
    path, _, note = chosen(machine(SYSTEM, remote), CacheConfig(root="/mnt/c"))
    assert path == USUAL and note == f"'/mnt/c' is on {kind}, which is no local disk"


def test_of_two_temporary_disks_the_one_with_most_room_and_then_always_that() -> None:
    both = machine(SYSTEM, TEMPORARY, RESOURCE, free={"/mnt": 20 * GB, "/mnt/resource": 70 * GB})
    assert chosen(both)[0] == "/mnt/resource/amlmount/cache"
    assert chosen(both, remembered="/mnt/amlmount/cache")[0] == "/mnt/amlmount/cache"
    assert chosen(both, remembered=USUAL)[0] == "/mnt/resource/amlmount/cache"


def test_the_system_disk_is_not_filled() -> None:
    assert chosen(machine(SYSTEM, free={"/": 10 * GIB})) == (
        None,
        False,
        f"'{USUAL}' has no room: 10.7 GB are free on the system disk, and 10.7 GB are to stay free; "
        "so nothing is cached on disk",
    )
    little = CacheConfig.model_validate({"keep_free": "1GB"})
    assert chosen(machine(SYSTEM, free={"/": 9 * GB}), little)[0] is None
    assert chosen(machine(SYSTEM, free={"/": 12 * GB}), little)[0] == USUAL


def test_who_names_a_root_may_fill_the_system_disk_to_what_they_say() -> None:
    named = CacheConfig.model_validate({"root": "/data/c", "keep_free": "1GB"})
    assert chosen(machine(SYSTEM, free={"/": 3 * GB}), named) == ("/data/c", False, "")
    assert chosen(machine(SYSTEM, free={"/": 1 * GB}), named)[0] is None


def test_a_named_root_that_will_not_do_is_passed_over_and_said_so() -> None:
    def prepare(path: str) -> None:
        if path.startswith("/data"):
            raise PermissionError(13, "Permission denied")

    path, is_ephemeral, note = chosen(machine(SYSTEM, TEMPORARY), CacheConfig(root="/data/c"), prepare=prepare)
    assert (path, is_ephemeral) == ("/mnt/amlmount/cache", True)
    assert note == "'/data/c' cannot be written (permission denied)"


def test_a_temporary_disk_that_is_full_or_read_only_is_passed_over() -> None:
    full = chosen(machine(SYSTEM, TEMPORARY, free={"/mnt": 5 * GB}))
    assert full[0] == USUAL and "'/mnt/amlmount/cache' has no room: 5 GB are free on its disk" in full[2]
    assert chosen(machine(SYSTEM, "21 20 8:17 / /mnt ro - ext4 /dev/sdb1 rw")) == (
        USUAL,
        False,
        "'/mnt/amlmount/cache' is read-only",
    )


def test_a_named_root_on_a_temporary_disk_is_ephemeral_too() -> None:
    assert chosen(machine(SYSTEM, TEMPORARY), CacheConfig(root="/mnt/mine")) == ("/mnt/mine", True, "")
    assert chosen(machine(SYSTEM), CacheConfig(root="/mnt/mine")) == ("/mnt/mine", False, "")


def test_the_environment_names_a_root_too() -> None:
    env = {"AMLMOUNT_CACHE_ROOT": USUAL}
    assert chosen(machine(SYSTEM, TEMPORARY, free={"/": 20 * GB}), env=env)[0] == USUAL


def test_budget() -> None:
    disks = machine(SYSTEM, TEMPORARY, free={"/": 30 * GB, "/mnt": 50 * GB})

    def budget(root: str, used_bytes: int = 0, **wanted: object) -> int:
        config = CacheConfig.model_validate(wanted)
        return budget_bytes(config, root, used_bytes=used_bytes, is_named=False, disks=disks)

    assert budget("/mnt/c") == 50 * GB - 10 * GIB
    assert budget("/mnt/c", used_bytes=45 * GB) == 80 * GB  # 80 % of the disk
    assert budget("/mnt/c", max_size="1GB") == GB
    assert budget("/c", keep_free="1GB") == 20 * GB
    assert budget("/c", keep_free="99GB") == 0


@pytest.mark.root
def test_a_real_disk(sandbox: Sandbox) -> None:
    """A tmpfs is a local disk, in memory, so what is there is gone after a stop."""
    point = Path(sandbox.make_dir("t"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "none", str(point)], check=True, timeout=10)
    try:
        wanted = CacheConfig.model_validate({"root": str(point / "a" / "b"), "keep_free": "50MiB"})
        root = choose_root(wanted, places(point), env={})
        assert (root.path, root.is_ephemeral, root.note) == (str(point / "a" / "b"), True, "")
        made = os.lstat(point / "a" / "b" / "system")
        assert stat.S_IMODE(made.st_mode) == 0o700 and os.listdir(point / "a" / "b" / "system") == []
        budget = budget_bytes(wanted, str(point / "a"), used_bytes=0, is_named=True)
        assert 0.9 * (150 << 20) < budget <= 150 << 20
        (point / "fill").write_bytes(bytes(100 << 20))
        assert choose_root(wanted, places(point), env={}).path != str(point / "a" / "b")
    finally:
        lazy_unmount(str(point))


def test_a_directory_somebody_else_made_first_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "system").symlink_to(target)
    root = choose_root(CacheConfig(root=str(tmp_path / "root"), keep_free=0), places(tmp_path), env={})
    assert root.path != str(tmp_path / "root") and "it is no directory" in root.note
    assert os.listdir(target) == []


def test_a_root_in_which_everybody_can_write_is_refused_unless_it_is_sticky(tmp_path: Path) -> None:
    root, wanted = tmp_path / "root", CacheConfig.model_validate({"root": str(tmp_path / "root"), "keep_free": 0})
    root.mkdir()
    root.chmod(0o777)
    assert "everybody can write in it" in choose_root(wanted, places(tmp_path), env={}).note
    root.chmod(0o1777)
    assert choose_root(wanted, places(tmp_path), env={}).path == str(root)


@pytest.mark.root
def test_a_root_of_another_user_is_refused(tmp_path: Path) -> None:
    root, wanted = tmp_path / "root", CacheConfig.model_validate({"root": str(tmp_path / "root"), "keep_free": 0})
    root.mkdir()
    os.chown(root, 12345, -1)
    assert "it belongs to user 12345" in choose_root(wanted, places(tmp_path), env={}).note


def test_a_daemon_directory_that_others_can_enter_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "root" / "system"
    path.mkdir(parents=True, mode=0o755)
    make_daemon_directory(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_daemons_have_different_directories(tmp_path: Path) -> None:
    uid = os.geteuid()
    assert daemon_id(places()) == "system"
    user = Locations(Path(f"/run/user/{uid}/amlmount"), tmp_path, tmp_path, tmp_path / "s", False)
    assert daemon_id(user) == f"user-{uid}"
    other = daemon_id(places(tmp_path, is_system=False))
    assert other.startswith(f"user-{uid}-") and other != daemon_id(places(tmp_path / "x", is_system=False))
