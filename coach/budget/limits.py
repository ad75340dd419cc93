"""The limits of users and orgs: requests and tokens in any minute, shared by all workers.

A reservation counts in the second in which it was made, in the user's window and in the org's, or
in neither; settling replaces it there by what was really used. It has a lease, which the worker
renews while the request runs: when a worker dies, its reservations are refunded with their leases.
What operators set for an org or a user (rules.py) is read by the reservation itself.

Without Redis nobody is let through: a limit kept by each worker for itself would be none.

Memory: some 500 bytes for each request under way.
"""

from __future__ import annotations

import math
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, final

import attrs
import structlog
import trio

from .. import config
from ..errors import Overloaded, RateLimited, TooLarge
from ..ops import metrics
from ..store import Redis, RedisError
from .limit_scripts import LimitKeys, LimitScripts, Over
from .rules import keys_of, limits_in
from .scripts import GIVE_BACK_S_MAX, LAST_TRY_S_MAX, Insistence, Patience, insist, may_pass

log = structlog.get_logger()

COUNTS_S: Final = 60.0
"""After that a reservation has slid out, and needs no lease any more."""
RENEWALS_PER_LEASE: Final = 3
RENEW_MAX: Final = 200
"""Reservations renewed in one call: it takes Redis about 1 ms."""
UNSETTLED_MAX: Final = 10_000
"""Settlements that wait for Redis to come back; leases see to any more."""
LATE_RETRY_S: Final = 0.25
"""Between two tries to make good a settlement."""


@asynccontextmanager
async def open_user_limits(redis: Redis, settings: config.Limits) -> AsyncIterator[UserLimits]:
    """Open the limits for one worker. Neither entering nor leaving needs Redis.

    Args:
      redis: where all workers meet.
      settings: the limits where no rule says otherwise.

    Raises:
      whatever the body raised, as it is.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            limits = UserLimits(redis, nursery, settings)
            nursery.start_soon(limits._renew)  # noqa: SLF001  made here
            try:
                yield limits
            finally:
                nursery.cancel_scope.cancel("the limits are closed")
    except BaseExceptionGroup as group:
        failure = group.exceptions[0] if len(group.exceptions) == 1 else group
    if failure is not None:  # raised here, or the group would be its context
        try:
            raise failure
        finally:
            del failure  # or the traceback would keep this frame in a cycle


@final
class Reservation:
    """Tokens that a user may use; lent out by `UserLimits.reserve`."""

    def __init__(self, tokens: int) -> None:
        self.tokens: Final = tokens
        """What was reserved: all that was asked for, or the whole limit where that is less."""
        self.used: int | None = None
        """What was said by `settle` last."""

    def settle(self, tokens: int) -> None:
        """Say what was really used, more or less than reserved. Not a checkpoint.

        Without it, leaving gives everything back, the request included: nothing was sent. Said
        again, the last word counts.
        """
        if tokens < 0:
            raise ValueError("tokens must be >= 0")
        self.used = tokens


@attrs.frozen
class Settlement:
    """How a reservation ended."""

    keys: LimitKeys
    reserved_at: float
    requests: int
    tokens: int

    async def run(self, scripts: LimitScripts) -> None:
        """Write it; see limit_settle.lua."""
        await scripts.settle(
            self.keys,
            requests=self.requests,
            tokens=self.tokens,
            age_s=trio.current_time() - self.reserved_at,
        )


@final
class UserLimits:
    """Handle lent out by `open_user_limits`, and built nowhere else."""

    def __init__(self, redis: Redis, nursery: trio.Nursery, settings: config.Limits) -> None:
        self._nursery = nursery
        self._settings = settings
        self._scripts = LimitScripts(
            redis, limits_in(settings), lease_s=settings.lease_s, mode=settings.mode
        )
        self._running: dict[LimitKeys, float] = {}
        """What is reserved and not settled, and since when."""
        self._unsettled: dict[str, Settlement] = {}
        """What Redis did not take in time, by hold."""
        self._is_settling = False

    @asynccontextmanager
    async def reserve(
        self,
        *,
        user: str,
        org: str,
        tokens: int,
        tokens_least: int = 0,
        patience: Patience | None = None,
    ) -> AsyncIterator[Reservation]:
        """Reserve a request and `tokens` in the user's and the org's window: one round trip.

        Leaving settles, in one more round trip, in every case: done, failed or cancelled. It is
        shielded and takes 1 s at most; if Redis does not answer for so long, it is made good when
        Redis is back. Tell whoever waits for the result before leaving.

        Args:
          user: unique in `org`.
          org: whose user it is.
          tokens: the most that may be used. Where that is more than the whole limit, the whole
            limit is reserved: see `Reservation.tokens`.
          tokens_least: what is used in any case; at most `tokens`.
          patience: how long the request waits for Redis in all; none: `wait_s` for this call.

        Raises:
          RateLimited: it does not fit now; `retry_after_s` says when it will.
          TooLarge: `tokens_least` is more than the whole limit: it never will.
          Overloaded: Redis has not answered for `wait_s`, or beyond `patience`.
          In each case nothing is reserved. In mode `shadow` only the last is raised.

        Cancellation: as if nothing had happened.
        """
        keys = attrs.evolve(keys_of(org=org, user=user), hold=secrets.token_hex(8))
        call, reservation = Insistence(self._settings.wait_s, patience), None
        reserved_at, s_max = trio.current_time(), GIVE_BACK_S_MAX
        try:
            try:
                reply = await call(
                    partial(self._scripts.reserve, keys, least=tokens_least, tokens=tokens)
                )
            except Overloaded:
                s_max = LAST_TRY_S_MAX
                raise
            if isinstance(reply, Over):
                call.may_have_run = False
                metrics.limit_refusals_total.labels(reply.limit, "enforce").inc()
                raise refusal(reply, tokens_least)
            if reply.over is not None:
                _would_refuse(reply.over, user=user, org=org)
            reservation = Reservation(reply.tokens)
            self._running[keys] = reserved_at
            yield reservation
        finally:
            self._running.pop(keys, None)
            if call.may_have_run:
                used = None if reservation is None else reservation.used
                settlement = Settlement(keys, reserved_at, int(used is not None), used or 0)
                with trio.move_on_after(s_max, shield=True) as scope:
                    await insist(partial(settlement.run, self._scripts))
                if scope.cancelled_caught:
                    self._settle_soon(settlement)

    # -- beside the requests -------------------------------------------------------------------

    def _settle_soon(self, settlement: Settlement) -> None:
        log.warning("limit_settlement_late", hold=settlement.keys.hold, tokens=settlement.tokens)
        if len(self._unsettled) < UNSETTLED_MAX:
            self._unsettled[settlement.keys.hold] = settlement
        if not self._is_settling:
            self._is_settling = True
            self._nursery.start_soon(self._settle_late)

    async def _settle_late(self) -> None:
        """Make good what is unsettled, oldest first, as long as it counts."""
        try:
            while self._unsettled:
                hold, settlement = next(iter(self._unsettled.items()))
                if trio.current_time() - settlement.reserved_at < COUNTS_S:
                    try:
                        await settlement.run(self._scripts)
                    except RedisError as error:
                        if may_pass(error):
                            await trio.sleep(LATE_RETRY_S)
                            continue
                        log.error("limit_settlement_refused", hold=hold, error=str(error))
                else:
                    await trio.lowlevel.checkpoint()
                del self._unsettled[hold]
        finally:
            self._is_settling = False

    async def _renew(self) -> None:
        """Renew the leases of what has run for a while; until cancelled."""
        every_s = self._settings.lease_s / RENEWALS_PER_LEASE
        while True:
            await trio.sleep(every_s)
            with trio.move_on_after(every_s) as scope:
                for holds in self._due(every_s / 2):
                    try:
                        await self._scripts.renew(holds)
                    except RedisError as error:  # the next round is not far
                        log.warning("limits_not_renewed", error=str(error))
                        await trio.lowlevel.checkpoint()
            if scope.cancelled_caught:
                log.warning("limits_not_renewed", error="no answer")

    def _due(self, age_s_min: float) -> list[list[LimitKeys]]:
        """What runs for so long, and counts yet: a list for each call."""
        now, by_org = trio.current_time(), defaultdict(list)
        for keys, reserved_at in self._running.items():
            if age_s_min <= now - reserved_at <= COUNTS_S + 1:
                by_org[keys.tag].append(keys)
        return [
            holds[at : at + RENEW_MAX]
            for holds in by_org.values()
            for at in range(0, len(holds), RENEW_MAX)
        ]


def refusal(over: Over, tokens_least: int) -> RateLimited | TooLarge:
    """What the student is told of a limit; `tokens_least` as in `UserLimits.reserve`."""
    owner, unit = over.limit.split("_")
    whose = "your" if owner == "user" else "your organisation's"
    if over.retry_s is None:
        return TooLarge(
            f"this takes {tokens_least:,} tokens or more; {whose} whole limit is {over.most:,} "
            "a minute"
        )
    left = f", {over.left:,} are left" if over.left else ""
    return RateLimited(
        f"{whose} limit of {over.most:,} {unit} a minute is reached{left}: "
        f"try again in {math.ceil(over.retry_s)} s",
        retry_after_s=over.retry_s,
    )


def _would_refuse(over: Over, *, user: str, org: str) -> None:
    metrics.limit_refusals_total.labels(over.limit, "shadow").inc()
    log.info(
        "limit_would_refuse",
        user=user,
        org=org,
        limit=over.limit,
        most=over.most,
        left=over.left,
        retry_s=over.retry_s,
    )
