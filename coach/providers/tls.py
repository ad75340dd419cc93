"""TLS over `ssl.MemoryBIO`: one wake-up takes every record that has arrived.

`trio.SSLStream` returns one record a call, so that a busy connection needs a turn of the loop for
each. Here the socket is read once, and everything in what came is decrypted at once.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, final

import trio

from .exchange import Origin

READ_BYTES: Final = 262_144
_RECORD_BYTES: Final = 16_384
"""The most that one TLS record holds (RFC 8446 section 5.1)."""
_PROTOCOLS: Final = ["h2", "http/1.1"]
DEAD_PEER_S: Final = 5


class Wire(Protocol):
    """A byte stream to a provider. One task reads, one sends."""

    arrived_at: float
    """When the bytes that `receive` returned last were read from the socket."""
    http1: bool
    """The peer speaks HTTP/1.1 and no HTTP/2."""

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
    context.set_alpn_protocols(_PROTOCOLS)
    return context


async def dial_tls(origin: Origin, context: ssl.SSLContext) -> Wire:
    """Connect, shake hands, and learn which HTTP the peer speaks.

    Raises:
      OSError: no connection, no TLS, or a certificate that is not trusted; it says which.
      trio.BrokenResourceError: the peer went away.
    """
    stream = await trio.open_tcp_stream(origin.host, origin.port)
    wire = TlsWire(stream, context, origin.host)
    try:
        await wire.handshake()
    except ssl.SSLError as error:
        await trio.aclose_forcefully(stream)
        raise ConnectionRefusedError(_in_words(error)) from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    if wire.http1:
        find_dead_peer(stream)
    return wire


async def dial_plain(origin: Origin) -> Wire:
    """Connect without TLS, for HTTP/1.1 with a server on this machine.

    Raises:
      OSError: no connection.
    """
    stream = await trio.open_tcp_stream(origin.host, origin.port)
    find_dead_peer(stream)
    return PlainWire(stream)


def find_dead_peer(stream: trio.SocketStream) -> None:
    """Let the kernel find out within DEAD_PEER_S that the peer is gone, where nothing is pinged."""
    options = [(socket.SOL_SOCKET, "SO_KEEPALIVE", 1)]
    tcp = socket.IPPROTO_TCP
    options += [(tcp, "TCP_KEEPIDLE", 2), (tcp, "TCP_KEEPINTVL", 1), (tcp, "TCP_KEEPCNT", 3)]
    options += [(tcp, "TCP_USER_TIMEOUT", DEAD_PEER_S * 1_000)]
    for level, name, value in options:
        option = getattr(socket, name, None)  # not every system has them all
        if option is not None:
            stream.setsockopt(level, option, value)


def _in_words(error: ssl.SSLError) -> str:
    """What an operator can act on."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    reason = (error.reason or "").lower().replace("_", " ")
    if reason in ("wrong version number", "record layer failure", "http request"):
        return "what answers there does not speak TLS"
    if "alert" in reason:
        return f"it refused the TLS handshake: {reason}"
    return f"the TLS handshake failed: {reason or error}"


@final
class PlainWire:
    """A `Wire` over a TCP socket in the clear."""

    http1 = True

    def __init__(self, stream: trio.SocketStream) -> None:
        self.arrived_at = 0.0
        self._stream = stream

    async def receive(self) -> bytes:
        """Wait for bytes; see `Wire`."""
        data = await self._stream.receive_some(READ_BYTES)
        self.arrived_at = trio.current_time()
        return bytes(data)

    async def send(self, data: bytes) -> None:
        """Send all of it; see `Wire`."""
        await self._stream.send_all(data)

    async def aclose(self) -> None:
        """Close; see `Wire`."""
        await trio.aclose_forcefully(self._stream)


@final
class TlsWire:
    """A `Wire` over a TCP socket."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, host: str) -> None:
        self.arrived_at = 0.0
        self.http1 = False
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
        # who answers nothing at all to ALPN does not know it, and so no HTTP/2 either
        self.http1 = self._tls.selected_alpn_protocol() != "h2"

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
