"""An address has only so many connections, whoever it comes through, and others notice nothing."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from coach import config, edge
from coach.edge.addresses import Crowded
from coach.edge.framing import Head
from coach.ops import metrics
from tests.edge.test_edge import GET, answer, everything, upgrade
from tests.support.stack import until
from tests.support.tiny_app import Served, open_server

PROXY = "10.0.0.0/8"


def addresses(**server: object) -> edge.Addresses:
    return edge.Addresses(config.Server(**{"trusted_proxies": (PROXY,), **server}))  # type: ignore[arg-type]


def asks(name: bytes, *values: bytes) -> Head:
    return Head(b"GET", b"/ws", b"1.1", tuple((name, value) for value in values))


@pytest.mark.parametrize(
    ("host", "counted_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("10.1.2.3", None),
        ("::ffff:10.1.2.3", None),
        ("", None),
        ("@", None),
    ],
)
def test_a_peer_counts_as_its_address_and_a_proxy_as_nobody(
    host: str, counted_as: str | None
) -> None:
    assert addresses().of_peer(host) == counted_as


@pytest.mark.parametrize(
    ("values", "counted_as"),
    [
        ([b"192.0.2.1"], "192.0.2.1"),
        ([b"203.0.113.9, 192.0.2.1"], "192.0.2.1"),  # the first one may be made up
        ([b"203.0.113.9", b"192.0.2.1, 10.0.0.7"], "192.0.2.1"),
        ([b"192.0.2.1:4711"], "192.0.2.1"),
        ([b"[2001:db8::1]:4711"], "2001:db8::/64"),
        ([b"192.0.2.1, unknown"], None),
        ([b"192.0.2.1,"], None),
        ([b"10.0.0.1"], None),
        ([b"\xff\xfe"], None),
        ([], None),
    ],
)
def test_a_proxy_says_whom_it_stands_for(values: list[bytes], counted_as: str | None) -> None:
    assert addresses().of_request(asks(b"x-forwarded-for", *values)) == counted_as


@pytest.mark.parametrize(
    ("value", "counted_as"),
    [
        (b"for=192.0.2.1;proto=https;by=10.0.0.1", "192.0.2.1"),
        (b'For="[2001:db8::1]:4711"', "2001:db8::/64"),
        (b"for=203.0.113.9, proto=http;for=192.0.2.1, for=10.0.0.2", "192.0.2.1"),
        (b"for=_hidden", None),
        (b"by=10.0.0.1", None),
    ],
)
def test_the_other_header_is_believed_where_the_settings_say_so(
    value: bytes, counted_as: str | None
) -> None:
    told = addresses(forwarded_header="forwarded")
    assert told.of_request(asks(b"forwarded", value)) == counted_as
    assert told.of_request(asks(b"x-forwarded-for", b"192.0.2.1")) is None
    assert addresses().of_request(asks(b"forwarded", value)) is None


def test_connections_are_counted_and_given_back() -> None:
    crowd = addresses(connections_per_address=2)
    crowd.enter("a")
    crowd.enter("a")
    with pytest.raises(Crowded) as crowded:
        crowd.enter("a")
    assert crowded.value.retry_after_s > 0
    crowd.enter("b")
    crowd.leave("a")
    crowd.enter("a")
    for address in "aab":
        crowd.leave(address)
    assert len(crowd) == 0


def test_upgrades_come_back_with_time() -> None:
    crowd = addresses(connects_per_address_per_minute=2)
    for _ in range(2):
        crowd.upgrade("a", 0.0)
    with pytest.raises(Crowded) as crowded:
        crowd.upgrade("a", 0.0)
    assert crowded.value.retry_after_s == 30
    crowd.upgrade("b", 0.0)
    crowd.upgrade("a", 30.0)


# -- on real sockets ---------------------------------------------------------------------------


def crowd_of(server: Served, **settings: object) -> edge.Addresses:
    server.app.doors = edge.Doors(100)
    found = server.app.addresses = addresses(**settings)
    return found


def limited(limit: str) -> float:
    value: float = metrics.connections_limited.labels(limit)._value.get()
    return value


@pytest.mark.real_time
async def test_an_address_with_too_many_connections_is_told_before_it_says_anything() -> None:
    before = limited("address_open")
    async with open_server() as server:
        crowd = crowd_of(server, connections_per_address=1)
        async with await server.connect() as inside:
            await inside.send_all(GET)
            await answer(inside, b"hello")
            async with await server.connect() as outside:
                said = await everything(outside)
            assert said.startswith(b"HTTP/1.1 429 ")
            assert b"\r\nretry-after: 5\r\n" in said
            await inside.send_all(GET)
            await answer(inside, b"hello")
        await until(lambda: len(crowd) == 0)
        async with await server.connect() as stream:
            await stream.send_all(GET)
            assert (await answer(stream, b"hello")).startswith(b"HTTP/1.1 200")
    assert limited("address_open") == before + 1


@pytest.mark.real_time
async def test_an_address_that_asks_too_often_gets_429_and_its_turn_later() -> None:
    before = limited("address_rate")
    async with open_server() as server:
        crowd = crowd_of(server, connects_per_address_per_minute=60)
        for _ in range(59):
            crowd.upgrade("127.0.0.1", trio.current_time())
        async with await server.connect() as stream:
            await stream.send_all(upgrade())
            assert (await answer(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        async with await server.connect() as stream:
            await stream.send_all(upgrade())
            said = await everything(stream)
        assert said.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nretry-after: 1\r\n" in said
        assert [each.path for each in server.app.seen] == [b"/ws"]
        async with await server.connect() as stream:  # HTTP is not counted
            await stream.send_all(GET)
            await answer(stream, b"hello")
        await until(lambda: _is_let_in(crowd))
    assert limited("address_rate") == before + 1


def _is_let_in(crowd: edge.Addresses) -> bool:
    try:
        crowd.upgrade("127.0.0.1", trio.current_time())
    except Crowded:
        return False
    return True


@pytest.mark.real_time
async def test_behind_a_proxy_each_client_has_its_own_limits() -> None:
    """The proxy's connections are many; what it says of clients counts, for upgrades."""
    async with open_server() as server:
        crowd = crowd_of(server, trusted_proxies=("127.0.0.0/8",), connections_per_address=1)

        async def ask(client: bytes) -> tuple[trio.SocketStream, bytes]:
            stream = await server.connect()
            forwarded = b"Host: h\r\nX-Forwarded-For: " + client
            await stream.send_all(upgrade().replace(b"Host: h", forwarded))
            return stream, (await answer(stream, b"\r\n\r\n"))[9:12]

        one, status = await ask(b"192.0.2.1")
        assert status == b"101"
        again, status = await ask(b"192.0.2.1")
        assert status == b"429"
        other, status = await ask(b"203.0.113.9, 192.0.2.2")
        assert status == b"101"
        untold, status = await ask(b"unknown")
        assert status == b"101"
        assert len(crowd) == 2
        for stream in (one, again, other, untold):
            await stream.aclose()
        await until(lambda: len(crowd) == 0)


@pytest.mark.real_time
async def test_what_a_connection_counted_is_given_back_however_it_ends() -> None:
    """Cut at random points of its life; the nursery around the server is cancelled with some in."""
    async with open_server() as server:
        crowd = crowd_of(server)
        doors = server.app.doors
        assert doors is not None
        for sent in (b"", b"GET", GET, upgrade(), upgrade() + b"\xff", b"\0\0\r\n\r\n"):
            for is_reset in (False, True):
                stream = await server.connect()
                if sent:
                    await stream.send_all(sent)
                if is_reset:
                    reset = struct.pack("ii", 1, 0)
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                await stream.aclose()
        await until(lambda: len(crowd) == 0 and len(doors) == 0)
        left = [await server.connect() for _ in range(3)]
        await left[0].send_all(upgrade())
        await answer(left[0], b"\r\n\r\n")
        await left[1].send_all(GET)
        await answer(left[1], b"hello")
        await until(lambda: len(crowd) == 1)
    assert len(crowd) == 0
    assert len(doors) == 0
    for stream in left:
        await stream.aclose()
