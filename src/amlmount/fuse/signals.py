"""What the kernel knows of the thread that waits for us: is it being killed?

A fatal signal sets SIGKILL pending in every thread of its process (kernel/signal.c: complete_signal).
"""

import signal

_KILL_BIT = 1 << (signal.SIGKILL - 1)


def is_being_killed(thread_id: int) -> bool:
    """Say whether a thread is about to die of a signal; False when that cannot be found out."""
    try:
        with open(f"/proc/{thread_id}/status", "rb") as file:
            for line in file:
                if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & _KILL_BIT:
                    return True
    except (OSError, ValueError):
        pass
    return False
