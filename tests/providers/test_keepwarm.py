"""Pings: where they pay, one for a cluster, and only while somebody may come back."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from coach import config
from coach.providers import (
    ANTHROPIC_PRICE,
    CachePrice,
    Interest,
    Prompt,
    ProviderError,
    Usage,
    Warmth,
    keep_warm,
    open_warmth,
    terms_of,
)
from coach.providers.keepwarm import arrivals_min
from tests.support.valkey import open_test_redis

from .test_warmth import ENDPOINT, PROMPT, READ, WRITE

TTL_S = 0.8


def test_the_rule_by_hand() -> None:
    """1,500 tokens: a ping costs 150 + 5, saves 1,725 x p; p = 0.0899, so 0.188 arrivals."""
    assert arrivals_min(ANTHROPIC_PRICE["5m"], 1_500) == pytest.approx(0.1884, abs=1e-3)
    hour = arrivals_min(ANTHROPIC_PRICE["1h"], 1_500)
    assert hour < arrivals_min(ANTHROPIC_PRICE["5m"], 1_500)


@pytest.mark.parametrize(
    ("price", "tokens"),
    [(ANTHROPIC_PRICE["5m"], 0), (ANTHROPIC_PRICE["5m"], 4), (CachePrice(1, 1, 1, 5), 10_000)],
    ids=["no prefix", "a tiny one", "reads cost as much"],
)
def test_where_a_ping_never_pays(price: CachePrice, tokens: int) -> None:
    assert arrivals_min(price, tokens) == math.inf


@attrs.define
class Pinged:
    """In place of a provider."""

    error: Exception | None = None
    at: list[float] = attrs.field(factory=list)
    prompts: list[Prompt] = attrs.field(factory=list)
    orgs: list[str] = attrs.field(factory=list)

    async def __call__(self, prompt: Prompt, *, org: str) -> Usage | None:
        self.at.append(trio.current_time())
        self.prompts.append(prompt)
        self.orgs.append(org)
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return READ


@asynccontextmanager
async def opened(
    tmp_path: Path, ping: Pinged, *, workers: int = 1, price: CachePrice = ANTHROPIC_PRICE["5m"]
) -> AsyncIterator[list[Warmth]]:
    terms = terms_of(ENDPOINT, config.Cache())
    assert terms is not None
    terms = attrs.evolve(terms, ttl_s=TTL_S)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_test_redis(tmp_path))
        yield [
            await stack.enter_async_context(
                open_warmth(
                    redis,
                    endpoint="a",
                    model="m",
                    terms=terms,
                    settings=config.Cache(),
                    worker=f"w{number}",
                    keep=keep_warm(terms, price, ping),
                )
            )
            for number in range(workers)
        ]


async def ask(warmth: Warmth, interest: Interest | None, usage: Usage = WRITE) -> None:
    async with warmth.visit(PROMPT, interest) as visit:
        visit.began(usage)


@pytest.mark.real_time
async def test_over_a_pause_one_worker_of_two_pings_and_the_prefix_stays_warm(
    tmp_path: Path,
) -> None:
    ping = Pinged()
    async with opened(tmp_path, ping, workers=2) as workers:
        interests = [Interest("school"), Interest("school")]
        for warmth, interest in zip(workers, interests, strict=True):
            await ask(warmth, interest)
        began_at = trio.current_time()
        await trio.sleep(TTL_S * 2.5)
        assert len(ping.at) == 2
        assert all(at - began_at > TTL_S * 0.8 for at in ping.at)
        for warmth in workers:
            async with warmth.visit(PROMPT) as visit:
                assert not visit.leads
    assert ping.prompts[0].system == PROMPT.system
    assert ping.prompts[0].output_tokens_max == 1
    assert set(ping.orgs) == {"school"}


@pytest.mark.real_time
async def test_nobody_pings_for_sessions_that_are_closed_nor_for_none(tmp_path: Path) -> None:
    ping = Pinged()
    async with opened(tmp_path, ping) as (warmth,):
        interest = Interest("school")
        await ask(warmth, interest)
        await ask(warmth, None)
        interest.close()
        await trio.sleep(TTL_S * 1.5)
        assert ping.at == []


@pytest.mark.real_time
async def test_nobody_pings_where_it_does_not_pay(tmp_path: Path) -> None:
    ping = Pinged()
    async with opened(tmp_path, ping, price=CachePrice(1, 1.0, 0.9, 5)) as (warmth,):
        await ask(warmth, Interest("school"))
        await trio.sleep(TTL_S * 1.5)
        assert ping.at == []


@pytest.mark.real_time
async def test_a_ping_that_fails_is_not_repeated_until_somebody_asks_again(tmp_path: Path) -> None:
    ping = Pinged(error=ProviderError("no", kind="overloaded", provider="a"))
    async with opened(tmp_path, ping) as (warmth,):
        interest = Interest("school")
        await ask(warmth, interest)
        await trio.sleep(TTL_S * 1.5)
        assert len(ping.at) == 1
        ping.error = None
        await ask(warmth, interest)
        await trio.sleep(TTL_S * 1.2)
        assert len(ping.at) == 2
