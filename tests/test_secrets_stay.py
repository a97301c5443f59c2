"""Secrets planted wherever one can enter are found nowhere else: not in /proc, not in what is printed, not in a file.

Each store has a key of its own, from another place; the service is a fake that checks none, and refuses on demand.
What a caller puts into the environment itself is in the environment of what it starts: that is looked for elsewhere.
"""

import base64
import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from fakeblob import FakeBlobService
from world import World

BLOB = "hello.txt"


def new_key() -> str:
    return base64.b64encode(os.urandom(64)).decode()


class Planted:
    """A world whose mounts log in with secrets from everywhere. `said` is all that commands have printed."""

    def __init__(self, world: World, service: FakeBlobService) -> None:
        self.world, self.service, self.said = world, service, ""
        self.t = 0.0
        self.secrets = {name: new_key() for name in ("env", "file", "credential", "connection", "url", "old", "proxy")}
        self.secrets["sas"] = base64.b64encode(os.urandom(32)).decode()
        self.sas = f"?sv=2023-11-03&ss=b&srt=co&sp=rl&se=2099-01-01T00:00:00Z&sig={quote(self.secrets['sas'], safe='')}"
        connection = f"DefaultEndpointsProtocol=http;AccountName=fakeaccount;AccountKey={self.secrets['connection']}"
        ways = {
            "env": {"account_key": {"env": "PLANTED"}},
            "file": {"account_key": {"file": self._file("key", self.secrets["file"])}},
            "credential": {"account_key": {"credential": "planted"}},
            "connection": {"connection_string": {"file": self._file("string", connection)}},
            "sas": {"sas_token": {"file": self._file("sas", self.sas)}},
        }
        os.mkdir(f"{world.root}/credentials", 0o700)
        self._file("credentials/planted", self.secrets["credential"])
        self.config = {
            "stores": {name: service.definition(credentials=way) for name, way in ways.items()},
            "mounts": {name: {"target": f"{world.root}/mnt/{name}", "source": name} for name in ways},
        }
        world.write_config(yaml.safe_dump(self.config))
        proxy = f"http://me:{quote(self.secrets['proxy'], safe='')}@127.0.0.1:9"
        self.env = {"PLANTED": self.secrets["env"], "CREDENTIALS_DIRECTORY": f"{world.root}/credentials"}
        self.env |= {"HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1"}

    def _file(self, name: str, text: str) -> str:
        path = Path(self.world.root, name)
        path.write_text(text)
        path.chmod(0o600)
        return str(path)

    def run(self, *words: str) -> int:
        done = self.world.cli(*words, env=self.env)
        import time

        print(f"{time.monotonic() - self.t:.1f} {words}"[:100])
        self.t = time.monotonic()
        self.said += f"{done.stdout}\n{done.stderr}\n"
        return done.returncode

    def refused(self, *words: str) -> None:
        assert self.run(*words) != 0, self.said

    def found_in(self, text: str, *, but: tuple[str, ...] = ()) -> set[str]:
        """Name the secrets that are in a text, as they are or quoted."""
        forms = {name: {key, quote(key, safe=""), key.rstrip("=")} for name, key in self.secrets.items()}
        return {name for name, them in forms.items() if name not in but and any(form in text for form in them)}


@pytest.fixture
def planted(world: World) -> Iterator[Planted]:
    service = FakeBlobService()
    service.put("data", BLOB, b"hello")
    try:
        yield Planted(world, service)
    finally:
        service.close()


def read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read().decode(errors="replace")
    return ""


def test_secrets_stay_where_they_were_put(planted: Planted) -> None:
    world = planted.world
    assert planted.run("up") == 0, planted.said
    for name in planted.config["mounts"]:
        assert read(f"{world.root}/mnt/{name}/{BLOB}") == "hello"
    use_everything(planted)
    look_at_processes(planted)
    meet_refusals(planted)
    give_secrets_where_they_do_not_belong(planted)
    bundle = f"{world.root}/bundle.tar.gz"
    planted.run("doctor", "--bundle", bundle)
    look_at_processes(planted)
    assert planted.run("down") == 0
    assert [line for line in planted.said.splitlines() if planted.found_in(line)] == []
    look_at_files(planted, bundle)


def use_everything(planted: Planted) -> None:
    for words in (
        "ps -o json",
        "check",
        "events -o json",
        "logs sas",
        "config show",
        "store ls",
        "stats sas",
        "render sas",
    ):
        planted.run("-v", *words.split())


def meet_refusals(planted: Planted) -> None:
    """The service says no, in every way it can: errors are made of requests, and those are signed."""
    service = planted.service
    for kind in ("reset", "garbage"):
        service.fail(kind, 20)
        planted.run("refresh", "sas")
        service.heal()
    service.fail("status", 1000, status=403, code="AuthenticationFailed", detail=f"The signature was {planted.sas}")
    planted.run("restart", "sas", "file", "--timeout", "2s")
    planted.run("check")
    planted.run("doctor")
    planted.run("ps")
    service.heal()
    planted.run("up")


def give_secrets_where_they_do_not_belong(planted: Planted) -> None:
    """On the command line, in a URL, in the configuration itself, in an old file that is imported."""
    world, key = planted.world, planted.secrets["url"]
    url = f"{planted.service.url}/data?sv=2023&sig={quote(key, safe='')}"
    planted.refused("up", url)
    planted.refused("store", "ls", url)
    good = world.config
    inline = {**planted.config, "stores": {"x": planted.service.definition(credentials={"account_key": key})}}
    endpoint = {**planted.config, "stores": {"x": planted.service.definition(endpoint=url)}}
    misplaced = {**planted.config, "stores": {"x": planted.service.definition(account_key=key, sas=url)}}
    for number, wrong in enumerate((inline, endpoint, misplaced)):
        Path(world.root, f"wrong{number}.yaml").write_text(yaml.safe_dump(wrong))
        planted.run("--config", f"{world.root}/wrong{number}.yaml", "config", "check")
        Path(good).write_text(yaml.safe_dump(wrong))
        planted.run("reload", "--timeout", "5s")
        Path(world.root, f"wrong{number}.yaml").unlink()
    Path(good).write_text(yaml.safe_dump(planted.config))
    assert planted.run("reload") == 0, planted.said
    old = {"azstorage": {"type": "block", "account-name": "a", "container": "c", "account-key": planted.secrets["old"]}}
    old["azstorage"] |= {"mode": "key", "endpoint": "https://a.blob.core.windows.net"}
    Path(world.root, "old.yaml").write_text(yaml.safe_dump(old))
    planted.run("import", f"{world.root}/old.yaml")
    Path(world.root, "old.yaml").unlink()


def look_at_processes(planted: Planted) -> None:
    processes = [pid for pid, _ in planted.world.processes()]
    assert len(processes) >= 6
    for pid in processes:
        assert planted.found_in(read(f"/proc/{pid}/cmdline")) == set()
        own = read(f"/proc/{pid}/environ")
        assert planted.found_in(own, but=("env", "proxy")) == set(), own


def look_at_files(planted: Planted, bundle: str) -> None:
    world, given = planted.world, {"key", "string", "sas"}
    with tarfile.open(bundle) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None:
                assert planted.found_in(file.read().decode(errors="replace")) == set(), member.name
    for top, names, files in os.walk(world.root):
        names[:] = [name for name in names if name not in ("credentials", "mnt")]
        for name in set(files) - given - {"bundle.tar.gz"}:
            assert planted.found_in(read(f"{top}/{name}")) == set(), f"{top}/{name}"
