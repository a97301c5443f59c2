"""The daemon's interface: HTTP and JSON over a unix socket. `routes` is the table, `server` listens.

To try it by hand: curl --unix-socket $XDG_RUNTIME_DIR/amlmount/amlmount.sock http://amlmount/v1/status
"""

from amlmount.api.figures import Figures
from amlmount.api.routes import Service, make_app
from amlmount.api.server import ApiServer

__all__ = ["ApiServer", "Figures", "Service", "make_app"]
