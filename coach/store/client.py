"""The Redis client: redis-py's command methods on Trio.

From redis-py: command methods, reply callbacks, error classes. From hiredis: packing and parsing.
The transport is coach's own, since redis-py's is asyncio's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, final

from ..nurseries import running
from .cluster import Cluster
from .commands import Commands, normal, shape
from .pipeline import Pipeline
from .sentinel import MasterDialer
from .server import RedisStatistics, Server, Transport
from .url import parse_cluster_url, parse_sentinel_url, parse_url
from .wire import Limits, open_wire


@asynccontextmanager
async def open_redis(
    url: str, *, wait_s: float = 5.0, name: str | None = None
) -> AsyncIterator[Redis]:
    """Open a client. Entering does not wait for the server: the first command does.

    The connection outlives a cancellation of the body, so that what the body gives back under a
    shield still reaches Redis, and ends with the body.

    Args:
      url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`.
      wait_s: how long a command may wait for a connection before `NotSent`.
      name: what CLIENT LIST shows.

    Raises:
      ConfigurationError: the URL means nothing.
      whatever the body raised, as it is: never inside an exception group of this block's making.
    """
    transport = _transport(url, name, Limits(wait_s=wait_s))
    async with running(transport.run):
        yield Redis(transport)


def _transport(url: str, name: str | None, limits: Limits) -> Transport:
    scheme = url.partition("://")[0]
    if scheme == "redis+cluster":
        return Cluster(parse_cluster_url(url), name=name, limits=limits)
    if scheme == "redis+sentinel":
        dialer = MasterDialer(parse_sentinel_url(url), name=name, limits=limits)
        return Server(dialer.dial, limits, follows_master=True)
    dial = partial(open_wire, parse_url(url), name=name, limits=limits)
    return Server(dial, limits)


@final
class Redis(Commands):
    """Handle lent out by `open_redis`, and built nowhere else; shared by any number of tasks.

    Replies are bytes, not text. Commands of all tasks share one connection; blocking ones (BLPOP,
    XREAD BLOCK, WAITAOF, …) get one of their own while they wait.

    Every command is a checkpoint and raises, besides the server's `ResponseError`,
    `NotSent` (surely did not run) or `ConnectionLost` (may have run). Cancelled before it was
    written it will not run; cancelled later it may have. A cancelled blocking pop loses no
    element: if one was taken in that very moment, it is returned.

    WAITAOF and WAIT speak of everything the server ran before they came, not just of one
    connection's writes. (In a pipeline they speak of that pipeline's own.)
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command; what all the methods end in.

        Raises:
          DataError: an argument Redis cannot take, or a command that would change the state of
            the shared connection (SUBSCRIBE, MULTI, SELECT, …).
        """
        command = normal(args)
        options.pop("NEVER_DECODE", None)
        return shape(command, options, await self._transport.request(command))

    def scan_keys(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """Every key like `pattern`, as SCAN's MATCH has it, on all nodes of a cluster.

        Looks at the whole database, piece by piece. A key may come twice; one that is made, or in a
        cluster moves, meanwhile may not come.

        Raises:
          RedisError: as every command.
        """
        return self._transport.scan(pattern)

    def pipeline(self, *, transaction: bool = True) -> Pipeline:
        """Commands to send together; as MULTI/EXEC, or just in one round trip."""
        return Pipeline(self._transport.request_batch, transaction=transaction)

    def statistics(self) -> RedisStatistics:
        """What the client is doing at this moment."""
        return self._transport.statistics()
