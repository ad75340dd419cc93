"""Redis: the client on Trio, the scripts, and the server that coach brings along."""

from .client import Redis, open_redis
from .embedded import (
    DataDirInUse,
    EmbeddedServer,
    find_embedded,
    keep_embedded,
    open_embedded,
    share_embedded,
)
from .errors import ConnectionLost, NotSent, RedisError, ResponseError
from .lease import hold_lease, leave_lease
from .pipeline import Pipeline
from .scripts import Script, script
from .server import RedisStatistics
from .url import without_password

__all__ = [
    "ConnectionLost",
    "DataDirInUse",
    "EmbeddedServer",
    "NotSent",
    "Pipeline",
    "Redis",
    "RedisError",
    "RedisStatistics",
    "ResponseError",
    "Script",
    "find_embedded",
    "hold_lease",
    "keep_embedded",
    "leave_lease",
    "open_embedded",
    "open_redis",
    "script",
    "share_embedded",
    "without_password",
]
