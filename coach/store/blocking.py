"""Blocking commands, each on a connection of its own for as long as it waits.

Cancelling one asks the server to stop waiting (CLIENT UNBLOCK). If an element was popped just
before, the pop has happened and returns it: the cancellation is then delivered at the caller's
next checkpoint, so what came must be stored before it. An element in flight when this process
dies is lost: work is claimed by a script with a lease, and pops only wake.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, final

import outcome
import trio

from .errors import ConnectionLost, NotSent
from .link import Link
from .wire import TRANSPORT_ERRORS, Command, Limits, Wire, backoff_s, pack

NAMES: Final = frozenset(
    (
        *("BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP"),
        *("WAIT", "WAITAOF"),
    )
)
_TAKING: Final = NAMES - {"WAIT", "WAITAOF"} | {"XREADGROUP"}
"""Whose reply is an element that exists nowhere else: never thrown away."""

UNBLOCK_S_MAX: Final = 1.0
"""How long a cancelled command may take to be called off before its connection is closed."""
_ANSWER_S: Final = 0.01


def is_blocking(command: Command) -> bool:
    """Whether the server may sit on this command."""
    name = command[0]
    return name in NAMES or (
        name in ("XREAD", "XREADGROUP") and any(part in (b"BLOCK", "BLOCK") for part in command)
    )


@final
class Blocking:
    """Connections that are lent to one call at a time."""

    def __init__(self, dial: Callable[[], Awaitable[Wire]], link: Link, limits: Limits) -> None:
        self._dial = dial
        self._link = link
        self._limits = limits
        self._idle: list[Wire] = []
        self._closed = False
        self.busy_count = 0

    @property
    def idle_count(self) -> int:
        """Connections kept for the next call."""
        return len(self._idle)

    async def request(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in a row on one connection; error replies are returned.

        Raises:
          NotSent: no connection within `wait_s`, or `blocking_max` calls wait already.
          ConnectionLost: the connection ended before all replies had come.
        """
        data = b"".join([pack(command) for command in commands])
        if self.busy_count >= self._limits.blocking_max:
            raise NotSent(f"{self._limits.blocking_max} blocking commands wait already")
        self.busy_count += 1
        wire: Wire | None = None
        keep = False
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            wire = await self._connect()
            replies: list[Any] = []
            waited = await outcome.acapture(self._wait, wire, data, replies, len(commands))
            if isinstance(waited, outcome.Error) and isinstance(waited.error, trio.Cancelled):
                with trio.move_on_after(UNBLOCK_S_MAX, shield=True):
                    await self._call_off(wire, replies, len(commands))
                keep = len(replies) == len(commands)
                if keep and any(map(_took, commands, replies)):
                    return replies
            waited.unwrap()
            keep = True
            return replies
        finally:
            self.busy_count -= 1
            if wire is not None:
                self._put_back(wire, keep=keep)

    def close(self) -> None:
        """Close idle connections, and those lent as they come back."""
        self._closed = True
        self.drop_idle()

    def drop_idle(self) -> None:
        """Close idle connections."""
        while self._idle:
            self._idle.pop().abort()

    async def _connect(self) -> Wire:
        while self._idle:
            wire = self._idle.pop()
            if not wire.is_stale():
                return wire
            wire.abort()
        deadline = trio.current_time() + self._limits.wait_s
        failures_count = 0
        while not self._closed:
            try:
                return await self._dial()
            except TRANSPORT_ERRORS as error:
                failures_count += 1
                pause_s = backoff_s(failures_count, self._limits, random.random())  # noqa: S311  spreads load, guards nothing
                if trio.current_time() + pause_s > deadline:
                    raise NotSent(
                        f"no connection for {self._limits.wait_s:g} s: {error}"
                    ) from error
            await trio.sleep(pause_s)
        raise NotSent("the client is closed")

    async def _wait(self, wire: Wire, data: bytes, replies: list[Any], replies_count: int) -> None:
        try:
            # Not to be torn by a cancellation: half a command cannot be called off.
            with trio.CancelScope(shield=True), trio.fail_after(self._limits.stall_s_max):
                await wire.send(data)
            while len(replies) < replies_count:
                replies.append(await wire.reply())
        except TRANSPORT_ERRORS as error:
            raise ConnectionLost(f"while waiting: {error}") from error

    async def _call_off(self, wire: Wire, replies: list[Any], replies_count: int) -> None:
        """Stop the server's waiting and take the missing replies, unless the connection ends."""
        try:
            while len(replies) < replies_count:
                # Zero means "not blocked": answered already, or not yet read by the server.
                await self._link.request(pack(("CLIENT UNBLOCK", wire.client_id)))
                with trio.move_on_after(_ANSWER_S):
                    while len(replies) < replies_count:
                        replies.append(await wire.reply())
        except TRANSPORT_ERRORS:
            return

    def _put_back(self, wire: Wire, *, keep: bool) -> None:
        if keep and not self._closed and len(self._idle) < self._limits.idle_max:
            self._idle.append(wire)
        else:
            wire.abort()


def _took(command: Command, reply: Any) -> bool:
    return command[0] in _TAKING and reply is not None and not isinstance(reply, Exception)
