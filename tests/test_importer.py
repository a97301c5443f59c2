"""Import: what users have becomes configuration that loads and does the same, faults are told, secrets are not."""

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amlmount.blobfuse2.table import SECTION_KEYS
from amlmount.config.documents import parse_document
from amlmount.config.load import config_from, load_config
from amlmount.config.resolve import resolve_mount
from amlmount.errors import AmlmountError, ConfigError
from amlmount.importer import Imported, import_files
from amlmount.importer.safety import cache_finding
from amlmount.render import render_blobfuse2
from world import World

SEED = Path(__file__).parent / "golden" / "seed_mnist_data.yaml"
KEY = "bm90LWEtcmVhbC1rZXk="
PLAIN = f"""\
components: [libfuse, file_cache, attr_cache, azstorage]
file_cache: {{path: /tmp/c, timeout-sec: 120}}
azstorage: {{type: block, account-name: acct, container: mnist-data, mode: key, account-key: {KEY}}}
"""


def write(folder: Path, text: str, name: str = "b.yaml", mode: int = 0o600) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def loaded(done: Imported) -> dict[str, Any]:
    """Return the new configuration; that it loads is part of every test."""
    config_from(parse_document(done.text, "result").data)
    data = yaml.safe_load(done.text)
    assert isinstance(data, dict)
    return data


def import_text(tmp_path: Path, text: str, **options: Any) -> tuple[dict[str, Any], str]:
    """Return the new configuration and everything that was said, in which no secret is."""
    done = import_files([write(tmp_path, text)], **options)
    said = "\n".join(str(finding) for finding in done.findings)
    assert KEY not in done.text + said
    return loaded(done), said


def test_the_seeds_file_and_everything_that_is_wrong_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "cloudfiles" / "code"
    folder.mkdir(parents=True)
    path = write(folder, SEED.read_text())
    done = import_files([path], target="/media/aml_data")
    data = loaded(done)
    assert data["stores"]["mystorage"] == {
        "type": "azure_blob",
        "account_name": "mystorage",
        "credentials": {"account_key": {"env": "MYSTORAGE_ACCOUNT_KEY"}},
    }
    mount = data["mounts"]["mystorage"]
    assert mount["source"] == {"store": "mystorage", "containers": {"allow": ["mnist-data"]}}
    assert mount["target"] == "/media/aml_data" and mount["read_only"] is False and mount["allow_other"] is True
    said = {str(finding.where).removeprefix(f"{path}"): finding.what for finding in done.findings}
    assert "SAS in clear" in said[":6"]
    assert "7200 s" in said[":25"]
    assert "folder of everybody's" in said[":20"]
    assert "everybody in the workspace" in said[":33"]
    assert "config_*.yaml" in said[""]
    assert not any(KEY in str(finding) for finding in done.findings) and KEY not in done.text


def test_one_container_is_a_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """blobfuse2 file -> our configuration -> blobfuse2 file: the same store, the same login."""
    old = write(tmp_path, PLAIN.replace("mode: key", "subdirectory: a/b, mode: key"))
    done = import_files([old], secrets_dir=tmp_path / "secrets", target=str(tmp_path / "m"))
    spec = resolve_mount(load_config([write(tmp_path, done.text, "amlmount.yaml")]), "mnist-data")
    secrets = {reference.read_text() for reference in done.secret_files}
    text = render_blobfuse2(spec, secrets=lambda ref: Path(str(ref.file)).read_text(), cache_dir="/mnt/c")
    new, before = yaml.safe_load(text), yaml.safe_load(old.read_text())
    assert {key: new["azstorage"][key] for key in before["azstorage"]} == before["azstorage"]
    assert secrets == {KEY} and new["read-only"] is False


def test_secrets_go_to_private_files_and_only_there(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    done = import_files([write(tmp_path, PLAIN)], secrets_dir=folder)
    (path,) = done.secret_files
    assert path.read_text() == KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert loaded(done)["stores"]["mnist-data"]["credentials"] == {"account_key": {"file": str(path)}}
    assert import_files([tmp_path / "b.yaml"], secrets_dir=folder).secret_files == (path,), "a second time is fine"


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = import_files([write(tmp_path, PLAIN)], secrets_dir=tmp_path / "secrets", dry_run=True)
    assert done.secret_files == () and not (tmp_path / "secrets").exists()


def test_a_folder_others_can_enter_gets_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="other users can enter"):
        import_files([write(tmp_path, PLAIN)], secrets_dir=folder)
    assert list(folder.iterdir()) == []


def test_another_file_in_the_place_of_a_secret_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)
    (folder / "mnist-data.account_key").write_text("something else")
    with pytest.raises(ConfigError, match="there is another one"):
        import_files([write(tmp_path, PLAIN)], secrets_dir=folder)
    assert (folder / "mnist-data.account_key").read_text() == "something else"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mode: sas, sas: '?sv=x&sig=y'", {"sas_token": {"env": "CON_SAS_TOKEN"}}),
        ("sas: '?sv=x&sig=y'", {"sas_token": {"env": "CON_SAS_TOKEN"}}),
        ("mode: key", {"account_key": {"env": "AZURE_STORAGE_ACCESS_KEY"}}),
        ("mode: msi", {"managed_identity": {}}),
        ("appid: abc", {"managed_identity": {"client_id": "abc"}}),
        ("{}", {"managed_identity": {}}),
        ("mode: azcli", {"azure_cli": {}}),
        (
            "mode: spn, tenantid: t, clientid: c, clientsecret: s",
            {"tenant_id": "t", "client_id": "c", "client_secret": {"env": "CON_CLIENT_SECRET"}},
        ),
        ("mode: spn, tenantid: t, clientid: c, oauth-token-path: /t", {"workload_identity": {"client_id": "c"}}),
        (
            "mode: workloadidentity, tenantid: t, clientid: c, appid: a",
            {"workload_identity": {"client_id": "c"}},
        ),
    ],
)
def test_logins(line: str, expected: dict[str, Any], tmp_path: Path) -> None:
    part = "" if line == "{}" else f", {line}"
    data, _ = import_text(tmp_path, f"azstorage: {{type: block, account-name: acct, container: con{part}}}\n")
    assert data["stores"]["con"]["credentials"] == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("endpoint: https://acct.blob.core.windows.net", {}),
        ("endpoint: acct.blob.core.windows.net/", {}),
        ("endpoint: https://acct.blob.core.chinacloudapi.cn", {"endpoint": "core.chinacloudapi.cn"}),
        (
            "endpoint: 'http://127.0.0.1:10000/devstoreaccount1', use-http: true",
            {"endpoint": "http://127.0.0.1:10000/devstoreaccount1"},
        ),
        ("use-http: true", {"protocol": "http"}),
        ("endpoint: https://10.0.0.4", {"endpoint": "https://10.0.0.4"}),
    ],
)
def test_endpoints(line: str, expected: dict[str, Any], tmp_path: Path) -> None:
    data, _ = import_text(tmp_path, f"azstorage: {{type: block, account-name: acct, container: con, {line}}}\n")
    store = data["stores"]["con"]
    assert {key: store[key] for key in ("endpoint", "protocol") if key in store} == expected


STORE = "azstorage: {type: block, account-name: acct, container: con, mode: msi}\n"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("read-only: true", {"read_only": True}),
        ("components: [libfuse, block_cache, attr_cache, azstorage]", {"profile": "stream", "read_only": False}),
        ("components: [libfuse, xload, attr_cache, azstorage]", {"profile": "epochs", "read_only": True}),
        ("components: libfuse", {"read_only": False}),
        ("libfuse: {uid: 1000, gid: 1000}", {"owner": "1000:1000"}),
        ("libfuse: {umask: 22}", {"umask": "0022"}),
        ("libfuse: {umask: 0022}", {"umask": "0022"}),
        ("libfuse: {default-permission: 0644}", {"file_mode": "0644", "dir_mode": "0644"}),
        ("libfuse: {default-permission: 0o640}", {"file_mode": "0640", "dir_mode": "0640"}),
        ("lazy-write: true", {"durability": "journal"}),
        ("disable-kernel-cache: true", {"profile": "fresh"}),
        ("file_cache: {timeout-sec: '77'}", {"blobfuse2": {"file_cache": {"timeout-sec": 77}}}),
        ("file_cache: {timeout-sec: 120}", {}),
        ("file_cache: {file-cache-timeout-in-seconds: 5}", {"blobfuse2": {"file_cache": {"timeout-sec": 5}}}),
        ("libfuse: {attribute-expiration-sec: 5}", {"blobfuse2": {"libfuse": {"attribute-expiration-sec": 5}}}),
    ],
)
def test_options(extra: str, expected: dict[str, Any], tmp_path: Path) -> None:
    data, _ = import_text(tmp_path, f"{STORE}{extra}\n")
    mount = data["mounts"]["con"]
    assert {key: mount[key] for key in expected} == expected
    if "blobfuse2" not in expected and "block_cache" not in extra and "xload" not in extra:
        assert "blobfuse2" not in mount


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("file_cache: {timeout_sec: 5}", "did you mean file_cache.timeout-sec?"),
        ("file-cache: {timeout-sec: 5}", "did you mean file_cache?"),
        ("libfuse: {default-permission: 644}", "is decimal, which is mode 1204"),
        ("libfuse: {umask: 0022}", "YAML reads 18"),
        ("libfuse: {attribute-expiration-sec: -1}", "is not between 0"),
        ("libfuse: {uid: 1000}", "the other one becomes 0"),
        ("logging: {level: log_debug}", "fills the disk"),
        ("logging: {level: log_trace}", "fills the disk"),
        ("attr_cache: {timeout-sec: 7200}", "read cut, or padded"),
        ("file_cache: {cleanup-on-start: true}", "deleted at the next mount"),
        ("file_cache: {allow-non-empty-temp: true}", "half zeros"),
        ("file_cache: {path: /tmp/.azcache}", "folder of everybody's"),
        ("file_cache: {hard-limit: true}", "does not hold"),
        ("file_cache: {background-download: true}", "does nothing in blobfuse2"),
        ("lazy-write: true", "only logged"),
        ("components: [libfuse, block_cache, attr_cache, azstorage]", "60 % of the memory"),
        ("components: [libfuse, stream, azstorage]", "deprecated"),
        ("components: [file_cache, azstorage]", "nothing is mounted"),
        ("health_monitor: {enable-monitoring: true}", "does not test the mount"),
        ("foo: bar", "is not a key of blobfuse2"),
    ],
)
def test_faults_are_told(extra: str, says: str, tmp_path: Path) -> None:
    _, said = import_text(tmp_path, f"{STORE}{extra}\n")
    assert says in said


def test_findings_name_the_line(tmp_path: Path) -> None:
    _, said = import_text(tmp_path, f"{STORE}logging:\n  level: log_debug\n")
    assert f"{tmp_path}/b.yaml:3: log_debug" in said


@pytest.mark.parametrize(
    ("mode", "says"), [(0o644, "every user of this machine"), (0o600, "wherever this file is copied")]
)
def test_who_can_read_the_key_is_told(mode: int, says: str, tmp_path: Path) -> None:
    done = import_files([write(tmp_path, PLAIN, mode=mode)])
    assert any(says in finding.what for finding in done.findings)


def test_cache_on_the_disk_of_the_system() -> None:
    found = cache_finding("here", "/var/cache/blobfuse2")
    assert found and "disk of the operating system" in found.what
    assert cache_finding("here", "/dev/shm/cache") is None
    assert cache_finding("here", "~/cache")


def test_customer_keys_stay_with_the_mount(tmp_path: Path) -> None:
    extra = f"cpk-enabled: true, cpk-encryption-key: {KEY}, cpk-encryption-key-sha256: {KEY}"
    data, _ = import_text(tmp_path, STORE.replace("mode: msi", extra))
    kept = data["mounts"]["con"]["blobfuse2"]["azstorage"]
    assert kept["cpk-encryption-key"] == {"env": "CON_CPK_ENCRYPTION_KEY"}


def test_mount_all_keeps_both_lists(tmp_path: Path) -> None:
    text = STORE.replace("container: con, ", "") + "mountall: {container-allowlist: [a, b], container-denylist: [b]}\n"
    data, said = import_text(tmp_path, text)
    assert data["mounts"]["acct"]["source"] == {"store": "acct", "containers": {"allow": ["a", "b"], "deny": ["b"]}}
    assert "ignores the denylist" in said


def test_several_files_below_one_folder(tmp_path: Path) -> None:
    one = write(tmp_path, STORE, "one.yaml")
    two = write(tmp_path, STORE.replace("container: con", "container: dat"), "two.yaml")
    mounts = loaded(import_files([one, two], target="/data/"))["mounts"]
    assert {name: mount["target"] for name, mount in mounts.items()} == {"con": "/data/con", "dat": "/data/dat"}


def test_several_files_with_the_same_names(tmp_path: Path) -> None:
    one = write(tmp_path, STORE, "one.yaml")
    two = write(tmp_path, STORE.replace("acct", "other"), "two.yaml")
    data = loaded(import_files([one, two, one]))
    assert data["stores"]["con"]["account_name"] == "acct" and data["stores"]["con-2"]["account_name"] == "other"
    assert data["mounts"]["con-2"]["source"] == "con-2" and len(data["mounts"]) == 2
    assert data["mounts"]["con-2"]["target"] == "/mnt/con-2"


FSTAB = """\
# /etc/fstab
UUID=1234 / ext4 defaults 0 1

blobfuse2 /mnt/with\\040space fuse3 defaults,_netdev,--config-file={config},--read-only,allow_other,umask=022 0 0
/usr/bin/old.sh /mnt/old fuse.blobfuse _netdev 0 0
"""


def test_fstab_lines_bring_target_and_flags(tmp_path: Path) -> None:
    config = write(tmp_path, PLAIN)
    done = import_files([write(tmp_path, FSTAB.format(config=config), "fstab")])
    mount = loaded(done)["mounts"]["mnist-data"]
    assert mount["target"] == "/mnt/with space" and mount["read_only"] is True and mount["allow_other"] is True
    assert mount["umask"] == "0022"
    said = [str(finding) for finding in done.findings]
    assert any("remove the line" in text and "fstab:4" in text for text in said)
    assert any("fstab:5" in text and "not imported" in text for text in said)
    assert KEY not in done.text + "".join(said)


def test_fstab_without_blobfuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no line of it mounts by blobfuse2"):
        import_files([write(tmp_path, "UUID=1 / ext4 defaults 0 1\n", "fstab")])


def test_datastores_become_stores(tmp_path: Path) -> None:
    text = f"""\
$schema: https://azuremlschemas.azureedge.net/latest/azureBlob.schema.json
name: my_blob
type: azure_blob
description: images
account_name: mytestblobstore
container_name: data-container
credentials:
  account_key: {KEY}
"""
    data, said = import_text(tmp_path, text)
    store = data["stores"]["my_blob"]
    assert store["container_name"] == "data-container" and store["description"] == "images"
    assert store["credentials"] == {"account_key": {"env": "MY_BLOB_ACCOUNT_KEY"}}
    assert "account_key in clear" in said and "b.yaml:8" in said and "mounts" not in data


def test_a_file_share_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        import_text(tmp_path, "type: azure_file\nname: share\naccount_name: a\nfile_share_name: s\n")
    assert "mount -t cifs" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"just: a\nyaml: file\n", "it is no blobfuse2 configuration"),
        (b"azstorage: {container: con}\n", "no azstorage.account-name"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"a: [\n", "cannot read"),
        (b"", "it is no blobfuse2 configuration"),
        (b"azstorage: {account-name: UPPER CASE, container: con}\n", "the result would not load"),
    ],
)
def test_what_cannot_be_imported_is_a_plain_error(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        import_files([path])
    assert says in caught.value.message


def test_a_missing_file_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        import_files([tmp_path / "nothing.yaml"])


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.text(max_size=8), max_size=3)
)
SECTIONS = {
    name: st.dictionaries(st.sampled_from([key.name for key in keys]), VALUES, max_size=5)
    for name, keys in SECTION_KEYS.items()
    if name
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.fixed_dictionaries({}, optional=SECTIONS))
def test_whatever_stands_in_a_file_it_loads_or_is_a_plain_error(tmp_path: Path, data: dict[str, Any]) -> None:
    known = {"account-name": "acct", "container": "con", "account-key": KEY}
    data["azstorage"] = data.get("azstorage", {}) | known
    try:
        done = import_files([write(tmp_path, yaml.safe_dump(data))])
    except AmlmountError as error:
        assert KEY not in str(error)
    else:
        loaded(done)
        assert KEY not in done.text + "".join(str(finding) for finding in done.findings)


def test_command_line_writes_what_it_says_and_never_the_secret(world: World, tmp_path: Path) -> None:
    path, output = write(tmp_path, PLAIN), tmp_path / "new.yaml"
    dry = world.cli("import", str(path), "--dry-run", "-o", str(output), "--secrets-dir", str(tmp_path / "s"))
    assert dry.returncode == 0 and yaml.safe_load(dry.stdout)["mounts"] and not output.exists()
    done = world.cli("import", str(path), "-o", str(output), "--secrets-dir", str(tmp_path / "s"), "--target", "/mnt/x")
    assert done.returncode == 0 and done.stdout == "" and f"wrote {output}" in done.stderr
    assert KEY not in dry.stdout + dry.stderr + done.stderr + output.read_text()
    again = world.cli("import", str(path), "-o", str(output))
    assert again.returncode == 2 and "is there already" in again.stderr
    shown = world.cli("--config", str(output), "render", "mnist-data")
    assert shown.returncode == 0 and yaml.safe_load(shown.stdout)["azstorage"]["account-key"] == "***"
    revealed = world.cli("--config", str(output), "render", "mnist-data", "--show-secrets")
    assert yaml.safe_load(revealed.stdout)["azstorage"]["account-key"] == KEY
    unknown = world.cli("--config", str(output), "render", "mnist-dat")
    assert unknown.returncode == 3 and "did you mean mnist-data?" in unknown.stderr
