"""Conversation: a faultless session counts no error, each fault counts its own code, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from coach.simulator.conversation import Conversation, Tally
from coach.simulator.numbering import numbered

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


def come_back(conversation: Conversation, **welcome: Any) -> dict[str, Any]:
    """Lose the connection and say hello again; returns what is added to it."""
    added = conversation.come_back()
    said = {**WELCOME, "seq": conversation.seq, "replayed": 0, **welcome}
    conversation.receive(msgspec.json.encode(said), 9.0)
    return added


def test_a_session_goes_on_after_the_last_message_that_was_seen() -> None:
    conversation = hear([STARTED, DELTA])
    assert come_back(conversation, replayed=1) == {"resume": "r", "last_seq": 2}
    caught_up = [conversation.caught_up]
    conversation.receive(msgspec.json.encode({"seq": 3, **DELTA}), 9.1)
    caught_up.append(conversation.caught_up)
    assert caught_up == [False, True]
    assert conversation.unheard() == []
    assert conversation.open_submissions() == ["e"]
    rest: list[dict[str, Any]] = [DONE, GRADING, GRADE, GRADE]
    for seq, message in enumerate(rest, 4):
        conversation.receive(msgspec.json.encode({"seq": seq, **message}), 9.2)
    conversation.close()
    assert not conversation.tally.errors, "the grade of an essay that was sent twice comes twice"
    assert (conversation.tally.resumed, conversation.tally.replayed) == (1, 1)


def test_a_welcome_that_goes_on_elsewhere_than_asked_is_an_error() -> None:
    conversation = hear([STARTED, DELTA])
    come_back(conversation, seq=1)
    assert conversation.tally.errors == {"protocol_seq": 1}


def test_a_question_that_may_not_have_arrived_is_asked_again() -> None:
    """Where it had arrived, that is said once, and is no error."""
    conversation = hear([])
    come_back(conversation)
    assert conversation.unheard() == ["a"]
    conflict: dict[str, Any] = {"type": "error", "code": "conflict"}
    for seq, message in enumerate([conflict, STARTED, DELTA, DONE, conflict], 1):
        conversation.receive(msgspec.json.encode({"seq": seq, **message}), 9.0)
    assert conversation.tally.errors == {"conflict": 1}


@pytest.mark.parametrize(
    ("snapshot", "rest", "completed", "errors"),
    [
        ({"feedback": [{"request": "a", "text": "Well."}], "running": []}, [], 1, {}),
        (
            {"feedback": [], "running": ["a"]},
            [{"type": "restarted", "request": "a"}, DELTA, DONE],
            1,
            {},
        ),
        ({"feedback": [], "running": []}, [], 0, {"interrupted": 1}),
    ],
    ids=["whole", "begun anew", "lost"],
)
def test_a_snapshot_says_what_has_become_of_a_turn(
    snapshot: dict[str, Any], rest: list[dict[str, Any]], completed: int, errors: dict[str, int]
) -> None:
    conversation = hear([STARTED, DELTA])
    come_back(conversation, seq=20, snapshot=snapshot)
    for seq, message in enumerate(rest, 21):
        conversation.receive(msgspec.json.encode({"seq": seq, **message}), 9.0)
    assert conversation.turn_ended("a")
    assert (conversation.tally.completed, conversation.tally.errors) == (completed, errors)


@pytest.mark.parametrize(
    ("parts", "errors"),
    [
        ([[0, 1], [2]], {}),
        ([[0], [2]], {"text_lost": 1}),
        ([[0, 1]], {"text_lost": 1}),
        ([[0, 1], [1, 2]], {"text_doubled": 1}),
        ([["other"], [0, 1, 2]], {"text_doubled": 3, "text_lost": 1}),
    ],
    ids=["whole", "a gap", "no end", "twice", "of another answer"],
)
def test_numbered_text_shows_what_is_missing_and_what_is_there_twice(
    parts: list[list[int | str]], errors: dict[str, int]
) -> None:
    marked: dict[int | str, str] = {"other": numbered(("No ", "more."), "m2")[0]}
    marked.update(enumerate(numbered(("One ", "two ", "three."), "m1")))
    deltas = [{**DELTA, "text": "".join(marked[each] for each in part)} for part in parts]
    conversation = hear([STARTED, *deltas, DONE])
    assert conversation.tally.errors == errors


def test_an_answer_that_begins_anew_is_read_anew() -> None:
    first, again = (numbered(("One ", "two."), name) for name in ("m1", "m2"))
    restarted = {"type": "restarted", "request": "a"}
    deltas = [{**DELTA, "text": text} for text in (first[0], "".join(again))]
    assert not hear([STARTED, deltas[0], restarted, deltas[1], DONE]).tally.errors
