"""Each check of `amlmount doctor` against the thing it must notice, and the command around them."""

import json
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from amlmount.doctor import CHECKS, Finding, examine, fuse_setup, machine, software
from amlmount.doctor.kernel import FEATURES, Offer, fuse_offer, has_syscall, judge, kernel_version, parse_init
from amlmount.errors import MountFailedError
from amlmount.mounts import open_and_mount
from userbox import UserBox
from world import World

ALL_FLAGS = Offer(45, (1 << 64) - 1)


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.name.removeprefix("kernel: "): finding.level for finding in findings}


def test_a_check_that_breaks_is_a_finding_and_the_others_run() -> None:
    def broken_one() -> list[Finding]:
        raise ZeroDivisionError("x")

    def refused() -> list[Finding]:
        raise MountFailedError("cannot do it", hint="do that")

    def fine() -> list[Finding]:
        return [Finding("fine", "ok", "yes")]

    found = examine([broken_one, refused, fine])
    assert found[0] == Finding("broken one", "warn", "cannot check: ZeroDivisionError: x", "please report it")
    assert found[1:] == [Finding("refused", "warn", "cannot do it", "do that"), Finding("fine", "ok", "yes")]


def test_no_check_breaks_here() -> None:
    found = examine(CHECKS)
    assert len(found) >= len(FEATURES) + 8
    assert [finding for finding in found if finding.text.startswith("cannot check")] == []
    assert {"amlmount", "libraries", "blobfuse2", "kernel", "container", "/dev/fuse", "fusermount3"} <= set(
        levels(found)
    )


@pytest.mark.parametrize(
    ("version", "missing"),
    [
        ((5, 1), {"passthrough", "resend", "mount beneath", "detached mounts", "statmount", "pidfd_getfd"}),
        ((5, 15), {"passthrough", "resend", "mount beneath", "statmount"}),
        ((6, 8), {"passthrough", "resend"}),
        ((6, 9), set()),
    ],
)
def test_features_by_version(version: tuple[int, int], missing: set[str]) -> None:
    calls = {430: (5, 2), 438: (5, 6), 457: (6, 8)}
    found = judge(version, None, True, lambda number: version >= calls[number])
    assert {name for name, level in levels(found).items() if level == "info"} == missing
    assert all("needs Linux" in finding.text for finding in found if finding.level == "info")


def test_what_the_kernel_says_counts_more_than_its_version() -> None:
    found = levels(judge((6, 18), Offer(45, 1 << 13), True, lambda _: True))
    assert (found["readdirplus"], found["no open"], found["passthrough"]) == ("ok", "info", "info")


def test_an_ordinary_user_does_not_get_all() -> None:
    found = judge((6, 18), ALL_FLAGS, False, lambda _: True)
    denied = {finding.name for finding in found if "ordinary user" in finding.text}
    assert denied == {"kernel: passthrough", "kernel: mount beneath", "kernel: detached mounts"}


@pytest.mark.parametrize(
    ("release", "version"), [("6.8.0-31-generic", (6, 8)), ("5.15.153.1-WSL2", (5, 15)), ("x", (0, 0))]
)
def test_kernel_releases(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


def test_init_is_read_whatever_its_length() -> None:
    body = struct.pack("<5I", 7, 36, 0, 1 << 30 | 1 << 17, 1 << 5)
    assert parse_init(bytes(40) + body) == Offer(36, 1 << 30 | 1 << 17 | 1 << 37)
    assert parse_init(bytes(40) + struct.pack("<4I", 7, 31, 0, 8)) == Offer(31, 8)
    assert parse_init(bytes(40)) is None


@pytest.mark.root
def test_the_kernel_is_really_asked() -> None:
    offer = fuse_offer()
    assert offer is not None and offer.minor >= 26 and offer.flags >> 13 & 1
    assert has_syscall(39) and not has_syscall(100_000)


@pytest.mark.root
def test_dead_and_foreign_mounts_are_named_and_not_touched(mountpoint: str) -> None:
    fuse_fd = open_and_mount(
        mountpoint, source="src", subtype="sshfs", read_only=True, allow_other=False, default_permissions=False
    )
    (foreign,) = [finding for finding in fuse_setup.fuse_mounts() if mountpoint in finding.text]
    os.close(fuse_fd)
    (dead,) = [finding for finding in fuse_setup.fuse_mounts() if mountpoint in finding.text]
    assert (foreign.level, dead.level, dead.fix) == ("info", "warn", f"sudo umount -l {mountpoint}")
    assert "fuse.sshfs, src" in foreign.text and "is dead" in dead.text


@pytest.mark.root
def test_a_dead_mount_of_ours_comes_back_by_up(mountpoint: str) -> None:
    os.close(open_and_mount(mountpoint, source="s", read_only=True, allow_other=False, default_permissions=False))
    (dead,) = [finding for finding in fuse_setup.fuse_mounts() if mountpoint in finding.text]
    assert (dead.level, dead.fix) == ("warn", "amlmount up")


def test_fuse_conf(tmp_path: Path) -> None:
    conf = tmp_path / "fuse.conf"
    assert fuse_setup.fuse_conf(str(conf))[0].level == "info"
    conf.write_text("#user_allow_other\n")
    assert fuse_setup.fuse_conf(str(conf))[0].level == "info"
    conf.write_text("mount_max = 5\n user_allow_other \n")
    assert fuse_setup.fuse_conf(str(conf))[0].level == "ok"


def test_setuid_is_seen(tmp_path: Path) -> None:
    program = tmp_path / "x"
    program.write_text("")
    assert not fuse_setup.is_setuid_root(str(program))
    program.chmod(stat.S_ISUID | 0o755)
    assert fuse_setup.is_setuid_root(str(program)) == (os.geteuid() == 0)


def test_a_missing_library_fails() -> None:
    (found,) = software.libraries(("pyyaml", "amlmount-no-such"))
    assert found.level == "fail" and found.text == "not installed: amlmount-no-such"
    assert found.fix is not None and found.fix.endswith("-m pip install amlmount-no-such")


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("blobfuse2 version 2.5.6\n", "2.5.6"),
        ("x : blobfuse2[7] : [] LOG_DEBUG blobfuse2 version 9\nblobfuse2 version: 2.5.5\n", "2.5.5"),
        ("no\n", None),
    ],
)
def test_blobfuse2_versions(said: str, version: str | None) -> None:
    assert software.blobfuse2_version(said) == version


def test_blobfuse2_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert software.blobfuse2()[0].level == "info"
    program = tmp_path / "blobfuse2"
    program.write_text("#!/bin/sh\necho libfuse3.so.3 not found >&2\nexit 127\n")
    program.chmod(0o755)
    (found,) = software.blobfuse2()
    assert found.level == "warn" and "libfuse3.so.3 not found" in found.text


def test_containers(tmp_path: Path) -> None:
    mark = tmp_path / ".dockerenv"
    assert machine.container({str(mark): "docker"}) == [Finding("container", "ok", "none")]
    mark.touch()
    assert "docker" in machine.container({str(mark): "docker"})[0].text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [('PRUNEFS="nfs fuse.amlmount fuse"\n', ["ok"]), ('PRUNEFS = "nfs"\n', ["warn"]), ("", ["warn"]), (None, [])],
)
def test_updatedb(tmp_path: Path, text: str | None, wanted: list[str]) -> None:
    conf = tmp_path / "updatedb.conf"
    if text is not None:
        conf.write_text(text)
    assert [finding.level for finding in machine.updatedb(str(conf))] == wanted


def test_the_command_prints_a_table_and_json(world: World) -> None:
    done = world.cli("doctor")
    assert "fusermount3" in done.stdout and "\x1b" not in done.stdout and done.stderr == ""
    found = json.loads(world.cli("doctor", "-o", "json").stdout)
    assert {"schema_version", "name", "level", "text", "fix"} == set(found[0])
    failed = any(finding["level"] == "fail" for finding in found)
    assert done.returncode == (1 if failed else 0)


@pytest.mark.root
def test_an_ordinary_user_is_told_what_is_missing(user_world: World, as_user: UserBox) -> None:
    found = {finding["name"]: finding for finding in user_world.cli_json("doctor")}
    assert found["/dev/fuse"]["level"] == "ok" and "ordinary user" in found["kernel: passthrough"]["text"]
    assert found["user_allow_other"]["level"] == "info"


@pytest.mark.root
def test_a_device_that_is_missing_fails_the_command(world: World) -> None:
    """In a namespace of its own, in which /dev/fuse is a file that is no device."""
    script = 'touch "$0" && mount --bind "$0" /dev/fuse && chmod 0 /dev/fuse && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, f"{world.root}/no-fuse", *world.argv("doctor", "-o", "json")]
    done = subprocess.run(argv, env=world.env, capture_output=True, text=True, timeout=60, check=False)
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert (done.returncode, found["/dev/fuse"]["level"], done.stderr) == (1, "fail", "")
    assert "not a FUSE device" in found["/dev/fuse"]["text"]


def test_a_device_that_cannot_be_opened_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise MountFailedError("cannot open /dev/fuse: Permission denied", hint="sudo chmod 666 /dev/fuse")

    monkeypatch.setattr(fuse_setup, "open_dev_fuse", refuse)
    assert fuse_setup.dev_fuse() == [
        Finding("/dev/fuse", "fail", "cannot open /dev/fuse: Permission denied", "sudo chmod 666 /dev/fuse")
    ]
