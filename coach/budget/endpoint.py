"""The budget of a provider's endpoint: who may send, and when, over all workers.

Below the soft share of every quota, and with nobody waiting, a request is admitted in one round
trip; settling it is the second. Otherwise it waits in one line for all workers (loop.py), which is
let in evenly up to the hard share. What is reserved, and how the line is paced, stands in
budget_line.lua.

Without Redis nobody is admitted: each worker's own count would let through what the others spend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Final, final
from urllib.parse import quote

import attrs
import structlog
import trio

from .. import config
from ..errors import Overloaded
from ..nurseries import open_plain_nursery
from ..store import Redis, RedisError
from .loop import Line, Ticket, input_too_large
from .quota import LANES, NOTHING, UNSAID, Amounts, Ask, Capacity, Lane
from .scripts import (
    GIVE_BACK_S_MAX,
    LAST_TRY_S_MAX,
    Admitted,
    EndpointScripts,
    Insistence,
    Patience,
    Queued,
    RedisAway,
    insist,
)

log = structlog.get_logger()

ASK_MAX: Final = 10**9
"""More than any quota; what a request may ask for is cut to it."""
RENEWALS_PER_LEASE: Final = 3
RENEW_MAX: Final = 1_000
"""Tickets renewed in one call."""
UNSETTLED_MAX: Final = 10_000
"""Settlements that wait for Redis to come back, about 300 bytes each; leases see to any more."""
LATE_RETRY_S: Final = 0.25
"""Between two tries to make good a settlement."""


@attrs.frozen(kw_only=True)
class BudgetStatistics:
    """An endpoint's budget at this moment."""

    endpoint: str
    used: dict[str, float]
    """Share of the quota that is spent or reserved, per limited dimension; 1.0 is all of it."""
    line: dict[Lane, int]
    """Requests that wait, of all workers."""
    gate_s: float
    """Seconds until the gate opens; 0.0: it is open."""
    admitted_count: int
    """Requests admitted to this worker since its start."""
    queued_count: int
    """Those of this worker's requests that had to wait."""
    running_count: int
    """This worker's admissions that have not ended."""
    waiting_count: int
    """This worker's requests in line."""
    unsettled_count: int
    """This worker's settlements that Redis did not take in time, and has not taken since."""


@asynccontextmanager
async def open_endpoint_budget(
    redis: Redis,
    *,
    endpoint: str,
    quota: config.Quota,
    settings: config.Budget,
    worker: str,
) -> AsyncIterator[EndpointBudget]:
    """Open one endpoint's budget for one worker. Neither entering nor leaving needs Redis.

    Args:
      redis: where all workers meet.
      endpoint: its name; shares a budget with everybody who uses the same name.
      quota: what the provider allows; the same in all workers.
      settings: how near to it coach goes.
      worker: unique to one run of one process.

    Raises:
      whatever the body raised, as it is.
    """
    async with open_plain_nursery() as nursery:
        budget = EndpointBudget(
            redis, nursery, endpoint=endpoint, quota=quota, settings=settings, worker=worker
        )
        nursery.start_soon(budget._renew)  # noqa: SLF001  made here
        try:
            yield budget
        finally:
            nursery.cancel_scope.cancel("the budget is closed")


@final
class Admission:
    """Leave to send one request; lent out by `EndpointBudget.admit`. No method is a checkpoint."""

    def __init__(self, budget: EndpointBudget, spent: Amounts) -> None:
        self._budget = budget
        self._spent_before = spent
        """The window when it was admitted: now it holds as much, or what has slid out since."""
        self._used: Ask | None = None

    def settle(self, spent: Ask) -> None:
        """Say what was really used, more or less than asked for.

        Without it, leaving gives everything back, the request included: nothing was sent. Said
        again, the last word counts.
        """
        if min(spent.input, spent.output) < 0:
            raise ValueError("spent must be >= 0")
        self._used = spent

    def observe(self, headers: Mapping[str, str]) -> None:
        """Correct the window by the provider's rate-limit headers, names in lower case.

        Only ever downwards: where the provider says that less is left than coach believes, others
        use the quota too. Sent to Redis in the background, and only where it tells something new.
        """
        capacity = self._budget.capacity
        left = capacity.left(headers)
        if capacity.is_news(left, self._spent_before):
            self._budget._correct_soon(left=left)  # noqa: SLF001  part of the same handle

    def close_gate(self, retry_after_s: float) -> None:
        """Let no worker send to this endpoint for so long (an hour at most): 429 and 529.

        Sent to Redis at once, in the background.
        """
        self._budget._correct_soon(closed_s=max(0.0, retry_after_s))  # noqa: SLF001  likewise


@final
class EndpointBudget:
    """Handle lent out by `open_endpoint_budget`, and built nowhere else."""

    def __init__(
        self,
        redis: Redis,
        nursery: trio.Nursery,
        *,
        endpoint: str,
        quota: config.Quota,
        settings: config.Budget,
        worker: str,
    ) -> None:
        self.endpoint = endpoint
        self.capacity = self._configured = Capacity.of(quota, settings)
        """As an operator said, or else as configured; known anew with each admission."""
        self._nursery = nursery
        self._settings = settings
        self._worker = worker
        self._numbers = count()
        self._scripts = EndpointScripts(
            redis,
            endpoint,
            hard=self.capacity.hard,
            soft=self.capacity.soft,
            worker_lease_s=settings.ticket_lease_s,
            ticket_lease_s=settings.reservation_lease_s,
            is_bucket=quota.rule == "bucket",
            lane_percents=(settings.submission_percent, settings.background_percent),
        )
        self._line = Line(
            redis,
            self._scripts,
            nursery,
            worker=worker,
            line_max=settings.line_max,
            wait_s=settings.wait_s,
        )
        self._running: set[str] = set()
        """Admitted tickets that have not ended, whose leases `_renew` prolongs."""
        self._unsettled: dict[str, tuple[float, Amounts]] = {}
        """Ended tickets of which Redis does not know it yet -> until when their leases may last,
        and what they used; oldest first."""
        self._is_settling = False
        """Whether `_settle_late` runs; it does while there is something unsettled."""
        self._admitted_count = self._queued_count = 0

    @asynccontextmanager
    async def admit(
        self,
        ask: Ask,
        *,
        lane: Lane,
        org: str,
        on_position: Callable[[int, float], None] | None = None,
        patience: Patience | None = None,
    ) -> AsyncIterator[Admission]:
        """Wait until the request may be sent: one round trip where there is room.

        Leaving settles, in one more round trip, in every case: done, failed or cancelled. It is
        shielded and takes 1 s at most; if Redis does not answer for so long, it is made good when
        Redis is back, or by the end of the lease of `reservation_lease_s`. Tell whoever waits for
        the result before leaving.

        Args:
          ask: the most that may be used. Output beyond the whole hard share of the quota is
            reserved as that share, and so waits until nothing else runs.
          lane: how urgent it is.
          org: on whose behalf; within a lane orgs get the same, or as `org_weights` says.
          on_position: called synchronously with (position from 1, seconds until its turn) when the
            request has to wait, and when one of them has changed, at most five times a second.
            Must not raise.
          patience: how long the request waits for Redis in all; none: `wait_s` for this call.

        Raises:
          Overloaded: the line is full, or Redis has not answered for `wait_s` or beyond `patience`.
          TooLarge: the input alone is larger than the whole quota.

        Cancellation: as if nothing had happened; a place in line is free at once.
        """
        requests, *tokens = ask.amounts
        a, b, c = (min(amount, ASK_MAX) for amount in tokens)
        ticket = Ticket(
            id=f"{self._worker}:{next(self._numbers)}",
            lane=LANES.index(lane),
            ask=(requests, a, b, c),
            org=quote(org, safe=""),
            weight=self._settings.org_weights.get(org, 1.0),
            on_position=on_position,
        )
        dimension = self._configured.refuses(ask)
        if dimension is not None and self.capacity.refuses(ask) is not None:
            raise input_too_large(self.endpoint, ticket.ask, dimension)
        call, admission = Insistence(self._settings.wait_s, patience), None
        s_max = GIVE_BACK_S_MAX
        try:
            try:
                admitted = await self._enter(ticket, call)
            except Overloaded:
                s_max = LAST_TRY_S_MAX
                raise
            self._admitted_count += 1
            self._running.add(ticket.id)
            self.capacity = self._configured.as_said(admitted.quota)
            admission = Admission(self, admitted.spent)
            yield admission
        finally:
            self._running.discard(ticket.id)
            if call.may_have_run:
                said = admission._used if admission is not None else None  # noqa: SLF001  ours
                used = NOTHING if said is None else self.capacity.spent(ask, said)
                with trio.move_on_after(s_max, shield=True) as scope:
                    await insist(partial(self._scripts.settle, ticket.id, used))
                if scope.cancelled_caught:
                    self._settle_soon(ticket.id, used)

    async def statistics(self) -> BudgetStatistics:
        """A snapshot, in one round trip.

        Raises:
          RedisError: no answer.
        """
        standing = await self._scripts.statistics()
        self.capacity = self._configured.as_said(standing.quota)
        return BudgetStatistics(
            endpoint=self.endpoint,
            used=self.capacity.used(standing.spent),
            line=dict(zip(LANES, standing.waiting, strict=True)),
            gate_s=standing.gate_s,
            admitted_count=self._admitted_count,
            queued_count=self._queued_count,
            running_count=len(self._running),
            waiting_count=len(self._line),
            unsettled_count=len(self._unsettled),
        )

    async def _enter(self, ticket: Ticket, call: Insistence) -> Admitted:
        reply = await call(partial(self._line.ask, ticket))
        if isinstance(reply, Admitted):
            return reply
        if isinstance(reply, Queued):
            self._queued_count += 1
            try:
                return await self._line.wait(ticket, reply)
            except RedisAway:
                if call.patience is not None:
                    call.patience.left_s = 0.0
                raise
        call.may_have_run = False
        raise self._line.refusal(ticket, reply)

    def _settle_soon(self, ticket: str, used: Amounts) -> None:
        log.warning("settlement_late", endpoint=self.endpoint, ticket=ticket)
        if len(self._unsettled) < UNSETTLED_MAX:
            until_s = trio.current_time() + self._settings.reservation_lease_s
            self._unsettled[ticket] = (until_s, used)
        if not self._is_settling:
            self._is_settling = True
            self._nursery.start_soon(self._settle_late)

    async def _settle_late(self) -> None:
        """Make good what is unsettled, oldest first; until there is nothing left."""
        try:
            while True:
                ticket, (until_s, used) = next(iter(self._unsettled.items()))
                if until_s > trio.current_time():
                    try:
                        await self._scripts.settle(ticket, used)
                    except RedisError:
                        await trio.sleep(LATE_RETRY_S)
                        continue
                else:
                    await trio.lowlevel.checkpoint()
                del self._unsettled[ticket]
                if not self._unsettled:
                    return
        finally:
            self._is_settling = False

    def _correct_soon(self, *, left: Amounts = UNSAID, closed_s: float = 0.0) -> None:
        correct = partial(
            self._scripts.correct, quota=self._configured.quota, left=left, closed_s=closed_s
        )
        self._nursery.start_soon(self._try, correct)

    async def _renew(self) -> None:
        """Prolong the leases of what runs for long; until cancelled."""
        while True:
            await trio.sleep(self._settings.reservation_lease_s / RENEWALS_PER_LEASE)
            running = sorted(self._running)
            for at in range(0, len(running), RENEW_MAX):
                await self._try(partial(self._scripts.renew, running[at : at + RENEW_MAX]))

    async def _try(self, run: Callable[[], Awaitable[object]]) -> None:
        """Run what nobody waits for; a failure is logged, as it must not end the worker."""
        with trio.move_on_after(GIVE_BACK_S_MAX, shield=True) as scope:
            try:
                await insist(run)
            except RedisError as error:
                log.warning("budget_not_told", endpoint=self.endpoint, error=str(error))
                await trio.lowlevel.checkpoint()
        if scope.cancelled_caught:
            log.warning("budget_not_told", endpoint=self.endpoint, error="no answer")
