"""What web workers and graders have in common: Redis, the stream pool, providers, budgets, queue.

Opened in order, closed in reverse; everything started here ends inside its `async with`.
"""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from typing import Final

import attrs
import structlog
import trio

from . import config
from .budget import Ask, EndpointBudget, open_endpoint_budget
from .errors import ConfigurationError
from .grading import Bench, Queue, Rubric, load_rubric
from .incarnation import new_name
from .ops import Costs, Prices, health, load_prices, metrics, open_costs, traces
from .providers import (
    ANTHROPIC_PRICE,
    CachePrice,
    Circuit,
    FirstTokens,
    Ping,
    Pool,
    Prompt,
    Provider,
    ProviderError,
    Pseudonyms,
    Usage,
    Warmth,
    closes_gate,
    hold_s,
    keep_warm,
    open_circuit,
    open_pool,
    open_provider,
    open_warmth,
    terms_of,
)
from .store import Redis, RedisError, find_embedded, open_redis, without_password

log = structlog.get_logger()

ANSWER_S_MIN: Final = 2.0
"""A judge's answer is not late before that."""


@attrs.frozen(kw_only=True)
class Endpoint:
    """A provider, and what guards it."""

    provider: Provider
    budget: EndpointBudget
    circuit: Circuit
    warmth: Warmth
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
    pseudonyms: Pseudonyms
    files: int
    """How many files this process may have open."""


@asynccontextmanager
async def open_backend(settings: config.Settings, *, role: str) -> AsyncIterator[Backend]:
    """Open everything a worker or grader needs of the outside world.

    Args:
      settings: the whole of it.
      role: "w0", "grader", …: what operators read in Redis' client list and in leases.

    Raises:
      ConfigurationError: no provider is configured, the rubric or the price list is bad, traces
        are wanted and cannot be made, or Redis does not answer.
    """
    if not settings.provider:
        raise ConfigurationError("no [[provider]] is configured: add one, or try scripts/demo")
    rubric = load_rubric(settings.grading.rubric)
    files = _raise_file_limit()
    prices = load_prices(settings)
    worker = new_name(role)
    url = settings.redis.url or await find_embedded(settings.data_path)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(traces.open_traces(settings.traces, worker=worker))
        redis = await stack.enter_async_context(
            open_redis(url, wait_s=settings.redis.wait_s, name=f"coach-{worker}")
        )
        try:
            await redis.ping()
        except RedisError as error:
            raise ConfigurationError(
                f"redis.url: no answer from {without_password(url)}: {error}"
            ) from error
        _warn_of_unpriced(prices, settings)
        costs = await stack.enter_async_context(
            open_costs(redis, prices, settings.costs, worker=worker, cache=settings.cache.ttl)
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
            asked = open_provider(provider, pool, cache=settings.cache)
            warmth = await stack.enter_async_context(
                _open_warmth(redis, settings, provider, prices, _Ping(asked, budget, costs), worker)
            )
            endpoints.append(
                Endpoint(
                    provider=asked,
                    budget=budget,
                    circuit=circuit,
                    warmth=warmth,
                    settings=provider,
                )
            )
        yield Backend(
            worker=worker,
            redis=redis,
            pool=pool,
            endpoints=tuple(endpoints),
            queue=Queue(redis, settings.grading, announces=settings.webhooks.wants),
            rubric=rubric,
            costs=costs,
            pseudonyms=Pseudonyms(settings.auth.secret or ""),
            files=files,
        )


def benches_of(backend: Backend, grading: config.Grading) -> list[Bench]:
    """The endpoints as judges ask there, in the order of preference."""
    return [
        Bench(
            provider=endpoint.provider,
            budget=endpoint.budget,
            circuit=endpoint.circuit,
            warmth=endpoint.warmth,
            patience=FirstTokens(
                s_min=ANSWER_S_MIN,
                s_max=max(ANSWER_S_MIN, grading.deadline_s),
                s_first=grading.deadline_s / 2,
            ),
            output_tokens_max=endpoint.settings.judge_output_tokens_max,
        )
        for endpoint in backend.endpoints
    ]


def _open_warmth(
    redis: Redis,
    settings: config.Settings,
    provider: config.Provider,
    prices: Prices,
    ping: Ping,
    worker: str,
) -> AbstractAsyncContextManager[Warmth]:
    """What is known of the endpoint's cache, and the service that keeps it warm."""
    price = prices.find(provider=provider.name, model=provider.model)
    if price is None:
        terms = terms_of(provider, settings.cache)
        paid = ANTHROPIC_PRICE[settings.cache.ttl]
    else:
        terms = terms_of(provider, settings.cache, tokens_min=price.cacheable_tokens_min)
        write = price.cache_write_5m if settings.cache.ttl == "5m" else price.cache_write_1h
        paid = CachePrice(price.input, write, price.cache_read, price.output)
    keeps = terms is not None and terms.may_ping and settings.cache.keep_warm
    return open_warmth(
        redis,
        endpoint=provider.name,
        model=provider.model,
        terms=terms,
        settings=settings.cache,
        worker=worker,
        keep=keep_warm(terms, paid, ping) if keeps and terms is not None else None,
    )


@attrs.frozen
class _Ping:
    """Sends a ping as a request of the background lane, and books it."""

    _provider: Provider
    _budget: EndpointBudget
    _costs: Costs

    async def __call__(self, prompt: Prompt, *, org: str) -> Usage | None:
        """See `coach.providers.Ping`."""
        ask = Ask(
            input=self._provider.estimator.most(prompt.size()), output=prompt.output_tokens_max
        )
        async with self._budget.admit(ask, lane="background", org=org) as admission:
            await trio.lowlevel.checkpoint_if_cancelled()  # in the moment of its admission
            used = Usage(ask.input, 0, 0, 0)  # unless it is answered
            try:
                completion = await self._provider.complete(prompt, on_headers=admission.observe)
                used = completion.usage
            except ProviderError as error:
                if error.status is not None or error.kind == "unreachable":
                    used = Usage(0, 0, 0, 0)
                if closes_gate(error.kind):
                    admission.close_gate(hold_s(error) or 0.0)
                raise
            finally:
                admission.settle(Ask(input=used.input + used.cache_write, output=used.output))
                self._costs.book(
                    reason="keep-warm",
                    provider=self._provider.name,
                    model=self._provider.model,
                    usage=used,
                    org=org,
                )
        return used


def _warn_of_unpriced(prices: Prices, settings: config.Settings) -> None:
    """Tell the operator once of the models that the price list does not have."""
    for provider in prices.unpriced(settings.provider):
        log.warning(
            "model_without_price",
            provider=provider.name,
            model=provider.model,
            what_to_do="its cost is not known: set price in its [[provider]], or [[prices.price]]",
        )


def _raise_file_limit() -> int:
    """Take what is allowed: the usual soft limit of 1,024 is there for programs with select(2).

    Returns how many files may be open now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems say "unlimited" and mean less
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        before, (soft, _) = soft, resource.getrlimit(resource.RLIMIT_NOFILE)
        log.info("file_limit_raised", before=before, now=soft)
    return health.FILES_UNLIMITED if soft == resource.RLIM_INFINITY else soft
