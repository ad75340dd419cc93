"""An HTTP/2 connection with its tasks: a reader, a writer, and a watch for silence.

The reader calls the receivers: socket, frames, stream, receiver, without a switch of tasks. All
that is to be sent goes through one buffer, which the writer alone sends: whoever resets a stream
or opens one never waits for the socket.

Memory: what waits to be sent is at most the requests that the peer allows, each as far as its
windows go, and a peer that reads nothing is found out by two unanswered pings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, final

import trio
from h2.errors import ErrorCodes

from .. import config
from .call import Call
from .exchange import Header, StreamError
from .http2 import ConnectionFailed, Http2Connection, Http2Stream
from .tls import Wire

CLOSE_S_MAX: Final = 0.5
"""For the last frames, once a connection is to be closed."""
SPARE_S_MAX: Final = 60.0
"""How long a connection without streams is kept beside others."""


class Owner(Protocol):
    """The line that a connection belongs to."""

    def on_room(self) -> None:
        """There may be room for another stream."""

    def on_lost(self, connection: Connection, reason: str) -> None:
        """The connection takes nothing more; its streams have been told."""

    def is_spare(self, connection: Connection) -> bool:
        """There is another connection that could do its work."""


@final
class Connection:
    """One connection, from its first frame to its end."""

    def __init__(
        self,
        wire: Wire,
        settings: config.Pool,
        owner: Owner,
        on_batch: Callable[[float], None] | None,
    ) -> None:
        self.http2 = Http2Connection()
        self._wire = wire
        self._settings = settings
        self._owner = owner
        self._on_batch = on_batch
        self._scope = trio.CancelScope(shield=True)  # ended by its owner, never from outside
        self._unsent = bytearray()
        self._wake = trio.Event()  # of the writer
        self._writing = trio.CancelScope(shield=True)  # the writer may send what is last
        self._ended = False  # nothing more will be written
        self._reason = "the connection is closed"
        self._quiet_since = trio.current_time()  # when something last came, or PING was sent
        self._pinged = False  # and nothing has come since
        self._used_at = self._quiet_since  # when the last stream ended

    @property
    def room(self) -> int:
        """How many streams may be opened now."""
        return self.streams_max - len(self.http2.streams)

    @property
    def streams_max(self) -> int:
        """How many streams it may have at once; 0 before the peer has said so, and at its end."""
        if self._scope.cancel_called:
            return 0
        return min(self.http2.streams_max, self._settings.streams_per_connection_max)

    @property
    def closing(self) -> bool:
        """It takes no streams any more."""
        return self._scope.cancel_called or self.http2.draining

    def open(self, call: Call) -> None:
        """Send a request; there is room."""
        request = call.request
        headers: list[Header] = [
            (b":method", request.method.encode()),
            (b":scheme", b"https"),
            (b":authority", request.origin.authority.encode()),
            (b":path", request.path.encode()),
            *request.headers,
        ]
        call.sent(self, self.http2.open(headers, request.body, call, hold=call.hold))
        self._flush()

    def reset(self, stream: Http2Stream) -> None:
        """Send RST_STREAM(CANCEL), then give the slot to whoever waits for it."""
        self.http2.reset(stream)
        self._flush()
        self._settled()

    def consumed(self, stream: Http2Stream, size: int) -> None:
        """Give a stream its window back."""
        self.http2.consumed(stream, size)
        self._flush()

    def close(self, reason: str) -> None:
        """End it, with whatever is still open on it."""
        if not self._scope.cancel_called:
            self._reason = reason
            self._scope.cancel(reason)

    async def run(self, ready_by: float) -> None:
        """Serve the connection until it is lost or closed.

        Args:
          ready_by: when the peer's SETTINGS must have come.
        """
        self.http2.begin()
        self._flush()
        with self._writing:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                try:
                    with self._scope:
                        async with trio.open_nursery() as readers:
                            readers.start_soon(self._read)
                            readers.start_soon(self._watch, ready_by)
                finally:
                    self._end()
        with trio.CancelScope(shield=True):
            await self._wire.aclose()

    # -- the tasks -----------------------------------------------------------------------------

    async def _read(self) -> None:
        wire, http2, on_batch, clock = self._wire, self.http2, self._on_batch, trio.current_time
        try:
            while data := await wire.receive():
                self._quiet_since, self._pinged = wire.arrived_at, False
                open_before, max_before = len(http2.streams), http2.streams_max
                if http2.receive(data, wire.arrived_at) and on_batch is not None:
                    on_batch(clock() - wire.arrived_at)
                self._flush()
                if len(http2.streams) < open_before or http2.streams_max != max_before:
                    self._settled()
            self.close("the provider closed the connection")
        except trio.BrokenResourceError as error:
            self.close(f"the connection was lost: {error}")
        except ConnectionFailed as error:
            self.close(f"the provider broke the protocol: {error}")

    async def _write(self) -> None:
        try:
            while True:
                while self._unsent:
                    data = bytes(self._unsent)
                    self._unsent.clear()
                    await self._wire.send(data)
                if self._ended:
                    return
                await self._wake.wait()
                self._wake = trio.Event()
        except trio.BrokenResourceError as error:
            self.close(f"the connection was lost: {error}")

    async def _watch(self, ready_by: float) -> None:
        """Find out silence: of the peer, and within answers."""
        while True:
            now = trio.current_time()
            if now >= ready_by and not self.http2.ready:
                self.close("the provider did not begin the protocol")
                return
            due = min(self._end_stalled(now), self._ping_if_quiet(now))
            if self._is_spare(now):
                self.close("it is not needed any more")
            await trio.sleep_until(due if self.http2.ready else min(due, ready_by))

    def _ping_if_quiet(self, now: float) -> float:
        """See whether the peer still lives; when to look again."""
        ping_s = self._settings.idle_ping_s
        if now >= self._quiet_since + ping_s:
            if self._pinged:
                self.close("the provider does not answer")
            self._pinged, self._quiet_since = True, now
            self.http2.ping()
            self._flush()
        return self._quiet_since + ping_s

    def _end_stalled(self, now: float) -> float:
        """Reset streams that have been silent for too long; when to look again."""
        head_s, stall_s = self._settings.response_head_s_max, self._settings.stall_s_max
        due = now + min(head_s, stall_s)
        for stream in list(self.http2.streams.values()):
            if stream.window <= 0:
                continue  # it is our side that the peer waits for
            limit_s = stall_s if stream.responded else head_s
            silent_at = stream.handler.active_at + limit_s
            if silent_at > now:
                due = min(due, silent_at)
                continue
            what = "went silent" if stream.responded else "did not begin"
            error = StreamError(f"the answer {what} for {limit_s:g} s", kind="stalled")
            self.http2.reset(stream, ErrorCodes.CANCEL)
            self._flush()
            stream.handler.on_closed(error)
            self._settled()
        return due

    # -- inside --------------------------------------------------------------------------------

    def _settled(self) -> None:
        """Streams have ended, or the peer's limits are new."""
        if not self.http2.streams:
            self._used_at = trio.current_time()
            if self.http2.draining:
                self.close("the provider wanted it closed")
        self._owner.on_room()

    def _is_spare(self, now: float) -> bool:
        idle = not self.http2.streams and now >= self._used_at + SPARE_S_MAX
        return idle and self._owner.is_spare(self)

    def _flush(self) -> None:
        """Hand what is to be sent to the writer."""
        data = self.http2.take_output()
        if data:
            self._unsent += data
            self._wake.set()

    def _end(self) -> None:
        """Tell the peer, the streams and the owner; then the writer has a moment left."""
        self.http2.end()
        self._flush()
        self.http2.abandon(self._reason)
        self._owner.on_lost(self, self._reason)
        self._ended = True
        self._wake.set()
        self._writing.deadline = trio.current_time() + CLOSE_S_MAX
