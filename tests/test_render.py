"""What blobfuse2 is started with: golden files, safe where its defaults are not, quoting, the seed's own file."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amlmount.blobfuse2.table import TABLE
from amlmount.blobfuse2.validate import check_config
from amlmount.config.credentials import SecretRef
from amlmount.config.load import load_config
from amlmount.config.profiles import PROFILES
from amlmount.config.resolve import DaemonUser, resolve_mount
from amlmount.config.spec import MountSpec, ProfileName
from amlmount.errors import ConfigError
from amlmount.render import render_blobfuse2
from amlmount.render.document import scalar

GOLDEN = Path(__file__).parent / "golden" / "blobfuse2"
UPDATE = "AMLMOUNT_UPDATE_GOLDEN"
SEED = Path(__file__).parent / "golden" / "seed_mnist_data.yaml"
SECRETS = {
    "KEY": "c2VjcmV0LWtleQ==",
    "SAS": "?sv=2024-11-04&sp=rl&sig=abc%2Fdef%3D",
    "SPN": "a secret: with # and 'quotes'",
    "CONN": "DefaultEndpointsProtocol=https;AccountName=mystorage;AccountKey=a2V5PT0=;EndpointSuffix=core.windows.net",
    "CONN_SAS": "BlobEndpoint=https://x/;SharedAccessSignature=sv=2024&sig=a%3D",
    "CONN_BAD": "AccountName=mystorage",
}
POD = {"AZURE_TENANT_ID": "tenant-1", "AZURE_CLIENT_ID": "client-1", "AZURE_FEDERATED_TOKEN_FILE": "/var/run/token"}
USER = DaemonUser(is_system=True, uid=1000, gid=1000)
CREDENTIALS: dict[str, Any] = {
    "key": {"account_key": {"env": "KEY"}},
    "sas": {"sas_token": {"env": "SAS"}},
    "spn": {"tenant_id": "t", "client_id": "c", "client_secret": {"env": "SPN"}, "authority_url": "https://login.x.cn"},
    "msi": {"managed_identity": {}},
    "msi_client": {"managed_identity": {"client_id": "11111111-2222"}},
    "azcli": {"azure_cli": {}},
    "workload": {"workload_identity": {}},
    "anonymous": {"anonymous": {}},
    "connection_string": {"connection_string": {"env": "CONN"}},
    "connection_string_sas": {"connection_string": {"env": "CONN_SAS"}},
    "machine": None,
}


def reveal(reference: SecretRef) -> str:
    assert reference.env
    return SECRETS[reference.env]


def make_spec(tmp_path: Path, mount: Mapping[str, Any], store: Mapping[str, Any] | None = None) -> MountSpec:
    """Return a mount as the real configuration makes it; `store` and `mount` add to a plain blob store, read-only."""
    plain = {"type": "azure_blob", "account_name": "mystorage", "container_name": "mnist-data"}
    whole_store = {key: value for key, value in (plain | dict(store or {})).items() if value is not None}
    data = {"stores": {"data": whole_store}, "mounts": {"m": {"target": "/mnt/m", "source": "data"} | dict(mount)}}
    path = tmp_path / "amlmount.yaml"
    path.write_text(yaml.safe_dump(data))
    return resolve_mount(load_config([path]), "m", USER)


def render(spec: MountSpec, **changes: Any) -> str:
    places: dict[str, Any] = {
        "cache_dir": "/mnt/cache/m",
        "log_path": "/var/log/amlmount/m.log",
        "work_dir": "/run/amlmount/m",
    }
    arguments: dict[str, Any] = {"secrets": reveal, "env": POD} | places | changes
    return render_blobfuse2(spec, **arguments)


def rendered(spec: MountSpec, **changes: Any) -> dict[str, Any]:
    data = yaml.safe_load(render(spec, **changes))
    assert isinstance(data, dict)
    return data


GOLDEN_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"auth_{name}": ({}, {"credentials": value}) for name, value in CREDENTIALS.items()},
    **{f"profile_{name}": ({"profile": name}, {}) for name in PROFILES if name != "checkpoint"},
    "profile_checkpoint": ({"profile": "checkpoint", "read_only": False}, {}),
    "writable": ({"read_only": False, "profile": "standard"}, {}),
    "block_cache_by_name_for_writing": ({"read_only": False, "blobfuse2": {"block_cache": {}}}, {}),
    "preload": ({"profile": "epochs", "blobfuse2": {"xload": {"validate-md5": True}}}, {}),
    "subdirectory": ({"source": {"store": "data", "path": "MNIST_FLAT/0 - zero"}}, {}),
    "proxy": ({"blobfuse2": {"azstorage": {"https-proxy": "proxy.local:3128"}}}, {}),
    "private_endpoint": ({}, {"endpoint": "https://mystorage.privatelink.blob.core.windows.net"}),
    "sovereign": ({}, {"endpoint": "core.chinacloudapi.cn"}),
    "emulator": ({}, {"endpoint": "http://127.0.0.1:10000/devstoreaccount1"}),
    "hierarchical": ({}, {"type": "azure_data_lake_gen2", "container_name": None, "filesystem": "lake"}),
    "local": ({}, {"type": "local", "account_name": None, "container_name": None, "path": "/srv/data"}),
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str, tmp_path: Path) -> None:
    text = render(make_spec(tmp_path, *GOLDEN_CASES[name]))
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get(UPDATE):
        path.write_text(text)
    assert path.read_text() == text, f"set {UPDATE}=1 and review the difference"


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(GOLDEN_CASES)


@pytest.mark.parametrize(("profile", "auth"), list(itertools.product(PROFILES, CREDENTIALS)))
def test_every_profile_with_every_login_is_valid_and_explicit(profile: str, auth: str, tmp_path: Path) -> None:
    mount = {"profile": profile, "read_only": profile != "checkpoint"}
    config = rendered(make_spec(tmp_path, mount, {"credentials": CREDENTIALS[auth]}))
    assert check_config(config) == []
    assert config["azstorage"]["type"] and config["azstorage"]["mode"] == config["azstorage"]["mode"].lower()
    sections = {name for name, value in config.items() if isinstance(value, dict)}
    reset = [key for key in TABLE.values() if key.reset and key.section in sections and not key.secret]
    assert [key.path for key in reset if key.name not in config[key.section]] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_no_profile_promises_more_than_it_renders(profile: ProfileName, tmp_path: Path) -> None:
    config = rendered(make_spec(tmp_path, {"profile": profile, "read_only": profile != "checkpoint"}))
    policy = PROFILES[profile]
    attributes_s = config["libfuse"]["attribute-expiration-sec"] + config["attr_cache"]["timeout-sec"]
    content_s = config.get("file_cache", {}).get("timeout-sec", 0)
    assert attributes_s <= 1200, "longer, and a replaced blob would be read cut for so long"
    assert attributes_s + content_s <= policy.attr_timeout_s
    assert config["libfuse"]["negative-entry-expiration-sec"] <= policy.negative_timeout_s


def test_fresh_asks_at_every_open(tmp_path: Path) -> None:
    config = rendered(make_spec(tmp_path, {"profile": "fresh"}))
    assert config["libfuse"]["attribute-expiration-sec"] == config["attr_cache"]["timeout-sec"] == 0
    assert config["file_cache"]["timeout-sec"] == 0 and config["libfuse"]["disable-writeback-cache"] is True


def test_defaults_that_lose_data_are_not_used(tmp_path: Path) -> None:
    config = rendered(make_spec(tmp_path, {"read_only": False}))
    assert config["libfuse"]["disable-writeback-cache"] is True
    assert config["file_cache"]["sync-to-flush"] is True
    assert config["file_cache"]["allow-non-empty-temp"] is config["file_cache"]["cleanup-on-start"] is False
    assert config["azstorage"]["max-results-for-list"] == 5000
    assert "default-permission: 0711\n" in render(make_spec(tmp_path, {}))


def test_sizes_follow_the_budget(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, {}).model_copy(update={"cache_max_bytes": 10 << 30})
    assert rendered(spec)["file_cache"]["max-size-mb"] == 10240
    stream = make_spec(tmp_path, {"profile": "stream"})
    for memory_mb in (1, 16, 100, 512, 8192):
        config = rendered(stream, memory_max_bytes=memory_mb << 20)
        assert check_config(config) == []
        assert config["block_cache"]["mem-size-mb"] == max(16, memory_mb)


def test_block_cache_is_refused_for_writing_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="refuses to open most existing blobs") as caught:
        render(make_spec(tmp_path, {"profile": "stream", "read_only": False}))
    assert "block_cache: {}" in str(caught.value.hint)
    by_name = rendered(make_spec(tmp_path, {"read_only": False, "blobfuse2": {"block_cache": {}}}))
    assert by_name["libfuse"]["disable-writeback-cache"] is False


@pytest.mark.parametrize(
    ("mount", "store", "says"),
    [
        ({"read_only": False, "blobfuse2": {"xload": {}}}, {}, "it is for reading only"),
        ({"blobfuse2": {"xload": {}, "block_cache": {}}}, {}, "together"),
        ({"blobfuse2": {"components": ["libfuse", "stream", "azstorage"]}}, {}, "deprecated"),
        ({"blobfuse2": {"file_cache": {"timeout_sec": 5}}}, {}, "did you mean file_cache.timeout-sec"),
        ({"blobfuse2": {"file_cache": {"path": "/x"}}}, {}, "cannot be overridden"),
        ({"blobfuse2": {"libfuse": {"default-permission": 0o644}}}, {}, "marks unfinished downloads"),
        ({"blobfuse2": {"file_cache": {"low-threshold": 90}}}, {}, "not below high-threshold"),
        ({"read_only": False, "blobfuse2": {"azstorage": {"filter": "size>1"}}}, {}, "read-only"),
        ({"blobfuse2": {"azstorage": {"cpk-encryption-key": "inline"}}}, {}, "must not stand in the configuration"),
        ({"source": {"store": "data", "glob": "*.jpg"}}, {}, "cannot filter"),
        ({}, {"credentials": {"connection_string": {"env": "CONN_BAD"}}}, "neither AccountKey"),
    ],
)
def test_what_blobfuse2_cannot_do_is_refused(
    mount: dict[str, Any], store: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        render(make_spec(tmp_path, mount, store))
    assert says in f"{caught.value.message} ({caught.value.hint})" and caught.value.message.startswith("cannot ")
    assert not any(secret in caught.value.message for secret in SECRETS.values())


def test_workload_identity_needs_its_pod(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, {}, {"credentials": CREDENTIALS["workload"]})
    with pytest.raises(ConfigError, match="AZURE_FEDERATED_TOKEN_FILE"):
        render(spec, env={})


def test_compute_instance_identity_is_its_own_not_the_users(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, {}, {"credentials": {"managed_identity": {}}})
    assert rendered(spec, env={"DEFAULT_IDENTITY_CLIENT_ID": "ci"})["azstorage"]["appid"] == "ci"


def test_secrets_among_the_overrides_are_references(tmp_path: Path) -> None:
    keys = {"cpk-encryption-key": {"env": "KEY"}, "cpk-encryption-key-sha256": {"env": "SPN"}}
    spec = make_spec(tmp_path, {"blobfuse2": {"azstorage": {"cpk-enabled": True, **keys}}})
    assert rendered(spec)["azstorage"]["cpk-encryption-key"] == SECRETS["KEY"]


@pytest.mark.parametrize("auth", CREDENTIALS)
def test_masked_without_looking_the_secret_up(auth: str, tmp_path: Path) -> None:
    text = render(make_spec(tmp_path, {}, {"credentials": CREDENTIALS[auth]}), secrets=None)
    secret = {key.name for key in TABLE.values() if key.secret}
    shown = {value for name, value in yaml.safe_load(text)["azstorage"].items() if name in secret}
    assert shown <= {"***", "?"}


@pytest.mark.parametrize("cache_dir", ["relative/dir", "/mnt/$CACHE/x", "~/cache"])
def test_paths_that_blobfuse2_would_rewrite_are_refused(cache_dir: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another path"):
        render(make_spec(tmp_path, {}), cache_dir=cache_dir)


NASTY = [
    "x\nread-only: false",
    'x"\nallow-other: true #',
    "x' # y",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "- a",
    "&a *b !!python/object:os.system",
    "no",
    "1e3",
    "0777",
    "2024-01-01",
    "~",
    " lead",
    "trail ",
    "tab\there",
    "ünï © 🎉",
    "\x85\u2028\ufeff\x7f",
    "a: b",
    "%TAG",
    "@x",
    "`x`",
    "x\r\ny",
    "\x00",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_secret_can_only_become_its_own_value(text: str, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, {}, {"credentials": CREDENTIALS["key"]})
    clean = rendered(spec)
    nasty = rendered(spec, secrets=lambda _: text)
    assert nasty["azstorage"].pop("account-key") == text
    clean["azstorage"].pop("account-key")
    assert nasty == clean


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_reads_back_as_itself(text: str) -> None:
    assert yaml.safe_load(f"a: {scalar(text)}\nb: 1\n") == {"a": text, "b": 1}


@given(
    st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text("ab: ")))
)
def test_any_value_reads_back_as_itself(value: object) -> None:
    back = yaml.safe_load(f"a: {scalar(value)}")["a"]
    assert back == value or float(back) == value


def test_what_cannot_be_written_is_an_error_and_no_file(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, {}, {"credentials": CREDENTIALS["key"]})
    with pytest.raises(ConfigError, match="does not read back the same") as caught:
        render(spec, secrets=lambda _: "half of a pair: \ud800")
    assert "\ud800" not in caught.value.message


def test_each_source_has_its_own_instance(tmp_path: Path) -> None:
    path = tmp_path / "amlmount.yaml"
    path.write_text(
        "stores:\n"
        "  a: {type: azure_blob, account_name: acct, container_name: one}\n"
        "  b: {type: azure_blob, account_name: acct, container_name: two}\n"
        "mounts: {m: {target: /mnt/m, source: [a, b]}}\n"
    )
    spec = resolve_mount(load_config([path]), "m", USER)
    with pytest.raises(ConfigError, match="2 sources"):
        render(spec)
    assert [rendered(spec, source=source)["azstorage"]["container"] for source in spec.sources] == ["one", "two"]


SIX_LINES = """\
stores:
  mnist: {type: azure_blob, account_name: mystorage, container_name: mnist-data, credentials: {account_key: {env: KEY}}}
mounts:
  mnist: {target: /media/aml_data/mnist-data, source: mnist, read_only: false, blobfuse2: {logging: {level: log_debug},
    libfuse: {attribute-expiration-sec: 120, entry-expiration-sec: 120, negative-entry-expiration-sec: 240},
    file_cache: {timeout-sec: 120}, attr_cache: {timeout-sec: 7200}}}
"""


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for name, value in config.items():
        pairs |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return pairs


def test_the_seeds_file_is_reproduced_key_for_key_from_six_lines(tmp_path: Path) -> None:
    assert len(SIX_LINES.splitlines()) == 6
    path = tmp_path / "amlmount.yaml"
    path.write_text(SIX_LINES)
    spec = resolve_mount(load_config([path]), "mnist", USER).model_copy(update={"cache_max_bytes": 512 << 20})
    ours = flat(rendered(spec, cache_dir="/tmp/.azcache", log_path=None))
    seed = flat(yaml.safe_load(SEED.read_text()))
    # mount all becomes a mount of ours for each container, and the key a reference.
    del seed["mountall.container-allowlist"], seed["azstorage.account-key"]
    assert {key: ours.get(key) for key in seed} == seed


def test_without_the_overrides_every_key_of_the_seed_is_there_and_safer(tmp_path: Path) -> None:
    config = flat(rendered(make_spec(tmp_path, {"read_only": False}, {"credentials": CREDENTIALS["key"]})))
    seed = flat(yaml.safe_load(SEED.read_text()))
    assert set(seed) - set(config) == {"mountall.container-allowlist"}
    different = {key for key, value in seed.items() if key in config and config[key] != value}
    assert different == {
        "logging.type",
        "logging.level",
        "libfuse.attribute-expiration-sec",
        "libfuse.entry-expiration-sec",
        "libfuse.negative-entry-expiration-sec",
        "file_cache.path",
        "file_cache.timeout-sec",
        "file_cache.max-size-mb",
        "attr_cache.timeout-sec",
        "azstorage.account-key",
    }
