"""What the process is told: a file in the directory that was set aside. It holds no secret."""

import json
import os
from dataclasses import asdict, dataclass

from amlmount.afterlife.held import Held, View
from amlmount.recovery import Folder

NAME, LOCK = "afterlife.json", "afterlife.lock"


@dataclass(frozen=True, slots=True)
class Plan:
    """`target` and `mount_id`: what must not be the topmost mount any more before anything is answered.

    `resends`: the kernel sends again what the dead one had read (Linux 6.9).
    """

    target: str
    mount_id: int
    device: tuple[int, int]
    views: dict[int, View]
    held: dict[int, Held]
    resends: bool

    def write(self, folder: Folder) -> None:
        """Write it into the folder."""
        path = os.path.join(folder.path, NAME)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(asdict(self), file, ensure_ascii=False)

    @classmethod
    def read(cls, folder: Folder) -> "Plan":
        """Read what `write` wrote."""
        with open(os.path.join(folder.path, NAME), encoding="utf-8", errors="surrogateescape") as file:
            data = json.load(file)
        return cls(
            data["target"],
            data["mount_id"],
            (data["device"][0], data["device"][1]),
            {int(number): View(**view) for number, view in data["views"].items()},
            {int(node): Held(**held) for node, held in data["held"].items()},
            data["resends"],
        )
