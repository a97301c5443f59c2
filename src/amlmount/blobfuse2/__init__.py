"""What amlmount knows of blobfuse2's configuration: one table, and everything that is read off it.

Validation, rendering, import, the docs page and the JSON Schema all ask here; nothing here does any I/O.
"""

_UNFINISHED_MODE = 0o711
_UNFINISHED_MODE_ALLOW_OTHER = 0o755


def unfinished_download_mode(*, allow_other: bool) -> int:
    """Return the mode a file in the file cache has until its download is complete, in a mount that we rendered.

    A finished one is 0755, with allow-other 0777. Without allow-other we render a `default-permission` that nobody
    uses otherwise, because blobfuse2's own default is the same for both (seen with 2.5.6).
    """
    return _UNFINISHED_MODE_ALLOW_OTHER if allow_other else _UNFINISHED_MODE
