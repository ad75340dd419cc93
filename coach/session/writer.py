"""The write side of a student's socket: one owner, synchronous, bounded.

Everything that leaves on a socket passes through its `Writer`: messages of coach.v1, which the
session's outbox numbers and frames, and the raw frames of the WebSocket library (handshake, pong,
close), for which `WriterStream` stands in as the library's stream. So a pong or a close frame can
never land inside a half-written message, and a delta is written by the very call that decoded it:
no task switch, no queue, no lock. Only a socket that would block gets a task, for as long as it
blocks.

Memory bound: `bytes_max` and one message (`Writer` refuses what would come on top of a full
buffer), plus the kernel's socket buffer.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, final

import trio
from wsproto.connection import ConnectionState

from .allowance import BYTES
from .wire import Error

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

    from .allowance import Allowance
    from .outbox import Outbox

_CLOSE_OPCODE: Final = b"\x88"
_PONG_OPCODE: Final = b"\x8a"
_TOO_BIG: Final = struct.pack("!H", 1009)
_VIOLATIONS: Final = frozenset({1002, 1007})
"""Close codes for what breaks RFC 6455: frames that make no sense, text that is not UTF-8."""
_CLOSE_SLOW: Final = _CLOSE_OPCODE + struct.pack("!BH", 2, 1013)
PING_FRAME: Final = b"\x89\x00"
FLUSH_S_MAX: Final = 1.0
PIECES_MAX: Final = 4_096
"""Pieces of one message, frames or parts of them as they came: empty ones are not bounded by its
size. 1,400-byte segments of the largest message are 750 at most."""


class Socket(Protocol):
    """What the writer needs of a non-blocking socket."""

    @property
    def owes(self) -> bool:
        """It has taken bytes that the kernel has not: `write_nowait`, also of nothing, goes on."""
        ...

    def write_nowait(self, data: bytes | bytearray) -> int:
        """Write what fits now, 0 bytes or more; OSError when the connection is gone."""
        ...

    async def wait_writable(self) -> None:
        """Wait until `write_nowait` may take bytes again."""
        ...


@final
class KernelSocket:
    """`Socket` over a file descriptor owned by a trio socket."""

    __slots__ = ("_socket",)

    owes: Final = False

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


@final
class Writer:
    """Writes whole frames to one student's socket, in order."""

    __slots__ = (
        "_buffer",
        "_bytes_max",
        "_closed",
        "_drained",
        "_limit",
        "_nursery",
        "_on_end",
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
          nursery: the connection's; its end ends the writing.
          bytes_max: bytes that may wait for the socket.
          on_end: called once, synchronously, when nothing more can be written: with "slow_reader"
            (the buffer is full; a close frame of code 1013 stands at its end) or "lost" (the
            connection broke). It must not raise.
        """
        self._socket = socket
        self._nursery = nursery
        self._bytes_max = bytes_max
        self._limit = bytes_max  # of `_buffer`: larger while a message larger than it leaves
        self._on_end = on_end
        self._buffer = bytearray()  # what the kernel would not take, in order
        self._drained: trio.Event | None = None  # set by `_drain` as it ends; None: never blocked
        self._closed = False  # a close frame was written, or the connection is gone

    @property
    def pending(self) -> int:
        """Bytes that wait for the socket."""
        return len(self._buffer)

    @property
    def closed(self) -> bool:
        """True when nothing more will be written."""
        return self._closed

    def write(self, data: bytes) -> None:
        """Write whole frames, or as much as the socket takes. Not a checkpoint.

        Never raises for the connection's sake: after its end `data` is dropped, and `on_end` has
        been told.
        """
        if self._closed:
            return
        if self._buffer or self._socket.owes:
            if len(self._buffer) + len(data) > self._limit:
                self._buffer += _CLOSE_SLOW
                self._end("slow_reader")
            else:
                self._buffer += data
            return
        try:
            written = self._socket.write_nowait(data)
        except OSError:
            self._end("lost")
            return
        if written < len(data) or self._socket.owes:
            self._buffer += data[written:]
            over = len(self._buffer) if len(self._buffer) > self._bytes_max else 0
            self._limit = self._bytes_max + over
            self._drained = trio.Event()
            self._nursery.start_soon(self._drain, self._drained)

    def ping(self) -> None:
        """Write a ping frame, so that a dead connection shows itself."""
        self.write(PING_FRAME)

    def close(self, frame: bytes) -> None:
        """Write a close frame, after which nothing may follow. Not a checkpoint."""
        self.write(frame)
        self._closed = True

    def _end(self, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._on_end(reason)

    async def _drain(self, drained: trio.Event) -> None:
        try:
            while self._buffer or self._socket.owes:
                await self._socket.wait_writable()
                written = self._socket.write_nowait(self._buffer)
                del self._buffer[:written]
        except (trio.ClosedResourceError, OSError):
            self._buffer.clear()
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


@final
class WriterStream(trio.abc.Stream):
    """The WebSocket library's stream: reads are the socket's, writes the writer's."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        writer: Writer,
        outbox: Outbox,
        allowance: Allowance,
        on_pieces: Callable[[], None],
    ) -> None:
        """Stand between the library and `stream`.

        Args:
          stream: the student's end.
          writer: writes to it.
          outbox: see below.
          allowance: what may be read.
          on_pieces: called once when a message has more than `PIECES_MAX` pieces; all that still
            comes is dropped. It is to close the connection with 1009.
        """
        self._stream = stream
        self._writer = writer
        self._allowance = allowance
        self._on_pieces = on_pieces
        self._too_big = False  # what comes is the rest of a message that was refused
        self.outbox = outbox
        """Numbers what is said about a message that was refused."""
        self.received_at = trio.current_time()
        """When the student's side was last heard, on trio's clock."""
        self.ended = trio.Event()
        """Set once nothing more will be received."""
        self.websocket: WebSocketConnection | None = None
        """Whose stream this is, once it is open."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive from the socket, no faster than the user's allowance has it.

        The library reads once more after it has refused an oversize message, and never again:
        then all that still comes is received here, and dropped.
        """
        if self.websocket is not None and len(self.websocket._message_parts) > PIECES_MAX:  # noqa: SLF001  the library counts bytes alone
            self._too_big = True
            self._on_pieces()
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
        await self._allowance.spend(len(data) / BYTES)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Hand to the writer; returns before the bytes are on the wire.

        The library closes by itself after an oversize message: the error that explains it goes
        before the close frame.

        Raises:
          trio.BrokenResourceError: the connection is gone.
        """
        await trio.lowlevel.checkpoint()
        if self._writer.closed:
            raise trio.BrokenResourceError("the student's connection is gone")
        frame = bytes(data)
        if frame[:1] == _PONG_OPCODE:
            await self._allowance.spend()
        if frame[:1] != _CLOSE_OPCODE:
            self._writer.write(frame)
            return
        if frame[2:4] == _TOO_BIG and not self._is_answered():
            self._too_big = True
            self.outbox.send(
                Error(
                    code="too_large",
                    message="message larger than server.message_bytes_max, or in too many pieces",
                )
            )
        self._writer.close(frame)

    def _is_answered(self) -> bool:
        """Whether the library's close frame answers the student's own."""
        return (
            self.websocket is not None and self.websocket._wsproto.state is ConnectionState.CLOSED  # noqa: SLF001  nothing else tells
        )

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
            self._writer.close(_CLOSE_OPCODE + struct.pack("!BH", 2, reason.code))
        try:
            await self._writer.flush()
        finally:
            self.ended.set()
            self._writer.abandon()
            await self._stream.aclose()
