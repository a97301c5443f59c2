"""What the kernel says of a process in /proc/PID/stat (proc(5)), for all who ask: alone, because the smallest do too.

A field is found from the end of the second, which is a name in which anything may stand.
"""


def stat_fields(process: int | str) -> list[bytes]:
    """Return the fields from the third on: field N of proc(5) is at N - 3. Raises OSError.

    `process` may be `self`, or `PID/task/TID` for a thread.
    """
    with open(f"/proc/{process}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()
