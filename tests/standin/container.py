"""A directory as a container: what the stand-in's file system downloads from and uploads to, with faults on demand.

Times of blobs are whole seconds, as Last-Modified is; with loopbackfs they are the directory's own.
"""

import errno
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from standin.settings import Refused, Settings

if TYPE_CHECKING:
    from standin.azure import AzureContainer

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Container:
    """`root` is the directory; `whole_seconds` that of a container, not of loopbackfs."""

    root: str
    whole_seconds: bool
    switches: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> str:
        """Return where a blob lies."""
        return os.path.join(self.root, name.lstrip("/"))

    def wait_while_hung(self) -> None:
        """Answer only when the store does."""
        while self._on("store_hangs"):
            time.sleep(0.02)

    def stat(self, name: str) -> os.stat_result:
        """Return what the store knows of a blob. Raises OSError."""
        self.wait_while_hung()
        found = os.lstat(self.path(name))
        if self.whole_seconds and found.st_mtime_ns % 10**9:
            os.utime(self.path(name), ns=(found.st_atime_ns, found.st_mtime_ns // 10**9 * 10**9))
            found = os.lstat(self.path(name))
        return found

    def names(self, name: str) -> set[str]:
        """List a directory."""
        self.wait_while_hung()
        return set(os.listdir(self.path(name)))

    def mkdir(self, name: str) -> None:
        """Make a directory."""
        os.mkdir(self.path(name))

    def rmdir(self, name: str) -> None:
        """Remove an empty directory."""
        os.rmdir(self.path(name))

    def unlink(self, name: str) -> None:
        """Delete a blob. Raises FileNotFoundError."""
        os.unlink(self.path(name))

    def rename(self, old: str, new: str) -> None:
        """Rename a blob or a directory; onto one that is not empty is refused."""
        target = self.path(new)
        if os.path.isdir(target) and os.listdir(target):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        os.rename(self.path(old), target)

    def symlink(self, name: str, target: str) -> None:
        """Make a symbolic link."""
        os.symlink(target, self.path(name))

    def readlink(self, name: str) -> str:
        """Return where a symbolic link points."""
        return os.readlink(self.path(name))

    def download(self, name: str, local: str, mode: int, final_mode: int) -> None:
        """Fetch a blob as the file cache does: full size at once, its mark as mode, time and mode at the end."""
        found = self.stat(name)
        os.makedirs(os.path.dirname(local), mode=0o755, exist_ok=True)
        # With os.open the process's own umask applies, as in the real one.
        descriptor = os.open(local, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)
        with open(self.path(name), "rb") as source, open(descriptor, "wb") as target:
            target.truncate(found.st_size)
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
                target.flush()
                while self._on("downloads_stop"):
                    time.sleep(0.02)
        os.chmod(local, final_mode)
        os.utime(local, ns=(found.st_atime_ns, found.st_mtime_ns))

    def upload(self, name: str, local: str) -> None:
        """Store a file whole. Raises OSError(EIO) when the store is down."""
        self.wait_while_hung()
        if self._on("uploads_fail"):
            raise OSError(errno.EIO, "the store is down")
        target = self.path(name)
        partial = os.path.join(os.path.dirname(self.root), f".put-{os.getpid()}-{time.monotonic_ns()}")
        shutil.copyfile(local, partial)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if self.whole_seconds:
            now_s = int(time.time())
            os.utime(partial, (now_s, now_s))
        os.replace(partial, target)

    def _on(self, switch: str) -> bool:
        return switch in self.switches and os.path.exists(self.switches[switch])


AnyContainer: TypeAlias = "Container | AzureContainer"


def open_container(settings: Settings, config: str | None) -> AnyContainer:
    """Return the container of the configuration. Raises Refused as the first list of a real mount would."""
    switches = _switches()
    if str(settings.get("azstorage.endpoint", "")).startswith("http://127.0.0.1:"):
        from standin.azure import AzureContainer

        emulated = AzureContainer(settings, config)
        emulated.check()
        return emulated
    if "loopbackfs" in settings.components:
        root = str(settings.get("loopbackfs.path", ""))
        os.makedirs(root, exist_ok=True)
        return Container(root, whole_seconds=False, switches=switches)
    root = os.path.join(switches.get("containers", "/nonexistent"), str(settings.get("azstorage.container")))
    container = Container(root, whole_seconds=True, switches=switches)
    container.wait_while_hung()
    if not os.path.isdir(root):
        raise Refused(
            "failed to initialize new pipeline [failed to authenticate azstorage credentials with error "
            "[BlockBlob::TestPipeline : [ContainerNotFound]]]"
        )
    return container


def _switches() -> dict[str, str]:
    path = Path(sys.argv[0]).absolute().with_name("blobfuse2.json")
    return {str(key): str(value) for key, value in json.loads(path.read_text()).items()} if path.exists() else {}
