"""Changing files so that it can be taken back: each step remembers what was there."""

import contextlib
import errno
import os
import urllib.error
import urllib.request

from amlmount.errors import AmlmountError, NetworkError
from amlmount.installer.openpgp import fingerprints
from amlmount.installer.record import FileChange, FileState, read_state
from amlmount.installer.steps import FetchKey, Link, MakeDir, Remove, Restore, WriteFile

FETCH_TIMEOUT_S = 30.0
MAX_KEY_BYTES = 1 << 20
FileStep = WriteFile | FetchKey | MakeDir | Link | Remove | Restore


class FileHands:
    """Carries out steps on files below `root`. `changes` and `directories` say what was changed, by path."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.changes: dict[str, FileChange] = {}
        self.directories: list[str] = []

    def do(self, step: FileStep) -> None:
        """Carry out one step. Raises OSError, AmlmountError."""
        match step:
            case WriteFile():
                self._write(step.path, step.content.encode(errors="surrogateescape"), step.mode)
            case FetchKey():
                self._write(step.path, fetch_key(step), 0o644)
            case MakeDir():
                self._make_directory(step.path, step.mode)
            case Link():
                self._change(step.path, FileState(None, step.target))
            case Remove():
                self._remove(step)
            case Restore():
                self._put_back(step)

    def _write(self, path: str, content: bytes, mode: int) -> None:
        before = read_state(self._at(path))
        if before is not None and before.content is not None:
            # Someone's own file keeps its owner and its mode.
            self._change(path, FileState(content, None, before.mode, before.uid, before.gid))
        else:
            self._change(path, FileState(content, None, mode))

    def _change(self, path: str, after: FileState | None) -> None:
        before = read_state(self._at(path))
        if path in self.changes:
            before = self.changes[path].before
        self._make_directory(os.path.dirname(path), 0o755)
        self.changes[path] = FileChange(before, after)
        place(self._at(path), after)

    def _remove(self, step: Remove) -> None:
        if step.is_directory:
            try:
                os.rmdir(self._at(step.path))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise
        elif read_state(self._at(step.path)) is not None:
            self._change(step.path, None)

    def _put_back(self, step: Restore) -> None:
        place(self._at(step.path), step.before)

    def _make_directory(self, path: str, mode: int) -> None:
        """Make a directory; those above it that are missing get the usual mode."""
        missing = []
        while not os.path.isdir(self._at(path)):
            missing.append(path)
            path = os.path.dirname(path)
        for made in reversed(missing):
            os.mkdir(self._at(made), 0o755)
            os.chmod(self._at(made), mode if made == missing[0] else 0o755)
            self.directories.append(made)

    def _at(self, path: str) -> str:
        return os.path.join(self._root, path.lstrip("/"))


def place(path: str, state: FileState | None) -> None:
    """Make `path` what `state` says, as one step: a reader sees the old or the new. Raises OSError."""
    if state is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    draft = f"{path}.amlmount-{os.getpid()}"
    try:
        if state.link is not None:
            os.symlink(state.link, draft)
        else:
            _write_new(draft, state)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def _write_new(path: str, state: FileState) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(state.content or b"")
        file.flush()
        if os.geteuid() == 0:
            os.fchown(descriptor, state.uid, state.gid)
        os.fchmod(descriptor, state.mode)


def fetch_key(step: FetchKey) -> bytes:
    """Bring a key and check that it is the one. Raises NetworkError, AmlmountError."""
    try:
        with urllib.request.urlopen(step.url, timeout=FETCH_TIMEOUT_S) as answer:
            data: bytes = answer.read(MAX_KEY_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        raise NetworkError(
            f"cannot fetch the key {step.url}: the host answers {error.code} {error.reason}",
            hint="does --repo-url name the top of the mirror? --key FILE names a key of its own",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise NetworkError(
            f"cannot fetch the key {step.url}: {reason}",
            hint="see whether a proxy or a firewall is in the way; --repo-url names a mirror, --offline DIR a folder",
        ) from None
    found = fingerprints(data)
    if not found:
        raise AmlmountError(f"cannot use the key {step.url}: it is no OpenPGP public key", hint="a proxy's login page?")
    if step.fingerprint is not None and step.fingerprint not in found:
        raise AmlmountError(
            f"cannot trust the key {step.url}: its fingerprint is {', '.join(found)}, not {step.fingerprint}",
            hint="someone may be in between: compare it with the one that Microsoft publishes",
        )
    return data
