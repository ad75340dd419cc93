"""A report says of every judge and panel what is true of it, and recalibration what it is worth."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from coach.agreement import Evaluation, draw_confusion, report
from coach.agreement.plot import grouped
from coach.agreement.scale import Scale
from coach.errors import ConfigurationError

from .judging import HABITS, HIGH, RUBRIC, evaluated


def test_every_judge_pair_and_three_stand_in_it() -> None:
    found = report(evaluated(60), RUBRIC)
    assert [panel.judges for panel in found.panels] == [
        ("kind",),
        ("narrow",),
        ("strict",),
        ("kind", "narrow"),
        ("kind", "strict"),
        ("narrow", "strict"),
        ("kind", "narrow", "strict"),
    ]
    assert (found.fitted_on, found.intervals_on, found.held_out) == (30, 15, 15)
    assert sum(map(sum, found.confusion)) == 60
    assert (found.humans, found.ceilings) == (None, None)


def test_recalibration_undoes_each_judges_habit_on_essays_it_has_not_seen() -> None:
    found = report(evaluated(500, raters=True), RUBRIC)
    for panel in found.panels:
        before, after = panel.held_out, panel.recalibrated
        assert before is not None
        assert after is not None
        assert abs(after.bias) < 3
        assert after.qwk > before.qwk - 0.01
        assert panel.covered is not None
        assert 0.82 <= panel.covered <= 0.99
    kind, narrow, *_, three = found.panels
    assert kind.held_out is not None
    assert kind.held_out.bias > 12
    assert found.stages["narrow"] == "scale"
    assert found.lines["narrow"].scale > 1.4
    assert narrow.all.spread < 0.75
    assert found.ceilings is not None
    assert three.recalibrated is not None
    assert three.recalibrated.qwk < found.ceilings.perfect


def test_bias_is_told_by_judge_and_criterion() -> None:
    found = report(evaluated(300), RUBRIC)
    assert set(found.bias) == set(HABITS)
    for criterion in RUBRIC.criteria:
        assert found.bias["kind"][criterion.name] > 10
        assert found.bias["strict"][criterion.name] < -6


def test_a_missing_answer_takes_an_essay_from_that_judges_panels_only() -> None:
    whole = evaluated(40)
    first, *rest = whole.essays
    first = msgspec.structs.replace(first, bands={"kind": first.bands["kind"]})
    found = report(msgspec.structs.replace(whole, essays=(first, *rest)), RUBRIC)
    assert {panel.judges: panel.all.essays for panel in found.panels}[("kind",)] == 40
    assert found.panels[-1].all.essays == 39


def test_few_essays_promise_no_interval() -> None:
    found = report(evaluated(17), RUBRIC)
    assert found.essays_needed == 36
    assert {panel.margin for panel in found.panels} == {None}
    one = report(evaluated(1), RUBRIC)
    assert one.panels[-1].recalibrated is not None
    assert set(one.stages.values()) == {"none"}


def test_another_rubric_or_no_common_essay_is_one_line() -> None:
    whole = evaluated(4)
    with pytest.raises(ConfigurationError, match="another rubric"):
        report(msgspec.structs.replace(whole, rubric="0" * 12), RUBRIC)
    alone = tuple(
        msgspec.structs.replace(each, bands={"kind": each.bands["kind"]}) for each in whole.essays
    )
    with pytest.raises(ConfigurationError, match="no essay that every judge"):
        report(msgspec.structs.replace(whole, essays=alone), RUBRIC)


def test_a_report_is_json_and_an_evaluation_comes_back_from_it() -> None:
    whole = evaluated(20, raters=True)
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Evaluation) == whole
    record = msgspec.json.decode(msgspec.json.encode(report(whole, RUBRIC)))
    assert record["humans"]["essays"] == 20


def test_a_long_scale_is_drawn_in_groups() -> None:
    scale = Scale(0, HIGH)
    confusion = [[1] * (HIGH + 1) for _ in range(HIGH + 1)]
    labels, table = grouped(scale, confusion)
    assert (labels[0], labels[-1]) == ("0–1", "20")
    assert len(table) == len(labels) == 11
    assert sum(map(sum, table)) == (HIGH + 1) ** 2
    assert grouped(Scale(1, 4), [[0] * 4] * 4)[0] == ["1", "2", "3", "4"]


def test_the_confusion_plot_is_a_picture(tmp_path: Path) -> None:

    path = tmp_path / "confusion.png"
    draw_confusion(report(evaluated(30), RUBRIC), path, title="class.csv")
    assert path.read_bytes().startswith(b"\x89PNG")
