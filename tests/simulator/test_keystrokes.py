"""Typing: whatever the seed and the text, the splices end in exactly the essay."""

from __future__ import annotations

import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.corpus import LEVELS, load_essays, parse_essay
from coach.simulator.keystrokes import Thought, Typed, keystrokes

TEXTS = st.text(alphabet=st.sampled_from("abc é\n😀𝄞,."), min_size=1, max_size=400)


def apply(text: str, splices: tuple[tuple[int, int, str], ...]) -> str:
    """Splice as a browser counts: in UTF-16 code units."""
    units = text.encode("utf-16-le")
    for at, delete, insert in splices:
        assert 0 <= at <= at + delete <= len(units) // 2
        units = units[: at * 2] + insert.encode("utf-16-le") + units[(at + delete) * 2 :]
    return units.decode("utf-16-le")


@given(text=TEXTS, seed=st.integers(), duration_s=st.floats(1, 600), begun=st.integers(0, 50))
def test_splices_build_the_text(text: str, seed: int, duration_s: float, begun: int) -> None:
    """Each `Typed` names the draft that its splices make; the last is the essay; a thought ends."""
    draft, last = "", None
    for last in keystrokes(
        text, duration_s=duration_s, think_every_s=9, rng=random.Random(seed), begun=begun
    ):
        assert last.pause_s > 0
        if isinstance(last, Typed):
            draft = apply(draft, last.splices)
            assert draft == last.text
    assert draft == text
    assert isinstance(last, Thought)


@pytest.mark.parametrize("duration_s", [10, 40, 400])
def test_typing_takes_as_long_as_told(duration_s: float) -> None:
    """Over many essays the mean is within 10 %, and slips are made and corrected."""
    totals, corrections = [], 0
    for seed, essay in enumerate(load_essays()):
        strokes = list(
            keystrokes(essay.text, duration_s=duration_s, think_every_s=9, rng=random.Random(seed))
        )
        totals.append(sum(stroke.pause_s for stroke in strokes))
        corrections += sum(
            splice[1] > 0
            for stroke in strokes
            if isinstance(stroke, Typed)
            for splice in stroke.splices
        )
    assert sum(totals) / len(totals) == pytest.approx(duration_s, rel=0.1)
    assert corrections > len(totals) / 2


def test_who_lives_faster_makes_the_same_strokes_in_less_time() -> None:
    """As many of them, and as many thoughts: ten times the speed is ten times the load."""
    text = load_essays()[0].text
    slow = list(keystrokes(text, duration_s=400, think_every_s=30, rng=random.Random(3)))
    fast = list(
        keystrokes(text, duration_s=40, think_every_s=3, rng=random.Random(3), time_scale=10)
    )
    assert [each.pause_s for each in fast] == pytest.approx([each.pause_s / 10 for each in slow])
    assert [attrs.evolve(each, pause_s=0) for each in fast] == [
        attrs.evolve(each, pause_s=0) for each in slow
    ]


def test_same_seed_same_typing() -> None:
    """A run can be replayed."""
    text = load_essays()[0].text
    first, second = (
        list(keystrokes(text, duration_s=40, think_every_s=9, rng=random.Random("7:3")))
        for _ in range(2)
    )
    assert first == second


def test_essays_are_of_every_level_and_of_a_students_length() -> None:
    """At least 14, of 250 to 600 words, all levels and several kinds."""
    essays = load_essays()
    assert len(essays) >= 14
    assert {essay.level for essay in essays} == set(LEVELS)
    assert len({essay.kind for essay in essays}) >= 6
    for essay in essays:
        assert 250 <= len(essay.text.split()) <= 600, essay.name


@pytest.mark.parametrize(
    "content", ["", "no head\ntext", "# a | 9 | weak | x\n\n", "# a | 9 | good | x\ntext"]
)
def test_a_malformed_essay_is_refused_by_name(content: str) -> None:
    """The message names the file."""
    with pytest.raises(ValueError, match="essay some-name"):
        parse_essay("some-name", content)
