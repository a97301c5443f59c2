"""Names of stores and mounts made from names of containers, accounts and files, which allow other characters.

The rule of our names: letters, digits, dot, dash and underscore, at most 63.
"""

import re


def store_name(text: str) -> str:
    """Return `text` as a name of a store or mount."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63] or "data"
