"""One connection: its greeting, TLS, and servers that are none."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from redis.exceptions import BusyLoadingError
from trio.testing import memory_stream_pair

from coach.store import NotSent, RedisError, open_embedded, open_redis
from coach.store.url import Target
from coach.store.wire import Limits, Wire, backoff_s, greet

HELLO = b"%1\r\n$2\r\nid\r\n:7\r\n"


@pytest.mark.parametrize(
    ("answer", "problem", "says"),
    [
        (HELLO + b"-LOADING Redis is loading the dataset in memory\r\n", BusyLoadingError, "load"),
        (b"-ERR unknown command 'HELLO'\r\n+PONG\r\n", RedisError, "unknown command"),
        (b"-WRONGPASS invalid username-password pair\r\n+PONG\r\n", RedisError, "invalid"),
        (b"+OK\r\n+PONG\r\n", RedisError, "is no Redis: it answered b'OK'"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", RedisError, "Protocol error"),
        (HELLO, RedisError, "closed by the server"),
    ],
)
async def test_a_server_that_cannot_serve_is_refused_and_left(
    answer: bytes, problem: type[Exception], says: str
) -> None:
    ours, theirs = memory_stream_pair()
    closed: list[bool] = []
    wire = Wire(ours, close=lambda: closed.append(True), has_input=lambda: False)
    await theirs.send_all(answer)
    await theirs.send_eof()
    with pytest.raises(problem, match=says):
        await greet(wire, Target(), name=None)
    assert closed == [True]


async def test_a_greeting_logs_in_selects_and_names_itself() -> None:
    ours, theirs = memory_stream_pair()
    wire = Wire(ours, close=lambda: None, has_input=lambda: False)
    await theirs.send_all(HELLO + b"+OK\r\n+PONG\r\n")
    await greet(wire, Target(db=3, password="secret"), name="w0")
    words = bytes(await theirs.receive_some()).split(b"\r\n")
    assert [word for word in words if word[:1] not in {b"$", b"*", b""}] == [
        *(b"HELLO", b"3", b"AUTH", b"default", b"secret", b"SETNAME", b"w0"),
        *(b"SELECT", b"3", b"PING"),
    ]
    assert wire.client_id == 7


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7])
async def test_replies_are_the_same_however_they_are_cut(chunk_bytes: int) -> None:
    ours, theirs = memory_stream_pair()
    wire = Wire(ours, close=lambda: None, has_input=lambda: False)
    answer = b"+OK\r\n>2\r\n$1\r\nx\r\n$1\r\ny\r\n*2\r\n:1\r\n$2\r\n\r\n\r\n_\r\n-ERR no\r\n"
    for at in range(0, len(answer), chunk_bytes):
        await theirs.send_all(answer[at : at + chunk_bytes])
    replies = [await wire.reply() for _ in range(4)]
    assert replies[:3] == [b"OK", [1, b"\r\n"], None]
    assert isinstance(replies[3], RedisError)


def test_pauses_double_up_to_their_limit() -> None:
    limits = Limits(backoff_s=0.1, backoff_s_max=0.5)
    assert [backoff_s(n, limits, 1.0) for n in (1, 2, 3, 4, 10**9)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert backoff_s(1, limits, 0.0) == 0.05


@pytest.mark.real_time
async def test_over_tls_commands_and_cancelled_pops_work(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with open_embedded(tmp_path) as server, trio.open_nursery() as nursery:
        port = await nursery.start(partial(tls_proxy, authority, server.url))
        async with open_redis(
            f"rediss://localhost:{port}/1?ssl_ca_certs={tmp_path}/ca.pem"
        ) as redis:
            await redis.set("k", "v" * 100_000)
            assert await redis.get("k") == b"v" * 100_000
            for _ in range(5):
                with trio.move_on_after(0.01):
                    await redis.blpop(["list"], 0)
            await redis.rpush("list", "x")
            assert await redis.blpop(["list"], 0) == [b"list", b"x"]
        async with open_redis(f"rediss://localhost:{port}", wait_s=0.3) as redis:
            with pytest.raises(NotSent, match="CERTIFICATE_VERIFY_FAILED"):
                await redis.ping()
        nursery.cancel_scope.cancel()


async def tls_proxy(authority: trustme.CA, url: str, task_status: trio.TaskStatus[int]) -> None:
    """TLS outside, the embedded server's socket inside: the wheel's server speaks none itself."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    async def pump(
        source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, end: Callable[[], None]
    ) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        end()

    async def serve(outside: trio.SSLStream[trio.SocketStream]) -> None:
        async with (
            outside,
            await trio.open_unix_socket(url.removeprefix("unix://")) as inside,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(pump, outside, inside, nursery.cancel_scope.cancel)
            nursery.start_soon(pump, inside, outside, nursery.cancel_scope.cancel)

    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
    (listener,) = listeners
    assert isinstance(listener.transport_listener, trio.SocketListener)
    task_status.started(listener.transport_listener.socket.getsockname()[1])
    await trio.serve_listeners(serve, listeners)
