"""How far the kernel reads ahead on one mount: the only knob is in sysfs, and root's.

Default are 128 KiB (VM_READAHEAD_PAGES), so a reader of a FUSE mount waits for one small request after the other.
INIT can lower it, not raise it.
"""

import os


def widen_read_ahead(device: int, size_bytes: int) -> bool:
    """Have the kernel read `size_bytes` ahead on the mount with this `st_dev`; False if that is not for us to do."""
    try:
        path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        with open(path, "w", encoding="ascii") as file:
            file.write(str(size_bytes >> 10))
    except OSError:
        return False
    return True
