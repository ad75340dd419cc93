"""One Redis server: its multiplexed connection and its blocking ones."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, final

import attrs
import trio
from redis.exceptions import ReadOnlyError

from .blocking import Blocking, is_blocking
from .durable import NAMES as DURABLE
from .durable import Durable
from .errors import NotSent
from .link import Link
from .wire import Command, Limits, Wire, pack

MARKER: Final = "sync"
"""The key that WAITAOF writes, for a second."""
SCANNED: Final = 1_000
"""Keys looked at in one round trip."""


@attrs.frozen(kw_only=True)
class RedisStatistics:
    """What a client is doing, for metrics and tests; of a cluster the sum of its nodes."""

    connected: bool
    """Of a cluster: to every node that is known."""
    connections_count: int
    """Multiplexed connections opened so far; all but the first are reconnections."""
    unsent_count: int
    """Commands that wait for a connection."""
    written_count: int
    """Commands that wait for their reply."""
    replies_dropped_count: int
    """Replies that came after their caller was cancelled."""
    blocking_count: int
    """Blocking commands that wait, each on its own connection."""
    idle_count: int
    """Connections kept for the next blocking command."""


class Transport(Protocol):
    """Where commands go: one server, or a cluster of them."""

    async def request(self, command: Command) -> Any:
        """The reply; an error reply is returned."""
        ...

    async def request_batch(self, commands: Sequence[Command], transaction: bool) -> list[Any]:
        """A reply for each; error replies are returned, a refused transaction is raised."""
        ...

    def scan(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """Every key like `pattern`, wherever it lies; see `Redis.scan_keys`."""
        ...

    async def run(self) -> None:
        """Keep the connections; ends by cancellation only."""
        ...

    def statistics(self) -> RedisStatistics:
        """A snapshot."""
        ...


@final
class Server:
    """The transport to one server, whichever `dial` finds.

    Args:
      dial: opens a connection.
      limits: bounds on waiting and memory.
      follows_master: a server that has become a replica is the wrong one: dial again.
      marker: names a key that this server may write, for WAITAOF.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Wire]],
        limits: Limits,
        *,
        follows_master: bool = False,
        marker: Callable[[], str] = lambda: MARKER,
    ) -> None:
        self._link = Link(dial, limits)
        self._blocking = Blocking(dial, self._link, limits)
        self._durable = Durable(self._blocking, marker)
        self._follows_master = follows_master

    async def request(self, command: Command) -> Any:
        """See `Transport`."""
        if command[0] in DURABLE:
            reply = await self._durable.request(command)
        elif is_blocking(command):
            (reply,) = await self._blocking.request([command])
        else:
            (reply,) = await self._link.request(pack(command))
        if self._follows_master and isinstance(reply, ReadOnlyError):
            self._link.reconnect()
            self._blocking.drop_idle()
            raise NotSent("the server is no master any more") from reply
        return reply

    async def request_batch(self, commands: Sequence[Command], transaction: bool) -> list[Any]:
        """See `Transport`. With a blocking command among them, on a connection of their own."""
        if transaction:
            return await self._transact(commands)
        if any(map(is_blocking, commands)):
            return await self._blocking.request(commands)
        data = b"".join([pack(command) for command in commands])
        return await self._link.request(data, len(commands))

    async def scan(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """See `Transport`."""
        cursor = b"0"
        while True:
            reply = await self.request(("SCAN", cursor, "MATCH", pattern, "COUNT", SCANNED))
            if isinstance(reply, Exception):
                raise reply
            cursor, keys = reply
            for key in keys:
                yield key
            if cursor == b"0":
                return

    async def run(self) -> None:
        """See `Transport`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._durable.run)
                nursery.start_soon(self._link.run)
        finally:
            self._blocking.close()

    def statistics(self) -> RedisStatistics:
        """See `Transport`."""
        return RedisStatistics(
            connected=self._link.is_connected,
            connections_count=self._link.connections_count,
            unsent_count=self._link.unsent_count,
            written_count=self._link.written_count,
            replies_dropped_count=self._link.replies_dropped_count,
            blocking_count=self._blocking.busy_count,
            idle_count=self._blocking.idle_count,
        )

    async def _transact(self, commands: Sequence[Command]) -> list[Any]:
        data = b"".join([pack(command) for command in [("MULTI",), *commands, ("EXEC",)]])
        *queued, result = await self._link.request(data, len(commands) + 2)
        for reply in (*queued, result):
            if isinstance(reply, Exception):
                raise reply
        replies: list[Any] = result
        return replies
