"""Which type of file system a path lies on, read from the mount table; nothing is asked of the file system itself."""

import os


def type_of(path: str, mountinfo: str = "/proc/self/mountinfo") -> str:
    """Return the type (proc(5), field after the dash) of the mount that holds `path`; empty when it is not known."""
    real, best, found = os.path.realpath(path), "", ""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as table:
            lines = table.readlines()
    except OSError:
        return ""
    for line in lines:
        left, _, right = line.partition(" - ")
        point = _unescape(left.split()[4])
        if len(point) >= len(best) and _lies_under(real, point):
            best, found = point, right.split()[0]
    return found


def _lies_under(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
