"""Which mount a path leads to, by the mount table alone: whether one is hidden by another.

It walks as the kernel does (path_lookup: at each step onto what is mounted there), and touches no path.
"""

from amlmount.mounts.mountinfo import MountEntry


class Paths:
    """A mount table, ready to be walked many times."""

    def __init__(self, table: list[MountEntry]) -> None:
        self._below = {(entry.parent_id, entry.mount_point): entry for entry in table}
        self._by_id = {entry.mount_id: entry for entry in table}

    def entry(self, mount_id: int) -> MountEntry | None:
        """Return the mount with this id."""
        return self._by_id.get(mount_id)

    def cover_of(self, entry: MountEntry) -> MountEntry | None:
        """Return the mount that one reaches in the place of `entry`, None if it is `entry` that one reaches."""
        place = self._root()
        for path in _steps(entry.mount_point):
            while (on_top := self._below.get((place.mount_id, path))) is not None and on_top is not place:
                place = on_top
        return None if place.mount_id == entry.mount_id else place

    def _root(self) -> MountEntry:
        roots = [entry for entry in self._by_id.values() if entry.mount_point == "/"]
        lowest = [entry for entry in roots if entry.parent_id == entry.mount_id or entry.parent_id not in self._by_id]
        return (lowest or roots)[0]


def _steps(path: str) -> list[str]:
    """Return `/`, `/a`, `/a/b` of `/a/b`."""
    names = [name for name in path.split("/") if name]
    return ["/", *("/" + "/".join(names[: count + 1]) for count in range(len(names)))]
