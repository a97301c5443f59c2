"""A container in Azurite, as the stand-in's file system uses one; the same interface as a directory's.

Bytes go through the project's own client: what is imitated is blobfuse2's cache, not its REST calls.
"""

import errno
import os
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from amlmount.errors import AmlmountError, BlobNotFoundError, ContainerNotFoundError
from amlmount.stores.azure import open_azure
from amlmount.stores.azure.store import AzureStore
from standin.container import CHUNK_BYTES
from standin.settings import Refused, Settings

SECRET = "STANDIN_SECRET"
REFUSED = (
    "failed to initialize new pipeline [failed to authenticate azstorage credentials with error "
    "[BlockBlob::TestPipeline : [{}]]]"
)


@dataclass(slots=True)
class AzureContainer:
    """A container. With `mode: sas` in so many words, a changed configuration file brings a new signature."""

    settings: Settings
    config: str | None
    whole_seconds: bool = True
    _store: AzureStore | None = None
    _stamp: int = 0
    _opening: threading.Lock = field(default_factory=threading.Lock)
    _directories: set[str] = field(default_factory=set)

    def check(self) -> None:
        """List once, as the first list of a real mount. Raises Refused."""
        try:
            next(iter(self._opened().list("", page_size=2)), None)
        except ContainerNotFoundError:
            raise Refused(REFUSED.format("ContainerNotFound")) from None
        except AmlmountError as error:
            raise Refused(REFUSED.format(error.message)) from None

    def wait_while_hung(self) -> None:
        """Nothing: a request that hangs does so by itself."""

    def stat(self, name: str) -> Any:
        """Return what the store knows. Raises OSError."""
        key = self._key(name)
        if not key or key in self._directories:
            return _attributes(stat.S_IFDIR, 4096, 0)
        try:
            found = self._opened().head(key)
            return _attributes(stat.S_IFREG, found.size_bytes, found.mtime_ns)
        except BlobNotFoundError:
            if any(page.objects or page.prefixes for page in self._pages(f"{key}/")):
                return _attributes(stat.S_IFDIR, 4096, 0)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        except AmlmountError as error:
            raise OSError(errno.EIO, error.message) from None

    def names(self, name: str) -> set[str]:
        """List a directory."""
        key = self._key(name)
        prefix = f"{key}/" if key else ""
        found = {item.rpartition("/")[2] for item in self._directories if item.rpartition("/")[0] == key}
        for page in self._pages(prefix):
            found |= {item.name.removeprefix(prefix) for item in page.objects}
            found |= {item.removeprefix(prefix).rstrip("/") for item in page.prefixes}
        return found

    def download(self, name: str, local: str, mode: int, final_mode: int) -> None:
        """Fetch a blob as the file cache does: full size at once, its mark as mode, time and mode at the end."""
        found, key = self.stat(name), self._key(name)
        os.makedirs(os.path.dirname(local), mode=0o755, exist_ok=True)
        descriptor = os.open(local, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as target:
            target.truncate(found.st_size)
            for start in range(0, found.st_size, CHUNK_BYTES):
                try:
                    target.write(self._opened().get(key, start, CHUNK_BYTES))
                except AmlmountError as error:
                    raise OSError(errno.EIO, error.message) from None
                target.flush()
        os.chmod(local, final_mode)
        os.utime(local, ns=(found.st_mtime_ns, found.st_mtime_ns))

    def upload(self, name: str, local: str) -> None:
        """Store a file whole. Raises OSError(EIO) when that does not work."""
        try:
            self._opened().put(self._key(name), Path(local).read_bytes())
        except AmlmountError as error:
            raise OSError(errno.EIO, error.message) from None

    def mkdir(self, name: str) -> None:
        """Remember a directory until something is in it."""
        self._directories.add(self._key(name))

    def rmdir(self, name: str) -> None:
        """Forget an empty directory."""
        self._directories.discard(self._key(name))

    def unlink(self, name: str) -> None:
        """Delete a blob. Raises FileNotFoundError."""
        try:
            self._opened().delete(self._key(name))
        except BlobNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None

    def rename(self, old: str, new: str) -> None:
        """Copy and delete one blob; directories are not needed."""
        if self._key(old) in self._directories:
            self._directories.remove(self._key(old))
            self._directories.add(self._key(new))
            return
        store = self._opened()
        store.put(self._key(new), store.get(self._key(old)))
        store.delete(self._key(old))

    def symlink(self, name: str, target: str) -> None:
        """Not imitated."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def readlink(self, name: str) -> str:
        """Not imitated."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def _pages(self, prefix: str) -> list[Any]:
        try:
            return list(self._opened().list(prefix, delimiter=True))
        except AmlmountError as error:
            raise OSError(errno.EIO, error.message) from None

    def _key(self, name: str) -> str:
        below = str(self.settings.get("azstorage.subdirectory") or "").strip("/")
        return "/".join(part for part in (below, name.strip("/")) if part)

    def _opened(self) -> AzureStore:
        with self._opening:  # else a second thread opens it with the old signature while the first reads the new one
            return self._present()

    def _present(self) -> AzureStore:
        mode = str(self.settings.get("azstorage.mode", ""))
        if mode == "sas" and self.config and (stamp := os.stat(self.config).st_mtime_ns) != self._stamp:
            self._stamp, self._store = stamp, None
            sas = yaml.safe_load(Path(self.config).read_text()).get("azstorage", {}).get("sas")
            self.settings.values["azstorage.sas"] = sas or self.settings.values.get("azstorage.sas")
        if self._store is None:
            self._store = self._open(mode)
        return self._store

    def _open(self, mode: str) -> AzureStore:
        kind = "sas_token" if mode == "sas" else "account_key"
        os.environ[SECRET] = str(self.settings.get("azstorage.sas" if mode == "sas" else "azstorage.account-key"))
        definition = {
            "type": "azure_blob",
            "account_name": self.settings.get("azstorage.account-name"),
            "container_name": self.settings.get("azstorage.container"),
            "endpoint": self.settings.get("azstorage.endpoint"),
            "credentials": {kind: {"env": SECRET}},
        }
        store = open_azure(definition)
        store.authorizer()
        return store


def _attributes(kind: int, size_bytes: int, mtime_ns: int) -> Any:
    return SimpleNamespace(
        st_mode=kind | 0o755, st_size=size_bytes, st_mtime_ns=mtime_ns, st_atime_ns=mtime_ns, st_ctime_ns=mtime_ns
    )
