"""A grader process: `coach grade`."""

from __future__ import annotations

import signal

import trio

from . import config
from .backend import Backend, open_backend
from .grading import Calibrations, Judge, run_grader
from .ops import log as logging


async def run_graders(settings: config.Settings) -> None:
    """Grade until SIGTERM or SIGINT, then finish or hand back what is under way.

    Raises:
      ConfigurationError: see `open_backend`.
    """
    logging.configure(settings.log)
    stopping = trio.Event()
    async with open_backend(settings, role="grader") as backend, trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, stopping)
        calibrations = Calibrations(backend.rubric)
        await nursery.start(calibrations.run, backend.redis)
        await run_grader(
            queue=backend.queue,
            judges=judges_of(backend),
            rubric=backend.rubric,
            settings=settings.grading,
            costs=backend.costs,
            calibrations=calibrations,
            worker=backend.worker,
            stopping=stopping,
        )
        nursery.cancel_scope.cancel("the grader stops")


def judges_of(backend: Backend) -> list[Judge]:
    """The panel: a judge for each endpoint, called as it is."""
    return [
        Judge(
            endpoint.provider,
            endpoint.budget,
            backend.rubric,
            costs=backend.costs,
            warmth=endpoint.warmth,
            pseudonyms=backend.pseudonyms,
            output_tokens_max=endpoint.settings.judge_output_tokens_max,
        )
        for endpoint in backend.endpoints
    ]


async def _stop_on_signal(
    stopping: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        await anext(aiter(signals))
        stopping.set()
