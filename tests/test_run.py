"""Starting processes: the environment they get, the deadline they are under, the evidence they leave."""

import os
import signal
import subprocess
import sys
import time

import pytest

from amlmount.errors import AmlmountError, WaitTimeoutError
from amlmount.run import base_env, how_it_ended, is_same_process, run, spawn, start_time_ticks
from sandbox import start_time


def test_only_the_given_environment_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCESS_KEY", "secret")
    assert set(run(["env"], timeout_s=10, env={"A": "1"}).text.split()) == {"A=1"}
    names = {line.partition("=")[0] for line in run(["env"], timeout_s=10).text.splitlines()}
    assert names == set(base_env()) == {"PATH", "HOME", "LC_ALL"}


def test_input_and_output_are_bytes() -> None:
    done = run(["cat"], timeout_s=10, input=b"\xff\x00x")
    assert (done.stdout, done.returncode) == (b"\xff\x00x", 0)


def test_a_failure_carries_command_exit_and_last_lines() -> None:
    with pytest.raises(AmlmountError) as caught:
        run(["sh", "-c", "echo first; echo broken >&2; exit 3"], timeout_s=10)
    assert caught.value.message.startswith("cannot run 'sh -c")
    assert caught.value.message.endswith("it exited with 3")
    assert caught.value.hint == "it said: broken"
    assert caught.value.details["returncode"] == 3


def test_a_missing_program_is_named() -> None:
    with pytest.raises(AmlmountError, match="cannot run 'amlmount-no-such': amlmount-no-such is not there"):
        run(["amlmount-no-such"], timeout_s=10)


def test_the_deadline_ends_the_whole_group() -> None:
    begun = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=r"within 0\.3 s"):
        run(["sh", "-c", "sleep 60 & wait"], timeout_s=0.3)  # that the sleep is gone too, the autouse fixture checks
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(("code", "text"), [(0, "exited with 0"), (-9, "was killed by SIGKILL"), (-99, "signal 99")])
def test_how_it_ended(code: int, text: str) -> None:
    assert text in how_it_ended(code)


def test_spawn_names_the_process_for_ever() -> None:
    child = spawn(["sleep", "60"])
    assert start_time_ticks(child.pid) == child.start_time == start_time(child.pid)
    assert is_same_process(child.pid, child.start_time) and not is_same_process(child.pid, child.start_time + 1)
    assert child.poll() is None and child.wait(0.05) is None
    child.send_signal(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL == child.returncode
    assert not is_same_process(child.pid, child.start_time)
    child.send_signal(signal.SIGKILL)  # nothing happens
    child.close()


def test_spawn_passes_descriptors_under_their_number() -> None:
    reader, writer = os.pipe()
    child = spawn(["sh", "-c", f"echo hello > /dev/fd/{writer}"], pass_fds=[writer])
    os.close(writer)
    assert os.read(reader, 100) == b"hello\n"
    os.close(reader)
    assert child.wait(10) == 0
    child.close()


def test_stop_kills_what_does_not_listen() -> None:
    reader, writer = os.pipe()
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
    child = spawn([sys.executable, "-I", "-c", code], stdout=writer)
    os.close(writer)
    assert os.read(reader, 2) == b"x\n"
    assert child.stop(term_s=0.2) == -signal.SIGKILL
    os.close(reader)
    child.close()


def test_spawned_children_outlive_the_handle_without_complaint() -> None:
    code = """
import warnings; warnings.simplefilter("error")
from amlmount.run import spawn
print(spawn(["sleep", "30"]).pid)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == ""
    pid = int(done.stdout)
    assert start_time(pid) is not None
    os.kill(pid, signal.SIGKILL)
