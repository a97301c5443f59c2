"""Bare systems to install into, made once with mmdebstrap from the distribution's packages and kept in .work/trees."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from installbox import ROOT

TREES = ROOT / ".work" / "trees"
# As small as a cloud image gets: what systemd needs, python3, and no fuse3.
INCLUDED = "systemd,systemd-sysv,dbus,python3,ca-certificates,procps,iproute2,passwd"
# What a bare machine would bring from its distribution; here they are served by the test.
ALSO_FETCHED = "fuse3 python3-venv"


def ensure_tree(suite: str = "bookworm") -> Path:
    """Return a bare tree (a minute the first time); `.debs` beside it holds what the distribution would serve."""
    TREES.mkdir(parents=True, exist_ok=True)
    tree, debs = TREES / suite, TREES / f"{suite}.debs"
    with open(TREES / f"{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (tree / "etc/os-release").exists() or not debs.exists():
            shutil.rmtree(tree, ignore_errors=True)
            shutil.rmtree(debs, ignore_errors=True)
            build(suite, tree, debs)
    return tree


def build(suite: str, tree: Path, debs: Path) -> None:
    """Make a tree under another name first, so that one that is there is whole. The real /dev is not bound into it."""
    if shutil.which("mmdebstrap") is None:
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        argv = ["apt-get", "-q", "-y", "install", "--no-install-recommends", "mmdebstrap"]
        subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL)
    draft, fetched = Path(f"{tree}.draft"), Path(f"{debs}.draft")
    for folder in (draft, fetched):
        shutil.rmtree(folder, ignore_errors=True)
    fetched.mkdir()
    hooks = (
        f'chroot "$1" apt-get -y --no-install-recommends --download-only install {ALSO_FETCHED}',
        f'cp "$1"/var/cache/apt/archives/*.deb "{fetched}"',
    )
    own = ("--skip=chroot/mount/dev,chroot/mount/sys", "--variant=minbase", f"--include={INCLUDED}")
    argv = ["mmdebstrap", "-q", *own, *(f"--customize-hook={hook}" for hook in hooks), suite, str(draft)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    fetched.rename(debs)
    draft.rename(tree)
