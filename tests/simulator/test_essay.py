"""What is measured in an essay: better essays score higher, spoilt ones lower, none takes long."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.corpus import LEVELS, Essay
from coach.simulator.essay import (
    CHARACTERS_MAX,
    FACETS,
    QUOTE_CHARACTERS_MAX,
    QUOTE_WORDS_MAX,
    Facet,
    essay_in,
    measure,
    scores,
)
from coach.simulator.facets import facet_of

from .texts import (
    BY_NAME,
    ESSAYS,
    cut,
    in_one_paragraph,
    misspelt,
    of_level,
    shuffled,
)

each_essay = pytest.mark.parametrize("essay", ESSAYS, ids=lambda essay: essay.name)
texts = st.text(st.characters() | st.sampled_from(' \n.,"“«»’abIi1'), max_size=400)


def total(text: str) -> float:
    return fmean(scores(text).values())


def test_levels_of_the_corpus_score_in_their_order() -> None:
    means = [fmean(total(essay.text) for essay in of_level(level)) for level in LEVELS]

    assert means == sorted(means)
    assert means[-1] - means[0] > 0.2


def test_every_good_essay_scores_above_every_weak_one() -> None:
    weak = max(total(essay.text) for essay in of_level("weak"))
    good = min(total(essay.text) for essay in of_level("secure", "strong"))

    assert good > weak


@each_essay
def test_an_essay_that_is_cut_scores_less_the_more_is_missing(essay: Essay) -> None:
    totals = [total(cut(essay.text, share)) for share in (1.0, 0.5, 0.25, 0.1, 0.02)]

    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < totals[0] / 2


@each_essay
def test_an_essay_that_is_shuffled_scores_less_in_every_facet(essay: Essay) -> None:
    before, after = scores(essay.text), scores(shuffled(essay.text))

    assert all(after[facet] < before[facet] for facet in FACETS)
    assert fmean(after.values()) < 0.6 * fmean(before.values())


@each_essay
def test_an_essay_that_is_misspelt_scores_less_in_correctness_only(essay: Essay) -> None:
    before, after = scores(essay.text), scores(misspelt(essay.text))

    assert after["correctness"] < before["correctness"]
    assert after["structure"] > before["structure"] - 0.15


@each_essay
def test_an_essay_without_paragraphs_scores_less_in_structure(essay: Essay) -> None:
    assert scores(in_one_paragraph(essay.text))["structure"] < scores(essay.text)["structure"]


def test_the_same_sentence_again_and_again_is_no_good_essay() -> None:
    text = "It is good because it is good. " * 60

    assert total(text) < min(total(essay.text) for essay in of_level("developing"))


@pytest.mark.parametrize("text", ["", " \n\n ", "123 456", "?!…"])
def test_a_text_without_words_scores_nothing(text: str) -> None:
    assert set(scores(text).values()) == {0.0}
    assert measure(text).quote(0) == ""


@given(texts)
def test_scores_are_between_0_and_1_and_quotes_stand_in_the_text(text: str) -> None:
    essay = measure(text)

    assert all(0 <= score <= 1 for score in scores(text).values())
    assert set(scores(text)) == set(FACETS)
    for sentence in essay.sentences:
        for quote in (essay.quote(sentence.start, words_max=12), essay.opening_of(sentence)):
            assert quote in text
            assert len(quote.split()) <= QUOTE_WORDS_MAX
            assert len(quote) <= QUOTE_CHARACTERS_MAX
            assert not set(quote) & set('«»"“”<>\n\r\u2028')
    for slip in essay.slips:
        assert 0 <= slip.start < slip.end <= len(text)
        assert slip.wrong.split() == text[slip.start : slip.end].split()
    assert [slip.start for slip in essay.slips] == sorted({slip.start for slip in essay.slips})


def test_what_stands_in_the_text_is_found() -> None:
    essay = measure(
        "we recieve alot of of mail.\n\nIt is a apple, and their is more then that becuase\n\n"
        "they was here first. I like it. I know it. I do. However, i left."
    )

    assert [(slip.kind, slip.wrong, slip.right) for slip in essay.slips] == [
        ("capital", "we", "We"),
        ("spelling", "recieve", "receive"),
        ("spelling", "alot", "a lot"),
        ("double", "of of", "of"),
        ("article", "a apple", "an apple"),
        ("confusion", "their", "there"),
        ("confusion", "then", "than"),
        ("spelling", "becuase", "because"),
        ("capital", "they", "They"),
        ("confusion", "was", "were"),
        ("capital", "i", "I"),
    ]
    assert essay.openings == (("i", 3),)
    assert [word for word, _, _ in essay.transitions] == ["then", "first", "however"]
    assert len(essay.paragraphs) == 3


def test_words_that_come_too_often_are_named_with_how_often() -> None:
    assert measure(BY_NAME["plastic-in-the-ocean"].text).repeated[0] == ("plastic", 29)


@pytest.mark.parametrize(
    "name", ["frankenstein-response", "the-printing-press", "letter-to-the-mayor"]
)
def test_good_essays_have_no_mistakes_that_are_none(name: str) -> None:
    assert measure(BY_NAME[name].text).slips == ()


def test_only_so_much_is_measured() -> None:
    assert len(measure("word " * CHARACTERS_MAX).words) == CHARACTERS_MAX / 5


@pytest.mark.parametrize(
    ("prompt", "essay"),
    [
        ("<essay>\nMy text.\n</essay>\nPlease comment.", "My text."),
        ("My text.", "My text."),
        ("<essay>\nold\n</essay> <essay>\nnew\n</essay>", "new"),
        ("<essay>\nnever ends", "never ends"),
        ("<essay>\n</essay>", ""),
    ],
)
def test_the_essay_stands_between_its_tags(prompt: str, essay: str) -> None:
    assert essay_in(prompt) == essay


@pytest.mark.parametrize(
    ("name", "facet"),
    [
        ("spelling-punctuation-grammar", "correctness"),
        ("Organisation and paragraphs", "structure"),
        ("Word choice", "language"),
        ("Ideas", "content"),
        ("Language conventions: grammar and spelling", "correctness"),
        ("my ending", "structure"),
        ("humour", None),
        ("", None),
    ],
)
def test_names_belong_to_facets(name: str, facet: Facet | None) -> None:
    assert facet_of(name) == facet
