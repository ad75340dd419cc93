"""The connections to one origin, and the calls that wait for room on them; no I/O.

Calls are sent in order of arrival, by whoever makes room. Connects are coalesced: as long as nobody
knows how many streams the peer allows, one at a time; after that, as many as those who wait need.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import final

from .. import config
from .call import Call
from .connection import Connection
from .exchange import Origin, StreamError


@final
class OriginLine:
    """All there is for one origin."""

    def __init__(
        self, origin: Origin, settings: config.Pool, dial: Callable[[OriginLine], None]
    ) -> None:
        self.origin = origin
        self.connections: list[Connection] = []
        """Those that have not ended, oldest first: the first that has room is used."""
        self.resets_sent = 0
        """By connections that have ended."""
        self._settings = settings
        self._dial = dial  # begins to connect; that ends with `connected` or `not_connected`
        self._dialing = 0
        self._waiting: OrderedDict[Call, None] = OrderedDict()
        self._streams_max = 0  # what a connection has allowed; 0: nobody knows
        self._closed = False

    @property
    def waiting(self) -> int:
        """Calls that wait for room."""
        return len(self._waiting)

    # -- calls ---------------------------------------------------------------------------------

    def enter(self, call: Call, *, first: bool) -> None:
        """Send the call as soon as there is room; before all others if `first`."""
        if self._closed:
            call.fail(StreamError("the pool is closed", kind="unreachable"))
            return
        self._waiting[call] = None
        if first:
            self._waiting.move_to_end(call, last=False)
        self.on_room()

    def leave(self, call: Call) -> None:
        """The call does not wait any more."""
        self._waiting.pop(call, None)

    def close(self) -> None:
        """End every connection and fail every call."""
        self._closed = True
        self._fail_waiting("the pool is closed")
        for connection in self.connections:
            connection.close("the pool is closed")

    # -- connections ---------------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        """The connection begins; `on_room` follows when it is ready."""
        self._dialing -= 1
        self.connections.append(connection)
        if self._closed:
            connection.close("the pool is closed")

    def not_connected(self, reason: str) -> None:
        """Connecting failed."""
        self._dialing -= 1
        self._give_up(reason)

    def on_room(self) -> None:
        """Send what has room, then connect for what has not."""
        for connection in self.connections:
            if not self._waiting:
                return
            while self._waiting and connection.room > 0:
                call, _ = self._waiting.popitem(last=False)
                connection.open(call)
        while self._wants_connection():
            self._dialing += 1
            self._dial(self)

    def on_lost(self, connection: Connection, reason: str) -> None:
        """A connection takes nothing more; its streams have been told."""
        self.resets_sent += connection.http2.resets_sent
        self.connections.remove(connection)
        if connection.http2.ready:
            self.on_room()
        else:
            self._give_up(reason)

    def is_spare(self, connection: Connection) -> bool:
        """There is another connection that could do its work."""
        return any(other is not connection and other.room > 0 for other in self.connections)

    # -- inside --------------------------------------------------------------------------------

    def _wants_connection(self) -> bool:
        """Whether those who wait need more connections than are on their way."""
        count = len(self.connections) + self._dialing
        if not self._waiting or self._closed or count >= self._settings.connections_max:
            return False
        for connection in self.connections:
            self._streams_max = connection.streams_max or self._streams_max
        coming = self._dialing + sum(not each.http2.ready for each in self.connections)
        wanted = ceil(len(self._waiting) / self._streams_max) if self._streams_max else 1
        return coming < wanted

    def _give_up(self, reason: str) -> None:
        """No connection came; calls that have no other to hope for fail."""
        hopes = any(not each.closing for each in self.connections)
        if not self._dialing and not hopes:
            self._fail_waiting(reason)

    def _fail_waiting(self, reason: str) -> None:
        host = self.origin.host
        while self._waiting:
            call, _ = self._waiting.popitem(last=False)
            call.fail(StreamError(f"no connection to {host}: {reason}", kind="unreachable"))
