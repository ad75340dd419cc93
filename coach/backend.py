"""What web workers and graders have in common: Redis, the stream pool, providers, budgets, queue.

Opened in order, closed in reverse; everything started here ends inside its `async with`.
"""

from __future__ import annotations

import resource
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

import attrs
import structlog

from . import config
from .budget import EndpointBudget, open_endpoint_budget
from .errors import ConfigurationError
from .grading import Queue, Rubric, load_rubric
from .ops import Costs, Prices, load_prices, metrics, open_costs
from .providers import Circuit, Pool, Provider, open_circuit, open_pool, open_provider
from .store import Redis, RedisError, find_embedded, open_redis

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Endpoint:
    """A provider, and what guards it."""

    provider: Provider
    budget: EndpointBudget
    circuit: Circuit
    settings: config.Provider


@attrs.frozen(kw_only=True)
class Backend:
    """The parts below sessions and graders."""

    worker: str
    """Unique to one run of one process: its mailbox, leases and tickets carry it."""
    redis: Redis
    pool: Pool
    endpoints: tuple[Endpoint, ...]
    """In the order of preference."""
    queue: Queue
    rubric: Rubric
    costs: Costs


@asynccontextmanager
async def open_backend(settings: config.Settings, *, role: str) -> AsyncIterator[Backend]:
    """Open everything a worker or grader needs of the outside world.

    Args:
      settings: the whole of it.
      role: "w0", "grader", …: what operators read in Redis' client list and in leases.

    Raises:
      ConfigurationError: no provider is configured, the rubric or the price list is bad, or
        Redis does not answer.
    """
    if not settings.provider:
        raise ConfigurationError("no [[provider]] is configured: add one, or try scripts/demo")
    rubric = load_rubric(settings.grading.rubric)
    _raise_file_limit()
    prices = _prices(settings)
    worker = f"{role}-{secrets.token_hex(4)}"
    url = settings.redis.url or await find_embedded(settings.data_path)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(
            open_redis(url, wait_s=settings.redis.wait_s, name=f"coach-{worker}")
        )
        try:
            await redis.ping()
        except RedisError as error:
            raise ConfigurationError(
                f"redis.url: no answer from {_without_password(url)}: {error}"
            ) from error
        costs = await stack.enter_async_context(
            open_costs(redis, prices, settings.costs, worker=worker)
        )
        pool = await stack.enter_async_context(
            open_pool(settings, on_batch=metrics.event_latency_seconds.observe)
        )
        endpoints = []
        for provider in settings.provider:
            budget = await stack.enter_async_context(
                open_endpoint_budget(
                    redis,
                    endpoint=provider.name,
                    quota=provider.quota,
                    settings=settings.budget,
                    worker=worker,
                )
            )
            circuit = await stack.enter_async_context(
                open_circuit(redis, endpoint=provider.name, settings=settings.failover)
            )
            endpoints.append(
                Endpoint(
                    provider=open_provider(provider, pool),
                    budget=budget,
                    circuit=circuit,
                    settings=provider,
                )
            )
        yield Backend(
            worker=worker,
            redis=redis,
            pool=pool,
            endpoints=tuple(endpoints),
            queue=Queue(redis, settings.grading),
            rubric=rubric,
            costs=costs,
        )


def _prices(settings: config.Settings) -> Prices:
    """The price list; the operator is told once of models it does not have."""
    prices = load_prices(settings)
    for provider in prices.unpriced(settings.provider):
        log.warning(
            "model_without_price",
            provider=provider.name,
            model=provider.model,
            what_to_do="its cost is not known: set price in its [[provider]], or [[prices.price]]",
        )
    return prices


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":***@") if parts.password else url


def _raise_file_limit() -> None:
    """Take what is allowed: the usual soft limit of 1,024 is there for programs with select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems say "unlimited" and mean less
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
