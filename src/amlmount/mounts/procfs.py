"""What /proc says, for those who look at processes that come and go: what is not there any more is empty, no error."""

import os


def listdir(path: str) -> list[str]:
    """Return the names in a directory."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def read(path: str) -> bytes:
    """Return a whole file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def readlink(path: str) -> str | None:
    """Return where a link leads, None if there is none."""
    try:
        return os.readlink(path)
    except OSError:
        return None
