"""The daemon as a process: what it holds, how it starts and ends, who may be one, what it tells whom."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from amlmount.daemon.process import DaemonLock
from amlmount.errors import ConfigError
from amlmount.systemd import notify, passed_descriptors
from daemons import Pair, make_pair, poll
from sandbox import Sandbox
from world import World


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


def run_daemon(pair: Pair, **env: str) -> "subprocess.Popen[str]":
    """Start a daemon in the foreground and wait until it is ready."""
    argv = pair.world.argv("daemon")
    daemon = subprocess.Popen(argv, env=pair.world.env | env, stderr=subprocess.PIPE, text=True)
    poll(lambda: os.path.exists(f"{pair.world.runtime_dir}/amlmount.sock"), "no socket")
    return daemon


def test_the_collector_passes_over_what_stays() -> None:
    script = "import gc, amlmount.daemon as d; d.life.process.keep_out_of_collections(); print(len(gc.get_objects()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 1000, "a collection goes through all of it, and nobody is answered meanwhile"


def end(daemon: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> str:
    """End it and return what it logged."""
    daemon.send_signal(number)
    _, log = daemon.communicate(timeout=40)
    assert daemon.returncode == 0, log
    return log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_takes_everything_down(pair: Pair, number: int) -> None:
    daemon = run_daemon(pair)
    assert pair.world.cli("up").returncode == 0
    log = end(daemon, number)
    assert "red: mounted: at " in log and "Traceback" not in log
    pair.assert_as_before()


def test_a_signal_takes_busy_mounts_down_too(pair: Pair) -> None:
    daemon = run_daemon(pair)
    pair.world.cli("up", "red")
    with subprocess.Popen(["sleep", "60"], cwd=pair.target("red")) as holder:
        try:
            assert "letting go of it lazily" in end(daemon)
        finally:
            holder.kill()
    pair.assert_as_before()


def test_one_in_the_foreground_stays_when_its_last_mount_goes(pair: Pair) -> None:
    daemon = run_daemon(pair)
    pair.world.cli("up", "red")
    assert pair.world.cli("down").returncode == 0
    assert daemon.poll() is None and pair.state("red") == "unmounted"
    end(daemon)


def test_sighup_reads_the_configuration_again(pair: Pair) -> None:
    daemon = run_daemon(pair)
    with open(pair.world.config, "a") as file:
        file.write(f"  green: {{target: {pair.target('green')}, source: red}}\n")
    daemon.send_signal(signal.SIGHUP)
    poll(lambda: "green" in [mount["name"] for mount in pair.world.cli_json("ps", "-a")], "green is not known")
    with open(pair.world.config, "a") as file:
        file.write("  [")
    daemon.send_signal(signal.SIGHUP)
    assert len(pair.world.cli_json("ps", "-a")) == 3
    assert "going on with the old configuration" in end(daemon)


def test_it_tells_systemd(pair: Pair, sandbox: Sandbox) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{sandbox.make_dir('n')}/notify")
        manager.settimeout(20)
        daemon = run_daemon(pair, NOTIFY_SOCKET=manager.getsockname())
        assert manager.recv(1000) == b"READY=1"
        daemon.send_signal(signal.SIGHUP)
        assert [manager.recv(1000) for _ in range(2)] == [b"RELOADING=1", b"READY=1"]
        end(daemon)
        assert manager.recv(1000) == b"STOPPING=1"


def test_a_second_one_says_who_is_first(pair: Pair) -> None:
    daemon = run_daemon(pair)
    second = pair.world.cli("daemon")
    assert second.returncode == 8
    assert second.stderr.startswith(f"error: cannot start the daemon: one is running already (pid {daemon.pid})\n")
    assert pair.world.cli_json("ps") == [], "the first is unharmed"
    end(daemon)


def test_it_holds_nothing_of_where_it_came_from(pair: Pair) -> None:
    """Neither the directory nor a descriptor of whoever ran `up`, nor anything in a mount."""
    read_end, write_end = os.pipe()
    try:
        call = pair.start("up", cwd=pair.world.root, pass_fds=[write_end])
        call.communicate(timeout=30)
    finally:
        os.close(write_end)
    assert os.read(read_end, 1) == b"", "nobody else holds the pipe that `up` was given"
    os.close(read_end)
    daemon = f"/proc/{pair.daemon()}"
    assert os.readlink(f"{daemon}/cwd") == "/"
    held = {os.readlink(f"{daemon}/fd/{fd}") for fd in os.listdir(f"{daemon}/fd")}
    files = {path for path in held if path.startswith("/") and not path.startswith("/dev/")}
    log = f"{pair.world.state_dir}/daemon.log"
    logs = {f"{pair.world.state_dir}/logs/{name}.log" for name in ("red", "blue")}
    files -= {"/memfd:amlmount-estate (deleted)", f"{daemon}/mountinfo"}
    assert log in files and files <= {log, f"{pair.world.runtime_dir}/daemon.lock", *logs}
    assert os.getsid(pair.daemon()) == pair.daemon(), "Ctrl-C in the terminal does not reach it"
    pair.world.cli("down")


def test_its_files_are_private(pair: Pair) -> None:
    pair.world.cli("up", "red")
    root = Path(pair.world.root)
    private = [
        root / "run/daemon.lock",
        root / "run/amlmount.sock",
        root / "run/mounts/red.json",
        root / "state/daemon.log",
    ]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600] * 4
    directories = [root / "run", root / "run/mounts", root / "state/logs"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in directories] == [0o700] * 3
    pair.world.cli("down")


def test_a_runtime_directory_that_others_can_enter_is_refused(pair: Pair) -> None:
    os.chmod(pair.world.runtime_dir, 0o755)
    done = pair.world.cli("up")
    assert done.returncode == 2
    assert f"error: cannot use the directory '{pair.world.runtime_dir}': others can enter it" in done.stderr


def test_an_early_death_is_told_with_its_reason(pair: Pair) -> None:
    pair.world.write_config("mounts: [\n")
    done = pair.world.cli("up", "-o", "json")
    assert done.returncode == 2 and "amlmount.yaml" in json.loads(done.stderr)["error"]["message"]
    pair.assert_as_before()


def test_no_configuration_at_all(pair: Pair) -> None:
    env = {"AMLMOUNT_CONFIG": ""}
    done = pair.world.cli("--user", "up", env=env)
    assert done.returncode == 2 and "error: cannot find a configuration: there is no '" in done.stderr
    assert "hint: `amlmount init` writes one" in done.stderr
    assert pair.world.cli("--user", "ps", "-a", "-o", "json", env=env).stdout.strip() == "[]"
    pair.assert_as_before()


def test_a_state_directory_that_cannot_be_written(pair: Pair) -> None:
    with open(f"{pair.world.root}/file", "w"):
        pass
    done = pair.world.cli("up", env={"AMLMOUNT_STATE_DIR": f"{pair.world.root}/file/state"})
    assert done.returncode == 2 and "error: cannot write the daemon's log '" in done.stderr
    pair.assert_as_before()


def test_a_missing_runtime_directory_is_made_and_removed(pair: Pair) -> None:
    os.rmdir(pair.world.runtime_dir)
    pair.world.cli("up", "red")
    assert stat.S_IMODE(os.stat(pair.world.runtime_dir).st_mode) == 0o700
    pair.world.cli("down")
    assert not os.path.exists(pair.world.runtime_dir)


class TestLock:
    """Who is the daemon."""

    def test_one_at_a_time(self, tmp_path: Path) -> None:
        first, second = DaemonLock(str(tmp_path / "run")), DaemonLock(str(tmp_path / "run"))
        assert first.acquire(patience_s=0, give_up=lambda: True)
        assert not second.acquire(patience_s=5, give_up=lambda: True)
        assert second.holder() == os.getpid()
        first.release()
        assert not (tmp_path / "run").exists()
        assert second.acquire(patience_s=0, give_up=lambda: True)
        second.release()

    def test_a_file_that_is_unlinked_under_a_waiting_one_is_not_taken(self, tmp_path: Path) -> None:
        first, second = DaemonLock(str(tmp_path)), DaemonLock(str(tmp_path))
        first.acquire(patience_s=0, give_up=lambda: True)
        os.unlink(tmp_path / "daemon.lock")
        assert second.acquire(patience_s=0, give_up=lambda: True), "the lock is the file that is there"
        second.release()
        first.release()

    def test_a_symlink_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "daemon.lock").symlink_to(tmp_path / "elsewhere")
        os.chmod(tmp_path, 0o700)
        with pytest.raises(ConfigError):
            DaemonLock(str(tmp_path)).acquire(patience_s=0, give_up=lambda: True)
        assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_both_kinds_of_sockets(abstract: bool, sandbox: Sandbox) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = f"{sandbox.make_dir('n')}/notify"
        manager.bind("\0" + path if abstract else path)
        assert notify("READY=1", {"NOTIFY_SOCKET": "@" + path if abstract else path})
        manager.settimeout(5)
        assert manager.recv(100) == b"READY=1"
    assert not notify("READY=1", {"NOTIFY_SOCKET": "@" + path if abstract else path}), "nobody listens any more"
    assert not notify("READY=1", {}) and not notify("READY=1", {"NOTIFY_SOCKET": "relative"})


def test_descriptors_of_another_process_are_not_ours() -> None:
    assert list(passed_descriptors({"LISTEN_FDS": "2", "LISTEN_PID": "1"})) == []
    assert list(passed_descriptors({"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())})) == [3, 4]
