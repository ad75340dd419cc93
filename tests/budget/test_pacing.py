"""How the line is paced: the rule by itself, in simulated time, and the scripts beside it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import pytest
import trio

from coach.budget.quota import Amounts
from coach.budget.scripts import Admitted, EndpointScripts
from coach.simulator.quota import Bucket
from coach.store import Redis
from tests.support.valkey import open_test_redis

from .pacing import WINDOW_S, Paced
from .support import Clock, line_of, use_clock

HARD, SOFT = 9_500, 8_000
STEP_MS_MAX: Final = 500
IN_LINE: Final = 40
"""More than a second's worth: a line that runs empty is no overload."""


@attrs.frozen
class Going:
    """An admission."""

    at_ms: int
    """From the beginning."""
    amount: int


def overload(rule: Paced, *, seconds: int, ask: Callable[[], int]) -> list[Going]:
    """Keep the line from emptying."""
    begun_ms, gone = rule.now_ms, list[Going]()
    line: list[int] = []
    while rule.now_ms < begun_ms + seconds * 1000:
        while len(line) < IN_LINE:
            amount = ask()
            if not line and rule.goes_at_once(amount):
                rule.spend(amount)
                gone.append(Going(rule.now_ms - begun_ms, amount))
            else:
                line.append(amount)
        admitted, wait_ms = rule.look(line)
        del line[: len(admitted)]
        gone += [Going(rule.now_ms - begun_ms, amount) for amount in admitted]
        rule.now_ms += min(STEP_MS_MAX, max(1, wait_ms or STEP_MS_MAX))
    return gone


def within(gone: list[Going], begin_s: float, end_s: float) -> int:
    return sum(each.amount for each in gone if begin_s <= each.at_ms / 1000 < end_s)


def flaws(gone: list[Going], *, seconds: int) -> list[str]:
    """What is wrong with the flow once the first burst has slid out, after a window of 61 s."""
    found = []
    for begin_s in range(WINDOW_S, seconds - 59, 60):
        minute = within(gone, begin_s, begin_s + 60)
        if not 0.97 * HARD <= minute <= HARD:
            found.append(f"{minute} in the minute from {begin_s} s on")
        mean = minute / 12
        fives = {at_s: within(gone, at_s, at_s + 5) for at_s in range(begin_s, begin_s + 60, 5)}
        found += [
            f"{amount} of {mean:.0f} from {at_s} s on"
            for at_s, amount in fives.items()
            if not 0.75 * mean <= amount <= 1.25 * mean
        ]
        found += [
            f"silence in second {at_s}"
            for at_s in range(begin_s, begin_s + 60)
            if not within(gone, at_s, at_s + 1)
        ]
    return found


def constant() -> int:
    return 20


@pytest.mark.parametrize("seed", range(4))
def test_under_overload_tokens_flow_evenly(seed: int) -> None:
    """After the first window: every 5 s alike, 97 % of the hard share, no silent second."""
    ask = partial(random.Random(seed).randrange, 1, 80) if seed else constant
    assert flaws(overload(Paced(HARD, SOFT), seconds=301, ask=ask), seconds=301) == []


def test_a_bare_rolling_window_is_a_burst_and_silence() -> None:
    """Which is why there is pacing: these flaws are found where it is left out."""
    gone = overload(Paced(HARD, SOFT, is_bare=True), seconds=301, ask=constant)
    found = flaws(gone, seconds=301)
    assert sum(flaw.startswith("silence") for flaw in found) > 200
    assert all(within(gone, at_s, at_s + 60) <= HARD for at_s in range(240))


@pytest.mark.parametrize("busy_s", [0, 180])
def test_after_an_idle_spell_a_burst_goes_at_once(busy_s: int) -> None:
    """15 % of the quota, whatever was before."""
    rule = Paced(HARD, SOFT)
    overload(rule, seconds=busy_s, ask=constant)
    rule.now_ms += 20_000
    burst = HARD * 100 // 95 * 15 // 100
    gone = 0
    while gone < burst:
        assert rule.goes_at_once(20)
        rule.spend(20)
        gone += 20


def test_never_more_than_the_hard_share_in_any_minute() -> None:
    """However it is cut."""
    gone = overload(Paced(HARD, SOFT), seconds=200, ask=partial(random.Random(9).randrange, 1, 900))
    for each in gone:
        end_s = each.at_ms / 1000
        assert within(gone, end_s - 60 + 0.001, end_s + 0.001) <= HARD


def scripts_on(redis: Redis, *, is_bucket: bool = False) -> EndpointScripts:
    return EndpointScripts(
        redis,
        "e",
        hard=(0, HARD, 0, 0),
        soft=(0, SOFT, 0, 0),
        worker_lease_s=60.0,
        ticket_lease_s=60.0,
        is_bucket=is_bucket,
    )


def amounts(tokens: int) -> Amounts:
    return (1, tokens, 0, tokens)


async def overload_scripts(
    scripts: EndpointScripts, clock: Clock, *, seconds: int, ask: Callable[[], int]
) -> list[Going]:
    """As `overload` does to the model."""
    begun_ms, gone, count = clock.now_ms, [], 0
    asked: dict[str, int] = {}
    await trio.lowlevel.checkpoint()
    while clock.now_ms < begun_ms + seconds * 1000:
        while len(asked) < IN_LINE:
            count += 1
            name, amount = f"w:{count}", ask()
            reply = await scripts.admit(
                name, lane=0, ask=amounts(amount), org="o", weight=1.0, rank="", line_max=99
            )
            if isinstance(reply, Admitted):
                gone.append(Going(clock.now_ms - begun_ms, amount))
                await scripts.settle(name, amounts(amount))
            else:
                asked[name] = amount
        passed = await scripts.look("w", is_full=False)
        for name in passed.admitted:
            gone.append(Going(clock.now_ms - begun_ms, asked[name]))
            await scripts.settle(name, amounts(asked.pop(name)))
        wait_s = passed.outlook.head_s or STEP_MS_MAX / 1000
        await clock.advance(min(STEP_MS_MAX / 1000, max(0.001, wait_s)))
    return gone


@pytest.mark.real_time
async def test_the_scripts_pace_as_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same asks go at the same milliseconds, over two minutes of overload."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:
        clock = Clock(redis)
        await clock.set(clock.now_ms)
        gone = await overload_scripts(
            scripts_on(redis), clock, seconds=130, ask=partial(random.Random(3).randrange, 40, 160)
        )
        expected = overload(
            Paced(HARD, SOFT), seconds=130, ask=partial(random.Random(3).randrange, 40, 160)
        )
        assert gone == expected
        assert await line_of(redis, "e")


@pytest.mark.real_time
async def test_a_bucket_flows_evenly_and_never_empties_the_providers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly twice the share in the first minute, then as it is refilled; nobody is refused."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:
        clock = Clock(redis)
        await clock.set(clock.now_ms)
        gone = await overload_scripts(
            scripts_on(redis, is_bucket=True), clock, seconds=181, ask=lambda: 95
        )
    assert 1.8 * HARD <= within(gone, 0, 60) <= 2 * HARD
    assert [flaw for flaw in flaws(gone, seconds=181) if "silence" not in flaw] == []
    provider = Bucket.full(HARD, 0.0)
    for each in gone:
        assert provider.wait_s(each.amount, each.at_ms / 1000) == pytest.approx(0, abs=1e-6)
        provider.take(each.amount, each.at_ms / 1000)


@pytest.mark.real_time
@pytest.mark.parametrize("seed", range(3))
async def test_a_bucket_is_never_fuller_than_the_providers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """However long answers take, whatever they use of what they asked, and whoever dies."""
    use_clock(monkeypatch)
    rng = random.Random(seed)
    provider = Bucket.full(HARD, 0.0)
    running: list[tuple[str, int]] = []
    async with open_test_redis(tmp_path) as redis:
        clock, scripts = Clock(redis), scripts_on(redis, is_bucket=True)
        await clock.set(clock.now_ms)
        begun_ms, refused = clock.now_ms, 0
        for count in range(600):
            ask = rng.randrange(20, 900)
            reply = await scripts.admit(
                f"w:{count}", lane=0, ask=amounts(ask), org="o", weight=1.0, rank="", line_max=9
            )
            now_s = (clock.now_ms - begun_ms) / 1000
            if isinstance(reply, Admitted):
                used = rng.randrange(ask) if rng.random() < 0.7 else ask
                assert provider.wait_s(used, now_s) == pytest.approx(0, abs=1e-6)
                provider.take(used, now_s)
                running.append((f"w:{count}", used))
            else:
                refused += 1
                await scripts.settle(f"w:{count}", (0, 0, 0, 0))
            if running and rng.random() < 0.6:
                name, used = running.pop(rng.randrange(len(running)))
                await scripts.settle(name, amounts(used))
            await clock.advance(rng.expovariate(1 / 2.0))
        assert 50 < refused < 550
        for name, used in running:
            await scripts.settle(name, amounts(used))
        await clock.advance(130)  # those it had taken for dead were charged twice
        assert (await scripts.statistics()).spent == (0, 0, 0, 0)
