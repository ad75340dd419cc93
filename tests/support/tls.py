"""Certificates of a test's own, and clients that trust them."""

from __future__ import annotations

import ssl
from datetime import datetime
from pathlib import Path

import attrs
import trio
import trustme

from coach import config

NAME = "127.0.0.1"


@attrs.frozen
class Certificates:
    """Files of a server's certificate, and the authority that signed it."""

    folder: Path
    authority: trustme.CA = attrs.field(factory=trustme.CA)

    @property
    def server(self) -> config.Server:
        """Settings with these files, which `write` makes."""
        return config.Server(
            tls_certificate=str(self.folder / "cert.pem"), tls_key=str(self.folder / "key.pem")
        )

    def write(self, *, until: datetime | None = None) -> Certificates:
        """Make them, or others in their place; valid `until` then."""
        issued = self.authority.issue_cert(NAME, not_after=until)
        certificate, *chain = issued.cert_chain_pems
        certificate.write_to_path(str(self.folder / "cert.pem"))
        for each in chain:
            each.write_to_path(str(self.folder / "cert.pem"), append=True)
        issued.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        return self

    def spoil_key(self) -> None:
        """Leave something that is no key."""
        (self.folder / "key.pem").write_text("no key")

    def trust(self) -> ssl.SSLContext:
        """What a client trusts."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        return context

    async def connect(self, port: int) -> trio.SSLStream[trio.SocketStream]:
        """A connection whose handshake is done."""
        return await shake_hands(await trio.open_tcp_stream(NAME, port), self.trust())


async def shake_hands(
    stream: trio.SocketStream, trust: ssl.SSLContext
) -> trio.SSLStream[trio.SocketStream]:
    """TLS as a client on `stream`."""
    tls = trio.SSLStream(stream, trust, server_hostname=NAME, https_compatible=True)
    with trio.fail_after(10):
        await tls.do_handshake()
    return tls
