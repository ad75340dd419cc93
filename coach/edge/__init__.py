"""One port: WebSockets go to sessions, everything else to hypercorn, and neither can end the other.

`framing` cuts the bytes of a connection into requests and says where each goes; `server` is the
connection's task; `doors` counts who is in, `addresses` from where.
"""

from __future__ import annotations

from .addresses import Addresses
from .doors import Doors
from .framing import WEBSOCKET_PATH
from .server import Edge, EdgeConnection, Replay, install
from .tls import TlsStream, open_context

__all__ = [
    "WEBSOCKET_PATH",
    "Addresses",
    "Doors",
    "Edge",
    "EdgeConnection",
    "Replay",
    "TlsStream",
    "install",
    "open_context",
]
