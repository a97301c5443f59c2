"""Numbers: `Timings` counts cheaply, `table` names every metric once, `text` writes them as Prometheus reads them.

Nothing here knows what is counted.
"""

from amlmount.metrics.flow import UPLOADS, Flow
from amlmount.metrics.timings import Timings

__all__ = ["UPLOADS", "Flow", "Timings"]
