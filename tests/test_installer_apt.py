"""`amlmount install` with real apt and dpkg against a signed repository, in every state a machine may be in.

AMLMOUNT_TEST_TREE names a tree to do it over instead of this machine's own system (see installer_trees.py).
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator

import pytest

from amlmount.installer.releases import SUPPORTED, Release
from installing import BIG, BOOKWORM, MIDDLE, NEWEST, OLD, PREVIEW, URL, Machine, Mirrors, make_mirrors, open_machine

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
LOWER = os.environ.get("AMLMOUNT_TEST_TREE", "/")
SOURCE = "/etc/apt/sources.list.d/amlmount-microsoft.list"
KEY = "/etc/apt/keyrings/amlmount-microsoft.asc"
HOLDER = """
import fcntl, sys, time
file = open("/var/lib/dpkg/lock-frontend", "w")
fcntl.lockf(file, fcntl.LOCK_EX)
open("/tmp/locked", "w").close()
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Mirrors:
    return make_mirrors(tmp_path_factory.mktemp("mirrors"), LOWER)


@pytest.fixture
def machine(mirrors: Mirrors) -> Iterator[Machine]:
    with open_machine(mirrors, LOWER) as made:
        yield made


def differences(machine: Machine, before: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    after = machine.box.changes()
    return {p: (before.get(p), after.get(p)) for p in before.keys() | after.keys() if before.get(p) != after.get(p)}


def lists(machine: Machine) -> list[str]:
    """What apt has read of sources."""
    found = machine.box.sh("find /var/lib/apt/lists -type f -not -name lock").split()
    return [name for name in found if "_distribution_" not in name]


@pytest.mark.parametrize("release", SUPPORTED, ids=lambda release: release.codename)
def test_a_bare_machine_becomes_one_with_blobfuse2_and_back(machine: Machine, release: Release) -> None:
    machine.set_release(release)
    before = machine.box.changes()
    done = machine.install()
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.versions() == f"ii {NEWEST}"
    assert machine.box.sh("blobfuse2 --version").strip() == f"blobfuse2 version {NEWEST}"
    arch = machine.box.sh("dpkg --print-architecture").strip()
    line = f"deb [arch={arch} signed-by={KEY}] {URL}/good/{release.repository_path} {release.codename} main\n"
    assert machine.box.read(SOURCE) == line
    again = machine.install()
    assert again.returncode == 0 and again.stdout.endswith("nothing to do\n")
    assert machine.install("--check").returncode == 0
    undone = machine.amlmount("uninstall")
    assert undone.returncode == 0 and "warn" not in undone.stdout, undone.stdout
    assert differences(machine, before) == {}
    assert machine.versions() == "" and not machine.box.exists("/var/lib/amlmount")
    assert lists(machine) == []
    assert machine.amlmount("uninstall").stdout == "nothing to take back\n"


def test_a_dry_run_and_a_check_change_nothing(machine: Machine) -> None:
    before = machine.box.changes()
    plan = json.loads(machine.install("--dry-run", "-o", "json").stdout)
    assert [step["kind"] for step in plan["steps"]][-3:] == ["WriteFile", "Command", "Command"]
    assert plan["changed"] is False and all(step["why"] for step in plan["steps"])
    assert machine.install("--check").returncode == 1
    assert differences(machine, before) == {}


def test_what_is_there_already_is_left_alone_and_stays(machine: Machine) -> None:
    machine.have(MIDDLE)
    before = machine.box.changes()
    done = machine.install()
    assert done.stdout.endswith("nothing to do\n") and f"blobfuse2 {MIDDLE} is installed" in done.stdout
    assert machine.amlmount("uninstall").stdout == "nothing to take back\n"
    assert differences(machine, before) == {} and machine.versions() == f"ii {MIDDLE}"


def test_half_installed(machine: Machine) -> None:
    machine.have(MIDDLE)
    status = "/var/lib/dpkg/status"
    machine.box.sh(
        f'awk \'/^Package: /{{p=$2}} p=="blobfuse2" && /^Status:/{{$0="Status: install reinstreq half-installed"}} 1\' '
        f"{status} >/tmp/s; cp /tmp/s {status}"
    )
    assert machine.versions() == f"iHR{MIDDLE}"
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert machine.versions() == f"ii {NEWEST}"


def test_an_old_version_is_replaced_and_comes_back(machine: Machine) -> None:
    machine.have(OLD)
    assert machine.install().returncode == 0
    assert machine.versions() == f"ii {NEWEST}"
    undone = machine.amlmount("uninstall", "-o", "json")
    assert machine.versions() in (f"ii {OLD}", f"ii {NEWEST}")
    warned = json.loads(undone.stdout)["warnings"]
    assert (machine.versions() == f"ii {OLD}") != bool(warned)


def test_a_version_that_someone_holds_is_not_touched(machine: Machine) -> None:
    machine.have(OLD)
    machine.box.sh("apt-mark hold blobfuse2")
    before = machine.box.changes()
    assert "held" in machine.install().stdout
    code, error = machine.refused("--version", NEWEST)
    assert code == 1 and "someone holds it" in error["message"] and "apt-mark unhold blobfuse2" in error["hint"]
    assert machine.versions() == f"hi {OLD}" and differences(machine, before) == {}


def test_a_version_is_pinned_and_held_and_can_be_changed_by_us(machine: Machine) -> None:
    before = machine.box.changes()
    assert machine.install("--version", MIDDLE).returncode == 0
    assert machine.versions() == f"hi {MIDDLE}"
    assert f"Pin: version {MIDDLE}" in machine.box.read("/etc/apt/preferences.d/amlmount-blobfuse2")
    machine.box.sh("apt-get -q -y upgrade")
    assert machine.versions() == f"hi {MIDDLE}"
    assert machine.install("--version", MIDDLE).stdout.endswith("nothing to do\n")
    done = machine.install("--version", OLD)
    assert done.returncode == 0 and machine.versions() == f"hi {OLD}", done.stderr
    assert machine.amlmount("uninstall").returncode == 0
    assert differences(machine, before) == {} and machine.versions() == ""


def test_the_preview_takes_the_place_of_the_stable_one(machine: Machine) -> None:
    assert machine.install().returncode == 0
    done = machine.install("--channel", "preview")
    assert done.returncode == 0, done.stderr
    assert (machine.versions("blobfuse2-preview"), machine.versions()[:2]) == (f"ii {PREVIEW}", "rc")


def test_interrupted_dpkg_is_finished_first(machine: Machine) -> None:
    machine.have(OLD)
    machine.box.sh(f"dpkg --unpack /srv/debs/{machine.mirrors.debs[MIDDLE].name}; dpkg-query -s fuse3 >/tmp/entry")
    machine.box.sh("cp /tmp/entry /var/lib/dpkg/updates/0001")
    assert "dpkg was interrupted" in machine.box.run("apt-get", "-y", "install", "fuse3").stderr
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert machine.versions()[:2] == "ii" and machine.box.sh("ls /var/lib/dpkg/updates") == ""


def test_a_damaged_database_is_not_touched(machine: Machine) -> None:
    machine.box.sh("head -c 100000 /dev/zero >/var/lib/dpkg/status")
    before = machine.box.changes()
    code, error = machine.refused()
    assert code == 1 and "dpkg" in error["message"] and "status-old" in error["hint"]
    assert differences(machine, before) == {}


def test_a_locked_dpkg_is_waited_for(machine: Machine) -> None:
    machine.box.spawn("python3", "-c", HOLDER, "4")
    machine.box.sh("while ! test -e /tmp/locked; do sleep 0.05; done")
    done = machine.install("--lock-timeout", "60s")
    assert done.returncode == 0 and machine.versions() == f"ii {NEWEST}", done.stderr


def test_a_dpkg_that_stays_locked_is_told_with_its_holder(machine: Machine) -> None:
    machine.box.spawn("python3", "-c", HOLDER, "100")
    machine.box.sh("while ! test -e /tmp/locked; do sleep 0.05; done")
    before = machine.box.changes()
    code, error = machine.refused("--lock-timeout", "1s")
    assert code == 8 and "another program is working on packages (process " in error["message"]
    assert differences(machine, before) == {} and not machine.box.exists(SOURCE)


def test_a_repository_signed_with_another_key_is_refused_and_all_is_taken_back(machine: Machine) -> None:
    before = machine.box.changes()
    code, error = machine.refused(mirror="wrong")
    assert code == 1 and "not signed with the key" in error["message"] and "NO_PUBKEY" in error["hint"]
    assert differences(machine, before) == {} and error["details"]["not_rolled_back"] == []
    assert lists(machine) == []


def test_no_network(machine: Machine) -> None:
    before = machine.box.changes()
    done = machine.amlmount("install", "--repo-url", "http://mirror.invalid/x", "-o", "json")
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert done.returncode == 6 and "mirror.invalid" in error["message"] and "--offline DIR" in error["hint"]
    assert differences(machine, before) == {}


def test_a_mirror_that_has_the_key_and_no_packages(machine: Machine) -> None:
    (machine.mirrors.top / "empty").mkdir(exist_ok=True)
    shutil.copytree(machine.mirrors.top / "good/keys", machine.mirrors.top / "empty/keys", dirs_exist_ok=True)
    before = machine.box.changes()
    code, error = machine.refused(mirror="empty")
    assert code == 1 and "has no packages for this release" in error["message"], error
    assert differences(machine, before) == {}


def test_a_full_disk(machine: Machine) -> None:
    machine.box.sh("mkdir -p /usr/share/blobfuse2; mount -t tmpfs -o size=1m tmpfs /usr/share/blobfuse2")
    before = machine.box.changes()
    code, error = machine.refused("--version", BIG)
    assert code == 1 and "the disk is full" in error["message"], error
    assert differences(machine, before) == {} and machine.versions() in ("", "un", "in")


def test_an_unsupported_release_is_refused_with_the_list(machine: Machine) -> None:
    machine.set_release(Release("ubuntu", "25.10", "questing"))
    before = machine.box.changes()
    code, error = machine.refused()
    assert code == 1 and all(release.title in error["message"] for release in SUPPORTED)
    assert differences(machine, before) == {}
    assert machine.amlmount("install", "--engine", "python").returncode == 0


@pytest.mark.parametrize("form", ["list", "sources"])
def test_a_source_of_microsofts_that_is_there_is_used(machine: Machine, form: str) -> None:
    uri, suite = f"{URL}/good/{BOOKWORM.repository_path}", BOOKWORM.codename
    machine.box.sh(
        "mkdir -p /usr/share/keyrings; cp /srv/mirrors/good/keys/microsoft.asc /usr/share/keyrings/microsoft.asc"
    )
    one_line = f"deb [signed-by=/usr/share/keyrings/microsoft.asc] {uri} {suite} main\n"
    fields = (
        f"Types: deb\nURIs: {uri}/\nSuites: {suite}\nComponents: main\nSigned-By: /usr/share/keyrings/microsoft.asc\n"
    )
    machine.box.write(f"/etc/apt/sources.list.d/microsoft-prod.{form}", one_line if form == "list" else fields)
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert f"uses the source in /etc/apt/sources.list.d/microsoft-prod.{form}" in done.stdout
    assert not machine.box.exists(SOURCE) and machine.versions() == f"ii {NEWEST}"


def test_a_source_of_another_release_is_told_and_left(machine: Machine) -> None:
    wrong = f"deb [trusted=yes] {URL}/good/ubuntu/20.04/prod focal main\n"
    machine.box.write("/etc/apt/sources.list.d/microsoft-prod.list", wrong)
    done = machine.install()
    assert done.returncode == 0 and "names the packages of another release" in done.stdout, done.stderr
    assert machine.box.read("/etc/apt/sources.list.d/microsoft-prod.list") == wrong


def test_offline_from_a_folder(machine: Machine) -> None:
    name = machine.mirrors.debs[NEWEST].name
    machine.box.sh(f"mkdir /srv/offline; cp /srv/debs/{name} /srv/offline")
    if LOWER != "/":
        machine.box.sh("cp /srv/mirrors/distribution/pool/*fuse3* /srv/offline")
    done = machine.amlmount("install", "--offline", "/srv/offline", "--repo-url", "http://mirror.invalid")
    assert done.returncode == 0, done.stderr
    assert machine.versions() == f"ii {NEWEST}" and not machine.box.exists(SOURCE)
    assert machine.amlmount("install", "--offline", "/srv/offline").stdout.endswith("nothing to do\n")


def test_offline_from_a_folder_that_lacks_it(machine: Machine) -> None:
    machine.box.sh("mkdir /srv/offline")
    done = machine.amlmount("install", "--offline", "/srv/offline")
    assert done.returncode == 1 and re.search("the folder has no (fuse3|blobfuse2) for ", done.stderr)


def test_an_ordinary_user_is_told_to_use_sudo(machine: Machine) -> None:
    machine.box.sh("chmod 711 /root || :")
    script = "import os, sys; from amlmount.cli.app import run; os.setuid(65534); run(sys.argv[1:])"
    done = machine.box.run(sys.executable, "-c", script, "install", "--repo-url", f"{URL}/good")
    assert done.returncode == 2 and "sudo amlmount install" in done.stderr, done.stderr
