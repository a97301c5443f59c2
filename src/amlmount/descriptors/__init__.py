"""Keeping descriptors by name over the death of the process that uses them: in systemd's store, or with a keeper.

One interface (`base.DescriptorStore`), two places; `open_store` finds out which of them there is.
"""

from amlmount.descriptors.base import DescriptorStore, NoStore
from amlmount.descriptors.choose import open_store

__all__ = ["DescriptorStore", "NoStore", "open_store"]
