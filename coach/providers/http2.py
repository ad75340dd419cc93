"""The client's side of an HTTP/2 connection, without I/O or clock.

`h2` reads and writes headers and control frames. DATA frames, which are nearly all that comes, are
parsed here: that costs a tenth of what `h2` would. So that both agree:

- `h2` never sees DATA. Its state machine is told of END_STREAM alone; its inbound windows stand
  still, and every WINDOW_UPDATE is made here, from our own count.
- `h2` never sees GOAWAY either: it would forget what it was about to send, and refuse the answers
  that a graceful GOAWAY still allows.

Inbound windows. A byte of DATA, padding included and whoever it was for, is owed to the connection
as soon as it has come, and to its stream as soon as its receiver has it. What is owed is given back
in steps of CREDIT_STEP: window + owed is always CONNECTION_WINDOW, or (with what the receiver
holds) STREAM_WINDOW.

Patience. A frame that brings no data costs some, as does DATA without a byte; time, requests and
what is sent of their bodies bring it back. A peer that has used it up is cut off: nothing it may
send keeps this side busy for long (RFC 9113 section 10.5).

Memory: the unfinished frame (16 KiB), the unfinished header block (HEADER_BLOCK_BYTES_MAX), `h2`'s
tables (a header table of HEADER_TABLE_BYTES each way), UPLOAD_STEP of output beside control frames,
and the request bodies still to be sent. A
receiver that keeps its bytes bounds them by `hold`: STREAM_WINDOW at most.

Source: RFC 9113.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final, final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from h2.stream import StreamInputs
from hpack import Encoder

from .exchange import Header
from .stream import STREAM_WINDOW, ConnectionFailed, Handler, HttpStream, loss, unprocessed

CONNECTION_WINDOW: Final = 2**30
CREDIT_STEP: Final = 2**20
FRAME_BYTES_MAX: Final = 16_384
HEADER_LIST_BYTES_MAX: Final = 65_536
HEADER_BLOCK_BYTES_MAX: Final = 2 * HEADER_LIST_BYTES_MAX
"""Of a header block as it is sent: HPACK as a rule makes it smaller than the list."""
HEADER_TABLE_BYTES: Final = 4_096
"""Of ours, whatever the peer allows: hpack searches it from end to end for each header."""
UPLOAD_STEP: Final = 131_072
"""Of request bodies, at once: RST_STREAM never waits behind more than that."""
PATIENCE: Final = 10_000
PATIENCE_PER_S: Final = 1_000
PATIENCE_PER_REQUEST: Final = 8
"""For what a request or a frame of its body may bring in answers: heads, trailers, credit, RST."""
_SETTINGS_PRICE: Final = 10  # each is a walk through all streams
_LOW_WINDOW: Final = STREAM_WINDOW - CREDIT_STEP
_INITIAL_WINDOW: Final = 65_535
_STREAM_ID_MAX: Final = 2**31 - 1

_HEAD: Final = struct.Struct(">HBBBL")  # length (24 bits), type, flags, stream
_HEAD_BYTES: Final = 9
_DATA, _HEADERS, _SETTINGS, _PUSH_PROMISE, _GOAWAY, _CONTINUATION = 0x0, 0x1, 0x4, 0x5, 0x7, 0x9
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_WINDOW_UPDATE: Final = 0x8
_GOAWAY_BYTES_MIN: Final = 8
_LENGTH_DIGITS_MAX: Final = 18


@final
class Http2Stream(HttpStream):
    """A stream that is not closed; only its connection changes it."""

    __slots__ = ("awaited", "bodiless", "body", "held", "pending", "received", "sent")

    def __init__(
        self, stream_id: int, handler: Handler, body: bytes, *, hold: bool, bodiless: bool
    ) -> None:
        super().__init__(stream_id, handler, hold=hold)
        self.body = body
        self.sent = 0  # of the body
        self.bodiless = bodiless  # the answer to HEAD: its content-length announces nothing
        self.awaited: int | None = None  # the response's content-length
        self.received = 0  # bytes of its body
        self.pending: list[bytes] = []  # came in this wake-up, not yet handed on
        self.held = 0  # with a handler that has `hold` set

    @property
    def owed(self) -> int:
        """See "Inbound windows"."""
        return STREAM_WINDOW - self.window - self.held


@final
class Http2Connection:
    """An `HttpConnection`."""

    version = b"HTTP/2"
    multiplexed = True
    paused = False
    idle_s_max = inf

    def __init__(self) -> None:
        self._h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_inbound_headers=False,  # one odd header would cost every stream; see below
                normalize_inbound_headers=False,
            )
        )
        self.streams: dict[int, Http2Stream] = {}
        """Every stream that is not closed, by id."""
        self.ready = False
        """The peer's SETTINGS are known."""
        self.draining = False
        """No stream can be opened any more: GOAWAY, or the last id is used."""
        self.streams_max = 0
        """How many streams the peer allows at once; 0 while none may be opened."""
        self.failed = False
        self.resets_sent = 0
        self.owed = 0
        """Bytes of DATA that came and have not been given back to the connection's window."""
        self._uploads: dict[int, Http2Stream] = {}  # bodies that wait for a window, oldest first
        self._upload_room = UPLOAD_STEP  # until `drained`
        self._output = bytearray()  # frames made here; `h2` keeps its own
        self._rest = b""  # of the last frame
        self._in_headers = False  # a header block is unfinished: only CONTINUATION may come
        self._block_bytes = 0  # of that block
        self._patience = PATIENCE
        self._patient_since = inf  # when it was last brought back by time
        self._on_event: dict[type[Event], Callable[[Any, float], None]] = {
            ResponseReceived: self._on_response,
            StreamEnded: self._on_stream_ended,
            StreamReset: self._on_stream_reset,
            RemoteSettingsChanged: self._on_settings,
            WindowUpdated: self._on_window,
        }

    # -- what is sent --------------------------------------------------------------------------

    def begin(self) -> None:
        """Send the preface: our SETTINGS, and the connection's window."""
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEADER_LIST_BYTES_MAX,
            },
        )
        self._h2.initiate_connection()
        self._give_credit(0, CONNECTION_WINDOW - _INITIAL_WINDOW)

    def open(
        self, headers: Sequence[Header], body: bytes, handler: Handler, *, hold: bool = False
    ) -> Http2Stream:
        """Send a request, its body as far as the windows allow.

        The caller has made sure that `streams_max` is above the number of streams.
        """
        stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream_id, headers, end_stream=not body)
        # h2 would end the whole connection for one response's odd content-length; as the answer
        # to HEAD it leaves that header to us
        self._h2.streams[stream_id].request_method = b"HEAD"
        bodiless = (b":method", b"HEAD") in headers
        stream = Http2Stream(stream_id, handler, body, hold=hold, bodiless=bodiless)
        self.streams[stream_id] = stream
        self._calm()
        if body:
            self._uploads[stream_id] = stream
            self._upload(stream)
        if stream_id + 2 > _STREAM_ID_MAX:
            self._drain()
        return stream

    def reset(self, stream: HttpStream, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        """Send RST_STREAM; nothing more reaches the handler. A closed stream stays as it is."""
        own = self.streams.get(stream.id)
        if own is not stream:
            return
        self._forget(own)
        if not self.failed:
            self._send_reset(own, code)

    def consumed(self, stream: HttpStream, size: int) -> None:
        """The handler of a stream that has `hold` set is done with so many bytes."""
        own = self.streams.get(stream.id)
        if own is stream:
            own.held -= size
            self._settle(own)

    def ping(self) -> None:
        """Send PING; its answer needs no attention: any byte that comes shows life."""
        if not self.failed:
            self._h2.ping(b"coach\0\0\0")

    def end(self) -> None:
        """Send GOAWAY: whatever is open is given up."""
        if not self.failed:
            self._fail()
            self._h2.close_connection()

    def take_output(self) -> bytes:
        """What is to be sent now: whole frames, in order."""
        data = self._h2.data_to_send()
        if self._output:
            data = bytes(self._output) + data  # see `_give_credit`
            self._output.clear()
        return data

    def drained(self) -> None:
        """All output has gone: more of the bodies may follow."""
        self._upload_room = UPLOAD_STEP
        if self._uploads and not self.failed:
            self._upload_all()

    # -- what comes ----------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> bool:
        """Take bytes; call the handlers, each at most once with all its data.

        Args:
          data: one byte or more.
          now: for `active_at`.

        Returns:
          Whether a handler got data.

        Raises:
          ConnectionFailed: the peer broke the protocol. What came before that was handed on; the
            caller calls `abandon`.
        """
        if self._rest:
            data = self._rest + data
        touched: list[Http2Stream] = []
        try:
            self._rest = data[self._parse(data, touched, now) :]
            if self.owed > CONNECTION_WINDOW:
                raise self._violated(ErrorCodes.FLOW_CONTROL_ERROR, "more DATA than the window")
        finally:
            for stream in touched:
                if stream.pending:
                    self._deliver(stream, now)
        if self.owed >= CREDIT_STEP:
            self._give_credit(0, self.owed)
            self.owed = 0
        return bool(touched)

    def receive_end(self, now: float) -> None:
        """Nothing more will come; HTTP/2 has no answers that end this way."""

    def abandon(self, reason: str) -> None:
        """The connection is gone: tell every handler."""
        self._fail()
        for stream in list(self.streams.values()):
            self._close(stream, loss(stream, reason))

    def _parse(self, data: bytes, touched: list[Http2Stream], now: float) -> int:
        """Take every whole frame; returns where the first unfinished one begins."""
        unpack, find = _HEAD.unpack_from, self.streams.get
        at, size = 0, len(data)
        while size - at >= _HEAD_BYTES:
            high, low, kind, flags, stream_id = unpack(data, at)
            length = high << 8 | low
            if length > FRAME_BYTES_MAX:
                raise self._violated(ErrorCodes.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = at + _HEAD_BYTES + length
            if end > size:
                break
            if kind != _DATA or self._in_headers:
                self._control(kind, flags, data[at:end], now)
                at = end
                continue
            begin, at = at + _HEAD_BYTES, end
            self.owed += length
            stream = find(stream_id) or self._stream_of_data(stream_id)
            if stream is None:
                continue
            if flags & _PADDED:
                end = self._without_padding(data, begin, end)
                begin += 1
            stream.window -= length
            if end > begin and stream.responded and stream.window >= 0:
                stream.received += end - begin
                if stream.hold:
                    stream.held += end - begin
                if not stream.pending:
                    touched.append(stream)
                stream.pending.append(data[begin:end])
            else:
                self._odd_data(stream, length, flags, now)
            if flags & _END_STREAM and stream.id in self.streams:
                self._h2.streams[stream.id].state_machine.process_input(
                    StreamInputs.RECV_END_STREAM
                )
                self._ended(stream, now)
        return at

    def _odd_data(self, stream: Http2Stream, length: int, flags: int, now: float) -> None:
        """DATA that has nothing in it, or costs its stream the life."""
        if stream.window < 0:
            self._lose(stream, ErrorCodes.FLOW_CONTROL_ERROR, "more DATA than the window")
        elif length and not stream.responded:
            self._lose(stream, ErrorCodes.PROTOCOL_ERROR, "DATA before the head of the response")
        elif not flags & _END_STREAM:
            self._spend(1, now)

    def _stream_of_data(self, stream_id: int) -> Http2Stream | None:
        """Whose DATA it is, where that is not plain to see; None: nobody's any more."""
        stream_id &= _STREAM_ID_MAX  # the highest bit means nothing
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_was_open(stream_id)
        return stream

    def _check_was_open(self, stream_id: int) -> None:
        """DATA may still come for a stream that was reset here, for an idle one never."""
        if stream_id % 2 == 0 or stream_id > self._h2.highest_outbound_stream_id:
            raise self._violated(ErrorCodes.PROTOCOL_ERROR, f"DATA for idle stream {stream_id}")

    def _without_padding(self, data: bytes, begin: int, end: int) -> int:
        """Where the data of a padded frame ends; it begins one byte after `begin`."""
        if begin == end or data[begin] >= end - begin:
            raise self._violated(ErrorCodes.PROTOCOL_ERROR, "more padding than frame")
        return end - data[begin]

    def _deliver(self, stream: Http2Stream, now: float) -> None:
        pending = stream.pending
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        handler = stream.handler
        handler.active_at = now
        try:
            handler.on_data(data)
        except Exception as error:
            self._raised(stream, error)
            return
        if stream.window <= _LOW_WINDOW and stream.id in self.streams:
            self._settle(stream)

    def _ended(self, stream: Http2Stream, now: float) -> None:
        """END_STREAM has come."""
        if stream.pending:
            self._deliver(stream, now)
        if stream.id not in self.streams:
            return  # its handler raised, or reset it
        if not stream.responded:
            self._lose(stream, ErrorCodes.PROTOCOL_ERROR, "a response without a head")
            return
        if stream.id in self._uploads:  # answered without having heard all of the request
            self._send_reset(stream, ErrorCodes.CANCEL)
        short = stream.awaited is not None and stream.awaited != stream.received
        self._close(stream, loss(stream, "its length is not its content-length") if short else None)

    # -- control frames ------------------------------------------------------------------------

    def _control(self, kind: int, flags: int, frame: bytes, now: float) -> None:
        if not self.ready and (kind != _SETTINGS or flags & _ACK):
            raise self._violated(ErrorCodes.PROTOCOL_ERROR, "SETTINGS must come first")
        self._spend(_SETTINGS_PRICE if kind == _SETTINGS else 1, now)
        if kind == _GOAWAY and not self._in_headers:
            self._on_goaway(frame)
            return
        if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
            self._in_headers = not flags & _END_HEADERS
            self._block_bytes = len(frame) + (self._block_bytes if kind == _CONTINUATION else 0)
            if self._block_bytes > HEADER_BLOCK_BYTES_MAX:
                raise self._violated(ErrorCodes.ENHANCE_YOUR_CALM, "headers without an end")
        try:
            events = self._h2.receive_data(frame)
        except ProtocolError as error:
            self._fail()  # h2 has written GOAWAY
            raise ConnectionFailed(str(error)) from error
        for event in events:
            act = self._on_event.get(type(event))
            if act is not None:
                act(event, now)

    def _on_response(self, event: ResponseReceived, now: float) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        headers: list[Header] = [(bytes(name), bytes(value)) for name, value in event.headers]
        fields = dict(headers)
        status, length = fields.get(b":status", b""), fields.get(b"content-length")
        if not (len(status) == 3 and status.isdigit()):
            self._lose(stream, ErrorCodes.PROTOCOL_ERROR, "a response without a status")
            return
        if length is not None and not stream.bodiless and status not in (b"204", b"304"):
            if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
                self._lose(stream, ErrorCodes.PROTOCOL_ERROR, "content-length is not a number")
                return
            stream.awaited = int(length)
        stream.responded = True
        stream.handler.active_at = now
        try:
            stream.handler.on_head(
                int(status), [field for field in headers if not field[0].startswith(b":")]
            )
        except Exception as error:
            self._raised(stream, error)

    def _on_stream_ended(self, event: StreamEnded, now: float) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            self._ended(stream, now)

    def _on_stream_reset(self, event: StreamReset, now: float) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        if stream.pending:
            self._deliver(stream, now)
        if stream.id not in self.streams:
            return
        if event.error_code == ErrorCodes.REFUSED_STREAM and not stream.responded:
            self._close(stream, unprocessed("the provider refused the stream"))
        else:
            code = event.error_code
            name = code.name if isinstance(code, ErrorCodes) else str(code)
            self._close(stream, loss(stream, f"the provider reset the stream ({name})"))

    def _on_settings(self, event: RemoteSettingsChanged, now: float) -> None:
        del event
        h2 = self._h2
        if not self.ready:
            self.ready, self._patient_since = True, now
        if not self.draining:
            self.streams_max = h2.remote_settings.max_concurrent_streams
        self._limit_header_table(h2.encoder)
        self._upload_all()

    @staticmethod
    def _limit_header_table(encoder: Encoder) -> None:
        """Say of the table's sizes the smallest and the last (RFC 7541 section 4.2).

        hpack would say each, those too that a later SETTINGS has forbidden, and none at all where
        two in a row are the same: either costs the connection.
        """
        if encoder.header_table_size > HEADER_TABLE_BYTES:
            encoder.header_table_size = HEADER_TABLE_BYTES
        changes = encoder.table_size_changes
        if changes:
            encoder.table_size_changes = [min(changes), encoder.header_table_size]
            encoder.header_table.resized = True

    def _on_window(self, event: WindowUpdated, now: float) -> None:
        del now
        if not event.stream_id:
            self._upload_all()
        elif event.stream_id in self._uploads:
            self._upload(self._uploads[event.stream_id])

    def _on_goaway(self, frame: bytes) -> None:
        """No more streams; those above the last id were not processed, the others go on."""
        payload = frame[_HEAD_BYTES:]
        if len(payload) < _GOAWAY_BYTES_MIN:
            raise self._violated(ErrorCodes.FRAME_SIZE_ERROR, "GOAWAY is too short")
        last_id = int.from_bytes(payload[:4], "big") & _STREAM_ID_MAX
        self._drain()
        for stream in [each for each in self.streams.values() if each.id > last_id]:
            self._close(stream, unprocessed("the provider is closing the connection"))

    # -- helpers -------------------------------------------------------------------------------

    def _drain(self) -> None:
        self.draining = True
        self.streams_max = 0

    def _fail(self) -> None:
        self.failed = True
        self.streams_max = 0

    def _spend(self, price: int, now: float) -> None:
        """See "Patience"."""
        self._patience -= price
        if self._patience >= 0:
            return
        since, self._patient_since = self._patient_since, now
        self._patience += min(PATIENCE, int(max(0.0, now - since) * PATIENCE_PER_S))
        if self._patience < 0:
            raise self._violated(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames without data")

    def _calm(self) -> None:
        self._patience = min(PATIENCE, self._patience + PATIENCE_PER_REQUEST)

    def _upload_all(self) -> None:
        for stream in list(self._uploads.values()):
            if self._h2.outbound_flow_control_window <= 0 or self._upload_room <= 0:
                return
            self._upload(stream)

    def _upload(self, stream: Http2Stream) -> None:
        """Send of a body what the windows allow."""
        h2, body = self._h2, stream.body
        frame_max = min(h2.max_outbound_frame_size, FRAME_BYTES_MAX)
        while stream.sent < len(body):
            size = min(h2.local_flow_control_window(stream.id), frame_max, self._upload_room)
            if size <= 0:
                if self._upload_room <= 0:  # then it is another's turn
                    self._uploads[stream.id] = self._uploads.pop(stream.id)
                return
            part = body[stream.sent : stream.sent + size]
            stream.sent += len(part)
            self._upload_room -= len(part)
            self._calm()
            h2.send_data(stream.id, part, end_stream=stream.sent == len(body))
        del self._uploads[stream.id]
        stream.body = b""

    def _settle(self, stream: Http2Stream) -> None:
        """Give back what is owed to a stream, if it is worth a frame."""
        owed = stream.owed
        if owed >= CREDIT_STEP and not self.failed:
            self._give_credit(stream.id, owed)
            stream.window += owed

    def _give_credit(self, stream_id: int, size: int) -> None:
        """Send WINDOW_UPDATE; after what `h2` has written until now, such as the preface."""
        self._output += self._h2.data_to_send()
        self._output += _HEAD.pack(0, 4, _WINDOW_UPDATE, 0, stream_id) + size.to_bytes(4, "big")

    def _raised(self, stream: Http2Stream, error: Exception) -> None:
        """A handler raised: that costs its own stream alone."""
        self.reset(stream)
        stream.handler.on_closed(error)

    def _lose(self, stream: Http2Stream, code: ErrorCodes, reason: str) -> None:
        """The peer broke the rules of one stream."""
        self.reset(stream, code)
        stream.handler.on_closed(loss(stream, reason))

    def _close(self, stream: Http2Stream, error: Exception | None) -> None:
        self._forget(stream)
        stream.handler.on_closed(error)

    def _forget(self, stream: Http2Stream) -> None:
        del self.streams[stream.id]
        self._uploads.pop(stream.id, None)
        stream.pending.clear()

    def _send_reset(self, stream: Http2Stream, code: ErrorCodes) -> None:
        """Send RST_STREAM, unless the last of the stream has come: its data may just be read."""
        known = self._h2.streams.get(stream.id)
        if known is not None and not known.closed:
            self._h2.reset_stream(stream.id, code)
            # Forgotten now instead of at the next request: for a stream that is remembered as
            # reset, h2 takes an informational answer (1xx) for the end of the connection.
            _ = self._h2.open_outbound_streams
            self.resets_sent += 1

    def _violated(self, code: ErrorCodes, reason: str) -> ConnectionFailed:
        """End the connection with GOAWAY; the error is for raising."""
        self._fail()
        self._h2.close_connection(code)
        return ConnectionFailed(reason)
