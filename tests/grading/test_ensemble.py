"""Several answers, one grade: properties of the median and of the score."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from coach.grading.answers import Answer, Judgement
from coach.grading.ensemble import combine, median, total, why_degraded
from coach.grading.records import Grade, Usage
from coach.grading.rubric import Criterion, Rubric

SIX = ("a", "b", "c", "d", "e", "f")
RUBRIC = Rubric(
    title="Short",
    criteria=(
        Criterion(name="content", label="Content", weight=50, bands=SIX),
        Criterion(name="form", label="Form", weight=30, bands=SIX),
        Criterion(name="style", label="Style", weight=20, bands=("no", "yes")),
    ),
)
NAMES = [criterion.name for criterion in RUBRIC.criteria]
BANDS = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 1))
PANELS = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), BANDS, min_size=1)
Panel = dict[str, tuple[int, int, int]]


def grade(panel: Panel, asked: int | None = None) -> Grade:
    answers = {
        judge: Answer(
            criteria={
                name: Judgement(band=band, evidence=f"{judge} on {name}", reason=f"{judge} says")
                for name, band in zip(NAMES, bands, strict=True)
            },
            improve_first=f"{judge} advises",
        )
        for judge, bands in panel.items()
    }
    missing = [f"missing-{number}" for number in range(len(panel), asked or 0)]
    return combine(
        RUBRIC,
        answers,
        panel=dict.fromkeys([*panel, *missing], ""),
        usage=Usage(input=7),
        seconds=1.5,
    )


def test_one_judge_is_the_grade() -> None:
    only = grade({"opus": (4, 3, 1)})
    assert only.score == 78
    assert [(c.name, c.band, c.band_max) for c in only.criteria] == [
        ("content", 4, 5),
        ("form", 3, 5),
        ("style", 1, 1),
    ]
    assert only.criteria[0].evidence == "opus on content"
    assert (only.judges, only.degraded, only.review) == (1, False, False)
    assert only.bands_apart is None
    assert (only.feedback, only.usage, only.seconds) == ("opus advises", Usage(input=7), 1.5)


def test_an_outlier_among_three_changes_nothing_but_calls_for_a_person() -> None:
    calm = grade({"a": (4, 3, 1), "b": (4, 3, 1), "c": (4, 3, 1)})
    wild = grade({"a": (4, 3, 1), "b": (4, 3, 1), "c": (0, 3, 1)})
    assert (wild.score, wild.criteria) == (calm.score, calm.criteria)
    assert (calm.review, wild.review) == (False, True)
    assert (calm.bands_apart, wild.bands_apart) == (0, 4)


def test_between_two_judges_the_score_counts_the_half_and_the_band_is_rounded_up() -> None:
    both = grade({"a": (4, 2, 1), "b": (3, 2, 1)})
    assert both.criteria[0].band == 4
    assert both.score == 67  # 50 * 3.5/5 + 30 * 2/5 + 20


def test_words_come_from_a_judge_near_the_median() -> None:
    panel = {"a": (0, 0, 0), "b": (3, 3, 1), "c": (5, 4, 1)}
    combined = grade(panel)
    assert combined.feedback == "b advises"
    assert {c.evidence.split()[0] for c in combined.criteria} == {"b"}


def test_with_fewer_judges_than_asked_the_grade_is_degraded() -> None:
    assert grade({"a": (1, 1, 1), "b": (1, 1, 1)}, asked=3).degraded


def test_a_degraded_grade_says_who_is_missing_and_where_others_stood_in() -> None:
    def why(providers: Mapping[str, str], absent: Mapping[str, str] | None = None) -> str:
        answers = {
            name: Answer(criteria={}, improve_first="", provider=provider)
            for name, provider in providers.items()
        }
        return why_degraded(answers, {"1": "opus", "2": "mini", "3": "opus"}, absent or {})

    assert why({"1": "opus", "2": "mini", "3": "opus"}) == ""
    assert why({"1": "opus", "2": "mini", "3": "mini"}) == ""
    assert why({"1": "opus", "3": "opus"}, {"2": "late"}) == "2 of 3 judges answered: 2 late"
    assert why({"1": "opus", "2": "opus", "3": "opus"}) == "no judge at mini: others stood in"


@given(PANELS)
def test_the_grade_depends_on_who_said_what_and_not_on_who_came_first(panel: Panel) -> None:
    assert grade(dict(reversed(panel.items()))) == grade(panel)


@given(PANELS)
def test_the_score_is_that_of_the_exact_weighted_medians(panel: Panel) -> None:
    exact = Fraction(0)
    for index, criterion in enumerate(RUBRIC.criteria):
        middle = statistics.median(Fraction(bands[index]) for bands in panel.values())
        exact += Fraction(criterion.weight, criterion.band_max) * Fraction(middle)
    combined = grade(panel)
    assert 0 <= combined.score <= 100
    assert abs(combined.score - exact) <= Fraction(1, 2)
    for index, graded in enumerate(combined.criteria):
        bands = [panel[judge][index] for judge in panel]
        assert min(bands) <= graded.band <= max(bands)


@given(PANELS, st.data())
def test_a_judge_that_thinks_better_never_lowers_the_score(
    panel: Panel, data: st.DataObject
) -> None:
    judge = data.draw(st.sampled_from(sorted(panel)))
    better = data.draw(st.tuples(*(st.integers(low, 5) for low in panel[judge][:2])))
    raised = panel | {judge: (better[0], better[1], panel[judge][2])}
    assert grade(raised).score >= grade(panel).score


def test_the_ends_of_the_scale_are_reached() -> None:
    assert grade({"a": (0, 0, 0)}).score == 0
    assert grade({"a": (5, 5, 1)}).score == 100


@given(st.lists(st.integers(0, 10), min_size=1))
def test_the_median_is_exact(values: list[int]) -> None:
    assert median(values) == statistics.median(Fraction(value) for value in values)


def test_usage_is_summed_field_by_field() -> None:
    assert total([]) == Usage()
    assert total([Usage(1, 2, 3, 4), Usage(10, 20, 30, 40)]) == Usage(11, 22, 33, 44)
