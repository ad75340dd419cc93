"""One TLS connection of the server: drained whole, written once a turn.

TLS runs over `ssl.MemoryBIO`, so that a wake-up takes every record that has arrived and everything
a turn has gathered leaves in one system call.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final

import trio

from .statistics import Statistics

READ_BYTES: Final = 256 * 1024
UNSENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""A peer that asks without reading is cut off at this many waiting bytes."""
HANDSHAKE_S_MAX: Final = 10.0


class Wire:
    """An accepted connection.

    `put` only gathers; whoever ends a turn calls `flush`, which never blocks. What the socket does
    not take is sent by `run_writer`.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        context: ssl.SSLContext,
        dirty: dict[Wire, None],
        statistics: Statistics,
    ) -> None:
        self.blocked = False
        self.on_drained: Callable[[], None] = lambda: None
        """Called when the socket has taken everything after it had blocked."""
        self._stream = stream
        self._fd = stream.socket.fileno()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._dirty = dirty
        # the wires that have something to flush
        self._statistics = statistics
        self._parts: list[bytes] = []
        # put, not yet encrypted
        self._unsent = bytearray()
        # encrypted, not yet taken by the socket
        self._wake = trio.Event()
        # set when the writer has something to do
        self._closing = False
        # no more is put; close when everything has gone
        self._ended = False
        # the socket is closed

    async def handshake(self) -> str | None:
        """Agree on keys; returns the protocol that ALPN chose.

        Raises:
          ssl.SSLError: the peer does not speak TLS, or does not trust us.
          trio.BrokenResourceError: it went away.
          trio.TooSlowError: it took longer than HANDSHAKE_S_MAX.
        """
        with trio.fail_after(HANDSHAKE_S_MAX):
            while not self._agreed():
                await self._stream.send_all(self._outgoing.read())
                data = await self._stream.receive_some(READ_BYTES)
                if not data:
                    raise trio.BrokenResourceError("closed in the handshake")
                self._incoming.write(data)
            await self._stream.send_all(self._outgoing.read())
        return self._tls.selected_alpn_protocol()

    async def receive(self) -> bytes:
        """Everything that has arrived, at least one byte; b"" when the peer has ended.

        Raises:
          ssl.SSLError, trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: it was aborted on this side.
        """
        while True:
            plain = self._decrypt()
            if plain is not None:
                return plain
            sealed = await self._stream.receive_some(READ_BYTES)
            if not sealed:
                return b""
            self._incoming.write(sealed)

    def put(self, data: bytes) -> None:
        """Add bytes before encryption; they leave with the next `flush`."""
        self._parts.append(data)
        self._dirty[self] = None

    def flush(self) -> None:
        """Encrypt what was put and hand it to the socket as far as that takes it."""
        if self._ended:
            self._parts.clear()
            return
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            try:
                self._tls.write(data)
            except ssl.SSLError:
                self.abort()  # the reader has met the same error, or is about to
                return
            sealed = self._outgoing.read()
            self._statistics.bytes_sent += len(sealed)
            if self._unsent:
                self._keep(sealed)
            else:
                self._send(sealed)
        if self._closing and not self._unsent:
            self._wake.set()

    def close(self) -> None:
        """Close once everything put has gone."""
        self._closing = True
        self._dirty[self] = None

    def abort(self) -> None:
        """Reset the TCP connection now; what was put is lost."""
        if not self._ended:
            self._ended = True
            self._unsent.clear()
            self._stream.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self._stream.socket.close()
            self._wake.set()

    async def run_writer(self) -> None:
        """Send what the socket did not take at once; returns when the connection is to close."""
        while not self._ended:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._unsent and not self._ended:
                try:
                    await trio.lowlevel.wait_writable(self._fd)
                except trio.ClosedResourceError:
                    return  # aborted meanwhile
                unsent, self._unsent = bytes(self._unsent), bytearray()
                self._send(unsent)
            if self.blocked and not self._ended:
                self.blocked = False
                self.on_drained()
            if self._closing and not self._unsent and not self._parts:
                return

    def shut(self) -> None:
        """Close at once, after a TLS close_notify if the socket takes it."""
        if self._ended:
            return
        if not self._unsent:
            with contextlib.suppress(ssl.SSLError, OSError):
                try:
                    self._tls.unwrap()
                finally:
                    os.write(self._fd, self._outgoing.read())
        self._ended = True
        self._stream.socket.close()

    def _agreed(self) -> bool:
        """Take the handshake as far as what has arrived permits; whether it is over."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def _decrypt(self) -> bytes | None:
        parts: list[bytes] = []
        while True:
            try:
                part = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                part = b""
            if not part:
                return b"".join(parts)
            parts.append(part)
        return b"".join(parts) if parts else None

    def _send(self, sealed: bytes) -> None:
        self._statistics.writes += 1
        try:
            sent = os.write(self._fd, sealed)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return
        if sent < len(sealed):
            self.blocked = True
            self._keep(sealed[sent:])
            self._wake.set()

    def _keep(self, sealed: bytes) -> None:
        self._unsent += sealed
        if len(self._unsent) > UNSENT_BYTES_MAX:
            self.abort()
