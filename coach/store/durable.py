"""WAITAOF and WAIT: when what was written is on disk, or on replicas.

The server waits for the writes of the *connection* that asks, so that asking on a connection of
its own, as every command that may wait must here, would be answered at once and prove nothing
(https://redis.io/docs/latest/commands/waitaof/; measured on valkey 9.1: 0.7 ms instead of 86 ms).
So each request writes a marker first: the offset that the server then waits for lies behind all it
has run before, whoever sent it.

Callers who come together share one request (group commit): a thousand submissions in a second
cost a few connections, not a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, final

import trio

from .blocking import Blocking
from .errors import NotSent, RedisConnectionError
from .wire import Command

NAMES: Final = frozenset(["WAIT", "WAITAOF"])
REQUESTS_MAX: Final = 4
"""Under way at a time; a caller waits at most 1 + 1/4 times what one takes."""


@final
class _Group:
    """Callers who wait for the same request."""

    __slots__ = ("done", "error", "reply")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.reply: Any = None
        self.error: RedisConnectionError | None = None


@final
class Durable:
    """Answers WAIT and WAITAOF while `run` runs."""

    def __init__(self, blocking: Blocking, marker: Callable[[], str]) -> None:
        self._blocking = blocking
        self._marker = marker
        self._open_groups: dict[Command, _Group] = {}
        """Not sent yet, so that more callers may join."""
        self._closed = False
        # As many as there are different commands, since a group is announced once.
        self._announce, self._announced = trio.open_memory_channel[Command](math.inf)

    async def request(self, command: Command) -> Any:
        """The server's reply for everything it ran before; an error reply is returned.

        Raises:
          NotSent, ConnectionLost: as `Blocking.request`. Nothing is known about the disk.
        """
        if self._closed:
            raise NotSent("the client is closed")
        command = tuple(command)
        group = self._open_groups.get(command)
        if group is None:
            group = self._open_groups[command] = _Group()
            self._announce.send_nowait(command)
        await group.done.wait()
        if group.error is not None:
            raise type(group.error)(*group.error.args) from group.error
        return group.reply

    async def run(self) -> None:
        """Send the groups; ends by cancellation only."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(REQUESTS_MAX):
                    nursery.start_soon(self._send_groups)
        finally:
            self._closed = True
            self._announce.close()
            self._announced.close()
            for group in self._open_groups.values():
                group.error = NotSent("the client is closed")
                group.done.set()
            self._open_groups.clear()

    async def _send_groups(self) -> None:
        async for command in self._announced:
            group = self._open_groups.pop(command)
            mark = ("SET", self._marker(), "", "PX", 1_000)
            try:
                marked, group.reply = await self._blocking.request([mark, command])
                if isinstance(marked, Exception):
                    group.reply = marked
            except RedisConnectionError as error:
                group.error = error
            finally:
                if group.reply is None and group.error is None:
                    group.error = NotSent("the client is closed")
                group.done.set()
