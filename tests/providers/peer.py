"""A provider's end of HTTP/2 for tests: a real `h2` server, scripted per request."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import attrs
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import trio
import trio.testing

from coach import config
from coach.providers.exchange import Origin
from coach.providers.pool import Pool, open_pool_with

ORIGIN = Origin("provider.test", 443)


@attrs.define(eq=False)
class Exchange:
    """A request, and the means to answer it."""

    connection: PeerConnection
    id: int
    headers: dict[bytes, bytes]
    body: bytearray = attrs.field(factory=bytearray)
    whole: trio.Event = attrs.field(factory=trio.Event)
    """The request has come whole."""
    gone: trio.Event = attrs.field(factory=trio.Event)
    """The client reset it, or its connection is lost."""

    async def head(self, status: int = 200, *headers: tuple[str, str], end: bool = False) -> None:
        """Send the head of the response."""
        await self._alive()
        fields = [(":status", str(status)), *headers]
        self.connection.h2.send_headers(self.id, fields, end_stream=end)
        if end:
            self.connection.exchanges.pop(self.id)
        await self.connection.flush()

    async def data(self, data: bytes, *, end: bool = False) -> None:
        """Send some of the body, waiting for the window."""
        h2 = self.connection.h2
        while data or end:
            await self._alive()
            size = min(h2.local_flow_control_window(self.id), 16_384, len(data))
            if data and size <= 0:
                await self.connection.window_grew.wait()
                continue
            part, data = data[:size], data[size:]
            last = end and not data
            h2.send_data(self.id, part, end_stream=last)
            if last:
                self.connection.exchanges.pop(self.id)
            await self.connection.flush()
            if last:
                return

    async def reset(self, code: int = 2) -> None:
        """Send RST_STREAM."""
        await self._alive()
        self.connection.h2.reset_stream(self.id, code)
        self.connection.exchanges.pop(self.id)
        await self.connection.flush()

    async def _alive(self) -> None:
        """The script of an exchange that is gone goes no further."""
        if self.gone.is_set():
            await trio.sleep_forever()


Script = Callable[[Exchange], Awaitable[None]]


class PeerConnection:
    """One connection of the peer."""

    def __init__(self, peer: Peer, stream: trio.abc.Stream) -> None:
        self.peer = peer
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: peer.streams_max,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: peer.window,
            },
        )
        self.exchanges: dict[int, Exchange] = {}
        self.window_grew = trio.Event()
        self.lock = trio.Lock()

    async def flush(self) -> None:
        """Send what h2 has to say."""
        async with self.lock:
            data = self.h2.data_to_send()
            if data:
                await self.stream.send_all(data)

    async def goaway(self, last_id: int) -> None:
        """GOAWAY as a graceful server sends it: streams up to `last_id` go on."""
        payload = last_id.to_bytes(4, "big") + bytes(4)
        async with self.lock:
            await self.stream.send_all(b"\0\0\x08\x07\0\0\0\0\0" + payload)

    async def serve(self) -> None:
        """Until the connection ends."""
        self.peer.connections.append(self)
        try:
            async with trio.open_nursery() as nursery:
                if not self.peer.mute:
                    self.h2.initiate_connection()
                    await self.flush()
                while data := await self.stream.receive_some(65_536):
                    if self.peer.deaf:
                        continue
                    for event in self.h2.receive_data(data):
                        self._handle(event, nursery)
                    await self.flush()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            for exchange in self.exchanges.values():
                exchange.gone.set()
            self.peer.connections.remove(self)
            self.peer.connections_ended += 1
            await trio.aclose_forcefully(self.stream)

    def _handle(self, event: h2.events.Event, nursery: trio.Nursery) -> None:
        peer = self.peer
        if isinstance(event, h2.events.RequestReceived):
            exchange = Exchange(self, event.stream_id, dict(event.headers))
            self.exchanges[event.stream_id] = exchange
            peer.streams_peak = max(peer.streams_peak, len(self.exchanges))
            peer.requests += 1
            nursery.start_soon(partial(self._answer, exchange))
        elif isinstance(event, h2.events.DataReceived):
            if peer.takes_bodies:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.exchanges[event.stream_id].body += event.data
        elif isinstance(event, h2.events.StreamEnded):
            self.exchanges[event.stream_id].whole.set()
        elif isinstance(event, h2.events.StreamReset):
            peer.resets.append(int(event.error_code))
            if event.stream_id in self.exchanges:
                self.exchanges.pop(event.stream_id).gone.set()
        elif isinstance(event, h2.events.WindowUpdated):
            self.window_grew.set()
            self.window_grew = trio.Event()
        elif isinstance(event, h2.events.PingReceived):
            peer.pings += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            peer.goaways += 1

    async def _answer(self, exchange: Exchange) -> None:
        """Run the script, which ends with the client's interest."""
        async with trio.open_nursery() as nursery:

            async def end_when_gone() -> None:
                await exchange.gone.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_when_gone)
            await self.peer.script(exchange)
            nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Peer:
    """What the provider does, and what it saw."""

    script: Script
    streams_max: int = 100
    window: int = 65_535
    """Of each stream, for request bodies."""
    takes_bodies: bool = True
    mute: bool = False
    """Never sends SETTINGS."""
    deaf: bool = False
    """Reads, and reacts to nothing."""
    refuses: bool = False
    """Cannot be connected to."""
    connect_s: float = 0.0
    connections: list[PeerConnection] = attrs.field(factory=list)
    connections_ended: int = 0
    dials: int = 0
    requests: int = 0
    streams_peak: int = 0
    resets: list[int] = attrs.field(factory=list)
    pings: int = 0
    goaways: int = 0

    @property
    def streams_open(self) -> int:
        return sum(len(connection.exchanges) for connection in self.connections)


class PlainWire:
    """A `Wire` over any trio stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.arrived_at = 0.0
        self.http1 = False
        self.stream = stream

    async def receive(self) -> bytes:
        data = await self.stream.receive_some(262_144)
        self.arrived_at = trio.current_time()
        return bytes(data)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


@asynccontextmanager
async def open_pool_to(
    peer: Peer,
    *,
    on_batch: Callable[[float], None] | None = None,
    settings: Mapping[str, float] | None = None,
) -> AsyncIterator[Pool]:
    """A pool whose every connection leads to `peer`, in memory."""
    async with trio.open_nursery() as nursery:

        async def dial(origin: Origin) -> PlainWire:
            assert origin == ORIGIN
            peer.dials += 1
            await trio.sleep(peer.connect_s)
            if peer.refuses:
                raise ConnectionRefusedError("nobody is there")
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(PeerConnection(peer, theirs).serve)
            return PlainWire(ours)

        limits = config.Pool(**(settings or {}))  # type: ignore[arg-type]
        async with open_pool_with(limits, dial, on_batch=on_batch) as pool:
            yield pool
        with trio.fail_after(1):  # what was sent last is to be seen
            while peer.connections:  # noqa: ASYNC110
                await trio.sleep(0.01)


@asynccontextmanager
async def serve_tls(peer: Peer, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve `peer` over TLS on a free port of the loopback interface; yields the port."""

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError:
            return
        await PeerConnection(peer, stream).serve()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_ssl_over_tcp, serve, 0, context, host="127.0.0.1")
        )
        yield listeners[0].transport_listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()
