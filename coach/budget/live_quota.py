"""An operator's word on what an endpoint allows: for all workers, from the next request on.

    quota:{endpoint}  HASH  quota, hard, soft "a b c d" by `DIMENSIONS`; may_exceed 1: they count
                            also above the settings'. Ends by itself.

Every budget_* script reads it (budget_quota.lua), so a change needs neither a restart nor a round
trip more. It is meant for the day on which a tier changes, another program needs a part of the
account, or a provider struggles; what is to last belongs into the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from .. import config
from ..store import Redis
from .quota import DIMENSIONS, Amounts, Capacity

LIMIT_MAX: Final = 10**12
LASTS_S_MAX: Final = 31 * 86_400.0
_FIELDS: Final = ("requests", "input_tokens", "output_tokens", "tokens")


async def say_quota(
    redis: Redis,
    provider: config.Provider,
    settings: config.Budget,
    limits: Mapping[str, int],
    *,
    may_exceed: bool,
    lasts_s: float,
) -> Capacity:
    """Let an endpoint's quota be another one for a while; returns what it now is.

    Args:
      redis: where all workers meet.
      provider: the endpoint, with the quota of the settings: what `limits` does not name.
      settings: how near to a quota coach goes.
      limits: by `DIMENSIONS`, in any 60 s; 1 to `LIMIT_MAX`.
      may_exceed: also where it is more than the settings say; else the smaller counts.
      lasts_s: seconds, up to `LASTS_S_MAX`.

    Raises:
      RedisError: no answer.
    """
    named = {
        f"{field}_per_minute": limits[dimension]
        if may_exceed or not configured
        else min(limits[dimension], configured)
        for field, dimension, configured in zip(
            _FIELDS, DIMENSIONS, Capacity.of(provider.quota, settings).quota, strict=True
        )
        if dimension in limits
    }
    capacity = Capacity.of(msgspec.structs.replace(provider.quota, **named), settings)
    key = _key(provider.name)
    fields = {
        "quota": _packed(capacity.quota),
        "hard": _packed(capacity.hard),
        "soft": _packed(capacity.soft),
        "may_exceed": str(int(may_exceed)),
    }
    pipeline = redis.pipeline()
    pipeline.execute_command("DEL", key)
    pipeline.execute_command("HSET", key, *(each for field in fields.items() for each in field))
    pipeline.execute_command("PEXPIRE", key, round(lasts_s * 1_000))
    await pipeline.execute()
    return capacity


async def unsay_quota(redis: Redis, endpoint: str) -> bool:
    """Let the settings decide again; False: they did.

    Raises:
      RedisError: no answer.
    """
    return bool(await redis.execute_command("DEL", _key(endpoint)))


async def said_for_s(redis: Redis, endpoint: str) -> float | None:
    """Seconds for which an operator's word still counts; None: there is none.

    Raises:
      RedisError: no answer.
    """
    left_ms = int(await redis.execute_command("PTTL", _key(endpoint)))
    return left_ms / 1_000 if left_ms > 0 else None


def _key(endpoint: str) -> str:
    return f"quota:{{{endpoint}}}"


def _packed(amounts: Amounts) -> str:
    return " ".join(map(str, amounts))
