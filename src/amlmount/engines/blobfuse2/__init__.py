"""Microsoft's blobfuse2 as an engine: what it does not do by itself is done around it.

`Blobfuse2Engine` is the engine, `find_binary` finds the program, `Places` says where its files go.
"""

from amlmount.engines.blobfuse2.binary import Binary, find_binary
from amlmount.engines.blobfuse2.engine import Blobfuse2Engine
from amlmount.engines.blobfuse2.places import Places

__all__ = ["Binary", "Blobfuse2Engine", "Places", "find_binary"]
