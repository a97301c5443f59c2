"""The stand-in for blobfuse2 against recorded transcripts of the real one, and the real one against them if there.

Then what only the stand-in can do in CI: containers, unfinished downloads, failing uploads.
"""

import contextlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from amlmount.blobfuse2 import unfinished_download_mode
from amlmount.config.load import config_from
from amlmount.config.resolve import DaemonUser, resolve_mount
from amlmount.render import render_blobfuse2
from standin.install import Installed, install_standin
from standin.transcripts import RECORD, SCENES, Stage, play, stage, until

REAL = shutil.which("blobfuse2", path=os.environ.get("AMLMOUNT_BLOBFUSE2_PATH", os.environ.get("PATH", "")))
RECORDED = json.loads(RECORD.read_text())
pytestmark = pytest.mark.root


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return install_standin(tmp_path / "bin")


def test_every_scene_is_recorded() -> None:
    assert set(RECORDED) == set(SCENES)


@pytest.mark.parametrize("name", SCENES)
def test_the_stand_in_behaves_as_recorded(name: str, installed: Installed) -> None:
    assert play(name, str(installed.binary)) == RECORDED[name]


@pytest.mark.skipif(not REAL, reason="NOT RUN: no real blobfuse2 on PATH to hold the record against")
@pytest.mark.parametrize("name", SCENES)
def test_the_real_one_still_behaves_as_recorded(name: str) -> None:
    assert REAL
    assert play(name, REAL) == RECORDED[name]


@contextlib.contextmanager
def container_stage(installed: Installed) -> Iterator[tuple[Stage, str]]:
    """Set a stage on which a storage account has container `con`; yields it and a configuration."""
    (installed.containers / "con").mkdir()
    with stage(str(installed.binary)) as on:
        text = "components: [libfuse, file_cache, attr_cache, azstorage]\nlibfuse: {default-permission: 0711}\n"
        account = "azstorage: {type: block, account-name: acc, container: con, mode: key, account-key: aw==}\n"
        yield on, on.config(f"{text}file_cache: {{path: ROOT/c, timeout-sec: 120}}\n{account}")


def test_a_container_that_is_not_there_is_refused(installed: Installed) -> None:
    with container_stage(installed) as (on, config):
        (installed.containers / "con").rmdir()
        said = on.run("mount", str(on.target), f"--config-file={config}")
        assert said["exit"] == 1 and "[BlockBlob::TestPipeline : [ContainerNotFound]]" in said["stderr"]


def test_blob_times_are_whole_seconds_and_local_ones_are_not(installed: Installed) -> None:
    with container_stage(installed) as (on, config):
        blob = installed.containers / "con" / "blob"
        blob.write_bytes(b"x")
        process = on.start(config)
        (on.target / "blob").read_bytes()
        (on.target / "new").write_bytes(b"y")
        assert on.cached() == {"blob": [1, "0o755", True], "new": [1, "0o644", False]}
        assert (installed.containers / "con" / "new").stat().st_mtime_ns % 10**9 == 0
        on.unmount()
        assert process.wait(20) == 0


def test_an_unfinished_download_bears_its_mark(installed: Installed) -> None:
    with container_stage(installed) as (on, config):
        (installed.containers / "con" / "big").write_bytes(b"1" * (9 << 20))
        installed.downloads_stop.touch()
        process = on.start(config)
        reader = subprocess.Popen(["head", "-c", "1", str(on.target / "big")], stderr=subprocess.DEVNULL)
        local = on.cache / "big"
        until(lambda: local.exists() and local.read_bytes()[:1] == b"1")
        process.kill()
        process.wait(20)
        assert reader.wait(20) != 0
        on.unmount("-z")
        status = local.stat()
        assert stat.S_IMODE(status.st_mode) == unfinished_download_mode(allow_other=False)
        assert status.st_size == 9 << 20 and local.read_bytes()[-1:] == b"\0"


def test_a_failed_upload_is_an_error_of_close_and_gone_after_a_clean_unmount(installed: Installed) -> None:
    with container_stage(installed) as (on, config):
        process = on.start(config)
        installed.uploads_fail.touch()
        with pytest.raises(OSError, match="Input/output error"):
            (on.target / "lost").write_bytes(b"y")
        assert (on.cache / "lost").exists() and not (installed.containers / "con" / "lost").exists()
        on.unmount("-z")
        assert process.wait(20) == 0 and on.cached() == {}


def test_what_we_render_is_served_and_read_only_is(installed: Installed) -> None:
    """The rendered file, as an engine would use it: a container, umask, the mark; both kinds of ownership bits."""
    (installed.containers / "con").mkdir()
    (installed.containers / "con" / "a.txt").write_text("hello\n")
    with stage(str(installed.binary)) as on:
        account = {
            "type": "azure_blob",
            "account_name": "acct",
            "container_name": "con",
            "credentials": {"anonymous": {}},
        }
        data = {"stores": {"s": account}, "mounts": {"m": {"target": str(on.target), "source": "s"}}}
        spec = resolve_mount(config_from(data), "m", DaemonUser(is_system=True, uid=1234, gid=5678))
        text = render_blobfuse2(spec, secrets=None, cache_dir=str(on.cache), work_dir=str(on.root / "w"), env={})
        process = on.start(on.config(text))
        status = (on.target / "a.txt").stat()
        assert (on.target / "a.txt").read_text() == "hello\n"
        assert (oct(status.st_mode), status.st_uid, status.st_gid) == ("0o100555", 1234, 5678)
        with pytest.raises(OSError, match="Read-only file system"):
            (on.target / "new").write_text("x")
        on.unmount()
        assert process.wait(20) == 0
