"""One YAML file: strictness, plain words for what is wrong, and the place of every value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.config.documents import Place, parse_document
from amlmount.errors import ConfigError


def wrong(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "a.yaml")
    return caught.value.message


def test_every_value_has_the_place_it_was_written_at() -> None:
    document = parse_document("mounts:\n  data:\n    target: /x\n    source: [one, two]\n", "a.yaml")
    assert document.places[("mounts", "data", "target")] == Place("a.yaml", 3, 5)
    assert document.places[("mounts", "data", "source", 1)] == Place("a.yaml", 4, 19)
    assert str(document.places[("mounts",)]) == "a.yaml:1"


@pytest.mark.parametrize(
    "written", ["no", "on", "Yes", "off", "2024-01-01", "10:30", "0644", "0o17", "1_000", "1e5", ".5"]
)
def test_what_yaml_1_1_turns_into_something_else_stays_text(written: str) -> None:
    assert parse_document(f"a: {written}", "a.yaml").data == {"a": written}


@pytest.mark.parametrize(
    ("written", "value"),
    [("true", True), ("FALSE", False), ("12", 12), ("-1", -1), ("1.5", 1.5), ("~", None), ("", None)],
)
def test_booleans_numbers_and_nothing(written: str, value: object) -> None:
    assert parse_document(f"a: {written}", "a.yaml").data == {"a": value}


def test_keys_are_always_text() -> None:
    assert parse_document("{007: 1, true: 2, ~: 3}", "a.yaml").data == {"007": 1, "true": 2, "~": 3}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "~"])
def test_an_empty_file_is_empty(text: str) -> None:
    assert parse_document(text, "a.yaml").data == {}


def test_a_key_given_twice_is_refused_with_both_lines() -> None:
    message = wrong("mounts:\n  data: {target: /x}\n  more: {}\n  data: {target: /y}\n")
    assert "'mounts.data' is there twice, in line 2 and in line 4" in message


def test_anchors_and_merge_keys_work_and_the_own_key_wins() -> None:
    document = parse_document("x-base: &base {a: 1, b: 2}\nm:\n  b: 3\n  <<: *base\n", "a.yaml")
    assert document.data["m"] == {"a": 1, "b": 3}
    assert document.places[("m", "b")].line == 3
    assert document.places[("m", "a")].line == 1


def test_of_several_merged_mappings_the_first_wins() -> None:
    assert parse_document("x: &x {a: 1}\ny: &y {a: 2}\nm: {<<: [*x, *y]}", "a.yaml").data["m"] == {"a": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n\t- b\n", "line 2, column 1: a tab; YAML is indented with spaces"),
        ("a: b: c\n", "line 1, column 5: a ':' where none can be"),
        ("a:\n  b: 1\n c: 2\n", "line 3, column 2: this line is not indented like its neighbours"),
        ("a: [1, 2\n", "a list that begins with '[' is not closed"),
        ("a: {b: 1\n", "a mapping that begins with '{' is not closed"),
        ('a: "x\n', "a quote or bracket is not closed"),
        ("a: @x\n", "a text that begins with this character needs quotes"),
        ("a: *secret\n", "a text that begins with '*' needs quotes"),
        ("a: !secret x\n", "a text that begins with '!' needs quotes"),
        ("a: &x [*x]\n", "a value that contains itself"),
        ("a: 1\n---\nb: 2\n", "one file holds one document"),
        ('a: "\\q"', "a backslash inside double quotes"),
        ("? [a]\n: b\n", "a key must be plain text"),
        ("<<: 3", "'<<' takes a mapping"),
        ("- a\n", "it does not begin with a key"),
        ("a: \x07", "characters that no text file has"),
    ],
)
def test_what_is_not_yaml_is_said_in_plain_words(text: str, said: str) -> None:
    assert said in wrong(text)


@pytest.mark.parametrize(
    "text", ["key: *hunter2\n", "key: !hunter2 x\n", "key: 'hunter2\n", "key: hunter2: x\n", "@hunter2"]
)
def test_a_syntax_error_quotes_nothing_it_could_be_a_secret(text: str) -> None:
    assert "hunter2" not in wrong(text)


def test_a_file_that_multiplies_itself_is_refused_at_once() -> None:
    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "too many values" in wrong("\n".join(lines))


@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=200) | st.text("{}[]:,-&*!|>'\"#%@` \n\tab<~", max_size=60)
)
def test_any_text_is_data_or_a_config_error(text: str) -> None:
    try:
        assert isinstance(parse_document(text, "a.yaml").data, dict)
    except ConfigError as exc:
        assert exc.message.startswith("cannot read 'a.yaml'")
