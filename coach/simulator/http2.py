"""The server's side of an HTTP/2 connection, without I/O.

`h2` reads everything and writes the control frames and headers. DATA frames are made by hand,
which is most of what is sent: `h2` would cost more than the rest of the simulator. Its windows stay
the truth; what is sent by hand is subtracted from them.

Source: RFC 9113.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream

from .exchange import Exchange, Headers, Outlet, Work

BODY_BYTES_MAX: Final = 4 * 1024 * 1024
STREAM_WINDOW: Final = 1024 * 1024
CONNECTION_WINDOW: Final = 16 * 1024 * 1024
# Memory: a connection holds at most CONNECTION_WINDOW of unread request bodies beyond what its
# streams have taken, and a stream BODY_BYTES_MAX of one.
UNLIMITED: Final = 2**31 - 1


class Stream:
    """An exchange that is an HTTP/2 stream."""

    __slots__ = (
        "_connection",
        "_ending",
        "_flow",
        "_head",
        "_pending",
        "body",
        "body_parts",
        "headers",
        "id",
        "method",
        "open",
        "path",
        "received",
        "too_large",
        "work",
    )

    def __init__(self, connection: Http2Connection, stream_id: int, headers: Headers) -> None:
        self._connection = connection
        self.id = stream_id
        self.headers = dict(headers)
        self.method = self.headers.get(b":method", b"")
        self.path = self.headers.get(b":path", b"")
        self.body = b""
        self.body_parts: list[bytes] = []
        self.received = 0
        self.too_large = False
        self.work: Work | None = None
        self.open = True
        self._flow: H2Stream = connection.h2.streams[stream_id]
        # h2's record of the stream: its outbound window is spent here
        self._head = b"\0\0" + stream_id.to_bytes(4, "big")
        # of a DATA frame, after the length: type 0, no flags, stream
        self._pending = bytearray()
        # written, but not permitted to go yet
        self._ending = False

    def start(self, status: int, headers: Headers) -> None:
        """Send the head of the answer."""
        if self.open:
            self._connection.h2.send_headers(
                self.id, [(b":status", b"%d" % status), *headers], end_stream=False
            )
            self._connection.pass_on()

    def write(self, data: bytes) -> None:
        """Send a part of the body, or keep it until the windows allow."""
        if not self.open:
            return
        connection = self._connection
        h2, size = connection.h2, len(data)
        if (
            self._pending
            or connection.outlet.blocked
            or size > self._flow.outbound_flow_control_window
            or size > h2.outbound_flow_control_window
            or size > connection.frame_max
        ):
            self._pending += data
            connection.pump(self)
            return
        self._flow.outbound_flow_control_window -= size
        h2.outbound_flow_control_window -= size
        connection.outlet.put(size.to_bytes(3, "big") + self._head + data)

    def end(self) -> None:
        """End the answer after everything written."""
        if self.open:
            self._ending = True
            if not self._pending:
                self._finish()

    def refuse(self) -> None:
        """RST_STREAM(REFUSED_STREAM)."""
        self._reset(ErrorCodes.REFUSED_STREAM)

    def reset(self) -> None:
        """RST_STREAM(INTERNAL_ERROR)."""
        self._reset(ErrorCodes.INTERNAL_ERROR)

    def abort(self) -> None:
        """Reset the TCP connection."""
        self._connection.outlet.abort()

    def go_away(self) -> None:
        """GOAWAY that does not cover this stream."""
        self._connection.go_away(last_stream_id=max(0, self.id - 2))

    def pump(self) -> bool:
        """Send what is pending as far as the windows permit; whether all of it has gone."""
        connection, pending = self._connection, self._pending
        while pending and not connection.outlet.blocked:
            size = min(
                len(pending),
                self._flow.outbound_flow_control_window,
                connection.h2.outbound_flow_control_window,
                connection.frame_max,
            )
            if size <= 0:
                return False
            self._flow.outbound_flow_control_window -= size
            connection.h2.outbound_flow_control_window -= size
            connection.outlet.put(size.to_bytes(3, "big") + self._head + pending[:size])
            del pending[:size]
        if pending:
            return False
        if self._ending:
            self._finish()
        return True

    def gave_up(self, *, by_reset: bool) -> None:
        """The client reset the stream, or its connection is gone."""
        self._drop()
        work, self.work = self.work, None
        if work is not None:
            work.cancelled(by_reset=by_reset)

    def _finish(self) -> None:
        self._connection.h2.end_stream(self.id)
        self._connection.pass_on()
        self._drop()

    def _reset(self, code: ErrorCodes) -> None:
        if self.open:
            self._connection.h2.reset_stream(self.id, code)
            self._connection.pass_on()
            self._drop()

    def _drop(self) -> None:
        self.open = False
        self._pending.clear()
        self.body_parts.clear()
        self._connection.forget(self)


class Http2Connection:
    """Bytes in, bytes into the outlet, whole requests to `on_request`."""

    def __init__(
        self,
        outlet: Outlet,
        on_request: Callable[[Exchange], None],
        *,
        max_concurrent_streams: int,
    ) -> None:
        self.outlet = outlet
        self.h2 = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.frame_max = self.h2.max_outbound_frame_size
        self._on_request = on_request
        self._streams: dict[int, Stream] = {}
        # every stream that is not closed
        self._waiting: dict[int, Stream] = {}
        # those whose bytes wait for a window or for the socket, in the order they get their turn
        self._streams_max = max_concurrent_streams
        self._leaving = False

    def begin(self) -> None:
        """Send the preface: our SETTINGS and the connection's window."""
        values = {
            SettingCodes.MAX_CONCURRENT_STREAMS: self._streams_max,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: 65_536,
        }
        self.h2.local_settings = Settings(client=False, initial_values=dict(values))
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        # A stream above the limit is refused below; h2 would end the connection instead, although
        # a client may well open streams before it has seen our SETTINGS (RFC 9113, 5.1.2).
        values[SettingCodes.MAX_CONCURRENT_STREAMS] = UNLIMITED
        self.h2.local_settings = Settings(client=False, initial_values=dict(values))
        self.pass_on()

    def limit_streams(self, streams_max: int) -> None:
        """Tell the peer a new limit of concurrent streams; those open go on."""
        self._streams_max = streams_max
        code = int(SettingCodes.MAX_CONCURRENT_STREAMS)
        frame = b"\0\0\6\4\0\0\0\0\0" + code.to_bytes(2, "big") + streams_max.to_bytes(4, "big")
        self.outlet.put(frame)

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer; a protocol error ends the connection with GOAWAY."""
        try:
            events = self.h2.receive_data(data)
        except ProtocolError:
            self._end()
            return
        if any(isinstance(event, ConnectionTerminated) for event in events):
            self._end()
            return
        # h2 has read everything before the first event is handled: what was reset in these bytes
        # is already closed, and nothing may be sent there, whatever came before the reset.
        reset = {event.stream_id for event in events if isinstance(event, StreamReset)}
        for stream_id in reset:
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.gave_up(by_reset=True)
        for event in events:
            if isinstance(event, RequestReceived) and event.stream_id in reset:
                continue
            self._handle(event)
        self.pass_on()

    def drained(self) -> None:
        """The socket takes bytes again, or a window has grown."""
        for stream in list(self._waiting.values()):
            if self.outlet.blocked or self.h2.outbound_flow_control_window <= 0:
                return
            self.pump(stream)

    def lost(self) -> None:
        """The connection is gone."""
        for stream in list(self._streams.values()):
            stream.gave_up(by_reset=False)

    def go_away(self, last_stream_id: int) -> None:
        """Drop streams above `last_stream_id`, let the others finish, then close."""
        self._leaving = True
        for stream in list(self._streams.values()):
            if stream.id > last_stream_id:
                stream.gave_up(by_reset=False)
        frame = b"\0\0\x08\7\0\0\0\0\0" + last_stream_id.to_bytes(4, "big") + b"\0\0\0\0"
        self.outlet.put(frame)

    def pump(self, stream: Stream) -> None:
        """Give a stream its turn; it waits for another if not everything could go."""
        self._waiting.pop(stream.id, None)
        if not stream.pump():
            self._waiting[stream.id] = stream

    def forget(self, stream: Stream) -> None:
        """The stream is closed."""
        self._streams.pop(stream.id, None)
        self._waiting.pop(stream.id, None)
        if self._leaving and not self._streams:
            self.outlet.close()

    def pass_on(self) -> None:
        """What h2 has written goes out in its place among the frames made by hand."""
        data = self.h2.data_to_send()
        if data:
            self.outlet.put(data)

    def _end(self) -> None:
        """The protocol is over: whatever h2 has to say about that, then close."""
        self.pass_on()
        self.lost()
        self.outlet.close()

    def _handle(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._data(event)
        elif isinstance(event, WindowUpdated):
            if self._waiting:
                self.drained()
        elif isinstance(event, RequestReceived):
            self._request(event)
        elif isinstance(event, StreamEnded):
            stream = self._streams.get(event.stream_id)
            if stream is not None and not stream.too_large:
                self._deliver(stream)
        elif isinstance(event, RemoteSettingsChanged):
            self.frame_max = self.h2.max_outbound_frame_size
            self.drained()

    def _request(self, event: RequestReceived) -> None:
        if self._leaving or len(self._streams) >= self._streams_max:
            self.h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._streams[event.stream_id] = Stream(self, event.stream_id, event.headers)

    def _data(self, event: DataReceived) -> None:
        size = event.flow_controlled_length
        stream = self._streams.get(event.stream_id)
        try:
            self.h2.acknowledge_received_data(size, event.stream_id)
        except StreamClosedError:
            return
        if stream is None or stream.too_large:
            return
        stream.received += len(event.data)
        stream.body_parts.append(event.data)
        if stream.received > BODY_BYTES_MAX:
            stream.too_large = True
            self._deliver(stream)

    def _deliver(self, stream: Stream) -> None:
        stream.body = b"" if stream.too_large else b"".join(stream.body_parts)
        stream.body_parts.clear()
        self._on_request(stream)
