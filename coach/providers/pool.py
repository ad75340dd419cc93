"""The pool: connections to providers, shared by everything that asks them.

HTTP/2 wherever the peer offers it, else HTTP/1.1 with one request a connection at a time.

`Pool` has two faces. `open_stream` calls a receiver from the connection's reader, with no task in
between. As an `httpx.AsyncBaseTransport` it serves whoever wants a response object.

Order of ending: who asks ends first, and resets what it has not finished; the connections are
closed last, when these frames have left.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, final
from urllib.parse import urlsplit

import attrs
import httpx
import trio

from .. import config
from ..errors import ConfigurationError
from ..nurseries import open_plain_nursery
from .call import Call
from .connection import Connection
from .exchange import OF_CONNECTION, Origin, Receiver, StreamError, StreamRequest
from .line import OriginLine
from .response import Collector, ResponseBody, as_httpx_error
from .tls import Dial, Wire, client_context, dial_plain, dial_tls

Stream = Call
"""What `Pool.open_stream` lends out: `wait_head`, `wait_end`, `close`."""


class OpensStreams(Protocol):
    """Where a request can be sent; see `Pool`."""

    def open_stream(
        self, request: StreamRequest, receiver: Receiver
    ) -> AbstractAsyncContextManager[Stream]:
        """See `Pool.open_stream`."""


@attrs.frozen(kw_only=True)
class PoolStatistics:
    """The pool at this moment."""

    connections: int
    streams: int
    waiting: int
    """Requests that no connection has room for."""
    handshakes: int
    """Connections made since the start."""
    resets: int
    """Streams that were given up by RST_STREAM since the start (over HTTP/1.1 there is none)."""


@final
class Pool(httpx.AsyncBaseTransport):
    """Handle lent out by `open_pool`, and built nowhere else."""

    def __init__(
        self,
        settings: config.Pool,
        nursery: trio.Nursery,
        dial: Dial,
        on_batch: Callable[[float], None] | None,
    ) -> None:
        self._settings = settings
        self._nursery = nursery
        self._dial = dial
        self._on_batch = on_batch
        self._lines: dict[Origin, OriginLine] = {}
        self._warm: dict[Origin, OriginLine] = {}  # those of configured providers
        self._handshakes = 0
        self._retrying: set[OriginLine] = set()  # after a failure, each by one task

    @asynccontextmanager
    async def open_stream(
        self, request: StreamRequest, receiver: Receiver
    ) -> AsyncIterator[Stream]:
        """Send a request; its response goes to the receiver as it comes.

        Entering waits until a connection has taken the request, `pool.connect_s_max` at most.
        Leaving does not block: a response that is not whole is given up, and RST_STREAM(CANCEL)
        stands in the connection's output before its slot can be used by another.

        A request that the peer has surely not acted on is sent once more, on another connection.

        Raises:
          StreamError: no connection, or none had room.

        Cancellation: while it waits for a connection nothing has been sent.
        """
        call = self._call(request, receiver)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            call.enter()
            await call.wait_sent()
            yield call
        finally:
            call.close()

    def statistics(self, origin: Origin | None = None) -> PoolStatistics:
        """A snapshot: of one origin, whose handshakes are not told apart, or of all."""
        lines = [line for line in self._lines.values() if origin in (None, line.origin)]
        connections = [each for line in lines for each in line.connections]
        return PoolStatistics(
            connections=len(connections),
            streams=sum(len(each.http.streams) for each in connections),
            waiting=sum(line.waiting for line in lines),
            handshakes=self._handshakes,
            resets=sum(line.resets_sent for line in lines)
            + sum(each.http.resets_sent for each in connections),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Serve httpx: returns at the head of the response, whose body is streamed.

        httpx's own timeouts are not looked at: the pool's limits hold, and callers write
        `trio.fail_after`. A body that is not read holds back its own stream only.

        Raises:
          httpx.UnsupportedProtocol: neither https nor http to this machine.
          httpx.ConnectError, ReadTimeout, RemoteProtocolError: `unreachable`, `stalled`, `cut`.
        """
        if not _is_served(request.url):
            raise httpx.UnsupportedProtocol("only https is served", request=request)
        receiver = Collector()
        call = self._call(await _stream_request(request), receiver, hold=True)
        receiver.on_arrival = call.notify
        call.enter()
        try:
            await call.wait_head()
        except StreamError as error:
            raise as_httpx_error(error, request) from error
        except BaseException:
            call.close()
            raise
        return httpx.Response(
            receiver.status,
            headers=list(receiver.headers),
            stream=ResponseBody(call, receiver, request),
            extensions={"http_version": call.http_version},
        )

    def _keep_warm(self, origin: Origin) -> None:
        """From now on there is a connection, asked for or not."""
        line = OriginLine(
            origin, self._settings, self._connect_soon, warm=True, on_load=self._share_load
        )
        self._lines[origin] = self._warm[origin] = line
        line.on_room()

    def _share_load(self) -> None:
        """Every configured provider is to have room for what the busiest other one carries."""
        for line in self._warm.values():
            others = [each.load for each in self._warm.values() if each is not line]
            line.stand_by(max(others, default=0))

    def _call(self, request: StreamRequest, receiver: Receiver, *, hold: bool = False) -> Call:
        line = self._lines.get(request.origin)
        if line is None:
            line = OriginLine(request.origin, self._settings, self._connect_soon)
            self._lines[request.origin] = line
        return Call(line, request, receiver, wait_s=self._settings.connect_s_max, hold=hold)

    def _connect_soon(self, line: OriginLine) -> None:
        self._nursery.start_soon(self._connect, line)

    async def _connect(self, line: OriginLine) -> None:
        """Connect, serve the connection until it ends, and look later if that came too soon."""
        await self._serve(line)
        if line in self._retrying:
            return
        self._retrying.add(line)
        while trio.current_time() < line.retry_at:  # noqa: ASYNC110  it may move meanwhile
            await trio.sleep_until(line.retry_at)
        self._retrying.discard(line)
        line.on_room()

    async def _serve(self, line: OriginLine) -> None:
        ready_by = trio.current_time() + self._settings.connect_s_max
        wire: Wire | None = None
        reason = f"none within {self._settings.connect_s_max:g} s"
        with trio.move_on_at(ready_by):
            try:
                wire = await self._dial(line.origin)
            except (OSError, UnicodeError, trio.BrokenResourceError) as error:
                reason = str(error)
        if wire is None:
            line.not_connected(reason)
            return
        self._handshakes += 1
        connection = Connection(wire, self._settings, line, self._on_batch)
        line.connected(connection)
        await connection.run(ready_by)

    def _close(self) -> None:
        for line in self._lines.values():
            line.close()
        self._nursery.cancel_scope.cancel("the pool is closed")


@asynccontextmanager
async def open_pool(
    settings: config.Settings, *, on_batch: Callable[[float], None] | None = None
) -> AsyncIterator[Pool]:
    """Open the pool; it begins to connect to every configured provider, and waits for none.

    Further connections are made before they are needed, and for other origins when they are.

    Args:
      settings: the pool's limits, and whom to trust at the providers' addresses.
      on_batch: called once for each wake-up that brought data for receivers, with the seconds
        from reading the socket until all of them had returned. Must neither block nor raise.

    Raises:
      ConfigurationError: a `ca_file` cannot be used.
      whatever the body raised, as it is.
    """
    dial, origins = dialer(settings)
    warm = origins if settings.pool.keep_warm else []
    async with open_pool_with(settings.pool, dial, on_batch=on_batch, warm=warm) as pool:
        yield pool


def dialer(settings: config.Settings) -> tuple[Dial, list[Origin]]:
    """How connections are made, and where those of the configured providers lead over TLS.

    Raises:
      ConfigurationError: a `ca_file` cannot be used.
    """
    contexts = _contexts(settings)

    async def dial(origin: Origin) -> Wire:
        if not origin.secure:
            return await dial_plain(origin)
        if origin not in contexts:
            contexts[origin] = client_context(None)
        return await dial_tls(origin, contexts[origin])

    return dial, list(contexts)


@asynccontextmanager
async def open_pool_with(
    settings: config.Pool,
    dial: Dial,
    *,
    on_batch: Callable[[float], None] | None = None,
    warm: Iterable[Origin] = (),
) -> AsyncIterator[Pool]:
    """Open a pool over connections of another kind, as tests do."""
    async with open_plain_nursery() as nursery:
        pool = Pool(settings, nursery, dial, on_batch)
        try:
            for origin in warm:
                pool._keep_warm(origin)  # noqa: SLF001  made here
            yield pool
        finally:
            pool._close()  # noqa: SLF001  made here


def origin_of(base_url: str) -> Origin:
    """Where a provider's address leads; the settings have checked its scheme."""
    parts = urlsplit(base_url)
    assert parts.hostname is not None
    secure = parts.scheme == "https"
    return Origin(parts.hostname, parts.port or (443 if secure else 80), secure)


def _contexts(settings: config.Settings) -> dict[Origin, ssl.SSLContext]:
    by_file: dict[str | None, ssl.SSLContext] = {}
    contexts: dict[Origin, ssl.SSLContext] = {}
    for provider in settings.provider:
        if not origin_of(provider.base_url).secure:
            continue
        if provider.ca_file not in by_file:
            try:
                by_file[provider.ca_file] = client_context(provider.ca_file)
            except OSError as error:
                raise ConfigurationError(
                    f"provider {provider.name}: cannot use ca_file {provider.ca_file}: {error}"
                ) from error
        origin, context = origin_of(provider.base_url), by_file[provider.ca_file]
        if contexts.setdefault(origin, context) is not context:
            raise ConfigurationError(
                f"provider {provider.name}: another one at {origin.authority} has another ca_file"
            )
    return contexts


def _is_served(url: httpx.URL) -> bool:
    return url.scheme == "https" or (url.scheme == "http" and url.host in config.LOOPBACK)


async def _stream_request(request: httpx.Request) -> StreamRequest:
    assert isinstance(request.stream, httpx.AsyncByteStream)
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    try:
        return StreamRequest(
            origin=origin_of(str(request.url)),
            method=request.method,
            path=request.url.raw_path.decode("ascii"),
            headers=[field for field in headers if field[0] not in OF_CONNECTION],
            body=b"".join([part async for part in request.stream]),
        )
    except ValueError as error:
        raise httpx.LocalProtocolError(str(error), request=request) from error
