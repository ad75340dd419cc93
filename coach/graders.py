"""A grader process: `coach grade`."""

from __future__ import annotations

import signal

import structlog
import trio

from . import config
from .backend import open_backend
from .grading import run_grader
from .ops import log as logging

log = structlog.get_logger()


async def run_graders(settings: config.Settings) -> None:
    """Grade until SIGTERM or SIGINT, then finish or hand back what is under way.

    Raises:
      ConfigurationError: see `open_backend`.
    """
    logging.configure(settings.log)
    stopping = trio.Event()
    async with open_backend(settings, role="grader") as backend, trio.open_nursery() as nursery:

        async def stop_on_signal() -> None:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    stopping.set()
                    return

        nursery.start_soon(stop_on_signal)
        log.info("grader_ready", worker=backend.worker)
        await run_grader(
            redis=backend.redis,
            queue=backend.queue,
            providers=[endpoint.provider for endpoint in backend.endpoints],
            budgets=[endpoint.budget for endpoint in backend.endpoints],
            rubric=backend.rubric,
            settings=settings.grading,
            worker=backend.worker,
            stopping=stopping,
        )
        nursery.cancel_scope.cancel("the grader stops")
