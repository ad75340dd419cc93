"""A grader process: `coach grade`."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from functools import partial

import structlog
import trio

from . import config
from .backend import Backend, benches_of, open_backend
from .config import address_of
from .grading import (
    LENSES,
    Batcher,
    Calibrations,
    Feeder,
    Hours,
    Judge,
    Reviews,
    be_counted,
    run_courier,
    run_grader,
    seat_panel,
    work_within,
)
from .ops import log as logging
from .ops import serve_metrics
from .providers import open_batch_api

log = structlog.get_logger()


async def run_graders(settings: config.Settings, *, hours: Hours | None = None) -> None:
    """Grade until SIGTERM or SIGINT, then finish or hand back what is under way.

    Args:
      settings: of this process.
      hours: when to grade; when they end, what is under way is finished or handed back as well.

    Raises:
      ConfigurationError: see `open_backend`.
    """
    logging.configure(settings.log)
    stopping = trio.Event()
    async with open_backend(settings, role="grader") as backend, trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, stopping)
        address = address_of(settings.grading.metrics or "")
        if address is not None:
            port = await nursery.start(serve_metrics, *address)
            log.info("metrics_served", port=port)
        calibrations = Calibrations(backend.rubric)
        await nursery.start(calibrations.run, backend.redis)
        nursery.start_soon(be_counted, backend.redis, backend.worker)
        grade = partial(_grade, backend, settings.grading, calibrations)
        async with trio.open_nursery() as working:
            if settings.webhooks.to:
                courier = partial(
                    run_courier, backend.redis, backend.queue, settings, stopping=stopping
                )
                working.start_soon(courier)
            if hours is None:
                await grade(stopping)
            else:
                await work_within(hours, grade, stopping=stopping)
        nursery.cancel_scope.cancel("the grader stops")


async def _grade(
    backend: Backend, settings: config.Grading, calibrations: Calibrations, stopping: trio.Event
) -> None:
    reviews = Reviews(backend.redis, backend.queue, settings)
    seat = partial(
        seat_panel,
        benches_of(backend, settings),
        backend.rubric,
        costs=backend.costs,
        pseudonyms=backend.pseudonyms,
        judges=settings.judges,
    )
    async with trio.open_nursery() as nursery:
        if "background" in settings.lanes:
            feeder = Feeder(
                backend.redis,
                backend.queue,
                reviews,
                settings,
                worker=backend.worker,
                batcher=_batcher(backend, settings, seat(fresh=True)),
            )
            nursery.start_soon(feeder.run)
        await run_grader(
            queue=backend.queue,
            judges=seat(),
            fresh=seat(fresh=True),
            reviews=reviews,
            rubric=backend.rubric,
            settings=settings,
            costs=backend.costs,
            calibrations=calibrations,
            worker=backend.worker,
            stopping=stopping,
        )
        nursery.cancel_scope.cancel("the grader stops")


def _batcher(backend: Backend, settings: config.Grading, judges: Sequence[Judge]) -> Batcher | None:
    """What asks judges in batches; None where no provider takes any."""
    apis = {
        endpoint.provider.name: api
        for endpoint in backend.endpoints
        if (api := open_batch_api(endpoint.settings, backend.pool)) is not None
    }
    if not apis:
        return None
    return Batcher(
        backend.redis,
        backend.queue,
        judges,
        apis,
        backend.rubric,
        settings,
        costs=backend.costs,
        worker=backend.worker,
        wall=time.time,
    )


def judges_of(backend: Backend, grading: config.Grading) -> list[Judge]:
    """A judge for each endpoint, called as it is, that asks nowhere else: to compare them."""
    return [
        Judge(
            bench.provider.name,
            [bench],
            backend.rubric,
            costs=backend.costs,
            pseudonyms=backend.pseudonyms,
            lens=LENSES[0],
        )
        for bench in benches_of(backend, grading)
    ]


async def _stop_on_signal(
    stopping: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        await anext(aiter(signals))
        stopping.set()
