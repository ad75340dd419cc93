"""Several commands in one round trip."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self, final

from redis.exceptions import RedisError

from .commands import Commands, normal, shape
from .wire import Command


@final
class Pipeline(Commands):
    """Commands queued by calling its methods (without `await`), sent by `execute`.

    With `transaction` they run as MULTI/EXEC: all or, when one is refused before it is queued or
    the connection is lost before EXEC, none. A command that fails while it runs does not stop the
    others, as always in Redis.
    """

    def __init__(
        self,
        send: Callable[[list[Command], bool], Awaitable[list[Any]]],
        *,
        transaction: bool,
    ) -> None:
        self._send = send
        self._transaction = transaction
        self._queue: list[tuple[Command, dict[str, Any]]] = []

    def execute_command(self, *args: Any, **options: Any) -> Self:
        """Queue one command. Not a checkpoint."""
        options.pop("NEVER_DECODE", None)
        self._queue.append((normal(args), options))
        return self

    def __len__(self) -> int:
        return len(self._queue)

    async def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Send what is queued and empty the queue.

        Args:
          raise_on_error: raise the first error reply; else errors stand among the results.

        Returns:
          One result a command, in their order.

        Raises:
          NotSent: surely none has run.
          ConnectionLost: without a transaction any number may have run, with one all or none.
          ResponseError: one was refused, or failed while it ran.
        """
        queue, self._queue = self._queue, []
        if not queue:
            return []
        replies = await self._send([command for command, _ in queue], self._transaction)
        results = []
        for (command, options), reply in zip(queue, replies, strict=True):
            try:
                results.append(shape(command, options, reply))
            except RedisError as error:
                if raise_on_error:
                    raise
                results.append(error)
        return results
