"""HTTP/1.1, for proxies that speak nothing else: the core against `h11`, and the pool over it."""

from __future__ import annotations

import contextlib
import math
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import attrs
import h11
import httpx
import pytest
import trio
import trio.testing
import trustme
from hypothesis import given
from hypothesis import strategies as st

from coach import config
from coach.providers.exchange import Header, Origin, StreamError
from coach.providers.http1 import EARLY_HEADS_MAX, Http1Connection
from coach.providers.pool import Pool, open_pool, open_pool_with
from coach.providers.stream import STREAM_WINDOW, ConnectionFailed

from .peer import PlainWire
from .test_http2 import Notes
from .test_pool import URL, ask, asking, request, until
from .test_pool import Notes as Receiver

REQUEST: list[Header] = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"provider.test"),
    (b":path", b"/v1?a=b"),
    (b"x-test", b"1"),
]


def opened(**fields: object) -> tuple[Http1Connection, Notes]:
    """A connection with one request sent."""
    client, notes = Http1Connection(), Notes(**fields)  # type: ignore[arg-type]
    client.begin()
    client.open(REQUEST, b"question", notes)
    return client, notes


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n5\r\nhello\r\n0\r\nT: 1\r\n\r\n"
)
LONG = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
UNTIL_END = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello"


@given(st.sampled_from([CHUNKED, LONG, UNTIL_END]), st.lists(st.integers(0, 200), max_size=30))
def test_any_chunking_gives_the_same_answer(answer: bytes, cuts: list[int]) -> None:
    client, notes = opened()
    edges = [0, *sorted(cut % (len(answer) + 1) for cut in cuts), len(answer)]
    for a, b in pairwise(edges):
        if a < b:
            client.receive(answer[a:b], 1.0)
    assert notes.notes[1] == b"hello"
    assert client.draining is False
    if answer is UNTIL_END:
        assert len(notes.notes) == 2
        client.receive_end(1.0)
    assert notes.end is None
    assert not client.streams
    assert client.draining == (answer is UNTIL_END)


def test_a_request_is_sent_as_http_1_1_wants_it() -> None:
    client, _ = opened()
    head, _, body = client.take_output().partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /v1?a=b HTTP/1.1",
        b"host: provider.test",
        b"x-test: 1",
        b"content-length: 8",
    ]
    assert body == b"question"
    client.receive(LONG, 1.0)
    client.open([(b":method", b"GET"), *REQUEST[1:]], b"", Notes())
    assert b"content-length" not in client.take_output()


def test_the_connection_is_kept_for_the_next_request() -> None:
    client, notes = opened()
    for _ in range(3):
        assert client.streams_max - len(client.streams) == 0
        client.receive(CHUNKED, 1.0)
        assert client.streams_max - len(client.streams) == 1
        notes = Notes()
        client.open(REQUEST, b"", notes)
    client.receive(LONG, 1.0)
    assert notes.end is None


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        LONG + b"HTTP/1.1 200 OK\r\n",
    ],
    ids=["close", "1.0", "an answer to nothing"],
)
def test_a_connection_that_is_of_no_more_use_is_not_kept(answer: bytes) -> None:
    client, notes = opened()
    client.receive(answer, 1.0)
    assert notes.end is None
    assert (client.draining, client.streams_max) == (True, 0)


def test_what_comes_without_a_request_ends_the_connection() -> None:
    client = Http1Connection()
    client.begin()
    client.receive(b"HTTP/1.1 408 Request Timeout\r\n\r\n", 1.0)
    assert client.draining


@pytest.mark.parametrize(
    ("header", "idle_s"),
    [(b"timeout=5, max=100", 5.0), (b"max=3; Timeout=7", 7.0), (b"timeout=x", math.inf)],
)
def test_how_long_the_peer_keeps_it_is_heeded(header: bytes, idle_s: float) -> None:
    client, _ = opened()
    head = b"HTTP/1.1 200 OK\r\nKeep-Alive: %b\r\nContent-Length: 0\r\n\r\n"
    client.receive(head % header, 1.0)
    assert client.idle_s_max == idle_s


@pytest.mark.parametrize("answer", [CHUNKED, LONG])
def test_an_answer_that_breaks_off_is_cut(answer: bytes) -> None:
    client, notes = opened()
    client.receive(answer[:-1], 1.0)
    with pytest.raises(ConnectionFailed):
        client.receive_end(1.0)
    client.abandon("it broke off")
    assert isinstance(notes.end, StreamError)
    assert (notes.end.kind, notes.end.unprocessed) == ("cut", False)


def test_a_request_that_is_given_up_takes_the_connection_with_it() -> None:
    client, notes = opened()
    (stream,) = client.streams.values()
    client.reset(stream)
    client.receive(LONG, 1.0)
    assert notes.notes == []
    assert (client.draining, client.streams_max, client.streams) == (True, 0, {})


@pytest.mark.parametrize("where", ["head", "data"])
def test_a_handler_that_raises_ends_the_connection(where: str) -> None:
    client, notes = opened(raise_at=where)
    client.receive(LONG, 1.0)
    assert isinstance(notes.end, ZeroDivisionError)
    assert client.draining


def test_whoever_holds_its_bytes_stops_the_reading() -> None:
    client, notes = Http1Connection(), Notes()
    client.begin()
    stream = client.open(REQUEST, b"", notes, hold=True)
    client.receive(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(STREAM_WINDOW), 1.0)
    assert client.paused
    client.consumed(stream, 1)
    assert not client.paused


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 103 Early\r\n\r\n" * (EARLY_HEADS_MAX + 1),
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    ],
    ids=["1xx flood", "head without end", "two lengths", "another protocol"],
)
def test_a_peer_that_breaks_the_rules_loses_the_connection(answer: bytes) -> None:
    client, notes = opened()
    with pytest.raises(ConnectionFailed):
        client.receive(answer, 1.0)
    client.abandon("it broke the protocol")
    assert isinstance(notes.end, StreamError)


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=5), st.sampled_from([0, 20, 60, 999]))
def test_whatever_comes_ends_the_connection_at_worst(parts: list[bytes], at: int) -> None:
    client, notes = opened()
    try:
        for part in [CHUNKED[:at], *parts]:
            if part:
                client.receive(part, 1.0)
        client.receive_end(1.0)
    except ConnectionFailed:
        assert client.draining
    client.abandon("it is over")
    assert sum(note is None or isinstance(note, Exception) for note in notes.notes) == 1


# -- the pool over it ------------------------------------------------------------------------------


@attrs.define(eq=False)
class Peer:
    """A server that speaks HTTP/1.1 alone."""

    headers: Sequence[tuple[str, str]] = ()
    answers: int = 2
    """Pieces of an answer; 0: none ever comes."""
    pause_s: float = 0.01
    requests: int = 0
    dials: int = 0
    open: int = 0
    """Connections."""
    peak: int = 0
    deaths: int = 0
    """Connections that ended within an answer."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.dials += 1
        self.open += 1
        self.peak = max(self.peak, self.open)
        protocol, answering = h11.Connection(h11.SERVER), False
        body = b""
        try:
            while True:
                event = protocol.next_event()
                if event is h11.NEED_DATA:
                    protocol.receive_data(bytes(await stream.receive_some(65_536)))
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self.requests += 1
                    answering = True
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._watch, stream, scope)
                            await self._answer(protocol, stream, body)
                            nursery.cancel_scope.cancel()
                    if scope.cancel_called:
                        return
                    answering, body = False, b""
                    if protocol.our_state is not h11.DONE:
                        return
                    protocol.start_next_cycle()
                elif isinstance(event, h11.ConnectionClosed):
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.deaths += answering
            self.open -= 1
            await trio.aclose_forcefully(stream)

    async def _watch(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            assert not await stream.receive_some(1)
        scope.cancel()

    async def _answer(self, protocol: h11.Connection, stream: trio.abc.Stream, body: bytes) -> None:
        async def send(event: h11.Event) -> None:
            await stream.send_all(protocol.send(event) or b"")

        if not self.answers:
            await trio.sleep_forever()
        await send(h11.Response(status_code=200, headers=list(self.headers)))
        for _ in range(self.answers):
            await send(h11.Data(data=body))
            await trio.sleep(self.pause_s)
        await send(h11.EndOfMessage())


@asynccontextmanager
async def open_pool_to(
    peer: Peer, settings: Mapping[str, float] | None = None
) -> AsyncIterator[Pool]:
    async with trio.open_nursery() as nursery:

        async def dial(origin: Origin) -> PlainWire:
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(peer.serve, theirs)
            wire = PlainWire(ours)
            wire.http1 = True
            return wire

        limits = config.Pool(**(settings or {}))  # type: ignore[arg-type]
        async with open_pool_with(limits, dial) as pool:
            yield pool
        with trio.fail_after(1):
            while peer.open:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_requests_one_after_another_share_a_connection() -> None:
    peer = Peer()
    async with open_pool_to(peer, {"room_percent": 0}) as pool:
        for number in range(5):
            assert (await ask(pool, b"%d" % number)).body == b"%d%d" % (number, number)
        assert (peer.requests, peer.dials, pool.statistics().resets) == (5, 1, 0)


async def test_requests_at_once_have_a_connection_each_up_to_the_limit() -> None:
    peer = Peer()
    async with open_pool_to(peer, {"connections_max": 4}) as pool:
        async with asking(pool, 30) as kinds:
            pass
        assert kinds == ["whole"] * 30
        assert (peer.dials, peer.peak) == (4, 4)


async def test_one_is_opened_before_it_is_needed() -> None:
    peer = Peer(answers=0)
    async with open_pool_to(peer) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(ask, pool)
        await until(lambda: peer.requests == 1)
        await until(lambda: peer.dials == 2)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answers", [0, 1_000], ids=["before the head", "mid-body"])
async def test_a_cancelled_request_ends_its_connection_and_no_other(answers: int) -> None:
    peer = Peer(answers=answers)
    async with open_pool_to(peer, {"room_percent": 0, "connections_max": 3}) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, pool)
            await until(lambda: peer.requests == 1)
            for number in range(1, 6):
                with trio.move_on_after(0.5):
                    await ask(pool)
                await until(lambda died=number: peer.deaths == died)  # type: ignore[misc]
                assert pool.statistics().streams == 1
            nursery.cancel_scope.cancel()
        await until(lambda: peer.open == 0)


async def test_a_connection_is_left_alone_before_the_peer_closes_it() -> None:
    peer = Peer(headers=[("Keep-Alive", "timeout=5")])
    async with open_pool_to(peer, {"room_percent": 0}) as pool:
        await ask(pool)
        await trio.sleep(3)
        await ask(pool)
        assert peer.dials == 1
        await trio.sleep(4.9)
        assert peer.open == 0
        await ask(pool)
        assert peer.dials == 2


async def test_silence_before_and_within_an_answer_ends_it() -> None:
    for peer, limit_s in ((Peer(answers=0), 30), (Peer(pause_s=1_000), 20)):
        async with open_pool_to(peer) as pool:
            begun = trio.current_time()
            with pytest.raises(StreamError) as caught:
                await ask(pool)
            assert caught.value.kind == "stalled"
            assert trio.current_time() - begun == pytest.approx(limit_s, abs=1)


async def test_a_receiver_that_raises_loses_only_its_own_answer() -> None:
    async with open_pool_to(Peer()) as pool:
        async with asking(pool, 3) as kinds:
            with pytest.raises(Exception, match="a receiver raised"):
                async with pool.open_stream(
                    request(), Receiver(raises=ZeroDivisionError())
                ) as stream:
                    await stream.wait_end()
        assert kinds == ["whole"] * 3


async def test_httpx_is_served_and_may_read_slowly() -> None:
    body, peer = bytes(2**20), Peer(answers=40, pause_s=0)
    async with open_pool_to(peer) as pool, httpx.AsyncClient(transport=pool) as client:
        async with client.stream("POST", URL, content=body) as response:
            assert response.http_version == "HTTP/1.1"
            await trio.sleep(10)
            assert len(await response.aread()) == 40 * 2**20
        async with client.stream("POST", URL, content=body):
            pass  # not read
        await until(lambda: peer.deaths == 1)


async def test_connections_that_are_not_needed_any_more_are_closed() -> None:
    peer = Peer()
    async with open_pool_to(peer) as pool:
        async with asking(pool, 8):
            pass
        await trio.sleep(130)
        assert peer.open == pool.statistics().connections == 1


@pytest.mark.real_time
@pytest.mark.parametrize("protocols", [["http/1.1"], []], ids=["by ALPN", "without ALPN"])
async def test_a_proxy_without_http_2_is_spoken_to_in_http_1_1(
    tmp_path: Path, protocols: list[str]
) -> None:
    """On real sockets and TLS; a request that is cancelled ends its connection at once."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    peer = Peer()
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, peer.serve, 0, context, host="127.0.0.1")
        listeners = await nursery.start(serve)
        url = f"https://127.0.0.1:{listeners[0].transport_listener.socket.getsockname()[1]}"
        provider = config.Provider(
            name="p", base_url=url, model="m", api_key="k", ca_file=str(tmp_path / "ca.pem")
        )
        settings = config.Settings(provider=(provider,), pool=config.Pool(room_percent=0))
        async with open_pool(settings) as pool, httpx.AsyncClient(transport=pool) as client:
            for _ in range(3):
                response = await client.post(url, content=b"hello")
                assert (response.content, response.http_version) == (b"hello" * 2, "HTTP/1.1")
            assert peer.dials == 1
            peer.answers = 0
            with trio.move_on_after(0.1):
                await client.post(url, content=b"hello")
            begun = trio.current_time()
            await until(lambda: peer.deaths == 1)
            assert trio.current_time() - begun < 1
        nursery.cancel_scope.cancel()
