"""Finds the configuration's files, merges them in order and makes one validated `Config` of them.

Later files win key by key: mappings merge, scalars and lists replace. The place of every value is kept.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from amlmount.config.checks import find_problems
from amlmount.config.documents import DataPath, Document, Place, read_document
from amlmount.config.locations import config_home
from amlmount.config.models import Config
from amlmount.config.partial import further_problems
from amlmount.config.problems import all_of, config_error, validation_problems
from amlmount.errors import ConfigError

SYSTEM_FOLDER = Path("/etc/amlmount")
FILE_NAME = "amlmount.yaml"
PARTS = "conf.d"


@dataclass(frozen=True)
class Loaded:
    """A configuration and where each of its values was written."""

    config: Config
    places: Mapping[DataPath, Place]
    files: tuple[Path, ...]


def config_folder(*, system: bool | None = None, env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the system's (default: whether we are root) or this user's configuration."""
    is_system = os.geteuid() == 0 if system is None else system
    return SYSTEM_FOLDER if is_system else config_home(env)


def config_files(
    explicit: Path | None, env: Mapping[str, str] = os.environ, *, system: bool | None = None
) -> list[Path]:
    """Return the files that make up the configuration, in the order they are merged; none if nothing is there.

    `explicit` (--config), else AMLMOUNT_CONFIG, names one file or a folder; else it is the system's or the user's
    folder: amlmount.yaml and then conf.d/*.yaml by name. Raises ConfigError if a named file is not there.
    """
    named = _named(explicit, env)
    if named is None:
        return _in_folder(config_folder(system=system, env=env))
    if not os.path.exists(named):
        raise ConfigError(
            f"cannot read the configuration '{named}': no such file",
            hint=f"`amlmount --config {named} init` writes one to start from",
        )
    return _in_folder(named) if named.is_dir() else [named]


def required_files(explicit: Path | None, *, system: bool | None = None, program: str = "amlmount") -> list[Path]:
    """Return what `config_files` does, at least one. Raises ConfigError if there is none.

    `program` is how to call this program again, for the hint.
    """
    if files := config_files(explicit, system=system):
        return files
    main = main_file(explicit, system=system)
    raise ConfigError(f"cannot find a configuration: there is no '{main}'", hint=f"`{program} init` writes one")


def config_folders(
    explicit: Path | None, env: Mapping[str, str] = os.environ, *, system: bool | None = None
) -> list[Path]:
    """Return the directories in which files of the configuration can come and go, whether they are there or not."""
    named = _named(explicit, env)
    if named is not None and not named.is_dir():
        return [named.parent]
    folder = named or config_folder(system=system, env=env)
    return [folder, folder / PARTS]


def main_file(explicit: Path | None, env: Mapping[str, str] = os.environ, *, system: bool | None = None) -> Path:
    """Return the file that `amlmount init` writes: the first that `config_files` would read, there or not."""
    named = _named(explicit, env)
    if named is None:
        return config_folder(system=system, env=env) / FILE_NAME
    return named / FILE_NAME if named.is_dir() else named


def load_config(files: Sequence[Path]) -> Config:
    """Return the validated configuration; no files give an empty one. Raises ConfigError that names file and line."""
    return load_with_places(files).config


def load_with_places(files: Sequence[Path]) -> Loaded:
    """Return the validated configuration and the place of every value. Raises ConfigError as `load_config`."""
    merged = merge([_with_absolute_paths(document, path.parent) for path, document in _read_all(files)])
    return Loaded(_validated(merged), merged.places, tuple(files))


def config_from(data: dict[str, Any], folder: Path | None = None) -> Config:
    """Return the configuration that `data` is, without a file: relative paths start at `folder` (default: here).

    Raises ConfigError as `load_config`, without file and line.
    """
    return _validated(_with_absolute_paths(Document(data), folder or Path.cwd()))


def _read_all(files: Sequence[Path]) -> list[tuple[Path, Document]]:
    """Read files; what is wrong with several of them is said of each."""
    documents: list[tuple[Path, Document]] = []
    errors: list[ConfigError] = []
    for path in files:
        try:
            documents.append((path, read_document(path)))
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise all_of(errors)
    return documents


def _validated(merged: Document) -> Config:
    sections = _sections(merged.data)
    try:
        config = Config.model_validate(sections)
    except ValidationError as exc:
        found = validation_problems(exc, merged)
        raise config_error([*found, *further_problems(sections, found)], merged.places) from None
    if problems := find_problems(config):
        raise config_error(problems, merged.places)
    return config


def _sections(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out sections with nothing below them, and `x-...`, where YAML anchors can be kept."""
    return {key: value for key, value in data.items() if value is not None and not key.startswith("x-")}


def merge(documents: Sequence[Document]) -> Document:
    """Return one document in which later ones have won, key by key; places follow the value that won."""
    data: dict[str, Any] = {}
    places: dict[DataPath, Place] = {}
    for document in documents:
        data = _merged(data, document.data, (), places)
        places.update(document.places)
    return Document(data, places)


def _merged(old: dict[str, Any], new: dict[str, Any], path: DataPath, places: dict[DataPath, Place]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        here = (*path, key)
        before = result.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            result[key] = _merged(before, value, here, places)
        else:
            _forget(places, here)
            result[key] = value
    return result


def _forget(places: dict[DataPath, Place], path: DataPath) -> None:
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]


def _named(explicit: Path | None, env: Mapping[str, str]) -> Path | None:
    named = explicit or env.get("AMLMOUNT_CONFIG")
    return Path(os.path.abspath(os.path.expanduser(named))) if named else None


def _in_folder(folder: Path) -> list[Path]:
    parts_folder = folder / PARTS
    main = [folder / FILE_NAME] if FILE_NAME in _names(folder) else []
    return main + [parts_folder / name for name in sorted(_names(parts_folder)) if _is_part(name)]


def _names(folder: Path) -> list[str]:
    """List a folder; one that is closed to us is an error, where Path.glob would take it for empty."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration folder '{folder}': {exc.strerror}") from None


def _is_part(name: str) -> bool:
    """Skip what editors leave beside a file: `.#a.yaml`, `.a.yaml`."""
    return name.endswith(".yaml") and not name.startswith(".")


def _with_absolute_paths(document: Document, folder: Path) -> Document:
    """Make paths absolute here, where it is still known which file they stand in."""
    return Document(_absolute(document.data, folder.absolute(), ()), document.places)


def _absolute(data: Any, folder: Path, path: DataPath) -> Any:
    if isinstance(data, dict):
        return {key: _absolute(value, folder, (*path, key)) for key, value in data.items()}
    return _absolute_path(data, folder) if isinstance(data, str) and _is_file_path(path) else data


def _is_file_path(path: DataPath) -> bool:
    match path:
        case ("stores", _, "path") | ("stores", _, "credentials", _, "file") | ("cache", "root"):
            return True
    return False


def _absolute_path(written: str, folder: Path) -> str:
    return os.path.normpath(folder / os.path.expanduser(written)) if written else written
