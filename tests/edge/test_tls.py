"""TLS on the port: what it carries arrives, who does not speak it costs nobody else anything."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from trio_websocket import wrap_client_stream

from coach import config, edge
from coach.edge.tls import RECORD_BYTES
from coach.errors import ConfigurationError
from coach.session.outbox import text_frame
from coach.session.writer import Writer
from tests.edge.test_edge import GET, everything, upgrade
from tests.support.cancels import cancel_at_step
from tests.support.stack import until
from tests.support.tiny_app import Served, TinyApp, open_server
from tests.support.tls import Certificates, shake_hands

SERVER = config.Server(head_s_max=0.4)


def context_of(certificates: Certificates) -> ssl.SSLContext:
    context = edge.open_context(certificates.write().server)
    assert context is not None
    return context


# -- files -------------------------------------------------------------------------------------


def test_without_files_the_port_is_plain() -> None:
    assert edge.open_context(config.Server()) is None
    assert config.Server().scheme == "http"


def test_files_that_cannot_be_used_are_one_line_that_names_them(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    mine, theirs = Certificates(tmp_path).write(), Certificates(other).write()
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    sealed = tmp_path / "sealed.pem"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    sealed.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert mine.server.scheme == "https"
    for server, words in (
        ((tmp_path / "none.pem", key), "server.tls_certificate: cannot read"),
        ((certificate, tmp_path / "none.pem"), "server.tls_key: cannot read"),
        ((certificate, tmp_path), "server.tls_key: cannot read"),
        ((certificate, theirs.server.tls_key), "is not the key of"),
        ((text, key), "not PEM"),
        ((certificate, text), "not PEM"),
        ((certificate, sealed), "it is encrypted"),
    ):
        files = config.Server(tls_certificate=str(server[0]), tls_key=str(server[1]))
        with pytest.raises(ConfigurationError, match=words) as caught:
            edge.open_context(files)
        assert "\n" not in str(caught.value)


def test_one_file_without_the_other_is_refused() -> None:
    for name in ("CERTIFICATE", "KEY"):
        with pytest.raises(ConfigurationError, match="set both, or neither"):
            config.load(None, {f"COACH_SERVER__TLS_{name}": "x.pem"})


# -- the stream --------------------------------------------------------------------------------


def raw_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a connection whose kernel buffers are small."""
    ends = socket.socketpair()
    for each in ends:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    near, far = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in ends)
    return near, far


@asynccontextmanager
async def tls_pair(
    folder: Path, *, is_lenient: bool = True
) -> AsyncIterator[tuple[trio.SSLStream[trio.SocketStream], edge.TlsStream]]:
    """A client's end and the server's, their handshake done; both are closed in the end.

    A client that is not lenient wants to be told the end.
    """
    certificates = Certificates(folder)
    near, far = raw_pair()
    server = edge.TlsStream(far, context_of(certificates))
    client = trio.SSLStream(
        near, certificates.trust(), server_hostname="127.0.0.1", https_compatible=is_lenient
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            await server.do_handshake()
        yield client, server
    finally:
        await trio.aclose_forcefully(near)
        await trio.aclose_forcefully(far)


async def received(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.receive_some(100_000) or b"!" * size
    return bytes(data)


@pytest.mark.parametrize("size", [1, RECORD_BYTES, RECORD_BYTES + 1, 1_000_000])
async def test_what_is_sent_arrives_both_ways_at_once(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    async with tls_pair(tmp_path) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, data)
        nursery.start_soon(server.send_all, data)

        async def listen() -> None:
            assert await received(client, size) == data

        nursery.start_soon(listen)
        assert await received(server, size) == data


async def test_an_end_is_said_so_that_nothing_seems_cut_off(tmp_path: Path) -> None:
    for end in ("send_eof", "aclose"):
        async with tls_pair(tmp_path, is_lenient=False) as (client, server):
            await server.send_all(b"all")
            await getattr(server, end)()
            assert await client.receive_some() == b"all"
            assert await client.receive_some() == b"", "where a lost connection raises"
    async with tls_pair(tmp_path) as (client, server):
        await server.send_all(b"hello")
        assert await client.receive_some() == b"hello"
        await client.send_all(b"bye")
        await client.aclose()
        assert await received(server, 3) == b"bye"
        assert await server.receive_some() == b""


async def test_what_is_written_to_a_stalled_reader_waits_in_order_and_bounded(
    tmp_path: Path,
) -> None:
    async with tls_pair(tmp_path) as (client, server):
        sent = bytearray()
        while not server.owes:
            piece = b"%07d" % len(sent)
            assert server.write_nowait(piece) == 7
            sent += piece
        assert server.write_nowait(b"more") == 0
        assert len(server._sealed) < RECORD_BYTES + 512
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_push, server)
            assert await received(client, len(sent)) == sent
        large = b"x" * 1_000_000
        taken = server.write_nowait(large)
        assert 0 < taken < len(large)
        assert server.owes
        assert len(server._sealed) < RECORD_BYTES + 512
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_push, server)
            assert await received(client, taken) == large[:taken]


async def _push(server: edge.TlsStream) -> None:
    while server.owes:
        await server.wait_writable()
        assert server.write_nowait(b"") == 0


async def test_a_student_who_reads_slowly_is_shed_over_tls_too(tmp_path: Path) -> None:
    ends: list[str] = []
    async with tls_pair(tmp_path) as (client, server), trio.open_nursery() as nursery:
        writer = Writer(server, nursery, bytes_max=50_000, on_end=ends.append)
        frames = [text_frame(b"%06d" % number) for number in range(40_000)]
        for frame in frames:
            writer.write(frame)
        assert ends == ["slow_reader"]
        assert writer.pending <= 50_010
        data = bytearray()
        while not data.endswith(b"\x88\x02\x03\xf5"):
            data += await client.receive_some(100_000)
        whole = bytes(data[:-4])
        assert whole == b"".join(frames)[: len(whole)]
        assert len(whole) % len(frames[0]) == 0
        await writer.flush()
        assert writer.pending == 0


async def test_a_writer_whose_last_record_is_owed_goes_on_by_itself(tmp_path: Path) -> None:
    """All was taken, and a part of it only by TLS: nobody else would push it out."""
    async with tls_pair(tmp_path) as (client, server), trio.open_nursery() as nursery:
        writer = Writer(server, nursery, bytes_max=1_000_000, on_end=lambda _: None)
        sent = b""
        while not server.owes:
            sent += b"x" * 100
            writer.write(b"x" * 100)
        assert await received(client, len(sent)) == sent
        await writer.flush()
        assert not server.owes


async def test_a_lost_client_is_an_end_or_an_error_and_never_a_hang(tmp_path: Path) -> None:
    async with tls_pair(tmp_path) as (client, server):
        await server.send_all(b"hello")
        await client.receive_some()
        await trio.aclose_forcefully(client.transport_stream)
        assert await server.receive_some() == b""
        with pytest.raises(OSError, match="Broken pipe"):
            server.write_nowait(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await server.send_all(b"x")
        await server.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await server.send_all(b"x")
        with pytest.raises(OSError, match="Bad file"):
            server.write_nowait(b"x")
    async with tls_pair(tmp_path) as (client, server):
        await client.transport_stream.send_all(b"no record at all")
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()


async def test_cancelled_at_every_step_a_handshake_leaves_an_open_socket_to_close(
    tmp_path: Path,
) -> None:
    certificates = Certificates(tmp_path)
    context, steps = context_of(certificates), 0
    while True:
        steps += 1
        near, far = raw_pair()
        server = edge.TlsStream(far, context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_greet, near, certificates)
            with cancel_at_step(steps) as scope:
                await server.do_handshake()
            await trio.aclose_forcefully(server)
            assert server.socket.fileno() == -1
        await trio.aclose_forcefully(near)
        if not scope.cancel_called:
            assert steps > 3
            return


async def _greet(stream: trio.SocketStream, certificates: Certificates) -> None:
    with suppress(trio.BrokenResourceError):
        await shake_hands(stream, certificates.trust())


async def test_cancelled_at_every_step_sending_and_receiving_can_be_closed(tmp_path: Path) -> None:
    for act in ("send", "receive", "close"):
        steps = 0
        while True:
            steps += 1
            async with tls_pair(tmp_path) as (client, server), trio.open_nursery() as nursery:
                nursery.start_soon(_drain, client)
                if act == "receive":
                    nursery.start_soon(_fill, client)
                with cancel_at_step(steps) as scope:
                    if act == "send":
                        await server.send_all(b"x" * 100_000)
                    elif act == "receive":
                        await received(server, 50_000)
                    else:
                        await server.aclose()
                await trio.aclose_forcefully(server)
                assert server.socket.fileno() == -1
                nursery.cancel_scope.cancel()
            if not scope.cancel_called:
                break


async def _fill(stream: trio.abc.SendStream) -> None:
    with suppress(trio.BrokenResourceError):
        await stream.send_all(b"x" * 50_000)


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


# -- the port ----------------------------------------------------------------------------------


@asynccontextmanager
async def tls_server(folder: Path) -> AsyncIterator[tuple[Served, Certificates]]:
    certificates = Certificates(folder)
    app = TinyApp(config.Settings(server=SERVER))
    app.tls, app.doors = context_of(certificates), edge.Doors(100)
    async with open_server(app=app) as server:
        yield server, certificates
        await until(lambda: app.doors is not None and len(app.doors) == 0)


async def still_serves(server: Served, certificates: Certificates) -> None:
    async with await certificates.connect(server.port) as stream:
        await stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await everything(stream)).startswith(b"HTTP/1.1 200")


@pytest.mark.real_time
async def test_pages_and_websockets_are_served_over_tls(tmp_path: Path) -> None:
    async with tls_server(tmp_path) as (server, certificates):
        async with await certificates.connect(server.port) as stream, trio.open_nursery() as served:
            for _ in range(2):
                await stream.send_all(GET)
                data = b""
                while b"hello" not in data:
                    data += await stream.receive_some()
            await stream.send_all(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n")
            size = len(await received(stream, 1_048_576))
            assert size > 1_048_576
            websocket = await wrap_client_stream(served, stream, "h", "/ws")
            await websocket.send_message("x" * 100_000)
            assert await websocket.get_message() == "x" * 100_000
            await websocket.aclose()
        async with await certificates.connect(server.port) as stream:
            await stream.send_all(b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await everything(stream)).startswith(b"HTTP/1.1 426")


@pytest.mark.real_time
async def test_only_http_1_1_and_tls_from_1_2_on_are_spoken(tmp_path: Path) -> None:
    async with tls_server(tmp_path) as (server, certificates):
        trust = certificates.trust()
        trust.set_alpn_protocols(["h2", "http/1.1"])
        async with await shake_hands(
            await trio.open_tcp_stream("127.0.0.1", server.port), trust
        ) as stream:
            assert stream.selected_alpn_protocol() == "http/1.1"
        for version, accepted in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
            trust = certificates.trust()
            trust.set_ciphers("DEFAULT@SECLEVEL=0")
            with warnings.catch_warnings(action="ignore"):
                trust.minimum_version = trust.maximum_version = version
            raw = await trio.open_tcp_stream("127.0.0.1", server.port)
            try:
                await shake_hands(raw, trust)
            except trio.BrokenResourceError:
                assert not accepted
            else:
                assert accepted
            await raw.aclose()
        await still_serves(server, certificates)


@pytest.mark.real_time
async def test_who_does_not_speak_tls_is_told_or_closed_in_the_time_of_a_head(
    tmp_path: Path,
) -> None:
    async with tls_server(tmp_path) as (server, certificates):
        hello = _client_hello(certificates)
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(GET)
            assert (await everything(stream)).startswith(b"HTTP/1.1 400 ")
        for sent in (b"", b"\x16", hello[:50], b"\xff" * 600, b"\x16\x03\x01\xff\xff" * 9, hello):
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                await stream.send_all(sent)
                said = await everything(stream)
                assert not said.startswith(b"HTTP")
        async with await certificates.connect(server.port) as stream:  # and no head after it
            assert await everything(stream) == b""
        await still_serves(server, certificates)


@pytest.mark.real_time
async def test_a_full_server_closes_without_a_handshake(tmp_path: Path) -> None:
    async with tls_server(tmp_path) as (server, certificates):
        assert server.app.doors is not None
        server.app.doors = edge.Doors(1)
        async with (
            await certificates.connect(server.port),
            await trio.open_tcp_stream("127.0.0.1", server.port) as outside,
        ):
            assert await everything(outside) == b""
        server.app.doors = edge.Doors(100)
        await still_serves(server, certificates)


@pytest.mark.real_time
async def test_shutdown_waits_for_no_handshake_and_no_reader(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    app = TinyApp(config.Settings(server=config.Server(head_s_max=60, send_s_max=60)))
    app.tls = context_of(certificates)
    with trio.fail_after(8):
        async with open_server(app=app, graceful_s=0.5) as server:
            silent = await trio.open_tcp_stream("127.0.0.1", server.port)
            stalled = await certificates.connect(server.port)
            await stalled.send_all(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n")
            idle = await certificates.connect(server.port)
            await idle.send_all(upgrade())
            await idle.receive_some()
            server.shutdown.set()
    for stream in (silent, stalled, idle):
        await trio.aclose_forcefully(stream)


def _client_hello(certificates: Certificates) -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = certificates.trust().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()
