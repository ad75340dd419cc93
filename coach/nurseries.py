"""Nurseries whose single error leaves as it is, in no group; services that run beside a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_plain_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery for one purpose: callers catch what went wrong by its own class.

    Raises:
      whatever the body or a task raised, as it is where it is the only error; several in a group.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        failure = group.exceptions[0] if len(group.exceptions) == 1 else group
    if failure is not None:  # raised here, or the group would be its context
        try:
            raise failure
        finally:
            del failure  # or the traceback would hold this frame, and it the traceback


@asynccontextmanager
async def running(service: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run a service for as long as the body; a single error leaves as it is, in no group.

    A cancellation from outside reaches the body alone, so that what the body does under a shield
    while it ends is still served. The service is cancelled when the body has ended.

    Args:
      service: cancelled to end it; it must leave promptly. If it fails, the body is cancelled.
    """
    scope = trio.CancelScope(shield=True)
    async with open_plain_nursery() as nursery:
        nursery.start_soon(_serve, service, scope)
        try:
            yield
        finally:
            scope.cancel()


async def _serve(service: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    with scope:
        await service()
