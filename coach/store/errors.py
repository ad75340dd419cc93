"""What can go wrong between coach and Redis, by what the caller may do about it.

`NotSent` may be retried freely. `ConnectionLost` may be retried only where running the command
twice does no harm. An error reply of the server is a `ResponseError`, as in redis-py. All three
are `RedisError`s.
"""

from __future__ import annotations

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

__all__ = ["ConnectionLost", "NotSent", "RedisConnectionError", "RedisError", "ResponseError"]


class NotSent(RedisConnectionError):
    """The command was not written to any server: it surely did not run, and may be retried."""


class ConnectionLost(RedisConnectionError):
    """The command was written and no answer came: it may or may not have run."""
