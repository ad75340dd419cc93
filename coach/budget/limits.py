"""The limits of users and orgs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .. import config
from ..store import Redis


class Reservation:
    """Tokens that a user may use; lent out by `UserLimits.reserve`."""

    def settle(self, tokens: int) -> None:
        """Say what was really used; without it everything is given back. Not a checkpoint."""


class UserLimits:
    """Requests and tokens that a user, and their org, may use in any minute."""

    @asynccontextmanager
    async def reserve(self, *, user: str, org: str, tokens: int) -> AsyncIterator[Reservation]:
        """Reserve a request and `tokens` in the user's and the org's window, or raise."""
        raise NotImplementedError
        yield Reservation()


def user_limits(redis: Redis, settings: config.Limits) -> UserLimits:
    """The limits as `settings` has them."""
    raise NotImplementedError
