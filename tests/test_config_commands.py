"""`config check | show | schema` and `init`, the schema and the documentation they stand on."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from amlmount.cli.config_commands import config_app, init
from amlmount.config.docs import render_docs
from amlmount.config.load import load_config, load_with_places
from amlmount.config.resolve import DaemonUser, resolve_all
from amlmount.config.schema import json_schema
from amlmount.config.show import effective_data, to_json, to_yaml
from amlmount.config.starter import STARTER
from amlmount.errors import ConfigError, UsageError

ROOT = Path(__file__).parents[1]
USER = DaemonUser(is_system=False, uid=1000, gid=1000)
EXAMPLE = """\
stores:
  mnist_data:
    type: azure_blob
    account_name: mystorage
    container_name: mnist-data
    credentials: {account_key: {env: MNIST_KEY}}
  labels: {type: local, path: ./labels}
defaults: {umask: 027, policy: {list_ttl: 5m}}
mounts:
  mnist:
    target: /media/aml_data/mnist-data
    source: mnist_data
    profile: epochs
    policy: {max_read: 512KiB}
  both:
    target: /media/aml_data/both
    source: [mnist_data, {store: labels, path: a, glob: "*.csv", name: "007"}]
    refresh: ~
  written: {target: /media/w, source: mnist_data, read_only: false, durability: journal}
cache: {root: /mnt/amlmount/cache, keep_free: 1.5GB}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "amlmount.yaml"
    path.write_text(EXAMPLE)
    return path


def run(*args: str, config: Path | None = None) -> Result:
    app = typer.Typer()
    app.add_typer(config_app, name="config")
    app.command()(init)
    return CliRunner().invoke(app, list(args), obj={"config": config}, env={"AMLMOUNT_CONFIG": ""})


def test_check_names_the_files_and_counts(file: Path) -> None:
    result = run("config", "check", config=file)
    assert (result.exit_code, result.stdout) == (0, f"{file}\nright: 2 stores, 3 mounts\n")


def test_check_lets_the_error_of_a_wrong_file_through(file: Path) -> None:
    file.write_text(EXAMPLE.replace("profile:", "profle:"))
    result = run("config", "check", config=file)
    assert isinstance(result.exception, ConfigError) and result.exception.hint == "did you mean 'profile'?"


def test_check_without_any_file_says_how_to_get_one(tmp_path: Path) -> None:
    result = run("config", "check", config=tmp_path)
    assert isinstance(result.exception, ConfigError)
    assert "amlmount.yaml" in result.exception.message and "init" in str(result.exception.hint)


def test_show_is_a_configuration_that_means_the_same(file: Path, tmp_path: Path) -> None:
    result = run("config", "show", config=file)
    again = tmp_path / "again.yaml"
    again.write_text(result.stdout)
    assert resolve_all(load_config([again]), USER).keys() == resolve_all(load_config([file]), USER).keys()
    loaded, shown = load_with_places([file]), load_with_places([again])
    user = DaemonUser(is_system=os.geteuid() == 0, uid=os.geteuid(), gid=os.getegid())
    assert effective_data(loaded, user) == effective_data(shown, user)


def test_show_with_origin_is_still_yaml_and_means_the_same(file: Path) -> None:
    loaded = load_with_places([file])
    plain, commented = to_yaml(loaded, USER), to_yaml(loaded, USER, with_origin=True)
    assert yaml.safe_load(plain) == yaml.safe_load(commented)


def test_every_value_shown_says_where_it_came_from(file: Path) -> None:
    origins = {
        path: item["origin"]
        for path, item in json.loads(to_json(load_with_places([file]), USER, with_origin=True)).items()
    }
    assert origins["mounts.mnist.target"] == f"{file}:11"
    assert origins["mounts.mnist.policy.max_read"] == f"{file}:14"
    assert origins["mounts.mnist.policy.list_ttl"] == f"{file}:8 (defaults)"
    assert origins["mounts.mnist.policy.attr_timeout"] == "profile epochs"
    assert origins["mounts.mnist.umask"] == f"{file}:8 (defaults)"
    assert origins["mounts.mnist.engine"] == "default"
    assert origins["mounts.mnist.owner"] == "default: who ran amlmount up"
    assert origins["mounts.both.source.1.path"] == f"{file}:17"
    assert origins["stores.mnist_data.protocol"] == "default"
    assert origins["cache.max_size"] == "default"
    assert all(origins.values())


def test_show_speaks_json(file: Path) -> None:
    data = json.loads(run("config", "show", "-o", "json", config=file).stdout)
    assert data["mounts"]["mnist"]["policy"]["list_ttl"] == "5m"
    assert data["stores"]["mnist_data"]["credentials"] == {"account_key": {"env": "MNIST_KEY"}}
    assert data["cache"] == {"root": "/mnt/amlmount/cache", "max_size": "80%", "keep_free": "1500MB"}


def test_show_leaves_out_what_means_nothing_to_a_read_only_mount(file: Path) -> None:
    mounts = effective_data(load_with_places([file]), USER)["mounts"]
    assert "durability" not in mounts["mnist"]
    assert mounts["written"]["durability"] == "journal"


def test_init_writes_a_file_that_loads_and_a_second_one_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "new" / "amlmount.yaml"
    result = run("init", config=path)
    assert f"`amlmount --config {path} up`" in result.output
    assert result.exit_code == 0 and str(path) in result.stdout
    assert load_config([path]).mounts == {}
    path.write_text("# mine")
    again = run("init", config=path)
    assert isinstance(again.exception, UsageError) and "--force" in str(again.exception.hint)
    assert path.read_text() == "# mine"
    assert run("init", "--force", config=path).exit_code == 0
    assert path.read_text() == STARTER
    assert os.listdir(path.parent) == ["amlmount.yaml"]


def test_init_where_nothing_can_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("init", config=tmp_path / "file" / "amlmount.yaml")
    assert "cannot write" in str(result.exception) and not isinstance(result.exception, OSError)


def uncommented() -> str:
    lines = [line[1:] for line in STARTER.splitlines() if line.startswith("#") and not line.startswith("##")]
    return "\n".join(lines)


def test_the_examples_of_the_starter_file_are_right_when_uncommented(tmp_path: Path) -> None:
    path = tmp_path / "amlmount.yaml"
    path.write_text(uncommented())
    assert list(load_config([path]).mounts) == ["labels", "mnist"]
    jsonschema.validate(yaml.safe_load(uncommented()), json_schema())


def test_the_examples_of_the_documentation_are_right(tmp_path: Path) -> None:
    text = render_docs().split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "amlmount.yaml"
    path.write_text(text)
    assert list(load_config([path]).mounts) == ["mnist", "both"]


def test_the_schema_is_one_and_takes_the_example(file: Path) -> None:
    schema = json.loads(run("config", "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    data = yaml.safe_load(EXAMPLE.replace("027", "'027'"))
    jsonschema.validate(data | {"x-anything": 1}, schema)
    jsonschema.validate(effective_data(load_with_places([file]), USER), schema)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mounts": {"m": {"target": "/x", "source": "s", "profile": "epoch"}}},
        {"mounts": {"m": {"target": "/x", "source": "s", "profle": "epochs"}}},
        {"mounts": {"m": {"target": "/x", "source": "s", "refresh": "15"}}},
        {"mounts": {"m": {"target": "/x", "source": "s", "refresh": 15}}},
        {"mounts": {"m": {"target": "/x", "source": []}}},
        {"mounts": {"m": {"target": "/x"}}},
        {"cache": {"max_size": "120%"}},
        {"cache": {"keep_free": "10G"}},
        {"stores": {"s": {"type": "azure_file", "account_name": "acc"}}},
        {"stores": {"s": {"type": "azure_blob", "account_name": "acc", "credentials": {"account_key": "inline"}}}},
        {"stores": {"s": {"type": "azure_blob", "account_name": "acc", "credentials": {"account_key": {}}}}},
        {"stores": {"s": {"type": "azure_blob", "account_name": "acc", "credentials": "azure"}}},
        {"stors": {}},
    ],
)
def test_the_schema_shows_an_editor_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())


@pytest.mark.parametrize("credentials", ["azure_cli", {"managed_identity": {}}, {"managed_identity": None}])
def test_the_schema_takes_the_short_forms_too(credentials: object) -> None:
    store = {"type": "azure_blob", "account_name": "acc", "credentials": credentials}
    jsonschema.validate({"stores": {"s": store}}, json_schema())


def test_every_key_is_explained_in_the_schema() -> None:
    models = json_schema()["$defs"]
    silent = [
        f"{name}.{key}"
        for name, model in models.items()
        for key, value in model.get("properties", {}).items()
        if "description" not in value and key != "type" and not model.get("description")
    ]
    assert silent == []


def test_the_documentation_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == render_docs(), "regenerate: python -m amlmount.config.docs > docs/configuration.md"


def test_the_commands_import_nothing_heavy_before_they_run() -> None:
    import subprocess
    import sys

    code = "import sys, amlmount.cli.config_commands; print([m for m in ('pydantic', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
