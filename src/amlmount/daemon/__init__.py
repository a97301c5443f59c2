"""The daemon: `Options` say how it runs, `main` runs it, `plan_offline` answers a dry run when there is none.

Life cycle: parse -> validate -> run -> close, each a function of `life`; `process` holds what makes a process a daemon.
"""

from amlmount.daemon.life import Options, main, plan_offline

__all__ = ["Options", "main", "plan_offline"]
