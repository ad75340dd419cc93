"""A private Redis for one test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coach.store import Redis, open_embedded, open_redis


@asynccontextmanager
async def open_test_redis(tmp_path: Path, *, appendonly: bool = False) -> AsyncIterator[Redis]:
    """A client of an embedded server that lives in `tmp_path`. For `real_time` tests.

    Args:
      tmp_path: the test's own.
      appendonly: True where the test needs WAITAOF or restarts the server.
    """
    async with (
        open_embedded(tmp_path / "valkey", appendonly=appendonly) as server,
        open_redis(server.url) as redis,
    ):
        yield redis
