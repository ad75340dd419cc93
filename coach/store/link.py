"""The multiplexed connection: any number of tasks, one socket, replies in order.

A call waits in `_unsent` until the writer has put it, together with all others of the same
scheduler tick, into one `send_all`; then in `_written` until its reply comes. So:

* a cancelled caller disturbs nobody: if its call was not written yet, it never will be; if it was,
  its reply is dropped when it comes;
* when the connection ends, `_written` gets `ConnectionLost` (may have run) and `_unsent` waits for
  the next connection, or gets `NotSent` (surely did not run) after `wait_s`. Nothing is retried.

Memory: `calls_max` calls of some 300 bytes and, until they are written, their data.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, final

import hiredis
import outcome
import trio

from ..errors import first_error
from .errors import ConnectionLost, NotSent, RedisConnectionError
from .wire import NO_REPLY, TRANSPORT_ERRORS, Limits, Wire, backoff_s


@final
class _Call:
    """A packed command, or several that stay together, and the task that waits for the reply."""

    __slots__ = ("data", "queued_at", "replies", "replies_count", "task")

    def __init__(self, data: bytes, replies_count: int) -> None:
        self.data = data
        self.replies_count = replies_count
        self.replies: list[Any] = []
        self.queued_at = trio.current_time()
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        """None once answered, failed or abandoned."""

    def finish(self, result: outcome.Outcome[list[Any]]) -> bool:
        """Wake the caller; False when it has gone."""
        task, self.task = self.task, None
        if task is None:
            return False
        trio.lowlevel.reschedule(task, result)
        return True


@final
class Link:
    """Keeps one connection open while `run` runs; `request` from any task."""

    def __init__(self, dial: Callable[[], Awaitable[Wire]], limits: Limits) -> None:
        self._dial = dial
        self._limits = limits
        self._wire: Wire | None = None
        self._unsent: dict[_Call, None] = {}
        """An ordered set, oldest first: a caller that is cancelled takes its call out."""
        self._written: deque[_Call] = deque()
        """In the order of their replies, abandoned ones too. Empty without a connection."""
        self._writer: trio.lowlevel.Task | None = None
        """The writer task while it waits for something to write."""
        self._answered_at = 0.0
        """When the server last showed life, or when `_written` last became non-empty."""
        self._error: Exception | None = None
        """Why there is no connection."""
        self._closed = False
        self.connections_count = 0
        self.replies_dropped_count = 0

    # -- callers --

    @property
    def is_connected(self) -> bool:
        """Whether commands go straight to a server."""
        return self._wire is not None

    @property
    def unsent_count(self) -> int:
        """Calls that wait for a connection."""
        return len(self._unsent)

    @property
    def written_count(self) -> int:
        """Calls that wait for their reply."""
        return len(self._written)

    async def request(self, data: bytes, replies_count: int = 1) -> list[Any]:
        """Send packed commands, and wait for their replies; error replies are returned.

        Cancelled before it was written, it never will be; cancelled later it may have run.

        Raises:
          NotSent, ConnectionLost: see the module.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise NotSent("the client is closed")
        if len(self._unsent) + len(self._written) >= self._limits.calls_max:
            raise NotSent(f"{self._limits.calls_max} commands wait for Redis already")
        call = _Call(data, replies_count)
        self._unsent[call] = None
        if self._writer is not None:
            writer, self._writer = self._writer, None
            trio.lowlevel.reschedule(writer)

        def abandon(_: object) -> trio.lowlevel.Abort:
            call.task = None
            self._unsent.pop(call, None)
            return trio.lowlevel.Abort.SUCCEEDED

        replies: list[Any] = await trio.lowlevel.wait_task_rescheduled(abandon)
        return replies

    def reconnect(self) -> None:
        """Give this connection up for another, as when the server says it is the wrong one."""
        if self._wire is not None:
            self._wire.abort()

    # -- the connection --

    async def run(self) -> None:
        """Keep the connection; ends by cancellation only."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._expire_unsent)
                await self._keep_connected()
        finally:
            self._closed = True
            for call in self._unsent:
                call.finish(outcome.Error(NotSent("the client is closed")))
            self._unsent.clear()

    async def _keep_connected(self) -> None:
        failures_count = 0
        while True:
            try:
                wire = await self._dial()
            except TRANSPORT_ERRORS as error:
                self._error = error
                failures_count += 1
            else:
                failures_count = 1
                await self._serve(wire)
            await trio.sleep(backoff_s(failures_count, self._limits, random.random()))  # noqa: S311  spreads load, guards nothing

    async def _serve(self, wire: Wire) -> None:
        self._wire, self._error = wire, None
        self._answered_at = trio.current_time()
        self.connections_count += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, wire)
                nursery.start_soon(self._watch, wire)
                nursery.start_soon(self._read, wire)
        except* TRANSPORT_ERRORS as group:
            # What the watch found comes before what its closing the connection brought about.
            self._error = self._error or first_error(group)  # type: ignore[redundant-expr]
        finally:
            self._wire = None
            wire.abort()
            cause = self._error or RedisConnectionError("the client was closed")
            while self._written:
                lost = ConnectionLost(f"no answer before the connection ended: {cause}")
                lost.__cause__ = cause
                self._written.popleft().finish(outcome.Error(lost))

    async def _write(self, wire: Wire) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            while not self._unsent:
                self._writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            batch = list(self._unsent)
            self._unsent.clear()
            if not self._written:
                self._answered_at = trio.current_time()
            self._written.extend(batch)
            await wire.send(b"".join([call.data for call in batch]))
            for call in batch:
                call.data = b""

    async def _read(self, wire: Wire) -> None:
        written = self._written
        while True:
            await wire.receive()
            self._answered_at = trio.current_time()
            while (reply := wire.reply_nowait()) is not NO_REPLY:
                if type(reply) is hiredis.PushNotification:
                    continue
                if not written:
                    raise RedisConnectionError(f"a reply nobody asked for: {reply!r:.100}")
                call = written[0]
                call.replies.append(reply)
                if len(call.replies) == call.replies_count:
                    written.popleft()
                    if not call.finish(outcome.Value(call.replies)):
                        self.replies_dropped_count += 1

    async def _watch(self, wire: Wire) -> None:
        """End a connection whose server has gone silent."""
        stall_s_max = self._limits.stall_s_max
        while True:
            now = trio.current_time()
            due = self._answered_at + stall_s_max if self._written else now + stall_s_max
            if due <= now:
                self._error = RedisConnectionError(f"no answer for {stall_s_max:g} s")
                wire.abort()
            await trio.sleep_until(due)

    async def _expire_unsent(self) -> None:
        """Fail calls that have waited too long for a connection."""
        wait_s, unsent = self._limits.wait_s, self._unsent
        while True:
            now = trio.current_time()
            while (oldest := next(iter(unsent), None)) and oldest.queued_at + wait_s <= now:
                del unsent[oldest]
                cause = self._error
                late = NotSent(f"no connection for {wait_s:g} s" + (f": {cause}" if cause else ""))
                late.__cause__ = cause
                oldest.finish(outcome.Error(late))
            await trio.sleep_until((oldest.queued_at if oldest else now) + wait_s)
