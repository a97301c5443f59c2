"""`amlmount logs`: both engines' logs, rotated ones first, from a moment on, followed, and without secrets."""

import os
import subprocess
import time

from daemons import poll
from world import World


def write_log(world: World, name: str, text: str) -> None:
    os.makedirs(f"{world.state_dir}/logs", exist_ok=True)
    with open(f"{world.state_dir}/logs/{name}", "a") as file:
        file.write(text)


def go_time(ago_s: float) -> str:
    return time.strftime("%a %b %e %H:%M:%S.123 UTC %Y", time.gmtime(time.time() - ago_s))


def test_rotated_then_current_and_since(world: World) -> None:
    write_log(world, "m.log.1", f"{go_time(7200)} : blobfuse2[1] : [/dev/fd/3] LOG_ERR old\n  its second line\n")
    write_log(world, "m.log", f"{go_time(60)} : blobfuse2[1] : [/dev/fd/3] LOG_ERR new ?sv=1&sig=topsecret&se=2\n")
    done = world.cli("logs", "m")
    assert [line.split()[-1] for line in done.stdout.splitlines()][:2] == ["old", "line"]
    assert "topsecret" not in done.stdout and "sig=" in done.stdout
    recent = world.cli("logs", "m", "--since", "10m").stdout
    assert "new" in recent and "old" not in recent and "second line" not in recent
    write_log(world, "p.log", time.strftime("%Y-%m-%d %H:%M:%S,000 python's own\n"))
    assert "python's own" in world.cli("logs", "p", "--since", "1h").stdout


def test_a_name_nobody_has_is_not_found(world: World) -> None:
    world.write_config("stores: {s: {type: local, path: /srv}}\nmounts: {m: {target: /m, source: s}}\n")
    assert world.cli("logs", "x").returncode == 3
    silent = world.cli("logs", "m")
    assert silent.returncode == 0 and "has written nothing yet" in silent.stderr


def test_followed_across_a_rotation(world: World) -> None:
    write_log(world, "m.log", "before\n")
    pipe = subprocess.PIPE
    with subprocess.Popen(world.argv("logs", "m", "-f"), env=world.env, stdout=pipe, text=True) as follower:
        try:
            assert follower.stdout is not None and follower.stdout.readline() == "before\n"
            time.sleep(0.5)
            write_log(world, "m.log", "added\n")
            assert follower.stdout.readline() == "added\n"
            os.rename(f"{world.state_dir}/logs/m.log", f"{world.state_dir}/logs/m.log.1")
            write_log(world, "m.log", "after\n")
            assert follower.stdout.readline() == "after\n"
        finally:
            follower.terminate()
    poll(lambda: not world.processes(), "it stays")
