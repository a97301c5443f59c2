"""Everything that is proved of the installer on this machine's own system, on bare systems; and what takes longer.

Not collected by a plain run: `sh install/test.sh tests/installer_trees.py` (3 minutes, and one to make the tree once).
"""

import os
import sys

import pytest

from trees import ensure_tree

os.environ["AMLMOUNT_TEST_TREE"] = str(ensure_tree())

# ruff: noqa: F403 -- the tests themselves read the variable when they are imported
from aptrepo import call
from installbox import ENV, ROOT, Box
from test_export import user_data
from test_installer_apt import *
from test_installer_system import *
from test_installer_system import CONFIG, install, is_healthy, journal, main_pid, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
READER = "while :; do cat /media/images/cat.txt || echo broken >&2; done >/dev/null 2>/tmp/errors"


def test_an_upgrade_leaves_mounts_serving(box: Box) -> None:
    box.write("/etc/amlmount/amlmount.yaml", CONFIG)
    install(box, "--engine", "python")
    until(lambda: is_healthy(box), lambda: journal(box))
    old, pid = os.readlink(f"{box.upper}/opt/amlmount/current"), main_pid(box)
    box.spawn("sh", "-c", READER)
    said = install(box, "--engine", "python", "--upgrade")
    assert os.readlink(f"{box.upper}/opt/amlmount/current") != old and "mounts are still served by" in said
    assert main_pid(box) == pid and box.read("/tmp/errors") == "" and is_healthy(box)
    assert box.exists(f"/opt/amlmount/{old}")
    box.sh("systemctl restart amlmount")
    until(lambda: is_healthy(box), lambda: journal(box))
    install(box, "--engine", "python")
    assert not box.exists(f"/opt/amlmount/{old}")


def test_an_installation_that_fails_leaves_nothing(box: Box) -> None:
    before = box.changes()
    wheel = box.sh("ls /srv/supplies/amlmount-*.whl").strip()
    box.sh("mkdir /srv/poor; cp /srv/supplies/*.whl /srv/poor")  # no .deb in it
    done = box.run("sh", "/srv/install/install.sh", "--from", wheel, "--offline", "/srv/poor")
    assert done.returncode == 1 and "the folder has no " in done.stderr
    assert {path for path, state in box.changes().items() if before.get(path) != state} <= {
        *(path for path in box.changes() if path.startswith("srv/poor"))
    }


def test_a_mount_unit_of_systemds(box: Box) -> None:
    box.write("/etc/amlmount/amlmount.yaml", CONFIG)
    install(box, "--engine", "python")
    until(lambda: is_healthy(box), lambda: journal(box))
    box.sh("amlmount export systemd-mount images --directory /etc/systemd/system; systemctl daemon-reload")
    assert box.sh("systemd-analyze verify /etc/systemd/system/media-images.mount 2>&1").strip() == ""
    user = (
        "[Unit]\nRequiresMountsFor=/media/images\n[Service]\nType=oneshot\nExecStart=/bin/cat /media/images/cat.txt\n"
    )
    box.write("/etc/systemd/system/user.service", user)
    box.sh("amlmount --system down; systemctl daemon-reload; systemctl start user.service")
    assert is_healthy(box) and box.sh("systemctl is-active media-images.mount").strip() == "active"
    assert "a cat" in box.sh("journalctl -u user.service -o cat")


def test_mount_and_fstab_know_amlmount(box: Box) -> None:
    box.write("/etc/amlmount/amlmount.yaml", CONFIG)
    install(box, "--engine", "python")
    until(lambda: is_healthy(box), lambda: journal(box))
    box.sh("amlmount --system down; mount -t amlmount images /media/images")
    assert is_healthy(box)
    box.write("/etc/fstab", "images /media/images amlmount _netdev 0 0\n")
    box.sh("amlmount --system down; mkdir -p /media/images; mount /media/images")
    assert is_healthy(box)
    box.reboot()
    until(lambda: is_healthy(box), lambda: journal(box))


def offline(command: list[str], box: Box) -> list[str]:
    """The same command without a network: the wheel instead of the index, the folder instead of the package host."""
    wheel = box.sh("ls /srv/supplies/amlmount-*.whl").strip()
    return [wheel if word == "amlmount" else word for word in command] + ["--offline", "/srv/supplies"]


def test_cloud_init_makes_a_machine_mount(box: Box) -> None:
    with open(f"{box.store}/config.yaml", "w") as file:
        file.write(CONFIG)
    config = ("--config", f"{box.store}/config.yaml")
    data = user_data(call(sys.executable, "-m", "amlmount", *config, "export", "cloud-init"))
    for written in data["write_files"]:
        box.write(written["path"], written["content"])
        box.sh(f"chmod {written['permissions']} {written['path']}")
    install_command, up = data["runcmd"]
    for command in (offline(install_command, box), up):
        done = box.run(*command, timeout_s=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert is_healthy(box), journal(box)
    box.reboot()
    until(lambda: is_healthy(box), lambda: journal(box))


def test_the_image_for_jobs(box: Box) -> None:
    """The Dockerfile's own commands, in a tree instead of its base image, and its entry point with a job."""
    parts = ("src", "systemd", "templates", "pyproject.toml", "README.md", "install")
    box.copy_in(ROOT, parts, "/src")
    box.sh("cp /src/install/job-entrypoint.sh /usr/local/bin/job-entrypoint")
    box.sh("ln -sf python3 /usr/bin/python; dpkg -i /srv/supplies/*fuse3*.deb /srv/supplies/python3*.deb")
    text = (ROOT / "install/Dockerfile").read_text().replace("\\\n", " ")
    script = "\n".join(line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN "))
    env = {"ENGINE": "python", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/srv/supplies"}
    done = box.run("sh", "-euc", script, env=env, timeout_s=300)
    assert done.returncode == 0, done.stdout + done.stderr
    box.write("/etc/amlmount/amlmount.yaml", CONFIG)
    done = box.run("job-entrypoint", "sh", "-c", "cat /media/images/cat.txt; exit 5", env={"PATH": ENV["PATH"]})
    assert (done.stdout, done.returncode) == ("a cat\n", 5), done.stderr
    assert box.run("findmnt", "/media/images").returncode == 1


def test_uv_makes_the_environment_where_it_is(box: Box, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("uv")
    call(sys.executable, "-m", "pip", "install", "-q", "-t", folder, "uv")
    box.copy_in(folder, ("bin",), "/opt/uv")
    wheel = box.sh("ls /srv/supplies/amlmount-*.whl").strip()
    env = {"PATH": f"/opt/uv/bin:{ENV['PATH']}", "UV_OFFLINE": "1", "UV_FIND_LINKS": "/srv/supplies"}
    box.sh("dpkg -i /srv/supplies/*fuse3*.deb")
    argv = ("sh", "/srv/install/install.sh", "--from", wheel, "--engine", "python")
    assert "making an environment with uv" in box.run(*argv, env=env, check=True, timeout_s=200).stdout
    assert "uv = " in box.read("/opt/amlmount/current/pyvenv.cfg") and box.sh("amlmount --version")
    assert "nothing to do" in box.run(*argv, env=env, check=True).stdout
