"""The engine by itself: a local folder through loopbackfs, an ordinary user, failed starts that leave nothing."""

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from amlmount.engines.blobfuse2 import Binary, Blobfuse2Engine, Places, find_binary
from amlmount.engines.blobfuse2.preflight import preflight
from amlmount.errors import BusyError, ContainerNotFoundError, MountFailedError, WaitTimeoutError
from daemons import poll
from drivers import Driver, sh
from mounting import mounted_at, spec_of
from sandbox import Sandbox
from world import World

pytestmark = pytest.mark.root


@pytest.fixture
def ground(sandbox: Sandbox) -> str:
    """A directory with a folder to show and room for an engine's files."""
    root = sandbox.make_dir("e", 0o700)
    os.mkdir(f"{root}/src")
    Path(root, "src", "a.txt").write_text("hello")
    return root


def make_engine(ground: str) -> Blobfuse2Engine:
    binary = find_binary()
    assert isinstance(binary, Binary)
    return Blobfuse2Engine(binary, places_in(ground))


def places_in(ground: str) -> Places:
    return Places(f"{ground}/run", f"{ground}/state", f"{ground}/cache", f"{ground}/log")


async def off_loop(script: str) -> str:
    return await asyncio.to_thread(sh, script)


def left_in(ground: str) -> list[str]:
    return [name for part in ("run", "state", "cache") for _, _, names in os.walk(f"{ground}/{part}") for name in names]


def test_a_folder_by_loopbackfs_is_read_written_and_left_clean(driver: Driver, ground: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = make_engine(ground)
        spec = spec_of(f"{ground}/src", mountpoint, read_only=False, engine="blobfuse2")
        begun = time.monotonic()
        running = await engine.start(spec, timeout_s=30)
        print(f"started in {time.monotonic() - begun:.3f} s")
        assert await off_loop(f"cat {mountpoint}/a.txt; echo new > {mountpoint}/b.txt") == "hello"
        assert Path(ground, "src", "b.txt").read_text() == "new\n"
        await engine.stop(running, lazy=False, timeout_s=20)
        assert (await running.exited).returncode == 0 and running.fuse_fd == -1
        assert not mounted_at(mountpoint) and left_in(ground) == []

    asyncio.run(story())


def test_a_busy_mount_stays_and_its_holder_is_named(driver: Driver, ground: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = make_engine(ground)
        running = await engine.start(spec_of(f"{ground}/src", mountpoint, engine="blobfuse2"), timeout_s=30)
        with subprocess.Popen(["sleep", "60"], cwd=mountpoint) as holder:
            with pytest.raises(BusyError, match=f"sleep .pid {holder.pid}"):
                await engine.stop(running, lazy=False, timeout_s=20)
            assert mounted_at(mountpoint) and not running.exited.done()
            await engine.stop(running, lazy=True, timeout_s=0.2)
            assert not mounted_at(mountpoint) and not running.exited.done()
            holder.kill()
        assert (await asyncio.wait_for(running.exited, 20)).returncode == 0

    asyncio.run(story())


def test_failed_starts_leave_nothing(driver: Driver, ground: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = make_engine(ground)
        missing = spec_of(f"{ground}/src", mountpoint, engine="blobfuse2")
        gone = missing.sources[0].model_copy(update={"store": {"type": "local", "path": f"{ground}/gone"}})
        with pytest.raises(ContainerNotFoundError):
            await engine.start(missing.model_copy(update={"sources": (gone,)}), timeout_s=30)
        with pytest.raises(MountFailedError):
            await engine.start(missing.model_copy(update={"target": f"{mountpoint}/gone"}), timeout_s=30)
        with pytest.raises(WaitTimeoutError):
            await engine.start(missing, timeout_s=0.01)
        assert not mounted_at(mountpoint)
        poll(lambda: left_in(ground) == [], f"left: {left_in(ground)}")

    asyncio.run(story())


def test_a_start_that_is_given_up_leaves_nothing(driver: Driver, ground: str, mountpoint: str) -> None:
    async def story(after_s: float) -> None:
        spec = spec_of(f"{ground}/src", mountpoint, engine="blobfuse2")
        task = asyncio.create_task(make_engine(ground).start(spec, timeout_s=30))
        await asyncio.sleep(after_s)
        task.cancel()
        try:
            running = await task
        except asyncio.CancelledError:
            return
        await make_engine(ground).stop(running, lazy=True, timeout_s=5)

    for after_s in (0.0, 0.01, 0.03, 0.06):
        asyncio.run(story(after_s))
        assert not mounted_at(mountpoint)
    poll(lambda: left_in(ground) == [], f"left: {left_in(ground)}")


def test_the_words_of_a_failed_start_are_in_the_error(
    ground: str, mountpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "blobfuse2"
    words = "Error: failed to initialize new pipeline [failed to authenticate with error [no such host]] sig=topsecret"
    script = 'case "$*" in *--version*) echo blobfuse2 version 2.5.6; exit 0;; esac'
    program.write_text(f"#!/bin/sh\n{script}\necho '{words}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def story() -> None:
        with pytest.raises(Exception, match="no such host") as caught:
            await make_engine(ground).start(spec_of(f"{ground}/src", mountpoint, engine="blobfuse2"), timeout_s=30)
        assert getattr(caught.value, "exit_code", None) == 6
        assert "topsecret" not in str(caught.value) and "topsecret" not in str(vars(caught.value))

    asyncio.run(story())


def test_a_folder_is_looked_at_first(ground: str) -> None:
    spec = spec_of(f"{ground}/src", "/nowhere")
    preflight(spec.sources[0])
    with pytest.raises(ContainerNotFoundError, match="cannot find the folder"):
        preflight(spec.sources[0].model_copy(update={"path": "not-there"}))


def test_an_ordinary_user(driver: Driver, user_world: World) -> None:
    root = user_world.root
    source = f"{root}/src"
    os.makedirs(source)
    Path(source, "a.txt").write_text("hello")
    os.chmod(source, 0o777)
    user_world.write_config(
        f"stores: {{s: {{type: local, path: {source}}}}}\n"
        f"mounts: {{m: {{target: {root}/mnt, source: s, engine: blobfuse2, read_only: false}}}}\n"
    )
    os.chmod(user_world.config, 0o644)
    env = {"AMLMOUNT_BLOBFUSE2": reachable_binary(driver, root)}
    done = user_world.cli("up", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    box = user_world.box
    assert box is not None
    said = box.run("sh", "-c", f"cat {root}/mnt/a.txt; echo x > {root}/mnt/b.txt; grep {root}/mnt /proc/self/mounts")
    assert said.stdout.startswith("hello") and "blobfuse2 " in said.stdout, said
    assert Path(source, "b.txt").read_text() == "x\n"
    before = user_world.cli_json("ps")[0]["pid"]
    os.kill(int(Path(user_world.runtime_dir, "daemon.lock").read_text()), signal.SIGKILL)
    again = user_world.cli("up", env=env)
    assert again.returncode == 0 and user_world.cli_json("ps")[0]["pid"] == before, "not adopted"
    down = user_world.cli("down", env=env)
    assert down.returncode == 0, down.stderr
    poll(lambda: not user_world.processes(), f"left: {user_world.processes()}")


def reachable_binary(driver: Driver, root: str) -> str:
    """Copy the program to where the user of the box can run it."""
    import shutil

    folder = f"{root}/bin"
    if driver.standin is not None:
        shutil.copytree(driver.standin.folder, folder)
    else:
        os.mkdir(folder)
        shutil.copy(driver.binary, folder)
    return f"{folder}/blobfuse2"
