"""scripts/bench/before_after: a ramp's capacity, and a bill done by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coach.errors import ConfigurationError
from coach.grading import load_rubric
from coach.providers import Conversation, feedback_prompt
from coach.simulator.host import Usage
from coach.simulator.timeline import Sample

BENCH = Path(__file__).parent.parent / "scripts" / "bench"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def ramp(*seconds: tuple[float, float | None, int]) -> list[Sample]:
    """Samples a second apart: turns a second, first token's p95, errors so far."""
    return [
        Sample(at_s=at_s, writers=1, turns_per_s=turns, ttft_p95_ms=ttft, errors=errors)
        for at_s, (turns, ttft, errors) in enumerate(seconds, start=1)
    ]


def test_capacity_is_the_last_rate_in_time_before_first_tokens_stay_late() -> None:
    """A single late second is a hiccup; what is asked while they are late counts for nothing."""
    from before_after_figures import capacity_of

    good = [(float(rate), 300.0, 0) for rate in range(1, 11)]
    hiccup = [(11.0, 700.0, 0), (12.0, 300.0, 0)]
    late = [(20.0, 700.0, 0)] * 5
    found = capacity_of(ramp(*good, *hiccup, *late), turn_every_s=30.0)
    assert (found.writers, found.ended_by, found.at_s) == (360.0, "first token", 15)
    assert str(found) == "360"


def test_capacity_ends_with_more_than_one_turn_of_a_hundred_failing() -> None:
    from before_after_figures import capacity_of

    samples = ramp(*[(20.0, 300.0, 0)] * 10, (20.0, 300.0, 2), (20.0, 300.0, 3), (90.0, 300.0, 3))
    found = capacity_of(samples, turn_every_s=6.0)
    assert (found.writers, found.ended_by, found.at_s) == (120.0, "errors", 12)


def test_few_turns_say_nothing_about_errors() -> None:
    from before_after_figures import capacity_of

    assert capacity_of(ramp(*[(1.0, None, 1)] * 9), turn_every_s=6.0).ended_by == ""


def test_a_ramp_that_ends_first_says_that_it_is_at_least_so_many() -> None:
    from before_after_figures import capacity_of

    assert str(capacity_of(ramp(*[(10.0, 300.0, 0)] * 9), turn_every_s=6.0)) == "≥ 60"
    assert str(capacity_of([], turn_every_s=6.0)) == "≥ 0"


def test_the_seconds_before_arrivals_have_settled_are_no_capacity() -> None:
    from before_after_figures import capacity_of

    samples = ramp((500.0, 300.0, 0), *[(10.0, 300.0, 0)] * 9)
    assert capacity_of(samples, turn_every_s=6.0).writers == 60


def test_first_tokens_are_compared_at_the_same_load() -> None:
    from before_after_figures import ttft_at

    samples = [
        Sample(at_s=at_s, writers=1, turns_per_s=turns, ttft_p50_ms=p50, ttft_p95_ms=p95)
        for at_s, turns, p50, p95 in (
            (1.0, 4.0, 100.0, 100.0),
            (2.0, 10.0, 210.0, 310.0),
            (3.0, 15.0, 220.0, 320.0),
            (4.0, 20.0, 230.0, 930.0),
            (5.0, 30.0, 990.0, 999.0),
        )
    ]
    assert ttft_at(samples, 120, turn_every_s=6.0) == (220.0, 320.0)
    assert ttft_at(samples, 10, turn_every_s=6.0) == (0.0, 0.0)


def test_the_bill_of_a_writers_hour_line_by_line() -> None:
    from before_after_figures import LINES, Prices, Use, bill

    prices = Prices(
        model="m",
        turns_per_hour=100,
        essays_per_hour=2,
        cpu_use=0.5,
        host_vcpus=2,
        host_usd_hour=0.1,
        redis_vcpus=4,
        redis_usd_hour=0.4,
        usd_gb=0.1,
        prompt_bytes_per_token=4,
        monitoring_usd_host_month=73,
        inr=80,
        tier={},
        before_inr=38,
        after_inr=11,
    )
    turn = Use(
        input=100, cache_write=50, cache_read=850, output=10,
        app_cpu_s=0.018, redis_cpu_s=0.009, bytes_out=6_000, usd=0.001,
    )  # fmt: skip
    essay = Use(input=500, requests=3, app_cpu_s=0.9, usd=0.02)
    found = bill(turn, essay, prices)
    assert tuple(found) == LINES
    hosts = (100 * 0.018 + 2 * 0.9) / 3_600 / 0.5 / 2
    redis = 100 * 0.009 / 3_600 / 0.5 / 4
    gigabytes = (100 * 6_000 + (100 * 1_000 + 2 * 500) * 4) / 1e9
    assert found == pytest.approx(
        {
            "feedback tokens": 100 * 0.001 * 80,
            "grading tokens": 2 * 0.02 * 80,
            "application servers": hosts * 0.1 * 80,
            "Redis and queue": redis * 0.4 * 80,
            "bandwidth and monitoring": (gigabytes * 0.1 + (hosts + redis) * 73 / 730) * 80,
        }
    )


def test_a_tier_carries_as_many_as_its_narrowest_limit() -> None:
    """What is read from the cache counts for no limit of input tokens."""
    from before_after_figures import Use, read_prices, writers_of_tier

    prices = read_prices(BENCH / "before_after_prices.toml")
    essay = Use(requests=3)
    cached = Use(input=100, cache_write=0, cache_read=2_000, output=150)
    plain = Use(input=2_100, output=150)
    minute = prices.turns_per_hour / 60
    output = prices.tier["output_tokens_per_minute"] / 150 / minute
    assert writers_of_tier(cached, essay, prices) == (output, "output tokens")
    input_ = prices.tier["input_tokens_per_minute"] / 2_100 / minute
    assert writers_of_tier(plain, essay, prices) == (input_, "input tokens")


def test_cpu_seconds_are_those_of_all_processes_of_the_roles() -> None:
    from before_after_figures import cpu_s

    def usage(role: str, cpu: float) -> Usage:
        return Usage(1, role, cpu, 0.0, 0, 0)

    usages = (usage("worker", 0.5), usage("worker", 0.25), usage("grader", 1.0))
    samples = [
        Sample(at_s=1.0, writers=0),
        Sample(at_s=3.0, writers=0, usages=usages),
    ]
    assert cpu_s(samples, "worker") == 1.5
    assert cpu_s(samples, "worker", "grader") == 3.5


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("inr = 88", "inr = 0", "inr must be above 0"),
        ("usd_gb", "usd_pound", "usd_gb is missing"),
        ("as_of = 2026-10-17", "as_of = 0", r"\[tier\] needs source and as_of"),
        ("[host]", "[host", "prices.toml"),
    ],
)
def test_a_price_file_that_is_not_one_is_named(
    tmp_path: Path, was: str, becomes: str, said: str
) -> None:
    from before_after_figures import read_prices

    text = (BENCH / "before_after_prices.toml").read_text()
    assert was in text
    path = tmp_path / "prices.toml"
    path.write_text(text.replace(was, becomes))
    with pytest.raises(ConfigurationError, match=said):
        read_prices(path)


def test_the_simulated_model_is_priced_by_the_list_that_comes_with_coach() -> None:
    from before_after_figures import read_prices
    from before_after_run import price_of

    price = price_of(read_prices(BENCH / "before_after_prices.toml").model)
    assert price["models"] == ["sim-writer-1"]
    assert json.loads(json.dumps(price)) == price
    with pytest.raises(ConfigurationError, match="no model nobody"):
        price_of("nobody")


def test_tokens_are_priced_each_by_its_kind() -> None:
    from before_after_figures import Use, price_tokens

    price = {"input": 3, "cache_write_5m": 3.75, "cache_read": 0.3, "output": 15}
    use = price_tokens(Use(input=1_000, cache_write=100, cache_read=2_000, output=50), price)
    assert use.usd == pytest.approx((3_000 + 375 + 600 + 750) / 1e6)
    assert (use.input, use.prompt) == (1_000, 3_100)


def test_the_tables_have_a_row_for_every_server_and_the_bill_compares_the_last_with_the_first() -> (
    None
):
    """The hour has the tokens, the class CPU and bytes; a load that was not put has no table."""
    from before_after_figures import Use, read_prices
    from before_after_run import Handed, Hour
    from before_after_tables import tables

    prices = read_prices(BENCH / "before_after_prices.toml")

    def hour(usd: float) -> Hour:
        use = Use(input=100, output=50, usd=usd)
        return Hour(turn=use, essay=Use(), turns=9, completed=8, essays=1, errors=0)

    handed = Handed(
        turn=Use(app_cpu_s=0.036), essay=Use(), score_ms=(2_000.0, 3_000.0), graded=7,
        submissions=7, errors=0,
    )  # fmt: skip
    figures: dict[str, dict[str, Any]] = {
        "class": {"usual": handed, "other": handed, "coach": handed},
        "hour": {"usual": hour(0.01), "coach": hour(0.0025)},
    }
    lines = "\n".join(tables(figures, prices)).splitlines()
    assert [line for line in lines if line.startswith("| other")] == [
        "| other | 7 of 7 | 2.0 / 3.0 | 0 |"
    ]
    assert "| ₹ a concurrent writer and hour | usual | coach |" in lines
    assert "| feedback tokens | 105.600 | 26.400 |" in lines
    assert "| coach | 100 | 0 | 0 | 50 | 0 | 0 | 0 | 0 | 9 | 8 | 0 |" in lines
    assert lines[-1].startswith("From ₹105.6 to ₹26.4, a ratio of 0.25;")
    assert not any("ramp" in line or "quota" in line for line in lines)


def feedback_of_coach() -> str:
    question = Conversation().ask("", None, now_s=0.0)
    prompt = feedback_prompt(rubric="", assignment="", question=question, output_tokens_max=1)
    return prompt.system[0].text


def test_the_usual_server_is_told_coachs_own_words() -> None:
    """No breakpoints, and a schema whose criteria are those that it makes the median of."""
    from usual_stage import prompts_of_coach

    told = prompts_of_coach()
    rubric = load_rubric()
    for kind in ("feedback", "judge"):
        assert told[kind].endswith(rubric.as_text())
    assert "cache" not in json.dumps(told)
    for told_by_changes in ("student comes back", "what is new"):
        assert told_by_changes in feedback_of_coach()
        assert told_by_changes not in told["feedback"]
    schema = told["schema"]["properties"]["criteria"]["properties"]
    assert list(schema) == [criterion["name"] for criterion in told["criteria"]]
    assert sum(criterion["weight"] for criterion in told["criteria"]) == 100
    assert len(told["lenses"]) >= 3
