"""What the commands have in common: where the settings are, and how they reach Redis."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import trio
import typer

from .. import config
from ..errors import ConfigurationError

if TYPE_CHECKING:
    from ..store import Redis

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file (TOML); else $COACH_CONFIG, else ./coach.toml."),
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder for the embedded Redis, keys and logs.")
]


def load(path: Path | None, data_dir: Path | None = None) -> config.Settings:
    """Read the settings, and hand what the command line said on to child processes.

    Raises:
      ConfigurationError: see `config.load`.
    """
    if path is None and "COACH_CONFIG" not in os.environ and Path("coach.toml").is_file():
        path = Path("coach.toml")
    if path is not None:
        os.environ["COACH_CONFIG"] = str(path.absolute())
    if data_dir is not None:
        os.environ["COACH_DATA_DIR"] = str(data_dir.absolute())
    return config.load(config.path_from_environment())


def ask_redis(settings: config.Settings, ask: Callable[[Redis], Awaitable[T]]) -> T:
    """What `ask` returns, given coach's Redis; a Trio run of its own.

    Raises:
      ConfigurationError: Redis does not answer, at first or any more.
    """
    from ..store import RedisError, find_embedded, open_redis

    async def run() -> T:
        url = settings.redis.url or await find_embedded(settings.data_path)
        async with open_redis(url, wait_s=settings.redis.wait_s, name="coach-cli") as redis:
            try:
                return await ask(redis)
            except RedisError as error:
                raise ConfigurationError(f"redis.url: Redis does not answer: {error}") from error

    return trio.run(run)
