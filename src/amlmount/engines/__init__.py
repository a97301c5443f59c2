"""The engines that serve mounts, behind the one interface of `engines.base`; `select_engine` picks one."""

from amlmount.engines.selection import select_engine

__all__ = ["select_engine"]
