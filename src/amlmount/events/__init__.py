"""What happened to mounts: the table of all kinds of event, the hub they all pass through, the file they are kept in.

Whoever has something to tell calls `EventHub.tell`; whoever wants to hear it, `EventHub.observe`.
"""

from amlmount.events import kinds
from amlmount.events.event import Event
from amlmount.events.file import EventFile
from amlmount.events.hub import EventHub
from amlmount.events.kinds import KINDS, Kind, Severity

__all__ = ["KINDS", "Event", "EventFile", "EventHub", "Kind", "Severity", "kinds"]
