"""What one imported file becomes, before the files are put together; and how such a file is read at all."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amlmount.errors import ConfigError
from amlmount.importer.finding import Finding


@dataclass(slots=True)
class Draft:
    """What one file becomes: sections of the new configuration, and what there is to say."""

    stores: dict[str, dict[str, Any]] = field(default_factory=dict)
    mounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_text(path: Path) -> str:
    """Return the text of a file to import. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot import '{path}': {error.strerror}", hint="check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"cannot import '{path}': it is not UTF-8 text",
            hint="an encrypted file is decrypted with `blobfuse2 secure decrypt`",
        ) from None
