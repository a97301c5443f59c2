"""Looking at a store ourselves before blobfuse2 does: it would try for minutes, and say little.

Name, DNS, TCP, TLS, token and one entry of the listing, each with a deadline of seconds.
"""

import logging
import os

from amlmount.config.spec import SourceSpec
from amlmount.errors import AccessDeniedError, ContainerNotFoundError

log = logging.getLogger(__name__)


def preflight(source: SourceSpec) -> None:
    """Raise what is wrong with the store (exit codes 3, 5, 6), or return. Blocks: call it in a thread."""
    if source.store.get("type") == "local":
        _look_at_folder(os.path.join(str(source.store["path"]), source.path))
        return
    from amlmount.stores.azure.diagnose import diagnose

    for step in diagnose(source.store):
        log.debug("%s: %s: %s", source.store_name, step.name, step.detail)
        if step.error is not None:
            raise step.error


def _look_at_folder(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            next(entries, None)
    except (FileNotFoundError, NotADirectoryError):
        raise ContainerNotFoundError(
            f"cannot find the folder '{path}'", hint="make it, or correct the path of the store"
        ) from None
    except OSError as error:
        raise AccessDeniedError(f"cannot read the folder '{path}': {error.strerror}") from None
