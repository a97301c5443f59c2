"""Secrets planted wherever one can enter are found nowhere else: not in /proc, not in what is printed, not in a file.

The services are fakes that check none, and refuse on demand. What a caller puts into the environment itself is in the
environment of what it starts: that is looked for elsewhere.
"""

import os
import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from amlmount.blobfuse2.table import SECRET_PATHS, TABLE
from amlmount.config.credentials import BARE_KINDS, CREDENTIAL_KINDS, SecretRef
from amlmount.config.models import Config
from amlmount.doctor.scrub import is_secret_name
from daemons import poll
from planting import BLOB, FIELDS, LOGINS, OVERRIDES, PLACES, Planted, plant, secret_fields
from world import World

SOURCE = Path(__file__).parents[1] / "src" / "amlmount"
# Variables whose names say that they hold a secret, and what becomes of each.
VARIABLES = {
    "MSI_SECRET": "planted",
    "AZURE_FEDERATED_TOKEN_FILE": "planted: the file",
    "CREDENTIALS_DIRECTORY": "planted: the files in it",
    "AZURE_STORAGE_ACCESS_KEY": "blobfuse2's own, never passed on",
    "AZURE_STORAGE_SAS_TOKEN": "blobfuse2's own, never passed on",
    "AZURE_STORAGE_SPN_CLIENT_SECRET": "blobfuse2's own, never passed on",
    "AZURE_STORAGE_CPK_ENCRYPTION_KEY": "blobfuse2's own, never passed on",
    "AZURE_STORAGE_CPK_ENCRYPTION_KEY_SHA256": "blobfuse2's own, never passed on",
    "AZURE_OAUTH_TOKEN_FILE": "blobfuse2's own, never passed on",
    "WORKLOAD_IDENTITY_TOKEN": "blobfuse2's own, never passed on",
    "AMLMOUNT_SECRET": "a name that an import suggests",
}


@pytest.fixture
def planted(world: World, tmp_path: Path) -> Iterator[Planted]:
    with plant(world, tmp_path) as made:
        yield made


def test_every_way_in_is_planted() -> None:
    assert secret_fields(Config) == set(FIELDS)
    assert set(SecretRef.model_fields) == set(PLACES)
    assert {field.key for field in FIELDS.values()} | set(LOGINS) == set(CREDENTIAL_KINDS) - {"anonymous"}
    assert set(LOGINS) < set(BARE_KINDS)
    overrides = {path for path in SECRET_PATHS if not TABLE[path].owner}
    assert overrides == {*OVERRIDES, "passphrase"}, "the last one is of encrypted configurations, which are not made"
    named = re.compile(r'"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)"')
    found = {name for path in SOURCE.rglob("*.py") for name in named.findall(path.read_text())}
    assert {name for name in found if is_secret_name(name)} == set(VARIABLES)


def read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def test_secrets_stay_where_they_were_put(planted: Planted) -> None:
    world = planted.world
    assert planted.run("up", "--timeout", "40s") == 0, planted.said
    for name in planted.config["mounts"]:
        assert read(f"{planted.target(name)}/{BLOB}") == "hello", name
    assert set(planted.issuer.vault) <= {path.rpartition("/")[2] for path in planted.issuer.asked}, "all were asked for"
    use_everything(planted)
    look_at_processes(planted)
    look_at_configurations(planted)
    meet_refusals(planted)
    give_secrets_where_they_do_not_belong(planted)
    bundle = f"{world.root}/bundle.tar.gz"
    planted.run("doctor", "--bundle", bundle)
    look_at_processes(planted)
    assert planted.run("down") == 0, planted.said
    poll(lambda: not configurations(planted), "blobfuse2's configurations stay behind")
    assert [line for line in planted.said.splitlines() if planted.found_in(line)] == []
    look_at_files(planted, bundle)


def use_everything(planted: Planted) -> None:
    sas = "sas-token-file"
    for words in ("ps -o json", "check", "events -o json", "config show", "store ls", f"stats {sas}", f"logs {sas}"):
        assert planted.run("-v", *words.split()) == 0, planted.said[-2000:]
    for name in (f"b-{name}" for name in planted.by_blobfuse2):
        assert planted.run("render", name) == 0 and planted.run("logs", name) == 0, planted.said[-2000:]


def meet_refusals(planted: Planted) -> None:
    """The service says no, in every way it can: errors are made of requests, and those are signed."""
    service, sas = planted.service, "sas-token-file"
    for kind in ("reset", "garbage"):
        service.fail(kind, 20)
        planted.run("refresh", sas)
        service.heal()
    service.fail(
        "status", 10_000, status=403, code="AuthenticationFailed", detail=f"signed with {planted.secrets[sas]}"
    )
    others = [f"b-{name}" for name in planted.by_blobfuse2]
    assert planted.run("restart", sas, "account-key-env", *others, "--timeout", "2s") != 0
    assert planted.run("check") != 0
    planted.run("doctor")
    planted.run("ps")
    service.heal()
    assert planted.run("up") == 0, planted.said[-2000:]


def give_secrets_where_they_do_not_belong(planted: Planted) -> None:
    """On the command line, in a URL, in the configuration itself, in an old file that is imported."""
    world, key = planted.world, planted.secrets["url"]
    url = f"{planted.service.url}/data?sv=2023&sig={quote(key, safe='')}"
    assert planted.run("up", url) != 0 and planted.run("store", "ls", url) != 0
    good = world.config
    inline = {**planted.config, "stores": {"x": planted.service.definition(credentials={"account_key": key})}}
    endpoint = {**planted.config, "stores": {"x": planted.service.definition(endpoint=url)}}
    misplaced = {**planted.config, "stores": {"x": planted.service.definition(account_key=key, sas=url)}}
    for number, wrong in enumerate((inline, endpoint, misplaced)):
        Path(world.root, f"wrong{number}.yaml").write_text(yaml.safe_dump(wrong))
        assert planted.run("--config", f"{world.root}/wrong{number}.yaml", "config", "check") != 0
        Path(good).write_text(yaml.safe_dump(wrong))
        assert planted.run("reload", "--timeout", "5s") != 0
        Path(world.root, f"wrong{number}.yaml").unlink()
    Path(good).write_text(yaml.safe_dump(planted.config))
    assert planted.run("reload") == 0, planted.said
    old = {
        "azstorage": {
            "type": "block",
            "account-name": "old1",
            "container": "old",
            "account-key": planted.secrets["old"],
        }
    }
    old["azstorage"] |= {"mode": "key", "endpoint": "https://old1.blob.core.windows.net"}
    Path(world.root, "old.yaml").write_text(yaml.safe_dump(old))
    assert planted.run("import", f"{world.root}/old.yaml") == 0, planted.said[-1000:]
    Path(world.root, "old.yaml").unlink()


def look_at_processes(planted: Planted) -> None:
    """No secret in arguments or environment but what the caller put there; and nobody leaves a core."""
    processes = [pid for pid, _ in planted.world.processes()]
    assert len(processes) >= len(planted.config["mounts"])
    for pid in processes:
        line = read(f"/proc/{pid}/cmdline")
        assert planted.found_in(line) == set()
        own = read(f"/proc/{pid}/environ")
        is_blobfuse2 = "--config-file=" in line
        given = {"proxy"} if is_blobfuse2 else planted.in_env
        assert planted.found_in(own, but=given) == set(), f"{line}: {own}"
        [core] = [limit for limit in read(f"/proc/{pid}/limits").splitlines() if limit.startswith("Max core file size")]
        assert core.split()[4:6] == ["1", "1"], line


def configurations(planted: Planted) -> list[str]:
    """Return the configurations of blobfuse2 that are there now: each holds its own secret."""
    return [str(path) for path in Path(planted.world.runtime_dir).rglob("blobfuse2.yaml")]


def look_at_configurations(planted: Planted) -> None:
    """One for each blobfuse2, for nobody else to read, with what it needs and no more."""
    found = {path: planted.found_in(read(path)) for path in configurations(planted)}
    mounts = [name for name, mount in planted.config["mounts"].items() if mount["engine"] == "blobfuse2"]
    wanted = [
        {name.removeprefix("b-")} | (set(OVERRIDES) if name == "b-account-key-file" else set()) for name in mounts
    ]
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, wanted))
    for path in found:
        modes = [stat.S_IMODE(os.stat(one).st_mode) for one in (path, os.path.dirname(path))]
        assert modes == [0o600, 0o700]


def look_at_files(planted: Planted, bundle: str) -> None:
    with tarfile.open(bundle) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None:
                assert planted.found_in(file.read().decode(errors="replace")) == set(), member.name
    for top, names, files in os.walk(planted.world.root):
        names[:] = [name for name in names if name not in ("given", "mnt")]
        for name in set(files) - {"bundle.tar.gz"}:
            assert planted.found_in(read(f"{top}/{name}")) == set(), f"{top}/{name}"
