"""Feedback: at most five lines, each about a spot of the draft; praise first, next step last."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.corpus import Essay
from coach.simulator.essay import measure
from coach.simulator.feedback import COMMENTS_MAX, feedback, labels_in
from coach.simulator.findings import praises
from coach.simulator.reading import read

from .texts import BY_NAME, ESSAYS, cut, in_one_paragraph

LINE = re.compile(r"\[([^\[\]\n]{1,40})\] (?:«([^«»\"“”„\n]{1,300})» )?(\S.*)")
"""As the writer's page reads it."""
RUBRIC = """Rubric: School essay
ideas (Ideas and evidence, 40 %)
  0: Nothing to assess.
organisation (Organisation, 30 %)
  0: No order.
style (Style and vocabulary, 20 %)
conventions (Conventions, 10 %)
"""
each_essay = pytest.mark.parametrize("essay", ESSAYS, ids=lambda essay: essay.name)


def prompt(text: str, focus: str = "") -> list[tuple[str, str]]:
    asked = f" I would like to know about: {focus}" if focus else ""
    return [("user", f"<essay>\n{text}\n</essay>\nPlease comment on my draft.{asked}")]


def lines_of(text: str, focus: str = "") -> list[tuple[str, str, str]]:
    """Label, quote and comment of each line; checks what holds for all feedback."""
    lines = []
    for line in feedback(prompt(text, focus)).split("\n"):
        found = LINE.fullmatch(line)
        assert found is not None, line
        label, quote, comment = found[1], found[2] or "", found[3]
        assert quote in text
        assert len(quote.split()) <= 12
        lines.append((label, quote, comment))
    assert 1 <= len(lines) <= COMMENTS_MAX
    assert [index for index, line in enumerate(lines) if "Next: " in line[2]] == [len(lines) - 1]
    return lines


@each_essay
def test_an_essay_gets_praise_then_spots_then_one_thing_to_do(essay: Essay) -> None:
    lines = lines_of(essay.text)

    assert lines[0][2] in [praise.comment for praise in praises(measure(essay.text))]
    assert len(lines) >= 4
    assert len({quote for _, quote, _ in lines}) == len(lines)
    assert all(len(comment) <= 160 for _, _, comment in lines)
    places = [essay.text.find(quote) for _, quote, _ in lines[1:-1]]
    assert places == sorted(places)


def test_different_essays_get_different_feedback_and_the_same_one_the_same() -> None:
    answers = [feedback(prompt(essay.text)) for essay in ESSAYS]

    assert len(set(answers)) == len(ESSAYS)
    assert answers == [feedback(prompt(essay.text)) for essay in ESSAYS]


def test_a_misspelt_word_is_named_with_its_spelling() -> None:
    comments = [comment for _, _, comment in lines_of(BY_NAME["the-haunted-house"].text)]

    assert any("“evrybody” is spelt “everybody”" in comment for comment in comments)


@pytest.mark.parametrize(
    ("focus", "label"),
    [
        ("my spelling", "Spelling, punctuation, grammar"),
        ("the ending", "Structure"),
        ("evidence", "Content"),
        ("vocabulary", "Language"),
    ],
)
def test_what_is_asked_about_comes_as_the_next_thing_to_do(focus: str, label: str) -> None:
    text = BY_NAME["the-haunted-house"].text

    assert lines_of(text, focus)[-1][0] == label


def test_the_same_draft_gets_other_comments_for_another_question() -> None:
    answers = [
        feedback(prompt(ESSAYS[0].text, focus)) for focus in ("", "style", "ending", "opening")
    ]

    assert len(set(answers)) == 4


def test_a_question_about_something_else_changes_nothing() -> None:
    text = BY_NAME["phones-in-class"].text

    assert lines_of(text, "blue elephants") == lines_of(text)


def test_an_essay_in_one_paragraph_is_told_where_to_break_it() -> None:
    text = in_one_paragraph(BY_NAME["phones-in-class"].text)
    label, quote, comment = lines_of(text)[-1]

    assert (label, "new paragraph" in comment) == ("Structure", True)
    assert 0.2 < text.index(quote) / len(text) < 0.8


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2])
def test_a_beginning_gets_less_feedback_and_is_encouraged_to_go_on(share: float) -> None:
    lines = lines_of(cut(BY_NAME["phones-in-class"].text, share))

    assert len(lines) <= 3
    assert lines[-1][0] == "Content"
    assert "sentences" in lines[-1][2]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "12 34", "???"])
def test_an_empty_draft_is_told_how_to_begin(text: str) -> None:
    ((label, quote, comment),) = lines_of(text)

    assert (label, quote) == ("Content", "")
    assert comment.startswith("An empty page")


def test_criteria_have_the_names_of_the_rubric() -> None:
    answer = feedback(prompt(BY_NAME["the-haunted-house"].text), f"You are a coach.\n{RUBRIC}")

    assert set(re.findall(r"^\[(.*?)\]", answer, re.MULTILINE)) <= {
        *("Ideas and evidence", "Organisation", "Style and vocabulary", "Conventions"),
    }


def test_labels_that_would_break_a_line_are_made_harmless() -> None:
    assert labels_in(f"ideas ([Ideas] {'x' * 99}, 50 %)")["content"] == f"Ideas {'x' * 99}"[:40]


def conversation(before: str, changes: str) -> list[tuple[str, str]]:
    """A draft that was read, and what has become of it."""
    asked = prompt(before)
    return [*asked, ("assistant", feedback(asked)), ("user", changes)]


def test_what_is_new_gets_one_comment_on_it_that_was_not_made_before() -> None:
    before, _, new = BY_NAME["phones-in-class"].text.partition("\n\n")
    new = " ".join(new.split()[:20])
    last = " ".join(before.split()[-6:])
    said = conversation(
        before,
        f"I have changed my draft.\n<was-1>\n{last}\n</was-1>\n<essay-1>\n{last}\n\n{new}\n"
        "</essay-1>\nPlease comment on what is new.",
    )
    (line,) = feedback(said).split("\n")
    found = LINE.fullmatch(line)
    assert found is not None
    assert found[2] in f"{last}\n\n{new}"
    assert "Next: " in line
    assert line not in said[1][1]


def test_much_that_is_new_gets_two_comments_and_the_draft_is_read_as_it_is_now() -> None:
    text = BY_NAME["the-haunted-house"].text
    sentences = text.split(". ")
    before, new = ". ".join(sentences[:3]), ". ".join(sentences[3:])
    said = conversation(
        before,
        f"<was>\n{sentences[2]}\n</was>\n<essay>\n{sentences[2]}. {new}\n</essay>\n"
        "Please comment on what is new.",
    )
    lines = feedback(said).split("\n")
    assert len(lines) == 2
    assert all(LINE.fullmatch(line)[2] in text for line in lines)  # type: ignore[index]


def test_a_passage_that_stands_nowhere_is_read_behind_the_rest() -> None:
    said = conversation("One. Two.", "<was>\nThree.\n</was>\n<essay>\n Four.\n</essay>")
    assert read(said).essay == "One. Two. Four."


@given(st.text(max_size=500), st.text(max_size=60), st.text(max_size=200))
def test_any_draft_focus_and_rubric_give_well_formed_feedback(
    text: str, focus: str, rubric: str
) -> None:
    if "<essay>" not in text and "</essay>" not in text + focus:
        lines_of(text, focus)
    assert feedback([("user", text + focus)], rubric)


@given(st.permutations(ESSAYS[0].text.split(". ")), st.floats(0, 1))
def test_any_state_of_a_draft_gives_well_formed_feedback(
    sentences: list[str], share: float
) -> None:
    lines_of(cut(". ".join(sentences), share))
