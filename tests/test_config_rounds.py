"""All that is wrong with a configuration is said in one round, and nothing that is not."""

from pathlib import Path

import pytest

from amlmount.config.load import load_config
from amlmount.config.resolve import resolve_all
from amlmount.errors import ConfigError

MANY = """\
stores:
  here: {type: local, path: /srv/here}
  bad: {type: azure_blob, account_name: acc, container_name: Bad_}
  broken: {type: azure_blob, account_nam: acc, container_name: data}
defaults: {profile: standard}
mounts:
  misspelt: {target: /a, source: here, read_ony: true, refresh: 5m}
  inside: {target: /a/b, source: nowhere}
  relative: {target: rel, source: broken}
  useless: {target: /d, source: bad, durability: journal}
  same: {target: /d, source: here}
  loop: {target: /srv/here/x, source: here}
  nothing: {source: alsonowhere}
  number: {target: /e, source: here, umask: 999}
"""
SAID = [
    (3, "'Bad_' is not the name of a container"),
    (4, "account_nam: unknown key"),
    (7, "read_ony: unknown key"),
    (8, "no store called 'nowhere'"),
    (8, "'/a/b' and '/a' of mount 'misspelt' overlap"),
    (9, "'rel' is relative"),
    (10, "durability: means nothing for a read-only mount"),
    (11, "mount 'useless' has the same target '/d'"),
    (12, "a loop"),
    (13, "target: is missing"),
    (14, "umask: '999' is not a mode"),
]


def problems(tmp_path: Path, text: str) -> list[tuple[int, str]]:
    path = tmp_path / "amlmount.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config([path])
    return [(one["line"], f"{one['path']}: {one['message']}") for one in caught.value.details["problems"]]


def test_problems_of_every_kind_are_said_in_one_round_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems(tmp_path, MANY)
    assert [line for line, _ in found] == [line for line, _ in SAID]
    for (line, text), (said_line, said) in zip(found, SAID, strict=True):
        assert line == said_line and said in text


def test_what_could_not_be_read_is_not_held_against_the_rest(tmp_path: Path) -> None:
    """A store with a mistake is no missing store, and defaults with a mistake may have said anything."""
    text = "stores: {a: {type: azur_blob}}\nmounts: {m: {target: /m, source: a}}\n"
    assert len(problems(tmp_path, text)) == 1
    text = "stores: [a]\nmounts: {m: {target: /m, source: a}}\n"
    assert len(problems(tmp_path, text)) == 1
    text = (
        "stores: {a: {type: local, path: /s}}\ndefaults: {profile: chekpoint, read_only: false}\n"
        "mounts: {m: {target: /m, source: a, durability: journal}, n: {target: /m, source: a}}\n"
    )
    assert [said for _, said in problems(tmp_path, text)] == [
        "defaults.profile: 'chekpoint' is not possible; it must be 'standard', 'epochs', 'stream', 'random', 'fresh' "
        "or 'checkpoint'",
        "mounts.n.target: mount 'm' has the same target '/m'",
    ]


def test_every_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for path in files:
        path.write_text("mounts: {m: [}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(files)
    assert all(str(path) in caught.value.message for path in files)


def test_every_owner_that_is_not_known_here_is_named(tmp_path: Path) -> None:
    path = tmp_path / "amlmount.yaml"
    mounts = "".join(f"  {name}: {{target: /{name}, source: a, owner: nobody-{name}}}\n" for name in ("x", "y"))
    path.write_text(f"stores: {{a: {{type: local, path: /s}}}}\nmounts:\n{mounts}")
    with pytest.raises(ConfigError, match=r"'nobody-x'(.|\n)*'nobody-y'"):
        resolve_all(load_config([path]))
