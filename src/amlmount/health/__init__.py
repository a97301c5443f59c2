"""Looking at mounts and their stores: what is asked, by whom, and what the answers mean. Import from here.

Nothing here decides what is done about it, and nothing waits for a mount: a child asks, and is abandoned if it hangs.
"""

from amlmount.health.judging import (
    FEW_REQUESTS,
    EngineTally,
    judge_answer,
    judge_clock,
    judge_credential,
    judge_disks,
    judge_errors,
    judge_place,
    judge_process,
    judge_store,
    judge_uploads,
)
from amlmount.health.prober import Answer, Prober
from amlmount.health.stores import StoreKey, StoreWatch, keys_of

__all__ = [
    "FEW_REQUESTS",
    "Answer",
    "EngineTally",
    "Prober",
    "StoreKey",
    "StoreWatch",
    "judge_answer",
    "judge_clock",
    "judge_credential",
    "judge_disks",
    "judge_errors",
    "judge_place",
    "judge_process",
    "judge_store",
    "judge_uploads",
    "keys_of",
]
