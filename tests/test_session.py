"""`amlmount.mount` behaves as the reference engine does (Dataset.mount), minus its faults; each test is one assertion.

What the reference does wrong and this must not: a temporary folder for a mount that never starts, a dead mount
after a crash, a `df` of zeros, the removal of a folder that was there before.
"""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import amlmount
from amlmount.errors import ConfigError, ContainerNotFoundError, MountFailedError, NotFoundError, UsageError
from mounting import differences, make_source, mounted_at, until
from sandbox import Sandbox, command_line
from world import World

BOTH = pytest.mark.parametrize("in_process", [False, True], ids=["worker", "thread"])


@pytest.fixture
def source(sandbox: Sandbox) -> str:
    return make_source(sandbox.make_dir("s"))


@BOTH
def test_every_file_equals_its_source(source: str, in_process: bool) -> None:
    with amlmount.mount(source, in_process=in_process) as m:
        assert differences(source, m.mount_point) == []


@BOTH
def test_a_temporary_folder_is_made_and_removed(source: str, in_process: bool) -> None:
    with amlmount.mount(source, in_process=in_process) as m:
        assert os.path.basename(m.mount_point).startswith("amlmount-")
        assert mounted_at(m.mount_point)
    assert not os.path.lexists(m.mount_point)


def test_a_blank_mount_point_is_none(source: str) -> None:
    assert os.path.basename(amlmount.mount(source, " ").mount_point).startswith("amlmount-")


def test_nothing_is_mounted_or_made_before_start(source: str) -> None:
    m = amlmount.mount(source)
    assert not os.path.lexists(m.mount_point)
    m.start()
    try:
        assert mounted_at(m.mount_point)
    finally:
        m.stop()


def test_a_mount_point_is_relative_to_the_working_directory(
    source: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = sandbox.make_dir("cwd")
    monkeypatch.chdir(here)
    m = amlmount.mount(source, "some/where")
    monkeypatch.chdir("/")
    with m:
        assert m.mount_point == os.path.join(here, "some/where") and mounted_at(m.mount_point)
    assert os.listdir(here) == []


def test_a_folder_that_was_there_stays(source: str, mountpoint: str) -> None:
    with amlmount.mount(source, mountpoint):
        assert mounted_at(mountpoint)
    assert os.listdir(mountpoint) == []


def test_it_is_read_only(source: str) -> None:
    with amlmount.mount(source) as m:
        with pytest.raises(OSError) as caught:
            os.unlink(f"{m.mount_point}/empty")
        assert caught.value.errno == errno.EROFS
        with pytest.raises(OSError) as caught:
            os.mkdir(f"{m.mount_point}/new")
        assert caught.value.errno == errno.EROFS
        assert not os.stat(f"{m.mount_point}/empty").st_mode & 0o222


def test_df_shows_something(source: str) -> None:
    with amlmount.mount(source) as m:
        assert os.statvfs(m.mount_point).f_blocks > 0


@pytest.mark.parametrize("bad", ["not empty", "a file"])
def test_a_folder_that_cannot_be_mounted_on_is_refused(source: str, sandbox: Sandbox, bad: str) -> None:
    place = sandbox.make_dir("t")
    target = place if bad == "not empty" else os.path.join(place, "file")
    Path(place, "file").write_text("kept")
    with pytest.raises(MountFailedError, match="cannot mount at"):
        amlmount.mount(source, target).start()
    assert Path(place, "file").read_text() == "kept" and not mounted_at(target)


def test_a_folder_that_is_mounted_is_refused(source: str, mountpoint: str) -> None:
    with amlmount.mount(source, mountpoint), pytest.raises(MountFailedError, match="already mounted") as caught:
        amlmount.mount(source, mountpoint).start()
    assert caught.value.hint and "fusermount3 -u" in caught.value.hint


@BOTH
def test_start_twice_and_stop_twice(source: str, in_process: bool) -> None:
    m = amlmount.mount(source, in_process=in_process)
    m.stop()
    m.start()
    m.start()
    assert mounted_at(m.mount_point)
    m.stop()
    m.stop()
    assert not os.path.lexists(m.mount_point)
    with m:
        assert mounted_at(m.mount_point)


@BOTH
def test_stop_returns_at_once_with_a_file_open(source: str, in_process: bool) -> None:
    m = amlmount.mount(source, in_process=in_process)
    m.start()
    descriptor = os.open(f"{m.mount_point}/big.bin", os.O_RDONLY)
    try:
        stopping = threading.Thread(target=m.stop)
        stopping.start()
        stopping.join(3)
        assert not stopping.is_alive() and not os.path.lexists(m.mount_point)
        with pytest.raises(OSError):
            os.pread(descriptor, 4096, 200_000)
    finally:
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.ENOTCONN  # FLUSH finds nobody


def test_an_exception_inside_unmounts(source: str) -> None:
    m = amlmount.mount(source)
    with pytest.raises(ValueError, match="mine"), m:
        raise ValueError("mine")
    assert not os.path.lexists(m.mount_point)


def test_it_works_below_a_running_loop_and_from_threads(source: str) -> None:
    """A notebook runs its cells inside a loop; a data loader starts its mounts from threads."""
    seen: list[list[str]] = []

    def use() -> None:
        with amlmount.mount(source) as m:
            seen.append(sorted(os.listdir(m.mount_point)))

    async def cell() -> None:
        use()

    asyncio.run(cell())
    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [sorted(os.listdir(source))] * 4


def test_a_source_that_vanishes_before_start_is_never_mounted(source: str) -> None:
    m = amlmount.mount(source)
    os.rename(source, source + ".away")
    with pytest.raises(ContainerNotFoundError):
        m.start()
    assert not os.path.lexists(m.mount_point) and not mounted_at(m.mount_point)


def test_a_source_is_a_name_of_the_configuration(source: str, world: World, mountpoint: str) -> None:
    config = world.write_config(
        f"""
stores:
  digits: {{type: local, path: {source}}}
mounts:
  train: {{target: /elsewhere, source: {{store: digits, path: MNIST_FLAT}}, profile: epochs}}
"""
    )
    with amlmount.mount("train", mountpoint, config=config):
        assert os.listdir(mountpoint) == sorted(os.listdir(f"{source}/MNIST_FLAT"))
    with amlmount.mount("digits", mountpoint, config=config):
        assert differences(source, mountpoint) == []
    with amlmount.mount([{"store": "digits", "path": "MNIST_FLAT"}], mountpoint, config=config):
        assert os.listdir(mountpoint) == ["digits"]
    with amlmount.mount({"type": "local", "path": source}, mountpoint):
        assert differences(source, mountpoint) == []
    with pytest.raises(NotFoundError) as caught:
        amlmount.mount("trian", config=config)
    assert caught.value.hint == "did you mean train?"
    with pytest.raises(ConfigError, match="profile"):
        amlmount.mount("train", config=config, profile="fast")


def test_sources_that_make_no_sense(source: str) -> None:
    with pytest.raises(ContainerNotFoundError, match="no such folder"):
        amlmount.mount(source + "/gone")
    with pytest.raises(UsageError, match="not a folder"):
        amlmount.mount(source + "/empty")
    with pytest.raises(UsageError, match="URLs"):
        amlmount.mount("azureml://datastores/x/paths/y")
    with pytest.raises(ConfigError, match="for writing"):
        amlmount.mount(source, read_only=False)
    with pytest.raises(UsageError, match="42: it is no source"):
        amlmount.mount(42)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [lambda part: part, lambda part: [part]])
def test_a_store_that_is_not_in_the_configuration(
    source: str, world: World, wrap: Callable[[dict[str, str]], Any]
) -> None:
    config = world.write_config(f"stores: {{digits: {{type: local, path: {source}}}}}\n")
    with pytest.raises(NotFoundError, match="cannot find a store called 'digit'") as caught:
        amlmount.mount(wrap({"store": "digit"}), config=config)
    assert caught.value.hint == "did you mean digits?"


USER = """
import os, sys, time
import amlmount
m = amlmount.mount(sys.argv[1], sys.argv[2] or None, in_process=sys.argv[3] == "thread")
{body}
"""


def script(body: str, source: str, target: str = "", how: str = "worker") -> list[str]:
    return [sys.executable, "-c", USER.format(body=body), source, target, how]


@pytest.mark.parametrize("how", ["worker", "thread"])
def test_an_exit_without_stop_unmounts(source: str, how: str) -> None:
    done = subprocess.run(
        script("m.start(); print(m.mount_point)", source, how=how), capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: not os.path.lexists(done.stdout.strip()), 5)


@pytest.mark.parametrize("how", ["worker", "thread"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_caller_leaves_no_mount_and_no_folder(
    source: str, sandbox: Sandbox, how: str, number: signal.Signals
) -> None:
    target = os.path.join(sandbox.make_dir("t"), "made/by us")
    body = "m.start(); f = open(m.mount_point + '/big.bin', 'rb'); print('up', flush=True); time.sleep(60)"
    with subprocess.Popen(script(body, source, target, how), stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None and caller.stdout.readline() == b"up\n"
        caller.send_signal(number)
        until(lambda: not mounted_at(target), 5)
        until(lambda: not os.path.lexists(os.path.dirname(target)), 5)


def test_ctrl_c_while_starting_leaves_nothing(source: str, sandbox: Sandbox) -> None:
    """The interrupt falls into the start of the worker, which takes several times as long."""
    target = os.path.join(sandbox.make_dir("t"), "made")
    body = """
import signal, threading
threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    m.start()
except KeyboardInterrupt:
    print("interrupted", os.path.lexists(m.mount_point))
"""
    done = subprocess.run(script(body, source, target), capture_output=True, text=True, timeout=30)
    assert done.stdout == "interrupted False\n", done.stderr
    assert not mounted_at(target)


def test_a_killed_worker_gives_errors_and_no_hang(
    source: str, mountpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    with amlmount.mount(source, mountpoint):
        os.kill(our_worker(), signal.SIGKILL)
        until(lambda: "killed by SIGKILL" in caplog.text)
        with pytest.raises(OSError) as caught:
            os.listdir(mountpoint)
        assert caught.value.errno == errno.ENOTCONN
    assert not mounted_at(mountpoint)


def our_worker() -> int:
    """Find the only worker that is a child of this process (of whichever thread)."""
    children: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children") as file:
            children |= {int(pid) for pid in file.read().split()}
    [worker] = [pid for pid in children if "amlmount.worker" in command_line(pid)]
    return worker


@pytest.mark.parametrize("delay_s", [0.03, 0.08, 0.13, 0.18, 0.25, 0.35])
def test_a_caller_killed_while_starting_leaves_nothing(source: str, sandbox: Sandbox, delay_s: float) -> None:
    """Killed `delay_s` after the start began: while the worker loads, mounts, or has just mounted."""
    target = os.path.join(sandbox.make_dir("t"), "made")
    with subprocess.Popen(
        script("print('go', flush=True); m.start()", source, target), stdout=subprocess.PIPE
    ) as caller:
        assert caller.stdout is not None and caller.stdout.readline() == b"go\n"
        threading.Event().wait(delay_s)
        caller.kill()
    until(lambda: not mounted_at(target) and not os.path.lexists(target), 10)
