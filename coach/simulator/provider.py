"""The simulated provider as a process sees it: listener, connections, the one pacing task."""

from __future__ import annotations

import errno
import gc
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ..errors import ConfigurationError
from .account import Account
from .authority import server_context
from .dialect import Dialect
from .faults import FaultName, Rule
from .http1 import Http1Connection
from .http2 import Http2Connection
from .messages import Messages
from .service import Service
from .settings import Settings
from .tls import Wire

BACKLOG: Final = 4_096


class Provider:
    """A running simulator; made by `open_provider`."""

    def __init__(self, account: Account, context: ssl.SSLContext, port: int) -> None:
        self.port = port
        self._account = account
        self._service = Service(account, on_change=self._change)
        self._context = context
        self._dirty: dict[Wire, None] = {}
        # wires with something to send at the end of this turn
        self._connections: dict[Http2Connection | Http1Connection, None] = {}
        self._sleep = trio.CancelScope()
        # of the pacing task; its deadline moves when something is scheduled that is due earlier

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self.port}"

    async def run_pacing(self) -> None:
        """Fire what is due, tick by tick, and send it: one write a connection and tick."""
        wheel, late = self._account.wheel, self._account.statistics.late_s
        while True:
            due = wheel.next_s()
            with trio.CancelScope(deadline=due) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            due = wheel.next_s()
            if due > now:
                continue
            self._service.tick(now)
            self.flush()
            late.append(trio.current_time() - due)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, from the handshake to its end; errors end only it."""
        statistics = self._account.statistics
        wire = Wire(stream, self._context, self._dirty, statistics)
        statistics.connected()
        try:
            protocol = await wire.handshake()
            statistics.handshakes += 1
            await self._talk(wire, protocol)
        except (ssl.SSLError, trio.BrokenResourceError, trio.TooSlowError):
            statistics.handshakes_failed += 1
        finally:
            statistics.connections_open -= 1
            wire.shut()

    def flush(self) -> None:
        """End a turn: send what every connection has gathered."""
        while self._dirty:
            self._dirty.popitem()[0].flush()
        due = self._account.wheel.next_s()
        if due < self._sleep.deadline:
            self._sleep.deadline = due

    async def _talk(self, wire: Wire, protocol: str | None) -> None:
        receive = self._service.receive
        connection: Http2Connection | Http1Connection
        if protocol == "h2":
            streams_max = self._account.settings.max_concurrent_streams
            connection = Http2Connection(wire, receive, max_concurrent_streams=streams_max)
        else:
            connection = Http1Connection(wire, receive)
        wire.on_drained = partial(self._drained, connection)
        self._connections[connection] = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, wire, connection, nursery.cancel_scope)
                await wire.run_writer()
                nursery.cancel_scope.cancel()
        finally:
            del self._connections[connection]
            connection.lost()

    async def _read(
        self, wire: Wire, connection: Http2Connection | Http1Connection, scope: trio.CancelScope
    ) -> None:
        try:
            connection.begin()
            self.flush()
            while data := await wire.receive():
                connection.receive(data)
                self.flush()
        except (ssl.SSLError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer is gone, which is what the end of this function means
        scope.cancel()

    def _drained(self, connection: Http2Connection | Http1Connection) -> None:
        connection.drained()
        self.flush()

    def _change(self, settings: Settings) -> None:
        for connection in self._connections:
            connection.limit_streams(settings.max_concurrent_streams)


@asynccontextmanager
async def open_provider(
    settings: Settings,
    faults: dict[FaultName, Rule],
    *,
    data_dir: Path,
    port: int = 0,
    dialect: Dialect | None = None,
) -> AsyncIterator[Provider]:
    """Listen on the loopback interface until the block is left, which cuts every connection.

    Args:
      settings: how it behaves at first.
      faults: what goes wrong at first.
      data_dir: where the authority's certificate is written, for clients to trust.
      port: 0 for a free one.
      dialect: which provider's API it speaks; None: Anthropic's.

    Raises:
      ConfigurationError: the port is taken, or the folder cannot be written; one line.
    """
    context = server_context(data_dir)
    try:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=BACKLOG)
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigurationError(f"simulator: cannot listen on port {port}: {reason}") from error
    account = Account(
        settings,
        faults,
        dialect=dialect or Messages(),
        clock=trio.current_time,
        wall=time.time,
    )
    provider = Provider(account, context, listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.run_pacing)
        await nursery.start(trio.serve_listeners, provider.serve, listeners)
        try:
            yield provider
        finally:
            nursery.cancel_scope.cancel()


def spare_the_collector() -> None:
    """Keep the garbage collector off what lives as long as the process: for its main program."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
