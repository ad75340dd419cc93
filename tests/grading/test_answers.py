"""What judges say is believed only as far as the rubric and the essay bear it out."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.grading.answers import (
    ANSWER_BYTES_MAX,
    PROBLEMS_MAX,
    REASON_CHARS_MAX,
    InvalidAnswer,
    check_answer,
    kept_answer,
    normalise,
    stands_in,
)
from coach.grading.rubric import Criterion, Rubric

RUBRIC = Rubric(
    title="Short",
    criteria=(
        Criterion(name="content", label="Content", weight=60, bands=("poor", "fair", "good")),
        Criterion(name="style", label="Style", weight=40, bands=("poor", "good")),
    ),
)
ESSAY = "I like the “sea” — it's\n  so wide…  And deep."


def said(**changes: Any) -> dict[str, Any]:
    """A valid answer, but for `changes` to the judgement of content."""
    content = {"band": 2, "evidence": "I like", "reason": "Clear."} | changes
    return {
        "criteria": {
            "style": {"band": 0, "evidence": "so wide", "reason": "Plain."},
            "content": content,
        },
        "improve_first": " Say why. ",
    }


def check(answer: Any) -> Any:
    return check_answer(json.dumps(answer), RUBRIC, ESSAY)


def test_a_valid_answer_is_taken_in_the_order_of_the_rubric() -> None:
    answer = check(said())
    assert list(answer.criteria) == ["content", "style"]
    assert answer.criteria["content"].band == 2
    assert answer.improve_first == "Say why."


INVALID: dict[str, tuple[Any, str]] = {
    "band_above": (said(band=3), "band 3 is not one of 0 to 2"),
    "band_below": (said(band=-1), "band -1"),
    "band_true": (said(band=True), "not JSON of the schema"),
    "band_half": (said(band=1.5), "not JSON of the schema"),
    "band_text": (said(band="2"), "not JSON of the schema"),
    "unknown_field": (said(confidence=1), "not JSON of the schema"),
    "missing_criterion": (
        {"criteria": {"content": said()["criteria"]["content"]}, "improve_first": ""},
        "style is missing",
    ),
    "unknown_criterion": (
        {**said(), "criteria": said()["criteria"] | {"humour": said()["criteria"]["style"]}},
        "no such criterion .*'humour'",
    ),
    "missing_improvement": ({"criteria": said()["criteria"]}, "not JSON of the schema"),
    "list": ([], "not JSON of the schema"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_answer_that_is_not_of_the_rubric_is_refused_with_what_is_wrong(name: str) -> None:
    answer, problem = INVALID[name]
    with pytest.raises(InvalidAnswer, match=problem) as caught:
        check(answer)
    assert not caught.value.evidence_missing


@pytest.mark.parametrize("text", ["", "{", "Here is the JSON: {}", '{"criteria": {}}', "\ud800"])
def test_text_around_or_instead_of_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidAnswer):
        check_answer(text, RUBRIC, ESSAY)


def test_an_endless_answer_is_refused_unread() -> None:
    with pytest.raises(InvalidAnswer, match="too long"):
        check_answer(" " * (ANSWER_BYTES_MAX + 1), RUBRIC, ESSAY)


def test_problems_are_told_all_at_once_but_bounded() -> None:
    both = said(band=9, evidence="I hate")
    with pytest.raises(InvalidAnswer) as caught:
        check(both)
    assert len(caught.value.problems) == 2
    assert caught.value.evidence_missing
    flood = {**said(), "criteria": {f"c{n}": said()["criteria"]["style"] for n in range(50)}}
    with pytest.raises(InvalidAnswer) as caught:
        check(flood)
    assert len(caught.value.problems) == PROBLEMS_MAX


def test_reasons_are_cut_to_what_a_student_reads() -> None:
    assert len(check(said(reason="x" * 5_000)).criteria["content"].reason) == REASON_CHARS_MAX


STANDS = [
    "I like the “sea”",
    'I like the "sea"',
    "the «sea» - it’s so wide",
    "it's so   wide...",
    "“so wide”",
    "'And deep.'",
    "so wide... And deep",
    "it\u00ads so wide".replace("it\u00ads", "it\u00ad's"),
]
INVENTED = [
    "I like the see",
    "i like",
    "wide sea",
    "And deep. The end",
    "",
    "   ",
    "“”",
    "...",
    "x" * 401,
]


@pytest.mark.parametrize("quote", STANDS)
def test_a_quote_stands_in_the_essay_however_it_was_retyped(quote: str) -> None:
    assert stands_in(quote, ESSAY)


@pytest.mark.parametrize("quote", INVENTED)
def test_other_words_case_or_order_are_invented(quote: str) -> None:
    assert not stands_in(quote, ESSAY)
    with pytest.raises(InvalidAnswer) as caught:
        check(said(evidence=quote))
    assert caught.value.evidence_missing


@given(st.text())
def test_normalising_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


WORDS = st.lists(
    st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8),
    min_size=1,
    max_size=30,
)


@given(WORDS, st.data())
def test_every_run_of_whole_words_is_evidence(words: list[str], data: st.DataObject) -> None:
    """Also decomposed, with other white space, and in quotation marks."""
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, min(len(words), start + 10)))
    quote = data.draw(st.sampled_from(["\n", "\u00a0", "  "])).join(words[start:end])
    quote = unicodedata.normalize(data.draw(st.sampled_from(["NFC", "NFD"])), quote)
    if len(quote) <= 390:
        assert stands_in(f"“{quote}”", " ".join(words))


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_two_texts_are_compared_without_an_error(quote: str, essay: str) -> None:
    if stands_in(quote, essay):
        assert any(map(str.isalnum, quote + unicodedata.normalize("NFC", quote)))


def test_a_kept_answer_counts_only_under_the_rubric_it_was_given_for() -> None:
    import msgspec

    kept = msgspec.json.encode(check(said()))
    assert kept_answer(kept, RUBRIC) == check(said())
    content, style = RUBRIC.criteria
    assert kept_answer(kept, msgspec.structs.replace(RUBRIC, criteria=(content,))) is None
    narrow = msgspec.structs.replace(content, bands=("poor", "good"))
    assert kept_answer(kept, msgspec.structs.replace(RUBRIC, criteria=(narrow, style))) is None
    assert kept_answer(b"{", RUBRIC) is None
