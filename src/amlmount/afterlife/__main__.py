"""The process that outlives a dead blobfuse2's last open file: `FOLDER FUSE_FD WORDS_FD`.

It says on WORDS_FD that it is ready, waits until a new mount is in the old one's place, sees that what was written is
stored (and says what came of it), and answers.
"""

import contextlib
import fcntl
import json
import logging
import os
import select
import sys
import threading
import time

from amlmount.afterlife.plan import LOCK, Plan
from amlmount.afterlife.serving import Server
from amlmount.errors import AmlmountError, BusyError
from amlmount.fuse.protocol import OUT_HEADER, NotifyCode
from amlmount.mounts import MountEntry, MountWatch, abort, canonical, topmost, waiting
from amlmount.recovery import Folder, read_folder
from amlmount.recovery.rescue import claimed, is_unsent, salvage_claimed
from amlmount.stores import open_store
from amlmount.stores.base import ObjectStore

log = logging.getLogger("amlmount.afterlife")
THREADS = 16
LOOK_EVERY_S = 0.5
STUCK_LOOKS = 4


class Words:
    """What is said to the daemon that started this, if that is still there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, line: str) -> None:
        """Say one line."""
        with contextlib.suppress(BrokenPipeError), open(self._descriptor, "wb", 0, closefd=False) as pipe:
            pipe.write(f"{line}\n".encode())


class Securing:
    """What was written and is held by nobody is sent, once, beside the answering."""

    def __init__(self, folder: Folder, names: set[str], words: Words) -> None:
        self._folder, self._names, self._words = folder, names, words
        self._done = threading.Event()
        self._is_sent = False

    def run(self) -> None:
        """Send it."""
        instance = self._folder.instance
        try:
            if instance.may_be_dirty:
                report = salvage_claimed(self._folder, held=self._names, resumed=True)
                self._is_sent = not is_unsent(report.files)
                self._words.say(json.dumps(report.to_json()))
        except (AmlmountError, OSError) as error:
            log.error("%s", error)
        finally:
            self._done.set()

    def wait(self) -> bool:
        """Return once that has been tried: whether all of it is in the store. The block cache has lost it."""
        self._done.wait()
        return self._is_sent


def main(folder_path: str, fuse_fd: int, words_fd: int) -> int:
    """Return 0 when the connection has ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    folder = read_folder(folder_path)
    if folder is None:
        return 1
    words = Words(words_fd)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_only_one(folder))
        except BlockingIOError:
            words.say("ready")  # another one of an earlier daemon waits already, and will serve it
            return 0
        stack.enter_context(_patiently_claimed(folder))  # before anybody else may look through it
        plan = Plan.read(folder)
        words.say("ready")
        _wait_until_replaced(plan)
        _live(plan, folder, fuse_fd, words)
    return 0


def _live(plan: Plan, folder: Folder, fuse_fd: int, words: "Words") -> None:
    opened: list[ObjectStore] = []
    lock = threading.Lock()

    def store() -> ObjectStore:
        with lock:
            if not opened:
                opened.append(open_store(folder.instance.store))
            return opened[0]

    server = Server(plan, folder, store, lambda: securing.wait())
    securing = Securing(folder, server.names, words)
    threading.Thread(target=securing.run, daemon=True).start()
    if plan.resends:
        os.write(fuse_fd, OUT_HEADER.pack(OUT_HEADER.size, NotifyCode.RESEND, 0))
    else:
        threading.Thread(target=_end_if_stuck, args=(plan, server, fuse_fd), daemon=True).start()
    threads = [threading.Thread(target=server.serve, args=(fuse_fd,), daemon=True) for _ in range(THREADS)]
    log.info("serving %d files that were open in %s", len(server.names), plan.target)
    for thread in threads:
        thread.start()
    words.say("serving")
    for thread in threads:
        thread.join()
    securing.wait()
    server.close()
    try:
        words.say(json.dumps(salvage_claimed(folder, resumed=True).to_json()))
    except AmlmountError as error:
        log.error("%s", error.message)


@contextlib.contextmanager
def _only_one(folder: Folder):  # type: ignore[no-untyped-def]
    fd = os.open(os.path.join(folder.path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _patiently_claimed(folder: Folder):  # type: ignore[no-untyped-def]
    """Claim the folder; somebody may just be looking through it."""
    with contextlib.ExitStack() as stack:
        while os.path.isdir(folder.path):
            try:
                stack.enter_context(claimed(folder))
                break
            except BusyError:
                time.sleep(LOOK_EVERY_S)
        yield


def _wait_until_replaced(plan: Plan) -> None:
    watch = MountWatch()
    try:
        while True:
            table = watch.read()
            top = topmost(table, canonical(plan.target, table))
            if top is None or top.mount_id != plan.mount_id:
                return
            watch.wait(60.0)
    finally:
        watch.close()


def _end_if_stuck(plan: Plan, server: Server, fuse_fd: int) -> None:
    """Without RESEND nobody can answer what the dead one had read: end the connection, so that its callers get errors.

    That is so if requests wait, none of them unread and none with us, again and again.
    """
    major, minor = plan.device
    entry = MountEntry(plan.mount_id, 0, major, minor, "/", plan.target, (), (), "fuse", "", ())
    looks, poller = 0, select.poll()
    poller.register(fuse_fd, select.POLLIN)
    while True:
        time.sleep(LOOK_EVERY_S)
        idle = not poller.poll(0) and not server.busy
        looks = looks + 1 if idle and (waiting(entry) or 0) > 0 else 0
        if looks >= STUCK_LOOKS:
            log.warning("ending the connection: requests were under way that only Linux 6.9 could send again")
            abort(entry)
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
