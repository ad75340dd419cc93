"""One request and its answer, whatever the protocol below: what the service and HTTP agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Headers = Sequence[tuple[bytes, bytes]]


class Work(Protocol):
    """What goes on for an exchange."""

    def cancelled(self, *, by_reset: bool) -> None:
        """The client gave the exchange up, by RST_STREAM or by losing the connection."""


class Exchange(Protocol):
    """A request that has arrived whole, and the means to answer it. Nothing here blocks.

    Everything may also be called after the client has gone; it then does nothing.
    """

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    """By lower-case name."""
    body: bytes
    too_large: bool
    """The body was longer than the limit and is not here."""
    work: Work | None
    """Told when the client gives up; set by whoever answers."""

    def start(self, status: int, headers: Headers) -> None:
        """Send the head of the answer."""

    def write(self, data: bytes) -> None:
        """Send a part of the body, as far as flow control permits; the rest follows by itself."""

    def end(self) -> None:
        """The answer is complete once everything written has gone."""

    def refuse(self) -> None:
        """Say that the request was not processed and may be tried again (REFUSED_STREAM)."""

    def reset(self) -> None:
        """Break the answer off (INTERNAL_ERROR)."""

    def abort(self) -> None:
        """Reset the TCP connection."""

    def go_away(self) -> None:
        """Refuse this request and every further one on the connection; let the others finish."""


class Outlet(Protocol):
    """Where a connection's bytes go: gathered, and sent together at the end of a turn."""

    blocked: bool
    """Bytes wait for the socket: hold back what can wait. `on_drained` follows."""

    def put(self, data: bytes) -> None:
        """Add bytes before encryption."""

    def close(self) -> None:
        """Close after what was put has gone."""

    def abort(self) -> None:
        """Reset the connection now; what was put is lost."""
