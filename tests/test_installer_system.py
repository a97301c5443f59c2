"""install.sh and aml-compute-instance.sh with a real systemd: from bare to a healthy mount, a reboot, and back."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aptrepo import call, make_deb
from installbox import ROOT, Box, open_box
from installing import BOOKWORM, NEWEST, distribution_debs, os_release

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
LOWER = os.environ.get("AMLMOUNT_TEST_TREE", "/")
CONFIG = """\
stores: {images: {type: local, path: /srv/images}}
mounts: {images: {target: /media/images, source: images}}
"""
WAIT_S = 60.0


@pytest.fixture(scope="module")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for --offline: our wheel and what it needs, pip, and the stand-in for blobfuse2."""
    folder = tmp_path_factory.mktemp("supplies")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("amlmount-*.whl")
    constraints = ("-c", ROOT / "install" / "constraints.txt")
    argv: list[str | Path] = [sys.executable, "-m", "pip", "download", "-q", "-d", folder, *constraints, wheel]
    argv += ["pip", "hatchling", "editables"]
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    make_deb(folder, "blobfuse2", NEWEST)
    for deb in distribution_debs(LOWER):
        shutil.copy(deb, folder)
    return folder


@pytest.fixture
def box(supplies: Path) -> Iterator[Box]:
    """A machine with a real systemd, an image to mount, and the folder of supplies at /srv/supplies."""
    with open_box(LOWER, systemd=True, binds=(f"{supplies}:/srv/supplies", f"{ROOT}/install:/srv/install")) as made:
        made.write("/etc/os-release", os_release(BOOKWORM))
        made.write("/srv/images/cat.txt", "a cat\n")
        made.sh("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; test ! -e /opt/amlmount")
        yield made


def install(box: Box, *options: str) -> str:
    wheel = box.sh("ls /srv/supplies/amlmount-*.whl").strip()
    argv = ("sh", "/srv/install/install.sh", "--from", wheel, "--offline", "/srv/supplies", *options)
    return box.run(*argv, check=True, timeout_s=300).stdout


def until(what: Callable[[], bool], saying: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, saying()
        time.sleep(0.1)


def journal(box: Box) -> str:
    return box.run("journalctl", "--no-pager", "-u", "amlmount").stdout[-3000:]


def is_healthy(box: Box) -> bool:
    """The mount is there, for an ordinary user too."""
    reading = box.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", "/media/images/cat.txt")
    return reading.stdout == "a cat\n" and "fuse.amlmount" in box.sh("findmnt -n -o FSTYPE /media/images")


def main_pid(box: Box) -> str:
    return box.sh("systemctl show -P MainPID amlmount").strip()


def test_bare_to_mounted_twice_a_reboot_and_back(box: Box) -> None:
    before = box.changes()
    box.write("/etc/amlmount/amlmount.yaml", CONFIG)
    said = install(box)
    assert box.sh("systemctl is-active amlmount").strip() == "active", journal(box)
    until(lambda: is_healthy(box), lambda: said + journal(box))
    assert box.sh("blobfuse2 --version").strip().endswith(NEWEST)
    verified = box.run("systemd-analyze", "verify", "amlmount.service")
    assert (verified.returncode, verified.stderr) == (0, "")
    pid, version = main_pid(box), os.readlink(f"{box.upper}/opt/amlmount/current")

    again = install(box)
    assert "amlmount is there" in again and "nothing to do" in again
    assert (main_pid(box), os.readlink(f"{box.upper}/opt/amlmount/current")) == (pid, version) and is_healthy(box)

    box.reboot()
    until(lambda: is_healthy(box), lambda: journal(box))

    undone = box.run("sh", "/srv/install/install.sh", "--uninstall", check=True).stdout
    assert "warn" not in undone, undone
    assert box.read("/etc/amlmount/amlmount.yaml") == CONFIG and "configuration and data stay" in undone
    assert not box.exists("/var/lib/amlmount/install.json") and box.run("findmnt", "/media/images").returncode == 1
    box.sh("rm -r /etc/amlmount; rm -rf /var/lib/amlmount /var/cache/amlmount")
    after = box.changes()
    different = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    # What useradd and a boot keep to themselves.
    own = {"etc/.pwd.lock", "etc/.updated", "var/.updated", "etc/machine-id", "media/images/"}
    assert different - own <= {"etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-"}, (different, undone)


COMPUTE_INSTANCE = {
    "CI_NAME": "ci1",
    "CI_WORKSPACE": "ws",
    "CI_RESOURCE_GROUP": "rg",
    "CI_LOCAL_UBUNTU_USER": "azureuser",
}


def set_up(box: Box, *options: str) -> str:
    """Run the setup script as the platform does: as root, in the folder of the notebooks share, with CI_*."""
    wheel = box.sh("ls /srv/supplies/amlmount-*.whl").strip()
    script = 'cd /srv/share && exec sh /srv/install/aml-compute-instance.sh "$@"'
    argv = ("sh", "-c", script, "sh", *options, "--from", wheel, "--offline", "/srv/supplies")
    done = box.run(*argv, timeout_s=300, env=COMPUTE_INSTANCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def daemons_environment(box: Box) -> list[str]:
    return box.sh(f"tr '\\0' '\\n' </proc/{main_pid(box)}/environ").splitlines()


def test_a_compute_instance_is_set_up_and_survives_a_stop(box: Box) -> None:
    box.sh("useradd -m azureuser; mkdir -p /mnt; mount -t tmpfs tmpfs /mnt")
    box.write("/etc/environment.sso", "MSI_ENDPOINT=http://127.0.0.1:46808/MSI/auth\nMSI_SECRET=first\n")
    box.write("/srv/share/images.yml", CONFIG)
    said = set_up(box, "images.yml")
    assert "compute instance ci1 of workspace ws, user azureuser" in said and "s] done" in said
    assert is_healthy(box), said + journal(box)
    assert box.sh("stat -c %U /media/images/cat.txt").strip() == "azureuser"
    assert {"MSI_SECRET=first", "AMLMOUNT_CACHE_ROOT=/mnt/amlmount/cache"} <= set(daemons_environment(box))
    pid = main_pid(box)
    again = set_up(box, "images.yml")
    assert "wrote" not in again and "nothing to do" not in again and main_pid(box) == pid and is_healthy(box)

    # A stop empties the temporary disk, and the next start has another secret, written after our unit has started.
    box.reboot()
    box.sh("mount -t tmpfs tmpfs /mnt")
    box.write("/etc/environment.sso", "MSI_ENDPOINT=http://127.0.0.1:46808/MSI/auth\nMSI_SECRET=second\n")
    assert "starting it again" in set_up(box, "images.yml")
    assert "MSI_SECRET=second" in daemons_environment(box) and is_healthy(box)
