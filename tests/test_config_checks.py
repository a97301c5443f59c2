"""What only shows when sections are seen together: references, overlapping targets, loops, options at odds."""

from pathlib import Path

import pytest

from amlmount.config.load import load_config
from amlmount.config.models import Config
from amlmount.errors import ConfigError

STORES = """\
stores:
  here: {type: local, path: /srv/here}
  there: {type: local, path: /srv/there}
  blobs: {type: azure_blob, account_name: acc, container_name: con}
  account: {type: azure_blob, account_name: acc}
  lake: {type: azure_data_lake_gen2, account_name: acc}
"""


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "amlmount.yaml"
    path.write_text(STORES + text)
    return load_config([path])


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.details["problems"][0]["line"] > STORES.count("\n")
    return f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ("target: /a, source: heer", "there is no store called 'heer' did you mean 'here'?"),
        ("target: /a, source: [here, xyz]", "mounts.m.source.1: there is no store called 'xyz' known: here, there"),
        ("target: /a, source: account", "store 'account' is a whole account add container_name to the store"),
        ("target: /a, source: lake", "add filesystem to the store"),
        ("target: /a, source: {store: blobs, containers: {}}", "is not a whole account"),
        ("target: /a, source: {store: here, containers: {}}", "is not a whole account"),
        ("target: /a, source: [here, {store: here, path: b}]", "two sources would appear as the directory 'here'"),
        ("target: /a, source: [here, {store: there, name: here}]", "two sources would appear as the directory 'here'"),
        ("target: /a, source: {store: here, path: 'a/*.jpg'}", "write the folder under path, the rest under glob"),
        ("target: a/b, source: here", "'a/b' is relative"),
        ("target: /, source: here", "the root of the file system cannot be a target"),
        ("target: //.., source: here", "the root of the file system cannot be a target"),
        ('target: "/a\\nb", source: here', "a line break"),
        ("target: /a, source: here, profile: checkpoint", "profile 'checkpoint' is for writing add read_only: false"),
        ("target: /a, source: here, profile: epochs, read_only: false", "nothing can be written through it"),
        ("target: /a, source: here, refresh: 5m", "profile 'standard' is not pinned"),
        ("target: /a, source: here, durability: journal", "means nothing for a read-only mount"),
        ("target: /a, source: here, upload_timeout: 5s", "means nothing for a read-only mount"),
        ("target: /a, source: {store: here, glob: '*.jpg'}, read_only: false", "a view through a glob is read-only"),
        ("target: /a, source: here, policy: {no_open: true}", "no_open needs pinned"),
        ("target: /a, source: here, profile: epochs, policy: {direct_io: true}", "direct_io excludes no_open"),
        (
            "target: /a, source: here, read_only: false, policy: {no_open: true, pinned: true}",
            "policy pinned: true holds on to what it saw first, so nothing can be written through it "
            "take read_only: false away, or pinned and no_open out of policy",
        ),
        (
            "target: /a, source: here, read_only: false, policy: {no_open: true}",
            "policy no_open: true holds on to what it saw first",
        ),
        ("target: /a, source: here, profile: epochs, policy: {direct_io: true}", "here profile 'epochs'"),
        (
            "target: /a, source: here, profile: epochs, policy: {pinned: false, no_open: false}, refresh: 5m",
            "refresh: policy has pinned: false, so it looks again by itself",
        ),
        ("target: /a, source: here, engine: python, blobfuse2: {x: 1}", "means nothing to engine python"),
        ("target: /a, source: [here, other], engine: blobfuse2", "one container, not several"),
        ("target: /a, source: here, blobfuse2: {file_cache: {max_size_mb: 1}}", "max-size-mb"),
        ("target: /srv/here, source: here", "a loop"),
        ("target: /srv/here/inside, source: here", "a loop"),
        ("target: /srv, source: here", "a loop"),
        ("target: /a/../srv//here/, source: [blobs, here]", "a loop"),
    ],
)
def test_a_mount_that_cannot_work(tmp_path: Path, mount: str, said: str) -> None:
    assert said in refused(tmp_path, f"mounts:\n  m: {{{mount}}}\n")


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ("/a", "/a", "mount 'one' has the same target '/a'"),
        ("/a", "/a/", "mount 'one' has the same target '/a'"),
        ("/a", "//a/b/..", "mount 'one' has the same target '/a'"),
        ("/a", "/a/b", "'/a/b' and '/a' of mount 'one' overlap"),
        ("/a/b", "/a", "'/a' and '/a/b' of mount 'one' overlap"),
    ],
)
def test_targets_in_each_others_way(tmp_path: Path, one: str, two: str, said: str) -> None:
    text = f"mounts:\n  one: {{target: '{one}', source: blobs}}\n  two: {{target: '{two}', source: blobs}}\n"
    assert said in refused(tmp_path, text)


def test_names_that_only_begin_alike_are_no_overlap(tmp_path: Path) -> None:
    text = "mounts:\n  one: {target: /a/data, source: blobs}\n  two: {target: /a/data2, source: blobs}\n"
    assert len(load(tmp_path, text).mounts) == 2


def test_a_loop_by_way_of_another_mount_is_found(tmp_path: Path) -> None:
    text = "mounts:\n  one: {target: /srv/there/x, source: here}\n  two: {target: /srv/here/x, source: there}\n"
    assert "leads into the target of 'two', and that back to 'one'" in refused(tmp_path, text)


def test_a_folder_that_another_mount_lies_in_is_no_loop_when_nothing_leads_back(tmp_path: Path) -> None:
    text = "mounts:\n  one: {target: /a, source: here}\n  two: {target: /srv/here/x, source: there}\n"
    assert len(load(tmp_path, text).mounts) == 2


@pytest.mark.parametrize("root", ["/a", "/a/cache", "/"])
def test_a_cache_in_the_way_of_a_target_is_refused(tmp_path: Path, root: str) -> None:
    assert "keep them apart" in refused(
        tmp_path, f"mounts: {{m: {{target: /a, source: blobs}}}}\ncache: {{root: {root}}}"
    )


def test_options_from_defaults_that_a_mount_has_no_use_for_are_no_mistake(tmp_path: Path) -> None:
    text = "defaults: {durability: journal, refresh: 5m}\nmounts: {m: {target: /a, source: here}}\n"
    assert load(tmp_path, text).defaults.durability == "journal"


def test_a_mistake_in_defaults_is_found_in_the_mounts_it_makes_impossible(tmp_path: Path) -> None:
    text = "defaults: {profile: checkpoint}\nmounts: {m: {target: /a, source: here}}\n"
    assert "add read_only: false" in refused(tmp_path, text)


def test_targets_are_compared_without_looking_at_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def no_stat(path: object, *args: object, **kwargs: object) -> None:
        assert "/media" not in str(path), "a stat under a dead mount hangs"

    for name in ("stat", "lstat", "readlink"):
        monkeypatch.setattr(os, name, no_stat)
    from amlmount.config.checks import find_problems

    mounts = {"m": {"target": "/media/m", "source": "b"}, "n": {"target": "/media/n", "source": "b"}}
    store = {"type": "local", "path": "/media/store"}
    assert find_problems(Config.model_validate({"stores": {"b": store}, "mounts": mounts})) == []


def test_a_mount_that_would_show_itself_is_told_apart(tmp_path: Path) -> None:
    text = "mounts:\n  one: {target: /srv/here/inside, source: here}\n"
    assert "'one' would show its own target" in refused(tmp_path, text)
