"""Services that run beside a block of code and end after it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def running(service: Callable[..., Awaitable[None]]) -> AsyncIterator[None]:
    """Run a service for as long as the body; the body's error leaves as it is, in no group.

    A cancellation from outside reaches the body alone, so that what the body does under a shield
    while it ends is still served. The service is cancelled when the body has ended.

    Args:
      service: started as by `nursery.start`, and cancelled to end it. It must leave promptly.

    Raises:
      ExceptionGroup: the service itself failed, which cancels the body.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope(shield=True)

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await service(task_status=task_status)

        await nursery.start(serve)
        try:
            yield
        except BaseException as error:  # raised again below, outside the nursery
            failure = error
        finally:
            scope.cancel()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # or the traceback would hold this frame, and it the traceback
