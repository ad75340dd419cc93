"""What the edge promises on real sockets: whatever one connection does, the others are served.

Each test runs hypercorn with a `TinyApp` in this process: an exception that escapes from a
connection ends the server and fails the test.
"""

from __future__ import annotations

import inspect
import socket
import struct

import hypercorn.trio.run
import pytest
import trio
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio_websocket import open_websocket, wrap_client_stream

from coach import config, edge
from tests.support.parsers import request_parsers
from tests.support.stack import until
from tests.support.tiny_app import Served, open_server

pytestmark = pytest.mark.real_time

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
QUICK = config.Settings(server=config.Server(head_s_max=0.3, head_bytes_max=2_000, send_s_max=0.3))


def upgrade(path: bytes = b"/ws") -> bytes:
    return (
        b"GET " + path + b" HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    """What the server sends until it closes."""
    data = b""
    try:
        with trio.fail_after(10):
            async for chunk in stream:
                data += chunk
    except trio.BrokenResourceError:
        pass
    return data


async def answer(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    """What the server sends up to and with `end`."""
    data = b""
    with trio.fail_after(10):
        while end not in data:
            chunk = await stream.receive_some()
            assert chunk, data
            data += chunk
    return data


async def still_serves(server: Served) -> None:
    """Plain HTTP and a WebSocket work as ever."""
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await answer(stream, b"hello")).startswith(b"HTTP/1.1 200")
    async with open_websocket("127.0.0.1", server.port, "/ws", use_ssl=False) as websocket:
        await websocket.send_message("ping")
        assert await websocket.get_message() == "ping"


@pytest.mark.parametrize("path", [b"/ws", b"/", b"/x"])
@pytest.mark.parametrize("stray", [b"x", b"\x81", b"\x00\xff\xff", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_stray_byte_behind_an_upgrade_ends_that_connection_only(
    path: bytes, stray: bytes
) -> None:
    async with open_server() as server:
        async with await server.connect() as stream:
            await stream.send_all(upgrade(path) + stray)
            await stream.send_eof()
            status = (await everything(stream)).partition(b"\r\n")[0]
        assert status.startswith(b"HTTP/1.1 404") == (path != b"/ws")
        await still_serves(server)
        assert not [path for _, path in server.app.requests if path != "/"]


async def test_an_upgrade_follows_plain_http_on_a_kept_alive_connection() -> None:
    async with open_server() as server:
        async with await server.connect() as stream, trio.open_nursery() as nursery:
            for _ in range(2):
                await stream.send_all(GET)
                await answer(stream, b"hello")
            await stream.send_all(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo")
            await stream.send_all(b"dy")
            await answer(stream, b"body")
            websocket = await wrap_client_stream(nursery, stream, "h", "/ws")
            await websocket.send_message("after HTTP")
            assert await websocket.get_message() == "after HTTP"
            await websocket.aclose()
        assert [path for _, path in server.app.requests] == ["/", "/", "/echo"]


async def test_a_kept_alive_websocket_outlives_the_keep_alive_timeout() -> None:
    async with (
        open_server(keep_alive_s=0.2) as server,
        await server.connect() as stream,
        trio.open_nursery() as nursery,
    ):
        await stream.send_all(GET)
        await answer(stream, b"hello")
        websocket = await wrap_client_stream(nursery, stream, "h", "/ws")
        await trio.sleep(0.5)
        await websocket.send_message("still here")
        assert await websocket.get_message() == "still here"
        await websocket.aclose()


async def test_an_open_websocket_keeps_no_parser_of_the_edges() -> None:
    """Its request and the parser would be 5 KB for as long as the student is there."""
    async with open_server() as server:
        before = len(request_parsers())
        async with await server.connect() as stream:
            await stream.send_all(upgrade())
            await answer(stream, b"\r\n\r\n")
            assert len(request_parsers()) - before == 1, "the one of the application's library"


async def test_an_idle_kept_alive_connection_is_closed() -> None:
    async with open_server(keep_alive_s=0.1) as server, await server.connect() as stream:
        await stream.send_all(GET)
        assert (await everything(stream)).startswith(b"HTTP/1.1 200")


async def test_pipelined_requests_are_answered_in_order_and_the_upgrade_waits() -> None:
    async with open_server() as server:
        async with await server.connect() as stream, trio.open_nursery() as nursery:
            slow = b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n"
            await stream.send_all(slow + GET + upgrade())
            await trio.sleep(0.1)
            assert server.app.requests == [("GET", "/slow")]
            assert server.app.seen == []
            server.app.release.set()
            data = await answer(stream, b"101 ")
            assert data.count(b"HTTP/1.1 200") == 2
            nursery.cancel_scope.cancel()
        assert server.app.requests == [("GET", "/slow"), ("GET", "/")]


async def test_a_request_hidden_in_a_body_is_a_body() -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n"
    async with open_server() as server, await server.connect() as stream:
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
        await stream.send_all(
            b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + GET
        )
        data = await answer(stream, b"hello")
        assert data.count(b"HTTP/1.1 200") == 2
        assert hidden in data
        assert [path for _, path in server.app.requests] == ["/echo", "/"]


async def test_a_large_body_comes_through_whole() -> None:
    body = bytes(range(256)) * 4_096 + b"the end"
    async with open_server() as server, await server.connect() as stream:
        async with trio.open_nursery() as nursery:
            head = b"POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
            nursery.start_soon(
                stream.send_all, head + b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            data = await answer(stream, b"the end")
        assert b" 100 " in data.partition(b"\r\n")[0]
        assert data.endswith(body)


async def test_a_malformed_body_is_answered_and_ends_the_connection() -> None:
    async with open_server() as server:
        async with await server.connect() as stream:
            await stream.send_all(
                b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + GET
            )
            assert (await everything(stream)).startswith(b"HTTP/1.1 400")
        await still_serves(server)


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (b"400", b"nonsense\r\n\r\n"),
        (b"431", b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 60_000),
        (b"408", b"GET / HTTP/1.1\r\n"),
        (b"426", b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n"),
        (b"505", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("before", [b"", GET], ids=["first", "later"])
async def test_a_bad_head_is_answered_by_the_edge(
    status: bytes, sent: bytes, before: bytes
) -> None:
    async with open_server(QUICK) as server:
        async with await server.connect() as stream:
            if before:
                await stream.send_all(before)
                await answer(stream, b"hello")
            await stream.send_all(sent)
            data = await everything(stream)
        assert data.startswith(b"HTTP/1.1 " + status)
        assert b"connection: close" in data
        await still_serves(server)


async def test_a_client_that_drips_its_head_has_no_more_time_than_another() -> None:
    async with open_server(QUICK) as server, await server.connect() as stream:
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                for byte in b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 1_000:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.02)

            nursery.start_soon(drip)
            data = await answer(stream, b"408")
            nursery.cancel_scope.cancel()
        assert data
        assert 0.2 < trio.current_time() - begun < 2


async def test_a_client_that_leaves_its_body_half_sent_is_cut() -> None:
    async with open_server(QUICK) as server, await server.connect() as stream:
        await stream.send_all(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf")
        assert await everything(stream) == b""
        await still_serves(server)


async def test_a_silent_connection_is_closed_without_a_word() -> None:
    async with open_server(QUICK) as server, await server.connect() as stream:
        assert await everything(stream) == b""


async def test_a_client_that_leaves_is_noticed_while_the_application_works() -> None:
    async with open_server() as server:
        stream = await server.connect()
        await stream.send_all(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
        await trio.sleep(0.1)
        await stream.aclose()
        with trio.fail_after(2):
            while not server.app.disconnects:  # noqa: ASYNC110  an application has no events
                await trio.sleep(0.01)
        await still_serves(server)


async def test_a_client_that_is_lost_with_requests_in_the_pipe_leaves_nothing() -> None:
    """Nobody reads while an answer is awaited and the next request is there already."""
    async with open_server() as server:
        doors = server.app.doors = edge.Doors(100)
        for sent in (GET * 2, b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n" * 2):
            for _ in range(20):
                stream = await server.connect()
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await stream.send_all(sent)
                await stream.aclose()
        slow = await server.connect()
        await slow.send_all(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n" + GET)
        await until(lambda: len(server.app.requests) > 0 and len(doors) == 1)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await slow.aclose()
        server.app.release.set()
        await until(lambda: len(doors) == 0)
        await still_serves(server)


async def test_an_application_that_breaks_costs_its_own_connection() -> None:
    async with open_server() as server:
        async with await server.connect() as stream:
            await stream.send_all(b"GET /raise HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await answer(stream, b"500")).startswith(b"HTTP/1.1 500")
        await still_serves(server)


async def test_a_refused_websocket_gets_an_http_answer() -> None:
    async with open_server() as server:
        async with await server.connect() as stream:
            foreign = b"Host: h\r\nOrigin: https://elsewhere.example"
            await stream.send_all(upgrade().replace(b"Host: h", foreign))
            data = await everything(stream)
        assert data.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert data.endswith(b"\r\n\r\nnot from there\n")


async def test_shutdown_does_not_wait_for_those_who_say_or_read_nothing() -> None:
    with trio.fail_after(5):
        async with open_server(graceful_s=0.5) as server:
            silent = await server.connect()
            idle = await server.connect()
            await idle.send_all(GET)
            await answer(idle, b"hello")
            stalled = trio.socket.socket()
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            await stalled.connect(("127.0.0.1", server.port))
            await stalled.send(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n")
            async with await server.connect() as stream, trio.open_nursery() as nursery:
                websocket = await wrap_client_stream(nursery, stream, "h", "/ws")
                await trio.sleep(0.1)
                server.shutdown.set()
                with trio.fail_after(2):
                    assert await everything(silent) == b""
                    assert await everything(idle) == b""
                with pytest.raises(Exception, match="1012"):
                    await websocket.get_message()
    for stream in (silent, idle):
        await stream.aclose()
    stalled.close()


async def test_a_client_that_does_not_read_is_cut() -> None:
    async with open_server(QUICK) as server:
        with trio.socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            await stalled.connect(("127.0.0.1", server.port))
            for _ in range(8):
                await stalled.send(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n")
            await trio.sleep(1)
            assert len(server.app.requests) < 8
        await still_serves(server)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [
                    GET,
                    upgrade(),
                    upgrade(b"/"),
                    b"GET /raise HTTP/1.1\r\nHost: h\r\n\r\n",
                    b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n",
                    b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
                    b"5\r\nhello\r\n",
                    b"0\r\n\r\n",
                    b"\x88\x80\x00\x00\x00\x00",
                    b"\xff" * 14,
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                ]
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_raw_bytes_of_any_kind_leave_the_server_unmoved(parts: list[bytes]) -> None:
    async def attack() -> None:
        async with open_server(QUICK) as server:
            async with trio.open_nursery() as nursery:
                for eof in (False, True):
                    nursery.start_soon(attack_once, server, parts, eof)
            await still_serves(server)

    async def attack_once(server: Served, parts: list[bytes], eof: bool) -> None:
        stream = await server.connect()
        try:
            for part in parts:
                await stream.send_all(part)
            if eof:
                await stream.send_eof()
                await everything(stream)
        except trio.BrokenResourceError:
            pass
        await stream.aclose()

    trio.run(attack)


def test_what_the_edge_relies_on_in_hypercorn() -> None:
    """A new hypercorn may move these; then the edge has to follow."""
    assert list(inspect.signature(TCPServer.__init__).parameters) == [
        *("self", "app", "config", "context", "state", "stream")
    ]
    for name in ("run", "_read_data", "_close", "protocol_send"):
        assert inspect.iscoroutinefunction(getattr(TCPServer, name)), name
    run = inspect.getsource(TCPServer.run)
    for used in ("self._read_data()", "self._close()", "self.protocol_send", "self.idle_task"):
        assert used in run, used
    assert "self.stream.socket" in run, "plain sockets have no do_handshake"
    for used in ("do_handshake()", "selected_alpn_protocol()", "transport_stream.socket"):
        assert f"self.stream.{used}" in run, "what TlsStream stands in for"
    assert "TCPServer" in hypercorn.trio.run.worker_serve.__code__.co_names, (
        "looked up when the server starts"
    )
    recycle = inspect.getsource(H11Protocol._maybe_recycle)
    assert "Updated(idle=True)" in recycle, "says that the answer is complete"
    assert "Closed()" in recycle, "says that the connection ends"
    assert hasattr(WorkerContext(None), "terminated")


def test_installed_edge_is_what_hypercorn_starts() -> None:
    edge.install()
    assert hypercorn.trio.run.TCPServer is edge.Edge  # type: ignore[attr-defined]
