"""Tokens a minute as OpenAI counts them: before an answer, whatever comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach import config
from coach.budget import Ask, open_endpoint_budget
from coach.budget.quota import Capacity
from coach.store import open_embedded, open_redis

OPENAI = config.Quota(requests_per_minute=100, tokens_per_minute=10_000)
ANTHROPIC = config.Quota(input_tokens_per_minute=10_000, output_tokens_per_minute=2_000)
asks = st.builds(Ask, st.integers(0, 10**6), st.integers(0, 10**6))


def capacity(quota: config.Quota) -> Capacity:
    return Capacity.of(quota, config.Budget())


@pytest.mark.parametrize(
    ("ask", "used", "tokens"),
    [
        (Ask(2_000, 500), Ask(1_700, 90), 2_000),  # the estimate
        (Ask(300, 500), Ask(250, 90), 500),  # the limit of the output
        (Ask(2_000, 500), Ask(90, 90), 2_000),  # most of it read from the cache
        (Ask(2_000, 500), Ask(0, 0), 2_000),  # refused
        (Ask(2_000, 500), Ask(1_900, 400), 2_300),  # more than it counts, by what was used
    ],
)
def test_the_larger_of_limit_and_estimate_is_spent(ask: Ask, used: Ask, tokens: int) -> None:
    assert capacity(OPENAI).spent(ask, used) == (1, used.input, used.output, tokens)


@given(asks, asks)
def test_others_are_asked_for_what_was_used(ask: Ask, used: Ask) -> None:
    assert capacity(ANTHROPIC).spent(ask, used) == used.amounts


@given(asks, asks)
def test_no_more_is_spent_than_was_reserved_or_used(ask: Ask, used: Ask) -> None:
    tokens = capacity(OPENAI).spent(ask, used)[3]
    assert tokens <= max(ask.amounts[3], used.amounts[3])


@pytest.mark.real_time
async def test_what_a_request_leaves_in_the_budget(tmp_path: Path) -> None:
    """Refused by the provider, it counts; never sent, it does not."""
    async with (
        open_embedded(tmp_path) as server,
        open_redis(server.url, name="test") as redis,
        open_endpoint_budget(
            redis, endpoint="e", quota=OPENAI, settings=config.Budget(), worker="w"
        ) as budget,
    ):
        async with budget.admit(Ask(2_000, 500), lane="interactive", org="o"):
            pass
        assert (await budget.statistics()).used["tokens"] == 0
        async with budget.admit(Ask(2_000, 500), lane="interactive", org="o") as admission:
            assert (await budget.statistics()).used["tokens"] == 0.25
            admission.settle(Ask(0, 0))
        assert (await budget.statistics()).used["tokens"] == 0.2
