"""Stores and credentials: Azure ML's datastore files go in as they are, secrets do not."""

from pathlib import Path

import pytest
import yaml

from amlmount.config.credentials import (
    AccountKey,
    Anonymous,
    AzureCli,
    ConnectionString,
    ManagedIdentity,
    SasToken,
    ServicePrincipal,
    WorkloadIdentity,
)
from amlmount.config.load import load_config
from amlmount.config.store_models import AzureBlobStore, AzureDataLakeStore, LocalStore, dump_store, parse_store
from amlmount.errors import ConfigError

BLOB_OF_AZURE_ML = """\
$schema: https://azuremlschemas.azureedge.net/latest/azureBlob.schema.json
name: mnist
type: azure_blob
description: handwritten digits
tags: {team: vision}
account_name: mystorage
container_name: mnist-data
protocol: wasbs
endpoint: core.windows.net
"""
GEN2_OF_AZURE_ML = """\
$schema: https://azuremlschemas.azureedge.net/latest/azureDataLakeGen2.schema.json
name: lake
type: azure_data_lake_gen2
account_name: mylake
filesystem: raw
protocol: abfss
credentials:
  tenant_id: 00000000-0000-0000-0000-000000000001
  client_id: 00000000-0000-0000-0000-000000000002
  client_secret: {env: LAKE_SECRET}
  authority_uri: https://login.microsoftonline.com
  resource_url: https://storage.azure.com
"""


def load_store(tmp_path: Path, written: object) -> AzureBlobStore | AzureDataLakeStore | LocalStore:
    path = tmp_path / "amlmount.yaml"
    path.write_text(yaml.safe_dump({"stores": {"mnist": written}}))
    return load_config([path]).stores["mnist"]


def refused(tmp_path: Path, written: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_store(tmp_path, written)
    error = caught.value
    assert "hunter2" not in f"{error.message} {error.hint} {error.details}"
    return f"{error.message} {error.hint}"


def blob(**more: object) -> dict[str, object]:
    return {"type": "azure_blob", "account_name": "mystorage", "container_name": "mnist-data"} | more


def test_a_blob_datastore_file_of_azure_ml_goes_in_as_it_is(tmp_path: Path) -> None:
    store = load_store(tmp_path, yaml.safe_load(BLOB_OF_AZURE_ML))
    assert isinstance(store, AzureBlobStore)
    assert (store.container, store.blob_url) == ("mnist-data", "https://mystorage.blob.core.windows.net")
    assert store.credentials is None


def test_a_gen2_datastore_file_of_azure_ml_goes_in_as_it_is_but_for_its_secret(tmp_path: Path) -> None:
    store = load_store(tmp_path, yaml.safe_load(GEN2_OF_AZURE_ML))
    assert isinstance(store, AzureDataLakeStore)
    assert (store.container, store.dfs_url) == ("raw", "https://mylake.dfs.core.windows.net")
    assert isinstance(store.credentials, ServicePrincipal)
    assert store.credentials.authority_url == "https://login.microsoftonline.com"


@pytest.mark.parametrize("text", [BLOB_OF_AZURE_ML, GEN2_OF_AZURE_ML])
def test_a_store_travels_as_json_and_comes_back_equal(tmp_path: Path, text: str) -> None:
    store = load_store(tmp_path, yaml.safe_load(text))
    assert parse_store(dump_store(store)) == store


@pytest.mark.parametrize(
    ("endpoint", "protocol", "url"),
    [
        ("core.chinacloudapi.cn", "https", "https://mystorage.blob.core.chinacloudapi.cn"),
        ("core.windows.net", "http", "http://mystorage.blob.core.windows.net"),
        ("http://127.0.0.1:10000/mystorage/", "https", "http://127.0.0.1:10000/mystorage"),
    ],
)
def test_the_url_of_other_clouds_and_of_an_emulator(tmp_path: Path, endpoint: str, protocol: str, url: str) -> None:
    store = load_store(tmp_path, blob(endpoint=endpoint, protocol=protocol))
    assert isinstance(store, AzureBlobStore) and store.blob_url == url


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ({"account_key": {"env": "KEY"}}, AccountKey),
        ({"sas_token": {"file": "/run/sas"}}, SasToken),
        ({"connection_string": {"credential": "cs"}}, ConnectionString),
        ({"account_key": {"keyvault": {"vault": "v", "secret": "s"}}}, AccountKey),
        ({"tenant_id": "t", "client_id": "c", "client_secret": {"env": "S"}}, ServicePrincipal),
        ({"managed_identity": {}}, ManagedIdentity),
        ({"managed_identity": None}, ManagedIdentity),
        ({"managed_identity": {"client_id": "c"}}, ManagedIdentity),
        ("managed_identity", ManagedIdentity),
        ("azure_cli", AzureCli),
        ({"workload_identity": {}}, WorkloadIdentity),
        ("anonymous", Anonymous),
    ],
)
def test_every_kind_of_credentials(tmp_path: Path, written: object, kind: type) -> None:
    store = load_store(tmp_path, blob(credentials=written))
    assert isinstance(store, AzureBlobStore) and isinstance(store.credentials, kind)
    assert parse_store(dump_store(store)) == store


def test_the_url_of_a_key_vault(tmp_path: Path) -> None:
    for vault in ("mine", "https://mine.vault.azure.net/"):
        store = load_store(tmp_path, blob(credentials={"account_key": {"keyvault": {"vault": vault, "secret": "s"}}}))
        assert isinstance(store, AzureBlobStore) and isinstance(store.credentials, AccountKey)
        keyvault = store.credentials.account_key.keyvault
        assert keyvault is not None and keyvault.vault_url == "https://mine.vault.azure.net"
        assert store.credentials.account_key.description == "keyvault:s"


@pytest.mark.parametrize("kind", ["account_key", "sas_token", "connection_string"])
def test_an_inline_secret_is_refused_and_told_where_to_go(tmp_path: Path, kind: str) -> None:
    said = refused(tmp_path, blob(credentials={kind: "hunter2"}))
    assert f"stores.mnist.credentials.{kind}: a secret must not stand in the configuration itself" in said
    assert f"{kind}: {{file: secrets/mnist.key}}" in said
    assert f"{kind}: {{env: MNIST_{kind.upper()}}}" in said


def test_the_command_in_the_hint_does_what_it_says(tmp_path: Path) -> None:
    import subprocess

    command = refused(tmp_path, blob(credentials={"account_key": "hunter2"})).split("`")[1]
    subprocess.run(command, shell=True, cwd=tmp_path, input=b"key\n", check=True, timeout=20)
    made = tmp_path / "secrets" / "mnist.key"
    assert (made.read_text(), made.stat().st_mode & 0o777) == ("key\n", 0o600)


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        ("hunter2", "is a plain value write one of account_key, sas_token"),
        ({"acount_key": "hunter2"}, "does not say how to log in write one of account_key"),
        ({"account_key:hunter2": None}, "does not say how to log in"),
        ({"account_key": {"env": "A"}, "sas_token": {"env": "B"}}, "has account_key and sas_token at once"),
        ({"account_key": {"evn": "hunter2"}}, "did you mean 'env'?"),
        ({"account_key": {"env": "hunter2+/=="}}, "is not the name of an environment variable"),
        ({"account_key": {"env": "A", "file": "b"}}, "a secret is one of {env: NAME}"),
        ({"account_key": {}}, "a secret is one of {env: NAME}"),
        ({"tenant_id": "t", "client_secret": {"env": "A"}}, "client_id: is missing"),
        ({"tenant_id": "t", "client_id": "c"}, "client_secret: is missing"),
        (
            {"tenant_id": "t", "client_id": "c", "certificate": "hunter2", "thumbprint": "x"},
            "a certificate cannot be used",
        ),
        ({"managed_identity": {"clientid": "c"}}, "did you mean 'client_id'?"),
        (["hunter2"], "is a plain value"),
    ],
)
def test_credentials_that_cannot_be_used(tmp_path: Path, credentials: object, said: str) -> None:
    assert said in refused(tmp_path, blob(credentials=credentials))


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ({"type": "azure_file", "account_name": "a", "file_share_name": "s"}, "mount -t cifs"),
        ({"type": "one_lake"}, "OneLake is not supported"),
        ({"type": "azure_data_lake_gen1"}, "azure_data_lake_gen2"),
        ({"type": "azur_blob"}, "did you mean 'azure_blob'?"),
        ({"type": "hdfs"}, "only azure_blob, azure_data_lake_gen2, local"),
        ({"account_name": "acc"}, "type is missing"),
        ({"type": "local"}, "path: is missing"),
        ({"type": "azure_blob"}, "account_name: is missing"),
        (blob(account_key="hunter2"), "write it under credentials"),
        (blob(account_name="hunter2+=="), "is not the name of a storage account"),
        (blob(endpoint="https://x.blob.core.windows.net/?sig=hunter2"), "is not a domain"),
        (blob(protocol="hunter2"), "must be 'https', 'http', 'wasbs' or 'wasb'"),
        (blob(container_name=12), "must be text; put it in quotes"),
        (blob(account_name="MyStorage"), "account_name: 'MyStorage' is not the name of a storage account"),
        (blob(account_name="my-storage"), "account_name: 'my-storage' is not the name of a storage account"),
        (blob(account_name="ab"), "it has 3 to 24 lower-case letters and digits"),
        (blob(account_name="a" * 25), "is not the name of a storage account"),
        (blob(container_name="My_Data"), "container_name: 'My_Data' is not the name of a container"),
        (blob(container_name="data--old"), "'data--old' is not the name of a container"),
        (blob(container_name="-data"), "it has 3 to 63 lower-case letters, digits and single dashes"),
        (blob(container_name="data-"), "'data-' is not the name of a container"),
        (blob(container_name="ab"), "or is $root, $web or $logs"),
        (blob(container_name="a" * 64), "is not the name of a container"),
        (blob(container_name="$boot"), "'$boot' is not the name of a container"),
        (blob(container_name=""), "'' is not the name of a container"),
        (blob(container_name="?sv=1&sig=hunter2"), "container_name: is not the name of a container"),
        (
            {"type": "azure_data_lake_gen2", "account_name": "acc", "filesystem": "Raw"},
            "filesystem: 'Raw' is not the name of a container",
        ),
        (blob(**{"acccount_key:hunter2": None}), "a ':' needs a space after it"),
        (["hunter2"], "must be a mapping"),
        ({"type": "azure_data_lake_gen2", "account_name": "acc", "filesytem": "x"}, "did you mean 'filesystem'?"),
    ],
)
def test_stores_that_cannot_be_used(tmp_path: Path, store: object, said: str) -> None:
    assert said in refused(tmp_path, store)


@pytest.mark.parametrize("name", ["$root", "$web", "$logs", "abc", "a-b-c", "1" * 63, None])
def test_names_that_azure_allows(tmp_path: Path, name: str | None) -> None:
    store = load_store(tmp_path, blob(container_name=name, account_name="a" * 24))
    assert isinstance(store, AzureBlobStore) and store.container == name


def test_a_local_folder_may_be_called_anything(tmp_path: Path) -> None:
    assert load_store(tmp_path, {"type": "local", "path": "/srv/My_Data--"}) == LocalStore(
        type="local", path="/srv/My_Data--"
    )
