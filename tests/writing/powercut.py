"""A state directory whose power can be cut: it knows what was synced, and can show what would be left.

Also a switch that lets a whole process die at the n-th thing it does: every write of the journal, every call of the
store, every call of the disk. Afterwards nothing that the dead one still tries has any effect.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amlmount.stores.base import Content, ObjectInfo, Ranges
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.writing.disk import Disk


class Died(BaseException):
    """The process is dead from here on."""


class Life:
    """Ends at the n-th step; counts them when it never ends."""

    def __init__(self, ends_at: int | None = None) -> None:
        self.ends_at = ends_at
        self.steps: list[str] = []
        self._lock = threading.Lock()
        self.is_over = False

    def step(self, what: str) -> None:
        """Do one thing, or die instead."""
        with self._lock:
            self.steps.append(what)
            if self.is_over or len(self.steps) == self.ends_at:
                self.is_over = True
                raise Died(what)


class MortalStore(MemoryStore):
    """A store whose caller may die before a call, or after it was carried out and before the answer came."""

    def __init__(self, objects: Mapping[str, bytes] | None = None) -> None:
        self.life = Life()
        super().__init__(objects, is_local=False)

    def _around(self, what: str, call: Any) -> Any:
        self.life.step(f"before {what}")
        result = call()
        self.life.step(f"after {what}")
        return result

    def upload(
        self,
        name: str,
        content: Content,
        *,
        unchanged: Ranges = (),
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        def call() -> ObjectInfo:
            return super(MortalStore, self).upload(
                name, content, if_match=if_match, if_none_match=if_none_match, metadata=metadata
            )

        found: ObjectInfo = self._around(f"upload {name}", call)
        return found

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        self._around(f"delete {name}", lambda: super(MortalStore, self).delete(name, if_match=if_match))

    def copy(self, source: ObjectInfo, name: str, *, if_none_match: bool = False) -> ObjectInfo:
        def call() -> ObjectInfo:
            return super(MortalStore, self).copy(source, name, if_none_match=if_none_match)

        found: ObjectInfo = self._around(f"copy {source.name} {name}", call)
        return found

    def set_metadata(self, info: ObjectInfo, metadata: Mapping[str, str]) -> ObjectInfo:
        def call() -> ObjectInfo:
            return super(MortalStore, self).set_metadata(info, metadata)

        found: ObjectInfo = self._around(f"describe {info.name}", call)
        return found


class MortalDisk(Disk):
    """A disk on which each change is a step of a life, and which remembers what was synced.

    `cut(root)` makes of `root` what a machine would find after its power was cut right now: of each directory the
    names that it had when it was synced last, of each file the content that it had when it was synced last.
    """

    def __init__(self, root: str, life: Life) -> None:
        super().__init__(root)
        self._life = life
        self._opened: dict[int, int] = {}  # descriptor -> inode
        self._names: dict[str, dict[str, int]] = {}  # directory -> name -> inode, when it was synced
        self._contents: dict[int, bytes] = {}  # inode -> content, when it was synced

    def open(self, name: str, *, create: bool = False) -> int:
        self._life.step(f"open {name}")
        is_new = create and not self.exists(name)
        fd = super().open(name, create=create)
        if is_new:
            self._contents.pop(os.fstat(fd).st_ino, None)  # a number that a removed file had
        self._opened[fd] = os.fstat(fd).st_ino
        return fd

    def lock(self) -> int:
        fd = super().lock()
        self._opened[fd] = os.fstat(fd).st_ino
        return fd

    def bury(self) -> None:
        """Close what the dead process had open, as the kernel does."""
        for fd, inode in self._opened.items():
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_ino == inode:
                    os.close(fd)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self._life.step("write")
        super().write(fd, data, offset)

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._life.step("truncate")
        super().truncate(fd, size_bytes)

    def sync(self, fd: int) -> None:
        self._life.step("sync")
        self._contents[os.fstat(fd).st_ino] = os.pread(fd, os.fstat(fd).st_size, 0)

    def sync_directory(self, path: str) -> None:
        self._life.step("sync directory")
        self._names[path] = {name: os.lstat(os.path.join(path, name)).st_ino for name in os.listdir(path)}

    def rename(self, old: str, new: str) -> None:
        self._life.step(f"rename {old}")
        super().rename(old, new)

    def remove(self, name: str) -> None:
        self._life.step(f"remove {name}")
        super().remove(name)

    def cut(self, root: Path) -> None:
        """Fill `root` with what is left."""
        shutil.rmtree(root, ignore_errors=True)
        for path, names in sorted(self._names.items()):
            if not path.startswith(self.root):
                continue
            directory = root / os.path.relpath(path, self.root)
            directory.mkdir(parents=True, exist_ok=True)
            for name, inode in names.items():
                if not os.path.isdir(os.path.join(path, name)):
                    (directory / name).write_bytes(self._contents.get(inode, b""))
