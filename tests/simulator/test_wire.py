"""The simulator on real sockets: TLS, both protocols, resets, quotas, peers that misbehave."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import httpx
import pytest
import trio
import trustme

from coach.errors import ConfigurationError
from coach.simulator.authority import CA_NAME, KEY_NAME
from coach.simulator.faults import FaultName, Rule
from coach.simulator.provider import Provider, open_provider
from coach.simulator.settings import Settings
from coach.simulator.statistics import Statistics
from coach.simulator.tls import UNSENT_BYTES_MAX, Wire

from .support import HEADERS, client_of, events_in, judged, question, text_of

pytestmark = pytest.mark.real_time
QUICK = {"ttft_ms": 10, "ttft_jitter_ms": 0, "events_per_s": 1_000, "judge_ms": 10}


@asynccontextmanager
async def simulator(
    path: Path, faults: dict[FaultName, Rule] | None = None, **settings: Any
) -> AsyncIterator[tuple[Provider, httpx.AsyncClient]]:
    """A quick simulator and a client of it."""
    async with (
        open_provider(Settings(**{**QUICK, **settings}), faults or {}, data_dir=path) as provider,
        client_of(provider, path) as client,
    ):
        yield provider, client


async def stats_of(client: httpx.AsyncClient) -> dict[str, float]:
    numbers: dict[str, float] = (await client.get("/stats")).json()
    return numbers


async def stats_when(client: httpx.AsyncClient, name: str, value: float) -> dict[str, float]:
    """The numbers once one of them has a value; asks again at once, since an answer takes time."""
    with trio.fail_after(10):
        while (numbers := await stats_of(client))[name] != value:
            pass
    return numbers


class RawClient:
    """HTTP/2 by hand, since httpx sends no RST_STREAM."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()

    async def request(self, body: dict[str, Any] | None, path: str = "/v1/messages") -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            stream_id,
            [
                *((":method", "GET" if body is None else "POST"), (":path", path)),
                *((":scheme", "https"), (":authority", "127.0.0.1")),
                *((name.decode(), value.decode()) for name, value in HEADERS.items()),
            ],
            end_stream=body is None,
        )
        if body is not None:
            self.h2.send_data(stream_id, json.dumps(body).encode(), end_stream=True)
        await self.flush()
        return stream_id

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def wait_for(self, kind: type[h2.events.Event], stream_id: int) -> h2.events.Event:
        while True:
            data = await self.stream.receive_some(65_536)
            if not data:
                raise ConnectionError("the simulator has closed the connection")
            events = self.h2.receive_data(data)
            await self.flush()
            for event in events:
                if isinstance(event, kind) and getattr(event, "stream_id", None) == stream_id:
                    return event


@asynccontextmanager
async def raw_client(provider: Provider, path: Path) -> AsyncIterator[RawClient]:
    context = ssl.create_default_context(cafile=str(path / CA_NAME))
    context.set_alpn_protocols(["h2"])
    tcp = await trio.open_tcp_stream("127.0.0.1", provider.port)
    stream = trio.SSLStream(tcp, context, server_hostname="127.0.0.1")
    try:
        yield RawClient(stream)
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


async def test_feedback_and_a_grade_over_http2(tmp_path: Path) -> None:
    async with simulator(tmp_path) as (_, client):
        feedback = await client.post("/v1/messages", json=question())
        grade = await client.post("/v1/messages", json=judged())
        stats = await stats_of(client)

    assert feedback.http_version == "HTTP/2"
    events = events_in(feedback.content)
    assert [events[0][0], events[-1][0]] == ["message_start", "message_stop"]
    assert text_of(events).startswith("[")
    assert grade.json()["stop_reason"] == "end_turn"
    assert (stats["handshakes"], stats["connections_open"], stats["connections_peak"]) == (1, 1, 1)
    assert (stats["streams_open"], stats["streams_finished"]) == (0, 2)
    assert stats["bytes_sent"] > len(feedback.content)


async def test_many_streams_share_a_connection_and_each_gets_its_own_text(tmp_path: Path) -> None:
    names = [f"Ab{chr(97 + index // 26)}{chr(97 + index % 26)}" for index in range(40)]
    answers: dict[int, str] = {}

    async def ask(index: int) -> None:
        response = await client.post(
            "/v1/messages", json=question(f"My friend {names[index]} is kind. " * 3)
        )
        answers[index] = text_of(events_in(response.content))

    # The first token comes late enough for all to be there by then.
    async with simulator(tmp_path, ttft_ms=500) as (_, client):
        await client.get("/stats")
        async with trio.open_nursery() as nursery:
            for index in range(40):
                nursery.start_soon(ask, index)
        stats = await stats_of(client)

    assert all(names[index] in answers[index] for index in range(40))
    assert (stats["handshakes"], stats["streams_peak"]) == (1, 40)
    assert stats["writes"] < stats["events_sent"]


async def test_a_stream_that_the_client_resets_is_counted_and_over(tmp_path: Path) -> None:
    async with simulator(tmp_path, events_per_s=20) as (provider, _):
        async with raw_client(provider, tmp_path) as client:
            stream_id = await client.request(question())
            await client.wait_for(h2.events.DataReceived, stream_id)
            client.h2.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
            stats_id = await client.request(None, "/stats")
            data = await client.wait_for(h2.events.DataReceived, stats_id)
        assert isinstance(data, h2.events.DataReceived)
        stats = json.loads(data.data)

    assert (stats["streams_cancelled"], stats["streams_lost"], stats["streams_open"]) == (1, 0, 0)
    assert stats["timers"] == 0


async def test_streams_of_a_lost_connection_are_counted_apart(tmp_path: Path) -> None:
    async with simulator(tmp_path, events_per_s=20) as (provider, other):
        async with raw_client(provider, tmp_path) as client:
            ids = [await client.request(question()) for _ in range(3)]
            await client.wait_for(h2.events.DataReceived, ids[-1])
        stats = await stats_when(other, "streams_open", 0)

    assert (stats["streams_cancelled"], stats["streams_lost"]) == (0, 3)


async def test_over_quota_is_429_with_its_headers(tmp_path: Path) -> None:
    async with simulator(tmp_path, requests_per_minute=1, input_tokens_per_minute=10_000) as (
        _,
        client,
    ):
        first = await client.post("/v1/messages", json=question())
        second = await client.post("/v1/messages", json=question())
        stats = await stats_of(client)

    assert (first.status_code, second.status_code) == (200, 429)
    assert 50 <= int(second.headers["retry-after"]) <= 60
    assert second.json()["error"]["type"] == "rate_limit_error"
    for response in (first, second):
        assert response.headers["anthropic-ratelimit-requests-limit"] == "1"
        assert response.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert response.headers["anthropic-ratelimit-input-tokens-limit"] == "10000"
    assert stats["rate_limited"] == 1


async def test_a_client_without_http2_is_served_over_http11(tmp_path: Path) -> None:
    async with (
        simulator(tmp_path) as (provider, _),
        client_of(provider, tmp_path, http2=False) as client,
    ):
        feedback = await client.post("/v1/messages", json=question())
        grade = await client.post("/v1/messages", json=judged())
        head = await client.head("/stats")
        stats = await stats_of(client)

    assert (feedback.http_version, head.status_code) == ("HTTP/1.1", 405)
    assert events_in(feedback.content)[-1][0] == "message_stop"
    assert grade.json()["stop_reason"] == "end_turn"
    assert stats["handshakes"] == 1


@pytest.mark.parametrize("http2", [True, False])
@pytest.mark.parametrize("fault", ["reset", "cut", "disconnect", "goaway", "refused_stream"])
async def test_faults_break_this_request_and_not_the_next(
    tmp_path: Path, fault: FaultName, http2: bool
) -> None:
    async with simulator(tmp_path, {fault: Rule(next=1)}) as (provider, _):
        async with client_of(provider, tmp_path, http2=http2) as client:
            with pytest.raises(httpx.TransportError):
                await client.post("/v1/messages", json=question())
        async with client_of(provider, tmp_path, http2=http2) as client:
            again = await client.post("/v1/messages", json=question())
            stats = await stats_when(client, "connections_open", 1)

    assert again.status_code == 200
    assert stats["streams_open"] == 0


async def test_control_reaches_what_is_already_connected(tmp_path: Path) -> None:
    async with simulator(tmp_path) as (_, client):
        await client.get("/stats")
        response = await client.post(
            "/control", json={"faults": {"overloaded": 1}, "max_concurrent_streams": 3}
        )
        refused = await client.post("/v1/messages", json=question())

    assert (response.status_code, refused.status_code) == (200, 529)


async def test_bytes_that_are_no_tls_end_their_own_connection(tmp_path: Path) -> None:
    async with simulator(tmp_path) as (provider, client):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 600, b""):
            stream = await trio.open_tcp_stream("127.0.0.1", provider.port)
            if garbage:
                await stream.send_all(garbage)
                await stream.send_eof()
            await stream.aclose()
        untrusting = client_of(provider, tmp_path, verify=True)
        async with untrusting:
            with pytest.raises(httpx.ConnectError):
                await untrusting.get("/stats")
        stats = await stats_when(client, "handshakes_failed", 4)

    assert (stats["handshakes"], stats["connections_open"]) == (1, 1)


async def test_a_port_in_use_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"^simulator: .* port {port}: it is in use$"):
            async with open_provider(Settings(), {}, data_dir=tmp_path, port=port):
                pass


async def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"^simulator: cannot write to \S+: \w"):
        async with open_provider(Settings(), {}, data_dir=tmp_path / "file"):
            pass


async def test_leaving_cuts_every_connection_and_leaves_the_certificate(tmp_path: Path) -> None:
    async with AsyncExitStack() as after:
        async with simulator(tmp_path, {"silent": Rule(probability=1.0)}) as (provider, _):
            client = await after.enter_async_context(raw_client(provider, tmp_path))
            stream_id = await client.request(question())
        with pytest.raises((trio.BrokenResourceError, ConnectionError)):
            await client.wait_for(h2.events.DataReceived, stream_id)
    assert sorted(await trio.to_thread.run_sync(os.listdir, tmp_path)) == [KEY_NAME, CA_NAME]


# --- the TLS connection itself ----------------------------------------------------------------


@asynccontextmanager
async def wired() -> AsyncIterator[tuple[Wire, trio.SSLStream[trio.SocketStream], trio.Event]]:
    """A wire with its writer running, its peer, and the event of the writer's end."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    near, far = (trio.SocketStream(each) for each in trio.socket.socketpair())
    wire = Wire(near, server, {}, Statistics())
    peer = trio.SSLStream(far, trusting, server_hostname="localhost")
    ended = trio.Event()

    async def write() -> None:
        await wire.run_writer()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.do_handshake)
        await wire.handshake()
        nursery.start_soon(write)
        yield wire, peer, ended
        nursery.cancel_scope.cancel()
    wire.shut()
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(peer)


async def read_on(peer: trio.SSLStream[trio.SocketStream]) -> None:
    while await peer.receive_some(1 << 20):
        pass


async def test_what_the_socket_does_not_take_follows_in_order() -> None:
    drained = trio.Event()
    async with wired() as (wire, peer, _):
        wire.on_drained = drained.set
        data = b"".join(index.to_bytes(4, "big") for index in range(500_000))
        wire.put(data)
        wire.flush()
        blocked = [wire.blocked]
        wire.put(b"the end")
        wire.flush()
        received = bytearray()
        while len(received) < len(data) + 7:
            received += await peer.receive_some(1 << 20)
        await drained.wait()
        blocked.append(wire.blocked)

    assert blocked == [True, False]
    assert received == data + b"the end"


async def test_a_peer_that_does_not_read_is_cut_off_at_a_limit() -> None:
    async with wired() as (wire, peer, _):
        wire.put(b"x" * (UNSENT_BYTES_MAX // 2 + 1))
        wire.flush()
        for _ in range(2):
            wire.put(b"x" * (UNSENT_BYTES_MAX // 2))
            wire.flush()
        with pytest.raises(trio.BrokenResourceError):
            await read_on(peer)


async def test_a_wire_that_is_aborted_while_blocked_ends_in_peace() -> None:
    async with wired() as (wire, _, ended):
        wire.put(b"x" * 4_000_000)
        wire.flush()
        await trio.testing.wait_all_tasks_blocked()
        wire.abort()
        await ended.wait()
        wire.put(b"more")
        wire.flush()


async def test_a_wire_closes_after_everything_has_gone() -> None:
    async with wired() as (wire, peer, ended):
        wire.put(b"x" * 4_000_000)
        wire.close()
        wire.flush()
        received = 0
        while received < 4_000_000:
            received += len(await peer.receive_some(1 << 20))
        await ended.wait()
        wire.shut()
        assert await peer.receive_some(1) == b""
