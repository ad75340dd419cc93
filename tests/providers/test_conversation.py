"""Conversations: the draft once, then what has changed; what was sent is never sent otherwise."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.providers import Conversation, Prompt, Question, feedback_prompt
from coach.providers.conversation import (
    CACHE_S,
    EARLIER_MAX,
    STALE_MIN,
    STALE_PER_DRAFT,
    TURNS_MAX,
)
from coach.simulator.reading import read

BEFORE = (
    "Phones should be banned because they are bad. Also teachers use them. "
    "My brother says that nobody can learn with one in the hand.\n\n"
    "In maths a phone rang. Nobody heard the end of the proof, and the bell had the last word."
)


def prompt_of(question: Question) -> Prompt:
    return feedback_prompt(
        rubric="rubric", assignment="Phones", question=question, output_tokens_max=10
    )


def messages_of(question: Question) -> list[tuple[str, str]]:
    """Role and text of each, as a model reads them."""
    messages = prompt_of(question).messages
    return [(each.role, "".join(block.text for block in each.blocks)) for each in messages]


def begun(draft: str = BEFORE) -> Conversation:
    return Conversation().ask(draft, None, now_s=0.0).answered("Good.")


def test_a_prompt_begins_with_the_whole_prompt_before_it_and_its_answer() -> None:
    conversation = Conversation()
    sent: list[tuple[str, str]] = []
    for number in range(8):
        question = conversation.ask(f"{BEFORE} And {number} more.", None, now_s=number * 30.0)
        messages = messages_of(question)
        assert messages[: len(sent)] == sent
        answer = f"Answer {number}."
        sent = [*messages, ("assistant", answer)]
        conversation = question.answered(answer)


def test_the_end_of_each_question_is_a_breakpoint_and_none_before_it() -> None:
    prompt = prompt_of(begun().ask(BEFORE + " More.", None, now_s=30.0))
    blocks = [block for message in prompt.messages for block in message.blocks]
    assert [block.cache for block in blocks] == [False] * (len(blocks) - 1) + [True]


def test_what_was_written_on_is_told_with_the_sentence_it_follows() -> None:
    question = begun().ask(BEFORE + " That was in May.", None, now_s=30.0)
    told = question.blocks[0]
    assert question.is_new
    assert "the bell had the last word. That was in May." in told
    assert "Phones should be banned" not in told


def test_two_places_are_two_passages() -> None:
    changed = BEFORE.replace("Also teachers", "Only teachers").replace("In maths", "In physics")
    told = begun().ask(changed, None, now_s=30.0).blocks[0]
    assert told.count("<essay-") == 2
    assert "Only teachers use them." in told
    assert "In physics a phone rang." in told
    assert "My brother" not in told


def test_a_draft_that_is_another_is_told_whole_and_read_whole_again() -> None:
    question = begun().ask("My summer was long. I learnt to swim.", None, now_s=30.0)
    assert "My summer was long. I learnt to swim." in question.blocks[0]
    assert read(messages_of(question)).essay == "My summer was long. I learnt to swim."


def test_the_same_draft_is_not_told_again_and_read_whole() -> None:
    question = begun().ask(BEFORE, None, now_s=30.0)
    assert not question.is_new
    assert all("essay-" not in block for block in question.blocks)
    assert read(messages_of(question)).essay == BEFORE


def test_who_asks_about_something_gets_it_of_the_whole_draft() -> None:
    question = begun().ask(BEFORE + " More.", "commas", now_s=30.0)
    assert not question.is_new
    assert "commas" in question.blocks[-1]


def test_an_answer_without_text_was_never_asked_for() -> None:
    conversation = begun()
    question = conversation.ask(BEFORE + " More.", None, now_s=30.0)
    assert question.answered(" ") is conversation


@pytest.mark.parametrize("why", ["the cache is gone", "too many", "too long", "nothing is cached"])
def test_it_begins_anew_with_the_last_answers_and_the_whole_draft(why: str) -> None:
    conversation, question = begun(), Conversation().ask(BEFORE, None, now_s=0.0)
    for number in range(TURNS_MAX + EARLIER_MAX - 1 if why == "too many" else 4):
        question = conversation.ask(f"{BEFORE} {number}.", None, now_s=30.0)
        assert question.is_new
        conversation = question.answered(f"Answer {number}.")
    if why == "too long":
        conversation = question.answered("Answer. " * STALE_MIN)
    question = conversation.ask(
        BEFORE + " Anew.",
        None,
        now_s=31.0 + CACHE_S if why == "the cache is gone" else 60.0,
        grows=why != "nothing is cached",
    )
    messages = messages_of(question)
    assert not question.is_new
    assert len(messages) == 2 * EARLIER_MAX + 1
    assert messages[-2][1].startswith("Answer")
    assert BEFORE in messages[-1][1]
    cached = [block.cache for each in prompt_of(question).messages for block in each.blocks]
    assert any(cached) == (why != "nothing is cached")


def test_earlier_answers_begin_it_without_their_drafts() -> None:
    answers = [(None, "One."), ("commas", "Two."), (None, " "), (None, "Three."), (None, "Four.")]
    messages = messages_of(Conversation.after(answers).ask("My cat.", None, now_s=0.0))
    assert [text for role, text in messages if role == "assistant"] == ["Two.", "Three.", "Four."]
    assert "commas" in messages[0][1]


def test_its_length_is_bounded_by_the_draft() -> None:
    rng, conversation = random.Random(1), Conversation()
    text = BEFORE * 20
    for turn in range(100):
        at = rng.randrange(len(text))
        text = f"{text[:at]} changed {turn}. {text[at + 20 :]}"
        question = conversation.ask(text, None, now_s=turn * 10.0)
        conversation = question.answered("Good. " * 20)
        told = sum(len(part) for each in conversation.exchanges for part in each.question)
        assert told < STALE_MIN + (STALE_PER_DRAFT + 2) * len(text)


SENTENCES = tuple(
    f"The {animal} of {name} sleeps in the sun, and {name} tells everybody of that {animal}{end}"
    for animal, end in (("cat", ". "), ("dog", "! "), ("old horse", ".\n\n"), ("bird", "? "))
    for name in ("Ana", "Ben", "Chi", "Dov", "Eva", "Finn")
)


@given(st.lists(st.lists(st.sampled_from(SENTENCES), min_size=1, unique=True), max_size=6))
def test_whatever_becomes_of_a_draft_its_reader_can_put_it_together(
    drafts: list[list[str]],
) -> None:
    """The simulated model does, by the instructions alone; up to white space."""
    conversation = Conversation()
    for sentences in drafts:
        draft = "".join(sentences)
        question = conversation.ask(draft, None, now_s=1.0)
        assert read(messages_of(question)).essay.split() == draft.split()
        conversation = question.answered("Good.")


@given(st.text(st.sampled_from("</essaywas -0123456789abcdef>ESSAY\n.\u00a0x"), max_size=80))
def test_no_text_of_a_student_ends_a_passage(text: str) -> None:
    question = begun().ask(f"{BEFORE} {text}", text, now_s=30.0)
    told = messages_of(question)[-1][1]
    tags = re.findall(r"<\s*/?\s*(?:essay|was)\b[^>]*>?", told, re.IGNORECASE)
    (mark,) = {tag.strip("</>").rpartition("-")[2] for tag in tags}
    assert mark not in text
    assert all(re.fullmatch(rf"</?(essay|was)-{mark}>", tag) for tag in tags)
    assert len(tags) % 2 == 0


@pytest.mark.parametrize("text", ["." * 100_000, "x" * 100_000, "a. " * 33_000, "\n" * 100_000])
def test_comparing_drafts_of_one_sign_is_quick(text: str) -> None:
    """Counted, not timed: nothing is compared with everything."""
    question = begun(text).ask("b. " + text[: len(text) // 2] + " c. " + text[5:], None, now_s=1.0)
    assert question.blocks
