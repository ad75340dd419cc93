"""What workers and graders have in common."""

from __future__ import annotations

import sys

import pytest
import trio

from coach.backend import _Ping
from coach.budget import Ask
from coach.errors import Overloaded
from coach.providers import Block, ErrorKind, Message, Prompt, ProviderError
from tests.grading.fakes import USAGE, FakeBudget, FakeProvider
from tests.support.cancels import cancel_at_step
from tests.support.costs import booked, new_costs, reasons

LOWERED = """
import resource
from coach.backend import _raise_file_limit

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
_raise_file_limit()
soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
print(soft == hard)
"""


@pytest.mark.real_time
async def test_a_process_may_open_as_many_files_as_it_is_allowed() -> None:
    done = await trio.run_process([sys.executable, "-c", LOWERED], capture_stdout=True)
    *_, raised, said = done.stdout.splitlines()
    assert b"file_limit_raised" in raised
    assert said == b"True"


# -- pings that keep a cache warm ------------------------------------------------------------------

PROMPT = Prompt(
    system=(Block("You are a coach.", cache=True),),
    messages=(Message("user", (Block("Go on."),)),),
    output_tokens_max=1,
)


async def test_a_ping_is_a_request_of_the_background_lane_and_booked_as_such() -> None:
    provider, budget, costs = FakeProvider(replies=["."]), FakeBudget(), new_costs()
    ping = _Ping(provider.as_provider(), budget.as_budget(), costs)
    assert await ping(PROMPT, org="school") == USAGE
    ((ask, lane, org),) = budget.admitted
    assert (lane, org, ask.output) == ("background", "school", 1)
    assert ask.input == provider.estimator.most(PROMPT.size())
    assert budget.settled == [Ask(USAGE.input + USAGE.cache_write, USAGE.output)]
    assert budget.observed == [{"request-id": "r"}]
    ((cell, amounts),) = booked(costs).items()
    assert cell.reason == "keep-warm"
    assert amounts["cache_read"] == USAGE.cache_read


@pytest.mark.parametrize(
    ("kind", "status", "is_spent", "gate_s"),
    [
        ("rate_limited", 429, False, 7.0),
        ("unreachable", None, False, 0.0),
        ("server_error", 500, False, 0.0),
        ("cut", None, True, 0.0),
    ],
)
async def test_a_ping_that_fails_spends_what_may_have_been_read(
    kind: ErrorKind, status: int | None, is_spent: bool, gate_s: float
) -> None:
    """A provider that says how long it wants to be left alone is, by every worker."""
    error = ProviderError("no", kind=kind, provider="opus", status=status, retry_after_s=7.0)
    provider, budget, costs = FakeProvider(replies=[error]), FakeBudget(), new_costs()
    with pytest.raises(ProviderError):
        await _Ping(provider.as_provider(), budget.as_budget(), costs)(PROMPT, org="school")
    asked = budget.admitted[0][0].input
    assert budget.settled == [Ask(asked if is_spent else 0, 0)]
    assert sum(amounts["input"] for amounts in booked(costs).values()) == asked * is_spent
    assert budget.gate_opens_at == (trio.current_time() + gate_s if gate_s else 0.0)


async def test_a_ping_that_is_not_let_in_asks_nobody() -> None:
    provider, budget, costs = (
        FakeProvider(),
        FakeBudget(refuse=Overloaded("full", retry_after_s=1.0)),
        new_costs(),
    )
    with pytest.raises(Overloaded):
        await _Ping(provider.as_provider(), budget.as_budget(), costs)(PROMPT, org="school")
    assert (provider.prompts, reasons(costs)) == ([], {})


async def test_a_ping_cancelled_at_any_step_settles_and_books_what_was_sent() -> None:
    outcomes = set()
    for step in range(1, 30):
        provider, budget, costs = FakeProvider(replies=[0.1, "."]), FakeBudget(), new_costs()
        with cancel_at_step(step) as scope:
            await _Ping(provider.as_provider(), budget.as_budget(), costs)(PROMPT, org="school")
        was_sent = bool(provider.prompts)
        assert (budget.open, provider.running) == (0, 0)
        assert [spent is not None for spent in budget.settled] in ([], [was_sent])
        assert reasons(costs) == ({"keep-warm": 1} if was_sent else {})
        outcomes.add((was_sent, scope.cancel_called))
        if not scope.cancel_called:
            break
    assert outcomes == {(False, True), (True, True), (True, False)}
