"""`amlmount export`, the shipped cloud-init.yaml, and the entry point of jobs."""

import base64
import gzip
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlmount.errors import AmlmountError
from amlmount.installer.export import MAX_CUSTOM_DATA_BYTES, cloud_init, escape_path, systemd_mount
from installbox import ROOT
from world import World

INSTALL = ROOT / "install"


def user_data(text: str) -> dict[str, Any]:
    """Read user data as cloud-init does, with the contents of its files decoded."""
    assert text.startswith("#cloud-config\n") and len(text.encode()) <= MAX_CUSTOM_DATA_BYTES
    data: dict[str, Any] = yaml.safe_load(text)
    for file in data["write_files"]:
        if file.get("encoding") == "gz+b64":
            file["content"] = gzip.decompress(base64.b64decode(file["content"])).decode()
    return data


def test_the_shipped_cloud_init_is_what_export_prints(world: World) -> None:
    """If not: amlmount --config install/cloud-init-config.yaml export cloud-init >install/cloud-init.yaml"""
    done = world.cli("--config", str(INSTALL / "cloud-init-config.yaml"), "export", "cloud-init")
    assert done.returncode == 0, done.stderr
    exported = user_data(done.stdout)
    assert exported == user_data((INSTALL / "cloud-init.yaml").read_text())
    config, script = exported["write_files"]
    assert config["path"] == "/etc/amlmount/amlmount.yaml"
    assert config["content"] == (INSTALL / "cloud-init-config.yaml").read_text()
    assert script["content"] == (INSTALL / "install.sh").read_text() and script["permissions"] == "0700"
    assert exported["runcmd"][0][:2] == ["sh", script["path"]]


def test_a_folder_of_files_is_exported_in_its_order(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "amlmount.yaml").write_text("stores: {}\n")
    (folder / "conf.d" / "10-a.yaml").write_text("mounts: {}\n")
    done = world.cli("--config", str(folder), "export", "cloud-init", "--engine", "python", "--from", "amlmount==9")
    data = user_data(done.stdout)
    assert [file["path"] for file in data["write_files"]][:2] == [
        "/etc/amlmount/amlmount.yaml",
        "/etc/amlmount/conf.d/10-a.yaml",
    ]
    assert data["runcmd"][0][2:] == ["--from", "amlmount==9", "--engine", "python"]


def test_more_than_azure_takes_is_refused() -> None:
    with pytest.raises(AmlmountError, match="64 KiB"):
        cloud_init({"/etc/amlmount/amlmount.yaml": os.urandom(40000).hex()})


def test_without_a_configuration_there_is_nothing_to_export(world: World) -> None:
    os.unlink(world.write_config(""))
    done = world.cli("--config", world.root, "export", "cloud-init")
    assert done.returncode == 2 and "cannot export" in done.stderr


@pytest.mark.parametrize(
    "path", ["/media/aml_data/mnist-data", "/a b/.c", "/", "/.x", "/é", "//a//b/", "/a:b_c.d", "/a\\b", "/-x"]
)
def test_names_of_units_are_escaped_as_systemd_does(path: str) -> None:
    done = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True)
    assert escape_path(path) == done.stdout.strip()


def test_a_mount_unit(world: World) -> None:
    world.write_config(
        f"stores: {{s: {{type: local, path: {world.root}}}}}\nmounts: {{m: {{target: /a-b, source: s}}}}\n"
    )
    done = world.cli("export", "systemd-mount", "m")
    name, text = systemd_mount("m", "/a-b")
    assert done.stdout == f"# /etc/systemd/system/{name}\n{text}" and name == "a\\x2db.mount"
    assert "What=m\nWhere=/a-b\nType=amlmount\n" in text
    assert world.cli("export", "systemd-mount", "none").returncode == 3


# --- jobs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(world: World) -> World:
    images = Path(world.root, "images")
    images.mkdir()
    (images / "cat.txt").write_text("a cat\n")
    world.write_config(
        f"stores: {{s: {{type: local, path: {images}}}}}\nmounts: {{s: {{target: {world.root}/m, source: s}}}}\n"
    )
    return world


def start(world: World, *command: str) -> "subprocess.Popen[str]":
    argv = ["sh", str(INSTALL / "job-entrypoint.sh"), *command]
    return subprocess.Popen(argv, env=world.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_job_has_its_mount_and_its_exit_code(job: World) -> None:
    running = start(job, "sh", "-c", f"cat {job.root}/m/cat.txt; exit 7")
    out, _ = running.communicate(timeout=60)
    assert (out, running.returncode) == ("a cat\n", 7) and job.mounts() == []


def test_a_job_that_is_told_to_stop_may_finish_first(job: World) -> None:
    script = f"trap 'cat {job.root}/m/cat.txt; exit 3' TERM; touch {job.root}/ready; while :; do sleep 0.1; done"
    running = start(job, "sh", "-c", script)
    deadline = time.monotonic() + 60
    while not os.path.exists(f"{job.root}/ready"):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=60)
    assert (out, running.returncode) == ("a cat\n", 3) and job.mounts() == []


def test_a_job_without_its_data_does_not_start(job: World) -> None:
    job.write_config("stores: [")
    running = start(job, "touch", f"{job.root}/started")
    running.communicate(timeout=60)
    assert running.returncode == 2 and not os.path.exists(f"{job.root}/started")
