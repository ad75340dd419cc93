"""A WebSocket client (RFC 6455) of little CPU, for many students in one process.

It stands on any trio stream, knows what a server of coach.v1 sends (whole text messages, pings,
close) and refuses the rest. A load generator shares the machine with what it measures: so
it does no more than it must. Memory: one read buffer of at most `MESSAGE_BYTES_MAX` for each
connection, empty most of the time.
"""

from __future__ import annotations

import base64
import os
import struct
from typing import Final, final

import trio

RECEIVE_BYTES: Final = 16_384
HEAD_BYTES_MAX: Final = 16_384
MESSAGE_BYTES_MAX: Final = 1 << 20

_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA
NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
ABNORMAL: Final = 1006
"""Close code of a connection that ended without one (RFC 6455 section 7.1.5)."""


class HandshakeRefused(Exception):
    """The server answered the upgrade with something else; `str` is its status line."""


class Closed(Exception):
    """The connection is closed; `code` says how."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


async def open_websocket(
    stream: trio.abc.Stream, *, host: str, path: str, subprotocol: str
) -> WebSocketClient:
    """Upgrade a connection. The stream stays the caller's, who closes it.

    Raises:
      HandshakeRefused: the server would not.
      trio.BrokenResourceError: the connection was lost.

    Cancellation: the stream is of no further use.
    """
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
    await stream.send_all(request.encode())
    received = bytearray()
    while b"\r\n\r\n" not in received:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data or len(received) > HEAD_BYTES_MAX:
            raise HandshakeRefused("no answer to the upgrade")
        received += data
    head, _, rest = bytes(received).partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    if status.split(" ")[1:2] != ["101"]:
        raise HandshakeRefused(status)
    headers = {name.strip().lower(): value.strip() for name, _, value in _fields(lines)}
    return WebSocketClient(stream, rest, headers.get("sec-websocket-protocol"))


def _fields(lines: list[str]) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in lines]


@final
class WebSocketClient:
    """An open WebSocket. One task receives; any may send."""

    def __init__(self, stream: trio.abc.Stream, received: bytes, subprotocol: str | None) -> None:
        self.subprotocol = subprotocol
        """What the server chose."""
        self._stream = stream
        self._buffer = bytearray(received)  # what is not yet a whole frame
        self._sending = trio.Lock()  # a frame goes out whole
        self._closed_code: int | None = None

    async def receive(self) -> bytes:
        """The next text message's bytes. Pings are answered on the way.

        Raises:
          Closed: the server has closed or lost the connection, or sent what it must not.

        Cancellation: no message is lost.
        """
        while True:
            frame = self._next_frame()
            if frame is None:
                try:
                    data = await self._stream.receive_some(RECEIVE_BYTES)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    data = b""
                if not data:
                    raise self._closed(ABNORMAL)
                self._buffer += data
                continue
            opcode, payload = frame
            if opcode == _TEXT:
                return payload
            if opcode == _PING:
                await self._send(_PONG, payload)
            elif opcode == _CLOSE:
                raise self._closed(struct.unpack("!H", payload[:2])[0] if payload else 1005)
            elif opcode != _PONG:
                raise self._closed(PROTOCOL_ERROR)

    async def send(self, text: bytes) -> None:
        """Send one text message, UTF-8.

        Raises:
          Closed: the connection is no more.
        """
        if self._closed_code is not None:
            raise Closed(self._closed_code)
        await self._send(_TEXT, text)

    async def close(self) -> None:
        """Say goodbye; what the server has still to say is left to `receive`. Never raises."""
        if self._closed_code is None:
            self._closed_code = NORMAL
            try:
                await self._send(_CLOSE, struct.pack("!H", NORMAL))
            except Closed:
                return

    async def _send(self, opcode: int, payload: bytes) -> None:
        async with self._sending:
            try:
                await self._stream.send_all(frame(opcode, payload))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise self._closed(ABNORMAL) from error

    def _closed(self, code: int) -> Closed:
        if self._closed_code is None:
            self._closed_code = code
        return Closed(self._closed_code)

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Take one whole frame out of the buffer; None: there is none yet.

        Raises:
          Closed: fragments, masked frames and messages beyond the limit are refused.
        """
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, length, begin = buffer[0], buffer[1], 2
        if not first & 0x80 or length & 0x80:
            raise self._closed(PROTOCOL_ERROR)
        if length >= 126:
            begin = 4 if length == 126 else 10
            if len(buffer) < begin:
                return None
            length = int.from_bytes(buffer[2:begin], "big")
        if length > MESSAGE_BYTES_MAX:
            raise self._closed(PROTOCOL_ERROR)
        end = begin + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[begin:end])
        del buffer[:end]
        return first & 0xF, payload


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame: whole and masked, as clients must (RFC 6455 section 5.3)."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65_536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    mask = os.urandom(4)
    # as one big number: a byte at a time would cost more than everything else here
    key = int.from_bytes((mask * (length // 4 + 1))[:length], "little")
    masked = (int.from_bytes(payload, "little") ^ key).to_bytes(length, "little")
    return head + mask + masked
