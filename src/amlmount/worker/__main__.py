"""`python -m amlmount.worker NAME FD`: FD is the inherited socket over which everything else comes."""

import os
import socket
import sys


def main() -> None:
    """Serve one mount and end with its exit code; started by an engine, of no use by hand."""
    from amlmount.worker.channel import Channel
    from amlmount.worker.serving import run

    try:
        sock = socket.socket(fileno=int(sys.argv[2]))
    except (IndexError, ValueError, OSError):
        sys.exit("amlmount.worker is started by amlmount itself; to mount something, use 'amlmount up'")
    os.set_inheritable(sock.fileno(), False)
    os.environ.pop("JOURNAL_STREAM", None)  # our starter's, perhaps; this worker has a log of its own
    sys.exit(run(Channel(sock)))


if __name__ == "__main__":
    main()
