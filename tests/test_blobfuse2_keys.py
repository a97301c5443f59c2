"""The table of blobfuse2's keys: against itself, its docs page, and a real source tree if there is one."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from amlmount.blobfuse2.key import Key
from amlmount.blobfuse2.problem import Problem, errors
from amlmount.blobfuse2.reference import reference
from amlmount.blobfuse2.schema import overrides_schema
from amlmount.blobfuse2.table import SECRET_PATHS, SECTION_KEYS, TABLE, suggest, suggest_section
from amlmount.blobfuse2.validate import check_config, validate_overrides
from amlmount.blobfuse2.values import check_value

DOCS = Path(__file__).parents[1] / "docs" / "blobfuse2-keys.md"
SOURCE = os.environ.get("AMLMOUNT_BLOBFUSE2_SOURCE")
needs_source = pytest.mark.skipif(
    not SOURCE, reason="NOT RUN: the key table was not held against blobfuse2 (AMLMOUNT_BLOBFUSE2_SOURCE=its checkout)"
)


def paths(problems: list[Problem]) -> list[str]:
    return [problem.path for problem in problems]


def test_no_key_stands_twice() -> None:
    assert len(TABLE) == sum(len(keys) for keys in SECTION_KEYS.values())


@pytest.mark.parametrize("key", TABLE.values(), ids=lambda key: str(key.path))
def test_each_row_is_consistent(key: Key) -> None:
    assert key.path == key.path.lower() and key.doc.endswith(".")
    assert all(other in TABLE for other in key.conflicts)
    assert not key.reset or key.hot
    if key.instead:
        assert key.instead in TABLE or key.instead in SECTION_KEYS
    if key.default is not None and "$" not in str(key.default):
        assert check_value(key, key.default) == []


def test_docs_page_is_the_table() -> None:
    assert DOCS.read_text() == reference(), "run `python -m amlmount.blobfuse2.reference > docs/blobfuse2-keys.md`"


def test_secrets_are_known() -> None:
    assert {"azstorage.account-key", "azstorage.sas", "azstorage.clientsecret", "passphrase"} <= SECRET_PATHS


@pytest.mark.parametrize(
    ("config", "path", "says"),
    [
        ({"file_cache": {"timeout_sec": 5}}, "file_cache.timeout_sec", "did you mean file_cache.timeout-sec?"),
        ({"file_cache": {"max_size_mb": 5}}, "file_cache.max_size_mb", "did you mean file_cache.max-size-mb?"),
        ({"libfuse": {"attribute-expration-sec": 5}}, "libfuse.attribute-expration-sec", "attribute-expiration-sec?"),
        ({"libfuse": {"read-only": True}}, "libfuse.read-only", "did you mean read-only?"),
        ({"file-cache": {"timeout-sec": 5}}, "file-cache", "did you mean file_cache?"),
        ({"atr_cache": {"timeout-sec": 5}}, "atr_cache", "did you mean attr_cache?"),
        ({"azstorage": {"acount-name": "a"}}, "azstorage.acount-name", "did you mean azstorage.account-name?"),
        ({"readonly": True}, "readonly", "did you mean read-only?"),
        ({"zzz": 1}, "zzz", "is not a key of blobfuse2"),
        ({"libfuse": {"attribute-expiration-sec": -1}}, "libfuse.attribute-expiration-sec", "between 0 and 4294967295"),
        ({"libfuse": {"attribute-expiration-sec": "77"}}, "libfuse.attribute-expiration-sec", "not a whole number"),
        ({"libfuse": {"attribute-expiration-sec": 1.5}}, "libfuse.attribute-expiration-sec", "not a whole number"),
        ({"libfuse": {"attribute-expiration-sec": True}}, "libfuse.attribute-expiration-sec", "not a whole number"),
        ({"file_cache": {"max-size-mb": float("nan")}}, "file_cache.max-size-mb", "1 or more"),
        ({"libfuse": {"default-permission": 644}}, "libfuse.default-permission", "0644"),
        ({"libfuse": {"default-permission": 444}}, "libfuse.default-permission", "0444"),
        ({"libfuse": {"umask": 0o022}}, "libfuse.umask", "for 0022 write 22"),
        ({"libfuse": {"umask": 0o077}}, "libfuse.umask", "for 0077 write 77"),
        ({"libfuse": {"uid": 1000}}, "libfuse.gid", "the other one becomes 0"),
        ({"logging": {"level": "log_warn"}}, "logging.level", "did you mean log_warning?"),
        ({"components": "libfuse"}, "components", "not a list"),
        ({"components": ["libfuse", "filecache", "azstorage"]}, "components", "did you mean file_cache?"),
        ({"components": ["libfuse", "attr_cache", "file_cache", "azstorage"]}, "components", "out of order"),
        ({"components": ["libfuse", "file_cache", "block_cache", "azstorage"]}, "components", "exclude each other"),
        ({"components": ["file_cache", "azstorage"]}, "components", "nothing is mounted"),
        ({"components": ["libfuse", "file_cache"]}, "components", "lack azstorage"),
        ({"components": ["libfuse", "libfuse", "azstorage"]}, "components", "twice"),
        ({"disable-kernel-cache": True, "libfuse": {"direct-io": True}}, "disable-kernel-cache", "together"),
        ({"azstorage": {"appid": "a", "resid": "b"}}, "azstorage.appid", "together with azstorage.resid"),
        ({"azstorage": {"http-proxy": "h:1"}}, "azstorage.http-proxy", "use-http"),
        ({"azstorage": {"cpk-enabled": True}}, "azstorage.cpk-encryption-key", "missing"),
        ({"azstorage": {"mode": "key"}}, "azstorage.account-key", "missing"),
        ({"azstorage": {"mode": "SAS", "sas": "x"}}, "azstorage.mode", "lower case"),
        ({"azstorage": {"mode": "spn", "tenantid": "t", "clientid": "c"}}, "azstorage.clientsecret", "missing"),
        ({"azstorage": {"honour-acl": True}}, "azstorage.honour-acl", "objid"),
        ({"read-only": False, "azstorage": {"filter": "size>1"}}, "azstorage.filter", "read-only"),
        ({"block_cache": {"prefetch": 5}}, "block_cache.prefetch", "refused"),
        ({"block_cache": {"prefetch": 20, "mem-size-mb": 100}}, "block_cache.mem-size-mb", "too little"),
        ({"file_cache": {"high-threshold": 50, "low-threshold": 60}}, "file_cache.low-threshold", "not below"),
        ({"file_cache": {"path": "$CACHE/x"}}, "file_cache.path", "vanishes"),
        ({"file_cache": 5}, "file_cache", "is a section"),
        ({"azstorage": {"sdk-trace": True}}, "azstorage.sdk-trace", "not read since blobfuse2 2.2.1"),
        ({"wait-for-mount": "soon"}, "wait-for-mount", "not a duration"),
    ],
)
def test_what_blobfuse2_would_swallow_is_an_error(config: dict[str, object], path: str, says: str) -> None:
    found = [problem for problem in errors(check_config(config)) if problem.path == path]
    assert found and says in str(found[0])


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"file_cache": {"file-cache-timeout-in-seconds": 5}}, "file_cache.file-cache-timeout-in-seconds"),
        ({"azstorage": {"ca-cert-file": "/x"}}, "azstorage.ca-cert-file"),
        ({"file_cache": {"hard-limit": True}}, "file_cache.hard-limit"),
        ({"file_cache": {"refresh-sec": 60}}, "file_cache.refresh-sec"),
        ({"lazy-write": True}, "lazy-write"),
    ],
)
def test_what_works_badly_is_a_warning(config: dict[str, object], path: str) -> None:
    found = check_config(config)
    assert paths(found) == [path] and errors(found) == []


def test_good_configurations_are_silent() -> None:
    good: dict[str, object] = {
        "Components": ["libfuse", "block_cache", "attr_cache", "azstorage"],
        "read-only": True,
        "libfuse": {"default-permission": 0o711, "umask": 22, "uid": 0, "gid": 0, "Attribute-Expiration-Sec": 0},
        "block_cache": {"block-size-mb": 0.5, "prefetch": 0, "mem-size-mb": 64},
        "azstorage": {"mode": "spn", "tenantid": "t", "clientid": "c", "oauth-token-path": "/run/token"},
        "file_cache": None,
    }
    assert check_config(good) == []


def test_secret_values_are_never_quoted() -> None:
    problems = check_config({"azstorage": {"account-key": 1234567, "sas": ["topsecret"]}})
    assert len(problems) == 2
    assert not any("1234567" in str(problem) or "topsecret" in str(problem) for problem in problems)


def test_overrides_leave_our_own_keys_alone() -> None:
    refused: dict[str, object] = {
        "allow-other": True,
        "file_cache": {"path": "/x", "timeout-sec": 5},
        "azstorage": {"account-key": "k", "max-retries": 3},
        "block-cache": True,
    }
    assert sorted(paths(errors(validate_overrides(refused)))) == [
        "allow-other",
        "azstorage.account-key",
        "block-cache",
        "file_cache.path",
    ]
    assert validate_overrides({"file_cache": {"timeout-sec": 5}, "logging": {"level": "log_debug"}}) == []


def test_suggestions_do_not_invent() -> None:
    assert suggest("azstorage", "qqqqqq") is None
    assert suggest_section("qqqqqq") is None


def test_schema_offers_what_may_be_overridden() -> None:
    schema = overrides_schema()
    properties = schema["properties"]
    assert isinstance(properties, dict)
    assert schema["additionalProperties"] is False
    assert "account-key" not in properties["azstorage"]["properties"]
    assert properties["file_cache"]["properties"]["timeout-sec"]["minimum"] == 0
    assert properties["logging"]["properties"]["level"]["enum"][0] == "log_off"
    assert "block-cache" not in properties


# Names that the code passes round by itself, and those of `gen-config`, which writes files and reads none.
INTERNAL = {"mount-path", "tmp-path", "mount-all-containers", "lfuse", "mount-all-conatiners", "output-file"}
NOT_MOUNT = ("gen-config.go", "gen-test-config.go", "secure", "mountv1.go", "mountgen1.go", "generator.go", "doc.go")
COMPONENT_SECTION = {"loopback": "loopbackfs"}
STRUCT_SECTION = {"LogOptions": "logging", "containerListingOptions": "mountall", "monitorOptions": "health_monitor"}
UNEXPORTED = {"libfuse.allow-other", "libfuse.allow-root", "libfuse.read-only", "libfuse.nonempty", "stream.read-only"}


def go_files(root: Path) -> Iterator[Path]:
    for folder in ("cmd", "component"):
        for path in sorted((root / folder).rglob("*.go")):
            if (
                not path.name.endswith("_test.go")
                and not path.name.startswith(NOT_MOUNT)
                and "custom" not in path.parts
            ):
                yield path


def component_section(root: Path, path: Path) -> str:
    folder = path.relative_to(root).parts
    if folder[0] == "cmd":
        return ""
    return "stream" if path.name == "stream.go" else COMPONENT_SECTION.get(folder[1], folder[1])


def source_keys(root: Path) -> set[str]:
    """Return every key that the source reads: struct tags, and what flags are bound to."""
    found = set()
    for path in go_files(root):
        struct = ""
        for line in path.read_text().splitlines():
            struct = match[1] if (match := re.match(r"type (\w+) struct", line)) else struct
            section = component_section(root, path) or STRUCT_SECTION.get(struct, "")
            code = line.split("//", 1)[0]
            found |= {f"{section}.{name}".lstrip(".") for name in re.findall(r'config:"([^"]+)"', code)}
            found |= {f"{section}.{name}" for name in re.findall(r'BindPFlag\(comp\w+\+"\.([\w-]+)"', code)}
            found |= set(re.findall(r'BindPFlag\("([\w.-]+)"', code))
    return found - INTERNAL - UNEXPORTED - {"logging", "health_monitor"}


@needs_source
def test_table_has_every_key_of_the_source_and_no_other() -> None:
    assert SOURCE
    real = source_keys(Path(SOURCE))
    # Read by name, without a struct: cmd/mount.go, component/libfuse/libfuse.go.
    by_name = {"read-only", "allow-other", "allow-root", "direct-io", "disable-kernel-cache", "cleanup-on-start"}
    ours = {key.path for key in TABLE.values() if not key.until}
    assert sorted(real - ours) == [], "keys that the table lacks"
    assert sorted(ours - real - by_name) == [], "keys that blobfuse2 does not read any more: give them `until`"


@needs_source
def test_table_has_the_environment_of_the_source() -> None:
    assert SOURCE
    text = (Path(SOURCE) / "component/azstorage/config.go").read_text()
    names = dict(re.findall(r'(Env\w+)\s+= "(\w+)"', text))
    bound = {path: names[name] for path, name in re.findall(r'BindEnv\("([\w.-]+)", (Env\w+)\)', text)}
    assert bound == {key.path: key.env for key in TABLE.values() if key.env}


@needs_source
def test_every_flag_of_the_table_exists_in_the_source() -> None:
    assert SOURCE
    text = "".join(path.read_text() for path in go_files(Path(SOURCE)))
    missing = [key.flag for key in TABLE.values() if key.flag.startswith("--") and f'"{key.flag[2:]}"' not in text]
    assert missing == []
