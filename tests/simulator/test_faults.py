"""Faults: whom a rule hits, and that each fault does what its name says, streamed or not."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from coach.simulator.faults import (
    FAULTS,
    LATE_S,
    FaultName,
    Faults,
    Rule,
    rule_from_text,
    rules_from_json,
)

from .support import Bench, FakeExchange, judged, question, text_of

LONG_S = 120.0
"""Longer than any answer here."""


def hit(
    fault: FaultName, body: dict[str, Any] | None = None, seconds: float = LONG_S
) -> FakeExchange:
    """A request that the fault hits, after some time."""
    bench = Bench({fault: Rule(next=1)})
    exchange = bench.ask(body)
    bench.run(seconds)
    assert bench.stats()[f"fault_{fault}"] == 1
    return exchange


# --- rules ------------------------------------------------------------------------------------


def test_a_rule_hits_the_next_requests_then_by_probability() -> None:
    faults = Faults({"cut": Rule(next=2, probability=0.0), "stall": Rule(probability=1.0)})
    rng = random.Random(1)

    assert [faults.draw("feedback", rng) for _ in range(4)] == ["cut", "cut", "stall", "stall"]
    assert faults.injected == {"cut": 2, "stall": 2}


def test_a_rule_may_be_for_judges_or_for_feedback_only() -> None:
    faults = Faults({"cut": Rule(next=1, only="judge"), "stall": Rule(next=1, only="feedback")})
    rng = random.Random(1)

    assert faults.draw("feedback", rng) == "stall"
    assert faults.draw("feedback", rng) is None
    assert faults.draw("judge", rng) == "cut"


def test_the_same_seed_gives_the_same_faults_about_as_often_as_asked() -> None:
    def drawn() -> list[str | None]:
        faults, rng = Faults({"cut": Rule(probability=0.2)}), random.Random(3)
        return [faults.draw("feedback", rng) for _ in range(1_000)]

    assert drawn() == drawn()
    assert 150 < drawn().count("cut") < 250


def test_rules_are_read_from_json_and_from_the_command_line() -> None:
    assert rules_from_json({"cut": 0.5, "stall": {"next": 3, "only": "judge"}}) == {
        "cut": Rule(probability=0.5),
        "stall": Rule(next=3, only="judge"),
    }
    assert rule_from_text("cut=0.5") == ("cut", Rule(probability=0.5))
    assert rule_from_text("stall:3") == ("stall", Rule(next=3))


@pytest.mark.parametrize(
    "text", ["cut", "cut=2", "cut=-1", "cut:-1", "cut:x", "nothing=1", "=", ":"]
)
def test_other_texts_are_no_rules(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        rule_from_text(text)


@pytest.mark.parametrize(
    "value", [{"cut": 2}, {"nothing": 1}, {"cut": {"next": -1}}, {"cut": {"often": 1}}, [], None, 3]
)
def test_other_values_are_no_rules(value: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        rules_from_json(value)


# --- what each does ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "kind", "retry_after"),
    [
        ("rate_limited", 429, "rate_limit_error", "5"),
        ("spend_limit", 429, "rate_limit_error", None),
        ("server_error", 500, "api_error", None),
        ("overloaded", 529, "overloaded_error", None),
        ("too_long", 400, "invalid_request_error", None),
        ("bad_parameter", 400, "invalid_request_error", None),
    ],
)
def test_refusals(fault: FaultName, status: int, kind: str, retry_after: str | None) -> None:
    exchange = hit(fault)

    assert (exchange.status, exchange.done) == (status, ["start", "end"])
    assert exchange.json["error"]["type"] == kind
    assert exchange.answer_headers.get("retry-after") == retry_after
    assert exchange.answer_headers["x-should-retry"] == str(status != 400).lower()
    assert (fault == "too_long") == ("prompt is too long" in exchange.json["error"]["message"])


def test_unavailable_is_503_and_not_json() -> None:
    exchange = hit("unavailable")

    assert (exchange.status, exchange.answer_headers["content-type"]) == (503, "text/plain")
    with pytest.raises(json.JSONDecodeError):
        exchange.json  # noqa: B018


@pytest.mark.parametrize(
    ("fault", "done"), [("reset", "abort"), ("refused_stream", "refuse"), ("goaway", "go_away")]
)
def test_faults_below_http_answer_nothing(fault: FaultName, done: str) -> None:
    assert hit(fault).done == [done]


@pytest.mark.parametrize("body", [question(), judged()], ids=["streamed", "whole"])
def test_silent_never_answers_and_ends_by_being_cancelled(body: dict[str, Any]) -> None:
    bench = Bench({"silent": Rule(next=1)})
    exchange = bench.ask(body)
    bench.run(10_000)

    assert exchange.done == []
    assert bench.stats()["streams_open"] == 1
    assert exchange.work is not None
    exchange.work.cancelled(by_reset=True)
    stats = bench.stats()
    assert (stats["streams_open"], stats["streams_cancelled"], stats["timers"]) == (0, 1, 0)


def test_a_late_first_token_has_headers_in_time_and_pings_meanwhile() -> None:
    exchange = hit("late_first_token", seconds=LATE_S)
    assert exchange.status == 200
    assert exchange.names == ["message_start", "content_block_start", "ping"]
    assert [name for name, _ in exchange.events].count("ping") == 4

    assert hit("late_first_token", seconds=LATE_S + 1).names[-1] == "content_block_delta"
    assert hit("late_first_token", judged(), seconds=LATE_S + 1).done == []
    assert hit("late_first_token", judged(), seconds=LATE_S + 2).status == 200


WHOLE_TEXT = text_of(hit("no_end").events)


@pytest.mark.parametrize(
    ("fault", "done", "last"),
    [
        ("cut", ["start", "reset"], "content_block_delta"),
        ("disconnect", ["start", "abort"], "content_block_delta"),
        ("stall", ["start"], "content_block_delta"),
        ("error_event", ["start", "end"], "error"),
        ("filtered", ["start", "end"], "message_stop"),
    ],
)
def test_faults_in_the_middle_of_a_stream(fault: FaultName, done: list[str], last: str) -> None:
    exchange = hit(fault)

    assert exchange.done == done
    assert exchange.names[-1] == last
    text = text_of(exchange.events)
    assert WHOLE_TEXT.startswith(text)
    assert 0.3 < len(text) / len(WHOLE_TEXT) < 0.7


def test_what_the_middle_of_a_stream_says() -> None:
    assert hit("error_event").events[-1][1]["error"]["type"] == "overloaded_error"
    final = dict(hit("filtered").events)["message_delta"]
    assert final["delta"]["stop_reason"] == "refusal"


def test_malformed_is_one_event_that_is_not_json_among_good_ones() -> None:
    exchange = hit("malformed")

    assert [data for _, data in exchange.events].count(None) == 1
    assert exchange.names[-1] == "message_stop"


def test_no_end_stops_after_the_last_delta_in_good_order() -> None:
    exchange = hit("no_end")

    assert exchange.names[-1] == "content_block_delta"
    assert exchange.done == ["start", "end"]


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        ("cut", ["start", "reset"]),
        ("no_end", ["start", "reset"]),
        ("error_event", ["start", "reset"]),
        ("disconnect", ["start", "abort"]),
        ("stall", ["start"]),
    ],
)
def test_faults_in_the_middle_of_a_whole_answer(fault: FaultName, done: list[str]) -> None:
    exchange = hit(fault, judged())

    assert exchange.done == done
    assert len(exchange.data) < int(exchange.answer_headers["content-length"])


def test_a_whole_answer_may_be_filtered_or_malformed() -> None:
    filtered = hit("filtered", judged()).json
    assert (filtered["stop_reason"], filtered["content"][0]["text"]) == ("refusal", "")
    malformed = hit("malformed", judged())
    assert malformed.done == ["start", "end"]
    with pytest.raises(json.JSONDecodeError):
        malformed.json  # noqa: B018


def test_grades_may_be_broken() -> None:
    broken = hit("broken_json", judged()).json["content"][0]["text"]
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken)
    evidence = {
        "type": "object",
        "properties": {"evidence": {"type": "string"}},
        "additionalProperties": False,
    }
    body = judged(output_config={"format": {"type": "json_schema", "schema": evidence}})
    invented = json.loads(hit("invented_evidence", body).json["content"][0]["text"])["evidence"]
    assert invented
    assert invented not in "A short text of mine."


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("body", [question(), judged()], ids=["streamed", "whole"])
def test_no_fault_leaves_anything_behind(fault: FaultName, body: dict[str, Any]) -> None:
    bench = Bench({fault: Rule(next=1)})
    exchange = bench.ask(body)
    bench.run(LONG_S)
    if fault in ("silent", "stall"):
        assert exchange.work is not None
        exchange.work.cancelled(by_reset=True)
    stats = bench.stats()

    assert (stats["streams_open"], stats["timers"]) == (0, 0)
    again = bench.ask()
    bench.run(LONG_S)
    assert again.names[-1] == "message_stop"
