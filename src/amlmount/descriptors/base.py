"""What keeping descriptors means, whoever does it.

A name has the form `GROUP.KIND`. When the connection behind a `/dev/fuse` descriptor has ended, its keeper drops it;
the rest of its group is for the owner to drop.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Protocol


class DescriptorStore(Protocol):
    """Keeps descriptors for the next process. Every method may wait a little: call it from a thread."""

    @property
    def kind(self) -> str:
        """`systemd`, `keeper`, or `none`."""
        ...

    def recall(self) -> dict[str, int]:
        """Return what is kept, by name; the descriptors are copies, close-on-exec, and the caller's."""
        ...

    def keep(self, descriptors: Mapping[str, int], *, instead_of: Iterable[str] = ()) -> None:
        """Keep copies under these names, instead of what had them, and keep `instead_of` no longer.

        Those may be other names of the same descriptors. Safe once this returns. Raises AmlmountError.
        """
        ...

    def drop(self, names: Iterable[str]) -> None:
        """Keep these no longer; unknown names are fine. Never raises."""
        ...

    def close(self) -> None:
        """End the use of the store, not the keeping."""
        ...


class NoStore:
    """Keeps nothing: for tests, and where there is nobody to keep anything."""

    kind = "none"

    def recall(self) -> dict[str, int]:
        """See DescriptorStore."""
        return {}

    def keep(self, descriptors: Mapping[str, int], *, instead_of: Iterable[str] = ()) -> None:
        """See DescriptorStore."""

    def drop(self, names: Iterable[str]) -> None:
        """See DescriptorStore."""

    def close(self) -> None:
        """See DescriptorStore."""


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)
