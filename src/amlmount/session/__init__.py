"""`with amlmount.mount(source) as m: m.mount_point`: a mount that belongs to this process and goes with it.

No daemon is asked or needed; the mounts of the configuration are the daemon's, this only reads their definitions.
"""

from amlmount.session.mounting import Mount, mount

__all__ = ["Mount", "mount"]
