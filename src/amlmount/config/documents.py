"""Reads one YAML file into plain data with the place of every value, strictly and in plain words.

Strict: a key given twice is an error; only true and false are booleans, `0644` stays text, and so does
2024-01-01 (YAML 1.1 makes no, 10:30 and 0644 into something else). No message quotes a value: it may be a secret.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from amlmount.errors import ConfigError

DataPath = tuple[str | int, ...]

_MAX_NODES = 100_000
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written; lines and columns count from 1."""

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Document:
    """The data of one file, and the place of the key (or list item) of every value in it."""

    data: dict[str, Any]
    places: dict[DataPath, Place] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """SafeLoader that knows four kinds of plain scalars besides text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way to replace them


def _resolve(tag: str, pattern: str, first: list[str]) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)


_resolve("bool", "true|True|TRUE|false|False|FALSE", list("tTfF"))
_resolve("int", "[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789"))
_resolve("float", r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+]?[0-9]+)?", list("-+0123456789"))
_resolve("null", "~|null|Null|NULL|", ["~", "n", "N", ""])
_resolve("merge", "<<", ["<"])


def read_document(path: Path) -> Document:
    """Return what stands in a YAML file; an empty one is empty data. Raises ConfigError with line and column."""
    return parse_document(_read_text(path), str(path))


def parse_document(text: str, file: str) -> Document:
    """Return what `text`, known as `file`, says. Raises ConfigError with line and column."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as exc:
        raise _syntax_error(exc, file) from None
    except yaml.YAMLError:
        raise ConfigError(f"cannot read '{file}': it holds characters that no text file has") from None
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return Document({})
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"cannot read '{file}': it does not begin with a key", hint="start with a section such as 'mounts:'"
        )
    reader = _Reader(file)
    return Document(reader.mapping(root, ()), reader.places)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"cannot read the configuration '{path}': no such file", hint="`amlmount init` writes one to start from"
        ) from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"cannot read '{path}': byte {exc.start} is not UTF-8 text") from None
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration '{path}': {exc.strerror}") from None


class _Reader:
    """Turns the nodes of one file into data; an alias is read again at each use, so every use has its place."""

    def __init__(self, file: str) -> None:
        self.places: dict[DataPath, Place] = {}
        self._file = file
        self._open: list[yaml.Node] = []
        self._count = 0

    def mapping(self, node: yaml.MappingNode, path: DataPath) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged |= self._merged(value_node, path)
        for key_node, value_node in node.value:
            if key_node.tag != _MERGE:
                key = self._new_key(key_node, path, own)
                own[key] = self._value(value_node, (*path, key))
        return merged | own

    def _new_key(self, node: yaml.Node, path: DataPath, seen: dict[str, Any]) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key must be plain text")
        key, place = str(node.value), self._place(node)
        if key in seen:
            raise self._twice(key, path, self.places[(*path, key)], place)
        self.places[(*path, key)] = place
        return key

    def _merged(self, node: yaml.Node, path: DataPath) -> dict[str, Any]:
        """Read `<<: *base` or `<<: [*one, *two]`: the earlier one wins, and the mapping's own keys over both."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                raise self._error(source, "'<<' takes a mapping that stands elsewhere, as in <<: *base")
            merged |= cast("dict[str, Any]", self._value(source, path))
        return merged

    def _value(self, node: yaml.Node, path: DataPath) -> Any:
        self._count += 1
        if node in self._open:
            raise self._error(node, "a value that contains itself")
        if self._count > _MAX_NODES:
            raise self._error(node, "too many values")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._open.append(node)
        try:
            return self.mapping(node, path) if isinstance(node, yaml.MappingNode) else self._items(node, path)
        finally:
            self._open.pop()

    def _items(self, node: yaml.Node, path: DataPath) -> list[Any]:
        items = []
        for index, item in enumerate(node.value):
            self.places[(*path, index)] = self._place(item)
            items.append(self._value(item, (*path, index)))
        return items

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = str(node.value)
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "str" | "merge":
                return text
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return text.lower() == "true"
            case "null":
                return None
        raise self._error(node, "a text that begins with '!' needs quotes")

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _error(self, node: yaml.Node, what: str) -> ConfigError:
        place = self._place(node)
        return ConfigError(f"cannot read '{self._file}', line {place.line}, column {place.column}: {what}")

    def _twice(self, key: str, path: DataPath, first: Place, second: Place) -> ConfigError:
        where = dotted((*path, key))
        return ConfigError(
            f"cannot read '{self._file}': '{where}' is there twice, in line {first.line} and in line {second.line}",
            hint="remove or rename one of them",
        )


# What PyYAML calls it -> what a person has probably done. Its own text is never shown: it can quote a value.
_PLAIN_WORDS = (
    ("'\\t'", "a tab; YAML is indented with spaces"),
    (
        "mapping values are not allowed",
        "a ':' where none can be; is the line above finished, or does a text need quotes?",
    ),
    ("could not find expected ':'", "a ':' is missing after the key"),
    ("expected <block end>", "this line is not indented like its neighbours"),
    ("expected ',' or ']'", "a list that begins with '[' is not closed, or a comma is missing"),
    ("expected ',' or '}'", "a mapping that begins with '{' is not closed, or a comma is missing"),
    ("end of stream", "a quote or bracket is not closed"),
    ("undefined alias", "a text that begins with '*' needs quotes"),
    ("cannot start any token", "a text that begins with this character needs quotes"),
    ("escape character", "a backslash inside double quotes; use single quotes"),
    ("but found another document", "a second '---'; one file holds one document"),
)


def _syntax_error(exc: yaml.MarkedYAMLError, file: str) -> ConfigError:
    mark = exc.problem_mark or exc.context_mark
    said = f"{exc.problem} {exc.context}"
    what = next((plain for part, plain in _PLAIN_WORDS if part in said), "this is not valid YAML")
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return ConfigError(f"cannot read '{file}'{where}: {what}")


def walk(data: object, path: DataPath = ()) -> Iterator[tuple[DataPath, object]]:
    """Yield every value within `data` that holds no others (and every empty mapping or list), with its path."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from walk(value, (*path, key))
    elif isinstance(data, list) and data:
        for index, value in enumerate(data):
            yield from walk(value, (*path, index))
    else:
        yield path, data


def dotted(path: DataPath) -> str:
    """Return `mounts.data.target`; what does not look like a key is left out, it may be a secret put there."""
    shown = [str(key) if re.fullmatch(r"[\w$. -]{1,64}", str(key)) else "..." for key in path]
    return ".".join(shown)


def nearest_place(places: Mapping[DataPath, Place], path: DataPath) -> Place | None:
    """Return where `path` was written, or else the nearest thing around it."""
    around = (path[:length] for length in range(len(path), 0, -1))
    return next((places[known] for known in around if known in places), None)
