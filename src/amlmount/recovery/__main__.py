"""Salvages the folders named as arguments, and says on standard output, a line a folder, what came of it."""

import contextlib
import json
import sys
from typing import Any

from amlmount.errors import AmlmountError
from amlmount.recovery.instances import read_folder
from amlmount.recovery.rescue import salvage_pending


def main(paths: list[str]) -> int:
    """Return 0 if nothing is left to do, 1 if something could not be done for now."""
    left = False
    for path in paths:
        folder = read_folder(path)
        if folder is None:
            continue
        try:
            report = salvage_pending(folder)
        except AmlmountError as error:
            _say({"folder": path, "error": error.to_json()})
            left = True
            continue
        if report is not None:
            _say(report.to_json())
            left |= report.pending
    return int(left)


def _say(data: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever started us has gone: the work goes on
        print(json.dumps(data), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
