"""A web worker process: hypercorn with the edge, on a listening socket that it inherits."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.utils import LifespanFailureError

from . import config
from .errors import ConfigurationError, first_error

READY: Final = b"ready\n"
CONFIGURATION_EXIT: Final = 2
"""Exit code of a worker that an operator must help to start; it has said how."""
FAILED_EXIT: Final = 1
GC_THRESHOLD: Final = (50_000, 20, 100)
"""Few collections: coach makes no cycles per event, and a full collection stops all students."""


async def run_worker(application: str, listener_fd: int, ready_fd: int) -> int:
    """Serve until SIGTERM, then drain for at most `server.drain_s`. Returns the exit code.

    Args:
      application: the ASGI application as `module:name`; its `failed` says that it must not go on.
      listener_fd: the listening socket.
      ready_fd: a pipe; gets `READY` once the worker accepts connections, or one line that says
        why it never will. Closed then.
    """
    with os.fdopen(ready_fd, "wb", buffering=0) as ready:  # noqa: ASYNC231  a pipe, open already
        return await _serve(application, listener_fd, ready.write)


async def _serve(application: str, listener_fd: int, tell: Callable[[bytes], object]) -> int:
    app: Any = None
    try:
        settings = config.load(config.path_from_environment())
        app = _load(application)
        await _run(app, _options(settings, listener_fd), partial(tell, READY))
    except* (ConfigurationError, LifespanFailureError) as group:
        tell(_reason(group).replace("\n", " ").encode() + b"\n")
        return_code = CONFIGURATION_EXIT
    else:
        return_code = FAILED_EXIT if app.failed else 0
    return return_code


async def _run(app: Any, options: Config, on_ready: Callable[[], object]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, options, shutdown_trigger=_terminated))
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        if app.failed:  # hypercorn goes on for a moment, until its own error reaches us
            await trio.sleep_forever()
        on_ready()


def _load(application: str) -> Any:
    module, _, name = application.partition(":")
    return getattr(import_module(module), name)


def _options(settings: config.Settings, listener_fd: int) -> Config:
    options = Config()
    options.bind = [f"fd://{listener_fd}"]
    options.backlog = settings.server.backlog
    options.graceful_timeout = settings.server.drain_s
    options.shutdown_timeout = settings.server.drain_s
    options.loglevel = "WARNING"
    options.include_server_header = False
    return options


async def _terminated() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        await anext(aiter(signals))


def _reason(group: BaseExceptionGroup[Exception]) -> str:
    """The application's own words, without hypercorn's around them (a test pins these)."""
    return str(first_error(group)).removeprefix("Lifespan failure in startup. '").removesuffix("'")
