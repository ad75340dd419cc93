"""The limits of users and orgs: requests and tokens in any minute, shared by all workers.

A reservation counts in the one-second bucket of the moment it was made, in the user's window and
in the org's, or in neither; settling replaces it there by what was really used. So whatever
happens, it is gone when its second slides out, 60 s later: that is its lease.

Without Redis nobody is let through: a limit kept by each worker for itself would be none.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, final
from urllib.parse import quote

import trio

from .. import config
from ..errors import Overloaded, RateLimited
from ..store import Redis
from .scripts import (
    GIVE_BACK_S_MAX,
    LAST_TRY_S_MAX,
    Insistence,
    Over,
    insist,
    limit_reserve,
    limit_settle,
)

HOLD_S: Final = 120
"""How long a reservation is remembered: twice as long as it counts."""


def user_limits(redis: Redis, settings: config.Limits) -> UserLimits:
    """The limits as `settings` has them."""
    return UserLimits(redis, settings)


@final
class Reservation:
    """Tokens that a user may use; lent out by `UserLimits.reserve`."""

    def __init__(self) -> None:
        self._used: int | None = None

    def settle(self, tokens: int) -> None:
        """Say what was really used, more or less than reserved. Not a checkpoint.

        Without it, leaving gives everything back, the request included: nothing was sent. Said
        again, the last word counts.
        """
        if tokens < 0:
            raise ValueError("tokens must be >= 0")
        self._used = tokens


@final
class UserLimits:
    """Requests and tokens that a user, and their org, may use in any minute."""

    def __init__(self, redis: Redis, settings: config.Limits) -> None:
        self._redis = redis
        self._settings = settings

    @asynccontextmanager
    async def reserve(self, *, user: str, org: str, tokens: int) -> AsyncIterator[Reservation]:
        """Reserve a request and `tokens` in the user's and the org's window: one round trip.

        Leaving settles, in one more round trip, in every case: done, failed or cancelled. It is
        shielded and takes 1 s at most; if Redis does not answer for so long, what was reserved
        counts until it slides out. Tell whoever waits for the result before leaving.

        Args:
          user: unique in `org`.
          org: whose user it is.
          tokens: the most that may be used.

        Raises:
          RateLimited: it does not fit now; `retry_after_s` says when it will, None: never, as it
            is more than the whole limit. Nothing is reserved.
          Overloaded: Redis has not answered for `wait_s`.

        Cancellation: as if nothing had happened.
        """
        keys = _keys(user=user, org=org, hold=secrets.token_hex(8))
        reservation, call = Reservation(), Insistence(self._settings.wait_s)
        s_max = GIVE_BACK_S_MAX
        try:
            try:
                over = await call(
                    partial(
                        limit_reserve,
                        self._redis,
                        keys,
                        tokens=tokens,
                        limits=self._limits,
                        hold_s=HOLD_S,
                    )
                )
            except Overloaded:
                s_max = LAST_TRY_S_MAX
                raise
            if over is not None:
                call.may_have_run = False
                raise self._rate_limited(over, tokens)
            yield reservation
        finally:
            if call.may_have_run:
                used = reservation._used  # noqa: SLF001  made here
                settle = partial(
                    limit_settle,
                    self._redis,
                    keys,
                    requests=0 if used is None else 1,
                    tokens=used or 0,
                    hold_s=HOLD_S,
                )
                with trio.move_on_after(s_max, shield=True):
                    await insist(settle)

    @property
    def _limits(self) -> tuple[int, int, int, int]:
        settings = self._settings
        return (
            settings.user_requests_per_minute,
            settings.user_tokens_per_minute,
            settings.org_requests_per_minute,
            settings.org_tokens_per_minute,
        )

    def _rate_limited(self, over: Over, tokens: int) -> RateLimited:
        owner, unit = over.limit.split("_")
        limit = getattr(self._settings, f"{owner}_{unit}_per_minute")
        whose = "your" if owner == "user" else "your organisation's"
        if over.retry_s is None:
            return RateLimited(
                f"this needs {tokens:,} tokens; {whose} whole limit is {limit:,} a minute",
                retry_after_s=None,
            )
        return RateLimited(
            f"{whose} limit of {limit:,} {unit} a minute is reached ({over.left:,} left)",
            retry_after_s=over.retry_s,
        )


def _keys(*, user: str, org: str, hold: str) -> tuple[str, str, str]:
    # Quoted: a brace in a name would move its keys into another's hash tag.
    tag = f"limit:{{{quote(org, safe='')}}}"
    return (f"{tag}:user:{quote(user, safe='')}", f"{tag}:org", f"{tag}:hold:{hold}")
