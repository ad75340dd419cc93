"""The write side of a student's socket: one owner, synchronous, bounded.

Everything that leaves on a student's socket passes through its `Outbox`: messages of coach.v1,
which it numbers, and the raw frames of the WebSocket library (handshake, pong, close), for which
`OutboxStream` stands in as the library's stream. So a pong or a close frame can never land inside
a half-written message, and a delta is written by the very call that decoded it: no task switch,
no queue, no lock. Only a socket that would block gets a task, for as long as it blocks.

Memory bound: `bytes_max` and one message (`Outbox` refuses what would come on top of a full
buffer), plus the kernel's socket buffer.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ..ops import metrics
from .wire import Error, ServerMessage, Welcome, encode

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

_CLOSE_OPCODE: Final = b"\x88"
_TOO_BIG: Final = struct.pack("!H", 1009)
_VIOLATIONS: Final = frozenset({1002, 1007})
"""Close codes for what breaks RFC 6455: frames that make no sense, text that is not UTF-8."""
PING_FRAME: Final = b"\x89\x00"
FLUSH_S_MAX: Final = 1.0
_SHORT_HEADERS: Final = tuple(bytes((0x81, size)) for size in range(126))


class Socket(Protocol):
    """What the outbox needs of a non-blocking socket."""

    def write_nowait(self, data: bytes | bytearray) -> int:
        """Write what fits now, 0 bytes or more; OSError when the connection is gone."""
        ...

    async def wait_writable(self) -> None:
        """Wait until `write_nowait` may take bytes again."""
        ...


class KernelSocket:
    """`Socket` over a file descriptor owned by a trio socket."""

    __slots__ = ("_socket",)

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self._socket = socket

    def write_nowait(self, data: bytes | bytearray) -> int:
        """See `Socket`. After the socket was closed: OSError, since its descriptor is -1."""
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0

    async def wait_writable(self) -> None:
        """See `Socket`."""
        await trio.lowlevel.wait_writable(self._socket)


class Outbox:
    """Numbers, frames and writes what goes to one student."""

    __slots__ = (
        "_buffer",
        "_bytes_max",
        "_closed",
        "_drained",
        "_nursery",
        "_on_end",
        "_seq",
        "_socket",
    )

    def __init__(
        self,
        socket: Socket,
        nursery: trio.Nursery,
        *,
        bytes_max: int,
        on_end: Callable[[str], None],
    ) -> None:
        """Write to `socket`; a blocked write is finished by a task in `nursery`.

        Args:
          socket: the student's.
          nursery: the session's; its end ends the writing.
          bytes_max: bytes that may wait for the socket.
          on_end: called once, synchronously, when nothing more can be written: with "slow_reader"
            (the buffer is full) or "lost" (the connection broke). It must not raise.
        """
        self._socket = socket
        self._nursery = nursery
        self._bytes_max = bytes_max
        self._on_end = on_end
        self._buffer = bytearray()  # what the kernel would not take, in order
        self._drained: trio.Event | None = None  # set by `_drain` as it ends; None: never blocked
        self._closed = False  # a close frame was written, or the connection is gone
        self._seq = 0

    @property
    def seq(self) -> int:
        """The last number given to a message."""
        return self._seq

    @property
    def pending(self) -> int:
        """Bytes that wait for the socket."""
        return len(self._buffer)

    @property
    def closed(self) -> bool:
        """True when nothing more will be written."""
        return self._closed

    def send(self, message: ServerMessage) -> None:
        """Number `message` and write it, or as much as the socket takes. Not a checkpoint.

        Never raises for the connection's sake: after its end messages are dropped, and `on_end`
        has been told.
        """
        if self._closed:
            return
        if type(message) is Error:
            metrics.client_errors_total.labels(message.code).inc()
        self._seq += 1
        message.seq = self._seq
        self._put(text_frame(encode(message)))

    def welcome(self, message: Welcome) -> None:
        """Write the one message that carries no number of its own."""
        self.write(text_frame(encode(message)))

    def ping(self) -> None:
        """Write a ping frame, so that a dead connection shows itself."""
        self.write(PING_FRAME)

    def write(self, data: bytes) -> None:
        """Write whole frames in order. Not a checkpoint; drops `data` after the end."""
        if not self._closed:
            self._put(data)

    def close(self, frame: bytes) -> None:
        """Write a close frame, after which nothing may follow. Not a checkpoint."""
        self.write(frame)
        self._closed = True

    def _put(self, data: bytes) -> None:
        if self._buffer:
            if len(self._buffer) + len(data) > self._bytes_max:
                self._end("slow_reader")
            else:
                self._buffer += data
            return
        try:
            written = self._socket.write_nowait(data)
        except OSError:
            self._end("lost")
            return
        if written < len(data):
            self._buffer += data[written:]
            self._drained = trio.Event()
            self._nursery.start_soon(self._drain, self._drained)

    def _end(self, reason: str) -> None:
        self._buffer.clear()
        if not self._closed:
            self._closed = True
            self._on_end(reason)

    async def _drain(self, drained: trio.Event) -> None:
        try:
            while self._buffer:
                await self._socket.wait_writable()
                written = self._socket.write_nowait(self._buffer)
                del self._buffer[:written]
        except (trio.ClosedResourceError, OSError):
            self._end("lost")
        finally:
            drained.set()

    async def flush(self) -> None:
        """Wait until everything written has left for the kernel, at most `FLUSH_S_MAX`."""
        await trio.lowlevel.checkpoint()
        if self._drained is not None:
            with trio.move_on_after(FLUSH_S_MAX):
                await self._drained.wait()

    def abandon(self) -> None:
        """Write nothing more: the socket is about to be closed. `on_end` is not called."""
        self._closed = True
        self._buffer.clear()


class OutboxStream(trio.abc.Stream):
    """The WebSocket library's stream: reads are the socket's, writes the outbox's."""

    def __init__(self, stream: trio.abc.Stream, outbox: Outbox) -> None:
        self._stream = stream
        self._outbox = outbox
        self._too_big = False  # what comes is the rest of a message that was refused
        self.received_at = trio.current_time()
        """When the student's side was last heard, on trio's clock."""
        self.ended = trio.Event()
        """Set once nothing more will be received."""
        self.websocket: WebSocketConnection | None = None
        """Whose stream this is, once it is open."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive from the socket.

        The library reads once more after it has refused an oversize message, and never again:
        then all that still comes is received here, and dropped.
        """
        try:
            data = await self._stream.receive_some(max_bytes)
            while data and self._too_big:
                data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise
        if not data:
            self.ended.set()
        self.received_at = trio.current_time()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Append to the outbox; returns before the bytes are on the wire.

        The library closes by itself after an oversize message: the error that explains it goes
        before the close frame.

        Raises:
          trio.BrokenResourceError: the connection is gone.
        """
        await trio.lowlevel.checkpoint()
        if self._outbox.closed:
            raise trio.BrokenResourceError("the student's connection is gone")
        frame = bytes(data)
        if frame[:1] != _CLOSE_OPCODE:
            self._outbox.write(frame)
            return
        if frame[2:4] == _TOO_BIG:
            self._too_big = True
            self._outbox.send(
                Error(code="too_large", message="message larger than server.message_bytes_max")
            )
        self._outbox.close(frame)

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: `send_all` never blocks."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Write out what waits, then close. Closes the socket also when cancelled.

        The library (0.12) closes without a close frame where the student's side has broken the
        protocol: it is written here.
        """
        reason = None if self.websocket is None else self.websocket.closed
        if reason is not None and reason.code in _VIOLATIONS:
            self._outbox.close(_CLOSE_OPCODE + struct.pack("!BH", 2, reason.code))
        try:
            await self._outbox.flush()
        finally:
            self.ended.set()
            self._outbox.abandon()
            await self._stream.aclose()


def text_frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented text frame (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        return _SHORT_HEADERS[size] + payload
    if size < 65_536:
        return struct.pack("!BBH", 0x81, 126, size) + payload
    return struct.pack("!BBQ", 0x81, 127, size) + payload
