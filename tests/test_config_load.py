"""Which files make up the configuration, how they are merged, and what is said about a mistake in them."""

import os
from pathlib import Path

import pytest

from amlmount.config import load
from amlmount.config.load import config_files, config_from, load_config, load_with_places, main_file
from amlmount.config.store_models import LocalStore
from amlmount.errors import ConfigError

MAIN = """\
stores:
  here: {type: local, path: ./data}
  there: {type: local, path: /srv/there}
mounts:
  one: {target: /media/one, source: here}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config([write(tmp_path, "amlmount.yaml", text)])
    assert caught.value.message.startswith("cannot ")
    return caught.value


def test_a_folder_is_read_main_file_first_then_parts_by_name(tmp_path: Path) -> None:
    files = [write(tmp_path, name, "") for name in ("amlmount.yaml", "conf.d/10-a.yaml", "conf.d/20-b.yaml")]
    write(tmp_path, "conf.d/30-c.yaml.bak", "")
    assert config_files(tmp_path, {}) == files


def test_an_explicit_file_is_read_alone_and_wins_over_the_variable(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "")
    write(tmp_path, "conf.d/a.yaml", "")
    assert config_files(path, {"AMLMOUNT_CONFIG": "/other"}) == [path]
    assert config_files(None, {"AMLMOUNT_CONFIG": str(path)}) == [path]


def test_a_user_has_the_folder_of_xdg_and_root_has_etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "amlmount/amlmount.yaml", "")
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert config_files(None, env, system=False) == [path]
    monkeypatch.setattr(load, "SYSTEM_FOLDER", tmp_path / "etc")
    assert config_files(None, env, system=True) == []
    assert main_file(None, env, system=True) == tmp_path / "etc" / "amlmount.yaml"


def test_a_named_file_that_is_not_there_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        config_files(tmp_path / "no.yaml", {})
    assert "init" in str(caught.value.hint)


def test_no_files_are_an_empty_configuration() -> None:
    assert load_config([]).mounts == {}


def test_later_files_win_key_by_key_and_places_follow(tmp_path: Path) -> None:
    first = write(tmp_path, "amlmount.yaml", MAIN)
    second = write(
        tmp_path,
        "b.yaml",
        "mounts:\n  one: {profile: fresh, source: [here, there]}\n  two: {target: /b, source: there}",
    )
    third = write(tmp_path, "c.yaml", "mounts: {one: {source: there}}\ncache: {keep_free: 1GiB}")
    loaded = load_with_places([first, second, third])
    one = loaded.config.mounts["one"]
    assert (one.target, one.profile, getattr(one.source, "store", None)) == ("/media/one", "fresh", "there")
    assert list(loaded.config.mounts) == ["one", "two"]
    assert loaded.places[("mounts", "one", "target")].file == str(first)
    assert str(loaded.places[("mounts", "one", "profile")]) == f"{second}:2"
    assert loaded.places[("mounts", "one", "source")].file == str(third)
    assert ("mounts", "one", "source", 0) not in loaded.places


def test_relative_paths_start_at_the_folder_of_their_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    text = "stores: {far: {type: local, path: ../far}, home: {type: local, path: ~/x}}\ncache: {root: cache}"
    config = load_config([write(tmp_path, "amlmount.yaml", MAIN), write(tmp_path, "conf.d/a.yaml", text)])
    paths = {name: store.path for name, store in config.stores.items() if isinstance(store, LocalStore)}
    assert paths == {
        "here": str(tmp_path / "data"),
        "there": "/srv/there",
        "far": str(tmp_path / "far"),
        "home": "/home/someone/x",
    }
    assert config.cache.root == str(tmp_path / "conf.d" / "cache")


def test_the_file_of_a_secret_starts_there_too(tmp_path: Path) -> None:
    text = "stores: {a: {type: azure_blob, account_name: acc, credentials: {sas_token: {file: s/a.sas}}}}"
    store = load_config([write(tmp_path, "amlmount.yaml", text)]).stores["a"]
    assert store.model_dump(exclude_none=True)["credentials"] == {"sas_token": {"file": str(tmp_path / "s" / "a.sas")}}


def test_empty_sections_and_x_sections_are_skipped(tmp_path: Path) -> None:
    text = "mounts:\nstores: ~\nx-base: &base {profile: fresh}\ndefaults: {<<: *base}\n"
    assert load_config([write(tmp_path, "amlmount.yaml", text)]).defaults.profile == "fresh"


def test_one_mistake_is_told_with_file_line_path_and_hint(tmp_path: Path) -> None:
    error = refused(tmp_path, MAIN.replace("source: here", "source: here, profle: epochs"))
    assert error.message == f"cannot use '{tmp_path}/amlmount.yaml', line 5: mounts.one.profle: unknown key"
    assert error.hint == "did you mean 'profile'?"
    assert error.details["problems"][0]["line"] == 5


def test_several_mistakes_are_told_together_in_the_order_of_the_file(tmp_path: Path) -> None:
    error = refused(
        tmp_path, "mounts:\n  a: {traget: /x, source: s}\n  b: {target: /x, source: s, profile: epoch}\ncach: {}"
    )
    lines = error.message.splitlines()
    assert lines[0] == "cannot use the configuration: 3 problems"
    assert "amlmount.yaml:2: mounts.a.traget: unknown key (did you mean 'target'?)" in lines[1]
    assert "amlmount.yaml:3: mounts.b.profile: 'epoch' is not possible" in lines[2] and "'epochs'?" in lines[2]
    assert "amlmount.yaml:4: cach: unknown key (did you mean 'cache'?)" in lines[3]


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ("target: /x, source: here, attr_timeout: 5s", "write it under policy"),
        ("target: /x, source: here, mount_point: /y", "did you mean 'target'?"),
        ("target: /x, source: here, policy: {list_tll: 5s}", "did you mean 'list_ttl'?"),
        ("target: /x, source: here, refresh: 15", "a number needs its unit, as in 15s"),
        ("target: /x, source: here, policy: {max_read: 12}", "a number needs its unit, as in 12MiB"),
        ("target: /x, source: here, read_only: maybe", "must be true or false"),
        ("target: /x, source: here, file_mode: 0888", "write it as for chmod"),
        ("target: /x, source: 12", "must be a mapping"),
        ("target: /x, source: []", "must not be an empty list"),
        ("target: 12, source: here", "must be text"),
        ("target: /x, source: {store: here, path: a/../b}", "goes up or sideways"),
        ("target: /x, source: {store: here, pth: a}", "did you mean 'path'?"),
        ("target: /x, source: [here, {store: here, glb: a}]", "did you mean 'glob'?"),
        ("target: /x, source: {store: here, containers: {alow: [a]}}", "did you mean 'allow'?"),
        ("target: /x, source: here, owner: 'a b'", "is not user or user:group"),
        ("target: /x", "source: is missing"),
        ("target: /x, source:here", "a ':' needs a space after it"),
    ],
)
def test_mistakes_in_a_mount(tmp_path: Path, mount: str, said: str) -> None:
    error = refused(tmp_path, MAIN.replace("one: {target: /media/one, source: here}", f"one: {{{mount}}}"))
    assert said in f"{error.message} {error.hint}"


def test_a_name_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    assert "'../x' is not a usable name" in refused(tmp_path, "mounts: {'../x': {target: /x, source: s}}").message
    assert "'a b' is not a usable name" in refused(tmp_path, "mounts: {x: {target: /x, source: a b}}").message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type: azure_blob\naccount_name: acc\n", "goes under a name of your choice"),
        ("components: [libfuse]\n", "amlmount import FILE"),
    ],
)
def test_files_of_other_tools_are_recognised(tmp_path: Path, text: str, said: str) -> None:
    error = refused(tmp_path, text)
    assert said in f"{error.message} {error.hint}"


def test_what_cannot_be_read_is_said_without_a_traceback(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff\xfe")
    for path, said in (
        (binary, "byte 3 is not UTF-8"),
        (tmp_path, "Is a directory"),
        (tmp_path / "no", "no such file"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config([path])


@pytest.mark.parametrize("closed", [".", "conf.d"])
def test_a_folder_that_is_closed_to_us_is_an_error_and_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    listdir = os.listdir

    def refusing(path: Path) -> list[str]:
        if Path(path) == tmp_path / closed:
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    with pytest.raises(ConfigError, match=r"cannot read the configuration folder .*Permission denied"):
        config_files(tmp_path, {})


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MAIN.encode())
    assert "one" in load_config([path]).mounts


def test_the_variable_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "mine.yaml", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_files(None, {"AMLMOUNT_CONFIG": "~/mine.yaml"}) == [tmp_path / "mine.yaml"]
    assert os.path.isabs(main_file(Path("x.yaml"), {}))


def test_a_configuration_can_be_made_without_a_file(tmp_path: Path) -> None:
    data = {"stores": {"s": {"type": "local", "path": "x"}}, "mounts": {"m": {"target": "/a", "source": "s"}}}
    store = config_from(data, tmp_path).stores["s"]
    assert isinstance(store, LocalStore) and store.path == str(tmp_path / "x")
    with pytest.raises(ConfigError, match=r"cannot use the configuration: mounts\.m\.source: there is no store"):
        config_from({"mounts": data["mounts"]})
