"""The limit_* scripts with types.

Every one may be run again after `ConnectionLost`: a reservation has a name that its owner chose,
and a script that meets a name it knows changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from ..store import Redis, RedisError, script

NAMES: Final = ("user_requests", "user_tokens", "org_requests", "org_tokens")
"""The limits, in the order in which the scripts name them."""


@attrs.frozen
class Over:
    """A limit is reached."""

    limit: str
    """One of `NAMES`."""
    most: int
    """What that is."""
    left: int
    retry_s: float | None
    """None: the request is larger than the whole limit."""


@attrs.frozen
class Reserved:
    """A user may go on."""

    tokens: int
    over: Over | None = None
    """Why it would have been refused, had the limits been enforced."""


@attrs.frozen
class Standing:
    """How a limit stands."""

    most: int
    used: int
    """Or reserved; more than `most` where a request took more than it had reserved."""
    origin: str
    """The field of the rules that it comes from, or "settings"."""


@attrs.frozen(kw_only=True)
class LimitKeys:
    """Where the scripts find the windows of a user, their org, and one reservation."""

    tag: str
    """The beginning of all keys of an org."""
    user: str
    """Without anything that a key is cut at."""
    hold: str = ""
    """Id of the reservation."""

    @property
    def of_org(self) -> tuple[str, str]:
        """Window and leases."""
        return (f"{self.tag}:org", f"{self.tag}:leases")

    @property
    def of_user(self) -> tuple[str, str]:
        """Window and leases."""
        return (f"{self.tag}:user:{self.user}", f"{self.tag}:leases:{self.user}")

    @property
    def of_hold(self) -> str:
        """The reservation's own."""
        return f"{self.tag}:hold:{self.hold}"

    @property
    def rules(self) -> str:
        """What operators have set."""
        return f"{self.tag}:rules"

    @property
    def field(self) -> str:
        """The user's, in the rules."""
        return f"user:{self.user}"


@attrs.frozen
class LimitScripts:
    """The limit_* scripts; each is one round trip and raises `RedisError`."""

    redis: Redis
    settings: Sequence[int]
    """The limits where no rule says otherwise, in the order of `NAMES`."""
    lease_s: float
    mode: str = "enforce"
    hold_s: int = 121
    """How long a reservation is remembered: twice as long as it counts."""

    async def reserve(self, keys: LimitKeys, *, least: int, tokens: int) -> Reserved | Over:
        """See limit_reserve.lua.

        Raises:
          RedisError: also for a hold that has ended.
        """
        reply = await self._run(
            "reserve",
            (*keys.of_org, *keys.of_user, keys.of_hold, keys.rules),
            (keys.hold, least, tokens, keys.field, self._packed_settings, self.mode),
        )
        match reply:
            case [b"reserved", tokens]:
                return Reserved(tokens)
            case [b"over", limit, most, left, retry_ms]:
                return Over(limit.decode(), most, left, retry_ms / 1000)
            case [b"too_large", limit, most]:
                return Over(limit.decode(), most, most, None)
            case [b"shadow", tokens, limit, most, left, retry_ms]:
                retry_s = None if retry_ms < 0 else retry_ms / 1000
                return Reserved(tokens, Over(limit.decode(), most, left, retry_s))
        raise RedisError(f"limit_reserve: {reply!r}")

    async def settle(self, keys: LimitKeys, *, requests: int, tokens: int, age_s: float) -> None:
        """See limit_settle.lua."""
        await self._run(
            "settle",
            (*keys.of_org, *keys.of_user, keys.of_hold),
            (keys.hold, requests, tokens, int(age_s)),
        )

    async def renew(self, holds: Sequence[LimitKeys]) -> None:
        """See limit_renew.lua; one or more, at most 1,000, of one org."""
        keys = [key for hold in holds for key in (*hold.of_user, hold.of_hold)]
        await script("limit_renew")(
            self.redis,
            (*holds[0].of_org, *keys),
            (*self._tail, *(hold.hold for hold in holds)),
        )

    async def show(self, keys: LimitKeys) -> dict[str, Standing]:
        """See limit_show.lua; by the names of the limits."""
        reply = await self._run(
            "show",
            (*keys.of_org, *keys.of_user, keys.rules),
            (keys.field, self._packed_settings),
        )
        return {
            name: Standing(most, used, origin.decode())
            for name, most, used, origin in zip(
                NAMES, reply[::3], reply[1::3], reply[2::3], strict=True
            )
        }

    @property
    def _packed_settings(self) -> str:
        return " ".join(map(str, self.settings))

    @property
    def _tail(self) -> tuple[int, int]:
        return (round(self.lease_s * 1000), self.hold_s)

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        return await script(f"limit_{name}")(self.redis, keys, (*args, *self._tail))


async def limit_set(
    redis: Redis,
    keys: LimitKeys,
    field: str,
    *,
    requests: str,
    tokens: str,
    by: str,
    rules_max: int,
) -> tuple[str, str]:
    """See limit_set.lua; the rule before and after."""
    before, after = await script("limit_set")(
        redis, (keys.rules,), (field, requests, tokens, by, rules_max)
    )
    return before.decode(), after.decode()
