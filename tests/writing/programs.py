"""`python programs.py PATH`: programs that write to a mount until a line comes in; then says what should be there.

A process of its own: whoever starts a mount's workers must have nothing open in it.
"""

import json
import os
import random
import sys
import threading
import traceback
from hashlib import sha256

COUNT = 3


class Program(threading.Thread):
    """Does the same things over and over, with other names and contents, until told to stop."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(daemon=True)
        self.path, self.number = path, number
        self.random = random.Random(number)
        self.expected: dict[str, bytes] = {}
        self.stopping = threading.Event()
        self.error = ""
        self.rounds = 0

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.work(self.rounds)
                self.rounds += 1
        except BaseException:
            self.error = traceback.format_exc()

    def work(self, round_: int) -> None:
        """Write a file in pieces, sync and rename it, read it; change or remove another."""
        name, final = f"{self.path}/p{self.number}-{round_}.tmp", f"p{self.number}-{round_}"
        data = self.random.randbytes(self.random.randint(0, 30_000))
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for start in range(0, len(data), 4096):
            assert os.write(fd, data[start : start + 4096]) == len(data[start : start + 4096])
        os.fsync(fd)
        os.close(fd)
        os.rename(name, f"{self.path}/{final}")
        self.expected[final] = data
        with open(f"{self.path}/{final}", "rb") as file:
            assert file.read() == data
        if len(self.expected) > 5:
            self.change(self.random.choice(list(self.expected)))
        if round_ % 7 == 0:
            self.make_directory(round_)

    def change(self, victim: str) -> None:
        if self.random.random() < 0.5:
            os.unlink(f"{self.path}/{victim}")
            del self.expected[victim]
            return
        with open(f"{self.path}/{victim}", "r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            file.write(b"more")
        self.expected[victim] += b"more"

    def make_directory(self, round_: int) -> None:
        path = f"{self.path}/d{self.number}-{round_}"
        os.mkdir(path)
        with open(f"{path}/x", "wb") as file:
            file.write(b"x")
        os.rename(path, f"{path}-moved")
        os.unlink(f"{path}-moved/x")
        os.rmdir(f"{path}-moved")


def main() -> None:
    programs = [Program(sys.argv[1], number) for number in range(COUNT)]
    for program in programs:
        program.start()
    sys.stdin.readline()
    for program in programs:
        program.stopping.set()
    for program in programs:
        program.join()
    expected = {name: sha256(data).hexdigest() for program in programs for name, data in program.expected.items()}
    errors = [program.error for program in programs if program.error]
    print(json.dumps({"expected": expected, "errors": errors, "rounds": [program.rounds for program in programs]}))


if __name__ == "__main__":
    main()
