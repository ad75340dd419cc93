"""Files of scored essays: ASAP-AES' and simple ones are read, and mistakes are told in one line."""

from __future__ import annotations

import csv
import io

import pytest

from coach.agreement import Scale, read_essays
from coach.errors import ConfigurationError

ASAP = ["essay_id", "essay_set", "essay", "rater1_domain1", "rater2_domain1", "domain1_score"]


def table(*rows: list[object], headings: list[str], delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([headings, *rows])
    return file.getvalue()


def asap(*rows: list[object], encoding: str = "latin-1") -> bytes:
    return table(*rows, headings=ASAP, delimiter="\t").encode(encoding)


def test_asap_has_its_scales_and_the_sum_of_two_raters_is_seen_as_such() -> None:
    found = read_essays(
        asap(
            [7, 1, 'It was "my" café,\tand we ate', 4, 4, 8],
            [8, 1, "Another\nof two lines", 5, 4, 9],
        )
    )
    assert [each.id for each in found.essays] == ["7", "8"]
    assert found.essays[0].text == 'It was "my" café,\tand we ate'
    assert (found.scale, found.rater_scale) == (Scale(2, 12), Scale(1, 6))
    assert (found.raters_in_label, found.skipped) == (2, 0)


def test_utf_8_and_windows_bytes_say_the_same() -> None:
    row = [1, 3, "He said “no” – twice", 1, 1, 1]
    (windows,) = read_essays(asap(row, encoding="cp1252")).essays
    (modern,) = read_essays(asap(row, encoding="utf-8-sig")).essays
    assert windows == modern
    assert read_essays(asap([1, 3, "a \x81 b", 1, 1, 1])).essays[0].text == "a \x81 b"


def test_one_of_several_sets_is_chosen() -> None:
    data = asap([1, 3, "one", 1, 1, 1], [2, 8, "two", 20, 22, 42])
    with pytest.raises(ConfigurationError, match=r"several essay sets \(3, 8, …\).*--set"):
        read_essays(data)
    found = read_essays(data, essay_set=8)
    assert [each.id for each in found.essays] == ["2"]
    assert found.scale == Scale(0, 60)
    with pytest.raises(ConfigurationError, match="no essay set 4"):
        read_essays(data, essay_set=4)


def test_a_simple_table_takes_its_scale_from_the_scores_or_from_the_operator() -> None:
    data = table(
        ["a", 2, 3], ["b", 5, 4], ["", 1, 1], ["c", "", 1], headings=["essay", "score", "score2"]
    ).encode()
    found = read_essays(data)
    assert (found.scale, found.skipped, found.raters_in_label) == (Scale(2, 5), 2, 1)
    assert [each.raters for each in found.essays] == [(2, 3), (5, 4)]
    assert found.rater_scale == found.scale
    assert read_essays(data, low=0, high=6).scale == Scale(0, 6)
    assert len(read_essays(data, count_max=1, low=0, high=6).essays) == 1


MISTAKES = {
    "no columns": (b"text,grade\nx,1\n", "must name the columns essay and score"),
    "nothing": (b"", "must name the columns"),
    "no rows": (b"essay,score\n", "no row has both"),
    "a word for a score": (b"essay,score\nx,good\n", "line 2: score 'good' is not a number"),
    "one score only": (b"essay,score\nx,3\ny,3\n", "set --min, --max and --step"),
    "half a point": (b"essay,score\nx,1\ny,3\nz,2.5\n", "the score 2.5 is not on the scale"),
    "not a number": (b"essay,score\nx,nan\ny,3\n", "--min"),
    "endless": (b"essay,score\n" + b"x" * 100_001 + b",3\n", "line 2: an essay of more than"),
    "a broken quote": (b'essay,score\n"x' + b"y" * 500_000 + b",3\n", "field larger than"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str) -> None:
    data, said = MISTAKES[name]
    with pytest.raises(ConfigurationError) as told:
        read_essays(data)
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_a_score_beside_the_scale_that_was_given_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the score 7 is not on the scale from 0 to 6"):
        read_essays(b"essay,score\nx,7\n", low=0, high=6)
