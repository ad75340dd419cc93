"""The pool against a real `h2` server: slots, connections, cancellation, faults."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import h2.errors
import httpx
import pytest
import trio
import trio.testing

from coach import config
from coach.errors import BadMessage
from coach.providers.exchange import Header, Origin, ReceiverFailed, StreamError, StreamRequest
from coach.providers.pool import Pool, open_pool_with
from tests.support.cancels import cancel_at_step

from .peer import ORIGIN, Exchange, Peer, PlainWire, Script, open_pool_to

CANCEL = int(h2.errors.ErrorCodes.CANCEL)
URL = "https://provider.test/v1"


@attrs.define
class Notes:
    """A receiver that notes everything."""

    status: int = 0
    headers: dict[bytes, bytes] = attrs.field(factory=dict)
    data: list[bytes] = attrs.field(factory=list)
    raises: Exception | None = None

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        self.status, self.headers = status, dict(headers)

    def on_data(self, data: bytes) -> None:
        self.data.append(data)
        if self.raises is not None:
            raise self.raises

    @property
    def body(self) -> bytes:
        return b"".join(self.data)


def request(body: bytes = b"question") -> StreamRequest:
    return StreamRequest(
        origin=ORIGIN, method="POST", path="/v1", headers=[(b"x-test", b"1")], body=body
    )


async def echo(exchange: Exchange) -> None:
    await exchange.whole.wait()
    await exchange.head(200, ("content-type", "text/plain"))
    await exchange.data(bytes(exchange.body), end=True)


async def silent(exchange: Exchange) -> None:
    await trio.sleep_forever()


async def begins(exchange: Exchange) -> None:
    await exchange.whole.wait()
    await exchange.head()
    await exchange.data(b"the beginning")
    await trio.sleep_forever()


async def ask(pool: Pool, body: bytes = b"question") -> Notes:
    notes = Notes()
    async with pool.open_stream(request(body), notes) as stream:
        await stream.wait_end()
    return notes


async def fails(pool: Pool, kinds: list[str]) -> None:
    try:
        await ask(pool)
        kinds.append("whole")
    except StreamError as error:
        kinds.append(error.kind)


@asynccontextmanager
async def asking(pool: Pool, count: int) -> AsyncIterator[list[str]]:
    """That many requests under way; yields the list of how they ended."""
    kinds: list[str] = []
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(fails, pool, kinds)
        yield kinds


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110  there is no event for this
            await trio.sleep(0.01)


async def test_a_request_gets_its_response() -> None:
    batches: list[float] = []
    async with open_pool_to(Peer(echo), on_batch=batches.append) as pool:
        notes = await ask(pool, b"hello")
        assert (notes.status, notes.body) == (200, b"hello")
        assert notes.headers == {b"content-type": b"text/plain"}
        assert len(batches) == len(notes.data) == 1
        assert (pool.statistics().connections, pool.statistics().streams) == (1, 0)


async def test_a_response_without_body_is_whole() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(204, end=True)

    async with open_pool_to(Peer(script)) as pool:
        notes = await ask(pool)
        assert (notes.status, notes.body) == (204, b"")


async def test_all_data_of_one_wake_up_is_one_call() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.connection.h2.send_headers(exchange.id, [(":status", "200")])
        for _ in range(5):
            exchange.connection.h2.send_data(exchange.id, b"ab")
        exchange.connection.h2.end_stream(exchange.id)
        await exchange.connection.flush()

    async with open_pool_to(Peer(script)) as pool:
        assert (await ask(pool)).data == [b"ab" * 5]


async def test_large_bodies_pass_both_windows_both_ways() -> None:
    body = bytes(range(256)) * 4096 * 17  # 17 MiB: more than a stream's window
    peer = Peer(echo, window=200_000)
    async with open_pool_to(peer) as pool:
        assert (await ask(pool, body)).body == body


async def test_connects_are_coalesced_and_one_connection_serves_what_the_peer_allows() -> None:
    peer = Peer(echo, streams_max=20, connect_s=0.1)
    async with open_pool_to(peer, settings={"room_percent": 0}) as pool:
        async with asking(pool, 20) as kinds:
            pass
        assert kinds == ["whole"] * 20
        assert peer.dials == 1


async def test_the_stream_limit_brings_further_connections() -> None:
    peer = Peer(begins, streams_max=3)
    limits = {"room_percent": 0}
    async with open_pool_to(peer, settings=limits) as pool, asking(pool, 10):
        await until(lambda: peer.streams_open == 10)
        assert sorted(len(each.exchanges) for each in peer.connections) == [1, 3, 3, 3]
        assert pool.statistics().connections == peer.dials == 4
        for connection in list(peer.connections):
            await trio.aclose_forcefully(connection.stream)


async def test_no_more_connections_than_configured_and_whoever_waits_is_served_in_order() -> None:
    order: list[bytes] = []

    async def script(exchange: Exchange) -> None:
        await exchange.whole.wait()
        order.append(bytes(exchange.body))
        await trio.sleep(1)
        await exchange.head(200, end=True)

    peer = Peer(script, streams_max=1)
    async with open_pool_to(peer, settings={"connections_max": 2}) as pool:
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(ask, pool, b"%d" % number)
                await trio.testing.wait_all_tasks_blocked()
        assert peer.dials == 2
        pairs = [set(order[at : at + 2]) for at in range(0, 6, 2)]  # two connections at a time
        assert pairs == [{b"0", b"1"}, {b"2", b"3"}, {b"4", b"5"}]


async def test_without_room_for_long_a_request_is_given_up() -> None:
    peer = Peer(silent, streams_max=1)
    limits = {"connections_max": 1, "connect_s_max": 2.0}
    async with open_pool_to(peer, settings=limits) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(fails, pool, [])
        await until(lambda: peer.streams_open == 1)
        begun = trio.current_time()
        with pytest.raises(StreamError, match="no connection had room"):
            await ask(pool)
        assert trio.current_time() - begun == pytest.approx(2)
        assert pool.statistics().waiting == 0
        nursery.cancel_scope.cancel()


async def test_a_peer_that_cannot_be_reached_fails_all_who_wait() -> None:
    peer = Peer(echo, refuses=True)
    async with open_pool_to(peer) as pool:
        async with asking(pool, 5) as kinds:
            pass
        assert kinds == ["unreachable"] * 5
        peer.refuses = False
        assert (await ask(pool)).body == b"question"


async def test_a_connect_that_takes_too_long_is_given_up() -> None:
    peer = Peer(echo, connect_s=100)
    async with open_pool_to(peer) as pool:
        begun = trio.current_time()
        with pytest.raises(StreamError) as caught:
            await ask(pool)
        assert caught.value.kind == "unreachable"
        assert trio.current_time() - begun == pytest.approx(5)


async def test_a_peer_that_never_begins_the_protocol_is_given_up() -> None:
    peer = Peer(echo, mute=True)
    async with open_pool_to(peer) as pool:
        with pytest.raises(StreamError):
            await ask(pool)
        await until(lambda: pool.statistics().connections == 0)


@pytest.mark.parametrize("script", [silent, begins])
async def test_cancelled_at_any_step_the_stream_is_reset_and_the_slot_is_free(
    script: Script,
) -> None:
    peer = Peer(script, connect_s=0.5)
    for step in range(1, 200):
        async with open_pool_to(peer) as pool:
            requests, resets = peer.requests, len(peer.resets)
            with trio.move_on_after(30), cancel_at_step(step) as scope:
                await ask(pool)
            assert scope.cancel_called
            assert pool.statistics().streams == pool.statistics().waiting == 0
            await until(lambda: peer.streams_open == 0)
            assert peer.resets[resets:] == [CANCEL] * (peer.requests - requests)
            done = peer.requests > requests
        if done and step > 60:
            return


async def test_cancelled_while_it_waits_for_a_connection_nothing_is_sent() -> None:
    peer = Peer(echo, connect_s=1)
    async with open_pool_to(peer) as pool:
        with trio.move_on_after(0.5):
            await ask(pool)
        await trio.sleep(2)
        assert peer.requests == 0
        assert peer.resets == []


async def test_cancelled_while_the_body_is_sent() -> None:
    peer = Peer(silent, takes_bodies=False)
    async with open_pool_to(peer) as pool:
        with trio.move_on_after(1):
            await ask(pool, b"x" * 1_000_000)
        await until(lambda: peer.resets == [CANCEL])
        peer.script, peer.takes_bodies = echo, True
        async with trio.open_nursery() as nursery:  # another connection: this window is used up
            await until(lambda: pool.statistics().streams == 0)
            nursery.cancel_scope.cancel()


async def test_a_freed_slot_is_used_after_its_reset_was_sent() -> None:
    """A peer that allows one stream never sees two."""
    peer = Peer(begins, streams_max=1)
    async with open_pool_to(peer, settings={"connections_max": 1}) as pool:
        for _ in range(20):
            with trio.move_on_after(0.01):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask, pool)
                    nursery.start_soon(ask, pool)
        await until(lambda: peer.streams_open == 0)
        assert peer.streams_peak == 1
        assert len(peer.resets) == peer.requests


async def test_a_receiver_that_raises_loses_only_its_own_stream() -> None:
    peer = Peer(begins)
    async with open_pool_to(peer) as pool, asking(pool, 3) as kinds:
        await until(lambda: peer.streams_open == 3)
        for raised, left in ((ZeroDivisionError(), ReceiverFailed), (BadMessage("no"), BadMessage)):
            with pytest.raises(left) as caught:
                async with pool.open_stream(request(), Notes(raises=raised)) as stream:
                    await stream.wait_end()
            assert caught.value is raised or caught.value.__cause__ is raised
        await until(lambda: peer.streams_open == 3)
        assert peer.resets == [CANCEL] * 2
        assert kinds == []
        await trio.aclose_forcefully(peer.connections[0].stream)


async def test_a_lost_connection_cuts_every_answer_on_it() -> None:
    peer = Peer(begins)
    async with open_pool_to(peer) as pool:
        async with asking(pool, 30) as kinds:
            await until(lambda: peer.streams_open == 30)
            await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(peer.connections[0].stream)
        assert kinds == ["cut"] * 30
        peer.script = echo
        assert (await ask(pool)).body == b"question"
        assert pool.statistics().handshakes == 2


async def test_goaway_lets_answers_finish_and_the_rest_moves_on() -> None:
    """Streams up to the last id end in peace; those above are asked again elsewhere."""
    finish = trio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.whole.wait()
        if peer.requests <= 6:
            await finish.wait()
        await exchange.head(200)
        await exchange.data(b"whole", end=True)

    peer = Peer(script)
    async with open_pool_to(peer) as pool:
        async with asking(pool, 6) as kinds:
            await until(lambda: peer.streams_open == 6)
            (first,) = peer.connections
            await first.goaway(last_id=5)
            await until(lambda: kinds == ["whole"] * 3)
            assert len(peer.connections) == 2
            finish.set()
        assert kinds == ["whole"] * 6
        assert pool.statistics().handshakes == 2
        await until(lambda: len(peer.connections) == 1)


async def test_a_refused_stream_is_asked_again_once() -> None:
    refused = 0

    async def script(exchange: Exchange) -> None:
        nonlocal refused
        await exchange.whole.wait()
        if refused < 1:
            refused += 1
            await exchange.reset(int(h2.errors.ErrorCodes.REFUSED_STREAM))
            return
        await echo(exchange)

    peer = Peer(script)
    async with open_pool_to(peer) as pool:
        assert (await ask(pool)).body == b"question"
        refused = -1
        with pytest.raises(StreamError) as caught:
            await ask(pool)
        assert caught.value.kind == "unreachable"
        assert peer.requests == 4


@pytest.mark.parametrize(("script", "limit_s"), [(silent, 30), (begins, 20)])
async def test_silence_before_and_within_an_answer_ends_it(script: Script, limit_s: float) -> None:
    peer = Peer(script)
    async with open_pool_to(peer) as pool:
        begun = trio.current_time()
        with pytest.raises(StreamError) as caught:
            await ask(pool)
        assert caught.value.kind == "stalled"
        assert trio.current_time() - begun == pytest.approx(limit_s, abs=0.1)
        await until(lambda: peer.resets == [CANCEL])
        assert peer.pings > 0
        assert pool.statistics().connections == 1


async def test_a_peer_that_answers_no_ping_is_given_up() -> None:
    peer = Peer(begins)
    async with open_pool_to(peer) as pool:
        async with asking(pool, 2) as kinds:
            await until(lambda: peer.streams_open == 2)
            await trio.testing.wait_all_tasks_blocked()
            begun, peer.deaf = trio.current_time(), True
        assert kinds == ["cut"] * 2
        assert trio.current_time() - begun == pytest.approx(4.5, abs=0.1)


async def test_spare_connections_are_closed_and_one_is_kept() -> None:
    peer = Peer(echo, streams_max=1)
    async with open_pool_to(peer) as pool:
        async with asking(pool, 4) as kinds:
            pass
        assert kinds == ["whole"] * 4
        await trio.sleep(100)
        assert len(peer.connections) == pool.statistics().connections == 1


async def test_closing_resets_what_is_open_and_says_goodbye() -> None:
    peer = Peer(begins)
    with contextlib.suppress(StreamError):
        async with open_pool_to(peer) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(ask, pool)
            await until(lambda: peer.streams_open == 1)
            nursery.cancel_scope.cancel()
    assert peer.resets == [CANCEL]
    assert (peer.goaways, peer.connections) == (1, [])


async def test_what_the_body_raises_leaves_as_it_is() -> None:
    limits, peer = config.Pool(), Peer(echo, refuses=True)

    async def dial(origin: Origin) -> PlainWire:
        raise ConnectionRefusedError(f"{peer} at {origin}")

    with pytest.raises(StreamError, match="no connection to"):
        async with open_pool_with(limits, dial) as pool:
            await ask(pool)


async def test_httpx_gets_whole_responses() -> None:
    async with (
        open_pool_to(Peer(echo)) as pool,
        httpx.AsyncClient(transport=pool) as client,
    ):
        response = await client.post(URL, content=b"hello")
        assert (response.status_code, response.content) == (200, b"hello")
        assert response.http_version == "HTTP/2"


async def test_httpx_that_reads_slowly_holds_back_its_own_stream_only() -> None:
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.whole.wait()
        await exchange.head()
        if exchange.body == b"question":
            await exchange.data(b"other", end=True)
            return
        for _ in range(20):
            await exchange.data(b"x" * 2**20)
            sent += 1
        await exchange.data(b"", end=True)

    async with (
        open_pool_to(Peer(script)) as pool,
        httpx.AsyncClient(transport=pool) as client,
        client.stream("POST", URL, content=b"much") as response,
    ):
        await trio.sleep(100)
        assert sent == 16
        assert (await ask(pool)).body == b"other"
        assert len(await response.aread()) == 20 * 2**20


async def test_httpx_that_leaves_early_resets_its_stream() -> None:
    peer = Peer(begins)
    async with open_pool_to(peer) as pool, httpx.AsyncClient(transport=pool) as client:
        async with client.stream("GET", URL) as response:
            assert response.status_code == 200
        await until(lambda: peer.resets == [CANCEL])
        peer.script = silent
        with trio.move_on_after(1):
            await client.get(URL)
        await until(lambda: peer.resets == [CANCEL] * 2)


@pytest.mark.parametrize(
    ("peer", "error"),
    [
        (Peer(echo, refuses=True), httpx.ConnectError),
        (Peer(begins), httpx.ReadTimeout),
    ],
    ids=["unreachable", "stalled"],
)
async def test_httpx_gets_its_own_errors(peer: Peer, error: type[Exception]) -> None:
    async with open_pool_to(peer) as pool, httpx.AsyncClient(transport=pool) as client:
        with pytest.raises(error):
            await client.get(URL)
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("http://provider.test/")


@pytest.mark.parametrize(
    "header", [(b"X-Upper", b"1"), (b"host", b"x"), (b"x", b"a\r\nb"), (b"x", b" a"), (b"", b"a")]
)
def test_headers_that_would_cost_the_connection_are_refused(header: Header) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        StreamRequest(origin=ORIGIN, method="GET", path="/", headers=[header])
