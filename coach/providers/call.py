"""One request on its way through the pool: it waits, is sent, is answered, and ends; no I/O.

A call waits in its origin's line until a connection has room, and is then sent by whoever made the
room. Closing it is synchronous: RST_STREAM stands in the connection's output before the slot is
free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Protocol, final

import trio

from ..errors import CoachError
from .exchange import Header, Receiver, ReceiverFailed, StreamError, StreamRequest

if TYPE_CHECKING:
    from .connection import Connection
    from .stream import HttpStream


class Line(Protocol):
    """Where calls wait, and who is told how they go on."""

    def enter(self, call: Call, *, first: bool) -> None:
        """Send the call as soon as there is room; before all others if `first`."""

    def leave(self, call: Call) -> None:
        """The call does not wait any more."""


@final
class Call:
    """A `Handler` of one stream, and the handle that `Pool.open_stream` lends out as `Stream`."""

    def __init__(
        self, line: Line, request: StreamRequest, receiver: Receiver, *, wait_s: float, hold: bool
    ) -> None:
        self.request = request
        self.hold = hold
        self.active_at = 0.0
        self.responded = False
        """The head of the response was there."""
        self.http_version = b""
        """Of the connection that it was sent on, as httpx names it."""
        self.on_data: Callable[[bytes], None] = receiver.on_data
        self._receiver = receiver
        self._line = line
        self._wait_s = wait_s
        self._waits_until = inf  # while it stands in the line
        self._connection: Connection | None = None
        self._stream: HttpStream | None = None
        self._repeated = False  # sent for the second time, which is the last
        self._ended = False
        self._error: Exception | None = None
        self._changed = trio.Event()

    # -- for the one who asks ------------------------------------------------------------------

    async def wait_end(self) -> None:
        """Wait until the receiver has everything; returns at once if it has.

        Raises:
          StreamError: it never will.
          CoachError: the receiver raised it.
          ReceiverFailed: it raised something else, which is the cause.
        """
        while not self._ended:
            await self.wait_change()
        self._raise()

    async def wait_head(self) -> None:
        """Wait until `on_head` was called; raises like `wait_end`."""
        while not self._ended and not self.responded:
            await self.wait_change()
        self._raise()

    async def wait_sent(self) -> None:
        """Wait until a connection has taken the request; raises like `wait_end`."""
        while not self._ended and self._stream is None:
            await self.wait_change()
        self._raise()

    async def wait_change(self) -> None:
        """Wait until it is sent, answered, notified or ended; in the line not for ever."""
        with trio.CancelScope(deadline=self._waits_until):
            await self._changed.wait()
        if trio.current_time() >= self._waits_until:
            self._end(
                StreamError(f"no connection had room for {self._wait_s:g} s", kind="unreachable")
            )

    def notify(self) -> None:
        """Wake who waits in `wait_change`."""
        self._changed.set()
        self._changed = trio.Event()

    def consumed(self, size: int) -> None:
        """The receiver is done with so many bytes, where it was opened with `hold`."""
        if self._connection is not None and self._stream is not None:
            self.active_at = trio.current_time()  # the peer could not go on until now
            self._connection.consumed(self._stream, size)

    def close(self) -> None:
        """Give up what has not ended: RST_STREAM is on its way before the slot is free."""
        if self._ended:
            return
        connection, stream = self._connection, self._stream
        self._end(StreamError("it was given up", kind="cut" if self.responded else "unreachable"))
        if connection is not None and stream is not None:
            connection.reset(stream)

    # -- for the pool --------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Nothing more will happen."""
        return self._ended

    def enter(self, *, first: bool = False) -> None:
        """Stand in the line."""
        self._waits_until = trio.current_time() + self._wait_s
        self._line.enter(self, first=first)

    def sent(self, connection: Connection, stream: HttpStream) -> None:
        """The request is on its way."""
        self.active_at = trio.current_time()
        self._connection, self._stream = connection, stream
        self.http_version = connection.http.version
        self._waits_until = inf
        self.notify()

    def fail(self, error: Exception) -> None:
        """It will never be sent."""
        self._end(error)

    # -- as a handler of its stream ------------------------------------------------------------

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        """The response begins."""
        self.responded = True
        self._receiver.on_head(status, headers)
        self.notify()

    def on_closed(self, error: Exception | None) -> None:
        """The stream is closed; what the peer has not touched is sent once more."""
        self._connection = self._stream = None
        unprocessed = isinstance(error, StreamError) and error.unprocessed
        if unprocessed and not self._repeated and not self.responded:
            self._repeated = True
            self.enter(first=True)
            return
        if error is not None and not isinstance(error, CoachError):
            failed = ReceiverFailed(f"a receiver raised {type(error).__name__}")
            failed.__cause__ = error
            error = failed
        self._end(error)

    # -- inside --------------------------------------------------------------------------------

    def _end(self, error: Exception | None) -> None:
        if self._connection is None:
            self._line.leave(self)
        self._connection = self._stream = None
        self._waits_until = inf
        self._ended, self._error = True, error
        self.notify()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
