"""The limits that a worker counts for itself: exact windows, nothing kept of a cancelled one."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from coach import config
from coach.budget import LocalLimits
from coach.budget.local_limits import WINDOWS_KEPT
from coach.errors import RateLimited, TooLarge


def limits(**changes: int) -> LocalLimits:
    given: dict[str, Any] = {
        "user_requests_per_minute": 100,
        "user_tokens_per_minute": 1_000,
        "org_requests_per_minute": 1_000,
        "org_tokens_per_minute": 10_000,
        **changes,
    }
    return LocalLimits(config.Limits(**given))


async def use(
    local: LocalLimits, tokens: int, used: int | None = None, *, user: str = "ana", org: str = "o"
) -> None:
    async with local.reserve(user=user, org=org, tokens=tokens) as reservation:
        if used is not None:
            reservation.settle(used)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"user_requests_per_minute": 2}, "your limit of 2 requests"),
        ({"user_tokens_per_minute": 20}, "your limit of 20 tokens"),
        ({"org_requests_per_minute": 2}, "your organisation's limit of 2 requests"),
        ({"org_tokens_per_minute": 20}, "your organisation's limit of 20 tokens"),
    ],
)
async def test_each_limit_refuses_and_says_exactly_when_not_any_more(
    changes: dict[str, int], said: str
) -> None:
    """After that time it fits, and not a moment before."""
    local = limits(**changes)
    await use(local, 10, 10)
    await trio.sleep(5)
    await use(local, 10, 10)
    with pytest.raises(RateLimited, match=said) as refused:
        await use(local, 10)
    assert refused.value.retry_after_s == pytest.approx(55)
    await trio.sleep(54.9)
    with pytest.raises(RateLimited):
        await use(local, 10)
    await trio.sleep(0.2)
    await use(local, 10)


async def test_what_is_given_back_or_not_used_is_free_at_once() -> None:
    """A cancelled request counts for nothing, a smaller answer for what it was."""
    local = limits(user_tokens_per_minute=100, user_requests_per_minute=2)
    await use(local, 90, 20)
    with trio.move_on_after(1):
        async with local.reserve(user="ana", org="o", tokens=80):
            with pytest.raises(RateLimited, match="requests"):
                await use(local, 1)
            await trio.sleep_forever()
    await use(local, 80, 80)


async def test_one_larger_than_the_whole_limit_gets_all_of_it_or_is_too_large() -> None:
    """As the shared limits have it."""
    local = limits(user_tokens_per_minute=100)
    async with local.reserve(user="ana", org="o", tokens=500, tokens_least=60) as reservation:
        assert reservation.tokens == 100
    with pytest.raises(TooLarge, match="101 tokens or more"):
        async with local.reserve(user="ana", org="o", tokens=500, tokens_least=101):
            pass


async def test_in_shadow_nobody_is_refused() -> None:
    """Nor in this process."""
    local = LocalLimits(config.Limits(mode="shadow", user_tokens_per_minute=10))
    for _ in range(3):
        await use(local, 50, 50)


async def test_two_workers_let_through_twice_as_much() -> None:
    """That is what the flag is for: to measure by how much."""
    through = 0
    for local in (limits(user_requests_per_minute=5), limits(user_requests_per_minute=5)):
        for _ in range(10):
            try:
                await use(local, 1, 1)
                through += 1
            except RateLimited:
                continue
    assert through == 10


async def test_users_who_are_gone_leave_nothing_behind() -> None:
    """However many there were."""
    local = limits(org_requests_per_minute=1_000_000)
    for minute in range(4):
        for number in range(WINDOWS_KEPT):
            await use(local, 1, 1, user=f"s{minute}-{number}")
        await trio.sleep(61)
    assert len(local._windows) <= 2 * WINDOWS_KEPT + 2


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.none() | st.integers(0, 400), st.integers(0, 40)),
        max_size=30,
    )
)
def test_no_minute_has_more_than_the_limit(asked: list[tuple[int, int | None, int]]) -> None:
    """Whatever is asked when, as far as nobody uses more than was reserved."""
    taken: list[tuple[float, int]] = []

    async def run() -> None:
        local = limits()
        for tokens, used, pause_s in asked:
            spent = None if used is None else min(used, tokens)
            try:
                await use(local, tokens, spent)
                taken.append((trio.current_time(), spent or 0))
            except RateLimited:
                pass
            await trio.sleep(pause_s)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    for begin_s, _ in taken:
        within = [spent for at_s, spent in taken if begin_s <= at_s < begin_s + 60]
        assert sum(within) <= 1_000
