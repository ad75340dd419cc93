"""Connections ahead of need, at every limit of streams, and what becomes of old and dead ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from h2.settings import SettingCodes

from coach import config
from coach.providers.exchange import Origin, StreamError
from coach.providers.pool import Pool, open_pool_with

from .peer import ORIGIN, Exchange, Peer, PeerConnection, PlainWire, open_pool_to
from .test_pool import ask, asking, begins, echo, fails, silent, until

OTHER = Origin("other.test", 443)


async def change_limit(peer: Peer, streams_max: int) -> None:
    peer.streams_max = streams_max
    for connection in peer.connections:
        connection.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: streams_max})
        await connection.flush()
    await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def open_warm_pool(
    peer: Peer, others: Mapping[Origin, Peer] | None = None, **limits: float
) -> AsyncIterator[Pool]:
    """A pool that keeps a connection to `peer`, and `others`, as for configured providers."""
    peers = {ORIGIN: peer, **(others or {})}
    async with trio.open_nursery() as nursery:

        async def dial(origin: Origin) -> PlainWire:
            peer = peers[origin]
            peer.dials += 1
            await trio.sleep(peer.connect_s)
            if peer.refuses:
                raise ConnectionRefusedError("nobody is there")
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(PeerConnection(peer, theirs).serve)
            return PlainWire(ours)

        settings = config.Pool(**limits)  # type: ignore[arg-type]
        async with open_pool_with(settings, dial, warm=peers) as pool:
            yield pool
        await trio.sleep(1)


async def test_once_warm_no_request_waits_for_a_handshake() -> None:
    """Requests that come one after another, a hundred times as many as a connection takes."""
    slowest = 0.0
    peer = Peer(begins, streams_max=10, connect_s=0.5)

    async def timed(pool: Pool) -> None:
        nonlocal slowest
        begun = trio.current_time()
        before = peer.requests
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, pool, [])
            await until(lambda: peer.requests > before)
            slowest = max(slowest, trio.current_time() - begun)
            await trio.sleep(40)
            nursery.cancel_scope.cancel()

    async with open_warm_pool(peer, stall_s_max=100, connections_max=50) as pool:
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(timed, pool)
                await trio.sleep(0.2)
        assert slowest < 0.1
        assert 20 < peer.dials < 30


async def test_a_configured_provider_is_connected_to_before_anybody_asks() -> None:
    peer = Peer(echo, connect_s=0.5)
    async with open_warm_pool(peer) as pool:
        await trio.sleep(1)
        assert pool.statistics().connections == peer.dials == 1
        begun = trio.current_time()
        await ask(pool)
        assert trio.current_time() == begun


async def test_a_warm_connection_that_is_lost_is_replaced() -> None:
    peer = Peer(echo)
    async with open_warm_pool(peer):
        await trio.sleep(10)
        await trio.aclose_forcefully(peer.connections[0].stream)
        await trio.sleep(0.1)
        assert len(peer.connections) == 1
        await peer.connections[0].goaway(0)
        await trio.sleep(1.1)  # it was young and unused
        assert len(peer.connections) == 1
        assert peer.dials == 3


async def test_a_provider_has_room_for_all_that_another_one_carries() -> None:
    """So that nobody waits for a handshake when that one dies; and no longer than needed."""
    busy, standby = Peer(begins), Peer(begins, streams_max=100, connect_s=0.5)
    async with open_warm_pool(busy, {OTHER: standby}, stall_s_max=1_000) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(250):
                nursery.start_soon(fails, pool, [])
            await until(lambda: busy.streams_open == 250)
            await trio.sleep(2)
            assert len(standby.connections) == 3
            for connection in list(busy.connections):
                await trio.aclose_forcefully(connection.stream)
        await trio.sleep(100)
        assert len(standby.connections) == 1


async def test_standing_by_never_takes_more_connections_than_configured() -> None:
    busy, standby = Peer(begins), Peer(begins, streams_max=1)
    async with (
        open_warm_pool(busy, {OTHER: standby}, connections_max=8) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(fails, pool, [])
        await until(lambda: busy.streams_open == 1)
        await trio.sleep(5)
        assert len(standby.connections) == 8
        nursery.cancel_scope.cancel()


async def test_a_provider_that_is_away_is_looked_for_at_growing_intervals() -> None:
    peer = Peer(echo, refuses=True)
    async with open_warm_pool(peer) as pool:
        await trio.sleep(60)
        assert peer.dials == 6  # after 1, 2, 4, 8, 16 s
        with pytest.raises(StreamError, match="nobody is there"):  # who asks is not kept waiting
            await ask(pool)
        assert peer.dials == 7
        peer.refuses = False
        await trio.sleep(31)
        assert pool.statistics().connections == 1


async def test_a_peer_that_ends_every_connection_unused_is_not_hammered() -> None:
    peer = Peer(echo)

    async def goes_away() -> None:
        while True:
            for connection in list(peer.connections):
                await connection.goaway(0)
            await trio.sleep(0.05)

    async with open_warm_pool(peer), trio.open_nursery() as nursery:
        nursery.start_soon(goes_away)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
        assert peer.dials <= 61


@pytest.mark.parametrize(
    ("streams_max", "connections"), [(1, 32), (10, 32), (100, 10), (2**32 - 1, 1)]
)
async def test_a_thousand_streams_at_once_where_the_peer_allows_them(
    streams_max: int, connections: int
) -> None:
    """Over as few connections as its limit allows, and never more than configured."""
    peer = Peer(begins, streams_max=streams_max)
    limits = {"room_percent": 0, "connect_s_max": 1_000, "stall_s_max": 10_000}
    room = min(1_000, 32 * streams_max)
    async with open_pool_to(peer, settings=limits) as pool, trio.open_nursery() as nursery:
        for _ in range(1_000):
            nursery.start_soon(fails, pool, [])
        await until(lambda: peer.streams_open == room)
        await trio.testing.wait_all_tasks_blocked()
        statistics = pool.statistics()
        assert (statistics.streams, statistics.waiting) == (room, 1_000 - room)
        assert statistics.connections == connections
        nursery.cancel_scope.cancel()
    assert len(peer.resets) == peer.requests


async def test_the_limit_may_change_while_streams_run() -> None:
    """Lowered, those under way go on and nothing new is sent; raised, who waits is sent at once."""
    peer = Peer(begins, streams_max=10)
    limits = {"connections_max": 1, "connect_s_max": 100}
    async with open_pool_to(peer, settings=limits) as pool, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(fails, pool, [])
        await until(lambda: peer.streams_open == 8)
        await change_limit(peer, 2)
        for _ in range(30):
            nursery.start_soon(fails, pool, [])
        await trio.testing.wait_all_tasks_blocked()
        assert (peer.streams_open, pool.statistics().waiting) == (8, 30)
        for limit, waiting in ((9, 29), (20, 18), (100, 0)):
            await change_limit(peer, limit)
            assert pool.statistics().waiting == waiting
        assert peer.streams_open == 38
        nursery.cancel_scope.cancel()


async def test_a_peer_that_allows_no_stream_at_all_is_not_besieged() -> None:
    peer = Peer(echo, streams_max=0)
    async with open_pool_to(peer) as pool:
        async with asking(pool, 20) as kinds:
            await until(lambda: peer.dials == 2)
            await trio.sleep(3)
            await change_limit(peer, 15)
        assert kinds == ["whole"] * 20
        assert peer.dials <= 3


@pytest.mark.parametrize("connections_max", [1, 32])
async def test_old_connections_are_replaced_and_no_request_fails(connections_max: int) -> None:
    """Where only one is allowed, it ends in a moment at which nobody uses it, or lives on."""

    async def script(exchange: Exchange) -> None:
        await exchange.whole.wait()
        await exchange.head()
        for _ in range(5):
            await exchange.data(b"text")
            await trio.sleep(1)
        await exchange.data(b"", end=True)

    peer = Peer(script)
    kinds: list[str] = []
    limits = {"age_s_max": 60.0, "connections_max": connections_max}
    async with open_pool_to(peer, settings=limits) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(600):
                nursery.start_soon(fails, pool, kinds)
                await trio.sleep(0.5)
        assert kinds == ["whole"] * 600
        assert peer.resets == []
        if connections_max > 1:
            assert 5 <= peer.dials <= 7
            await until(lambda: len(peer.connections) == 1)


async def test_an_old_connection_serves_on_while_no_other_comes() -> None:
    peer = Peer(echo)
    async with open_pool_to(peer, settings={"age_s_max": 60.0}) as pool:
        await ask(pool)
        peer.refuses = True
        for _ in range(30):
            await trio.sleep(10)
            await ask(pool)
        peer.refuses = False
        await trio.sleep(31)
        await ask(pool)
        assert pool.statistics().handshakes == 2
        await until(lambda: len(peer.connections) == 1)


async def test_a_dead_peer_is_known_within_5_s_and_others_take_over() -> None:
    """The request that was sent to it is cut; the next one finds another connection."""
    peer = Peer(begins)
    async with open_pool_to(peer) as pool:
        async with asking(pool, 3) as kinds:
            await until(lambda: peer.streams_open == 3)
            await trio.testing.wait_all_tasks_blocked()
            peer.deaf, begun = True, trio.current_time()
        assert kinds == ["cut"] * 3
        assert trio.current_time() - begun < 5
        peer.deaf, peer.script = False, echo
        assert (await ask(pool)).body == b"question"


async def test_a_peer_that_answers_pings_lives_however_quiet_it_is() -> None:
    peer = Peer(silent)
    limits = {"response_head_s_max": 1_000.0}
    async with open_pool_to(peer, settings=limits) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(fails, pool, [])
        await trio.sleep(500)
        assert pool.statistics().handshakes == pool.statistics().streams == 1
        nursery.cancel_scope.cancel()


async def test_where_this_process_stood_still_what_has_come_meanwhile_counts() -> None:
    """The clock jumps over every deadline while the answer to a PING lies in the socket."""
    peer = Peer(silent)
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    limits = {"response_head_s_max": 1e6, "age_s_max": 1e6}
    async with open_pool_to(peer, settings=limits) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(fails, pool, [])
        await until(lambda: peer.streams_open == 1)
        peer.deaf = True  # its answers are given here
        (connection,) = peer.connections
        assert isinstance(connection.stream, trio.StapledStream)
        out = connection.stream.send_stream
        for _ in range(20):
            await trio.sleep(2.1)
            out._outgoing.put(b"\0\0\x08\6\1\0\0\0\0" + bytes(8))
            out.close_hook()  # carries it over, as `send_all` would, without a turn of the loop
            clock.jump(60.0)
            await trio.testing.wait_all_tasks_blocked()
        assert pool.statistics().handshakes == pool.statistics().streams == 1
        nursery.cancel_scope.cancel()


async def test_a_peer_that_reads_nothing_is_given_up() -> None:
    """It goes on talking, so that no PING would find it out."""
    peer = Peer(echo)
    blocked = trio.Event()

    class Clogged(PlainWire):
        async def send(self, data: bytes) -> None:
            if peer.requests:
                blocked.set()
                await trio.sleep_forever()
            await super().send(data)

    async with trio.open_nursery() as nursery:

        async def dial(origin: Origin) -> PlainWire:
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(PeerConnection(peer, theirs).serve)
            return Clogged(ours)

        async with open_pool_with(config.Pool(response_head_s_max=100.0), dial) as pool:
            await ask(pool)

            async def talk() -> None:
                while True:
                    for connection in peer.connections:
                        connection.h2.ping(b"01234567")
                        await connection.flush()
                    await trio.sleep(1)

            nursery.start_soon(talk)
            with pytest.raises(StreamError, match="read nothing for 30 s"):
                await ask(pool)
            assert blocked.is_set()
        nursery.cancel_scope.cancel()


async def test_a_peer_that_resets_every_stream_is_asked_twice_and_no_more() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.reset(7)

    peer = Peer(refuse)
    async with open_pool_to(peer) as pool:
        async with asking(pool, 50) as kinds:
            pass
        assert kinds == ["unreachable"] * 50
        assert peer.requests == 100


async def test_a_peer_that_goes_away_at_every_request_is_asked_twice_and_no_more() -> None:
    async def go_away(exchange: Exchange) -> None:
        await exchange.connection.goaway(0)

    peer = Peer(go_away)
    async with open_pool_to(peer) as pool:
        async with asking(pool, 50) as kinds:
            pass
        assert kinds == ["unreachable"] * 50
        assert peer.requests <= 100
        assert peer.dials <= 3
