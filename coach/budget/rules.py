"""What operators set: limits of an org, of each of its users, and of one user.

They live in Redis, in one hash an org, which every reservation reads in its own call: a change
counts from the next request on, in all workers, without a restart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal
from urllib.parse import quote, unquote

import attrs

from .. import config
from ..errors import ConfigurationError
from ..store import Redis, RedisError
from .limit_scripts import NAMES, LimitKeys, LimitScripts, Standing, limit_set

RULES_MAX: Final = 10_000
"""Rules of one org, about 100 bytes each."""
LIMIT_MAX: Final = 10**12

Origin = Literal["user", "users", "org", "settings"]


@attrs.frozen
class Limit:
    """How one limit stands."""

    name: str
    """user_requests, user_tokens, org_requests or org_tokens."""
    most: int
    """In any 60 s."""
    used: int
    """Or reserved. More than `most` where requests took more than they had reserved."""
    origin: Origin
    """A rule for this user, for each user of the org, for the org; or the settings."""

    @property
    def left(self) -> int:
        """What may be reserved now."""
        return max(0, self.most - self.used)


@attrs.frozen
class Rule:
    """Limits that take the place of the settings'."""

    whose: str
    """A user's name after "user:"; "users": each user of the org; "org": all together."""
    requests: int | None
    tokens: int | None
    set_at: datetime
    by: str


async def show_limits(
    redis: Redis, settings: config.Limits, *, org: str, user: str | None
) -> list[Limit]:
    """The limits of an org, before them those of one of its users if one is named.

    Raises:
      RedisError: no answer.
    """
    keys = keys_of(org=org, user="" if user is None else user)
    standings = await LimitScripts(redis, limits_in(settings), lease_s=settings.lease_s).show(keys)
    return [
        _limit(name, standing)
        for name, standing in standings.items()
        if user is not None or name.startswith("org_")
    ]


async def show_rules(redis: Redis, *, org: str) -> list[Rule]:
    """All rules of an org: its own, its users' common one, and those of single users by name.

    Raises:
      RedisError: no answer.
    """
    fields: Mapping[bytes, bytes] = await redis.execute_command(
        "HGETALL", keys_of(org=org, user="").rules
    )
    rules = [_rule(field.decode(), value.decode()) for field, value in fields.items()]
    return sorted(rules, key=lambda rule: (rule.whose.startswith("user:"), rule.whose))


async def set_rule(
    redis: Redis,
    *,
    org: str,
    user: str | None,
    each_user: bool,
    limits: dict[str, int | None],
    by: str,
) -> tuple[Rule | None, Rule | None]:
    """Change one rule; returns what it was and what it is now, None where there is none.

    Args:
      redis: where all workers meet.
      org: whose.
      user: the one it is for.
      each_user: it is for each user who has none of their own; without it and without `user` it
        is for the org as a whole.
      limits: "requests" and "tokens" in any 60 s, 1 to 1e12; None: as in the settings. What is
        not named stays as it is.
      by: who sets it.

    Raises:
      ConfigurationError: the org has `RULES_MAX` rules.
      RedisError: no answer.
    """
    keys = keys_of(org=org, user=user or "")
    field = "org" if user is None else keys.field
    if each_user:
        field = "users"
    texts = {unit: "-" if limit is None else str(limit) for unit, limit in limits.items()}
    try:
        before, after = await limit_set(
            redis,
            keys,
            field,
            requests=texts.get("requests", ""),
            tokens=texts.get("tokens", ""),
            by=_quoted(by),
            rules_max=RULES_MAX,
        )
    except RedisError as error:
        if str(error).startswith("COACH_FULL"):
            raise ConfigurationError(
                f"{org!r} has {RULES_MAX:,} rules: reset some, or set one for each user"
            ) from error
        raise
    return (
        _rule(field, before) if before else None,
        _rule(field, after) if after else None,
    )


async def erase_user(redis: Redis, *, org: str, user: str) -> int:
    """Forget what a user has used of the last minute, and their own rule; how many of them were.

    Reservations that stand now are settled, or lapse: two minutes later nothing of them is left.

    Raises:
      RedisError: no answer.
    """
    keys = keys_of(org=org, user=user)
    pipeline = redis.pipeline()
    pipeline.execute_command("DEL", *keys.of_user)
    pipeline.execute_command("HDEL", keys.rules, keys.field)
    return sum(await pipeline.execute())


def limits_in(settings: config.Limits) -> tuple[int, ...]:
    """The limits of the settings in the order of `NAMES`."""
    return tuple(getattr(settings, f"{name}_per_minute") for name in NAMES)


def keys_of(*, org: str, user: str) -> LimitKeys:
    """The keys of a user. Whatever is in a name, it cannot reach another's."""
    return LimitKeys(tag=f"limit:{{{_quoted(org)}}}", user=_quoted(user))


def _quoted(name: str) -> str:
    # A brace would move keys into another's hash tag, and an empty tag is none. No quoted name is
    # a lone per cent sign.
    return quote(name, safe="", errors="surrogatepass") or "%"


def _unquoted(text: str) -> str:
    return "" if text == "%" else unquote(text, errors="surrogatepass")


def _limit(name: str, standing: Standing) -> Limit:
    origin: Origin = "user" if standing.origin.startswith("user:") else standing.origin  # type: ignore[assignment]  # a field of the rules
    return Limit(name, standing.most, standing.used, origin)


def _rule(field: str, value: str) -> Rule:
    match = re.fullmatch(r"(-|\d+) (-|\d+) (\d+) (\S+)", value)
    if match is None:
        raise RedisError(f"the rule {field!r} is {value!r}: reset it")
    requests, tokens, set_at, by = match.groups()
    owner, _, user = field.partition(":")
    return Rule(
        whose=f"user:{_unquoted(user)}" if owner == "user" else owner,
        requests=None if requests == "-" else int(requests),
        tokens=None if tokens == "-" else int(tokens),
        set_at=datetime.fromtimestamp(int(set_at), UTC),
        by=_unquoted(by),
    )
