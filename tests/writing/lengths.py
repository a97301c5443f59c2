"""How long the random tests of writing are: short in CI, in full with AMLMOUNT_TEST_WRITING=full."""

import os

FULL = os.environ.get("AMLMOUNT_TEST_WRITING") == "full"


def number(name: str, short: int, full: int) -> int:
    """Return AMLMOUNT_TEST_<name> if it is set, else what this run is."""
    return int(os.environ.get(f"AMLMOUNT_TEST_{name}", full if FULL else short))


STEPS = number("STEPS", 60, 400)  # operations of one random run
EXAMPLES = number("EXAMPLES", 8, 20)  # such runs
MOUNT_STEPS = number("MOUNT_STEPS", 120, 1000)  # operations of one run through the kernel
SEEDS = number("SEEDS", 1, 3)  # such runs
KILLS = number("KILLS", 6, 60)
FSX_STEPS = number("FSX", 150, 2000)
