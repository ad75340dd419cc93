"""Rollout flags: for how many of a hundred users a part of coach is used, changed while it runs.

A flag that is off for a user means the usual way instead of coach's; what that is stands in
docs/reference.md. It is for cutting over from such a server step by step, and for measuring.

Percentages set by an operator stand in Redis and hold for all workers, which look once a second;
where none is set, the settings hold. Without Redis a worker goes on as it was.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal, final, get_args

import structlog
import trio

from .. import config
from ..store import Redis, RedisError
from . import metrics

log = structlog.get_logger()

Flag = Literal["pool", "shared_limits", "queue", "backpressure"]
FLAGS: Final[tuple[Flag, ...]] = get_args(Flag)

KEY: Final = "flags"
"""HASH: flag -> percent of users, "0".."100". It has no TTL: it is the operator's word."""
REFRESH_S: Final = 1.0


@final
class Flags:
    """The flags as one worker knows them."""

    def __init__(self, settings: config.Rollout) -> None:
        """Begin with what the settings say."""
        self._defaults: Final[dict[Flag, int]] = {flag: getattr(settings, flag) for flag in FLAGS}
        self._percents = dict(self._defaults)
        self._tell()

    def percent(self, flag: Flag) -> int:
        """Of how many users it is on, 0..100."""
        return self._percents[flag]

    def is_on(self, flag: Flag, user: str) -> bool:
        """Whether it is on for `user`: the same in all workers, and each flag draws its own.

        Whoever has it at some percentage has it at any higher one.
        """
        percent = self._percents[flag]
        return percent >= 100 or (percent > 0 and place_of(flag, user) < percent)

    def off_for(self, user: str) -> list[Flag]:
        """The flags that are off for `user`."""
        return [flag for flag in FLAGS if not self.is_on(flag, user)]

    async def run(self, redis: Redis) -> None:
        """Follow what operators set, until cancelled."""
        while True:
            try:
                self._percents = self._defaults | await read_flags(redis)
            except RedisError as error:
                log.debug("flags_not_read", error=str(error))
            self._tell()
            await trio.sleep(REFRESH_S)

    def _tell(self) -> None:
        for flag, percent in self._percents.items():
            metrics.flag_percent.labels(flag).set(percent)


def place_of(flag: Flag, user: str) -> float:
    """Where a user stands among all, 0 <= place < 100, evenly spread; stable for ever."""
    digest = hashlib.sha256(f"{flag}:{user}".encode()).digest()
    return int.from_bytes(digest[:4], "big") * 100 / 2**32


async def read_flags(redis: Redis) -> dict[Flag, int]:
    """What operators have set; other flags follow the settings.

    Raises:
      RedisError: no answer.
    """
    stored = await redis.hgetall(KEY)
    return {
        flag: min(100, int(stored[flag.encode()]))
        for flag in FLAGS
        if stored.get(flag.encode(), b"").isdigit()
    }


async def write_flag(redis: Redis, flag: Flag, percent: int | None) -> None:
    """Set a flag for all workers, which follow within REFRESH_S. None: as in their settings.

    Raises:
      RedisError: it may not have been set.
    """
    if percent is None:
        await redis.hdel(KEY, flag)
    else:
        await redis.hset(KEY, flag, str(percent))
