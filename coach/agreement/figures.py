"""What an evaluation found: every judge and every panel beside people, and recalibration's worth.

Pure. An `Evaluation` is what was judged; `report` is all that can be said of it, and the same for
the same evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from statistics import fmean
from typing import Final

import attrs
import msgspec

from ..errors import ConfigurationError
from ..grading import Calibration, Line, Rubric, panel_name, panel_score
from .recalibrate import COVERAGE, Stage, choose, fit, lines, margin, misses_needed, split
from .scale import Scale
from .statistics import Agreement, Ceilings, agreement, ceilings

JUDGES_MAX: Final = 8
"""Of 8 judges there are 28 pairs and 56 panels of three."""
PANEL_MAX: Final = 3


class JudgedEssay(msgspec.Struct, frozen=True, kw_only=True):
    """One essay: people's scores and judges' bands."""

    key: str
    id: str
    score: float
    """The reference, as in the file."""
    raters: tuple[float, float] | None = None
    bands: dict[str, dict[str, int]] = {}
    """By judge, then by criterion; judges that gave no answer are missing."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What was judged, against what."""

    source: str
    """The file's name."""
    rubric: str
    """Its fingerprint."""
    judges: dict[str, str]
    """Models, by judge."""
    low: float
    high: float
    step: float
    rater_low: float
    rater_high: float
    raters_in_label: int
    essays: tuple[JudgedEssay, ...]

    @property
    def scale(self) -> Scale:
        """Of the reference."""
        return Scale(self.low, self.high, self.step)

    @property
    def rater_scale(self) -> Scale:
        """Of the two people."""
        return Scale(self.rater_low, self.rater_high, self.step)


@attrs.frozen(kw_only=True)
class PanelFigures:
    """A judge alone, or two or three together, against the reference."""

    judges: tuple[str, ...]
    all: Agreement
    """Every essay that all of them judged, as they judged it."""
    held_out: Agreement | None
    """The essays that recalibration has not seen, as they were judged."""
    offset: Agreement | None
    """The same after each judge's offset."""
    scale: Agreement | None
    """The same after offset and scale."""
    recalibrated: Agreement | None
    """The same after what was chosen for each judge."""
    margin: float | None
    """Of 100; a grade's interval is that much to both sides. None: too few essays."""
    covered: float | None
    """Share of held-out essays whose reference lies in the interval."""


@attrs.frozen(kw_only=True)
class Report:
    """All that can be said of an evaluation."""

    essays: int
    scale: Scale
    panels: tuple[PanelFigures, ...]
    """Single judges, pairs, then threes; the widest is the last."""
    bias: dict[str, dict[str, float]]
    """By judge and criterion: mean of its share of the highest band minus the reference, of 100."""
    stages: dict[str, Stage]
    lines: dict[str, Line]
    """Recalibration, by judge."""
    coverage: float
    fitted_on: int
    intervals_on: int
    held_out: int
    essays_needed: int
    """From how many on there are intervals."""
    humans: Agreement | None
    """The second rater against the first."""
    ceilings: Ceilings | None
    confusion: tuple[tuple[int, ...], ...]
    """Of the widest panel: a row for each place of the reference, a column for each of its own."""


def report(
    evaluation: Evaluation,
    rubric: Rubric,
    *,
    coverage: float = COVERAGE,
    stage: Stage | None = None,
) -> Report:
    """Compare every judge and panel with people.

    Args:
      evaluation: what was judged.
      rubric: what it was judged by.
      coverage: of the intervals, above 0 and below 1.
      stage: how far recalibration goes; None: for each judge as far as helps it.

    Raises:
      ConfigurationError: the rubric is another one, or nothing was judged by all judges.
    """
    if evaluation.rubric != rubric.fingerprint():
        raise ConfigurationError(
            "these essays were judged by another rubric (grading.rubric): evaluate them again"
        )
    judges = sorted(evaluation.judges)
    if len(judges) > JUDGES_MAX:
        raise ConfigurationError(f"{len(judges)} judges: at most {JUDGES_MAX} can be compared")
    common = _Sample.of(evaluation, rubric, judges)
    if not common.essays:
        raise ConfigurationError("there is no essay that every judge has judged")
    parts = split([essay.key for essay in common.essays])
    fitting, spacing, unseen = (
        common.part(part) for part in (parts.fit, parts.interval, parts.held_out)
    )
    scores = {judge: fitting.scores([judge]) for judge in judges}
    stages = {judge: stage or choose(of_judge, fitting.human) for judge, of_judge in scores.items()}
    offset, scale = (lines(scores, fitting.human, each) for each in ("offset", "scale"))
    chosen = {
        judge: fit(of_judge, fitting.human, stages[judge]) for judge, of_judge in scores.items()
    }
    humans, limits = _humans(evaluation)
    panels = []
    for members in panels_of(judges):
        whole = _Sample.of(evaluation, rubric, members)
        misses = spacing.misses(members, chosen)
        wide = margin(misses, coverage=coverage)
        missed = unseen.misses(members, chosen)
        panels.append(
            PanelFigures(
                judges=members,
                all=whole.agreement(members),
                held_out=unseen.agreement_or_none(members),
                offset=unseen.agreement_or_none(members, offset),
                scale=unseen.agreement_or_none(members, scale),
                recalibrated=unseen.agreement_or_none(members, chosen),
                margin=None if wide is None else math.ceil(wide - 1e-9),
                covered=None
                if wide is None or not missed
                else fmean(miss <= math.ceil(wide - 1e-9) for miss in missed),
            )
        )
    return Report(
        essays=len(evaluation.essays),
        scale=evaluation.scale,
        panels=tuple(panels),
        bias={judge: _bias(evaluation, rubric, judge) for judge in judges},
        stages=stages,
        lines=chosen,
        coverage=coverage,
        fitted_on=len(fitting.essays),
        intervals_on=len(spacing.essays),
        held_out=len(unseen.essays),
        essays_needed=4 * misses_needed(coverage),
        humans=humans,
        ceilings=limits,
        confusion=common.confusion(panels[-1].judges),
    )


def calibration_of(evaluation: Evaluation, found: Report, *, made_at: float) -> Calibration:
    """What graders are to know of a report: what was fitted, and what it is worth.

    Args:
      evaluation: what was judged.
      found: its report.
      made_at: seconds since the epoch.
    """
    widest = found.panels[-1]
    pair = (widest.held_out, widest.recalibrated)
    return Calibration(
        rubric=evaluation.rubric,
        models=evaluation.judges,
        lines=found.lines,
        margins={
            panel_name(panel.judges): math.ceil(panel.margin)
            for panel in found.panels
            if panel.margin is not None
        },
        coverage=found.coverage,
        source=evaluation.source,
        essays=found.essays,
        made_at=made_at,
        qwk=(_figure(pair[0], "qwk"), _figure(pair[1], "qwk")),
        bias=(_figure(pair[0], "bias"), _figure(pair[1], "bias")),
        covered=widest.covered,
    )


def _figure(found: Agreement | None, name: str) -> float | None:
    value = math.nan if found is None else float(getattr(found, name))
    return None if math.isnan(value) else round(value, 4)


def panels_of(judges: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Each judge alone, every two, every three."""
    for size in range(1, min(PANEL_MAX, len(judges)) + 1):
        yield from combinations(sorted(judges), size)


@attrs.frozen
class _Sample:
    """Some essays, and what they are judged by."""

    rubric: Rubric
    scale: Scale
    essays: tuple[JudgedEssay, ...]

    @classmethod
    def of(cls, evaluation: Evaluation, rubric: Rubric, judges: Sequence[str]) -> _Sample:
        """Those that all the judges have judged."""
        essays = [each for each in evaluation.essays if all(name in each.bands for name in judges)]
        return cls(rubric, evaluation.scale, tuple(essays))

    def part(self, indices: Sequence[int]) -> _Sample:
        return attrs.evolve(self, essays=tuple(self.essays[at] for at in indices))

    @property
    def places(self) -> list[int]:
        """The reference."""
        return [self.scale.place(essay.score) for essay in self.essays]

    @property
    def human(self) -> list[float]:
        """The reference, of 100."""
        return [self.scale.percent(place) for place in self.places]

    def scores(self, judges: Sequence[str], lines: Mapping[str, Line] | None = None) -> list[float]:
        """The panel's, of 100, not rounded."""
        return [
            float(panel_score(self.rubric, {judge: essay.bands[judge] for judge in judges}, lines))
            for essay in self.essays
        ]

    def agreement(
        self, judges: Sequence[str], lines: Mapping[str, Line] | None = None
    ) -> Agreement:
        ours = [self.scale.nearest(score) for score in self.scores(judges, lines)]
        return agreement(ours, self.places, steps=self.scale.steps)

    def agreement_or_none(
        self, judges: Sequence[str], lines: Mapping[str, Line] | None = None
    ) -> Agreement | None:
        return self.agreement(judges, lines) if self.essays else None

    def misses(self, judges: Sequence[str], lines: Mapping[str, Line]) -> list[float]:
        """How far grades, rounded as students see them, are from the reference."""
        return [
            abs(math.floor(score + 0.5) - human)
            for score, human in zip(self.scores(judges, lines), self.human, strict=True)
        ]

    def confusion(self, judges: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        size = self.scale.steps + 1
        table = [[0] * size for _ in range(size)]
        for score, place in zip(self.scores(judges), self.places, strict=True):
            table[place][self.scale.nearest(score)] += 1
        return tuple(map(tuple, table))


def _bias(evaluation: Evaluation, rubric: Rubric, judge: str) -> dict[str, float]:
    sample = _Sample.of(evaluation, rubric, [judge])
    if not sample.essays:
        return {}
    human = fmean(sample.human)
    return {
        criterion.name: fmean(
            float(Fraction(100 * essay.bands[judge][criterion.name], criterion.band_max))
            for essay in sample.essays
        )
        - human
        for criterion in rubric.criteria
    }


def _humans(evaluation: Evaluation) -> tuple[Agreement | None, Ceilings | None]:
    pairs = [essay.raters for essay in evaluation.essays if essay.raters is not None]
    if len(pairs) < 2:
        return None, None
    scale = evaluation.rater_scale
    first, second = ([scale.place(pair[at]) for pair in pairs] for at in (0, 1))
    count = evaluation.raters_in_label
    return (
        agreement(second, first, steps=scale.steps),
        ceilings(first, second, steps=scale.steps, raters_in_label=count),
    )
