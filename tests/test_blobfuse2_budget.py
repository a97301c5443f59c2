"""What all mounts together may take, decided from numbers; which binary is one; whose environment reaches it."""

import os
from pathlib import Path

import pytest

from amlmount.config.load import config_from
from amlmount.config.resolve import DaemonUser, resolve_mount
from amlmount.config.spec import MountSpec
from amlmount.engines import select_engine
from amlmount.engines.blobfuse2.binary import find_binary
from amlmount.engines.blobfuse2.budget import GIB, MIB, Asked, Machine, grant, look_at_machine
from amlmount.engines.blobfuse2.configuring import prepare
from amlmount.engines.blobfuse2.environment import scrubbed
from amlmount.engines.blobfuse2.places import Places
from amlmount.errors import AmlmountError, BusyError, ConfigError
from amlmount.recovery import Instance
from amlmount.recovery.instances import current_boot_id
from amlmount.run import start_time_ticks

MACHINE = Machine(8 * GIB, 100 * GIB, 128, 3, 65536, 10**6)


def asked(**changes: object) -> Asked:
    facts: dict[str, object] = {"mount": "m", "base": "/c", "cache_bytes": None, "cache_most_bytes": 4 * GIB}
    facts |= {"memory_bytes": None, "needs_disk": True, "needs_memory": False} | changes
    return Asked(**facts)  # type: ignore[arg-type]


def other(*, cache: int = 0, memory: int = 0) -> Instance:
    me = os.getpid()
    alive = {"boot_id": current_boot_id(), "pid": me, "pid_start_time": start_time_ticks(me)}
    return Instance("o", "/o", {}, "", True, False, "file_cache", cache, memory, **alive)  # type: ignore[arg-type]


def changed(**changes: int) -> Machine:
    from dataclasses import replace

    return replace(MACHINE, **changes)


def test_a_mount_gets_what_is_reasonable() -> None:
    assert grant(asked(), [], MACHINE).cache_bytes == 4 * GIB
    small = grant(asked(), [], changed(free_disk_bytes=2 * GIB))
    assert 64 * MIB < small.cache_bytes < 2 * GIB
    assert grant(asked(needs_memory=True), [], MACHINE).memory_bytes == 512 * MIB


@pytest.mark.parametrize(
    ("want", "others", "machine", "said"),
    [
        (asked(cache_bytes=90 * GIB), [], MACHINE, "its cache wants 96.6 GB in /c, 85.6 GB are left there"),
        (asked(cache_bytes=50 * GIB), [other(cache=40 * GIB)], MACHINE, "42.9 GB promised to other mounts"),
        (asked(), [], changed(free_disk_bytes=MIB), "its cache wants 67.1 MB"),
        (asked(memory_bytes=6 * GIB, needs_memory=True), [], MACHINE, "its blocks want 6.44 GB of memory"),
        (asked(needs_memory=True), [other(memory=4800 * MIB)], MACHINE, "121 MB"),
        (asked(), [], changed(inotify_used=128), "128 inotify instances are in use"),
        (asked(), [], changed(open_files_limit=256), "only 256 open files"),
        (asked(), [], changed(system_files_left=5), "out of open files"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers(
    want: Asked, others: list[Instance], machine: Machine, said: str
) -> None:
    if "121 MB" in said:
        want = asked(memory_bytes=512 * MIB, needs_memory=True)
        said = "121 MB are left of 5.15 GB for all mounts (5.03 GB taken)"
    with pytest.raises(BusyError) as caught:
        grant(want, others, machine)
    assert said in caught.value.message and caught.value.hint


def test_the_dead_hold_nothing() -> None:
    gone = Instance("o", "/o", {}, "", True, False, "file_cache", 99 * GIB, 0, boot_id="another")
    assert grant(asked(), [gone], MACHINE).cache_bytes == 4 * GIB


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    found = look_at_machine(str(tmp_path / "not" / "there"))
    assert found.memory_bytes > MIB and found.free_disk_bytes > 0 and found.inotify_limit > 0


def test_the_environment_is_scrubbed() -> None:
    env = {
        "AZURE_STORAGE_ACCOUNT": "",
        "AZURE_STORAGE_SAS_TOKEN": "x",
        "MSI_ENDPOINT": "http://127.0.0.1",
        "HTTPS_PROXY": "p",
        "SECRET": "x",
        "BLOBFUSE_PLUGIN_PATH": "/evil.so",
        "HOME": "/home/me",
    }
    got = scrubbed("key", "/work", env)
    assert {"HTTPS_PROXY", "PATH", "HOME"} <= set(got) and got["HOME"] == "/work"
    assert "MSI_ENDPOINT" not in got and "MSI_ENDPOINT" in scrubbed("msi", "/work", env), "an identity is for logins"
    assert not any(name.startswith(("AZURE_STORAGE", "SECRET", "BLOBFUSE")) for name in got)
    assert scrubbed("azcli", "/work", env)["HOME"] == "/home/me"


def program(tmp_path: Path, said: str, name: str = "blobfuse2") -> str:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\necho '{said}'\n")
    path.chmod(0o755)
    return str(path)


def test_the_binary_is_found_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("AMLMOUNT_BLOBFUSE2", raising=False)
    assert find_binary() is None
    noisy = "Tue Nov 24 : blobfuse2[1] : [] LOG_DEBUG\nblobfuse2 version 2.5.6"
    path = program(tmp_path, noisy)
    found = find_binary()
    assert found is not None and (found.path, found.version_text) == (path, "2.5.6")
    program(tmp_path, "blobfuse2 version 1.4.5 ")
    with pytest.raises(AmlmountError, match=r"it is version 1\.4\.5"):
        find_binary()
    monkeypatch.setenv("AMLMOUNT_BLOBFUSE2", program(tmp_path, noisy, "blobfuse2-new"))
    with pytest.raises(ConfigError, match="not a program of that name"):
        find_binary()


def spec(**changes: object) -> MountSpec:
    stores = {
        "s": {"type": "azure_blob", "account_name": "acc", "container_name": "con"},
        "here": {"type": "local", "path": "/srv"},
    }
    mount = {"target": "/m", "source": "s"} | changes
    return resolve_mount(config_from({"stores": stores, "mounts": {"m": mount}}), "m", DaemonUser(True, 0, 0))


@pytest.mark.parametrize(
    ("changes", "engine", "why"),
    [
        ({}, "blobfuse2", "version 2.5.6"),
        ({"engine": "blobfuse2"}, "blobfuse2", "asked for by name, version 2.5.6"),
        ({"engine": "blobfuse2", "source": "here"}, "blobfuse2", "asked for by name, version 2.5.6"),
        ({"engine": "python"}, "python", "asked for by name"),
        ({"source": "here"}, "python", "blobfuse2 mounts Azure storage only"),
        ({"source": ["s", "here"]}, "python", "blobfuse2 mounts one container, not several in one folder"),
        ({"source": {"store": "s", "glob": "*.jpg"}}, "python", "blobfuse2 has no such filter by name"),
        ({"profile": "epochs", "front": "overlay"}, "python", "there is no overlay in front of blobfuse2"),
    ],
)
def test_auto_picks_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], engine: str, why: str
) -> None:
    program(tmp_path, "blobfuse2 version 2.5.6")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    places = Places(str(tmp_path), str(tmp_path), str(tmp_path), str(tmp_path))
    chosen, reason = select_engine(spec(**changes), places=places)
    assert (chosen.name, reason.partition("; at a crash")[0]) == (engine, why), "an ordinary user is told more"


def test_block_cache_of_a_broken_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "blobfuse2 version 2.2.1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    places = Places(str(tmp_path), str(tmp_path), str(tmp_path), str(tmp_path))
    engine, why = select_engine(spec(profile="stream"), places=places)
    assert engine.name == "python" and "block cache of blobfuse2 2.2.1 is known to be broken" in why
    assert select_engine(spec(), places=places)[0].name == "blobfuse2"


def test_a_writable_cache_goes_to_a_lasting_disk_if_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = Places(*(str(tmp_path / name) for name in ("run", "state", "cache", "log")))
    source = {
        "s": {"type": "azure_blob", "account_name": "acc", "container_name": "con", "credentials": {"anonymous": {}}}
    }
    mount = {"target": "/m", "source": "s", "read_only": False}
    made = resolve_mount(config_from({"stores": source, "mounts": {"m": mount}}), "m", DaemonUser(True, 0, 0))
    first = prepare(made, made.sources[0], places, lambda base: MACHINE)
    assert first.folder.path.startswith(f"{places.state_dir}/blobfuse2/m/run-")
    tight = changed(free_disk_bytes=MIB)
    second = prepare(
        made, made.sources[0], places, lambda base: tight if base.startswith(places.state_dir) else MACHINE
    )
    assert second.folder.path.startswith(f"{places.cache_root}/blobfuse2/m/run-") and "may not last" in caplog.text
    with pytest.raises(BusyError, match=f"in {places.state_dir}"):
        prepare(made, made.sources[0], places, lambda base: tight)
    assert os.stat(first.config_path).st_mode & 0o777 == 0o600
    assert os.listdir(os.path.dirname(first.config_path)) == ["blobfuse2.yaml"]
