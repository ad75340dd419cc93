"""Which graders work: each says so every few seconds, and is counted for a while.

graders     ZSET  a grader's name by when it said so last, ms on Redis' clock;
                      gone 30 s after the last word of all
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from ..store import RedisError

if TYPE_CHECKING:
    from ..store import Redis

log = structlog.get_logger()

KEY: Final = "graders"
SAY_S: Final = 5.0
COUNTED_S: Final = 15.0
"""Three words may be lost before a grader is taken for gone."""


async def be_counted(redis: Redis, worker: str) -> None:
    """Say every SAY_S that `worker` works, until cancelled; Redis may be away meanwhile."""
    while True:
        try:
            now_ms = await _now_ms(redis)
            pipe = redis.pipeline(transaction=False)
            pipe.execute_command("ZADD", KEY, now_ms, worker)
            pipe.execute_command("ZREMRANGEBYSCORE", KEY, "-inf", _oldest(now_ms))
            pipe.execute_command("EXPIRE", KEY, 2 * round(COUNTED_S))
            await pipe.execute()
        except RedisError as error:
            log.debug("not_counted", error=str(error))
        await trio.sleep(SAY_S)


async def count_graders(redis: Redis) -> int:
    """How many work, on all machines.

    Raises:
      RedisError: it is away.
    """
    found: int = await redis.execute_command("ZCOUNT", KEY, _oldest(await _now_ms(redis)), "+inf")
    return found


async def _now_ms(redis: Redis) -> int:
    seconds, microseconds = await redis.execute_command("TIME")
    return int(seconds) * 1_000 + int(microseconds) // 1_000


def _oldest(now_ms: int) -> str:
    return f"({now_ms - round(COUNTED_S * 1_000)}"
