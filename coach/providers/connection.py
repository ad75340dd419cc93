"""A connection with its tasks: a reader, a writer, and a watch for silence and age.

The reader calls the receivers: socket, frames, stream, receiver, without a switch of tasks. All
that is to be sent goes through one buffer, which the writer alone sends: whoever resets a stream
or opens one never waits for the socket.

Memory: what waits to be sent is at most http2.UPLOAD_STEP of bodies, the control frames of the
streams that the peer allows, and answers to its PINGs for SEND_S_MAX; a peer that is dead is found
out by a PING.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf
from typing import Final, Protocol, final

import trio

from .. import config
from .call import Call
from .exchange import Header, StreamError
from .http1 import Http1Connection
from .http2 import Http2Connection
from .stream import ConnectionFailed, HttpConnection, HttpStream
from .tls import Wire

CLOSE_S_MAX: Final = 0.5
"""For the last frames, once a connection is to be closed."""
SPARE_S_MAX: Final = 60.0
"""How long a connection without streams is kept beside others."""
SEND_S_MAX: Final = 30.0
"""For what is handed to the socket at once; it is at most some megabytes."""
AGE_SPREAD: Final = 0.2
"""Connections that were made together end their time over this share of it."""
KEEP_ALIVE_MARGIN_S: Final = 1.0
"""How long before the peer would close an idle connection it is left alone."""


class Owner(Protocol):
    """The line that a connection belongs to."""

    def on_ready(self) -> None:
        """The connection can be used; `on_room` follows."""

    def on_room(self) -> None:
        """There may be room for another stream, or need of another connection."""

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
        self.http: HttpConnection = Http1Connection() if wire.http1 else Http2Connection()
        self.born_at = trio.current_time()
        self.used = False
        """It has carried a request."""
        self.aged = False
        """It has served its time: another is to take its place."""
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
        self._ready = False  # and the owner knows
        self._resumed = trio.Event()  # a handler has taken some of what it holds
        self._quiet_since = self.born_at  # when something last came
        self._pinged_at: float | None = None  # and nothing has come since
        self._used_at = self.born_at  # when the last stream ended
        self._sending_since: float | None = None  # what the writer is about to send
        spread = AGE_SPREAD * random.random()  # noqa: S311  it hides nothing
        self._aged_at = self.born_at + settings.age_s_max * (1 - spread)

    @property
    def room(self) -> int:
        """How many streams may be opened now."""
        return self.streams_max - len(self.http.streams)

    @property
    def streams_max(self) -> int:
        """How many streams it may have at once; 0 before the peer has said so, and at its end."""
        if self._scope.cancel_called:
            return 0
        return min(self.http.streams_max, self._settings.streams_per_connection_max)

    @property
    def closing(self) -> bool:
        """It takes no streams any more."""
        return self._scope.cancel_called or self.http.draining

    def open(self, call: Call) -> None:
        """Send a request; there is room."""
        request = call.request
        headers: list[Header] = [
            (b":method", request.method.encode()),
            (b":scheme", request.origin.scheme),
            (b":authority", request.origin.authority.encode()),
            (b":path", request.path.encode()),
            *request.headers,
        ]
        self.used = True
        call.sent(self, self.http.open(headers, request.body, call, hold=call.hold))
        self._flush()

    def reset(self, stream: HttpStream) -> None:
        """Send RST_STREAM(CANCEL), then give the slot to whoever waits for it.

        Over HTTP/1.1 the connection ends instead.
        """
        self.http.reset(stream)
        self._flush()
        self._settled()

    def consumed(self, stream: HttpStream, size: int) -> None:
        """Give a stream its window back."""
        self.http.consumed(stream, size)
        self._flush()
        self._resumed.set()

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
        self.http.begin()
        self._flush()
        self._settled()
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
        wire, http, on_batch, clock = self._wire, self.http, self._on_batch, trio.current_time
        try:
            while data := await wire.receive():
                self._quiet_since, self._pinged_at = wire.arrived_at, None
                open_before, max_before = len(http.streams), http.streams_max
                if http.receive(data, wire.arrived_at) and on_batch is not None:
                    on_batch(clock() - wire.arrived_at)
                self._flush()
                if (
                    len(http.streams) < open_before
                    or http.streams_max != max_before
                    or http.ready is not self._ready
                ):
                    self._settled()
                while http.paused:
                    self._resumed = trio.Event()
                    await self._resumed.wait()
            http.receive_end(wire.arrived_at)
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
                    self._sending_since = trio.current_time()
                    await self._wire.send(data)
                    if not self._unsent:
                        self.http.drained()
                        self._unsent += self.http.take_output()
                self._sending_since = None
                if self._ended:
                    return
                await self._wake.wait()
                self._wake = trio.Event()
        except trio.BrokenResourceError as error:
            self.close(f"the connection was lost: {error}")

    async def _watch(self, ready_by: float) -> None:
        """Find out what does not come: the peer's word, answers, and the end of its time."""
        while True:
            now = trio.current_time()
            if now >= ready_by and not self.http.ready:
                self.close("the provider did not begin the protocol")
                return
            due = min(
                self._end_stalled(now),
                self._ping_if_quiet(now),
                self._end_if_unread(now),
                self._end_if_idle(now),
                self._grow_old(now),
            )
            await trio.sleep_until(due if self.http.ready else min(due, ready_by))
            # Where it was this process that stood still, the reader looks first at what has come.
            await trio.lowlevel.checkpoint()

    def _ping_if_quiet(self, now: float) -> float:
        """See whether the peer still lives; when to look again."""
        if not self.http.multiplexed:
            return inf
        if self._pinged_at is not None:
            due = self._pinged_at + self._settings.pong_s_max
            if now < due:
                return due
            self.close(f"the provider answered no PING for {self._settings.pong_s_max:g} s")
            return inf
        due = self._quiet_since + self._settings.idle_ping_s
        if now < due:
            return due
        self._pinged_at = now
        self.http.ping()
        self._flush()
        return now + self._settings.pong_s_max

    def _end_if_unread(self, now: float) -> float:
        """See whether the peer takes what is sent; when to look again."""
        if self._sending_since is None:
            return now + SEND_S_MAX
        due = self._sending_since + SEND_S_MAX
        if now >= due:
            self.close(f"the provider read nothing for {SEND_S_MAX:g} s")
        return due

    def _end_if_idle(self, now: float) -> float:
        """Close what nobody needs, or the peer is about to close; when to look again."""
        if self.http.streams:
            return inf if self.http.multiplexed else now + KEEP_ALIVE_MARGIN_S
        if now >= self._used_at + SPARE_S_MAX and self._owner.is_spare(self):
            self.close("it is not needed any more")
        due = self._used_at + max(0.0, self.http.idle_s_max - KEEP_ALIVE_MARGIN_S)
        if now >= due:
            self.close("the provider will not keep it for longer")
        return min(due, max(now, self._used_at) + SPARE_S_MAX)

    def _grow_old(self, now: float) -> float:
        """Let another take its place in time; when to look again."""
        if self.aged:
            return inf
        if now >= self._aged_at:
            self.aged = True
            self._owner.on_room()
        return self._aged_at

    def _end_stalled(self, now: float) -> float:
        """Reset streams that have been silent for too long; when to look again."""
        head_s, stall_s = self._settings.response_head_s_max, self._settings.stall_s_max
        due = now + min(head_s, stall_s)
        for stream in list(self.http.streams.values()):
            if stream.window <= 0:
                continue  # it is our side that the peer waits for
            limit_s = stall_s if stream.responded else head_s
            silent_at = stream.handler.active_at + limit_s
            if silent_at > now:
                due = min(due, silent_at)
                continue
            what = "went silent" if stream.responded else "did not begin"
            error = StreamError(f"the answer {what} for {limit_s:g} s", kind="stalled")
            self.http.reset(stream)
            self._flush()
            stream.handler.on_closed(error)
            self._settled()
        return due

    # -- inside --------------------------------------------------------------------------------

    def _settled(self) -> None:
        """Streams have ended, or the peer's limits are new."""
        http = self.http
        if not http.streams:
            self._used_at = trio.current_time()
            if http.draining:
                self.close("the provider wanted it closed")
                return  # the owner hears of it by `on_lost`, and whether it was of any use
        if http.ready and not self._ready:
            self._ready = True
            self._owner.on_ready()
        self._owner.on_room()

    def _flush(self) -> None:
        """Hand what is to be sent to the writer."""
        data = self.http.take_output()
        if data:
            self._unsent += data
            self._wake.set()

    def _end(self) -> None:
        """Tell the peer, the streams and the owner; then the writer has a moment left."""
        http = self.http
        http.end()
        self._flush()
        http.abandon(self._reason)
        self._owner.on_lost(self, self._reason)
        self._ended = True
        self._wake.set()
        self._writing.deadline = trio.current_time() + CLOSE_S_MAX * http.multiplexed
