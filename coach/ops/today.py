"""What this day (UTC) has cost so far, and how long students were connected in it, on all hosts.

writing:<day>   INT  ms that students were connected; gone two days after the last of them
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from ..store import Redis
from .bill import ask_for_bill, read_bill
from .costs import DAY_S, NANO_AT
from .vitals import Today

KEPT_S: Final = 2 * DAY_S


async def note_writing(redis: Redis, seconds: float) -> None:
    """Students were connected for so long, all together, since this was said last.

    Raises:
      RedisError: it may not be noted.
    """
    key = _key(_today())
    pipe = redis.pipeline(transaction=False)
    pipe.execute_command("INCRBY", key, round(seconds * 1_000))
    pipe.execute_command("EXPIRE", key, KEPT_S)
    await pipe.execute()


async def read_today(redis: Redis) -> Today:
    """Add up the books: a round trip or two for each org that has any.

    Raises:
      RedisError: it is away.
    """
    day = _today()
    question = ask_for_bill(org=None, user=None, by="day", since=day, until=None)
    spent = (await read_bill(redis, question)).total[NANO_AT]
    writing_ms = await redis.execute_command("GET", _key(day))
    return Today(nano=spent, writer_s=int(writing_ms or 0) / 1_000)


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _key(day: str) -> str:
    return f"writing:{day}"
