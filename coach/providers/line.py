"""The connections to one origin, and the calls that wait for room on them; no I/O.

Calls are sent in order of arrival, by whoever makes room. Connects are coalesced: as long as nobody
knows how many streams the peer allows, one at a time; after that, as many as those who wait need.

Ahead of need: where the free share of all streams falls below `pool.room_percent`, one connection
is opened before anybody waits for it, and a configured provider has room for all that the others
carry: one of them may die at any moment. A connection that has served its time gets no more calls
as soon as another can take them, and ends with its last answer.

A peer that cannot be reached, or takes connections and ends them unused, is tried again after a
pause that grows; only a call that has no other connection to hope for tries at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import Final, final

import trio

from .. import config
from .call import Call
from .connection import Connection
from .exchange import Origin, StreamError

RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 30.0
"""The first and the longest pause after connecting has failed."""
YOUNG_S: Final = 2.0
"""A connection that ends unused before this age counts as one that has not come."""
LOAD_STEP: Final = 16
"""Streams by which a load is rounded up, and it is by a quarter: others are told of it seldom."""
CLOSED_DOORS_MAX: Final = 2
"""Connections on which the peer allows no stream at all, before no more are tried."""


@final
class OriginLine:
    """All there is for one origin."""

    def __init__(
        self,
        origin: Origin,
        settings: config.Pool,
        dial: Callable[[OriginLine], None],
        *,
        warm: bool = False,
        on_load: Callable[[], None] = lambda: None,
    ) -> None:
        self.origin = origin
        self.load = 0
        """Streams that would need another provider if this one died, somewhat rounded up;
        `on_load` is called when it has changed."""
        self.connections: list[Connection] = []
        """Those that have not ended, oldest first: the first that has room is used."""
        self.resets_sent = 0
        """By connections that have ended."""
        self._settings = settings
        self._dial = dial  # begins to connect; that ends with `connected` or `not_connected`
        self._dialing = 0
        self._waiting: OrderedDict[Call, None] = OrderedDict()
        self._streams_max = 0  # what a connection has allowed; 0: nobody knows
        self._warm = warm  # a connection is wanted also when nobody asks
        self._on_load = on_load
        self._standby = 0  # streams that there is to be room for: others' load
        self._failures = 0  # in a row, of connecting
        self._retry_at = 0.0  # see `retry_at`
        self._closed = False

    @property
    def waiting(self) -> int:
        """Calls that wait for room."""
        return len(self._waiting)

    @property
    def retry_at(self) -> float:
        """When `on_room` is to be called after a failure; in the past if there was none."""
        return self._retry_at

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

    def stand_by(self, streams: int) -> None:
        """Have room for so many more: whoever carries them may die."""
        if streams != self._standby:
            self._standby = streams
            self.on_room()

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
        self._failed(reason)

    def on_ready(self) -> None:
        """A connection can be used; `on_room` follows."""
        self._failures, self._retry_at = 0, 0.0

    def on_room(self) -> None:
        """Send what has room, then connect for what has not, or soon will not have."""
        serving = self._serving()
        for connection in serving:
            while self._waiting and connection.room > 0:
                call, _ = self._waiting.popitem(last=False)
                connection.open(call)
        while self._wants_connection(serving):
            self._dialing += 1
            self._dial(self)
        if len(serving) < len(self.connections):
            for connection in self.connections:
                if connection.aged and not connection.http.streams:
                    connection.close("it has served its time")
        self._measure_load()

    def on_lost(self, connection: Connection, reason: str) -> None:
        """A connection takes nothing more; its streams have been told."""
        self.resets_sent += connection.http.resets_sent
        self.connections.remove(connection)
        lived_s = trio.current_time() - connection.born_at
        if connection.used or (connection.http.ready and lived_s >= YOUNG_S):
            self.on_room()
        else:
            self._failed(reason)

    def is_spare(self, connection: Connection) -> bool:
        """The others could do its work, and have room enough."""
        others = [each for each in self._serving() if each is not connection]
        return any(each.room > 0 for each in others) and not self._is_short(others)

    # -- inside --------------------------------------------------------------------------------

    def _serving(self) -> list[Connection]:
        """Where calls are sent: connections that have served their time only if need be."""
        fresh = [each for each in self.connections if not each.aged]
        return fresh if any(each.streams_max for each in fresh) else self.connections

    def _wants_connection(self, serving: list[Connection]) -> bool:
        """Whether more connections are needed than are on their way."""
        count = len(self.connections) + self._dialing
        if self._closed or count >= self._settings.connections_max:
            return False
        open_ = [each for each in self.connections if not each.closing]
        if trio.current_time() < self._retry_at and not (self._waiting and not open_):
            return False
        if sum(each.http.ready and not each.streams_max for each in open_) >= CLOSED_DOORS_MAX:
            return False
        coming = self._dialing + sum(not each.http.ready for each in open_)
        if not self._waiting:
            return not coming and self._is_short(serving)
        for connection in serving:
            self._streams_max = connection.streams_max or self._streams_max
        wanted = ceil(len(self._waiting) / self._streams_max) if self._streams_max else 1
        return coming < wanted

    def _is_short(self, connections: list[Connection]) -> bool:
        """Whether less than the wanted share of these connections' streams is free."""
        most = sum(each.streams_max for each in connections)
        percent = self._settings.room_percent
        if not most or all(each.aged for each in connections):
            return self._warm or (
                percent > 0 and any(each.http.streams for each in self.connections)
            )
        room = sum(max(0, each.room) for each in connections)
        standby = self._standby if connections[0].http.multiplexed else 0
        return room < standby or room * 100 < most * percent

    def _measure_load(self) -> None:
        """Tell of a load that has grown, or shrunk to less than half of what was told."""
        streams = sum(len(each.http.streams) for each in self.connections)
        if self.load // 2 - LOAD_STEP <= streams <= self.load:
            return
        self.load = ceil(streams * 1.25) + LOAD_STEP if streams else 0
        self._on_load()

    def _failed(self, reason: str) -> None:
        """A connection has not come to anything."""
        pause_s = min(RETRY_S_MAX, RETRY_S * 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._retry_at = trio.current_time() + pause_s
        self._give_up(reason)

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
