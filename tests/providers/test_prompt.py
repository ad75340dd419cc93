"""Prompts: stable first, and the student's text is data."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from coach.grading import load_rubric
from coach.providers import (
    Conversation,
    Prompt,
    Pseudonyms,
    estimate_tokens,
    feedback_prompt,
    judge_prompt,
)
from coach.providers.anthropic import Anthropic


def feedback(
    draft: str = "My cat",
    focus: str | None = None,
    history: Sequence[tuple[str | None, str]] = (),
    **changes: object,
) -> Prompt:
    fields: dict[str, object] = {
        "rubric": "rubric",
        "assignment": "Write",
        "question": Conversation.after(history).ask(draft, focus, now_s=0.0),
        "output_tokens_max": 10,
    }
    return feedback_prompt(**{**fields, **changes})  # type: ignore[arg-type]


def test_all_but_the_draft_is_the_same_and_ends_in_cache_breakpoints() -> None:
    one, other = feedback("one draft"), feedback("another", focus="commas")
    assert one.system == other.system
    assert all(block.cache for block in one.system)
    longer = feedback(history=[("commas", "Good."), ("", "")])
    assert [message.role for message in longer.messages] == ["user", "assistant", "user"]
    assert longer.messages[-1].blocks[-1].cache
    blocks = [*longer.system, *(block for each in longer.messages for block in each.blocks)]
    assert sum(block.cache for block in blocks) <= 4


@given(st.text(st.sampled_from("</essay -0123456789abcdef>ESSAY\n\u00a0x")))
def test_no_text_of_a_student_ends_the_essay(text: str) -> None:
    prompts = [
        feedback(text, focus=text, assignment=text),
        judge_prompt(rubric="r", assignment=text, essay=text, schema=None, output_tokens_max=10),
    ]
    for prompt in prompts:
        essay, *others = (block.text for block in prompt.messages[-1].blocks)
        opened, body, closed = essay.partition("\n")[0], essay[17:-18], essay.rpartition("\n")[2]
        assert re.fullmatch(r"<essay-[0-9a-f]{8}>", opened)
        assert closed == opened.replace("<", "</")
        assert len(body) == len(text)
        assert opened[7:-1] not in body
        for other in (body, *others, prompt.system[-1].text):
            assert not re.search(r"<\s*/?\s*essay\b", other, re.IGNORECASE)


def test_the_mark_is_another_where_the_text_holds_it_however_written() -> None:
    def mark(text: str) -> str:
        return feedback(text).messages[-1].blocks[0].text[7:15]

    first = mark("")
    assert mark("") == first
    # a text that holds its own mark cannot be written down, but its neighbours' can
    texts = [f"{number:08x}"[:8] for number in range(64)]
    spread = "".join(texts)
    assert mark(spread) not in spread
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in spread)
    assert mark(wide) not in spread


def test_no_block_is_empty_and_the_same_prompt_gives_the_same_bytes() -> None:
    prompt = feedback("", assignment="", focus=" ")
    blocks = [*prompt.system, *(block for each in prompt.messages for block in each.blocks)]
    assert all(block.text for block in blocks)
    again = feedback("", assignment="", focus=" ")
    assert Anthropic().body(prompt, "m", stream=True) == Anthropic().body(again, "m", stream=True)


def test_estimates_count_everything_that_is_read() -> None:
    prompt = feedback("x" * 3500)
    assert estimate_tokens(prompt.size()) > 1000
    with_schema = judge_prompt(
        rubric="", assignment="", essay="", schema={"type": "object"}, output_tokens_max=1
    )
    without = judge_prompt(rubric="", assignment="", essay="", schema=None, output_tokens_max=1)
    assert with_schema.size() > without.size()


def test_what_everybody_shares_is_long_enough_to_be_cached() -> None:
    """From 1,024 tokens on with most models; English prose has some 4.5 characters a token."""
    rubric = load_rubric().as_text()
    judge = judge_prompt(rubric=rubric, assignment="", essay="", schema=None, output_tokens_max=1)
    for prompt in (feedback(rubric=rubric), judge):
        assert len(prompt.system[0].text) > 1_024 * 4.8


def test_a_pseudonym_is_the_same_for_a_student_and_tells_nothing_of_the_name() -> None:
    one, other = Pseudonyms("key"), Pseudonyms("another key")
    name = one.of(org="school", user="ana")
    assert name == Pseudonyms("key").of(org="school", user="ana")
    others = {one.of(org="schoola", user="na"), one.of(org="s", user="ana")}
    assert len({name, other.of(org="school", user="ana"), *others}) == 4
    assert len(name) == 32
    assert "ana" not in name
