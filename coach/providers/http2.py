"""The client's side of an HTTP/2 connection, without I/O or clock.

`h2` reads and writes headers and control frames. DATA frames, which are nearly all that comes, are
parsed here: that costs a tenth of what `h2` would. So that both agree:

- `h2` never sees DATA. Its state machine is told of END_STREAM alone; its inbound windows stand
  still, and every WINDOW_UPDATE is made here, from our own count.
- `h2` never sees GOAWAY either: it would forget what it was about to send, and refuse the answers
  that a graceful GOAWAY still allows.

Inbound windows. A byte of DATA, padding included and whoever it was for, is owed to the connection
as soon as it has come, and to its stream as soon as its receiver has it. What is owed is given back
in steps of CREDIT_STEP: window + owed is always CONNECTION_WINDOW, or STREAM_WINDOW.

Memory: the unfinished frame (16 KiB), `h2`'s tables, and the request bodies still to be sent. A
receiver that keeps its bytes bounds them by `hold`: STREAM_WINDOW at most.

Source: RFC 9113.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, final

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

from .exchange import Header, StreamError

CONNECTION_WINDOW: Final = 2**30
STREAM_WINDOW: Final = 2**24
CREDIT_STEP: Final = 2**20
FRAME_BYTES_MAX: Final = 16_384
HEADER_LIST_BYTES_MAX: Final = 65_536
_INITIAL_WINDOW: Final = 65_535
_STREAM_ID_MAX: Final = 2**31 - 1

_HEAD: Final = struct.Struct(">HBBBL")  # length (24 bits), type, flags, stream
_HEAD_BYTES: Final = 9
_DATA, _HEADERS, _SETTINGS, _PUSH_PROMISE, _GOAWAY, _CONTINUATION = 0x0, 0x1, 0x4, 0x5, 0x7, 0x9
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8


class ConnectionFailed(Exception):
    """The peer broke the protocol; GOAWAY is in the output, and nothing else will ever be."""


class Handler(Protocol):
    """Who a stream belongs to. `on_head` and `on_data` may raise: the stream is reset then."""

    active_at: float
    """When something last came, by the clock of whoever calls `receive`."""
    on_data: Callable[[bytes], None]

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        """The response begins."""

    def on_closed(self, error: Exception | None) -> None:
        """The last call: the response is whole, or why it never will be."""


@final
class Http2Stream:
    """A stream that is not closed; only its connection changes it."""

    __slots__ = (
        "awaited",
        "body",
        "handler",
        "hold",
        "id",
        "owed",
        "pending",
        "received",
        "responded",
        "sent",
    )

    def __init__(self, stream_id: int, handler: Handler, body: bytes) -> None:
        self.id = stream_id
        self.handler = handler
        self.body = body
        self.sent = 0  # of the body
        self.responded = False  # the head of the response was there
        self.awaited: int | None = None  # the response's content-length
        self.received = 0  # bytes of its body
        self.pending: list[bytes] = []  # came in this wake-up, not yet handed on
        self.owed = 0  # see "Inbound windows"
        self.hold = False  # the handler says with `consumed` when it is done with bytes


@final
class Http2Connection:
    """Bytes in, calls of handlers and bytes out.

    Handlers are called within `receive`, `abandon` and `reset`, and may call `open` and `reset`.
    """

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
        self.failed = False
        self.resets_sent = 0
        self.owed = 0
        """Bytes of DATA that came and have not been given back to the connection's window."""
        self._uploads: dict[int, Http2Stream] = {}  # bodies that wait for a window, oldest first
        self._output = bytearray()  # frames made here; `h2` keeps its own
        self._rest = b""  # of the last frame
        self._in_headers = False  # a header block is unfinished: only CONTINUATION may come
        self._on_event: dict[type[Event], Callable[[Any, float], None]] = {
            ResponseReceived: self._on_response,
            StreamEnded: self._on_stream_ended,
            StreamReset: self._on_stream_reset,
            RemoteSettingsChanged: self._on_settings,
            WindowUpdated: self._on_window,
        }

    # -- what is sent --------------------------------------------------------------------------

    @property
    def streams_max(self) -> int:
        """How many streams the peer allows at once; 0 once nothing may be opened."""
        if self.draining or self.failed or not self.ready:
            return 0
        return self._h2.remote_settings.max_concurrent_streams

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

    def open(self, headers: Sequence[Header], body: bytes, handler: Handler) -> Http2Stream:
        """Send a request, its body as far as the windows allow.

        The caller has made sure that `streams_max` is above the number of streams.
        """
        stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream_id, headers, end_stream=not body)
        stream = Http2Stream(stream_id, handler, body)
        self.streams[stream_id] = stream
        if body:
            self._uploads[stream_id] = stream
            self._upload(stream)
        if stream_id + 2 > _STREAM_ID_MAX:
            self.draining = True
        return stream

    def reset(self, stream: Http2Stream, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        """Send RST_STREAM; nothing more reaches the handler. A closed stream stays as it is."""
        if self.streams.get(stream.id) is not stream:
            return
        self._forget(stream)
        if not self.failed:
            self._h2.reset_stream(stream.id, code)
            self.resets_sent += 1

    def consumed(self, stream: Http2Stream, size: int) -> None:
        """The handler of a stream that has `hold` set is done with so many bytes."""
        stream.owed += size
        self._settle(stream)

    def ping(self) -> None:
        """Send PING; its answer needs no attention: any byte that comes shows life."""
        self._h2.ping(b"coach\0\0\0")

    def end(self) -> None:
        """Send GOAWAY: whatever is open is given up."""
        if not self.failed:
            self.failed = True
            self._h2.close_connection()

    def take_output(self) -> bytes:
        """What is to be sent now: whole frames, in order."""
        data = self._h2.data_to_send()
        if self._output:
            data += self._output
            self._output.clear()
        return data

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

    def abandon(self, reason: str) -> None:
        """The connection is gone: tell every handler."""
        self.failed = True
        for stream in list(self.streams.values()):
            self._close(stream, _loss(stream, reason))

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
            if end > begin and self._take_data(stream, length, end - begin):
                if not stream.pending:
                    touched.append(stream)
                stream.pending.append(data[begin:end])
            elif length:
                stream.owed += length
            if flags & _END_STREAM:
                self._h2.streams[stream.id].state_machine.process_input(
                    StreamInputs.RECV_END_STREAM
                )
                self._ended(stream, now)
        return at

    def _take_data(self, stream: Http2Stream, length: int, size: int) -> bool:
        """Count DATA in; False where it cost its stream the life."""
        stream.received += size
        stream.owed += length if not stream.hold else length - size
        if not stream.responded:
            self._fail(stream, ErrorCodes.PROTOCOL_ERROR, "DATA before the head of the response")
            return False
        return True

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
        if stream.owed >= CREDIT_STEP:
            self._settle(stream)
