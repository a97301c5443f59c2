"""The only module that starts processes: explicit environment, a deadline, evidence on failure.

Nothing here knows what is started; secrets must reach a process by descriptor or file, never in `argv`.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amlmount.errors import AmlmountError, WaitTimeoutError
from amlmount.procstat import stat_fields

DEVNULL = subprocess.DEVNULL
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TAIL_LINES = 5
ABANDON_AFTER_S = 1.0

# Children that ignored SIGKILL (D state below a hung file system): never waited for, collected when they do end.
_abandoned: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class Completed:
    """A process that has ended: `returncode` as in subprocess (negative = signal), and all it wrote."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, whatever bytes it holds."""
        return self.stdout.decode(errors="replace")

    @property
    def last_words(self) -> str:
        """Return the last lines it wrote, standard error first."""
        said = self.stderr.strip() or self.stdout.strip()
        return "\n".join(said.decode(errors="replace").splitlines()[-TAIL_LINES:])


def base_env(**extra: str) -> dict[str, str]:
    """Return the environment of a process that needs nothing of ours: PATH, HOME, plain messages, and `extra`."""
    env = {"PATH": os.environ.get("PATH", SYSTEM_PATH), "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"}
    return env | extra


def how_it_ended(returncode: int) -> str:
    """Say a return code as a person would: `exited with 1`, `was killed by SIGKILL`."""
    if returncode >= 0:
        return f"exited with {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
    check: bool = True,
) -> Completed:
    """Run `argv` to its end, in a process group of its own, with `env` (default `base_env()`) and nothing else.

    Raises AmlmountError if it cannot be started or (with `check`) does not exit 0, WaitTimeoutError after
    `timeout_s` seconds (the whole group is then killed, and abandoned if even that does not end it).
    """
    _collect_abandoned()
    pipe = subprocess.PIPE
    child = _popen(argv, env, pass_fds, cwd, stdin=DEVNULL if input is None else pipe, stdout=pipe, stderr=pipe)
    try:
        stdout, stderr = child.communicate(input, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill_and_abandon(child)
        raise WaitTimeoutError(f"cannot finish '{_shown(argv)}' within {timeout_s:g} s: killed") from None
    except BaseException:
        _kill_and_abandon(child)
        raise
    done = Completed(tuple(argv), child.returncode, stdout, stderr)
    if check and done.returncode != 0:
        raise failure(done)
    return done


def failure(done: Completed) -> AmlmountError:
    """Turn a process that failed into an error that carries the evidence: command, how it died, last lines."""
    message = f"cannot run '{_shown(done.argv)}': it {how_it_ended(done.returncode)}"
    details = {"argv": list(done.argv), "returncode": done.returncode, "last_words": done.last_words}
    return AmlmountError(message, hint=f"it said: {done.last_words}" if done.last_words else None, details=details)


@dataclass(slots=True)
class Process:
    """A child we started. `start_time` (field 22 of /proc/PID/stat) names it for ever; `pidfd` is readable at its end.

    Belongs to one thread. `close` gives up the descriptor, not the process.
    """

    pid: int
    pidfd: int
    start_time: int
    argv: tuple[str, ...]
    returncode: int | None = field(default=None)

    def poll(self) -> int | None:
        """Return the exit code if it has ended (and reap it), else None."""
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)
                if found is not None:
                    exited = found.si_code == os.CLD_EXITED
                    self.returncode = found.si_status if exited else -found.si_status
        return self.returncode

    def wait(self, timeout_s: float) -> int | None:
        """Wait at most `timeout_s` seconds for the end; None if it did not come."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and (left_s := deadline - time.monotonic()) > 0:
            waiter = select.poll()
            waiter.register(self.pidfd, select.POLLIN)
            waiter.poll(left_s * 1000)
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal to this very process; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def stop(self, *, term_s: float = 5.0, kill_s: float = 5.0) -> int | None:
        """SIGTERM, then after `term_s` seconds SIGKILL; None if it is still there `kill_s` seconds later."""
        self.send_signal(signal.SIGTERM)
        if self.wait(term_s) is None:
            self.send_signal(signal.SIGKILL)
        return self.wait(kill_s)

    def close(self) -> None:
        """Close the pidfd."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
    stderr: int = DEVNULL,
    cwd: str | None = None,
    new_session: bool = True,
    umask: int = -1,
) -> Process:
    """Start `argv` and return at once. Descriptors as in subprocess (an fd or DEVNULL; no pipes of its own).

    A descriptor in `pass_fds` keeps its number. `new_session=False` leaves it in our process group (Ctrl-C reaches it).
    `umask` -1 is ours. Raises AmlmountError if it cannot be started.
    """
    child = _popen(
        argv, env, pass_fds, cwd, new_session=new_session, umask=umask, stdin=stdin, stdout=stdout, stderr=stderr
    )
    pid = child.pid
    # The handle reaps the child; a Popen with no return code would complain, and poll, when it is collected.
    child.returncode = 0
    return Process(pid, os.pidfd_open(pid), start_time_ticks(pid) or 0, tuple(argv))


def start_time_ticks(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat (clock ticks since boot), None if there is no such process."""
    try:
        return int(stat_fields(pid)[19])
    except (OSError, IndexError, ValueError):
        return None


def is_same_process(pid: int, start_time: int) -> bool:
    """Say whether `pid` is (still) the process that was started at `start_time`, and not a zombie."""
    try:
        fields = stat_fields(pid)
        return int(fields[19]) == start_time and fields[0] not in (b"Z", b"X")
    except (OSError, IndexError, ValueError):
        return False


def _popen(
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    pass_fds: Sequence[int],
    cwd: str | None,
    *,
    new_session: bool = True,
    umask: int = -1,
    stdin: int,
    stdout: int,
    stderr: int,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            env=dict(base_env() if env is None else env),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            start_new_session=new_session,
            umask=umask,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
    except FileNotFoundError as error:
        missing = error.filename or argv[0]
        raise AmlmountError(
            f"cannot run '{argv[0]}': {missing} is not there", hint="install it, or check PATH"
        ) from error
    except OSError as error:
        raise AmlmountError(f"cannot run '{argv[0]}': {error.strerror}") from error


def _kill_and_abandon(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.wait(ABANDON_AFTER_S)
    except subprocess.TimeoutExpired:
        _abandoned.append(child)
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _collect_abandoned() -> None:
    _abandoned[:] = [child for child in _abandoned if child.poll() is None]


def _shown(argv: Sequence[str]) -> str:
    return " ".join(argv)[:200]
