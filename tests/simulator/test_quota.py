"""Quotas: token buckets that never admit more than they hold, and say when there is more."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.quota import Bucket, Quota

from .support import WALL_S, Bench, judged, question


def test_a_bucket_refills_evenly_and_never_above_its_limit() -> None:
    bucket = Bucket.full(60, now=0)
    bucket.take(60, now=0)

    assert [bucket.level(now) for now in (0, 1, 30, 60, 600)] == [0, 1, 30, 60, 60]
    assert bucket.wait_s(10, now=1) == 9
    assert bucket.wait_s(61, now=600) == math.inf


def test_a_bucket_that_is_overdrawn_is_paid_back_first() -> None:
    bucket = Bucket.full(60, now=0)
    bucket.take(90, now=0)

    assert bucket.level(0) == -30
    assert bucket.wait_s(1, now=0) == 31
    assert bucket.level(31) == 1


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 400)), max_size=60),
    st.integers(1, 20),
    st.integers(100, 1_000),
)
def test_no_minute_sees_more_than_two_limits(
    asks: list[tuple[float, int]], requests: int, tokens: int
) -> None:
    """A full bucket and a minute's refill: the most a token bucket admits in any 60 s."""
    quota, now = Quota({"requests": requests, "input-tokens": tokens}, 0.0), 0.0
    admitted: list[tuple[float, int]] = []
    for pause, amount in asks:
        now += pause
        shortage = quota.admit(amount, now)
        if shortage is None:
            admitted.append((now, amount))
        else:
            assert 1 <= shortage.retry_after_s <= 60
    for start, _ in admitted:
        window = [amount for at, amount in admitted if start <= at < start + 60]
        assert len(window) <= 2 * requests
        assert sum(window) <= 2 * tokens


@given(st.integers(1, 1_000), st.integers(0, 1_000), st.integers(1, 1_000))
def test_after_retry_after_there_is_room(limit: int, spent: int, ask: int) -> None:
    quota = Quota({"input-tokens": limit}, 0.0)
    quota.admit(min(spent, limit), 0.0)
    shortage = quota.admit(ask, 0.0)
    if shortage is not None and ask <= limit:
        assert quota.admit(ask, float(shortage.retry_after_s)) is None


def test_a_request_that_is_refused_takes_nothing() -> None:
    quota = Quota({"requests": 10, "input-tokens": 100}, 0.0)
    assert quota.admit(60, 0.0) is None
    refused = quota.admit(60, 0.0)

    assert refused is not None
    assert (refused.dimension, refused.limit, refused.retry_after_s) == ("input-tokens", 100, 12)
    assert [state.remaining for state in quota.states(0.0)] == [9, 40]


def test_over_quota_is_429_with_retry_after_and_the_state_of_every_limit() -> None:
    bench = Bench(
        requests_per_minute=2, input_tokens_per_minute=30_000, output_tokens_per_minute=9_000
    )
    first, _, third = bench.ask(), bench.ask(), bench.ask()
    bench.run(0.2)

    assert third.status == 429
    assert third.json["error"]["type"] == "rate_limit_error"
    assert "2 requests per minute" in third.json["error"]["message"]
    assert third.answer_headers["retry-after"] == "30"
    for headers, left in ((third.answer_headers, "0"), (first.answer_headers, "0")):
        assert headers["anthropic-ratelimit-requests-limit"] == "2"
        assert headers["anthropic-ratelimit-requests-remaining"] == left
        assert headers["anthropic-ratelimit-requests-reset"].startswith("2023-11-14T22:")
        assert headers["anthropic-ratelimit-input-tokens-remaining"] == "30000"
        assert headers["anthropic-ratelimit-output-tokens-limit"] == "9000"
    assert bench.stats()["rate_limited"] == 1
    bench.run(30)
    assert bench.ask().status == 0  # admitted: its answer is under way


def test_without_quotas_there_are_no_headers() -> None:
    bench = Bench()
    exchange = bench.ask()
    bench.run(1)

    assert exchange.status == 200
    assert not any(name.startswith("anthropic-ratelimit") for name in exchange.answer_headers)


def test_resets_are_whole_seconds_at_which_the_bucket_is_full() -> None:
    bench = Bench(requests_per_minute=60)
    bench.ask()
    headers = dict(bench.account.limits_headers())

    # One request is back after one second.
    at = WALL_S + bench.now + 1
    assert headers[b"anthropic-ratelimit-requests-reset"] == b"2023-11-14T22:30:01Z"
    assert at == 1_700_001_001


def test_input_counts_what_is_not_read_from_the_cache() -> None:
    system = [{"type": "text", "text": "word " * 2_000, "cache_control": {"type": "ephemeral"}}]
    bench = Bench(input_tokens_per_minute=3_000)
    first = bench.ask(question(system=system))
    bench.run(0.2)
    second, third = bench.ask(question(system=system)), bench.ask(question(system=system))

    assert first.status == 200  # 2,500 written
    assert (second.status, third.status) == (0, 0)  # admitted
    assert bench.ask(question("x" * 4_000)).status == 429


def test_output_counts_as_it_is_generated_and_a_cancelled_answer_no_further() -> None:
    bench = Bench(output_tokens_per_minute=50)
    exchange = bench.ask(question("I like dogs. " * 40))
    bench.run(1.0)
    spent = bench.stats()["output_tokens"]
    assert exchange.work is not None
    exchange.work.cancelled(by_reset=True)
    bench.run(5.0)

    assert 0 < spent < 25
    assert bench.stats()["output_tokens"] == spent
    bench.ask(judged(text="I like dogs."))
    bench.ask(question("I like dogs. " * 40))
    bench.run(10.0)
    assert bench.ask().answer_headers.get("retry-after")  # more was said than there was


def test_quotas_that_change_while_it_runs_begin_full() -> None:
    bench = Bench(requests_per_minute=1)
    bench.ask()
    assert bench.ask().status == 429
    bench.control(requests_per_minute=2)
    assert [bench.ask().status for _ in range(3)] == [0, 0, 429]
    bench.control(requests_per_minute=None)
    assert [bench.ask().status for _ in range(3)] == [0, 0, 0]
