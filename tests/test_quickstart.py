"""The README's first command: from a fresh clone to a mounted folder, twice; and what it says where it cannot."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mounting import differences, mounted_at
from sandbox import Sandbox
from userbox import UserBox

ROOT = Path(__file__).parents[1]
NOT_CLONED = shutil.ignore_patterns(".git", ".venv", ".work", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
TOOLS = ("sh", "id", "cat", "cksum", "dirname", "mkdir")


@pytest.fixture
def clone(sandbox: Sandbox) -> Iterator[Path]:
    """The tree as it is, with a virtual environment still to be made."""
    path = Path(sandbox.make_dir("c")) / "amlmount"
    shutil.copytree(ROOT, path, symlinks=True, ignore=NOT_CLONED)
    yield path
    shutil.rmtree(path)


@pytest.mark.timeout(400)
def test_a_fresh_clone_ends_with_a_folder_that_equals_its_source(clone: Path, sandbox: Sandbox) -> None:
    env = {"XDG_CACHE_HOME": os.path.expanduser("~/.cache")} | dict(os.environ)  # that of pip is welcome
    env |= {"HOME": sandbox.make_dir("h"), "XDG_RUNTIME_DIR": sandbox.make_dir("r", 0o700)}
    work = clone / ".work" / "quickstart"
    try:
        for _ in range(2):
            done = call("sh", "install/quickstart.sh", cwd=clone, env=env)
            assert "all 400 files are equal" in done and "amlmount down" in done
            assert mounted_at(str(work / "mnt" / "mnist"))
            assert differences(str(work / "mnist-data"), str(work / "mnt" / "mnist")) == []
        names = os.listdir(work / "mnt" / "mnist" / "MNIST_FLAT" / "0 - zero")
        assert len(names) == 40 and all(name.startswith("0 - zero_") and name.endswith(".jpg") for name in names)
    finally:
        said = call("sh", "-c", ". .work/quickstart/world && amlmount down", cwd=clone, env=env)
    assert "mnist: unmounted" in said
    assert not (work / "mnt").exists()


def call(*argv: str, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def few_tools(sandbox: Sandbox) -> str:
    """A PATH on which nothing is but what any machine has, and apt-get."""
    path = sandbox.make_dir("b")
    for name in TOOLS:
        os.symlink(str(shutil.which(name)), f"{path}/{name}")
    with open(f"{path}/apt-get", "w") as file:
        file.write("#!/bin/sh\necho apt-get was run; exit 1\n")
    os.chmod(f"{path}/apt-get", 0o755)
    return path


@pytest.mark.parametrize(("script", "more"), [("quickstart.sh", ""), ("test.sh", " openssl")])
def test_an_ordinary_user_is_told_the_one_line_to_run(as_user: UserBox, few_tools: str, script: str, more: str) -> None:
    done = as_user.run("sh", str(ROOT / "install" / script), env={"PATH": few_tools})
    assert done.returncode == 2
    assert done.stderr == (
        f"error: these packages are missing: fuse3 python3 python3-venv{more}\n"
        f"hint: sudo apt-get install -y fuse3 python3 python3-venv{more}\n"
    )


def test_where_there_is_no_apt_the_packages_are_named(as_user: UserBox, few_tools: str) -> None:
    os.unlink(f"{few_tools}/apt-get")
    os.symlink(sys.executable, f"{few_tools}/python3")
    done = as_user.run("sh", str(ROOT / "install" / "quickstart.sh"), env={"PATH": few_tools})
    assert done.returncode == 2
    assert "error: these are missing: fuse3\n" in done.stderr and "hint: install them" in done.stderr
