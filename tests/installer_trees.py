"""Everything that is proved of the installer on this machine's own system, on bare systems; and what takes longer.

Not collected by a plain run: `sh install/test.sh tests/installer_trees.py` (3 minutes, and one to make the tree once).
"""

import os

import pytest

from trees import ensure_tree

os.environ["AMLMOUNT_TEST_TREE"] = str(ensure_tree())

# ruff: noqa: F403 -- the tests themselves read the variable when they are imported
from installbox import Box
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
