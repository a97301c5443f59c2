"""The `glob` of a source: which files it shows, and which directories can hold such files.

Pure string matching; a glob never makes a request.
"""

import fnmatch
import re
from collections.abc import Sequence

_ANY_DEPTH = "**"
_Parts = Sequence[re.Pattern[str] | None]


class Glob:
    """A pattern over paths relative to the source's `path`, matched segment by segment, case-sensitively.

    Without `/` it is matched against the file's name in any directory. With `/`, `**` as a whole segment
    stands for any number of directories, none included, and `*` never matches a `/`.
    """

    def __init__(self, pattern: str) -> None:
        parts = pattern.strip("/").split("/")
        if len(parts) == 1:
            parts = [_ANY_DEPTH, *parts]
        self._parts: _Parts = [
            None if part == _ANY_DEPTH else re.compile(fnmatch.translate(part))
            for index, part in enumerate(parts)
            if part != _ANY_DEPTH or parts[index - 1 : index] != [_ANY_DEPTH]
        ]

    def shows_file(self, path: str) -> bool:
        """Tell whether a file with this relative path is shown."""
        return _matches(self._parts, path.split("/"))

    def shows_directory(self, path: str) -> bool:
        """Tell whether a directory with this relative path may hold a shown file at some depth."""
        segments = path.split("/")
        for part, segment in zip(self._parts, segments, strict=False):
            if part is None:
                return True
            if not part.match(segment):
                return False
        return len(segments) < len(self._parts)


def _matches(parts: _Parts, segments: Sequence[str]) -> bool:
    for index, part in enumerate(parts):
        if index >= len(segments):
            return False
        if part is None:
            rest = parts[index + 1 :]
            return not rest or any(_matches(rest, segments[skip:]) for skip in range(index, len(segments)))
        if not part.match(segments[index]):
            return False
    return len(segments) == len(parts)
