"""What broke first: limits in their order, with evidence; runs that say nothing say so."""

from __future__ import annotations

from typing import Any

import pytest

from coach.simulator.host import Usage
from coach.simulator.timeline import Sample
from coach.simulator.verdict import SUSTAINED, judge


def usage(role: str, cpu: float, *, files: int = 10) -> Usage:
    return Usage(pid=1, role=role, cpu=cpu, memory_mb=50, files=files, files_max=1000)


def run_of(*moments: dict[str, Any], each: int = SUSTAINED) -> list[Sample]:
    """Every moment lasts for `each` samples, and has a hundred writers more than the one before."""
    kinds = [moment for moment in moments for _ in range(each)]
    return [
        Sample(at_s=float(number), writers=100 * (number // each + 1), **kind)
        for number, kind in enumerate(kinds)
    ]


BUSY = (usage("worker", 0.95), usage("load generator", 0.2))
REACHED: dict[str, tuple[dict[str, Any], str]] = {
    "the cores of the machine": (
        {"machine": 0.97, "usages": (usage("worker", 0.8), usage("grader", 0.8))},
        "97% of 2 cores are in use (worker 80%, grader 80% of a core)",
    ),
    "the CPU of a worker": ({"usages": BUSY}, "the busiest one uses 95% of a core"),
    "the CPU of a grader": ({"usages": (usage("grader", 0.93),)}, "93% of a core"),
    "the CPU of Redis": ({"usages": (usage("redis", 0.93),)}, "93% of a core"),
    "a worker's event loop": ({"loop_lag_p99_ms": 250.0}, "it is 250 ms late (p99)"),
    "Redis' answers": ({"redis_p99_ms": 50.0}, "a round trip takes 50 ms"),
    "open files": ({"usages": (usage("worker", 0.1, files=850),)}, "85% of the limit"),
    "the provider's quota": (
        {"budget_wait_p95_ms": 500.0, "budget_used": 0.95, "line": 7},
        "turns wait 500 ms (p95) for its budget, of which 95% is used; 7 wait in line",
    ),
    "refusals by the provider": ({"provider_429s": 3}, "3 requests were refused"),
    "the graders": ({"queue": 240}, "240 essays wait"),
    "the CPU of the load generator": ({"usages": (usage("load generator", 0.97),)}, "97%"),
    "the load generator's own event loop": ({"own_lag_p99_ms": 300.0}, "300 ms late"),
    "the CPU of the simulated provider": ({"usages": (usage("simulated provider", 0.97),)}, "97%"),
    "the simulated provider's own lateness": ({"provider_late_p95_ms": 80.0}, "80 ms late"),
    "other work on this machine": ({"machine": 0.99, "usages": (usage("worker", 0.3),)}, "99%"),
}
NOT_THE_SERVER = (
    "the CPU of the load generator",
    "the load generator's own event loop",
    "the CPU of the simulated provider",
    "the simulated provider's own lateness",
    "other work on this machine",
)


@pytest.mark.parametrize("name", REACHED)
def test_a_limit_is_named_with_its_moment_and_its_evidence(name: str) -> None:
    """Also whether the run says something about the server at all."""
    moment, evidence = REACHED[name]
    verdict = judge(run_of({}, moment), cores=2)
    assert verdict.first is not None
    assert verdict.first.name == name
    assert (verdict.first.at_s, verdict.first.writers) == (SUSTAINED, 200)
    assert evidence in verdict.words()[0]
    assert verdict.valid is (name not in NOT_THE_SERVER)
    assert any(line.startswith("INVALID") for line in verdict.words()) is not verdict.valid
    assert verdict.as_dict()["valid"] is verdict.valid


def test_nothing_breaks_by_a_hiccup() -> None:
    """A limit must be reached in several samples in a row; what nobody could tell is no limit."""
    hiccup = run_of({"loop_lag_p99_ms": 900.0}, {}, {"redis_p99_ms": 900.0}, each=SUSTAINED - 1)
    verdict = judge(hiccup)
    assert verdict.words() == ["Nothing broke: no limit was reached with up to 300 writers."]
    assert verdict.valid


def test_the_cause_comes_before_what_students_notice() -> None:
    """Whatever is reached later is told after both."""
    late = {"ttft_p95_ms": 900.0, "usages": BUSY, "errors": 2, "error_codes": {"overloaded": 2}}
    verdict = judge(run_of({"ttft_p95_ms": 200.0}, {"usages": BUSY}, late))
    first, noticed, then = verdict.words()
    assert first.startswith("What broke first: the CPU of a worker, at 3 s with 200 writers")
    assert noticed.startswith("Students noticed: a late first token, at 6 s with 300 writers")
    assert "p95 is 900 ms, 600 may be" in noticed
    assert "errors, at 6 s with 300 writers: overloaded 2" in then


def test_students_who_notice_something_without_a_cause_are_told_of() -> None:
    """A server on another machine tells nothing but that."""
    first, noticed = judge(run_of({"ttft_p95_ms": 900.0}), ttft_ms=500).words()
    assert first == "No limit that is watched was reached with up to 100 writers."
    assert "500 may be" in noticed


def test_a_generator_on_a_full_machine_is_not_blamed() -> None:
    """Everybody is late there; the machine is what ended."""
    full = {
        "machine": 0.99,
        "usages": (usage("worker", 0.8), usage("redis", 0.7)),
        "own_lag_p99_ms": 400.0,
        "provider_late_p95_ms": 90.0,
    }
    verdict = judge(run_of(full), cores=2)
    assert verdict.valid
    assert [reached.name for reached in verdict.reached] == ["the cores of the machine"]
