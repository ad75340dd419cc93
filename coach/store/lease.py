"""A lease for work that one process at a time should do: two doing it would only be a waste."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import Redis


async def hold_lease(redis: Redis, key: str, owner: str, ttl_ms: int) -> bool:
    """Take the lease, or extend it; a checkpoint.

    Not for what must not be done twice: between two commands it may run out.

    Args:
      redis: where.
      key: what the lease is called.
      owner: unique to this process.
      ttl_ms: after which another may have it, should the owner not come back.

    Raises:
      RedisError: Redis does not answer; the lease may be held.
    """
    if await redis.set(key, owner, nx=True, px=ttl_ms):
        return True
    if await redis.get(key) != owner.encode():
        return False
    await redis.pexpire(key, ttl_ms)
    return True


async def leave_lease(redis: Redis, key: str, owner: str) -> None:
    """Let another have it at once, if it is this owner's; a checkpoint.

    Raises:
      RedisError: Redis does not answer; it runs out, then.
    """
    if await redis.get(key) == owner.encode():
        await redis.delete(key)
