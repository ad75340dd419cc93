"""The calibration in use: kept in Redis with a version, followed by every grader.

Like rollout flags: an operator's word that holds for all graders, who look every REFRESH_S. Without
Redis they go on with what they know; a grader that has never reached it grades as judged.

Memory: one calibration, a kilobyte for each judge and panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

import msgspec
import structlog
import trio

from ..store import Redis, RedisError, script
from .answers import Answer
from .calibration import Calibration, calibrated
from .records import Grade
from .rubric import Rubric

log = structlog.get_logger()

KEY: Final = "calibration"
"""HASH: see calibration_keep.lua."""
KEPT_MAX: Final = 50
REFRESH_S: Final = 2.0


@final
class Calibrations:
    """The calibration in use, as one grader knows it."""

    def __init__(self, rubric: Rubric) -> None:
        """None is known yet."""
        self._rubric = rubric
        self._version = 0
        self._calibration: Calibration | None = None

    @property
    def version(self) -> int:
        """Of the one in use; 0: none."""
        return self._version

    def apply(self, grade: Grade, answers: Mapping[str, Answer]) -> Grade:
        """The grade as it should be given; as it is where no calibration fits its judges."""
        if self._calibration is None:
            return grade
        return calibrated(grade, self._rubric, answers, self._version, self._calibration)

    async def run(
        self, redis: Redis, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Follow what operators set, until cancelled; started after the first look."""
        while True:
            await self._look(redis)
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(REFRESH_S)

    async def _look(self, redis: Redis) -> None:
        try:
            if await current_version(redis) == self._version:
                return
            version, calibration = await read_calibration(redis)
        except RedisError as error:
            log.debug("calibration_not_read", error=str(error))
            return
        if version != self._version:
            log.info("calibration", version=version, was=self._version)
        if calibration is not None and calibration.rubric != self._rubric.fingerprint():
            log.warning(
                "calibration_of_another_rubric",
                version=version,
                what_to_do="grades are given as judged: coach evaluate, coach calibrate fit",
            )
        self._version, self._calibration = version, calibration


async def current_version(redis: Redis) -> int:
    """The version in use; 0: none.

    Raises:
      RedisError: no answer.
    """
    return int(await redis.execute_command("HGET", KEY, "current") or 0)


async def read_calibration(redis: Redis) -> tuple[int, Calibration | None]:
    """The version in use and its calibration; 0 and None where there is none.

    Raises:
      RedisError: no answer.
    """
    version, kept = await read_history(redis)
    return (version, kept[version]) if version in kept else (0, None)


async def read_history(redis: Redis) -> tuple[int, dict[int, Calibration]]:
    """The version in use (0: none), and all that are kept, the newest first.

    Raises:
      RedisError: no answer.
    """
    stored: dict[bytes, bytes] = await redis.execute_command("HGETALL", KEY)
    kept = {
        int(name.removeprefix(b"v:")): msgspec.json.decode(data, type=Calibration)
        for name, data in stored.items()
        if name.startswith(b"v:")
    }
    return int(stored.get(b"current", 0)), dict(sorted(kept.items(), reverse=True))


async def keep_calibration(redis: Redis, calibration: Calibration) -> int:
    """Keep it and use it from now on; graders follow within REFRESH_S. Its version.

    Raises:
      RedisError: it may not have been kept.
    """
    data = msgspec.json.encode(calibration)
    return int(await script("calibration_keep")(redis, [KEY], [data, KEPT_MAX]))


async def use_calibration(redis: Redis, version: int) -> bool:
    """Use one that was kept, 0: none. False: it is not kept, and nothing has changed.

    Raises:
      RedisError: it may not have been set.
    """
    return bool(await script("calibration_use")(redis, [KEY], [version]))
