"""TLS on the port itself: a stream over `ssl.MemoryBIO` that can also be written synchronously.

A token of feedback is written by the call that has decoded it, so that what is written to a
student's socket must never wait: `write_nowait` encrypts and hands to the kernel what it takes now.
What has been encrypted and not taken stays here, at most one record, and `owes` says so.

Memory of a connection: OpenSSL's own, some 17 KiB after the handshake, and one record.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, final

import trio

from .. import config
from ..errors import ConfigurationError

RECEIVE_BYTES: Final = 65_536
RECORD_BYTES: Final = 16_384
"""The most that one TLS record holds (RFC 8446 section 5.1)."""


class SpeaksPlainHttp(Exception):
    """The client has sent a request in the clear."""


def open_context(server: config.Server) -> ssl.SSLContext | None:
    """TLS as the settings say; None: the port is plain.

    Raises:
      ConfigurationError: a file cannot be used; one line that says which, and why.
    """
    if server.tls_certificate is None or server.tls_key is None:
        return None
    for name in ("tls_certificate", "tls_key"):
        path = Path(getattr(server, name))
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"server.{name}: cannot read {path}: {error.strerror}"
            ) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(server.tls_certificate, server.tls_key, password=_ask_nobody)
    except ssl.SSLError as error:
        raise ConfigurationError(_in_words(error, server)) from error
    return context


def _ask_nobody() -> NoReturn:
    """OpenSSL would ask on the terminal."""
    raise ConfigurationError(
        "server.tls_key: it is encrypted, and nobody is there to ask for its passphrase: "
        "openssl pkey -in KEY -out PLAIN, readable by coach alone"
    )


def _in_words(error: ssl.SSLError, server: config.Server) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"server.tls_key: {server.tls_key} is not the key of {server.tls_certificate}"
    if error.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        return f"server.tls_certificate: {server.tls_certificate} is too weak: {error.reason}"
    return (
        f"server.tls_certificate, server.tls_key: not PEM: {server.tls_certificate} must hold the "
        f"certificate and its chain, {server.tls_key} its private key"
    )


@final
class TlsStream(trio.abc.HalfCloseableStream):
    """The server's end of a TLS connection over a TCP socket.

    One task receives, one sends; or, in place of `send_all`, synchronous calls write.
    """

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        """Stand on `stream`; begin with `do_handshake`."""
        self.transport_stream = stream
        """What carries it."""
        self.socket = stream.socket
        """Whose bytes are sealed."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._sealed = bytearray()  # encrypted, and not taken by the kernel yet
        self._is_open = False  # from the handshake until we have said that nothing more comes
        self._is_sending = False

    @property
    def owes(self) -> bool:
        """Something that was written waits for the kernel still."""
        return bool(self._sealed)

    async def do_handshake(self) -> None:
        """Shake hands, the first time. The caller bounds it.

        Raises:
          SpeaksPlainHttp: the client does not speak TLS, but HTTP.
          trio.BrokenResourceError: it failed, or the client has gone.
        """
        await trio.lowlevel.checkpoint()
        while not self._is_open:
            try:
                self._tls.do_handshake()
                self._is_open = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                if error.reason == "HTTP_REQUEST":
                    raise SpeaksPlainHttp from error
                self._push_if_there()  # an alert says what was wrong
                raise trio.BrokenResourceError(str(error)) from error
            while self._outgoing.pending or self._sealed:
                self._write(b"")
                if self._sealed:
                    await self.wait_writable()
            if not self._is_open:
                await self._feed()

    def selected_alpn_protocol(self) -> str:
        """What is spoken; no other is offered."""
        return "http/1.1"

    # -- receiving -----------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what has come; nothing at the end, also where the client just went away.

        Raises:
          trio.BrokenResourceError: the connection is lost, or what came is not TLS.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while (data := self._opened(max_bytes or RECEIVE_BYTES)) is None:
            try:
                await self._feed()
            except _Ended:
                return b""
        await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    def _opened(self, max_bytes: int) -> bytes | None:
        """What can be read now; None: nothing yet."""
        try:
            return self._tls.read(max_bytes)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error
        finally:
            if self._outgoing.pending:  # an answer of TLS itself, as to new keys, or an alert
                self._push_if_there()

    async def _feed(self) -> None:
        sealed = await self.transport_stream.receive_some(RECEIVE_BYTES)
        if not sealed:
            raise _Ended("the client has gone")
        self._incoming.write(sealed)

    # -- sending -------------------------------------------------------------------------------

    def write_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Write what fits now, 0 bytes or more; what of it the kernel has not taken is `owed`.

        Raises:
          OSError: the connection is gone.
        """
        self._push()
        taken = 0
        while taken < len(data) and not self._sealed:
            taken += self._tls.write(memoryview(data)[taken : taken + RECORD_BYTES])
            self._push()
        return taken

    def _push(self) -> None:
        """Give the kernel what it takes.

        Raises:
          OSError: the connection is gone.
        """
        if self._outgoing.pending:
            self._sealed += self._outgoing.read()
        if self._sealed:
            with suppress(BlockingIOError):
                del self._sealed[: os.write(self.socket.fileno(), self._sealed)]

    def _push_if_there(self) -> None:
        """`_push`, where it is another's business that the client has gone."""
        with suppress(OSError):
            self._push()

    async def wait_writable(self) -> None:
        """Wait until the kernel takes more.

        Raises:
          trio.ClosedResourceError: it was closed meanwhile.
        """
        await trio.lowlevel.wait_writable(self.socket)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it. Cancelled, the stream is of no more use.

        Raises:
          trio.BusyResourceError: somebody else sends.
          trio.BrokenResourceError, trio.ClosedResourceError: the connection is gone.
        """
        if self._is_sending:
            raise trio.BusyResourceError("another task sends on this stream")
        self._is_sending = True
        try:
            await trio.lowlevel.checkpoint()
            taken = self._write(data)
            while taken < len(data) or self._sealed:
                await self.wait_writable()
                taken += self._write(memoryview(data)[taken:])
        finally:
            self._is_sending = False

    def _write(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self.write_nowait(data)
        except OSError as error:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError("this stream was closed") from error
            raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes more."""
        await self.wait_writable()

    async def send_eof(self) -> None:
        """Say that nothing more comes, if the kernel takes it now. Never waits for the client."""
        self._say_goodbye()
        await self.transport_stream.send_eof()

    def _say_goodbye(self) -> None:
        """Send close_notify (RFC 8446 section 6.1), without which an answer may seem cut off."""
        if not self._is_open:
            return
        self._is_open = False
        with suppress(ssl.SSLError):  # the client's own has not come yet
            self._tls.unwrap()
        self._push_if_there()

    async def aclose(self) -> None:
        """Close, without waiting for the client. Closes also when cancelled."""
        try:
            self._say_goodbye()
        finally:
            await self.transport_stream.aclose()


class _Ended(trio.BrokenResourceError):
    """The client has closed the connection below TLS."""
