"""The budget_* scripts with types, and how long one insists on any script of this room.

Every one may be run again after `ConnectionLost`: reservations and tickets have names their owner
chose, and a script that meets a name it knows changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import attrs
import trio
from redis.exceptions import (
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from ..errors import Overloaded
from ..store import NotSent, Redis, RedisError, script
from .quota import Amounts, Outlook

UNAVAILABLE: Final = (
    RedisConnectionError,
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
UNAVAILABLE_CODES: Final = ("BUSY ", "MISCONF ", "NOREPLICAS ")
"""What it says when a later try may succeed; for these codes redis-py has no classes."""

RETRY_S: Final = 0.05
"""Between two tries."""
GIVE_BACK_S_MAX: Final = 1.0
"""How long leaving may be held up by a settlement; beyond it the lease sees to it."""
LAST_TRY_S_MAX: Final = 0.1
"""Likewise after Redis was away for as long as a request may wait."""
GATE_S_MAX: Final = 3600.0
"""The longest that a provider's word can keep everybody away."""

T = TypeVar("T")


def may_pass(error: RedisError) -> bool:
    """Whether Redis says, or its client, that a later try may succeed."""
    return isinstance(error, UNAVAILABLE) or str(error).startswith(UNAVAILABLE_CODES)


class RedisAway(Overloaded):
    """Redis has not answered for as long as a request may wait for it."""


@attrs.define
class Patience:
    """How long one request waits for Redis in all, whatever it asks of it: limits, then budgets.

    Shared by the calls of one request, which take from it in turn. Waiting in line is not waiting
    for Redis, as long as Redis answers.
    """

    left_s: float
    """0.0: the next call that needs Redis is `RedisAway` at once, and nothing is sent."""


@attrs.define
class Insistence:
    """Runs scripts until Redis answers, or long enough."""

    wait_s: float
    patience: Patience | None = None
    """What the request has left, where that is less than `wait_s`."""
    may_have_run: bool = False
    """False: surely nothing has changed in Redis."""

    async def __call__(self, run: Callable[[], Awaitable[T]]) -> T:
        """The reply of `run`.

        Raises:
          RedisAway: none within `wait_s`, or within what is left of `patience`.

        Cancellation: it may have run.
        """
        patience = Patience(self.wait_s) if self.patience is None else self.patience
        wait_s, began_at = min(self.wait_s, patience.left_s), trio.current_time()
        try:
            if wait_s > 0:
                with trio.move_on_after(wait_s):
                    return await self._run(run)
        finally:
            patience.left_s = max(0.0, patience.left_s - (trio.current_time() - began_at))
        await trio.lowlevel.checkpoint()
        raise RedisAway("the shared limits cannot be reached now", retry_after_s=self.wait_s)

    async def _run(self, run: Callable[[], Awaitable[T]]) -> T:
        while True:
            before, self.may_have_run = self.may_have_run, True
            try:
                return await run()
            except NotSent:
                self.may_have_run = before
            except RedisError as error:
                if not may_pass(error):
                    raise
            await trio.sleep(RETRY_S)


async def insist(run: Callable[[], Awaitable[object]]) -> None:
    """Run a script until Redis answers; the caller says for how long.

    Raises:
      RedisError: the script, or the server, refuses it for good.

    Cancellation: it may have run.
    """
    while True:
        try:
            await run()
        except RedisError as error:
            if not may_pass(error):
                raise
            await trio.sleep(RETRY_S)
        else:
            return


@attrs.frozen
class Admitted:
    """A ticket may go."""

    spent: Amounts
    """The window, this ticket's reservation included."""
    quota: Amounts | None = None
    """What an operator said that it is; None: what the settings say."""


@attrs.frozen
class Queued:
    """A ticket waits."""

    rank: str
    position: int
    outlook: Outlook


@attrs.frozen
class Full:
    """The line takes no more."""

    length: int
    outlook: Outlook


@attrs.frozen
class Refused:
    """A ticket's input is more than the whole quota that an operator said."""

    dimension: str


@attrs.frozen
class Passed:
    """What a look at the line brought."""

    outlook: Outlook
    is_mine: bool
    """The next in line is this worker's."""
    wake_id: str
    now: Admitted
    """What those of `admitted` have got."""
    admitted: tuple[str, ...]
    positions: dict[str, int] | None
    """Where this worker's other tickets stand; None: not asked for."""


@attrs.frozen
class Standing:
    """An endpoint's window, gate and line."""

    spent: Amounts
    gate_s: float
    waiting: tuple[int, int, int]
    """Per lane."""
    quota: Amounts | None
    """What an operator said that it is; None: what the settings say."""


@attrs.frozen
class EndpointScripts:
    """The budget_* scripts for one endpoint; each is one round trip and raises `RedisError`."""

    redis: Redis
    endpoint: str
    hard: Amounts
    soft: Amounts
    worker_lease_s: float
    ticket_lease_s: float
    is_bucket: bool = False
    """Whether the quota is refilled continuously, rather than strict over any 60 s."""
    lane_percents: tuple[int, int] = (0, 0)
    """What the line keeps for submission and background while they wait."""
    ended_s: float = 10.0
    """How long a ticket is remembered after its end: longer than anything can be late."""
    _keys: tuple[str, ...] = attrs.field(init=False)
    _args: tuple[str, ...] = attrs.field(init=False)

    @_keys.default
    def _all_keys(self) -> tuple[str, ...]:
        names = ("spend", "line", "tickets", "leases", "wake", "shares", "quota")
        return tuple(f"{name}:{{{self.endpoint}}}" for name in names)

    @_args.default
    def _common_args(self) -> tuple[str, ...]:
        leases_ms = [
            round(1000 * s) for s in (self.worker_lease_s, self.ticket_lease_s, self.ended_s)
        ]
        ttl_s = max(leases_ms) // 1000 + 120
        policy = _packed([int(self.is_bucket), *self.lane_percents])
        return (_packed(self.hard), _packed(self.soft), _packed([*leases_ms, ttl_s]), policy)

    @property
    def wake_key(self) -> str:
        """The stream that says whose turn it is."""
        return self._keys[4]

    async def admit(
        self,
        ticket: str,
        *,
        lane: int,
        ask: Amounts,
        org: str,
        weight: float,
        rank: str,
        line_max: int,
    ) -> Admitted | Queued | Full | Refused:
        """See budget_admit.lua."""
        reply = await self._run(
            *("admit", ticket, lane, _packed(ask), org or "-", repr(weight), rank, line_max)
        )
        match reply:
            case [b"admitted", spent, quota]:
                return Admitted(_amounts(spent), _amounts_said(quota))
            case [b"queued", rank_now, position, wait_ms, each_ms]:
                return Queued(rank_now.decode(), position, _outlook(wait_ms, each_ms))
            case [b"full", length, wait_ms, each_ms]:
                return Full(length, _outlook(wait_ms, each_ms))
            case [b"too_large", dimension]:
                return Refused(dimension.decode())
        raise RedisError(f"budget_admit: {reply!r}")

    async def look(self, worker: str, *, is_full: bool) -> Passed:
        """See budget_pass.lua."""
        reply = await self._run("pass", worker, int(is_full))
        wait_ms, each_ms, is_mine, wake_id, spent, admitted, waiting, positions, quota = reply
        return Passed(
            outlook=_outlook(wait_ms, each_ms),
            is_mine=is_mine == 1,
            wake_id=wake_id.decode(),
            now=Admitted(_amounts(spent), _amounts_said(quota)),
            admitted=tuple(ticket.decode() for ticket in admitted),
            positions=(
                dict(zip(map(bytes.decode, waiting), positions, strict=True)) if is_full else None
            ),
        )

    async def settle(self, ticket: str, used: Amounts) -> None:
        """See budget_settle.lua."""
        await self._run("settle", ticket, _packed(used))

    async def renew(self, tickets: Sequence[str]) -> None:
        """See budget_renew.lua; at most 1,000 at a time."""
        await self._run("renew", *tickets)

    async def correct(self, *, quota: Amounts, left: Amounts, closed_s: float) -> None:
        """See budget_correct.lua."""
        closed_ms = round(min(closed_s, GATE_S_MAX) * 1000)
        await self._run("correct", _packed(quota), _packed(left), closed_ms)

    async def statistics(self) -> Standing:
        """See budget_statistics.lua."""
        spent, gate_ms, a, b, c, quota = await self._run("statistics")
        return Standing(
            spent=_amounts(spent),
            gate_s=gate_ms / 1000,
            waiting=(a, b, c),
            quota=_amounts_said(quota),
        )

    async def _run(self, name: str, *args: str | int) -> Any:
        return await script(f"budget_{name}")(self.redis, self._keys, (*self._args, *args))


def _packed(amounts: Sequence[int]) -> str:
    return " ".join(map(str, amounts))


def _amounts(text: bytes) -> Amounts:
    a, b, c, d = map(int, text.split())
    return (a, b, c, d)


def _amounts_said(text: bytes) -> Amounts | None:
    return _amounts(text) if text else None


def _outlook(wait_ms: int, each_ms: int) -> Outlook:
    return Outlook(None if wait_ms < 0 else wait_ms / 1000, each_ms / 1000)
