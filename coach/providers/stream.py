"""What connections of HTTP/1.1 and HTTP/2 have in common: their streams, and who those belong to.

A connection takes bytes and calls handlers, and is asked for the bytes to be sent; no I/O, no
clock. `connection.py` gives it both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from .exchange import Header, StreamError

STREAM_WINDOW: Final = 2**24
"""Bytes of a response that may be on their way, or with a receiver that holds them."""


class ConnectionFailed(Exception):
    """The peer broke the protocol: its last words are in the output, nothing else will ever be."""


class Handler(Protocol):
    """Who a stream belongs to. `on_head` and `on_data` may raise: the stream is reset then."""

    active_at: float
    """When something last came, by the clock of whoever calls `receive`."""
    on_data: Callable[[bytes], None]

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        """The response begins."""

    def on_closed(self, error: Exception | None) -> None:
        """The last call: the response is whole, or why it never will be."""


class HttpStream:
    """A request whose response is not whole; only its connection changes it."""

    __slots__ = ("handler", "hold", "id", "responded", "window")

    def __init__(self, stream_id: int, handler: Handler, *, hold: bool) -> None:
        self.id = stream_id
        self.handler = handler
        self.hold = hold  # the handler says with `consumed` when it is done with bytes
        self.responded = False  # the head of the response was there
        self.window = STREAM_WINDOW  # what the peer may send before it gets more credit


class HttpConnection(Protocol):
    """The client's side of a connection: bytes in, calls of handlers and bytes out.

    Handlers are called within `receive`, `receive_end`, `abandon` and `reset`, and may call `open`
    and `reset`.
    """

    version: bytes
    """As httpx names it."""
    multiplexed: bool
    """Carries many streams, of which one can be reset without the others, and PING."""
    ready: bool
    """The peer's limits are known."""
    draining: bool
    """No stream can be opened any more."""
    streams_max: int
    """How many streams the peer allows at once; 0 until it is ready, and once it is draining."""
    resets_sent: int
    idle_s_max: float
    """How long the peer keeps the connection without streams, as far as it has said so."""

    @property
    def paused(self) -> bool:
        """The handler holds as much as it may: nothing is to be read until `consumed`."""

    @property
    def streams(self) -> Mapping[int, HttpStream]:
        """Every stream that is not closed, by id."""

    def begin(self) -> None:
        """Send what comes first."""

    def open(
        self, headers: Sequence[Header], body: bytes, handler: Handler, *, hold: bool = False
    ) -> HttpStream:
        """Send a request; there are fewer streams than `streams_max`."""

    def reset(self, stream: HttpStream) -> None:
        """Give a stream up; nothing more reaches its handler. A closed one stays as it is."""

    def consumed(self, stream: HttpStream, size: int) -> None:
        """The handler of a stream that has `hold` set is done with so many bytes."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def end(self) -> None:
        """Say goodbye: whatever is open is given up."""

    def take_output(self) -> bytes:
        """What is to be sent now."""

    def drained(self) -> None:
        """All output has gone: there may be more."""

    def receive(self, data: bytes, now: float) -> bool:
        """Take bytes; whether a handler got data.

        Raises:
          ConnectionFailed: the caller calls `abandon`.
        """

    def receive_end(self, now: float) -> None:
        """Nothing more will come."""

    def abandon(self, reason: str) -> None:
        """The connection is gone: tell every handler."""


def loss(stream: HttpStream, reason: str) -> StreamError:
    """The response will never be whole."""
    return StreamError(reason, kind="cut" if stream.responded else "unreachable")


def unprocessed(reason: str) -> StreamError:
    """The peer has surely not acted on the request."""
    return StreamError(reason, kind="unreachable", unprocessed=True)
