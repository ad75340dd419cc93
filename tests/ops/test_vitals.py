"""What two readings of the metrics say of the time between them, and what it makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from coach.ops import Reading, Today, read, vitals
from coach.ops.vitals import percentiles, since

NOTHING = Reading(0.0, {})


def reading(*samples: tuple[str, dict[str, str], float], at: float = 60.0) -> Reading:
    return Reading(
        at, {(name, tuple(sorted(labels.items()))): value for name, labels, value in samples}
    )


def levels(now: Reading) -> list[str]:
    return [f"{alert.level}: {alert.text}" for alert in vitals(NOTHING, now).alerts]


@given(st.lists(st.floats(0.001, 7.9), min_size=1, max_size=200))
def test_percentiles_lie_in_the_bucket_of_the_real_ones(values: list[float]) -> None:
    bounds = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
    registry = CollectorRegistry()
    histogram = Histogram("coach_h_seconds", "h", buckets=bounds, registry=registry)
    before = read(registry.collect(), 0.0)
    for value in values:
        histogram.observe(value)
    found = percentiles(before, read(registry.collect(), 60.0), "coach_h_seconds")
    ordered = sorted(values)
    for share, got in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        real = next(v for n, v in enumerate(ordered, 1) if n >= share * len(ordered))
        low = max((bound for bound in bounds if bound < real), default=0.0)
        high = next(bound for bound in bounds if bound >= real)
        assert got is not None
        assert low - 0.001 <= got / 1_000 <= high + 0.001
    assert found.count == len(values)


def test_a_percentile_counts_only_what_came_between_and_is_none_where_nothing_did() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("coach_h_seconds", "h", buckets=(1.0, 2.0), registry=registry)
    histogram.observe(0.5)
    before = read(registry.collect(), 0.0)
    assert percentiles(before, before, "coach_h_seconds").p50 is None
    histogram.observe(99.0)  # beyond the last bucket: that much at least
    assert percentiles(before, read(registry.collect(), 1.0), "coach_h_seconds").p50 == 2_000.0


def test_what_has_grown_is_told_by_its_labels_and_what_has_not_is_left_out() -> None:
    registry = CollectorRegistry()
    counter = Counter("coach_c", "c", ["provider", "kind"], registry=registry)
    counter.labels("a", "cut").inc(3)
    before = read(registry.collect(), 0.0)
    counter.labels("a", "cut").inc(2)
    counter.labels("b", "stalled").inc()
    counter.labels("b", "cut")
    now = read(registry.collect(), 60.0)
    assert since(before, now, "coach_c_total", "provider", "kind") == {"a cut": 2, "b stalled": 1}
    assert since(before, now, "coach_c_total", "kind") == {"cut": 2, "stalled": 1}


def test_metrics_of_others_are_not_read() -> None:
    registry = CollectorRegistry()
    Gauge("python_gauge", "not ours", registry=registry).set(1)
    assert read(registry.collect(), 0.0).samples == {}


def test_a_host_that_is_well_has_no_alerts() -> None:
    now = reading(
        ("coach_sessions", {}, 12),
        ("coach_circuit_share_ratio", {"endpoint": "p"}, 1),
        ("coach_budget_used_ratio", {"endpoint": "p", "dimension": "requests"}, 0.9),
        ("coach_queue_depth", {"lane": "submission"}, 200),
        ("coach_queue_jobs", {"state": "dead"}, 0),
    )
    found = vitals(NOTHING, now)
    assert (found.sessions, found.alerts) == (12, [])
    assert found.providers[0].used == {"requests": 0.9}


def test_what_it_costs_is_what_was_spent_and_on_how_many() -> None:
    """600 writer-seconds and a tenth of a dollar in a minute."""
    before = reading(at=0.0)
    now = reading(
        ("coach_cost_nanodollars_total", {"provider": "p", "reason": "feedback"}, 0.08e9),
        ("coach_cost_nanodollars_total", {"provider": "p", "reason": "grading"}, 0.02e9),
        ("coach_writer_seconds_total", {}, 600.0),
    )
    found = vitals(before, now)
    assert (found.dollars_hour, found.dollars_writer_hour) == (6.0, 0.6)
    assert vitals(before, reading()).dollars_writer_hour is None


def test_what_the_day_costs_comes_from_the_books() -> None:
    found = vitals(NOTHING, reading(), Today(nano=3_000_000_000, writer_s=7_200.0))
    assert (found.dollars_today, found.dollars_writer_hour_today) == (3.0, 1.5)
    assert vitals(NOTHING, reading(), Today(0, 0.0)).dollars_writer_hour_today is None
    assert vitals(NOTHING, reading()).dollars_today is None


def test_workers_and_what_each_provider_carries_are_told_apart() -> None:
    found = vitals(
        NOTHING,
        reading(
            ("coach_worker_sessions", {"slot": "10", "pid": "9"}, 3),
            ("coach_worker_sessions", {"slot": "2", "pid": "8"}, 4),
            ("coach_worker_sessions", {"slot": "2", "pid": "7"}, 0),
            ("coach_circuit_share_ratio", {"endpoint": "p"}, 1),
            ("coach_circuit_share_ratio", {"endpoint": "q"}, 1),
            ("coach_endpoint_streams", {"endpoint": "q"}, 80),
            ("coach_endpoint_connections", {"endpoint": "q"}, 2),
        ),
    )
    assert [(each.slot, each.pid, each.sessions) for each in found.workers] == [
        ("2", 7, 0),
        ("2", 8, 4),
        ("10", 9, 3),
    ]
    assert [(each.name, each.streams, each.connections) for each in found.providers] == [
        ("p", 0, 0),
        ("q", 80, 2),
    ]
    alone = reading(("coach_worker_sessions", {"slot": "0"}, 3))  # hypercorn without coach serve
    assert vitals(NOTHING, alone).workers == []


@pytest.mark.parametrize(
    ("lane", "paused", "graders", "told"),
    [
        ("submission", 0, 0, ["page: 3 essays wait and no grader works: coach grade"]),
        ("submission", 0, 1, []),
        ("submission", 1, 0, ["warn: lane submission is paused"]),
        ("background", 0, 0, []),
    ],
)
def test_essays_that_wait_for_nobody_are_told(
    lane: str, paused: int, graders: int, told: list[str]
) -> None:
    now = reading(
        ("coach_queue_depth", {"lane": lane}, 3),
        ("coach_queue_paused", {"lane": lane}, paused),
        ("coach_graders", {}, graders),
    )
    assert levels(now) == told


def slow(count: int) -> tuple[str, dict[str, str], float]:
    return ("coach_ttft_seconds_bucket", {"le": "1.0"}, count)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (slow(5), "page: first words take 0.95 s (p95), 0.6 at most"),
        (
            ("coach_provider_refusals_total", {"provider": "p 1", "kind": "rate_limited"}, 3),
            "warn: p 1 answered 429, 3 times",
        ),
        (
            ("coach_provider_refusals_total", {"provider": "p", "kind": "spend_cap"}, 1),
            "page: p refuses: a spend limit is reached, 1 times",
        ),
        (("coach_circuit_share_ratio", {"endpoint": "p"}, 0), "page: p: its breaker is open"),
        (("coach_circuit_share_ratio", {"endpoint": "p"}, 0.25), "page: p: its breaker is at 25%"),
        (
            ("coach_queue_depth", {"lane": "submission"}, 201),
            "page: 201 essays wait for their grade",
        ),
        (
            ("coach_queue_jobs", {"state": "dead"}, 2),
            "warn: 2 essays were given up: retry or drop them",
        ),
    ],
)
def test_what_is_wrong_is_said(sample: tuple[str, dict[str, str], float], expected: str) -> None:
    assert levels(reading(sample)) == [expected]


def test_a_percentile_of_too_few_is_no_reason_to_wake_anybody() -> None:
    assert levels(reading(slow(4))) == []


def test_what_is_worst_comes_first() -> None:
    found = levels(
        reading(
            ("coach_queue_jobs", {"state": "dead"}, 2),
            ("coach_queue_depth", {"lane": "background"}, 0),
            ("coach_queue_paused", {"lane": "background"}, 1),
            ("coach_circuit_share_ratio", {"endpoint": "p"}, 0),
        )
    )
    assert [alert.partition(":")[0] for alert in found] == ["page", "warn", "warn"]
