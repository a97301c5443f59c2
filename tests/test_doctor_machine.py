"""What doctor says of the surroundings, and its archive: full of what helps, and empty of secrets."""

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.doctor import Finding, surroundings
from amlmount.doctor.scrub import Scrubber, is_secret_name
from world import World

DIRECT = "127.0.0.1,localhost,169.254.169.254,168.63.129.16"
MICROSOFT = "https://packages.microsoft.com/ubuntu"


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


# --- proxies and identity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "level", "words"),
    [
        ({}, "ok", "none"),
        (
            {"HTTPS_PROXY": "http://p:3128"},
            "warn",
            f"add to NO_PROXY: {DIRECT}",
        ),
        ({"https_proxy": "http://p", "NO_PROXY": "localhost, 127.0.0.1"}, "warn", "169.254.169.254,168.63.129.16"),
        (
            {"https_proxy": "http://p", "no_proxy": DIRECT},
            "ok",
            "NO_PROXY",
        ),
        ({"https_proxy": "http://p", "no_proxy": "*"}, "ok", "NO_PROXY"),
    ],
)
def test_proxies(env: dict[str, str], level: str, words: str) -> None:
    found = only(surroundings.proxies(env))
    assert found.level == level and words in f"{found.text} {found.fix}"


@pytest.mark.parametrize(
    ("env", "sso", "on_instance", "level", "words"),
    [
        ({}, None, False, "info", "none of a compute instance"),
        ({"MSI_ENDPOINT": "x", "MSI_SECRET": "y"}, None, False, "ok", "the environment"),
        ({}, 'MSI_ENDPOINT=x\nMSI_SECRET="y"\n', True, "ok", "environment.sso"),
        ({"MSI_ENDPOINT": "x"}, None, True, "warn", "MSI_SECRET is not set"),
        ({"MSI_ENDPOINT": "x"}, "MSI_ENDPOINT=x\nMSI_SECRET=y\n", True, "ok", "environment.sso"),
        ({}, None, True, "warn", "this is a compute instance"),
        ({"CI_NAME": "ci"}, None, False, "warn", "single sign-on"),
        ({"AZURE_FEDERATED_TOKEN_FILE": "/t"}, None, False, "ok", "workload"),
    ],
)
def test_identities(
    tmp_path: Path, env: dict[str, str], sso: str | None, on_instance: bool, level: str, words: str
) -> None:
    file, mark = tmp_path / "environment.sso", tmp_path / "nbvm"
    if sso is not None:
        file.write_text(sso)
    if on_instance:
        mark.touch()
    found = only(surroundings.identity(env, str(file), str(mark)))
    assert found.level == level and words in f"{found.text} {found.fix}"
    assert "y" not in found.text.split()


def test_storage_variables_are_named_without_their_values() -> None:
    found = only(surroundings.storage_variables({"AZURE_STORAGE_ACCESS_KEY": "s3cr3t", "PATH": "x"}))
    assert "AZURE_STORAGE_ACCESS_KEY" in found.text and "s3cr3t" not in str(found)
    assert surroundings.storage_variables({"PATH": "x"}) == []


# --- clock and disks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "level"), [(0x2001, "ok"), (0x40, "warn"), (0x2041, "warn"), (None, "info")])
def test_the_clock(monkeypatch: pytest.MonkeyPatch, status: int | None, level: str) -> None:
    monkeypatch.setattr(surroundings, "kernel_clock_status", lambda: status)
    assert only(surroundings.clock()).level == level


def test_the_kernel_is_asked_for_its_clock() -> None:
    status = surroundings.kernel_clock_status()
    assert status is not None and 0 <= status < 1 << 16


@pytest.mark.root
def test_a_temporary_disk_is_found(mountpoint: str) -> None:
    assert {found.name for found in surroundings.disks((mountpoint,))} == {"disk /", "temporary disk"}
    assert "none" in surroundings.disks((mountpoint,))[1].text
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mountpoint], check=True)
    assert "emptied at every stop" in surroundings.disks((mountpoint,))[1].text


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 3 << 30})
    monkeypatch.setattr("amlmount.doctor.surroundings.shutil.disk_usage", lambda path: usage)
    found = surroundings.disks(())[0]
    assert found.level == "warn" and "3.22 GB" in found.text and "cannot be stopped" in found.text


# --- packages and what others left -----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text("ID=ubuntu\nVERSION_ID=22.04\n")
    return tmp_path


def add_source(root: Path, name: str, line: str) -> None:
    (root / "etc/apt/sources.list.d" / name).write_text(f"{line}\n")


def test_package_sources(root: Path) -> None:
    assert only(surroundings.apt_sources(str(root))).fix == "sudo amlmount install"
    add_source(root, "a.list", f"deb [signed-by=/k1] {MICROSOFT}/22.04/prod jammy main")
    assert only(surroundings.apt_sources(str(root))).level == "ok"
    add_source(root, "b.list", f"deb [signed-by=/k2] {MICROSOFT}/22.04/prod jammy main")
    found = only(surroundings.apt_sources(str(root)))
    assert found.level == "warn" and "different keys" in found.text and "b.list" in (found.fix or "")
    add_source(root, "b.list", f"deb [signed-by=/k1] {MICROSOFT}/20.04/prod focal main")
    assert "for another release" in only(surroundings.apt_sources(str(root))).text


def test_releases(root: Path) -> None:
    assert only(surroundings.supported_release(str(root))).level == "ok"
    (root / "etc/os-release").write_text("ID=ubuntu\nVERSION_ID=25.10\n")
    found = only(surroundings.supported_release(str(root)))
    assert found.level == "info" and "--engine python" in (found.fix or "")


def test_what_others_have_set_up_and_does_not_survive(root: Path) -> None:
    assert surroundings.others_mounts(str(root)) == []
    (root / "etc/fstab").write_text(
        "# blobfuse2 /x fuse3 defaults 0 0\n"
        "blobfuse2 /good fuse3 defaults,_netdev,--config-file=/c.yaml 0 0\n"
        "blobfuse2 /bad fuse3 defaults,--config-file=/c.yaml 0 0\n"
    )
    units = root / "etc/systemd/system"
    (units / "bad.service").write_text(
        "[Service]\nType=simple\nEnvironment=AZURE_STORAGE_ACCESS_KEY=s3cr3t\nExecStart=/usr/bin/blobfuse2 mount /x\n"
    )
    start = "ExecStart=/usr/bin/blobfuse2 mount /x --foreground=true"
    (units / "good.service").write_text(f"[Service]\nType=simple\n{start}\n")
    (units / "other.service").write_text("[Service]\nType=simple\nExecStart=/usr/bin/other\n")
    found = surroundings.others_mounts(str(root))
    assert [finding.name for finding in found] == ["fstab", "unit", "unit"]
    assert found[0].text.startswith("/bad ") and all("good" not in finding.text for finding in found)
    assert "s3cr3t" not in str(found)


# --- secrets out of text -------------------------------------------------------------------------------------------

PLANTED = "pLaNtEd/s3cr3t+of=the%test"


@pytest.mark.parametrize(
    "text",
    [
        f"account_key: {PLANTED}",
        f"  account-key: '{PLANTED}'",
        f'"client_secret": "{PLANTED}", "x": 1',
        f"AZURE_STORAGE_ACCESS_KEY={PLANTED}",
        f"export MSI_SECRET='{PLANTED}'",
        f"Environment=AZURE_STORAGE_SAS_TOKEN={PLANTED}",
        f"GET https://a.blob.core.windows.net/c?sv=1&sig={quote(PLANTED, safe='')}&se=2",
        f"Authorization: Bearer {PLANTED}",
        f"http://user:{quote(PLANTED, safe='')}@proxy:3128/",
        f"connection_string: DefaultEndpointsProtocol=https;AccountKey={PLANTED}",
        f"password = {PLANTED}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{PLANTED}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{PLANTED}\n",
    ],
)
def test_secrets_are_seen_by_their_looks_and_names(text: str) -> None:
    scrubbed = Scrubber().scrub(text)
    assert PLANTED not in scrubbed and quote(PLANTED, safe="") not in scrubbed and "[hidden]" in scrubbed


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=40), st.text(), st.text())
def test_a_known_secret_is_found_wherever_it_stands(secret: str, before: str, after: str) -> None:
    scrubber = Scrubber([secret])
    for spelling in (secret, quote(secret, safe=""), secret.replace("%", "%%")):
        assert spelling not in scrubber.scrub(f"{before} {spelling} {after}") or spelling in "[hidden]"


@pytest.mark.parametrize(
    "text",
    [
        "account_key: {env: MNIST_KEY}",
        "credentials: {account_key: {file: secrets/a.key}}",
        "image 12 of 100: cat.jpg",
        "mounts:\n  keys_of_pianos:\n    target: /media/x\n",
        "/etc/apt/keyrings/amlmount-microsoft.asc",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Scrubber(["another-secret"]).scrub(text) == text


def test_names_of_secrets() -> None:
    for name in ("MSI_SECRET", "AZURE_STORAGE_ACCESS_KEY", "PGPASSWORD", "GITHUB_TOKEN", "db_pwd"):
        assert is_secret_name(name)
    for name in ("PATH", "HOME", "AMLMOUNT_CONFIG"):
        assert not is_secret_name(name)


# --- the archive ---------------------------------------------------------------------------------------------------


def read_archive(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        members = {name: archive.extractfile(name) for name in archive.getnames()}
        return {name: file.read().decode() for name, file in members.items() if file is not None}


def test_an_archive_holds_what_helps_and_no_secret(world: World) -> None:
    """Secrets in a file, in variables, in a proxy's address, in logs, in the configuration and on a command line."""
    secrets = {name: f"Zq{name}Zq{os.urandom(6).hex()}" for name in ("file", "env", "proxy", "other", "pasted", "line")}
    account_key = base64.b64encode(os.urandom(64)).decode()
    key_file = Path(world.root, "key")
    key_file.write_text(secrets["file"] + "\n")
    key_file.chmod(0o600)
    azure = {
        "type": "azure_blob",
        "account_name": "acct",
        "container_name": "data",
        "endpoint": "http://127.0.0.1:9/acct",
    }
    stores = {
        "a": {**azure, "credentials": {"account_key": {"file": str(key_file)}}},
        "b": {**azure, "credentials": {"sas_token": {"env": "HARMLESS_NAME"}}},
        "c": {"type": "local", "path": f"{world.root}/images"},
    }
    text = json.dumps({"stores": stores, "mounts": {"c": {"target": f"{world.root}/m", "source": "c"}}})
    os.mkdir(f"{world.root}/images")
    world.write_config(f"# account_key: {secrets['pasted']}\n{text}")
    logs = Path(world.state_dir, "logs")
    logs.mkdir()
    (logs / "a.log").write_text(f"a line\nkey {secrets['file']}\n{account_key}\n?sig={quote(account_key, safe='')}\n")
    env = {
        "HARMLESS_NAME": secrets["env"],
        "SOME_TOKEN": secrets["other"],
        "HTTPS_PROXY": f"http://me:{secrets['proxy']}@127.0.0.1:9",
        "HTTP_PROXY": f"http://me:{secrets['proxy']}@127.0.0.1:9",
    }
    path = Path(world.root, "bundle.tar.gz")
    assert world.cli("up", "c").returncode == 0
    careless = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", f"blobfuse2 --account-key={secrets['line']}"]
    )
    try:
        done = world.cli("doctor", "--bundle", str(path), env=env)
    finally:
        careless.kill()
        careless.wait()
        world.cli("down")
    assert path.exists(), done.stdout + done.stderr
    assert path.stat().st_mode & 0o777 == 0o600 and "without secrets" in done.stderr
    found = read_archive(path)
    whole = "\n".join(found.values()) + done.stdout + done.stderr
    for name, secret in (secrets | {"account": account_key}).items():
        assert secret not in whole and quote(secret, safe="") not in whole, name
    names = {name.removeprefix("amlmount-doctor/") for name in found}
    assert {"about.txt", "findings.json", "mounts.json", "environment.txt", "processes.txt"} <= names
    assert any("a line" in text for name, text in found.items() if "/logs/" in name)
    assert any('"type":"mounted"' in text for name, text in found.items() if name.endswith("events.jsonl"))
    assert json.loads(found["amlmount-doctor/mounts.json"])[0]["name"] == "c"
    assert "HARMLESS_NAME=(set)" in found["amlmount-doctor/environment.txt"]
    assert '"file": ' in "".join(text for name, text in found.items() if "/config/" in name), "references stay"
    again = world.cli("doctor", "--no-stores", "--bundle", str(path))
    assert again.returncode == 2 and "name a new file" in again.stderr


def test_an_archive_without_a_configuration(world: World) -> None:
    path = Path(world.root, "bundle.tar.gz")
    world.cli("doctor", "--bundle", str(path))
    assert "amlmount-doctor/mounts.json" not in read_archive(path)
    assert sys.version.split()[0] in read_archive(path)["amlmount-doctor/about.txt"]
    assert io.BytesIO(path.read_bytes()).read(2) == b"\x1f\x8b"
