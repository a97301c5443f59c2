"""Plans and their execution without a machine: what is decided, what is refused, what is taken back."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from amlmount.config.load import config_from
from amlmount.errors import AmlmountError, UsageError
from amlmount.installer import Channel, Machine, Needs, Plan, Record, Wanted, WantedEngine, paths, plan_install
from amlmount.installer.machine import observe
from amlmount.installer.needs import INOTIFY_RESERVE, needs_of
from amlmount.installer.packages import DebFile, Package
from amlmount.installer.releases import SUPPORTED, find_release, parse_os_release
from amlmount.installer.service_plan import shipped
from amlmount.installer.sources import AptSource, read_sources
from amlmount.installer.steps import Command, FetchKey, Link, WriteFile
from amlmount.run import Completed
from installing import os_release

JAMMY = next(release for release in SUPPORTED if release.codename == "jammy")


def machine(**changes: object) -> Machine:
    """A bare Ubuntu 22.04, but for `changes`."""
    return Machine(**{"os_release": os_release(JAMMY), **changes})  # type: ignore[arg-type]


def having(*packages: Package, **changes: object) -> Machine:
    return machine(packages={package.name: package for package in packages}, **changes)


def plan(found: Machine, wanted: Wanted | None = None, record: Record | None = None) -> Plan:
    return plan_install(found, wanted or Wanted(), record or Record())


def commands(made: Plan) -> list[str]:
    """The commands without their -o options."""
    shown = []
    for step in made.steps:
        if isinstance(step, Command):
            words = [
                word for before, word in zip(("", *step.argv), step.argv, strict=False) if "-o" not in (before, word)
            ]
            shown.append(" ".join(words))
    return shown


def written(made: Plan) -> dict[str, str]:
    return {step.path: step.content for step in made.steps if isinstance(step, WriteFile)}


# --- releases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "line", "key"),
    [
        ("20.04", "ubuntu/20.04/prod focal", "microsoft.asc"),
        ("22.04", "ubuntu/22.04/prod jammy", "microsoft.asc"),
        ("24.04", "ubuntu/24.04/prod noble", "microsoft.asc"),
        ("26.04", "ubuntu/26.04/prod resolute", "microsoft-2025.asc"),
        ("12", "debian/12/prod bookworm", "microsoft.asc"),
    ],
)
def test_each_release_has_its_repository_and_its_key(version: str, line: str, key: str) -> None:
    release = next(release for release in SUPPORTED if release.version == version)
    made = plan(machine(os_release=os_release(release)))
    source = f"deb [arch=amd64 signed-by={paths.KEY}] https://packages.microsoft.com/{line} main\n"
    assert written(made) == {paths.SOURCE: source}
    (fetch,) = [step for step in made.steps if isinstance(step, FetchKey)]
    assert fetch.url == f"https://packages.microsoft.com/keys/{key}" and len(fetch.fingerprint or "") == 40
    assert commands(made) == [
        "apt-get -q -y update",
        "apt-get -q -y install --no-install-recommends --allow-downgrades --allow-change-held-packages fuse3 blobfuse2",
    ]


@pytest.mark.parametrize(
    ("text", "architecture", "named"),
    [
        ("ID=ubuntu\nVERSION_ID=25.10\nPRETTY_NAME='Ubuntu 25.10'\n", "amd64", "Ubuntu 25.10"),
        ("ID=fedora\nVERSION_ID=42\n", "amd64", "fedora 42"),
        (os_release(SUPPORTED[0]), "arm64", "Ubuntu 20.04 on arm64"),
        (os_release(JAMMY), "riscv64", "Ubuntu 22.04 on riscv64"),
        ("", "amd64", "this system"),
    ],
)
def test_other_releases_are_refused_with_the_list(text: str, architecture: str, named: str) -> None:
    with pytest.raises(AmlmountError) as caught:
        find_release(text, architecture)
    assert caught.value.message.startswith(f"cannot install blobfuse2 on {named}:")
    assert "Ubuntu 20.04 (amd64), Ubuntu 22.04 (amd64/arm64)" in caught.value.message
    assert "Debian 12" in caught.value.message and "--engine python" in (caught.value.hint or "")


def test_os_release_is_read_as_a_shell_reads_it() -> None:
    assert parse_os_release("# x\nA=b\nC='d e'\nE=\"f\"\nG='broken\n") == {
        "A": "b",
        "C": "d e",
        "E": "f",
        "G": "'broken",
    }


# --- packages ------------------------------------------------------------------------------------------------------

FUSE = Package("fuse3", "3.14")


def test_everything_there_is_nothing_to_do() -> None:
    made = plan(having(FUSE, Package("blobfuse2", "2.5.6")))
    assert made.steps == () and made.present == ("fuse3 3.14 is installed", "blobfuse2 2.5.6 is installed")


def test_a_newer_version_is_named_and_not_installed() -> None:
    made = plan(having(FUSE, Package("blobfuse2", "2.5.5"), available={"blobfuse2": ("2.5.6", "2.5.5")}))
    assert made.steps == () and "2.5.6 is to be had (--version 2.5.6)" in made.present[1]


def test_only_our_own_source_is_read_when_the_distribution_is_not_needed() -> None:
    made = plan(having(FUSE))
    (update, install) = [step for step in made.steps if isinstance(step, Command)]
    assert f"Dir::Etc::sourcelist={paths.SOURCE}" in update.argv and "APT::Get::List-Cleanup=0" in update.argv
    assert install.argv[-1] == "blobfuse2" and not update.may_fail
    for step in (update, install):
        assert step.argv[:3] == ("apt-get", "-q", "-y") and "DPkg::Lock::Timeout=600" in step.argv


def test_a_hold_of_somebody_else_is_refused_and_our_own_is_not() -> None:
    held = having(FUSE, Package("blobfuse2", "2.5.5", want="hold"))
    with pytest.raises(AmlmountError, match="someone holds it"):
        plan(held, Wanted(version="2.5.6"))
    ours = Record(undo=(("apt-mark", "unhold", "blobfuse2"),))
    assert commands(plan(held, Wanted(version="2.5.6"), ours))[-1] == "apt-mark hold blobfuse2"
    assert plan(held).steps == ()


def test_others_half_installed_packages_are_refused() -> None:
    with pytest.raises(AmlmountError, match="foo is half installed"):
        plan(having(FUSE, Package("foo", "1", state="half-installed", needs_reinstall=True)))


@pytest.mark.parametrize(
    ("found", "first"),
    [
        (
            having(FUSE, Package("blobfuse2", "2", "install", "half-installed", True)),
            "dpkg --remove --force-remove-reinst",
        ),
        (having(FUSE, Package("x", "1", state="unpacked")), "dpkg --configure -a"),
        (having(FUSE, interrupted=True), "dpkg --configure -a"),
    ],
)
def test_repairs_come_first(found: Machine, first: str) -> None:
    assert commands(plan(found))[0].startswith(first)


def test_the_other_channel_makes_room() -> None:
    made = plan(having(FUSE, Package("blobfuse2", "2.5.6")), Wanted(channel=Channel.PREVIEW))
    assert commands(made)[-1].endswith(" blobfuse2-preview blobfuse2-")


def test_fuse_2_is_told() -> None:
    assert any("replaces the package fuse" in note for note in plan(having(Package("fuse", "2.9"))).notes)


def test_our_engine_needs_nothing_of_microsofts() -> None:
    wanted = Wanted(engine=WantedEngine.PYTHON)
    assert commands(plan(machine(), wanted))[-1].endswith(" fuse3") and written(plan(machine(), wanted)) == {}
    assert plan(having(FUSE), wanted).steps == ()
    other = plan(Machine(os_release="ID=fedora\n", has_apt=False), wanted)
    assert other.steps == () and "fuse3 is not installed by apt" in other.notes[0]


def test_offline_takes_what_fits() -> None:
    debs = (
        DebFile("/d/a.deb", "blobfuse2", "2.5.6", "amd64"),
        DebFile("/d/b.deb", "blobfuse2", "2.5.6", "arm64"),
        DebFile("/d/c.deb", "fuse3", "3.10", "amd64"),
        DebFile("/d/d.deb", "libfuse3-3", "3.10", "amd64"),
        DebFile("/d/e.deb", "unrelated", "1", "amd64"),
    )
    wanted = Wanted(offline_dir="/d")
    made = plan(machine(deb_files=debs), wanted)
    assert written(made) == {} and commands(made)[0].endswith(" /d/c.deb /d/a.deb /d/d.deb")
    with pytest.raises(AmlmountError, match="has more than one blobfuse2 for amd64"):
        plan(machine(deb_files=(*debs, DebFile("/d/f.deb", "blobfuse2", "2.5.5", "amd64"))), wanted)
    with pytest.raises(AmlmountError, match="has no fuse3"):
        plan(machine(deb_files=debs[:1]), wanted)


def test_a_key_of_a_mirrors_own(tmp_path: Path) -> None:
    key = tmp_path / "key.asc"
    key.write_text("hello")
    with pytest.raises(UsageError, match="no armoured OpenPGP public key"):
        plan(machine(), Wanted(repo_url="http://mirror", key_file=str(key)))
    with pytest.raises(UsageError, match="no such file"):
        plan(machine(), Wanted(repo_url="http://mirror", key_file=str(tmp_path / "none")))


# --- sources -------------------------------------------------------------------------------------------------------


def test_sources_in_both_forms(tmp_path: Path) -> None:
    parts = tmp_path / "etc/apt/sources.list.d"
    parts.mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list").write_text(
        "# deb http://off x main\ndeb http://a/ jammy main # why\ndeb-src http://a s m\n"
    )
    (parts / "m.list").write_text("deb [arch=amd64,arm64 signed-by=/k.gpg] https://b/ubuntu/22.04/prod jammy main\n")
    (parts / "n.sources").write_text(
        "Types: deb deb-src\nURIs: https://c/ https://d\nSuites: s t\nComponents: main\nSigned-By:\n /k\n\n"
        "Enabled: no\nTypes: deb\nURIs: https://off\nSuites: s\n"
    )
    (parts / "o.list.save").write_text("deb http://off x main\n")
    found = read_sources(str(tmp_path))
    assert found[:2] == (
        AptSource("/etc/apt/sources.list", "http://a", "jammy"),
        AptSource("/etc/apt/sources.list.d/m.list", "https://b/ubuntu/22.04/prod", "jammy", "/k.gpg"),
    )
    assert [(s.uri, s.suite, s.signed_by) for s in found[2:]] == [
        (uri, suite, "/k") for uri in ("https://c", "https://d") for suite in ("s", "t")
    ]


# --- settings of the system ----------------------------------------------------------------------------------------


def settings(needs: Needs, **files: str) -> dict[str, str]:
    named = {"fuse": paths.FUSE_CONF, "updatedb": paths.UPDATEDB_CONF, "limits": paths.LIMITS}
    found = having(FUSE, files={named[name]: text for name, text in files.items()}, open_files=1024)
    return written(plan(found, Wanted(engine=WantedEngine.PYTHON, needs=needs)))


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("#mount_max = 1000\n#user_allow_other\n", "#mount_max = 1000\nuser_allow_other\n"),
        ("mount_max = 5", "mount_max = 5\nuser_allow_other\n"),
        ("", "user_allow_other\n"),
    ],
)
def test_sharing_is_allowed_only_when_a_users_mount_is_shared(text: str, after: str) -> None:
    assert settings(Needs(user_allow_other=True), fuse=text) == {paths.FUSE_CONF: after}
    assert settings(Needs(user_allow_other=True), fuse=after) == {} == settings(Needs(), fuse=text)


def test_indexers_stay_out_and_what_stands_there_stays() -> None:
    text = 'PRUNE_BIND_MOUNTS="yes"\nPRUNEFS = "nfs fuse"\nPRUNEPATHS="/tmp /var/spool"\n# end\n'
    after = settings(Needs(targets=("/media/x", "/tmp")), updatedb=text)[paths.UPDATEDB_CONF]
    assert after == (
        'PRUNE_BIND_MOUNTS="yes"\nPRUNEFS = "nfs fuse fuse.amlmount fuse.blobfuse2"\n'
        'PRUNEPATHS="/tmp /var/spool /media/x"\n# end\n'
    )
    assert settings(Needs(targets=("/media/x", "/tmp")), updatedb=after) == {}
    assert settings(Needs(targets=("/media/x",))) == {}
    assert settings(Needs(), updatedb="")[paths.UPDATEDB_CONF] == 'PRUNEFS="fuse fuse.amlmount fuse.blobfuse2"\n'


def test_watches_are_raised_only_when_there_are_too_few() -> None:
    wanted = Wanted(engine=WantedEngine.PYTHON, needs=Needs(inotify_instances=200))
    made = plan(having(FUSE, inotify_instances=128), wanted)
    assert "fs.inotify.max_user_instances = 256\n" in written(made)[paths.SYSCTL]
    (command,) = [step for step in made.steps if isinstance(step, Command)]
    assert command.undo[-1].endswith("=128")
    assert plan(having(FUSE, inotify_instances=256), wanted).steps == ()


def test_open_files_of_a_user_who_mounts() -> None:
    assert "azureuser - nofile 65536\n" in settings(Needs(login_users=("azureuser",)))[paths.LIMITS]
    assert settings(Needs()) == {}


def test_needs_come_from_the_configurations(tmp_path: Path) -> None:
    stores = {"s": {"type": "local", "path": str(tmp_path)}}
    mounts = {f"m{i}": {"target": f"/media/{i}", "source": "s"} for i in range(3)}
    system = config_from({"stores": stores, "mounts": mounts})
    assert needs_of(system, None, "root") == Needs(
        targets=("/media/0", "/media/1", "/media/2"), inotify_instances=3 + INOTIFY_RESERVE
    )
    theirs = config_from(
        {
            "stores": stores,
            "mounts": {"x": {"target": "/media/x", "source": "s", "engine": "python", "allow_other": True}},
        }
    )
    found = needs_of(config_from({}), theirs, "azureuser")
    assert found == Needs(True, ("/media/x",), 0, ("azureuser",))


# --- service -------------------------------------------------------------------------------------------------------


def test_the_service_runs_the_program_that_is_installed() -> None:
    wanted = Wanted(engine=WantedEngine.PYTHON, service="start", program="/x/bin/amlmount", completions={"bash": "c\n"})
    made = plan(having(FUSE, has_systemd=True, runs_systemd=True), wanted)
    files = written(made)
    assert "ExecStart=/x/bin/amlmount --system daemon\n" in files[paths.UNIT] and paths.PROGRAM not in files[paths.UNIT]
    assert files[paths.COMPLETIONS["bash"]] == "c\n" and "/x/bin/amlmount" in files[paths.MOUNT_HELPER]
    assert Link(paths.COMMAND, "/x/bin/amlmount", "the command on everybody's PATH") in made.steps
    assert commands(made)[-2:] == ["systemctl daemon-reload", "systemctl start amlmount.service"]


def test_a_service_that_is_set_up_and_runs_is_left_alone() -> None:
    texts = {
        **paths.UNITS,
        paths.SYSUSERS: "amlmount.sysusers.conf",
        paths.TMPFILES: "amlmount.tmpfiles.conf",
        paths.MOUNT_HELPER: "mount.amlmount",
    }
    found = having(
        FUSE,
        files={path: shipped(name) for path, name in texts.items()},
        links={paths.COMMAND: paths.PROGRAM, paths.WANTED_BY: paths.UNIT},
        directories=frozenset(paths.DIRECTORIES),
        has_systemd=True,
        runs_systemd=True,
        service_active=True,
        group_exists=True,
    )
    made = plan(found, Wanted(engine=WantedEngine.PYTHON, service="start"))
    assert made.steps == () and "the service is set up" in made.present


# --- looking -------------------------------------------------------------------------------------------------------


def test_observing_reads_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "etc/apt").mkdir(parents=True)
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text(os_release(JAMMY))
    (tmp_path / "etc/fuse.conf").write_text("x\n")
    (tmp_path / "etc/group").write_text("root:x:0:\namlmount:x:998:\n")
    (tmp_path / "var/lib/dpkg/updates").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/updates/0001").touch()
    answers = {
        "dpkg": "arm64\n",
        "dpkg-query": "fuse3\t3.10\tinstall\tinstalled\tok\nlibc6:arm64\t2\thold\tinstalled\tok\n",
        "apt-cache": " blobfuse2 | 2.5.6 | https://x y\n blobfuse2 | 2.5.5 | https://x y\n",
    }
    asked: list[str] = []

    def ask(argv: Sequence[str]) -> Completed:
        asked.append(argv[0])
        return Completed(tuple(argv), 0, answers[argv[0]].encode(), b"")

    found = observe(root=str(tmp_path), ask=ask)
    if shutil.which("apt-get"):
        assert found.architecture == "arm64" and found.packages["libc6"].is_held
        assert found.available["blobfuse2"] == ("2.5.6", "2.5.5")
    assert found.interrupted and found.group_exists and not found.runs_systemd
    assert found.files == {paths.FUSE_CONF: "x\n"}
