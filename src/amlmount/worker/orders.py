"""The messages between a worker and the process that started it, in the order in which they travel.

starter -> worker   start         what to serve (StartOrder); a pidfd comes with it if it is tied to a caller
worker -> starter   ready         the store answers; or error, and the worker ends
starter -> worker   serve         the mount's /dev/fuse descriptor and its estate come with it, and one of the mount
                                  if no path leads there yet; nothing if the worker is tied: then it mounts by itself
worker -> starter   negotiated    what INIT is about to agree on, before the kernel gets the answer
worker -> starter   serving       the kernel has its answer; a successor is about to read its first request
starter -> worker   ask           number, what (worker.controls knows the questions), with; at any time once it serves
worker -> starter   answer        number and result, or error
worker -> starter   news          an event that nobody asked for: kind, message, details; at any time once it serves
starter -> worker   exit          end now, whatever is still open (at any time)
"""

from dataclasses import asdict, dataclass
from typing import Any

from amlmount.config.spec import MountSpec
from amlmount.mounts.target import TargetPlan

START = "start"
READY = "ready"
ERROR = "error"
SERVE = "serve"
NEGOTIATED = "negotiated"
SERVING = "serving"
ASK = "ask"
ANSWER = "answer"
NEWS = "news"
EXIT = "exit"


@dataclass(frozen=True, slots=True)
class StartOrder:
    """What to serve. `tied`: the worker mounts, and takes mount and target away when its caller is gone.

    `negotiated` (`fuse.negotiate.Negotiated.to_json`): it takes the place of a worker that died; the store is not
    asked, for a mount that has been there is not taken away by a store that is not. `verbose` sets the level of the
    worker's log (its stderr).
    """

    spec: MountSpec
    negotiated: dict[str, int] | None = None
    tied: TargetPlan | None = None
    verbose: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the message body."""
        tied = asdict(self.tied) if self.tied else None
        spec = self.spec.model_dump(mode="json")
        return {"op": START, "spec": spec, "negotiated": self.negotiated, "tied": tied, "verbose": self.verbose}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "StartOrder":
        """Read a message body; raises KeyError, TypeError or pydantic's ValidationError for anything else."""
        tied = body["tied"]
        plan = TargetPlan(**(tied | {"created": tuple(tied["created"])})) if tied else None
        spec = MountSpec.model_validate(body["spec"])
        return cls(spec, negotiated=body["negotiated"], tied=plan, verbose=bool(body["verbose"]))
