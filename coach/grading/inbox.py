"""Which essays' results their authors have not heard yet, and at which workers the authors are.

Two small keys a user, with one hash tag:

    inbox:{<org>/<user>}:essays   ZSET  essays handed in whose end no open page has shown, by time
    inbox:{<org>/<user>}:workers  SET   workers with sessions of the user, about

An essay is expected before it is queued, and only then can end: so no death of a process leaves a
result that nobody would be told. It is taken out when a connected client was sent the result.
Whoever says hello later is told what is left. A result may so be told twice, and never not at all:
clients know it by the submission's id.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, final
from urllib.parse import quote

if TYPE_CHECKING:
    from ..store import Redis

ESSAYS_MAX: Final = 32
"""Of a user, kept; beyond it the oldest is left to GET /api/submissions."""
PRESENT_S: Final = 7_200.0
"""After which a worker that has not said `stay` again has no session of the user."""


@final
class Inbox:
    """A handle on all users' keys; holds no state of its own.

    Every method is one round trip and raises `RedisError` where Redis does not answer.
    """

    def __init__(self, redis: Redis, *, keep_s: int) -> None:
        """Open nothing.

        Args:
          redis: the caller's.
          keep_s: how long an end waits for its author.
        """
        self._redis = redis
        self._keep_s = keep_s

    async def expect(self, org: str, user: str, submission: str) -> None:
        """Its end will be of interest. Repeating it is harmless."""
        key, _ = _keys(org, user)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.execute_command("ZADD", key, f"{time.time():.3f}", submission)
        pipeline.execute_command("ZREMRANGEBYRANK", key, 0, -ESSAYS_MAX - 1)
        pipeline.execute_command("EXPIRE", key, self._keep_s)
        await pipeline.execute()

    async def told(self, org: str, user: str, *submissions: str) -> None:
        """A client that is connected was sent how these ended, or nobody knows them any more."""
        key, _ = _keys(org, user)
        await self._redis.execute_command("ZREM", key, *submissions)

    async def come(self, org: str, user: str, worker: str) -> list[str]:
        """The user is at `worker` as well; returns the essays, ended or not, the oldest first."""
        essays, workers = _keys(org, user)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.execute_command("SADD", workers, worker)
        pipeline.execute_command("EXPIRE", workers, round(PRESENT_S))
        pipeline.execute_command("ZRANGE", essays, 0, -1)
        *_, found = await pipeline.execute()
        return [submission.decode() for submission in found]

    async def leave(self, org: str, user: str, worker: str) -> None:
        """`worker` has no session of the user any more."""
        _, workers = _keys(org, user)
        await self._redis.execute_command("SREM", workers, worker)

    async def workers(self, org: str, user: str) -> set[str]:
        """Where the user has sessions, about: some may be gone."""
        _, workers = _keys(org, user)
        return {name.decode() for name in await self._redis.execute_command("SMEMBERS", workers)}

    async def erase(self, org: str, user: str) -> int:
        """Forget the user; how many keys there were."""
        return int(await self._redis.execute_command("DEL", *_keys(org, user)))


def _keys(org: str, user: str) -> tuple[str, str]:
    # Quoted: a brace in a name would move its keys into another's hash tag.
    tag = f"inbox:{{{quote(org, safe='')}/{quote(user, safe='')}}}"
    return f"{tag}:essays", f"{tag}:workers"
