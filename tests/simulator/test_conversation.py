"""Conversation: a faultless session counts no error, each fault counts its own code, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from coach.simulator.conversation import Conversation, Tally

WELCOME: dict[str, Any] = {"type": "welcome", "session": "s", "resume": "r", "seq": 0}
STARTED = {"type": "started", "request": "a"}
DELTA = {"type": "delta", "request": "a", "text": "Well begun. "}
DONE = {"type": "done", "request": "a", "usage": {"input": 1, "cached": 0, "output": 2}}
GRADING = {"type": "grading", "submission": "e"}
GRADE = {
    "type": "grade",
    "submission": "e",
    "score": 70,
    "criteria": [{"name": "content", "band": 3, "band_max": 5}],
}
CANCELLED = {"type": "error", "request": "a", "code": "cancelled"}


def hear(messages: Sequence[dict[str, Any]]) -> Conversation:
    """A conversation with turn a and submission e, which hears `messages` 0.1 s apart."""
    conversation = Conversation(Tally())
    conversation.receive(msgspec.json.encode(WELCOME), 0.0)
    conversation.ask("a", 0.0)
    conversation.submit("e", 0.0)
    for number, message in enumerate(messages, 1):
        conversation.receive(msgspec.json.encode({"seq": number, **message}), number / 10)
    return conversation


def test_a_faultless_session_is_measured_and_counts_no_error() -> None:
    """Times run from the request; gaps between deltas are the events."""
    conversation = hear([STARTED, DELTA, DELTA, DONE, GRADING, GRADE])
    conversation.close()
    tally = conversation.tally
    assert not tally.errors
    assert conversation.settled
    assert (tally.turns, tally.completed, tally.submissions, tally.graded) == (1, 1, 1, 1)
    assert tally.started_ms.percentile(50) == pytest.approx(100, rel=0.01)
    assert tally.ttft_ms.percentile(50) == pytest.approx(200, rel=0.01)
    assert tally.event_ms.percentile(50) == pytest.approx(100, rel=0.01)
    assert tally.score_ms.percentile(50) == pytest.approx(600, rel=0.01)


FAULTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "seq skips": ("protocol_seq", [STARTED, {**DELTA, "seq": 7}, {**DONE, "seq": 8}]),
    "seq repeats": ("protocol_seq", [STARTED, {**DELTA, "seq": 1}, {**DONE, "seq": 2}]),
    "unknown type": ("protocol_unknown_type", [{"type": "hint"}, STARTED, DELTA, DONE]),
    "wrong field type": (
        "protocol_malformed",
        [STARTED, DELTA, {**DELTA, "text": 3}, {**DONE, "seq": 3}],
    ),
    "delta before started": ("protocol_before_started", [DELTA, STARTED, DELTA, DONE]),
    "started twice": ("protocol_started_twice", [STARTED, STARTED, DELTA, DONE]),
    "done twice": ("protocol_after_end", [STARTED, DELTA, DONE, DONE]),
    "error after done": ("protocol_after_end", [STARTED, DELTA, DONE, CANCELLED]),
    "delta after done": ("protocol_after_end", [STARTED, DELTA, DONE, DELTA]),
    "empty delta": ("protocol_empty_delta", [STARTED, DELTA, {**DELTA, "text": ""}, DONE]),
    "no text at all": ("protocol_empty_turn", [STARTED, DONE]),
    "restarted and then silent": (
        "protocol_empty_turn",
        [STARTED, DELTA, {"type": "restarted", "request": "a"}, DONE],
    ),
    "unknown request": (
        "protocol_unknown_request",
        [{**STARTED, "request": "z"}, STARTED, DELTA, DONE],
    ),
    "position 0": (
        "protocol_queued",
        [{"type": "queued", "request": "a", "position": 0}, STARTED, DELTA, DONE],
    ),
    "never ends": ("protocol_no_end", [STARTED, DELTA]),
    "cancelled without a newer turn": ("cancelled", [STARTED, CANCELLED]),
    "refused": ("rate_limited", [{**CANCELLED, "code": "rate_limited"}]),
    "error without request": (
        "conflict",
        [{"type": "error", "code": "conflict"}, STARTED, DELTA, DONE],
    ),
    "unknown submission": (
        "protocol_unknown_submission",
        [{**GRADE, "submission": "z"}, STARTED, DELTA, DONE],
    ),
    "two grades": ("protocol_grade", [STARTED, DELTA, DONE, GRADE, GRADE]),
    "score out of range": ("protocol_grade", [STARTED, DELTA, DONE, {**GRADE, "score": 101}]),
    "band out of range": (
        "protocol_grade",
        [STARTED, DELTA, DONE, {**GRADE, "criteria": [{"band": 6, "band_max": 5}]}],
    ),
    "submission failed": (
        "overloaded",
        [STARTED, DELTA, DONE, {"type": "error", "submission": "e", "code": "overloaded"}],
    ),
}


@pytest.mark.parametrize(("code", "messages"), FAULTS.values(), ids=FAULTS.keys())
def test_each_fault_counts_its_own_code_once(code: str, messages: list[dict[str, Any]]) -> None:
    """And nothing else."""
    conversation = hear(messages)
    conversation.close()
    assert +conversation.tally.errors == {code: 1}


def test_a_replaced_turn_may_end_as_cancelled_or_done() -> None:
    """Both are right: the newer request and the end of the older may cross."""
    for ending in (CANCELLED, DONE):
        conversation = hear([STARTED, DELTA])
        conversation.ask("b", 1.0)
        for number, message in enumerate((ending, {**STARTED, "request": "b"}), 3):
            conversation.receive(msgspec.json.encode({"seq": number, **message}), 2.0)
        assert not conversation.tally.errors
        assert conversation.turn_ended("a")
        assert not conversation.turn_ended("b")


def test_refusal_before_the_welcome_is_counted_under_its_code() -> None:
    """And the session never counts as open."""
    conversation = Conversation(Tally())
    conversation.receive('{"type":"error","seq":1,"code":"unauthenticated","message":"x"}', 0.0)
    assert not conversation.welcomed
    assert conversation.tally.errors == {"unauthenticated": 1}


def test_tallies_merge() -> None:
    """Counts add up, histograms and error codes too."""
    one, two = hear([STARTED, DELTA, DONE, GRADE]).tally, hear([STARTED, CANCELLED]).tally
    one.merge(two)
    assert (one.turns, one.completed, one.graded, one.last_score) == (2, 1, 1, 70)
    assert one.errors == {"cancelled": 1}
    assert one.started_ms.count == 2
