"""The rule of the test run itself: what a test leaves is found and removed, and a killed run leaves nothing."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from amlmount.mounts import read_mounts
from sandbox import PREFIX, Sandbox, start_time
from skips import read_skip_list
from userbox import UserBox

HERE = Path(__file__).parent


@pytest.fixture
def project(sandbox: Sandbox) -> Iterator[Path]:
    """A test directory with our conftest.py, whose runs live below this one's temporary directory."""
    path = Path(sandbox.make_dir("p"))
    (path / "conftest.py").symlink_to(HERE / "conftest.py")
    (path / "pytest.ini").write_text(f"[pytest]\npythonpath = {HERE}\n")
    (path / "permitted-skips.txt").write_text("[machine]\ntest_it.py::test_permitted # why\n")
    yield path


def start(project: Path, code: str, *args: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    (project / "test_it.py").write_text(textwrap.dedent(code))
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(args or ("--rootdir", ".", "."))]
    whole = os.environ | {"AMLMOUNT_TEST_GRACE_S": "0.2"} | dict(env or {})
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=project, env=whole)


def outcome(project: Path, code: str, *args: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    with start(project, code, *args, env=env) as child:
        said, _ = child.communicate(timeout=60)
        return child.returncode, said


def grounds() -> list[str]:
    return [name for name in os.listdir(os.environ["TMPDIR"]) if name.startswith(PREFIX)]


def test_a_process_left_behind_fails_the_test(project: Path) -> None:
    code = """
        import subprocess
        def test_leaves():
            global child
            child = subprocess.Popen(["sleep", "61"], env={})
    """
    returncode, said = outcome(project, code)
    assert returncode == 1 and "left behind:" in said and "sleep 61" in said
    assert grounds() == []


@pytest.mark.root
def test_a_mount_left_behind_fails_the_test(project: Path) -> None:
    code = """
        from amlmount.mounts import syscalls
        def test_leaves(sandbox):
            syscalls.mount("none", sandbox.make_dir("t"), "tmpfs")
        def test_after():
            pass
    """
    returncode, said = outcome(project, code)
    assert returncode == 1 and "left behind:\nmount " in said and "2 passed, 1 error" in said


def test_a_temporary_name_left_behind_fails_the_test(project: Path) -> None:
    code = """
        import tempfile
        def test_leaves():
            tempfile.mkdtemp(prefix="amlmount-x")
    """
    returncode, said = outcome(project, code)
    assert returncode == 1 and "temporary amlmount-x" in said


def test_only_listed_skips_pass(project: Path) -> None:
    code = """
        import pytest
        def test_permitted():
            pytest.skip("x")
        def test_fine():
            pass
    """
    assert outcome(project, code)[0] == 0
    returncode, said = outcome(project, code.replace("test_permitted", "test_other"))
    assert returncode == 1 and "skip is not in tests/permitted-skips.txt: test_it.py::test_other" in said


def test_a_killed_run_is_cleaned_up_by_its_guardian(project: Path) -> None:
    code = """
        import subprocess, time
        def test_hangs(sandbox):
            child = subprocess.Popen(["sleep", "62"], start_new_session=True)
            with open("pid", "w") as file:
                file.write(f"{child.pid}\\n")
            time.sleep(60)
    """
    with start(project, code) as child:
        pid = wait_for_pid(project / "pid")
        begun = start_time(pid)
        child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (start_time(pid) == begun or grounds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert start_time(pid) != begun and grounds() == []


def wait_for_pid(path: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return int(text)
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


@pytest.mark.root
def test_the_box_is_an_ordinary_user_with_dev_fuse(as_user: UserBox) -> None:
    code = "import amlmount, os; os.close(os.open('/dev/fuse', os.O_RDWR)); print(os.getuid(), os.getgroups())"
    done = as_user.run(sys.executable, "-c", code)
    assert (done.stdout, done.stderr) == (f"{as_user.uid} []\n", "")
    assert as_user.run("sh", "-c", "touch x && ls").stdout == "x\n"


@pytest.mark.root
def test_mounts_of_the_run_are_private() -> None:
    own, outer = os.readlink("/proc/self/ns/mnt"), os.readlink(f"/proc/{os.getppid()}/ns/mnt")
    assert own != outer
    assert all(entry.peer_group is None for entry in read_mounts())


def test_the_list_of_skips_tells_users_from_machines_and_finds_stale_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(
        "t.py::needs_root # mounts\nt.py::gone\n[machine]\nt.py::needs_kernel\n[ordinary user]\nt.py::x_*\n"
    )
    permitted = read_skip_list(path)
    collected = ["t.py::needs_root", "t.py::needs_kernel", "t.py::x_1[a]", "t.py::other"]
    skipped = ["t.py::needs_root", "t.py::needs_kernel"]
    assert permitted.refused([*skipped, "t.py::x_1[a]"], root=False) == []
    assert permitted.refused([*skipped, "t.py::other"], root=False) == ["t.py::other"]
    assert permitted.refused(skipped, root=True) == ["t.py::needs_root"]
    assert permitted.stale(collected, [], root=True) == ["t.py::gone"]
    assert permitted.stale(collected, skipped, root=False) == ["t.py::gone", "t.py::x_*"]


def test_a_stale_line_fails_a_run_of_everything_and_no_other(project: Path) -> None:
    code = """
        import pytest
        def test_permitted():
            pytest.skip("x")
    """
    with open(project / "permitted-skips.txt", "a") as file:
        file.write("test_it.py::test_long_gone\n")
    (project / "pytest.ini").write_text(f"[pytest]\npythonpath = {HERE}\ntestpaths = .\n")
    returncode, said = outcome(project, code, "--rootdir", str(project))
    assert returncode == 1 and "that nothing needs: test_it.py::test_long_gone" in said
    assert outcome(project, code, "-k", "permitted")[0] == 0
    assert outcome(project, code, str(project / "test_it.py"))[0] == 0


def test_the_callers_own_world_is_not_the_tests(project: Path) -> None:
    code = """
        import os
        def test_it():
            assert not {"AMLMOUNT_CONFIG", "AMLMOUNT_RUNTIME_DIR", "SUDO_UID", "NO_COLOR"} & os.environ.keys()
    """
    theirs = {"AMLMOUNT_CONFIG": "/x", "AMLMOUNT_RUNTIME_DIR": "/x", "SUDO_UID": "7", "NO_COLOR": "1"}
    assert outcome(project, code, env=theirs)[0] == 0
