"""Looking at the stores of a definition that is not mounted yet, while the mount that it is to replace still is.

Only where there must be a gap: without one the new mount asks its stores itself, before the old one goes.
"""

from amlmount.config.spec import MountSpec
from amlmount.engines.blobfuse2.preflight import preflight


def look_at_stores(spec: MountSpec) -> None:
    """Raise what a mount by this definition would fail with: store errors (exit codes 3, 5, 6). Blocks for seconds.

    The folder that `path` names is looked for only where it must be there: for writing it would be made.
    """
    for source in spec.sources:
        preflight(source if spec.read_only else source.model_copy(update={"path": ""}))
    if spec.read_only:
        _probe(spec)


def _probe(spec: MountSpec) -> None:
    from amlmount.vfs import open_filesystem

    files = open_filesystem(spec.model_copy(update={"cache_dir": None}))
    try:
        files.probe()
    finally:
        files.close()
