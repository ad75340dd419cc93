"""The client's side of an HTTP/1.1 connection, without I/O or clock: for proxies without HTTP/2.

One request at a time, and the connection is kept for the next. `h11` does the work: such a
connection carries one answer, not a hundred.

A request that is given up takes its connection with it, since nothing else would stop the answer.
One that is lost before its answer began is not asked again: the server may have acted on it.

Memory: what `h11` holds of an unfinished head (HEAD_BYTES_MAX), and with a receiver that keeps its
bytes STREAM_WINDOW and one wake-up more: after that nothing is read until it has taken some.

Source: RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf
from typing import Final, final

import h11

from .exchange import Header
from .stream import ConnectionFailed, Handler, HttpStream, loss

HEAD_BYTES_MAX: Final = 65_536
EARLY_HEADS_MAX: Final = 100
"""Informational answers (1xx) before the one that counts."""
_KEEP_ALIVE_S: Final = re.compile(rb"(?:^|[,;\s])timeout=(\d{1,6})", re.IGNORECASE)
_WITH_BODY: Final = frozenset([b"POST", b"PUT", b"PATCH"])
"""Methods whose empty body is announced too (RFC 9110 section 8.6)."""


@final
class Http1Connection:
    """An `HttpConnection` of one stream at a time."""

    version = b"HTTP/1.1"
    multiplexed = False

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self.streams: dict[int, HttpStream] = {}
        """None or one."""
        self.ready = False
        self.draining = False
        self.streams_max = 0
        self.resets_sent = 0
        """Always 0: there is no such frame."""
        self.idle_s_max = inf
        self._next_id = 1
        self._early_heads = 0  # of the present answer
        self._output = bytearray()

    @property
    def paused(self) -> bool:
        """The handler holds as much as it may: nothing is to be read until `consumed`."""
        return any(stream.window <= 0 for stream in self.streams.values())

    # -- what is sent --------------------------------------------------------------------------

    def begin(self) -> None:
        """The first request may come; nothing is sent before it."""
        self.ready, self.streams_max = True, 1

    def open(
        self, headers: Sequence[Header], body: bytes, handler: Handler, *, hold: bool = False
    ) -> HttpStream:
        """Send a request, given as for HTTP/2; there is no other."""
        pseudo = {name: value for name, value in headers if name.startswith(b":")}
        fields = [(b"host", pseudo[b":authority"])]
        fields += [field for field in headers if not field[0].startswith(b":")]
        method = pseudo[b":method"]
        announced = any(name == b"content-length" for name, _ in fields)
        if not announced and (body or method in _WITH_BODY):
            fields.append((b"content-length", b"%d" % len(body)))
        request = h11.Request(method=method, target=pseudo[b":path"], headers=fields)
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            self._output += self._h11.send(event) or b""
        stream = HttpStream(self._next_id, handler, hold=hold)
        self._next_id += 1
        self._early_heads = 0
        self.streams[stream.id] = stream
        return stream

    def reset(self, stream: HttpStream) -> None:
        """Give the request up, and the connection with it."""
        if self.streams.get(stream.id) is stream:
            del self.streams[stream.id]
            self._drain()

    def consumed(self, stream: HttpStream, size: int) -> None:
        """The handler of a stream that has `hold` set is done with so many bytes."""
        stream.window += size

    def ping(self) -> None:
        """HTTP/1.1 has no such thing; see `tls.find_dead_peer`."""

    def end(self) -> None:
        """Nothing more will be sent; HTTP/1.1 has no word for it."""
        self._drain()

    def take_output(self) -> bytes:
        """What is to be sent now."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def drained(self) -> None:
        """All output has gone; there is no more of it."""

    # -- what comes ----------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> bool:
        """Take bytes; the handler is called with all its data at once.

        Returns:
          Whether it got some.

        Raises:
          ConnectionFailed: the peer broke the protocol. What came before that was handed on; the
            caller calls `abandon`.
        """
        if not self.streams:  # nobody has asked: a 408 from a server that wants to close, or worse
            self._drain()
            return False
        return self._advance(data, now)

    def receive_end(self, now: float) -> None:
        """Nothing more will come, which is how an answer without a length ends.

        Raises:
          ConnectionFailed: it was not such an answer.
        """
        if self.streams:
            self._advance(b"", now)
        self._drain()

    def abandon(self, reason: str) -> None:
        """The connection is gone: tell the handler."""
        self._drain()
        for stream in list(self.streams.values()):
            del self.streams[stream.id]
            stream.handler.on_closed(loss(stream, reason))

    # -- inside --------------------------------------------------------------------------------

    def _advance(self, data: bytes, now: float) -> bool:
        (stream,) = self.streams.values()
        parts: list[bytes] = []
        ended = False
        try:
            self._h11.receive_data(data)
            while not ended and stream.id in self.streams:
                event = self._h11.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                if isinstance(event, h11.Data):
                    parts.append(bytes(event.data))
                elif isinstance(event, h11.Response):
                    self._respond(stream, event, now)
                elif isinstance(event, h11.InformationalResponse):
                    self._count_early_head()
                else:  # EndOfMessage or ConnectionClosed
                    ended = True
        except h11.RemoteProtocolError as error:
            self._drain()
            raise ConnectionFailed(str(error)) from error
        finally:
            came = stream.id in self.streams and self._deliver(stream, b"".join(parts), now)
        if ended and stream.id in self.streams:
            self._ended(stream)
        return came

    def _respond(self, stream: HttpStream, response: h11.Response, now: float) -> None:
        stream.responded = True
        stream.handler.active_at = now
        headers = [(bytes(name), bytes(value)) for name, value in response.headers]
        for name, value in headers:
            if name == b"keep-alive" and (match := _KEEP_ALIVE_S.search(value)):
                self.idle_s_max = float(match[1])
        try:
            stream.handler.on_head(response.status_code, headers)
        except Exception as error:
            self._raised(stream, error)

    def _deliver(self, stream: HttpStream, data: bytes, now: float) -> bool:
        if not data:
            return False
        if stream.hold:
            stream.window -= len(data)
        stream.handler.active_at = now
        try:
            stream.handler.on_data(data)
        except Exception as error:
            self._raised(stream, error)
        return True

    def _ended(self, stream: HttpStream) -> None:
        """The answer is whole; the connection is kept if both sides are ready for another."""
        states = self._h11.states
        if states[h11.CLIENT] is h11.DONE and states[h11.SERVER] is h11.DONE and not self.draining:
            if self._h11.trailing_data[0]:  # an answer to nothing
                self._drain()
            else:
                self._h11.start_next_cycle()
        else:
            self._drain()
        del self.streams[stream.id]
        stream.handler.on_closed(None)

    def _count_early_head(self) -> None:
        self._early_heads += 1
        if self._early_heads > EARLY_HEADS_MAX:
            self._drain()
            raise ConnectionFailed("too many informational answers")

    def _raised(self, stream: HttpStream, error: Exception) -> None:
        self.reset(stream)
        stream.handler.on_closed(error)

    def _drain(self) -> None:
        self.draining, self.streams_max = True, 0
