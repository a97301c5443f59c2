"""What a dead blobfuse2 left in its cache: set aside, classified, sent to the store or reported; never just deleted.

`python -m amlmount.recovery FOLDER...` does it in a process of its own, so that the daemon stays small.
"""

from amlmount.recovery.instances import (
    ASIDE,
    RUNNING,
    Folder,
    Instance,
    file_name_of,
    find_folders,
    make_aside,
    make_running,
    read_folder,
    remove_tree,
)
from amlmount.recovery.rescue import Found, Report, empty_trash, read_report, salvage

__all__ = [
    "ASIDE",
    "RUNNING",
    "Folder",
    "Found",
    "Instance",
    "Report",
    "empty_trash",
    "file_name_of",
    "find_folders",
    "make_aside",
    "make_running",
    "read_folder",
    "read_report",
    "remove_tree",
    "salvage",
]
