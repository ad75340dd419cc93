"""TLS over `ssl.MemoryBIO`: one wake-up takes every record that has arrived.

`trio.SSLStream` returns one record a call, so that a busy connection needs a turn of the loop for
each. Here the socket is read once, and everything in what came is decrypted at once.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, final

import trio

from .exchange import Origin

READ_BYTES: Final = 262_144
_RECORD_BYTES: Final = 16_384
"""The most that one TLS record holds (RFC 8446 section 5.1)."""
_PROTOCOL: Final = "h2"


class Wire(Protocol):
    """A byte stream to a provider. One task reads, one sends."""

    arrived_at: float
    """When the bytes that `receive` returned last were read from the socket."""

    async def receive(self) -> bytes:
        """Wait for bytes; all that has come, or none at the end. A checkpoint.

        Raises:
          trio.BrokenResourceError: the connection is lost.
        """

    async def send(self, data: bytes) -> None:
        """Send all of it. Cancelled, the wire is of no more use.

        Raises:
          trio.BrokenResourceError: the connection is lost.
        """

    async def aclose(self) -> None:
        """Close, without waiting for the peer."""


Dial = Callable[[Origin], Awaitable[Wire]]
"""Opens a connection. It raises OSError, or trio.BrokenResourceError, where that fails."""


def client_context(ca_file: str | None) -> ssl.SSLContext:
    """What is trusted; costly to make, so made once.

    Args:
      ca_file: PEM file of the authorities to trust instead of the system's.

    Raises:
      OSError: it cannot be read; ssl.SSLError, an OSError too: it is not PEM.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols([_PROTOCOL])
    return context


async def dial_tls(origin: Origin, context: ssl.SSLContext) -> Wire:
    """Connect, shake hands, and check that the peer speaks HTTP/2.

    Raises:
      OSError: no connection, a certificate that is not trusted, or another protocol.
      trio.BrokenResourceError: the peer went away.
    """
    stream = await trio.open_tcp_stream(origin.host, origin.port)
    wire = TlsWire(stream, context, origin.host)
    try:
        await wire.handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return wire


@final
class TlsWire:
    """A `Wire` over a TCP socket."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, host: str) -> None:
        self.arrived_at = 0.0
        self._stream = stream
        self._fd = stream.socket.fileno()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    async def handshake(self) -> None:
        """Shake hands.

        Raises:
          OSError: it failed.
          trio.BrokenResourceError: the peer went away.
        """
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            if self._outgoing.pending:
                await self._stream.send_all(self._outgoing.read())
            if not done:
                data = await self._stream.receive_some(READ_BYTES)
                if not data:
                    raise ConnectionResetError("the connection ended in the TLS handshake")
                self._incoming.write(data)
        if self._tls.selected_alpn_protocol() != _PROTOCOL:
            raise ConnectionRefusedError("the peer does not speak HTTP/2")

    async def receive(self) -> bytes:
        """Wait for bytes; see `Wire`."""
        try:
            while True:
                data = self._decrypted()
                if data is not None:
                    return data
                await trio.lowlevel.wait_readable(self._fd)
                try:
                    sealed = os.read(self._fd, READ_BYTES)
                except BlockingIOError:
                    continue
                self.arrived_at = trio.current_time()
                if not sealed:
                    return b""
                self._incoming.write(sealed)
        except OSError as error:  # ssl.SSLError is one
            raise trio.BrokenResourceError(str(error)) from error

    async def send(self, data: bytes) -> None:
        """Send all of it; see `Wire`."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error
        await self._stream.send_all(self._outgoing.read())

    async def aclose(self) -> None:
        """Close; see `Wire`."""
        await trio.aclose_forcefully(self._stream)

    def _decrypted(self) -> bytes | None:
        """Everything that can be read now; None: nothing yet; empty: the peer has ended."""
        read = self._tls.read
        parts: list[bytes] = []
        try:
            while part := read(_RECORD_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            return b"".join(parts) if parts else None
        except ssl.SSLZeroReturnError:
            pass
        return b"".join(parts)
