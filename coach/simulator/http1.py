"""The server's side of an HTTP/1.1 connection, without I/O: for clients whose ALPN lacks `h2`.

Source: RFC 9112; `h11` does the work, since nobody streams by the thousand over HTTP/1.1.
"""

from __future__ import annotations

from collections.abc import Callable

import h11

from .exchange import Exchange, Headers, Outlet, Work
from .http2 import BODY_BYTES_MAX


class Http1Connection:
    """Bytes in, bytes into the outlet, whole requests to `on_request`; itself the exchange."""

    def __init__(self, outlet: Outlet, on_request: Callable[[Exchange], None]) -> None:
        self._outlet = outlet
        self._on_request = on_request
        self._h11 = h11.Connection(h11.SERVER)
        self._parts: list[bytes] = []
        self._received = 0
        self._advancing = False
        # `_advance` is on the stack and will look for the next request itself
        self.method = b""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.too_large = False
        self.work: Work | None = None

    def begin(self) -> None:
        """The client speaks first."""

    def limit_streams(self, streams_max: int) -> None:
        """One exchange at a time is all there is."""

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer; a protocol error ends the connection."""
        try:
            self._h11.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError:
            self.lost()
            self._outlet.close()

    def drained(self) -> None:
        """Nothing is held back."""

    def lost(self) -> None:
        """The connection is gone."""
        work, self.work = self.work, None
        if work is not None:
            work.cancelled(by_reset=False)

    def start(self, status: int, headers: Headers) -> None:
        """Send the head of the answer."""
        self._send(h11.Response(status_code=status, headers=list(headers)))

    def write(self, data: bytes) -> None:
        """Send a part of the body; HEAD has none."""
        if self.method != b"HEAD":
            self._send(h11.Data(data=data))

    def end(self) -> None:
        """End the answer; the next request may come."""
        self._send(h11.EndOfMessage())
        if self._h11.our_state is h11.MUST_CLOSE:
            self._outlet.close()
        elif self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._advance()

    def refuse(self) -> None:
        """HTTP/1.1 knows no such thing: reset the connection."""
        self._outlet.abort()

    def reset(self) -> None:
        """Break the answer off by closing."""
        self._outlet.close()

    def abort(self) -> None:
        """Reset the TCP connection."""
        self._outlet.abort()

    def go_away(self) -> None:
        """Close without an answer."""
        self._outlet.close()

    def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            self._outlet.put(data)

    def _advance(self) -> None:
        """Handle what has arrived; requests that are answered at once do not nest."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._handle(self._h11.next_event()):
                pass
        finally:
            self._advancing = False

    def _handle(self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]) -> bool:
        """Whether there may be more to handle."""
        match event:
            case h11.Request():
                self.method, self.path = event.method, event.target
                self.headers = dict(event.headers)
                self._parts, self._received, self.too_large = [], 0, False
                if self._h11.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
            case h11.Data():
                self._received += len(event.data)
                self.too_large = self._received > BODY_BYTES_MAX
                if not self.too_large:
                    self._parts.append(bytes(event.data))
            case h11.EndOfMessage():
                self.body = b"" if self.too_large else b"".join(self._parts)
                self._parts = []
                self._on_request(self)
            case h11.ConnectionClosed():
                self._outlet.close()
                return False
            case _:
                return False
        return True
